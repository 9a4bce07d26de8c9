//! The address of a Postgres as a URL, and the TLS rule that goes with it.
//!
//! The form is libpq's `postgres://user:password@host:port/database?sslmode=…`, with its percent-encoding and its unix sockets
//! (`@%2Fvar%2Frun%2Fpostgresql/` or `?host=/var/run/postgresql`), less what would guess: user and database must be named.
//! libpq fills them in from the operating system's user, which for a service is an accident.
//!
//! TLS is verified or off, nothing between. `prefer`, `allow` and `require` speak TLS with whoever answers, so they keep out
//! nobody who can answer; `verify-ca` accepts any certificate of the same authority. They are refused, with what to write. Off
//! is the default only where traffic can't leave the machine.
//!
//! Invariant: no fault quotes the URL, because what does not parse may be a piece of a password. Only words that can't be are
//! named: those behind the `?`, once it is sure that an `@` stands before and none follows.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::SecretString;

use super::reader::nearest;
use super::{Database, Host, Tls};

const PORT: u16 = 5432;
/// Long enough for a fail-over's DNS change to show, short enough that a wrong host is noticed while one still watches.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds. libpq's 0 (wait for ever) is refused: a silent host would then look like a slow one.
const CONNECT_TIMEOUT_RANGE: RangeInclusive<u64> = 1..=300;

const PARAMETERS: [&str; 5] = ["connect_timeout", "host", "port", "sslmode", "sslrootcert"];
const FORM: &str = "write postgres://USER@HOST:5432/DATABASE";
const VERIFY: &str =
    "write sslmode=verify-full; for a certificate authority of your own add ca_file = \"ca.pem\" beside url";

/// What is wrong with a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub message: String,
    pub hint: String,
}

fn fault(message: impl Into<String>, hint: impl Into<String>) -> Fault {
    Fault { message: message.into(), hint: hint.into() }
}

/// A URL's parts, percent-decoded.
#[derive(Debug, Clone)]
pub(super) struct DatabaseUrl {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub password: Option<SecretString>,
    pub dbname: String,
    pub sslmode: Option<SslMode>,
    pub root_cert: Option<RootCert>,
    pub connect_timeout: Duration,
}

/// The modes of libpq that are one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    VerifyFull,
}

/// `sslrootcert`, or the key `ca_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RootCert {
    /// libpq's word `system`.
    System,
    File(PathBuf),
}

/// Of MariaDB and MySQL.
const MARIADB_SCHEMES: [&str; 2] = ["mysql://", "mariadb://"];
const MARIADB_PORT: u16 = 3306;
const MARIADB_FORM: &str = "write mysql://USER@HOST:3306/DATABASE";

/// Whether a sink's URL is that of a MariaDB.
pub(super) fn is_mariadb(url: &str) -> bool {
    MARIADB_SCHEMES.iter().any(|scheme| url.starts_with(scheme))
}

/// The same form as a Postgres has, with another scheme and port.
pub(super) fn parse_mariadb(url: &str) -> Result<DatabaseUrl, Vec<Fault>> {
    let rest = MARIADB_SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or_default();
    parse_parts(rest, MARIADB_PORT).map_err(|faults| {
        let own = |fault: Fault| Fault { hint: fault.hint.replace(FORM, MARIADB_FORM), ..fault };
        faults.into_iter().map(own).collect()
    })
}

/// As people write it, without a password.
pub(super) fn of_mariadb(database: &Database) -> String {
    database.to_string().replacen("postgres://", MARIADB_SCHEMES[0], 1)
}

/// Takes a URL apart. Every fault is found that does not depend on another.
pub(super) fn parse(url: &str) -> Result<DatabaseUrl, Vec<Fault>> {
    parse_parts(without_scheme(url).map_err(|fault| vec![fault])?, PORT)
}

fn parse_parts(rest: &str, default_port: u16) -> Result<DatabaseUrl, Vec<Fault>> {
    let parts = split(rest).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    let mut note = |fault: Fault| {
        faults.push(fault);
    };
    let parameters = parameters(parts.query).map_err(|found| found.into_iter().for_each(&mut note)).unwrap_or_default();
    let user = user(parts.user).map_err(&mut note);
    let password = parts.password.map(password).transpose().map_err(&mut note);
    let dbname = database_name(parts.database).map_err(&mut note);
    let host = host(parts.host, parameters.get("host")).map_err(&mut note);
    let port = port(parts.port, parameters.get("port"), default_port).map_err(&mut note);
    let sslmode = parameters.get("sslmode").map(|mode| ssl_mode(mode)).transpose().map_err(&mut note);
    let timeout = connect_timeout(parameters.get("connect_timeout")).map_err(&mut note);
    let root_cert = parameters.get("sslrootcert").map(|path| match path.as_str() {
        "system" => RootCert::System,
        path => RootCert::File(PathBuf::from(path)),
    });
    match (user, password, dbname, host, port, sslmode, timeout) {
        (Ok(user), Ok(password), Ok(dbname), Ok(host), Ok(port), Ok(sslmode), Ok(connect_timeout))
            if faults.is_empty() =>
        {
            Ok(DatabaseUrl { host, port, user, password, dbname, sslmode, root_cert, connect_timeout })
        }
        _ => Err(faults),
    }
}

/// The parts of a URL as written.
struct Parts<'u> {
    user: &'u str,
    password: Option<&'u str>,
    host: &'u str,
    port: Option<&'u str>,
    database: &'u str,
    query: &'u str,
}

fn without_scheme(url: &str) -> Result<&str, Fault> {
    url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or_else(|| {
        let message = if url.contains("://") {
            "the URL of a database begins with postgres://"
        } else {
            "url must be a URL that begins with postgres://"
        };
        fault(message, FORM)
    })
}

fn split(rest: &str) -> Result<Parts<'_>, Fault> {
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // Whoever reads on would take a piece of the password for a host.
    if tail.contains('@') {
        return Err(fault(
            "an @ stands after the host: the password, or another part, holds a character that must be percent-encoded",
            "in url write @ as %40, / as %2F, ? as %3F, # as %23; or put the password beside url, as it is: password_env = \"NAME\"",
        ));
    }
    if tail.contains('#') {
        return Err(fault("a # stands in the URL", "write it as %23"));
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let Some((credentials, address)) = authority.rsplit_once('@') else {
        return Err(fault("the URL names no user: no @ stands before its host", FORM));
    };
    let (user, password) = match credentials.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (credentials, None),
    };
    let colon = match address.rfind(']') {
        Some(bracket) => address[bracket..].find(':').map(|i| bracket + i),
        None => address.find(':'),
    };
    let (host, port) = colon.map_or((address, None), |i| (&address[..i], Some(&address[i + 1..])));
    Ok(Parts { user, password, host, port, database: path.strip_prefix('/').unwrap_or(path), query })
}

/// Percent-decodes. `%` before anything but two hex digits is refused: it is a password pasted as it is.
fn decode(what: &str, raw: &str) -> Result<String, Fault> {
    for (i, _) in raw.match_indices('%') {
        let hex = raw.as_bytes().get(i + 1..i + 3);
        if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(fault(format!("a % in the {what} is not the start of %XX"), "write % itself as %25"));
        }
    }
    let hint = "percent-encode its UTF-8 form, without control characters";
    match percent_decode_str(raw).decode_utf8() {
        Ok(text) if text.contains(char::is_control) => {
            Err(fault(format!("the {what} holds a control character"), hint))
        }
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(fault(format!("the {what} is not UTF-8 once decoded"), hint)),
    }
}

fn user(raw: &str) -> Result<String, Fault> {
    match decode("user", raw)? {
        user if user.is_empty() => Err(fault("the URL names no user", FORM)),
        user => Ok(user),
    }
}

fn password(raw: &str) -> Result<SecretString, Fault> {
    match decode("password", raw)? {
        password if password.is_empty() => Err(fault(
            "the password in the URL is empty",
            "delete the colon, or write password_env = \"NAME\" beside url",
        )),
        password => Ok(password.into()),
    }
}

fn database_name(raw: &str) -> Result<String, Fault> {
    if raw.contains('/') {
        return Err(fault("the URL's path holds more than a database name", "one name; a / inside it is written %2F"));
    }
    match decode("database name", raw)? {
        name if name.is_empty() => Err(fault("the URL names no database", FORM)),
        name => Ok(name),
    }
}

fn host(raw: &str, parameter: Option<&String>) -> Result<Host, Fault> {
    let host = match (raw.is_empty(), parameter) {
        (false, Some(_)) => {
            return Err(fault("the URL names a host twice, before the path and as ?host=", "delete one of them"));
        }
        (true, Some(host)) => host.clone(),
        (true, None) => return Err(fault("the URL names no host", FORM)),
        (false, None) if raw.starts_with('[') => return ipv6(raw),
        (false, None) => decode("host", raw)?,
    };
    if host.starts_with('/') {
        return Ok(Host::Unix(PathBuf::from(host)));
    }
    if host.contains(',') {
        return Err(several_hosts());
    }
    if host.contains(':') {
        return match host.parse::<Ipv6Addr>() {
            Ok(address) => Ok(Host::Tcp(address.to_string())),
            Err(_) => Err(fault("the host is not a host name", FORM)),
        };
    }
    let legal = |c: char| c.is_alphanumeric() || "-._".contains(c);
    if host.is_empty() || !host.chars().all(legal) {
        return Err(fault("the host is not a host name", "a folder of unix sockets is written @%2Frun%2Fpostgresql/"));
    }
    Ok(Host::Tcp(host))
}

/// Which of them is the primary would be a guess, and behind it another history than the ledger's.
fn several_hosts() -> Fault {
    fault(
        "the URL names several hosts",
        "name one that always leads to the primary: a DNS name, a virtual address or a proxy that your fail-over moves",
    )
}

fn ipv6(raw: &str) -> Result<Host, Fault> {
    let address = raw.strip_prefix('[').and_then(|raw| raw.strip_suffix(']'));
    match address.and_then(|address| address.parse::<Ipv6Addr>().ok()) {
        Some(address) => Ok(Host::Tcp(address.to_string())),
        None => Err(fault("what stands in brackets is not an IPv6 address", "write it like [::1]:5432")),
    }
}

fn port(raw: Option<&str>, parameter: Option<&String>, default: u16) -> Result<u16, Fault> {
    let port = match (raw, parameter) {
        (Some(_), Some(_)) => {
            return Err(fault("the URL names a port twice, after the host and as ?port=", "delete one of them"));
        }
        (Some(port), None) => port,
        (None, Some(port)) => port.as_str(),
        (None, None) => return Ok(default),
    };
    if port.contains(',') {
        return Err(several_hosts());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(fault("the port is not a number from 1 to 65535", "write :5432 or leave it out")),
    }
}

fn parameters(query: &str) -> Result<BTreeMap<&str, String>, Vec<Fault>> {
    let (mut parameters, mut faults) = (BTreeMap::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, raw) = pair.split_once('=').unwrap_or((pair, ""));
        match decode(&format!("value behind {}", shown_name(name)), raw) {
            _ if !PARAMETERS.contains(&name) => faults.push(unknown_parameter(name)),
            Ok(value) if value.is_empty() => {
                faults.push(fault(format!("{name} in the URL has no value"), format!("write {name}=… or delete it")));
            }
            Ok(value) => {
                if parameters.insert(name, value).is_some() {
                    faults.push(fault(format!("{name} stands twice in the URL"), "delete one of them"));
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(parameters) } else { Err(faults) }
}

/// A parameter's name as far as it looks like one.
fn shown_name(name: &str) -> &str {
    let looks = name.len() <= 32 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if looks { name } else { "?" }
}

fn unknown_parameter(name: &str) -> Fault {
    let message = format!("the URL has a parameter that is not known: {}", shown_name(name));
    if name == "password" {
        return fault(message, "write password_file = \"…\" or password_env = \"NAME\" beside url");
    }
    match nearest(name, PARAMETERS) {
        Some(near) => fault(message, format!("did you mean {near}=…?")),
        None => fault(message, format!("delete it; known are: {}", PARAMETERS.join(", "))),
    }
}

fn ssl_mode(mode: &str) -> Result<SslMode, Fault> {
    match mode {
        "disable" => Ok(SslMode::Disable),
        "verify-full" => Ok(SslMode::VerifyFull),
        "allow" | "prefer" | "require" => Err(fault(
            format!("sslmode={mode} does not verify who answers, so anyone on the way could: TLS is verified or off"),
            VERIFY,
        )),
        "verify-ca" => {
            Err(fault("sslmode=verify-ca does not verify the server's name: TLS is verified or off", VERIFY))
        }
        _ => Err(fault("sslmode is none of verify-full, disable", VERIFY)),
    }
}

fn connect_timeout(seconds: Option<&String>) -> Result<Duration, Fault> {
    let Some(seconds) = seconds else { return Ok(CONNECT_TIMEOUT) };
    match seconds.parse::<u64>() {
        Ok(seconds) if CONNECT_TIMEOUT_RANGE.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => {
            let (least, most) = (CONNECT_TIMEOUT_RANGE.start(), CONNECT_TIMEOUT_RANGE.end());
            let message = format!("connect_timeout takes whole seconds from {least} to {most}");
            Err(fault(message, format!("write connect_timeout={}", CONNECT_TIMEOUT.as_secs())))
        }
    }
}

/// The TLS rule. A certificate authority asks for verification, also where TLS would be off by default.
pub(super) fn tls(host: &Host, mode: Option<SslMode>, root_cert: Option<RootCert>) -> Result<Tls, Fault> {
    let ca_file = match &root_cert {
        Some(RootCert::File(path)) => Some(path.clone()),
        Some(RootCert::System) | None => None,
    };
    match (host, mode, root_cert.is_some()) {
        (_, Some(SslMode::Disable), true) => Err(fault(
            "sslmode=disable turns TLS off, but a certificate authority is named",
            "delete sslmode=disable to verify, or the authority to stay without TLS",
        )),
        (_, Some(SslMode::Disable), false) => Ok(Tls::Off),
        (Host::Unix(_), Some(SslMode::VerifyFull), _) | (Host::Unix(_), None, true) => Err(fault(
            "Postgres does not speak TLS on unix sockets",
            "delete sslmode, sslrootcert and ca_file, or name a TCP host",
        )),
        (Host::Unix(_), None, false) => Ok(Tls::Off),
        (Host::Tcp(name), None, false) if is_loopback(name) => Ok(Tls::Off),
        (Host::Tcp(_), Some(SslMode::VerifyFull) | None, _) => Ok(Tls::Verified { ca_file }),
    }
}

/// Names that never lead off this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical().is_loopback());
    address.unwrap_or_else(|_| host.eq_ignore_ascii_case("localhost"))
}

impl Database {
    /// Reads a URL outside of any file, as tests and tools have them; `sslrootcert` is taken as it stands.
    pub fn from_url(url: &str) -> Result<Database, UrlRefused> {
        let parsed = parse(url).map_err(UrlRefused)?;
        let tls =
            tls(&parsed.host, parsed.sslmode, parsed.root_cert.clone()).map_err(|fault| UrlRefused(vec![fault]))?;
        Ok(parsed.with(tls, None))
    }
}

impl DatabaseUrl {
    pub fn with(self, tls: Tls, password: Option<SecretString>) -> Database {
        let DatabaseUrl { host, port, user, dbname, connect_timeout, .. } = self;
        Database { host, port, user, password: password.or(self.password), dbname, tls, connect_timeout }
    }
}

/// Why a URL is none that can be used. Does not quote it.
#[derive(Debug, Clone)]
pub struct UrlRefused(Vec<Fault>);

impl std::error::Error for UrlRefused {}

impl fmt::Display for UrlRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{}\n  help: {}", fault.message, fault.hint)?;
        }
        Ok(())
    }
}

/// What a URL's parts carry as they are (RFC 3986's unreserved characters).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The URL without its password: for status, logs and error texts.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let host = match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]"),
            Host::Tcp(host) => host.clone(),
            Host::Unix(folder) => encode(&folder.display().to_string()),
        };
        write!(f, "postgres://{}@{host}:{}/{}", encode(&self.user), self.port, encode(&self.dbname))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    fn hints(url: &str) -> String {
        let faults = parse(url).map(|_| ()).expect_err(url);
        faults.iter().map(|fault| format!("{} ({})\n", fault.message, fault.hint)).collect()
    }

    #[test]
    fn the_forms_that_libpq_has() {
        let url = parse("postgresql://u%40x:p%3Aw%2f@db.internal:6432/my%20db?connect_timeout=3").unwrap();
        assert_eq!((url.user.as_str(), url.dbname.as_str(), url.port), ("u@x", "my db", 6432));
        assert_eq!(url.password.unwrap().expose_secret(), "p:w/");
        assert_eq!(url.host, Host::Tcp("db.internal".into()));
        assert_eq!(url.connect_timeout, Duration::from_secs(3));

        let host = |url| parse(url).unwrap().host;
        assert_eq!(host("postgres://u@[::1]:5433/d"), Host::Tcp("::1".into()));
        assert_eq!(host("postgres://u@[0:0::1]/d"), Host::Tcp("::1".into()));
        assert_eq!(host("postgres://u@%2Fvar%2Frun%2Fpostgresql/d"), Host::Unix("/var/run/postgresql".into()));
        assert_eq!(host("postgres://u@/d?host=/run/pg"), Host::Unix("/run/pg".into()));
        assert_eq!(host("postgres://u@/d?host=%2Frun%2Fpg&port=5433"), Host::Unix("/run/pg".into()));
        assert_eq!(parse("postgres://u@:5433/d?host=/run/pg").unwrap().port, 5433);
        assert_eq!(parse("postgres://u@h/d").unwrap().port, 5432);
        assert_eq!(parse("postgres://a:b@c@h/d").unwrap().password.unwrap().expose_secret(), "b@c");
    }

    #[test]
    fn what_is_refused_and_what_to_write_instead() {
        let urls = [
            "host=h user=u",
            "mysql://u@h/d",
            "postgres://",
            "postgres://h/d",
            "postgres://u@h",
            "postgres://u@/d",
            "postgres://u:@h/d",
            "postgres://u@a:1,b:2/d",
            "postgres://u@a,b/d",
            "postgres://u@h:0/d",
            "postgres://u@h:5432x/d",
            "postgres://u:s3cret",
            "postgres://u:s3/cret@h/d",
            "postgres://u:s3#cret@h/d",
            "postgres://u:100%@h/d",
            "postgres://u:%ff@h/d",
            "postgres://u@[::g]/d",
            "postgres://u@h h/d",
            "postgres://u@h/d/e",
            "postgres://u@h/d#e",
            "postgres://u@h/d?sslmod=disable&options=-c&sslmode=",
            "postgres://u@h/d?sslmode=require",
            "postgres://u@h/d?sslmode=verify-ca",
            "postgres://u@h/d?sslmode=on",
            "postgres://u@h/d?sslmode=disable&sslmode=disable",
            "postgres://u@h/d?connect_timeout=0",
            "postgres://u@h/d?host=/run/pg",
            "postgres://u@h/d?password=s3cret",
        ];
        let shown: String = urls.map(|url| format!("{url}\n{}\n", hints(url))).concat();
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn a_mariadb_has_a_scheme_and_a_port_of_its_own() {
        let database = |url: &str| parse_mariadb(url).unwrap().with(Tls::Off, None);
        assert_eq!(of_mariadb(&database("mariadb://u:p@h/d")), "mysql://u@h:3306/d");
        assert_eq!(database("mysql://u@%2Frun%2Fmysqld.sock/d").host, Host::Unix("/run/mysqld.sock".into()));
        assert!(is_mariadb("mysql://u@h/d") && !is_mariadb("postgres://u@h/d"));
        let faults = parse_mariadb("mysql://h/d").map(|_| ()).unwrap_err();
        assert_eq!(faults[0].hint, MARIADB_FORM);
    }

    #[test]
    fn tls_is_verified_or_off() {
        let ca = Some("/c.pem");
        let mut table = String::new();
        for url in [
            "postgres://u@db.internal/d",
            "postgres://u@10.0.0.1/d",
            "postgres://u@localhost.example.org/d",
            "postgres://u@localhost/d",
            "postgres://u@127.8.9.1/d",
            "postgres://u@[::1]/d",
            "postgres://u@[::ffff:127.0.0.1]/d",
            "postgres://u@/d?host=/run/pg",
        ] {
            for mode in ["", "sslmode=verify-full", "sslmode=disable"] {
                for ca in [None, ca, Some("system")] {
                    let cert = ca.map(|ca| format!("sslrootcert={ca}"));
                    let query: Vec<&str> =
                        [Some(mode), cert.as_deref()].into_iter().flatten().filter(|s| !s.is_empty()).collect();
                    let separator = if url.contains('?') { "&" } else { "?" };
                    let url = format!("{url}{separator}{}", query.join("&"));
                    let url = url.trim_end_matches(['?', '&']);
                    let answer = match Database::from_url(url) {
                        Ok(database) => format!("{:?}", database.tls),
                        Err(refused) => refused.0[0].message.clone(),
                    };
                    table.push_str(&format!("{url:<75} {answer}\n"));
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn neither_display_nor_debug_shows_a_password() {
        let database = Database::from_url("postgres://u%40:hunter2@[::1]:5433/a%2Fb").unwrap();
        assert_eq!(database.to_string(), "postgres://u%40@[::1]:5433/a%2Fb");
        assert!(!format!("{database:?}").contains("hunter2"));
        let parsed = parse("postgres://u:hunter2@h/d").unwrap();
        assert!(!format!("{parsed:?}").contains("hunter2"));
        let socket = Database::from_url("postgres://u@/d?host=/run/pg").unwrap();
        assert_eq!(socket.to_string(), "postgres://u@%2Frun%2Fpg:5432/d");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(url in "\\PC{0,40}|(postgres://)[a-z0-9@:/?#%&=\\[\\],.]{0,40}") {
            let _ = parse(&url);
        }

        #[test]
        fn what_is_shown_reads_back(user in "\\PC{1,12}", dbname in "\\PC{1,12}", port in 1u16.., host in "[a-z]{1,8}|/[ -~]{0,12}") {
            let host = if host.starts_with('/') { Host::Unix(host.into()) } else { Host::Tcp(host) };
            let database = Database {
                host, port, user, dbname,
                password: None, tls: Tls::Off, connect_timeout: CONNECT_TIMEOUT,
            };
            let read = parse(&database.to_string()).unwrap();
            prop_assert_eq!((read.host, read.port, read.user, read.dbname), (database.host, port, database.user, database.dbname));
        }

        /// A password pasted without encoding either works or is refused, and no fault quotes a piece of it.
        #[test]
        fn no_fault_quotes_a_password(pieces in proptest::collection::vec("XQZJ|[@:/?#%&=,\\[\\]]", 1..8)) {
            let password = pieces.concat();
            if let Err(faults) = parse(&format!("postgres://u:{password}@h/d?sslmode=nonsense")) {
                let said = faults.iter().map(|fault| format!("{}{}", fault.message, fault.hint)).collect::<String>();
                prop_assert!(!said.contains("XQZJ"), "{said}");
            }
            if let Err(faults) = parse(&format!("postgres://u:{password}?")) {
                let said = format!("{faults:?}");
                prop_assert!(!said.contains("XQZJ"), "{}", said);
            }
        }
    }
}
