//! TLS as every connection to a Postgres uses it: certificate chain and name verified, with words for what goes wrong.
//!
//! The crypto provider is named, not taken from the process: several crates of one program can bring several, and rustls then
//! panics at run time. Deliberately not here: unverified TLS (it protects against nobody who can answer in the server's place)
//! and client certificates.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::der::Decode;

use crate::config::{Database, Host, Tls};
use crate::error::{Code, Error, Result};

/// The certificates of `ca_file`, or else the system's, for clients that make their own of them; each one is known to be usable.
pub fn certificates(ca_file: Option<&Path>) -> Result<Vec<Vec<u8>>> {
    if let Some(file) = ca_file {
        roots_of(file)?;
        let read = CertificateDer::pem_file_iter(file).into_iter().flatten();
        return Ok(read.filter_map(|certificate| Some(certificate.ok()?.to_vec())).collect());
    }
    system_roots()?;
    let usable = |certificate: &CertificateDer<'static>| RootCertStore::empty().add(certificate.clone()).is_ok();
    let found = rustls_native_certs::load_native_certs().certs;
    Ok(found.into_iter().filter(usable).map(|certificate| certificate.to_vec()).collect())
}

/// A client that trusts the certificates of `ca_file`, or else the system's.
pub fn tls_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let roots = match ca_file {
        Some(file) => roots_of(file)?,
        None => system_roots()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots_of(file: &Path) -> Result<RootCertStore> {
    let refuse = |what: String| {
        let message = format!("ca_file {} {what}", file.display());
        Error::halt(Code::TlsFailed, message, format!("openssl x509 -noout -subject -in {}", file.display()))
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| refuse(format!("can't be read: {e}")))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| refuse(format!("is no PEM file: {e}")))?;
        roots.add(certificate).map_err(|e| refuse(format!("holds a certificate that can't be used: {e}")))?;
    }
    if roots.is_empty() {
        return Err(refuse("holds no certificate".into()));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry certificates that rustls can't read; one more or less does not matter as long as some are there.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let error = Error::halt(
            Code::TlsFailed,
            "this system has no trusted certificates, and no ca_file is set",
            "apt-get install ca-certificates",
        );
        return Err(found.errors.iter().fold(error, |error, e| error.fact(e.to_string())));
    }
    Ok(roots)
}

/// The `tls-server-end-point` of SCRAM's channel binding (RFC 5929): the certificate's digest, by the digest that it is signed
/// with, where MD5 and SHA-1 count as SHA-256. `None` for signatures that name no digest of their own; Postgres has no binding
/// for those either.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = x509_cert::Certificate::from_der(certificate).ok()?.signature_algorithm.oid.to_string();
    match algorithm.as_str() {
        // md5, sha1 and sha256 with RSA; sha1 and sha256 with ECDSA
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// The name that the server's certificate must be for.
pub fn server_name(host: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|error| {
        let message = format!("no certificate can be for the host {host:?}: {error}");
        Error::halt(Code::TlsFailed, message, format!("getent hosts {host}"))
    })
}

/// The named halt behind a failed handshake; `None` when TLS had no part in it (a reset connection).
pub fn explain(error: &(dyn StdError + 'static), db: &Database) -> Option<Error> {
    rustls_error(error).map(|error| refusal(error, db))
}

/// The server answered that it has no TLS.
pub fn not_offered(db: &Database) -> Error {
    Error::halt(
        Code::TlsFailed,
        format!("{} offers no TLS, and verified TLS is configured", super::place(db)),
        "ALTER SYSTEM SET ssl = on -- with ssl_cert_file and ssl_key_file in place, then SELECT pg_reload_conf()",
    )
}

/// Looks behind the wrappers: an `io::Error` shows what it holds by `get_ref`, not as its source.
pub fn rustls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn refusal(error: &rustls::Error, db: &Database) -> Error {
    let (host, at) = match &db.host {
        Host::Tcp(host) => (host.as_str(), format!("{host}:{}", db.port)),
        Host::Unix(folder) => ("localhost", folder.display().to_string()),
    };
    let trusted = match &db.tls {
        Tls::Verified { ca_file: Some(file) } => file.display().to_string(),
        Tls::Verified { ca_file: None } | Tls::Off => "the system's certificates".to_owned(),
    };
    let show = format!("openssl s_client -starttls postgres -connect {at} -showcerts </dev/null");
    let (what, hint) = match error {
        // rustls has no variant of its own for it; the text is the name of webpki's.
        rustls::Error::InvalidCertificate(e @ CertificateError::Other(_)) if format!("{e:?}").contains("CaUsedAsEndEntity") => (
            "the server presents a CA's certificate as its own, which is refused: give it one that is no CA (a self-signed one \
             with CA:FALSE will do)"
                .to_owned(),
            leaf_command(host),
        ),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
            format!("the server's certificate is not signed by anyone in {trusted}: put its issuer's certificate into ca_file"),
            show,
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (format!("the server's certificate is not for the name {host}: {error}"), show),
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            (format!("the server's certificate has expired: {error}"), show)
        }
        other => (format!("no TLS with the server: {other}"), show),
    };
    Error::halt(Code::TlsFailed, format!("{}: {what}", super::place(db)), hint)
}

/// Makes a self-signed certificate that rustls takes when it is also the `ca_file`.
fn leaf_command(host: &str) -> String {
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN={host} \
         -addext basicConstraints=critical,CA:FALSE -addext subjectAltName={kind}:{host} -keyout server.key -out server.crt"
    )
}
