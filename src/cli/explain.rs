//! `lockstep explain`: docs/errors.md at hand, where the error is.

use std::fmt::Write;

use clap::Args;

use super::{Failure, columns};
use crate::error::Code;

/// The document itself, so that there is one text and not two.
const ERRORS: &str = include_str!("../../docs/errors.md");

/// Say what a halt's code means and what to do about it
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct ExplainArgs {
    /// A code, as in error[CODE] [default: list all of them]
    code: Option<String>,
}

pub fn run(args: &ExplainArgs) -> Result<u8, Failure> {
    let text = match &args.code {
        None => list(),
        Some(code) => {
            let code = code.trim().trim_start_matches("error[").trim_end_matches(']').to_uppercase();
            let unknown = || Failure::Usage(format!("there is no code {code:?}; `lockstep explain` lists them all"));
            let code = Code::ALL.iter().find(|known| known.as_str() == code).ok_or_else(unknown)?;
            section(code.as_str()).expect("a test compares the document with the codes")
        }
    };
    super::print(&text)?;
    Ok(0)
}

fn list() -> String {
    let row = |code: &Code| vec![code.as_str().to_owned(), code.meaning().to_owned()];
    let mut text = columns(&Code::ALL.iter().map(row).collect::<Vec<_>>());
    let _ = writeln!(text, "\n`lockstep explain CODE` says what to do.");
    text
}

/// Where the document's introduction comes to the remedies.
const REMEDIES: &str = "Remedies that the sections refer to:";

/// The document's section about a code, heading included, and the remedies if it refers to them.
fn section(code: &str) -> Option<String> {
    let heading = format!("## {code}");
    let mut lines = ERRORS.lines().skip_while(|line| *line != heading);
    let mut text = format!("{}\n", lines.next()?);
    for line in lines.take_while(|line| !line.starts_with("## ")) {
        text.push_str(line);
        text.push('\n');
    }
    if text.contains("(see Remedies)") {
        text.push_str(REMEDIES);
        text.extend(
            ERRORS
                .split_once(REMEDIES)?
                .1
                .lines()
                .take_while(|line| !line.starts_with("## "))
                .flat_map(|line| [line, "\n"]),
        );
    }
    Some(format!("{}\n", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_exactly_the_codes_in_their_order() {
        let listed: Vec<&str> = ERRORS.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(listed, codes, "docs/errors.md and error::Code differ");
    }

    #[test]
    fn a_section_that_refers_to_a_remedy_comes_with_it() {
        assert!(section("SLOT_LOST").unwrap().contains("- **Begin anew**"));
        assert!(!section("WAL_LEVEL").unwrap().contains("anew"));
        for code in Code::ALL {
            let section = section(code.as_str()).unwrap();
            assert_eq!(section.contains("(see Remedies)"), section.contains(REMEDIES), "{code}");
            assert!(
                section.contains(REMEDIES) || !section.contains(" anew"),
                "{code} names a remedy without saying where"
            );
        }
    }

    #[test]
    fn every_section_gives_the_meaning_and_says_what_to_do() {
        for code in Code::ALL {
            let section = section(code.as_str()).unwrap();
            assert!(section.lines().any(|line| line == code.meaning()), "{code}: the section lacks its meaning");
            let todo = section.split_once("What to do: ").map(|(_, todo)| todo);
            assert!(todo.is_some_and(|todo| todo.len() > 20), "{code}: the section does not say what to do");
        }
    }
}
