//! TLS and basic authentication, as the web configuration file of Prometheus defines them.
//!
//! rustls uses ring for the cryptography, because a C compiler is enough to build ring. aws-lc-rs is larger, and needs more tools on
//! some targets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use tokio_rustls::TlsAcceptor;

use super::web_config::{TlsFiles, WebConfig};
use crate::sys;

const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The maximum number of cached headers. There must be a maximum, because a client with a correct password can send variants of its
/// header (more blanks, `BASIC` for `Basic`), and each variant is cached.
const MAX_VERIFIED: usize = 1000;

#[derive(Default)]
pub(super) struct Security {
    pub(super) acceptor: Option<TlsAcceptor>,
    users: BTreeMap<String, String>,
    /// The Authorization headers whose password was correct. They are cached, because the comparison of a password with a hash of the
    /// usual cost 10 takes about 50 ms of processor time.
    verified: Mutex<BTreeSet<Vec<u8>>>,
    /// Held during a comparison, so that wrong passwords use at most one core.
    comparing: Arc<tokio::sync::Mutex<()>>,
}

impl Security {
    /// Reads the web configuration file, and the certificates and the key that it names.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let failed = |why: String| format!("{}: {why}", path.display());
        let text = sys::file::read(path, MAX_CONFIG_BYTES).map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|_| failed("it is not UTF-8".into()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let WebConfig { tls, users } = WebConfig::parse(&text, folder).map_err(failed)?;
        let acceptor = tls.as_ref().map(acceptor).transpose()?;
        Ok(Self { acceptor, users, ..Self::default() })
    }

    /// Whether a request with this Authorization header is served.
    pub(super) async fn permits(self: &Arc<Self>, authorization: Option<&[u8]>) -> bool {
        if self.users.is_empty() {
            return true;
        }
        let Some(header) = authorization else { return false };
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified().contains(header) {
            return true;
        }
        let Some((user, password)) = credentials(header) else { return false };
        // If the user is unknown, twtool compares the password with the most expensive hash of the file. So if all hashes have the
        // same cost, the response time does not show which users exist. Bytes 4 and 5 of a hash are its cost.
        let known = self.users.contains_key(&user);
        let costliest = || self.users.values().max_by_key(|hash| hash.get(4..6));
        let Some(hash) = self.users.get(&user).or_else(costliest).cloned() else { return false };
        let guard = Arc::clone(&self.comparing).lock_owned().await;
        let compare = move || {
            // If the client closes its connection now, this function ends, but the comparison continues. So the comparison has the guard.
            let _guard = guard;
            bcrypt::verify(password, &hash).unwrap_or(false)
        };
        let compared = tokio::task::spawn_blocking(compare).await;
        let right = known && compared.unwrap_or(false);
        if right && verified().len() < MAX_VERIFIED {
            verified().insert(header.to_owned());
        }
        right
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, String> {
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let failed = |error: rustls::pki_types::pem::Error| format!("{}: {error}", path.display());
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| format!("{}: {error}", files.key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = if files.only_tls13 { &[&version::TLS13] } else { &[&version::TLS12, &version::TLS13] };
    let failed = |error: rustls::Error| format!("{}: {error}", files.cert.display());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).map_err(failed)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| format!("{}: {error}", path.display()))?)
        }
    };
    let mut config = builder.with_single_cert(certificates(&files.cert)?, key).map_err(failed)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The user and the password of a header `Basic BASE64` (RFC 7617).
fn credentials(header: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let decoded = decode_base64(encoded.trim_ascii())?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_owned()).ok()?;
    Some((user, decoded[colon + 1..].to_owned()))
}

/// Decodes base64 with padding (RFC 4648, section 4).
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if !text.len().is_multiple_of(4) || digits.len() % 4 == 1 {
        return None;
    }
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::with_capacity(text.len() / 4 * 3));
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_from_the_header() {
        let read = |header: &str| credentials(header.as_bytes());
        assert_eq!(read("Basic cHJvbTpzZTpjcmV0"), Some(("prom".into(), b"se:cret".to_vec())));
        assert_eq!(read("basic  YTo="), Some(("a".into(), vec![])));
        for header in [
            "",
            "Basic",
            "Basic ",
            "Bearer cHJvbTpzZTpjcmV0",
            "Basic cHJvb",
            "Basic cHJvbQ==",
            "Basic c===",
            "Basic \u{e9}\u{e9}",
        ] {
            assert_eq!(read(header), None, "{header}");
        }
    }
}
