//! `[registry]`: where schemas are registered, and how to get in.
//!
//! The scheme says whether there is TLS; with it the certificate is verified, there is no other mode. A password in the address
//! would end in logs and process lists, so it is refused there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::files;
use super::reader::{Section, Text};

const PORT: u16 = 8081;
const FORM: &str = "write url = \"https://HOST:8081\"";

/// A schema registry.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Tried in order; never empty.
    pub endpoints: Vec<Endpoint>,
    pub auth: Option<RegistryAuth>,
    /// `None`: the system's certificates.
    pub ca_file: Option<PathBuf>,
    /// For one request at one address.
    pub timeout: Duration,
}

/// One address of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub tls: bool,
    /// Without brackets if it is an IPv6 address.
    pub host: String,
    pub port: u16,
    /// What stands in front of `/subjects`: empty, or `/…` without a slash at its end.
    pub path: String,
}

#[derive(Debug, Clone)]
pub enum RegistryAuth {
    Basic { username: String, password: SecretString },
    Bearer(SecretString),
}

impl Endpoint {
    /// HOST:PORT as it stands in an address.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// `None` if there is no registry, or where a finding says why.
pub(super) fn registry(section: &mut Section<'_>, dir: &Path) -> Option<Registry> {
    let url = section.text("url");
    let auth = auth(section, dir);
    let ca_file = files::certificates(section, "ca_file", dir);
    // A registry answers in milliseconds. Meanwhile the stream stands still, so a dead address should be known soon.
    let timeout =
        section.duration("timeout", Duration::from_secs(5), Duration::from_millis(100)..=Duration::from_secs(60));
    let report = section.report();
    let Some(url) = url else {
        let keys = ["username", "password_file", "password_env", "token_file", "token_env", "ca_file", "timeout"];
        if let Some(at) = keys.into_iter().find_map(|key| section.place(key)) {
            report.add(&at, "url is missing in [registry]", FORM);
        }
        return None;
    };
    let mut endpoints = Vec::new();
    for part in url.value.split(',') {
        match endpoint(part.trim()) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(message) => report.add(&url.at, message, format!("{FORM}, with commas between several")),
        }
    }
    if let Some((key, _)) = ca_file.as_ref().filter(|_| endpoints.iter().all(|endpoint| !endpoint.tls)) {
        report.add(&key.at, "ca_file has no effect without TLS", FORM);
    }
    (!endpoints.is_empty()).then_some(Registry { endpoints, auth, ca_file: ca_file.map(|(_, path)| path), timeout })
}

fn auth(section: &mut Section<'_>, dir: &Path) -> Option<RegistryAuth> {
    let username = section.text("username");
    let password = files::password(section, "password_file", "password_env", dir);
    let token = files::password(section, "token_file", "token_env", dir);
    let report = section.report();
    for secret in [&password, &token].into_iter().flatten() {
        if secret.secret.expose_secret().chars().any(|c| !matches!(c, ' '..='~')) {
            let message = "a password or token for HTTP is of printable ASCII characters, this one is not";
            report.add(&secret.key.at, message, "give the registry's user another password");
            return None;
        }
    }
    match (username, password, token) {
        (None, None, None) => None,
        (None, None, Some(token)) => Some(RegistryAuth::Bearer(token.secret)),
        (Some(username), Some(password), None) if is_username(&username) => {
            Some(RegistryAuth::Basic { username: username.value, password: password.secret })
        }
        (Some(username), Some(_), None) => {
            let message = "username takes printable ASCII characters without a colon, as HTTP does";
            report.add(&username.at, message, "write username = \"…\"");
            None
        }
        (Some(username), None, None) => {
            let place = ["password_file", "password_env"].into_iter().find_map(|key| section.place(key));
            // A password that could not be read has its own finding.
            if place.is_none() {
                let message = "the password is missing beside username";
                report.add(&username.at, message, "write password_file = \"…\" or password_env = \"NAME\"");
            }
            None
        }
        (None, Some(password), _) => {
            report.add(&password.key.at, "username is missing beside the password", "write username = \"…\"");
            None
        }
        (Some(_), _, Some(token)) => {
            let message = "the registry gets a password or a token, not both";
            report.add(&token.key.at, message, "delete the one or the other");
            None
        }
    }
}

fn is_username(username: &Text) -> bool {
    !username.value.is_empty() && username.value.chars().all(|c| matches!(c, ' '..='~') && c != ':')
}

/// The error is a message that does not quote the address: it may hold a password.
fn endpoint(url: &str) -> Result<Endpoint, String> {
    let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return Err("the address of a schema registry begins with https:// or http://".into()),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    if authority.contains('@') {
        return Err("user and password do not belong into the registry's address: username and password_file do".into());
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._~%/:+@".contains(c);
    if !path.chars().all(legal) || path.contains("//") || path.contains("/../") {
        return Err("the path of the registry's address takes letters, digits, '-', '.', '_', '~', '%' and '/'".into());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port > 0);
            (host, port.ok_or("the port of the registry's address is not a number from 1 to 65535")?)
        }
        _ => (authority, PORT),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    if !valid {
        return Err("the registry's address has no host".into());
    }
    let path = path.trim_end_matches('/').to_owned();
    Ok(Endpoint { tls, host: inner.unwrap_or(host).to_owned(), port, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_printed_again() {
        for (url, printed) in [
            ("http://r", "http://r:8081"),
            ("https://r.example:443/", "https://r.example:443"),
            ("http://127.0.0.1:8081/apis/ccompat/v7", "http://127.0.0.1:8081/apis/ccompat/v7"),
            ("https://[::1]:1/x/", "https://[::1]:1/x"),
        ] {
            assert_eq!(endpoint(url).unwrap().to_string(), printed);
        }
    }

    #[test]
    fn addresses_that_are_none_are_refused_without_being_quoted() {
        for url in [
            "",
            "registry:8081",
            "ftp://r",
            "file:///etc/passwd",
            "http://",
            "http:///x",
            "http://u:s3cret@r",
            "http://r:0",
            "http://r:99999",
            "http://r/a b",
            "http://r/a?b=c",
            "http://r/../x/",
            "http://[::1",
            "http://[x]",
            "http://r\r\nX: y",
        ] {
            let message = endpoint(url).unwrap_err();
            assert!(!message.contains("s3cret"), "{url}: {message}");
        }
    }
}
