//! What is wrong with a configuration, said so that it can be put right at once.
//!
//! A finding names file, line and column, shows the line, says what was found and what to write instead. All of them are
//! collected before anything is refused, because a file that is corrected one error per start is corrected at night.
//!
//! Invariant: a finding never holds a secret, not even in its `Debug` form. The shown line passes through [`secrets`] when the
//! finding is made, and messages are written by code that never quotes a URL.
//!
//! Not here: what makes a value wrong. That is said where the value is read.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// So many are shown; a file of another kind altogether would otherwise fill the screen.
const SHOWN_MAX: usize = 100;
/// Characters of a line that are shown, so that one endless line stays readable.
const LINE_CHARS_MAX: usize = 160;
/// Characters kept left of the caret where a longer line is cut.
const LINE_CHARS_BEFORE: usize = 60;

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub file: PathBuf,
    /// Where in the file; `None` when the file itself is the trouble.
    pub place: Option<Place>,
    /// What was found, lowercase, one line.
    pub message: String,
    /// What to write or type instead.
    pub hint: String,
}

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    /// The line without secrets and the characters of it to underline; `None` where something is missing altogether.
    pub excerpt: Option<(String, Range<usize>)>,
}

/// Every finding, in order of file and place. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.0.iter()
    }
}

impl std::error::Error for Findings {}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in self.0.iter().take(SHOWN_MAX) {
            writeln!(f, "{finding}\n")?;
        }
        if self.0.len() > SHOWN_MAX {
            writeln!(f, "… and {} more\n", self.0.len() - SHOWN_MAX)?;
        }
        let mut files: Vec<&PathBuf> = self.0.iter().map(|finding| &finding.file).collect();
        files.sort();
        files.dedup();
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let (count, files) = (self.0.len(), files.len());
        write!(f, "{count} finding{} in {files} file{}; nothing was started", plural(count), plural(files))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error[CONFIG]: {}", self.message)?;
        let file = self.file.display();
        let Some(place) = &self.place else {
            return write!(f, "  --> {file}\n  help: {}", self.hint);
        };
        writeln!(f, "  --> {file}:{}:{}", place.line, place.column)?;
        if let Some((line, caret)) = &place.excerpt {
            let number = place.line.to_string();
            let margin = " ".repeat(number.len());
            let (indent, carets) = (" ".repeat(caret.start), "^".repeat(caret.len()));
            writeln!(f, "{margin} |\n{number} | {line}\n{margin} | {indent}{carets}")?;
        }
        write!(f, "  help: {}", self.hint)
    }
}

/// A configuration file as read. No `Debug`: it may hold a password.
pub(super) struct File {
    pub path: PathBuf,
    pub text: String,
}

/// A range of bytes in a file.
#[derive(Clone)]
pub(super) struct At {
    pub file: Rc<File>,
    pub span: Range<usize>,
}

impl At {
    /// `path:line:column`, to name a second place inside a message.
    pub fn name(&self) -> String {
        let place = self.place();
        format!("{}:{}:{}", self.file.path.display(), place.line, place.column)
    }

    fn place(&self) -> Place {
        let text = self.file.text.as_str();
        let start = floor(text, self.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let line = text[..line_start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        let excerpt = (!self.span.is_empty()).then(|| {
            let caret = start..floor(text, self.span.end).clamp(start, line_end);
            shown(text, line_start..line_end, caret)
        });
        Place { line, column, excerpt }
    }
}

/// Where findings gather while files are read and compared.
#[derive(Default)]
pub(super) struct Report {
    findings: RefCell<Vec<(usize, Finding)>>,
}

impl Report {
    pub fn add(&self, at: &At, message: impl Into<String>, hint: impl Into<String>) {
        let (file, place) = (at.file.path.clone(), Some(at.place()));
        let finding = Finding { file, place, message: message.into(), hint: hint.into() };
        self.findings.borrow_mut().push((at.span.start, finding));
    }

    /// A finding about a file or folder as a whole.
    pub fn add_file(&self, path: &Path, message: impl Into<String>, hint: impl Into<String>) {
        let finding = Finding { file: path.to_owned(), place: None, message: message.into(), hint: hint.into() };
        self.findings.borrow_mut().push((0, finding));
    }

    pub fn is_empty(&self) -> bool {
        self.findings.borrow().is_empty()
    }

    /// In order of file, those of `first` (the process's own) before all others, and of place.
    pub fn into_findings(self, first: &Path) -> Findings {
        let mut findings = self.findings.into_inner();
        findings.sort_by(|(a_start, a), (b_start, b)| {
            (a.file != first, &a.file, a_start).cmp(&(b.file != first, &b.file, b_start))
        });
        Findings(findings.into_iter().map(|(_, finding)| finding).collect())
    }
}

/// The nearest character boundary at or before a byte offset.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// A line as it may be shown: secrets as `***`, control characters (terminal escapes) replaced, cut around the caret.
fn shown(text: &str, line: Range<usize>, caret: Range<usize>) -> (String, Range<usize>) {
    let secrets = secrets(text);
    let (mut chars, mut from, mut to) = (Vec::new(), None, None);
    for (offset, c) in text[line.clone()].char_indices().map(|(i, c)| (line.start + i, c)) {
        if offset >= caret.start {
            from.get_or_insert(chars.len());
        }
        if offset >= caret.end {
            to.get_or_insert(chars.len());
        }
        match secrets.iter().find(|secret| secret.contains(&offset)) {
            Some(secret) if offset == secret.start.max(line.start) => chars.extend("***".chars()),
            Some(_) => {}
            None if c == '\t' => chars.push(' '),
            None if c.is_control() => chars.push('\u{fffd}'),
            None => chars.push(c),
        }
    }
    let from = from.unwrap_or(chars.len());
    let to = to.unwrap_or(chars.len()).max(from + 1);
    let cut = if chars.len() > LINE_CHARS_MAX { from.saturating_sub(LINE_CHARS_BEFORE) } else { 0 };
    let kept = &chars[cut..chars.len().min(cut + LINE_CHARS_MAX)];
    let caret = from - cut..(to - cut).min(LINE_CHARS_MAX.max(from - cut + 1));
    (kept.iter().collect::<String>().trim_end().to_owned(), caret)
}

/// Byte ranges of a TOML text that may hold a secret, found without relying on its syntax being right: passwords inside URLs,
/// and the values of keys that sound like a secret. Rather too much is hidden than too little.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut secrets: Vec<Range<usize>> = text.match_indices("://").filter_map(|(i, _)| url_password(text, i)).collect();
    for word in ["password", "passwd", "secret", "token", "salt"] {
        secrets.extend(ascii_matches(text, word).filter_map(|i| secret_value(text, i)));
    }
    secrets
}

/// Offsets of a lowercase ASCII word, whatever its case in the text.
fn ascii_matches<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    text.as_bytes()
        .windows(word.len())
        .enumerate()
        .filter(move |(_, window)| window.eq_ignore_ascii_case(word.as_bytes()))
        .map(|(offset, _)| offset)
}

/// Between the first colon after `://` and the last `@`. That is the string's or, behind a quote that may be one inside the
/// password, the line's. Without any `@` the colon may stand before a port, but is not trusted to.
fn url_password(text: &str, separator: usize) -> Option<Range<usize>> {
    let line_start = text[..separator].rfind('\n').map_or(0, |i| i + 1);
    let quote = text[line_start..separator].rfind(['"', '\'']).map(|i| line_start + i);
    let start = separator + "://".len();
    let string = &text[start..start + string_length(text, quote, start)];
    let line_end = text[start + string.len()..].find('\n').map_or(text.len(), |i| start + string.len() + i);
    let end = match text[start..line_end].rfind('@') {
        Some(at) => at,
        None if string.starts_with('[') => return None,
        None => string.len(),
    };
    let colon = text[start..start + end].find(':')?;
    Some(start + colon + 1..start + end)
}

/// The value beside a key whose name holds `password` and so on, unless the key says where the secret is (`_file`, `_env`).
fn secret_value(text: &str, word: usize) -> Option<Range<usize>> {
    let rest = &text[word..];
    let key = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c))).unwrap_or(rest.len());
    if rest[..key].ends_with("_file") || rest[..key].ends_with("_env") {
        return None;
    }
    let gap = rest[key..].find(|c: char| !" \t\"'".contains(c))?;
    if !rest[key + gap..].starts_with(['=', ':']) {
        return None;
    }
    let after = word + key + gap + 1;
    let blank = text[after..].find(|c: char| c != ' ' && c != '\t').unwrap_or(0);
    let start = after + blank;
    let triple = ["\"\"\"", "'''"].iter().any(|quotes| text[start..].starts_with(quotes));
    let length = match triple {
        true => string_length(text, Some(start + 2), start + 3) + 3,
        false => text[start..].find(['\n', '\r']).unwrap_or(text.len() - start),
    };
    (length > 0).then_some(start..start + length)
}

/// Bytes from `start` to the end of the string that the quote at `quote` opens: its closing quote, or else the line's end.
fn string_length(text: &str, quote: Option<usize>, start: usize) -> usize {
    let rest = &text[start..];
    let Some(quote) = quote else {
        return rest.find('\n').unwrap_or(rest.len());
    };
    let mark = &text[quote..=quote];
    let triple = mark.repeat(3);
    if text[..=quote].ends_with(&triple) {
        return rest.find(&triple).unwrap_or(rest.len());
    }
    let mut escaped = false;
    for (i, c) in rest.char_indices() {
        match c {
            '\n' => return i,
            '\\' if mark == "\"" => escaped = !escaped,
            c if mark.starts_with(c) && !escaped => return i,
            _ => escaped = false,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        shown(text, 0..text.find('\n').unwrap_or(text.len()), 0..1).0
    }

    #[test]
    fn a_shown_line_never_holds_a_secret() {
        assert_eq!(line(r#"url = "postgres://u:hunter2@h:5432/d""#), r#"url = "postgres://u:***@h:5432/d""#);
        assert_eq!(line(r#"url = "postgres://u:hun@ter/2@h/d" # a@b"#), r#"url = "postgres://u:***@b"#);
        assert_eq!(line(r#"url = "postgres://u:hunter2@h/d"#), r#"url = "postgres://u:***@h/d"#, "unclosed");
        assert_eq!(line(r#"url = "postgres://u:hunter2""#), r#"url = "postgres://u:***""#, "no host");
        assert_eq!(line(r#"url = "postgres://u:h\"unter2@h/d""#), r#"url = "postgres://u:***@h/d""#);
        assert_eq!(line(r#"url = "postgres://u@h/d?password=hunter2""#), r#"url = "postgres://u@h/d?password=***"#);
        assert_eq!(line(r#"url = "postgres://u:12"34@h/d""#), r#"url = "postgres://u:***@h/d""#, "a quote inside");
        assert_eq!(line(r#"url = "postgres://u:1@2"34@h/d""#), r#"url = "postgres://u:***@h/d""#, "a quote inside");
        assert_eq!(line(r#"password = "hunter2""#), "password = ***");
        assert_eq!(line("\"sasl_PassWord\" : hunter2"), "\"sasl_PassWord\" : ***");
        assert_eq!(line("x = { password = \"hunter2\" }"), "x = { password = ***");
        let continued = "url = \"\"\"postgres://u:\\\nhunter2@h/d\"\"\"";
        let second = continued.find("hunter2").expect("it is there");
        assert_eq!(shown(continued, second..continued.len(), second..second + 1).0, "***@h/d\"\"\"");
        let continued = "password = '''\nhunter2'''";
        assert_eq!(shown(continued, 15..continued.len(), 15..16).0, "***'''");
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        for text in [
            r#"url = "postgres://u@h:5432/d" # ask ops"#,
            r#"url = "postgres://u@[::1]:5432/d""#,
            r#"url = "postgres://[::1]:5432/d""#,
            r#"password_file = "/run/secrets/pw""#,
            r#"sasl_password_env = "PW""#,
            r#"table = "public.tokens""#,
        ] {
            assert_eq!(line(text), text);
        }
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret_and_escapes_are_dead() {
        let text = format!("{}\u{1b}[31m{}", "a".repeat(500), "b".repeat(500));
        let (line, caret) = shown(&text, 0..text.len(), 500..501);
        assert_eq!(line.chars().count(), LINE_CHARS_MAX);
        assert_eq!(line.chars().nth(caret.start), Some('\u{fffd}'));
    }

    proptest::proptest! {
        #[test]
        fn any_text_and_span_can_be_shown(text in "(?s).{0,60}|[a:/@\"'\n\\\\=]{0,40}|(url|password|=|'''|\"\"\"|://|:|@|\n| ){0,20}", a in 0usize..200, b in 0usize..200) {
            let file = Rc::new(File { path: "f".into(), text });
            let report = Report::default();
            report.add(&At { file, span: a.min(b)..a.max(b) }, "m", "h");
            let _ = report.into_findings(Path::new("f")).to_string();
        }
    }
}
