//! What a configuration names outside of itself: passwords and certificates in files, passwords in the environment.
//!
//! A password has one way in. Two would mean that changing one of them may change nothing, which is found out at the next
//! rotation. A file that every user of the machine may read is refused as ssh refuses such a key.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::findings::Report;
use super::reader::{Section, Text, is_variable};

/// A password or certificate is much smaller; whatever is larger is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bits of a file's mode that let users in who are neither its owner nor in its group.
const MODE_OTHERS: u32 = 0o007;

/// A password that was found.
pub(super) struct Password {
    pub secret: SecretString,
    /// The key that gave it.
    pub key: Text,
}

/// Reads `file_key` or `env_key`, keys of the section.
pub(super) fn password(
    section: &mut Section<'_>,
    file_key: &'static str,
    env_key: &'static str,
    dir: &Path,
) -> Option<Password> {
    let (file, variable) = (section.text(file_key), section.text(env_key));
    if let (Some(file), Some(_)) = (&file, &variable) {
        let message = format!("the password is given twice, by {file_key} and {env_key}");
        section.report().add(&file.at, message, "delete one of them");
        return None;
    }
    if let Some(variable) = variable {
        return from_environment(section, env_key, variable);
    }
    let key = file?;
    let path = dir.join(&key.value);
    match read_password(&path) {
        Ok(secret) => Some(Password { secret, key }),
        Err((message, hint)) => {
            section.report().add(&key.at, format!("{file_key}: {message}"), hint);
            None
        }
    }
}

fn from_environment(section: &Section<'_>, env_key: &str, key: Text) -> Option<Password> {
    if !is_variable(&key.value) {
        let message = format!("{env_key} is not the name of an environment variable");
        section.report().add(&key.at, message, format!("write {env_key} = \"NAME\", without ${{}}"));
        return None;
    }
    match section.env()(&key.value) {
        Some(password) if !password.is_empty() => Some(Password { secret: password.into(), key }),
        found => {
            let state = if found.is_some() { "empty" } else { "not set" };
            let message = format!("{env_key}: environment variable {} is {state}", key.value);
            section.report().add(&key.at, message, format!("export {}=…", key.value));
            None
        }
    }
}

fn read_password(path: &Path) -> Result<SecretString, (String, String)> {
    let shown = path.display();
    let metadata = metadata(path)?;
    let mode = metadata.permissions().mode();
    if mode & MODE_OTHERS != 0 {
        return Err((
            format!("{shown} is open to every user of this machine (mode {:03o})", mode & 0o777),
            format!("chmod 600 {shown} (Kubernetes: defaultMode: 0400 in the secret's volume)"),
        ));
    }
    let text = read(path)?;
    // Editors and `echo` end a file with a line break; a password that ends with one can't be told from it.
    let password = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if password.is_empty() || password.contains(['\0', '\n']) {
        let state = if password.is_empty() { "is empty" } else { "holds more than one line" };
        return Err((format!("{shown} {state}"), format!("printf %s 'PASSWORD' > {shown}")));
    }
    Ok(password.into())
}

/// A path beside the configuration; relative ones are relative to its folder.
pub(super) fn certificates(section: &mut Section<'_>, key: &'static str, dir: &Path) -> Option<(Text, PathBuf)> {
    let text = section.text(key)?;
    let path = dir.join(&text.value);
    check_certificates(section.report(), key, &text, &path).then_some((text, path))
}

/// Whether the file holds certificates in PEM.
pub(super) fn check_certificates(report: &Report, key: &str, text: &Text, path: &Path) -> bool {
    let outcome = read(path).and_then(|pem| match pem.contains("-----BEGIN CERTIFICATE-----") {
        true => Ok(()),
        false => {
            let shown = path.display();
            let hint = format!("openssl x509 -inform der -in {shown} -out {shown}.pem");
            Err((format!("{shown} holds no certificate in PEM"), hint))
        }
    });
    if let Err((message, hint)) = &outcome {
        report.add(&text.at, format!("{key}: {message}"), hint);
    }
    outcome.is_ok()
}

/// Reads a small text file; the error is message and hint.
pub(super) fn read(path: &Path) -> Result<String, (String, String)> {
    let shown = path.display();
    let size = metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        return Err((format!("{shown} has {size} bytes, a file of another kind"), format!("file {shown}")));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn metadata(path: &Path) -> Result<std::fs::Metadata, (String, String)> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.is_file() {
        return Ok(metadata);
    }
    let shown = path.display();
    Err((format!("{shown} is not a file"), format!("ls -ld {shown}")))
}

fn unreadable(path: &Path, error: &std::io::Error) -> (String, String) {
    let shown = path.display();
    match error.kind() {
        std::io::ErrorKind::InvalidData => (format!("{shown} is not UTF-8 text"), format!("file {shown}")),
        std::io::ErrorKind::NotFound => (
            format!("{shown} does not exist"),
            "write another path; relative ones begin at the folder of lockstep.toml".into(),
        ),
        _ => (format!("{shown} can't be read: {error}"), format!("ls -l {shown}")),
    }
}
