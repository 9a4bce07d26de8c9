//! A walk over one TOML file that knows where every key and value stands, and goes on after what is wrong.
//!
//! serde's derive stops at the first error and forgets the places of values that parsed; a configuration needs neither. A
//! [`Section`] hands out typed values by key, records a finding for each that is missing or of another type, and answers with
//! the default then, so that the walk goes on: the caller only has to refuse the result when there are findings.
//!
//! The keys that exist are the keys that were asked for. There is no second list to keep; [`read`] reports every other key
//! when the walk is over, and knows by then in which section it would have been right. Hence a reader asks for all its keys on
//! every path, also for those of a section that the file does not have.
//!
//! Not here: any key's name or meaning.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::findings::{At, File, Report};
use super::units;

/// How variables of `${NAME}` are looked up.
pub(super) type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// A string value, variables expanded. No `Debug`: it may hold a password.
#[derive(Clone)]
pub(super) struct Text {
    pub value: String,
    pub at: At,
}

/// Of one file. Behind the first errors the parser is out of step, and more of them only echo.
const SYNTAX_ERRORS_MAX: usize = 20;

/// Walks a file. `None` if it is not TOML; the findings say where.
pub(super) fn read<T>(
    file: &Rc<File>,
    env: &Env<'_>,
    report: &Report,
    walk: impl FnOnce(&mut Section<'_>) -> T,
) -> Option<T> {
    let (root, errors) = DeTable::parse_recoverable(&file.text);
    if !errors.is_empty() {
        for error in errors.into_iter().take(SYNTAX_ERRORS_MAX) {
            let start = error.span().unwrap_or_default();
            // An error at the end of a line or file has an empty span; it still gets its line shown.
            let at = At { file: Rc::clone(file), span: start.start..start.end.max(start.start + 1) };
            report.add(&at, format!("not TOML: {}", error.message()), syntax_hint(error.message()));
        }
        return None;
    }
    let document = Document { file, env, report, sections: RefCell::default() };
    let at = document.at(0..0);
    let result = Section::walk(&document, String::new(), at, Some(root.get_ref()), walk);
    document.report_unknown();
    Some(result)
}

fn syntax_hint(message: &str) -> &'static str {
    if message.contains("duplicate") {
        "delete one of the two"
    } else {
        "a line reads: key = value, or [section]; text stands in double quotes, \\ in it is written \\\\"
    }
}

/// What the sections of one file share.
struct Document<'a> {
    file: &'a Rc<File>,
    env: &'a Env<'a>,
    report: &'a Report,
    /// Sections already walked.
    sections: RefCell<Vec<Walked>>,
}

/// A section after its walk.
struct Walked {
    path: String,
    asked: BTreeSet<&'static str>,
    unknown: Vec<(String, At)>,
}

impl Document<'_> {
    fn at(&self, span: Range<usize>) -> At {
        At { file: Rc::clone(self.file), span }
    }

    fn report_unknown(&self) {
        let sections = self.sections.borrow();
        for section in sections.iter() {
            for (key, at) in &section.unknown {
                let place = place_name(&section.path);
                let message = format!("unknown key {key:?} {place}");
                self.report.add(at, message, unknown_hint(key, section, &sections));
            }
        }
    }
}

/// ` in [kafka]`, or of what stands above all sections.
fn place_name(section: &str) -> String {
    if section.is_empty() { "above the first [section]".into() } else { format!("in [{section}]") }
}

fn unknown_hint(key: &str, section: &Walked, sections: &[Walked]) -> String {
    let stem = format!("{key}_");
    let longer: Vec<&str> = section.asked.iter().copied().filter(|known| known.starts_with(&stem)).collect();
    if !longer.is_empty() {
        return format!("did you mean {}?", longer.join(" or "));
    }
    if let Some(near) = nearest(key, section.asked.iter().copied()) {
        return format!("did you mean {near}?");
    }
    let elsewhere: BTreeSet<String> =
        sections.iter().filter(|s| s.asked.contains(key)).map(|s| place_name(&s.path)).collect();
    if !elsewhere.is_empty() {
        let places: Vec<String> = elsewhere.into_iter().collect();
        return format!("{key} belongs {}; a key belongs to the last [section] before it", places.join(" or "));
    }
    let known: Vec<&str> = section.asked.iter().copied().collect();
    format!("delete it; keys {} are: {}", place_name(&section.path), known.join(", "))
}

/// The candidate that `word` is a misspelling of, if one is near: a third of its letters wrong or swapped, at most.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// One table of the file, or the empty one where the file has none.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    /// `source.snapshot`; empty for what stands above all sections.
    path: String,
    at: At,
    table: Option<&'a DeTable<'a>>,
    asked: BTreeSet<&'static str>,
    /// The keys are names that the user chose, and all were asked for.
    open: bool,
}

impl<'a> Section<'a> {
    fn walk<T>(
        document: &'a Document<'a>,
        path: String,
        at: At,
        table: Option<&'a DeTable<'a>>,
        walk: impl FnOnce(&mut Section<'a>) -> T,
    ) -> T {
        let mut section = Section { document, path, at, table, asked: BTreeSet::new(), open: false };
        let result = walk(&mut section);
        let Section { path, asked, open, .. } = section;
        let keys = table.into_iter().flat_map(|table| table.keys());
        let unknown = keys
            .filter(|key| !open && !asked.contains(key.get_ref().as_ref()))
            .map(|key| (key.get_ref().to_string(), document.at(key.span())))
            .collect();
        document.sections.borrow_mut().push(Walked { path, asked, unknown });
        result
    }

    pub fn report(&self) -> &'a Report {
        self.document.report
    }

    pub fn env(&self) -> &'a Env<'a> {
        self.document.env
    }

    /// Where the section stands, if the file has it.
    pub fn there(&self) -> Option<At> {
        self.table.map(|_| self.at.clone())
    }

    fn child(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&mut self, key: &'static str) -> Option<(&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)> {
        self.asked.insert(key);
        self.table.and_then(|table| table.get_key_value(key))
    }

    /// A table below this one; empty if the file has none.
    pub fn section<T>(&mut self, key: &'static str, walk: impl FnOnce(&mut Section<'a>) -> T) -> T {
        let path = self.child(key);
        let (at, table) = match self.get(key) {
            None => (self.at.clone(), None),
            Some((key, value)) => (self.document.at(key.span()), self.table_of(&path, value)),
        };
        Section::walk(self.document, path, at, table, walk)
    }

    fn table_of(&self, path: &str, value: &'a Spanned<DeValue<'a>>) -> Option<&'a DeTable<'a>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let at = self.document.at(value.span());
            let message = format!("{path} must be a section, found {}", kind(value.get_ref()));
            self.report().add(&at, message, format!("write [{path}] on a line of its own, its keys below it"));
        }
        table
    }

    /// The tables below `key`, whose names the user chose, in order of name.
    pub fn each<T>(&mut self, key: &'static str, mut walk: impl FnMut(Text, &mut Section<'a>) -> T) -> Vec<T> {
        self.section(key, |names| {
            names.open = true;
            let mut results = Vec::new();
            for (name, value) in names.table.into_iter().flatten() {
                let at = names.document.at(name.span());
                let path = names.child(name.get_ref());
                let table = names.table_of(&path, value);
                let name = Text { value: name.get_ref().to_string(), at: at.clone() };
                results.push(Section::walk(names.document, path, at, table, |section| walk(name, section)));
            }
            results
        })
    }

    /// The strings below `key`, whose names the user chose, in order of name.
    pub fn each_text(&mut self, key: &'static str) -> Vec<(Text, Text)> {
        self.section(key, |names| {
            names.open = true;
            let mut results = Vec::new();
            for (name, value) in names.table.into_iter().flatten() {
                let word = name.get_ref();
                let text = names.expanded(word, value, |_| format!("write {word} = \"…\""));
                let name = Text { value: word.to_string(), at: names.document.at(name.span()) };
                results.extend(text.map(|text| (name, text)));
            }
            results
        })
    }

    /// A string with its variables expanded.
    pub fn text(&mut self, key: &'static str) -> Option<Text> {
        let (_, value) = self.get(key)?;
        self.expanded(key, value, |found| match found {
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => format!("put it in quotes: {key} = \"…\""),
            _ => format!("write {key} = \"…\""),
        })
    }

    /// Where a key's value stands, whatever it is.
    pub fn place(&mut self, key: &'static str) -> Option<At> {
        self.get(key).map(|(_, value)| self.document.at(value.span()))
    }

    /// A string that must be there; `example` is the line to write.
    pub fn required(&mut self, key: &'static str, example: &str) -> Option<Text> {
        if self.get(key).is_none() {
            let place = place_name(&self.path);
            self.report().add(&self.at, format!("{key} is missing {place}"), format!("write {example} {place}"));
        }
        self.text(key)
    }

    /// A string or a list of them, which must be there; `example` is the line to write.
    pub fn one_or_more(&mut self, key: &'static str, example: &str) -> Vec<Text> {
        match self.get(key) {
            Some((_, value)) if value.get_ref().is_array() => {
                let example = format!("[{}]", example.trim_start_matches(key).trim_start_matches([' ', '=']));
                let (at, texts) = self.texts(key, &example).unwrap_or_else(|| (self.at.clone(), Vec::new()));
                if value.get_ref().as_array().is_some_and(|items| items.is_empty()) {
                    self.report().add(&at, format!("{key} is empty"), format!("write {key} = {example}"));
                }
                texts
            }
            _ => self.required(key, example).into_iter().collect(),
        }
    }

    fn expanded(&self, key: &str, value: &Spanned<DeValue<'_>>, hint: impl Fn(&DeValue<'_>) -> String) -> Option<Text> {
        let at = self.document.at(value.span());
        let Some(raw) = value.get_ref().as_str() else {
            let message = format!("{key} must be a string, found {}", kind(value.get_ref()));
            self.report().add(&at, message, hint(value.get_ref()));
            return None;
        };
        match expand(raw, self.document.env) {
            Err(faults) => {
                for fault in faults {
                    let message = format!("{key}: {}", fault.message);
                    self.report().add(&narrowed(&at, &fault.found), message, fault.hint);
                }
                None
            }
            Ok(value) if value.contains('\0') => {
                self.report().add(&at, format!("{key} holds a NUL character"), "delete \\u0000 from it");
                None
            }
            Ok(value) => Some(Text { value, at }),
        }
    }

    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some((_, value)) = self.get(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            let hint = format!("write {key} = true or {key} = false, without quotes");
            self.wrong(value, format!("{key} must be true or false, found {}", kind(value.get_ref())), hint);
            default
        })
    }

    /// A whole number; `None` if it is not there.
    pub fn integer(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let (_, value) = self.get(key)?;
        let number = value.get_ref().as_integer();
        let number = number.map(|digits| i64::from_str_radix(digits.as_str(), digits.radix()));
        let limits = format!("{key} takes a whole number from {} to {}", range.start(), range.end());
        match number {
            Some(Ok(number)) if range.contains(&number) => Some(number),
            Some(Ok(number)) => {
                let bound = number.clamp(*range.start(), *range.end());
                self.wrong(value, format!("{number} is out of range: {limits}"), format!("write {key} = {bound}"));
                None
            }
            Some(Err(_)) => {
                let hint = format!("write {key} = {}", range.end());
                self.wrong(value, format!("the number is out of range: {limits}"), hint);
                None
            }
            None => {
                let message = format!("{limits}, found {}", kind(value.get_ref()));
                self.wrong(value, message, format!("write {key} = {}, without quotes", range.start()));
                None
            }
        }
    }

    /// A count: a whole number that is never negative, with its default.
    pub fn count(&mut self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let wide = i64::from(*range.start())..=i64::from(*range.end());
        let number = self.integer(key, wide);
        number.map_or(default, |number| u32::try_from(number).expect("within a range of u32"))
    }

    pub fn size(&mut self, key: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        self.quantity(key, default, range, "a size with its unit (B, KiB, MiB, GiB)", units::size, units::show_size)
    }

    /// A size, or `None` where there is none.
    pub fn optional_size(&mut self, key: &'static str, range: RangeInclusive<usize>) -> Option<usize> {
        let least = *range.start();
        self.place(key).map(|_| self.size(key, least, range))
    }

    pub fn duration(&mut self, key: &'static str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let what = "a duration with its unit (us, ms, s, m, h, d)";
        self.quantity(key, default, range, what, units::duration, units::show_duration)
    }

    fn quantity<T: Copy + Ord>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
        what: &str,
        parse: fn(&str) -> Result<T, Option<String>>,
        show: fn(T) -> String,
    ) -> T {
        let Some((_, value)) = self.get(key) else { return default };
        let example = |text: String| format!("write {key} = \"{text}\"");
        let Some(text) = self.expanded(key, value, |_| example(show(default))) else { return default };
        match parse(&text.value) {
            Ok(amount) if range.contains(&amount) => amount,
            Ok(amount) => {
                let (least, most) = (show(*range.start()), show(*range.end()));
                let message = format!("{key} takes {least} to {most}, found {}", show(amount));
                self.wrong(value, message, example(show(amount.clamp(*range.start(), *range.end()))));
                default
            }
            Err(meant) => {
                let message = format!("{key} must be {what}, found {:?}", text.value);
                self.wrong(value, message, example(meant.unwrap_or_else(|| show(default))));
                default
            }
        }
    }

    /// One of a closed list of words; `None` if it is not there.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let chosen = choices.iter().find(|(word, _)| *word == text.value);
        if chosen.is_none() {
            let hint = match words.iter().find(|word| word.eq_ignore_ascii_case(&text.value)) {
                Some(word) => format!("write {key} = {word:?}"),
                None => match nearest(&text.value, words.iter().copied()) {
                    Some(near) => format!("did you mean {key} = {near:?}?"),
                    None => format!("write {key} = {:?}", words[0]),
                },
            };
            let message = format!("{key} must be one of {}, found {:?}", words.join(", "), text.value);
            self.report().add(&text.at, message, hint);
        }
        chosen.map(|(_, value)| *value)
    }

    /// A list of strings; `None` if it is not there.
    pub fn texts(&mut self, key: &'static str, example: &str) -> Option<(At, Vec<Text>)> {
        let (_, value) = self.get(key)?;
        let Some(items) = value.get_ref().as_array() else {
            let message = format!("{key} must be a list of strings, found {}", kind(value.get_ref()));
            self.wrong(value, message, format!("write {key} = {example}"));
            return None;
        };
        let hint = |_: &DeValue<'_>| format!("write {key} = {example}");
        let texts = items.iter().filter_map(|item| self.expanded(&format!("each of {key}"), item, hint)).collect();
        Some((self.document.at(value.span()), texts))
    }

    fn wrong(&self, value: &Spanned<DeValue<'_>>, message: String, hint: String) {
        self.report().add(&self.document.at(value.span()), message, hint);
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// The part of `at` that reads `found`, if it stands there so.
fn narrowed(at: &At, found: &str) -> At {
    let within = at.file.text.get(at.span.clone()).and_then(|text| text.find(found));
    let span = within.map_or(at.span.clone(), |i| at.span.start + i..at.span.start + i + found.len());
    At { file: Rc::clone(&at.file), span }
}

/// What is wrong with a `${…}`.
#[derive(Debug, PartialEq)]
struct ExpandFault {
    /// As written.
    found: String,
    message: String,
    hint: String,
}

/// Puts the values of variables in place of `${NAME}`; `$${` stands for `${`. A dollar sign before anything else is itself. The
/// values are not expanded again.
fn expand(raw: &str, env: &Env<'_>) -> Result<String, Vec<ExpandFault>> {
    let (mut expanded, mut faults, mut rest) = (String::new(), Vec::new(), raw);
    while let Some(dollar) = rest.find("${") {
        if rest[..dollar].ends_with('$') {
            expanded.push_str(&rest[..dollar]);
            expanded.push('{');
            rest = &rest[dollar + 2..];
            continue;
        }
        expanded.push_str(&rest[..dollar]);
        rest = &rest[dollar + 2..];
        let end = rest.find('}');
        let name = &rest[..end.unwrap_or(0)];
        if !is_variable(name) {
            faults.push(ExpandFault {
                found: "${".into(),
                message: "${ does not begin a variable like ${NAME} here".into(),
                hint: "write ${NAME} with letters, digits and _, or $${ for the two characters themselves".into(),
            });
            continue;
        }
        match env(name) {
            Some(value) => expanded.push_str(&value),
            None => faults.push(ExpandFault {
                found: format!("${{{name}}}"),
                message: format!("environment variable {name} is not set"),
                hint: format!("export {name}=…, or write $${{{name}}} if no variable is meant"),
            }),
        }
        rest = &rest[name.len() + 1..];
    }
    expanded.push_str(rest);
    if faults.is_empty() { Ok(expanded) } else { Err(faults) }
}

/// Letters, digits and `_`, not beginning with a digit.
pub(super) fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db.internal".into()),
            "NESTED" => Some("${HOST}".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_expanded_once() {
        let ok = |raw| expand(raw, &env).unwrap();
        assert_eq!(ok("a ${HOST}:${HOST} b"), "a db.internal:db.internal b");
        assert_eq!(ok("${NESTED}"), "${HOST}");
        assert_eq!(ok("$${HOST} $HOST $ $$ 5$"), "${HOST} $HOST $ $$ 5$");
        assert_eq!(ok("ü${HOST}ü"), "üdb.internalü");
    }

    #[test]
    fn every_missing_variable_is_named() {
        let faults = expand("${A} ${HOST} ${B} ${} ${C:-x} ${", &env).unwrap_err();
        let found: Vec<&str> = faults.iter().map(|fault| fault.found.as_str()).collect();
        assert_eq!(found, ["${A}", "${B}", "${", "${", "${"]);
        assert_eq!(faults[0].message, "environment variable A is not set");
    }

    #[test]
    fn misspellings_are_near_and_other_words_are_not() {
        let keys = ["slot", "url", "publication", "password_file"];
        assert_eq!(nearest("slots", keys), Some("slot"));
        assert_eq!(nearest("Publikation", keys), Some("publication"));
        assert_eq!(nearest("password-file", keys), Some("password_file"));
        assert_eq!(nearest("ulr", keys), Some("url"));
        assert_eq!(nearest("group", keys), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_expands_or_is_refused(raw in "[${}A-Z\\PC]{0,20}") {
            let _ = expand(&raw, &env);
        }
    }
}
