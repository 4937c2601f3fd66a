//! `rediss://`: both links verify the server against the system's certificates.

use std::process::Command;
use std::time::Duration;

use lockgate::channel_layer::{ChannelLayer, LayerError};
use lockgate::error::ErrorKind;

use super::support::*;
use crate::ports::free_port;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates");

/// The system's certificates are read once per process, so each case is a process of its own.
fn in_a_process_that_trusts(authorities: &str, case: &str) {
    let (_, module) = module_path!().split_once("::").unwrap();
    let outcome = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{case}"), "--ignored"])
        .env("SSL_CERT_FILE", format!("{FILES}/{authorities}"))
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(
        outcome.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

#[test]
fn events_pass_over_tls() {
    in_a_process_that_trusts("ca.pem", "with_a_trusted_server");
}

#[test]
fn a_server_without_a_trusted_certificate_gets_no_password() {
    in_a_process_that_trusts("other.pem", "with_an_unknown_server");
}

struct TlsRedis {
    child: std::process::Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl TlsRedis {
    async fn start() -> Self {
        let port = free_port();
        let dir = tempfile::tempdir().unwrap();
        let tls_port = port.to_string();
        let file = |name| format!("{FILES}/{name}");
        let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        let more = [
            ("--tls-port", tls_port.as_str()),
            ("--tls-cert-file", &cert),
            ("--tls-key-file", &key),
            ("--tls-ca-cert-file", &ca),
            ("--tls-auth-clients", "no"),
            ("--requirepass", "pw"),
        ];
        let more: Vec<&str> = more
            .iter()
            .flat_map(|(key, value)| [*key, *value])
            .collect();
        let child = spawn(0, &dir, &more);
        let url = format!("rediss://:pw@localhost:{port}/0");
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self {
            child,
            url,
            _dir: dir,
        }
    }
}

impl Drop for TlsRedis {
    fn drop(&mut self) {
        let _killed = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}

#[tokio::test]
#[ignore = "started by events_pass_over_tls"]
async fn with_a_trusted_server() {
    let redis = TlsRedis::start().await;
    let tenant = replica(&redis.url).tenant("acme");
    tenant.join("g").await;
    for number in 0..100 {
        tenant.send("g", number).await;
    }
    assert_eq!(tenant.numbers(100).await, (0..100).collect::<Vec<_>>());
    assert!(tenant.layer.ready().await);
}

#[tokio::test]
#[ignore = "started by a_server_without_a_trusted_certificate_gets_no_password"]
async fn with_an_unknown_server() {
    let redis = TlsRedis::start().await;
    let replica = replica(&redis.url);
    let joined = replica.tenant("acme").layer.subscribe(&"g".into()).await;
    let refused = |kind| matches!(kind, ErrorKind::Io | ErrorKind::Other);
    assert!(
        matches!(joined, Err(LayerError::Unavailable(kind)) if refused(kind)),
        "{joined:?}"
    );
    assert!(replica.store.ping().await.is_err());
}
