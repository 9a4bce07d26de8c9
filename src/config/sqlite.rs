//! `sqlite:FILE`, the address of a SQLite sink: a path behind the scheme, as it is, relative to the configuration's folder.
//!
//! Not a URL of SQLite's own (`file:…?mode=…`): what those parameters say (shared caches, no locks, read-only) is what a sink
//! can't bear. A database in memory would be gone with the process, and its progress with it.

use std::path::{Path, PathBuf};

use super::findings::Report;
use super::reader::Text;

const SCHEME: &str = "sqlite:";
const FORM: &str = "write url = \"sqlite:/PATH/TO/FILE.db\"";

/// The file that `url` names; `None` where it is no address of a file. `Some(None)`: a finding says what is wrong.
pub(super) fn file(report: &Report, url: &Text, dir: &Path) -> Option<Option<PathBuf>> {
    let path = url.value.strip_prefix(SCHEME)?;
    // As other programs write it: sqlite:///absolute.
    let path = path.strip_prefix("//").unwrap_or(path);
    let fault = match path {
        "" => "the URL names no file",
        path if path.starts_with(":memory:") => {
            "a database in memory is gone with the process, and its progress with it"
        }
        path if path.contains(['?', '#']) => "the path of a SQLite file has no ? and no #: a sink takes no parameters",
        path if path.ends_with('/') => "the URL names a folder, not a file",
        path => return Some(Some(dir.join(path))),
    };
    report.add(&url.at, fault, FORM);
    Some(None)
}

/// As people write it.
pub(super) fn url(file: &Path) -> String {
    format!("{SCHEME}{}", file.display())
}
