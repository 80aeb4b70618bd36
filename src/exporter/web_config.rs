//! The web configuration file of Prometheus (exporter-toolkit, docs/web-configuration.md): TLS and basic authentication.
//!
//! The file is YAML. This parser reads only the part of YAML that the file needs: top-level keys, indented keys below them, and plain or
//! quoted values on the line of their key. Anything else is an error, so that no setting is silently ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WebConfig {
    pub(super) tls: Option<TlsFiles>,
    /// The bcrypt hash of the password of each user. If there are no users, no password is needed.
    pub(super) users: BTreeMap<String, String>,
}

/// The settings of `tls_server_config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// The certificate and its chain.
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    /// The certificates of certificate authorities, one of which must have signed the certificate of a client. `None` if a client
    /// needs no certificate.
    pub(super) client_ca: Option<PathBuf>,
    /// Whether TLS 1.2 is refused.
    pub(super) only_tls13: bool,
}

impl WebConfig {
    /// Parses the text of a file in `folder`. A relative path in the file is relative to `folder`.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let mut config = Self::default();
        let (mut section, mut client_auth, mut settings) = (String::new(), String::new(), BTreeSet::new());
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |why: &str| format!("line {number}: {why}");
            let Some((indented, key, value)) = entry(line).map_err(|why| wrong(&why))? else { continue };
            if !indented {
                if !value.is_empty() {
                    return Err(wrong(&format!(
                        "'{key}' takes indented keys on the next lines, not a value on this line"
                    )));
                }
                match key.as_str() {
                    "tls_server_config" => drop(config.tls.get_or_insert_default()),
                    "basic_auth_users" | "http_server_config" => {}
                    _ => return Err(wrong(&format!("unknown key '{key}'"))),
                }
                section = key;
                continue;
            }
            let path = || folder.join(&value);
            if section == "tls_server_config" && !settings.insert(key.clone()) {
                return Err(wrong(&format!("'{key}' occurs twice")));
            }
            match (section.as_str(), key.as_str(), &mut config.tls) {
                ("basic_auth_users", _, _) => {
                    if !is_bcrypt(&value) {
                        return Err(wrong(&format!("the password of '{key}' is not a bcrypt hash of cost 4 to 14")));
                    }
                    if config.users.insert(key, value).is_some() {
                        return Err(wrong("the user occurs twice"));
                    }
                }
                // This setting has no effect, because the exporter serves only HTTP/1.1.
                ("http_server_config", "http2", _) if matches!(value.as_str(), "true" | "false") => {}
                ("tls_server_config", "cert_file", Some(tls)) => tls.cert = path(),
                ("tls_server_config", "key_file", Some(tls)) => tls.key = path(),
                ("tls_server_config", "client_ca_file", Some(tls)) => tls.client_ca = Some(path()),
                ("tls_server_config", "client_auth_type", _) => client_auth = value,
                ("tls_server_config", "min_version", Some(tls)) => match value.as_str() {
                    "TLS12" => tls.only_tls13 = false,
                    "TLS13" => tls.only_tls13 = true,
                    _ => return Err(wrong("min_version is TLS12 or TLS13")),
                },
                _ => return Err(wrong(&format!("the exporter does not support '{key}' here"))),
            }
        }
        if let Some(tls) = &config.tls {
            if tls.cert.as_os_str().is_empty() || tls.key.as_os_str().is_empty() {
                return Err("tls_server_config needs cert_file and key_file".into());
            }
            match (client_auth.as_str(), &tls.client_ca) {
                ("" | "NoClientCert", None) | ("RequireAndVerifyClientCert", Some(_)) => {}
                _ => {
                    return Err("client certificates need both client_auth_type: RequireAndVerifyClientCert and client_ca_file; \
                                other types are not supported"
                        .into());
                }
            }
        }
        Ok(config)
    }
}

/// Parses a line: whether it is indented, its key, and its value. `None` for an empty line and for a comment.
fn entry(line: &str) -> Result<Option<(bool, String, String)>, String> {
    let text = line.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    if line.starts_with('\t') {
        return Err("a tab indents the line, but YAML allows only spaces".into());
    }
    let (key, rest) = scalar(text, true)?;
    let rest = rest.strip_prefix(':').ok_or("expected 'key: value'")?;
    let value = rest.trim_start();
    if !value.is_empty() && value.len() == rest.len() {
        return Err("a space must follow the colon".into());
    }
    let (value, rest) =
        if value.is_empty() || value.starts_with('#') { (String::new(), "") } else { scalar(value, false)? };
    let rest = rest.trim_start();
    if !(rest.is_empty() || rest.starts_with('#')) {
        return Err(format!("unexpected text '{rest}' after the value"));
    }
    Ok(Some((line.starts_with(' '), key, value)))
}

/// Parses a plain or quoted YAML scalar, and returns it with the text after it. A plain key ends at a colon.
fn scalar(text: &str, is_key: bool) -> Result<(String, &str), String> {
    for quote in ['\'', '"'] {
        let Some(inner) = text.strip_prefix(quote) else { continue };
        let (value, rest) = inner.split_once(quote).ok_or("a quotation mark is missing")?;
        if value.contains('\\') || rest.starts_with(quote) {
            return Err("escapes in quoted values are not supported".into());
        }
        return Ok((value.to_owned(), rest));
    }
    if text.starts_with(['{', '[', '&', '*', '!', '|', '>', '%', '@', '`', '-', '?']) {
        return Err("only 'key: value' is supported here".into());
    }
    let end = if is_key { text.find(':') } else { text.find(" #") };
    let (value, rest) = text.split_at(end.unwrap_or(text.len()));
    Ok((value.trim_end().to_owned(), rest))
}

/// Whether a text has the form of a bcrypt hash: the version and the cost (`$2y$10$`), then 53 characters of salt and hash. The maximum
/// cost is 14, because one comparison then takes about 1 s.
fn is_bcrypt(text: &str) -> bool {
    let version = ["$2a$", "$2b$", "$2y$"].iter().any(|version| text.starts_with(version));
    let cost = text.get(4..6).and_then(|cost| cost.parse::<u32>().ok());
    version
        && text.len() == 60
        && text.is_ascii()
        && text.as_bytes()[6] == b'$'
        && cost.is_some_and(|cost| (4..=14).contains(&cost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

    fn parse(text: &str) -> Result<WebConfig, String> {
        WebConfig::parse(text, Path::new("/etc/twtool"))
    }

    #[test]
    fn the_settings_are_read_and_paths_are_relative_to_the_file() {
        let text = format!(
            "# comment\ntls_server_config:\n  cert_file: server.crt # here\n  key_file: \"/k/server.key\"\n  min_version: TLS13\n\n\
             http_server_config:\n  http2: false\nbasic_auth_users:\n  prometheus: {HASH}\n  'a b': \"{HASH}\"\n"
        );
        let config = parse(&text).expect("a valid configuration");
        let tls = config.tls.expect("TLS");
        assert_eq!((tls.cert, tls.key), ("/etc/twtool/server.crt".into(), "/k/server.key".into()));
        assert!(tls.only_tls13 && tls.client_ca.is_none());
        assert_eq!(config.users.keys().collect::<Vec<_>>(), ["a b", "prometheus"]);
        assert_eq!(parse(""), Ok(WebConfig::default()));
    }

    #[test]
    fn an_unknown_repeated_or_wrong_setting_is_an_error() {
        for (text, word) in [
            ("tls_config:\n  cert_file: a\n", "tls_config"),
            ("tls_server_config:\n  cert_file: a\n", "key_file"),
            ("tls_server_config:\n  cipher_suites: [a]\n", "line 2"),
            ("tls_server_config:\n  cert_file: a\n  cert_file: b\n  key_file: c\n", "line 3: 'cert_file' occurs twice"),
            ("tls_server_config:\n  cert_file: a\n  key_file: b\n  min_version: TLS10\n", "TLS12"),
            ("tls_server_config:\n  cert_file: a\n  key_file: b\n  client_ca_file: c\n", "client_auth_type"),
            ("tls_server_config:\n  cert_file: a\n  key_file: b\n  client_auth_type: RequestClientCert\n", "client"),
            ("basic_auth_users:\n  u: secret\n", "bcrypt"),
            ("basic_auth_users:\n  u: $2y$31$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n", "bcrypt"),
            ("basic_auth_users: {a: b}\n", "line 1"),
            ("basic_auth_users: a\n", "indented keys"),
            ("- a\n", "line 1"),
            ("basic_auth_users:\n  u:x\n", "space"),
            ("tls_server_config:\n\tcert_file: a\n", "line 2: a tab indents the line"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-z_:# \"'\\n$-]|tls_server_config:\\n|  )*") {
            let _ = parse(&text);
        }
    }
}
