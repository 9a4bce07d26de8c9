//! The parts of an array's and of a composite's text, as Postgres quotes them.
//!
//! Takes any bytes: what is no array's text is `None`, never a guess.

use std::borrow::Cow;

/// A part's own text; `None` for NULL.
pub type Part<'a> = Option<Cow<'a, [u8]>>;

/// An array's dimensions and elements, without the bounds that may stand before them: `[0:2]={…}`.
pub fn array_body(text: &[u8]) -> Option<&[u8]> {
    let body = match text.first() {
        Some(b'[') => &text[text.iter().position(|byte| *byte == b'=')? + 1..],
        _ => text,
    };
    (body.first() == Some(&b'{')).then_some(body)
}

/// The element at `at` and where it ends.
pub fn array_element(body: &[u8], at: usize, delimiter: u8) -> Option<(Part<'_>, usize)> {
    if *body.get(at)? != b'"' {
        let len = body[at..].iter().position(|b| *b == delimiter || *b == b'}')?;
        let text = &body[at..at + len];
        return Some(((text != b"NULL").then_some(Cow::Borrowed(text)), at + len));
    }
    let mut value = Vec::new();
    let mut place = at + 1;
    loop {
        match *body.get(place)? {
            b'"' => return Some((Some(Cow::Owned(value)), place + 1)),
            b'\\' => {
                value.push(*body.get(place + 1)?);
                place += 2;
            }
            byte => {
                value.push(byte);
                place += 1;
            }
        }
    }
}

/// The first answer about an element of an array of however many dimensions; NULL is not asked about. What is no array's text has
/// none.
pub fn find_element<T>(text: &[u8], delimiter: u8, mut answer: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
    let body = array_body(text)?;
    let mut at = 0;
    while let Some(byte) = body.get(at) {
        // Braces inside quotes belong to elements.
        if matches!(byte, b'{' | b'}') || *byte == delimiter {
            at += 1;
            continue;
        }
        let (element, end) = array_element(body, at, delimiter)?;
        if let Some(found) = element.and_then(|element| answer(&element)) {
            return Some(found);
        }
        at = end;
    }
    None
}

/// The attributes' texts of a composite's: `(1,"a ""b""",)`. One attribute that is NULL and none print alike.
pub fn attributes(text: &[u8]) -> Option<Vec<Part<'_>>> {
    let body = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let (mut parts, mut value, mut is_null, mut quoted, mut at) = (Vec::new(), Vec::new(), true, false, 0);
    while let Some(byte) = body.get(at) {
        match byte {
            b'"' if quoted && body.get(at + 1) == Some(&b'"') => {
                value.push(b'"');
                at += 1;
            }
            b'"' => (quoted, is_null) = (!quoted, false),
            b'\\' => {
                value.push(*body.get(at + 1)?);
                at += 1;
                is_null = false;
            }
            b',' if !quoted => {
                let text = std::mem::take(&mut value);
                parts.push((!is_null).then_some(Cow::Owned(text)));
                is_null = true;
            }
            byte => {
                value.push(*byte);
                is_null = false;
            }
        }
        at += 1;
    }
    parts.push((!is_null).then_some(Cow::Owned(value)));
    (!quoted).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_whatever_is_around_them() {
        let known = ["a", "b, c", "x}\"", ""];
        let other =
            |text: &[u8]| Some(String::from_utf8(text.to_vec()).unwrap()).filter(|text| !known.contains(&&**text));
        for (text, found) in [
            ("{}", None),
            ("{a,NULL}", None),
            (r#"[0:1]={"b, c","x}\""}"#, None),
            (r#"{{a,""},{NULL,a}}"#, None),
            (r#"{{a,"NULL"},{NULL,a}}"#, Some("NULL")),
            ("{a,d}", Some("d")),
            ("d", None),
            ("{\"d", None),
            ("[0:1", None),
        ] {
            assert_eq!(find_element(text.as_bytes(), b',', other).as_deref(), found, "{text}");
        }
        let parts = |text: &str| {
            let part = |part: Part<'_>| part.map(|text| String::from_utf8(text.into_owned()).unwrap());
            attributes(text.as_bytes()).map(|parts| parts.into_iter().map(part).collect::<Vec<_>>())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("()"), Some(vec![None]));
        assert_eq!(parts(r#"(1,"a ""b"", (\\)",,"")"#), Some(vec![some("1"), some(r#"a "b", (\)"#), None, some("")]));
        for text in ["", "(", "1,2", "(\"1)", r"(\)"] {
            assert_eq!(parts(text), None, "{text}");
        }
        assert_eq!(find_element(b"{a;b}", b';', other).as_deref(), Some("b"));
    }
}
