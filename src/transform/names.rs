//! Columns as a connector names them: one by its name, or all that match a pattern, also those that the table gets later.
//!
//! A name stands for itself, whatever is in it. A text that holds a `*` outside of double quotes is a pattern: `*` is any run of
//! characters, also none, and what stands in double quotes is itself, as in patterns of tables. There are no other signs, and
//! capitals are capitals: columns are written as the table has them, quotes or not.

use serde_json::{Value, json};

use super::glob::Glob;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ColumnName {
    Exactly(String),
    Like(Glob),
}

impl ColumnName {
    /// `None`: a pattern lacks a closing quote.
    pub fn parse(text: &str) -> Option<ColumnName> {
        if !text.contains('*') {
            return Some(ColumnName::Exactly(text.to_owned()));
        }
        let (mut runs, mut run, mut quoted) = (Vec::new(), String::new(), false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => run.extend(chars.next()),
                '"' => quoted = !quoted,
                '*' if !quoted => runs.push(std::mem::take(&mut run)),
                c => run.push(c),
            }
        }
        if quoted {
            return None;
        }
        if runs.is_empty() {
            return Some(ColumnName::Exactly(run));
        }
        runs.push(run);
        Some(ColumnName::Like(Glob::new(runs)))
    }

    pub fn matches(&self, column: &str) -> bool {
        match self {
            ColumnName::Exactly(name) => name == column,
            ColumnName::Like(glob) => glob.matches(column),
        }
    }

    pub fn is_pattern(&self) -> bool {
        matches!(self, ColumnName::Like(_))
    }

    /// In a digest, where older builds had names alone.
    pub(super) fn mark(&self) -> Value {
        match self {
            ColumnName::Exactly(name) => json!(name),
            ColumnName::Like(_) => json!({ "like": self.to_string() }),
        }
    }
}

/// As it can be written.
impl std::fmt::Display for ColumnName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |run: &str| match run.contains(['*', '"']) {
            true => format!("\"{}\"", run.replace('"', "\"\"")),
            false => run.to_owned(),
        };
        match self {
            ColumnName::Exactly(name) if name.contains('*') => f.write_str(&quoted(name)),
            ColumnName::Exactly(name) => f.write_str(name),
            ColumnName::Like(glob) => {
                let runs: Vec<String> = glob.runs().iter().map(|run| quoted(run)).collect();
                f.write_str(&runs.join("*"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_outside_of_quotes_makes_a_pattern() {
        let matched = |text: &str| {
            let name = ColumnName::parse(text).unwrap();
            ["secret", "secret_a", "a*b", "a b", "a\"b*", "A"].map(|column| name.matches(column))
        };
        assert_eq!(matched("secret*"), [true, true, false, false, false, false]);
        assert_eq!(matched("*"), [true; 6]);
        assert_eq!(matched("\"a*\"*"), [false, false, true, false, false, false]);
        assert_eq!(matched("\"a*b\""), [false, false, true, false, false, false]);
        assert_eq!(matched("\"a\"\"b*\""), [false, false, false, false, true, false]);
        // Without one, everything is itself.
        assert_eq!(ColumnName::parse("\"x"), Some(ColumnName::Exactly("\"x".into())));
        assert_eq!(ColumnName::parse("\"x*"), None);
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_reads_back(text in "[a\"* ]{0,8}") {
            if let Some(name) = ColumnName::parse(&text) {
                proptest::prop_assert_eq!(ColumnName::parse(&name.to_string()), Some(name));
            }
        }
    }
}
