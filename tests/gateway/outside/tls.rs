//! Certificates of Redis, databases and key sets: `ca` and `verify`, with a server whose certificate is for `localhost`.
//!
//! The right authority, another one, and the right one under another name (127.0.0.1) are the three cases of each link.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::operations::doctor::findings;
use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::jwks::Jwks;
use crate::support::mariadb::MariaDbServer;
use crate::support::ports::free_port;
use crate::support::postgres::PostgresServer;
use crate::support::replica::LOCKGATE;
use crate::support::{Gateway, PATIENCE, RedisServer, Tenant, eventually, gateway};

pub(super) const CHAT: &str = "/ws/chat/lobby/";
/// A query that needs no table.
const POSTGRES_USERS: &str =
    "SELECT id, true AS is_active FROM generate_series(1, 3) AS id WHERE id IN (:user_ids)";
const MARIADB_USERS: &str = "SELECT id, 1 AS is_active FROM (SELECT 1 AS id UNION SELECT 2) AS users WHERE id IN (:user_ids)";

/// A file of `tests/certificates`.
pub(super) fn file(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates")).join(name)
}

pub(super) fn ca(name: &str) -> toml::Value {
    let path = file(name).display().to_string();
    toml::Value::Array(vec![
        toml::Table::from_iter([("file".to_owned(), path.into())]).into(),
    ])
}

/// A Redis whose second port speaks TLS.
pub(super) async fn redis() -> (RedisServer, u16) {
    let port = free_port();
    let (port_text, server, key) = (port.to_string(), file("server.pem"), file("server.key"));
    let text = |path: &Path| path.display().to_string();
    let redis = RedisServer::with(&[
        "--tls-port",
        &port_text,
        "--tls-cert-file",
        &text(&server),
        "--tls-key-file",
        &text(&key),
        "--tls-ca-cert-file",
        &text(&file("ca.pem")),
        "--tls-auth-clients",
        "no",
    ])
    .await;
    (redis, port)
}

async fn opens(gateway: &Gateway, tenant: &Tenant) {
    let token = tenant.token(ALICE);
    let dial = gateway.replica().dial(tenant, CHAT).token(&token);
    drop(dial.open().await);
}

/// The socket gets an event that has gone through the layer.
pub(super) async fn hears(gateway: &Gateway, tenant: &Tenant) {
    let replica = gateway.replica();
    let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    let mut socket = dial.open().await;
    let path = format!("/v1/tenants/{}/groups/chat_lobby/send", tenant.name);
    let event = json!({"type": "chat.message", "text": tenant.name}).to_string();
    let answer = replica.api(&gateway.api_key, "POST", &path, &event).await;
    assert_eq!(answer.status, 200, "{}: {answer:?}", tenant.name);
    assert!(socket.next_text().await.contains(&tenant.name));
}

async fn is_refused(gateway: &Gateway, tenant: &Tenant) {
    let dial = gateway.replica().dial(tenant, CHAT);
    let refused = dial.token(&tenant.token(ALICE)).refused().await;
    Problem::new(503, "unavailable").is(&refused, &tenant.name);
}

#[tokio::test]
async fn a_redis_is_trusted_by_ca_and_verify_on_every_link() {
    let (_redis, port) = redis().await;
    let (localhost, other_name) = (
        format!("rediss://localhost:{port}/0"),
        format!("rediss://127.0.0.1:{port}/0"),
    );
    let mut good = gateway().without_redis().set("tls.ca", ca("ca.pem"));
    for (word, url, authority, verify) in [
        ("everywhere", &localhost, None, None),
        ("own", &localhost, Some("ca.pem"), Some("full")),
        ("chain", &other_name, None, Some("ca")),
        ("nothing", &other_name, None, Some("none")),
        ("wrong-nothing", &localhost, Some("other.pem"), Some("none")),
    ] {
        good = good.tenant(word).with("redis.url", url.as_str());
        if let Some(authority) = authority {
            good = good.with("redis.ca", ca(authority));
        }
        if let Some(verify) = verify {
            good = good.with("redis.verify", verify);
        }
    }
    // The reading links of a core layer, and hosts beside a `redis` table without a URL.
    let good = good
        .tenant("core")
        .with("redis.url", other_name.as_str())
        .with("redis.verify", "ca")
        .with("layer.kind", "core")
        .tenant("hosts")
        .with("redis.verify", "ca")
        .with("layer.hosts", vec![other_name.clone()])
        .start()
        .await;
    for word in [
        "everywhere",
        "own",
        "chain",
        "nothing",
        "wrong-nothing",
        "core",
        "hosts",
    ] {
        hears(&good, good.named(word)).await;
    }
    let replica = good.replica();
    replica
        .metric("lockgate_unchecked_servers", &[], |count| count == 2.0)
        .await;
    let warning = replica
        .logged("the certificate of the server is not checked")
        .await;
    assert!(warning.contains("redis.verify"), "{warning}");
    let found = findings(&good.config);
    let (name, at) = (
        &good.named("nothing").name,
        format!("redis 127.0.0.1:{port}/0"),
    );
    let unchecked = { found["findings"].as_array().unwrap().iter() }
        .filter(|f| f["check"] == "reach" && f["verdict"] == "warn")
        .find(|f| f["subject"] == at.as_str())
        .unwrap_or_else(|| panic!("{found}"));
    let detail = unchecked["detail"].as_str().unwrap();
    assert!(
        detail.contains("not checked") && detail.contains(name.as_str()),
        "{detail}"
    );
}

#[tokio::test]
async fn a_redis_that_is_not_trusted_gets_no_link_until_a_reload_brings_its_authority() {
    let (_redis, port) = redis().await;
    let localhost = format!("rediss://localhost:{port}/0");
    let other_name = format!("rediss://127.0.0.1:{port}/0");
    let dir = tempfile::tempdir().unwrap();
    let renewed = dir.path().join("ca.pem");
    std::fs::copy(file("other.pem"), &renewed).unwrap();
    let entry = toml::Table::from_iter([("file".to_owned(), renewed.display().to_string().into())]);
    let bad = gateway()
        .without_redis()
        .set("server.ready_wait", "1s")
        .tenant("system")
        .with("redis.url", localhost.as_str())
        .tenant("other")
        .with("redis.url", localhost.as_str())
        .with("redis.ca", ca("other.pem"))
        .tenant("chain")
        .with("redis.url", localhost.as_str())
        .with("redis.ca", ca("other.pem"))
        .with("redis.verify", "ca")
        .tenant("name")
        .with("redis.url", other_name.as_str())
        .with("redis.ca", ca("ca.pem"))
        .tenant("renewed")
        .with("redis.url", localhost.as_str())
        .with("redis.ca", toml::Value::Array(vec![entry.into()]))
        .spawn()
        .await;
    for word in ["system", "other", "chain", "name", "renewed"] {
        is_refused(&bad, bad.named(word)).await;
    }
    // On a busy machine the doctor may find the link too slow before it finds out why.
    eventually(PATIENCE, "the doctor names the cause", async || {
        let found = findings(&bad.config).to_string();
        let parts = [
            "invalid peer certificate",
            "verify = \\\"ca\\\" checks the authority alone",
        ];
        match parts.iter().all(|part| found.contains(part)) {
            true => Ok(()),
            false => Err(found),
        }
    })
    .await;
    std::fs::copy(file("ca.pem"), &renewed).unwrap();
    let replica = bad.replica();
    let answer = replica.api(&bad.api_key, "POST", "/v1/reload", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let tenant = bad.named("renewed");
    eventually(PATIENCE, "the renewed authority is trusted", async || {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        dial.attempt().await.map(drop)
    })
    .await;
    hears(&bad, tenant).await;
    is_refused(&bad, bad.named("other")).await;
}

/// A gateway with one tenant for each row: URL, `ca`, `verify`. The words of tenants that work begin with `good`.
async fn with_databases(rows: &[(&str, String, Option<&str>, Option<&str>)], users: &str) {
    let mut builder = gateway().set("server.ready_wait", "1s");
    for (word, url, authority, verify) in rows {
        builder = builder
            .tenant(word)
            .users(&crate::support::Database::at(url.clone()))
            .with("users.query", users);
        if let Some(authority) = authority {
            builder = builder.with("users.ca", ca(authority));
        }
        if let Some(verify) = verify {
            builder = builder.with("users.verify", *verify);
        }
    }
    let gateway = builder.spawn().await;
    for (word, ..) in rows {
        let tenant = gateway.named(word);
        match word.starts_with("good") {
            true => opens(&gateway, tenant).await,
            false => is_refused(&gateway, tenant).await,
        }
    }
    let found = findings(&gateway.config);
    for (word, _, _, verify) in rows {
        let name = &gateway.named(word).name;
        let finding = { found["findings"].as_array().unwrap().iter() }
            .find(|f| {
                f["check"] == "reach" && f["subject"].as_str().unwrap().contains(name.as_str())
            })
            .unwrap_or_else(|| panic!("{word}: {found}"));
        let (verdict, part) = match (word.starts_with("good"), *verify == Some("none")) {
            (true, true) => ("warn", "answers (TLS); its certificate is not checked"),
            (true, false) => ("ok", "answers (TLS)"),
            (false, _) => ("fail", "invalid peer certificate"),
        };
        assert_eq!(finding["verdict"], verdict, "{word}: {finding}");
        assert!(
            finding["detail"].as_str().unwrap().contains(part),
            "{word}: {finding}"
        );
    }
}

#[tokio::test]
async fn a_postgres_is_trusted_by_ca_and_verify() {
    let server = PostgresServer::with_tls(&file("server.pem"), &file("server.key")).await;
    let named = |host: &str| server.url("postgres").replace("127.0.0.1", host);
    let (localhost, other_name) = (named("localhost"), named("127.0.0.1"));
    let root = format!(
        "{localhost}?sslmode=verify-full&sslrootcert={}",
        file("ca.pem").display()
    );
    let mode = format!("{localhost}?sslmode=verify-full");
    with_databases(
        &[
            ("good-full", localhost.clone(), Some("ca.pem"), None),
            ("good-chain", other_name.clone(), Some("ca.pem"), Some("ca")),
            (
                "good-nothing",
                other_name.clone(),
                Some("other.pem"),
                Some("none"),
            ),
            ("good-url", root, None, None),
            ("good-mode", mode, Some("ca.pem"), None),
            ("other", localhost.clone(), Some("other.pem"), None),
            (
                "other-chain",
                localhost.clone(),
                Some("other.pem"),
                Some("ca"),
            ),
            ("name", other_name, Some("ca.pem"), Some("full")),
            ("system", localhost, None, Some("full")),
        ],
        POSTGRES_USERS,
    )
    .await;
}

/// Before, the authorities of the system took the place of what the driver had read of the environment.
#[tokio::test]
async fn an_authority_in_the_environment_is_as_one_in_the_url() {
    let server = PostgresServer::with_tls(&file("server.pem"), &file("server.key")).await;
    let localhost = server.url("postgres").replace("127.0.0.1", "localhost");
    let mode = crate::support::Database::at(format!("{localhost}?sslmode=verify-full"));
    let mut builder = gateway();
    for (word, own) in [
        ("alone", None),
        ("right", Some("ca.pem")),
        ("wrong", Some("other.pem")),
    ] {
        builder = builder
            .tenant(word)
            .users(&mode)
            .with("users.query", POSTGRES_USERS);
        if let Some(own) = own {
            builder = builder.with("users.ca", ca(own));
        }
    }
    let gateway = builder.write().await;
    for (environment, alone) in [("ca.pem", "ok"), ("other.pem", "fail")] {
        eventually(PATIENCE, environment, async || {
            let doctor = std::process::Command::new(LOCKGATE)
                .args(["doctor", "--json", "--config"])
                .arg(&gateway.config)
                .env("PGSSLROOTCERT", file(environment))
                .output();
            let found: Value = serde_json::from_slice(&doctor.unwrap().stdout).unwrap();
            let verdict = |word: &str| {
                let name = gateway.named(word).name.as_str();
                let mut all = found["findings"].as_array().unwrap().iter();
                let reach = all.find(|f| {
                    f["check"] == "reach" && f["subject"].as_str().unwrap().contains(name)
                });
                reach.map(|f| f["verdict"].clone())
            };
            let verdicts = ["alone", "right", "wrong"].map(verdict);
            match verdicts == [alone, "ok", "fail"].map(|word| Some(word.into())) {
                true => Ok(()),
                false => Err(found.to_string()),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_mariadb_is_trusted_by_ca_and_verify() {
    let server = MariaDbServer::with_tls(&file("server.pem"), &file("server.key")).await;
    let named = |host: &str| server.url("mysql").replace("127.0.0.1", host);
    let (localhost, other_name) = (named("localhost"), named("127.0.0.1"));
    let root = format!(
        "{localhost}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}",
        file("ca.pem").display()
    );
    with_databases(
        &[
            ("good-full", localhost.clone(), Some("ca.pem"), None),
            ("good-chain", other_name.clone(), Some("ca.pem"), Some("ca")),
            ("good-nothing", other_name.clone(), None, Some("none")),
            ("good-url", root, None, None),
            ("other", localhost, Some("other.pem"), None),
            ("name", other_name, Some("ca.pem"), None),
        ],
        MARIADB_USERS,
    )
    .await;
}

#[tokio::test]
async fn a_key_set_is_trusted_by_the_authorities_of_all() {
    let jwks = Jwks::start_tls(&file("server.pem"), &file("server.key")).await;
    let other_name = jwks.url.replace("localhost", "127.0.0.1");
    for (authority, url, opens) in [
        ("ca.pem", &jwks.url, true),
        ("other.pem", &jwks.url, false),
        ("ca.pem", &other_name, false),
    ] {
        let gateway = gateway()
            .without_redis()
            .set("server.ready_wait", "1s")
            .set("tls.ca", ca(authority))
            .tenant("acme")
            .with("layer.kind", "memory")
            .with("token.algorithm", "RS256")
            .with("token.jwk_url", url.as_str())
            .spawn()
            .await;
        let claims =
            json!({"user_id": ALICE, "token_type": "access", "exp": 4_000_000_000_u64, "jti": "j"});
        let dial = gateway
            .replica()
            .dial(gateway.tenant(), CHAT)
            .token(&jwks.sign(&claims));
        match dial.attempt().await {
            Ok(_) => assert!(opens, "{authority} {url}"),
            Err(refused) => {
                assert!(!opens, "{authority} {url}: {refused:?}");
                Problem::new(503, "unavailable").is(&refused, &gateway.tenant().name);
            }
        }
    }
}
