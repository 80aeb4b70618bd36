//! `twtool exporter --web.config.file`: TLS and basic authentication. curl sends the requests, and promtool checks the example file.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::confinement::is_active;
use crate::support::commands::needs_program;
use crate::support::exporter::Exporter;
use crate::support::suite;
use crate::support::twtool::{Run, twtool};

suite! {
    pure: [
        a_file_that_cannot_be_used_is_refused,
        promtool_accepts_the_example,
    ],
    netns: [
        only_a_client_with_tls_and_the_password_is_served,
        the_file_is_read_again_at_sighup,
        a_client_needs_a_certificate_if_the_file_says_so,
    ],
}

/// Makes a self-signed certificate and its key.
fn certificate(folder: &Path, name: &str) {
    needs_program("openssl");
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=twtool", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", &format!("{name}.key")]);
    Run::of(openssl.args(["-out", &format!("{name}.crt")]).current_dir(folder)).code(0);
}

/// Makes a certificate authority (ca.crt), and a certificate of a client (client.crt) that the authority has signed.
fn client_certificate(folder: &Path) {
    certificate(folder, "ca");
    fs::write(folder.join("extensions"), "basicConstraints=CA:FALSE\n").expect("written");
    let run = |args: &str| Run::of(Command::new("openssl").args(args.split(' ')).current_dir(folder)).code(0);
    run(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=client -keyout client.key -out client.csr",
    );
    run(
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out client.crt",
    );
}

/// Writes a file for `--web.config.file` with TLS and this password, and returns its path.
fn write(folder: &Path, password: &str, more: &str) -> String {
    let hash = bcrypt::hash(password, 4).expect("a hash");
    let text = format!(
        "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{more}basic_auth_users:\n  prometheus: {hash}\n"
    );
    let path = folder.join("web.yml");
    fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

/// The HTTP status that curl gets, or `000` if it gets no response.
fn status(folder: &Path, args: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "body", "-w", "%{http_code}", "--cacert", "server.crt"]).args(args).current_dir(folder);
    Run::of(&mut curl).stdout
}

const URL: &str = "https://127.0.0.1:16060/metrics";

fn only_a_client_with_tls_and_the_password_is_served() {
    needs_program("curl");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    certificate(folder, "server");
    let _exporter = Exporter::start(&["--web.config.file", &write(folder, "secret", "")]);
    for (args, expected) in [
        (&["-u", "prometheus:secret", URL][..], "200"),
        // The exporter finds this Authorization header in its cache.
        (&["-u", "prometheus:secret", URL], "200"),
        (&["-u", "prometheus:secret", "https://127.0.0.1:16060/-/healthy"], "200"),
        (&["-u", "prometheus:wrong", URL], "401"),
        (&["-u", "nobody:secret", URL], "401"),
        (&[URL], "401"),
        (&["-H", "Authorization: Bearer secret", URL], "401"),
        (&["--tls-max", "1.1", URL], "000"),
        (&["http://127.0.0.1:16060/metrics"], "000"),
    ] {
        assert_eq!(status(folder, args), expected, "{args:?}");
    }
    // curl stored the body of the last HTTP response, whose status was 401.
    assert!(!fs::read_to_string(folder.join("body")).unwrap_or_default().contains("twtool_timewait"));
}

fn the_file_is_read_again_at_sighup() {
    needs_program("curl");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    certificate(folder, "server");
    let path = write(folder, "first", "");
    let exporter = Exporter::start_with(&["--web.config.file", &path], 0);
    let line = exporter.wait_for_line("listening");
    let means = ["landlock", "seccomp"].into_iter().filter(|means| is_active(means));
    for means in means.chain(["confinement="]) {
        assert!(line.contains(means), "the exporter is confined: {line}");
    }
    assert_eq!(status(folder, &["-u", "prometheus:first", URL]), "200");
    // Landlock hides the file and the certificate from the thread that reads requests. So another thread must read them again.
    write(folder, "second", "");
    let renewed = folder.join("renewed");
    fs::create_dir(&renewed).expect("a folder");
    certificate(&renewed, "server");
    for name in ["server.crt", "server.key"] {
        fs::rename(renewed.join(name), folder.join(name)).expect("renamed");
    }
    // `curl --cacert` trusts only the new certificate now.
    assert_eq!(status(folder, &["-u", "prometheus:first", URL]), "000");
    exporter.signal(Signal::SIGHUP);
    exporter.wait_for_line("reloaded");
    assert_eq!(status(folder, &["-u", "prometheus:first", URL]), "401");
    assert_eq!(status(folder, &["-u", "prometheus:second", URL]), "200");
    // A file with a mistake changes nothing.
    fs::write(&path, "basic_auth_users:\n  prometheus: plain\n").expect("written");
    exporter.signal(Signal::SIGHUP);
    assert!(exporter.wait_for_line("not reloaded").contains("bcrypt"));
    assert_eq!(status(folder, &["-u", "prometheus:second", URL]), "200");
}

fn a_client_needs_a_certificate_if_the_file_says_so() {
    needs_program("curl");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    certificate(folder, "server");
    client_certificate(folder);
    let more = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  min_version: TLS13\n";
    let _exporter = Exporter::start(&["--web.config.file", &write(folder, "secret", more)]);
    let user = ["-u", "prometheus:secret"];
    assert_eq!(status(folder, &[&user[..], &["--cert", "client.crt", "--key", "client.key", URL]].concat()), "200");
    assert_eq!(status(folder, &[&user[..], &[URL]].concat()), "000");
    assert_eq!(status(folder, &[&user[..], &["--cert", "server.crt", "--key", "server.key", URL]].concat()), "000");
}

fn a_file_that_cannot_be_used_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("web.yml");
    let path = path.to_str().expect("UTF-8");
    twtool(["exporter", "--web.config.file", path]).refused("web.yml");
    for (text, word) in [
        ("tls_server_config:\n  cert_file: a\n  key_file: missing.key\n", "missing.key"),
        ("basic_auth_users:\n  u: plain\n", "bcrypt"),
        ("nonsense\n", "line 1"),
    ] {
        fs::write(path, text).expect("written");
        twtool(["exporter", "--web.config.file", path]).refused(word);
    }
}

fn promtool_accepts_the_example() {
    needs_program("promtool");
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "server");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus/web-config.yml");
    let path = folder.path().join("web-config.yml");
    fs::copy(example, &path).expect("copied");
    Run::of(Command::new("promtool").args(["check", "web-config"]).arg(&path)).code(0);
}
