//! `ca` and `verify` as operators get them wrong: what `config check`, `serve`, `doctor`, the metric and a reload say.

use std::process::{Command, Output};

use super::tls::{CHAT, ca, file, hears, redis};
use crate::operations::doctor::{findings, is};
use crate::support::database::ALICE;
use crate::support::replica::LOCKGATE;
use crate::support::{Gateway, PATIENCE, eventually, gateway, scratch};

const UNCHECKED: &str = "lockgate_unchecked_servers";

fn run(verb: &[&str], gateway: &Gateway) -> (Option<i32>, String) {
    let config = gateway.config.display().to_string();
    let output: Output = Command::new(LOCKGATE)
        .args(verb)
        .args(["--config", &config])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn pem(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// Each row: a file, and what is found in it. Nothing starts with it, and no line of it is shown.
#[tokio::test]
async fn an_authority_that_cannot_be_read_ends_the_check_and_the_start_with_its_key_and_file() {
    let (ca, key) = (pem("ca.pem"), pem("server.key"));
    let broken = ca.replacen("MII", "M!I", 1);
    let (cut_off, _) = ca.split_at(ca.len() / 2);
    let dir = scratch("authorities");
    let path = dir.path().join("ca.pem");
    let list = toml::Value::Array(vec![
        toml::Table::from_iter([("file".to_owned(), path.display().to_string().into())]).into(),
    ]);
    let gateway = gateway()
        .tenant("acme")
        .with("redis.url", "rediss://127.0.0.1:1/0")
        .with("redis.ca", list)
        .write()
        .await;
    for (content, found) in [
        (None, "No such file"),
        (Some(String::new()), "that is empty"),
        (Some(key.clone()), "with a private key"),
        (Some(format!("{ca}{key}")), "with a private key"),
        (Some(format!("{ca}{broken}{ca}")), "that is no readable PEM"),
        (Some(format!("{ca}{cut_off}")), "that is no readable PEM"),
        (Some("a text".to_owned()), "without a certificate"),
    ] {
        match &content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => assert!(!path.exists()),
        }
        for verb in [["config", "check"].as_slice(), &["serve"], &["doctor"]] {
            let (status, text) = run(verb, &gateway);
            assert_ne!(status, Some(0), "{verb:?}: {text}");
            let place = format!("tenants.{}.redis.ca[0]", gateway.tenant().name);
            for part in [place.as_str(), found, &path.display().to_string()] {
                assert!(text.contains(part), "{verb:?}, {part}: {text}");
            }
            let content = content.as_deref().unwrap_or_default();
            for line in content.lines().filter(|line| !line.starts_with("---")) {
                assert!(!text.contains(line), "{verb:?}: {text}");
            }
        }
    }
}

/// A restart at night must not end all tenants for one certificate, and a rollout should not get that far.
#[tokio::test]
async fn an_expired_authority_fails_the_check_and_the_doctor_and_not_the_start() {
    let (_redis, port) = redis().await;
    let dir = scratch("expired");
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, pem("expired.pem") + &pem("ca.pem")).unwrap();
    let list = toml::Value::Array(vec![
        toml::Table::from_iter([("file".to_owned(), path.display().to_string().into())]).into(),
    ]);
    let gateway = gateway()
        .without_redis()
        .set("tls.ca", list)
        .tenant("acme")
        .with("redis.url", format!("rediss://localhost:{port}/0"))
        .start()
        .await;
    hears(&gateway, gateway.tenant()).await;
    let expired = "a certificate of this authority expired on 2020-01-31";
    let line = gateway.replica().logged(expired).await;
    assert!(line.contains("tls.ca[0]"), "{line}");
    let (status, text) = run(&["config", "check"], &gateway);
    assert_eq!(status, Some(1), "{text}");
    assert!(
        text.contains("tls.ca[0]") && text.contains(expired),
        "{text}"
    );
    let (status, text) = run(&["config", "check", "--json"], &gateway);
    assert!(status == Some(1) && text.contains(expired), "{text}");
    let found = findings(&gateway.config);
    is(&found, ("tls.ca[0]", "expiry"), "fail", expired);

    std::fs::write(&path, pem("ca.pem")).unwrap();
    let (status, text) = run(&["config", "check"], &gateway);
    assert_eq!(
        (status, text.contains("expired")),
        (Some(0), false),
        "{text}"
    );
    is(
        &findings(&gateway.config),
        ("tls.ca[0]", "expiry"),
        "ok",
        "none",
    );
}

/// Each word of `verify = "none"`, in each table, is told by each of them; a reload that takes it away is told by the metric.
#[tokio::test]
async fn an_unchecked_server_is_told_by_the_check_the_start_the_doctor_and_the_metric_until_a_reload()
 {
    let (_redis, port) = redis().await;
    let url = format!("rediss://127.0.0.1:{port}/0");
    let gateway = gateway()
        .redis(&url)
        .set("redis.verify", "none")
        .tenant("acme")
        .with("redis.url", url.as_str())
        .with("redis.verify", "none")
        .with("users.verify", "none")
        .spawn()
        .await;
    let (replica, tenant) = (gateway.replica(), gateway.tenant());
    let users = format!("tenants.{}.users.verify", tenant.name);
    let own = format!("tenants.{}.redis.verify", tenant.name);
    let (status, text) = run(&["config", "check"], &gateway);
    assert_eq!(status, Some(0), "{text}");
    for key in ["redis.verify", &own, &users] {
        let line = format!("{key}: the certificate of the server is not checked");
        assert!(text.contains(&line), "{line}: {text}");
        replica.logged(&line).await;
    }
    replica.metric(UNCHECKED, &[], |count| count == 3.0).await;
    let found = findings(&gateway.config);
    let subject = format!("redis 127.0.0.1:{port}/0");
    is(
        &found,
        (&subject, "reach"),
        "warn",
        "TLS, its certificate is not checked",
    );

    let text = std::fs::read_to_string(&gateway.config).unwrap();
    let mut config: toml::Table = text.parse().unwrap();
    config["redis"].as_table_mut().unwrap().remove("verify");
    let acme = config["tenants"][&tenant.name].as_table_mut().unwrap();
    acme["users"].as_table_mut().unwrap().remove("verify");
    let redis = acme["redis"].as_table_mut().unwrap();
    redis.insert("verify".to_owned(), "ca".into());
    redis.insert("ca".to_owned(), ca("ca.pem"));
    std::fs::write(&gateway.config, config.to_string()).unwrap();
    let answer = replica
        .api(&gateway.api_key, "POST", "/v1/reload", "")
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    replica.metric(UNCHECKED, &[], |count| count == 0.0).await;
    // The tenant's link is made again, with the check.
    eventually(PATIENCE, "the tenant is served", async || {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        dial.attempt().await.map(drop)
    })
    .await;
    hears(&gateway, tenant).await;
}
