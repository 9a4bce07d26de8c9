//! Conditions that people write to name rows by their key: `id = 5`, `id >= 100 and id < 200`, `(a, b) > (1, 'x')`.
//!
//! It looks like SQL and never becomes any: a condition is read here into what it says of the key's columns, from the first
//! on, and only what is one range of the key is taken. The rest is refused with what to type instead.
//!
//! ```text
//! condition  = comparison { "and" comparison }
//! comparison = column operator value | "(" column { "," column } ")" operator "(" value { "," value } ")"
//! operator   = "=" | "<" | "<=" | ">" | ">="
//! value      = number | 'text' | true | false
//! ```
//!
//! Pure. Deliberately not here: what a text is to a type, and which keys there are (`postgres::borders`).

use std::fmt;

/// One end of a range: values of the key's first columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub values: Vec<String>,
    /// Keys that begin with these values lie in the range.
    pub inclusive: bool,
}

/// What a condition says of the key. Without an end it is open there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    pub lower: Option<End>,
    pub upper: Option<End>,
}

/// Why a condition is no range of the key, and what to type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRange(pub String);

impl fmt::Display for NoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest condition that is looked at: a key's values, written twice.
const BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Below,
    UpTo,
    Above,
    From,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Number(String),
    Text(String),
    Operator(Operator),
    Open,
    Close,
    Comma,
}

struct Comparison {
    columns: Vec<String>,
    operator: Operator,
    values: Vec<String>,
}

impl Bounds {
    /// What the condition says of a key of these `columns`.
    pub fn parse(condition: &str, columns: &[&str]) -> Result<Bounds, NoRange> {
        let refuse = |what: String| NoRange(format!("{what}; {}", what_to_type(columns)));
        if columns.is_empty() {
            return Err(NoRange("the table has no key, so that its rows can't be named: ask for all of it".to_owned()));
        }
        if condition.len() > BYTES_MAX {
            return Err(refuse(format!("the condition is longer than {BYTES_MAX} bytes")));
        }
        let comparisons = Parser::new(tokens(condition).map_err(refuse)?).comparisons().map_err(refuse)?;
        bounds(&comparisons, columns).map_err(refuse)
    }
}

fn what_to_type(columns: &[&str]) -> String {
    match columns {
        [one] => format!("write {one} = …, or {one} > … and {one} <= …"),
        several => {
            let list = several.join(", ");
            let values = vec!["…"; several.len()].join(", ");
            let equal: Vec<String> = several.iter().map(|column| format!("{column} = …")).collect();
            format!("write {}, or ({list}) > ({values}) and ({list}) <= ({values})", equal.join(" and "))
        }
    }
}

fn bounds(comparisons: &[Comparison], columns: &[&str]) -> Result<Bounds, String> {
    for column in comparisons.iter().flat_map(|comparison| &comparison.columns) {
        if !columns.contains(&column.as_str()) {
            return Err(format!("{column} is no column of the key ({})", columns.join(", ")));
        }
    }
    // Columns of the key's beginning that have one value.
    let mut fixed: Vec<Option<&str>> = vec![None; columns.len()];
    for comparison in comparisons.iter().filter(|comparison| comparison.operator == Operator::Equal) {
        for (column, value) in comparison.columns.iter().zip(&comparison.values) {
            let place = columns.iter().position(|name| name == column).expect("just looked");
            if fixed[place].replace(value).is_some() {
                return Err(format!("{column} is compared twice"));
            }
        }
    }
    let begin: Vec<String> = fixed.iter().map_while(|value| value.map(str::to_owned)).collect();
    if fixed.iter().skip(begin.len()).any(Option::is_some) {
        let missing = columns[begin.len()];
        return Err(format!("{missing} stands before another column in the key and has no value"));
    }
    let mut found = Bounds::default();
    for Comparison { columns: of, operator, values } in comparisons.iter().filter(|c| c.operator != Operator::Equal) {
        let place = if of.len() > 1 { 0 } else { begin.len() };
        let follows = columns.get(place..place + of.len()).is_some_and(|named| named.iter().eq(of.iter()));
        if !follows || (of.len() > 1 && !begin.is_empty()) {
            return Err(format!("{} is no beginning of the key ({})", of.join(", "), columns.join(", ")));
        }
        let values: Vec<String> = begin.iter().filter(|_| of.len() == 1).chain(values).cloned().collect();
        let (end, inclusive) = match operator {
            Operator::Above | Operator::From => (&mut found.lower, *operator == Operator::From),
            Operator::Below | Operator::UpTo => (&mut found.upper, *operator == Operator::UpTo),
            Operator::Equal => unreachable!("left out above"),
        };
        if end.replace(End { values, inclusive }).is_some() {
            return Err(format!("{} is bounded twice on one side", of.join(", ")));
        }
    }
    if !begin.is_empty() {
        // Of keys with this beginning.
        let all = || Some(End { values: begin.clone(), inclusive: true });
        found = Bounds { lower: found.lower.or_else(all), upper: found.upper.or_else(all) };
    }
    Ok(found)
}

fn tokens(condition: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = condition.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Operator(Operator::Equal), 1),
            '<' | '>' => operator(rest)?,
            '\'' | '"' => quoted(rest, first)?,
            '-' | '0'..='9' => number(rest)?,
            c if c.is_alphabetic() || c == '_' => {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), end)
            }
            other => return Err(format!("{other:?} means nothing here")),
        };
        found.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

fn operator(rest: &str) -> Result<(Token, usize), String> {
    let operator = match &rest.as_bytes()[..rest.len().min(2)] {
        b"<=" => (Operator::UpTo, 2),
        b">=" => (Operator::From, 2),
        b"<>" => return Err("<> is no range".to_owned()),
        [b'<', ..] => (Operator::Below, 1),
        _ => (Operator::Above, 1),
    };
    Ok((Token::Operator(operator.0), operator.1))
}

/// A text or a name: the quote stands twice within it.
fn quoted(rest: &str, quote: char) -> Result<(Token, usize), String> {
    let (mut text, mut at) = (String::new(), 1);
    loop {
        let Some(end) = rest[at..].find(quote) else { return Err(format!("a {quote} is missing")) };
        text.push_str(&rest[at..at + end]);
        at += end + 1;
        if !rest[at..].starts_with(quote) {
            break;
        }
        text.push(quote);
        at += 1;
    }
    let token = if quote == '\'' { Token::Text(text) } else { Token::Quoted(text) };
    Ok((token, at))
}

fn number(rest: &str) -> Result<(Token, usize), String> {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '.' || c == '-')).unwrap_or(rest.len());
    let text = &rest[..end];
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match plain(whole) && plain(fraction) {
        true => Ok((Token::Number(text.to_owned()), end)),
        false => Err(format!("{text} is no number; other values stand in '…'")),
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Parser {
    fn new(tokens: Vec<Token>) -> Parser {
        Parser { tokens: tokens.into_iter().peekable() }
    }

    fn comparisons(mut self) -> Result<Vec<Comparison>, String> {
        let mut found = vec![self.comparison()?];
        while let Some(token) = self.tokens.next() {
            match token {
                Token::Word(word) if word.eq_ignore_ascii_case("and") => found.push(self.comparison()?),
                Token::Word(word) => return Err(format!("{word} makes no range of the key")),
                _ => return Err("comparisons are joined by and".to_owned()),
            }
        }
        Ok(found)
    }

    fn comparison(&mut self) -> Result<Comparison, String> {
        let columns = self.list(Parser::column)?;
        let operator = match self.tokens.next() {
            Some(Token::Operator(operator)) => operator,
            Some(Token::Word(word)) => return Err(format!("{word} makes no range of the key")),
            _ => return Err("one of = < <= > >= is missing".to_owned()),
        };
        let values = self.list(Parser::value)?;
        if columns.len() != values.len() {
            return Err(format!("{} columns are compared with {} values", columns.len(), values.len()));
        }
        Ok(Comparison { columns, operator, values })
    }

    fn list(&mut self, one: fn(&mut Parser) -> Result<String, String>) -> Result<Vec<String>, String> {
        if self.tokens.peek() != Some(&Token::Open) {
            return Ok(vec![one(self)?]);
        }
        self.tokens.next();
        let mut found = vec![one(self)?];
        loop {
            match self.tokens.next() {
                Some(Token::Comma) => found.push(one(self)?),
                Some(Token::Close) => return Ok(found),
                _ => return Err("a ) is missing".to_owned()),
            }
        }
    }

    fn column(&mut self) -> Result<String, String> {
        match self.tokens.next() {
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("not") => Err("not makes no range".to_owned()),
            // As SQL does.
            Some(Token::Word(word)) => Ok(word.to_lowercase()),
            Some(Token::Quoted(name)) => Ok(name),
            _ => Err("a column of the key is missing".to_owned()),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        match self.tokens.next() {
            Some(Token::Number(text) | Token::Text(text)) => Ok(text),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false") => {
                Ok(word.to_lowercase())
            }
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("null") => Err("no key is NULL".to_owned()),
            Some(Token::Word(word) | Token::Quoted(word)) => Err(format!("{word} is no value")),
            _ => Err("a value is missing".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(condition: &str, columns: &[&str]) -> String {
        let end = |end: Option<End>, sign: [&str; 2]| {
            end.map_or_else(
                || "-".to_owned(),
                |end| format!("{} {}", sign[usize::from(end.inclusive)], end.values.join("|")),
            )
        };
        match Bounds::parse(condition, columns) {
            Ok(Bounds { lower, upper }) => format!("{}, {}", end(lower, [">", ">="]), end(upper, ["<", "<="])),
            Err(refused) => refused.to_string(),
        }
    }

    #[test]
    fn a_condition_over_a_key_of_one_column() {
        for (condition, found) in [
            ("id = 5", ">= 5, <= 5"),
            ("id >= 100 and id < 200", ">= 100, < 200"),
            ("ID>-1.5 AND id<=1", "> -1.5, <= 1"),
            ("\"id\" > 'it''s'", "> it's, -"),
            ("id = true", ">= true, <= true"),
            ("(id) < (3)", "-, < 3"),
        ] {
            assert_eq!(shown(condition, &["id"]), found, "{condition}");
        }
    }

    #[test]
    fn a_condition_over_a_key_of_several() {
        for (condition, found) in [
            ("a = 1 and b = 'x'", ">= 1|x, <= 1|x"),
            ("b = 'x' and a = 1", ">= 1|x, <= 1|x"),
            ("(a, b) = (1, 'x')", ">= 1|x, <= 1|x"),
            ("a = 1", ">= 1, <= 1"),
            ("a = 1 and b > 'x'", "> 1|x, <= 1"),
            ("a > 1", "> 1, -"),
            ("(a, b) > (1, 'x') and (a, b) <= (5, 'y')", "> 1|x, <= 5|y"),
        ] {
            assert_eq!(shown(condition, &["a", "b"]), found, "{condition}");
        }
    }

    #[test]
    fn what_is_no_range_of_the_key_is_refused_with_what_to_type() {
        for (condition, why) in [
            ("", "a column of the key is missing"),
            ("id", "one of = < <= > >= is missing"),
            ("id = ", "a value is missing"),
            ("v = 1", "v is no column of the key (id)"),
            ("id = 1 or id = 2", "or makes no range of the key"),
            ("not id = 1", "not makes no range"),
            ("id in (1, 2)", "in makes no range of the key"),
            ("id <> 1", "<> is no range"),
            ("id = 1 and id = 2", "id is compared twice"),
            ("id > 1 and id > 2", "id is bounded twice on one side"),
            ("id = null", "no key is NULL"),
            ("id = other", "other is no value"),
            ("id = 1; DROP TABLE t", "';' means nothing here"),
            ("id = 1::int", "':' means nothing here"),
            ("id = 'x", "a ' is missing"),
            ("id = 1e5", "1e5 is no number; other values stand in '…'"),
            ("id = pg_sleep(1)", "pg_sleep is no value"),
        ] {
            let wanted = format!("{why}; write id = …, or id > … and id <= …");
            assert_eq!(shown(condition, &["id"]), wanted, "{condition}");
        }
        let why = |condition: &str| shown(condition, &["a", "b"]).split(';').next().unwrap().to_owned();
        assert_eq!(why("b = 1"), "a stands before another column in the key and has no value");
        assert_eq!(why("b > 1"), "b is no beginning of the key (a, b)");
        assert_eq!(why("(a, b) > (1)"), "2 columns are compared with 1 values");
        assert_eq!(why("a = 1 and (a, b) > (1, 2)"), "a, b is no beginning of the key (a, b)");
        assert!(shown("a > 1 and b > 2", &["a", "b"]).starts_with("b is no beginning"));
        let both = "; write a = … and b = …, or (a, b) > (…, …) and (a, b) <= (…, …)";
        assert!(shown("x", &["a", "b"]).ends_with(both));
        assert!(shown("a = 1", &[]).starts_with("the table has no key"));
    }

    proptest! {
        #[test]
        fn anything_is_a_range_or_refused(text in "[a-c =<>,()'\"0-9.;-]{0,24}|\\PC{0,16}") {
            let _ = Bounds::parse(&text, &["a", "b"]);
        }
    }
}
