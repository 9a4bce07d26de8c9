//! Names of types as relation versions and the ledger have them: `typname`, with the schema in front unless it is `pg_catalog`.
//!
//! A part that holds a dot or a quote stands in quotes, since it would be cut in another place than it was joined; all other
//! names are written as they always were, so that fingerprints of older builds stay what they are.

use std::borrow::Cow;

use super::quote_identifier;

/// `schema.name`; the name alone in `pg_catalog`.
pub fn join(schema: &str, name: &str) -> String {
    match schema {
        "pg_catalog" => part(name).into_owned(),
        _ => format!("{}.{}", part(schema), part(name)),
    }
}

fn part(name: &str) -> Cow<'_, str> {
    match name.contains(['.', '"']) {
        true => Cow::Owned(quote_identifier(name)),
        false => Cow::Borrowed(name),
    }
}

/// Schema, where there is one, and name of a type, unquoted.
pub fn split(type_name: &str) -> (Option<Cow<'_, str>>, Cow<'_, str>) {
    let (first, rest) = first(type_name);
    match rest.strip_prefix('.') {
        Some(name) => (Some(first), self::first_or_whole(name)),
        None => (None, first),
    }
}

/// The part up to the first dot outside of quotes, and what follows.
fn first(text: &str) -> (Cow<'_, str>, &str) {
    let Some(inside) = text.strip_prefix('"') else {
        return match text.find('.') {
            Some(at) => (Cow::Borrowed(&text[..at]), &text[at..]),
            None => (Cow::Borrowed(text), ""),
        };
    };
    let mut from = 0;
    while let Some(at) = inside[from..].find('"').map(|at| from + at) {
        if inside[at + 1..].starts_with('"') {
            from = at + 2;
        } else {
            return (Cow::Owned(inside[..at].replace("\"\"", "\"")), &inside[at + 1..]);
        }
    }
    // Of an older build, which quoted nothing.
    (Cow::Borrowed(text), "")
}

/// What follows the schema: a quoted part, or all of it, as older builds joined it.
fn first_or_whole(text: &str) -> Cow<'_, str> {
    match first(text) {
        (name, "") => name,
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_joined_is_split_again() {
        for (schema, name, joined) in [
            ("pg_catalog", "int4", "int4"),
            ("public", "mood", "public.mood"),
            ("od d.S", "mo.od", "\"od d.S\".\"mo.od\""),
            ("a", "b\".c", "a.\"b\"\".c\""),
            ("\"", "x", "\"\"\"\".x"),
            ("pg_catalog", "my.own", "\"my.own\""),
        ] {
            assert_eq!(join(schema, name), joined);
            let (found, rest) = split(joined);
            assert_eq!((found.as_deref().unwrap_or("pg_catalog"), &*rest), (schema, name));
        }
    }

    #[test]
    fn names_of_older_builds_are_cut_at_their_first_dot() {
        assert_eq!(split("public.mo.od"), (Some("public".into()), "mo.od".into()));
        assert_eq!(split("\"half"), (None, "\"half".into()));
    }
}
