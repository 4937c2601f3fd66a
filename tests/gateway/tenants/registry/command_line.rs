//! The verbs for tenants and the registry, from a terminal.

use std::process::{Command, Output, Stdio};

use super::*;
use crate::support::database::ALICE;
use crate::support::replica::LOCKGATE;

fn lockgate(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(LOCKGATE);
    command.args(arguments).stdin(Stdio::null());
    command.env("LOCKGATE_CONFIG", &gateway.config);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (status.code(), text.concat())
}

/// Replaces a text of the configuration.
fn edit(gateway: &Gateway, from: &str, to: &str) {
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&gateway.config, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn tenants_are_put_listed_shown_suspended_and_deleted_from_a_terminal() {
    let store = Store::sqlite();
    let redis = RedisServer::start().await;
    let gateway = store.gateway().redis(&redis.url()).start().await;
    let api = format!("http://{}", gateway.replica().api);
    let key = gateway.key_file.display().to_string();
    let run = |arguments: &[&str]| {
        let remote = ["--url", &api, "--api-key-file", &key];
        lockgate(&gateway, &[arguments, &remote].concat())
    };
    let (acme, mut document) = registered("acme").await;
    let dir = scratch("documents");
    let file = dir.path().join("acme.json");
    let file = file.to_str().unwrap();
    std::fs::write(file, document.to_string()).unwrap();
    let (status, said) = run(&["tenant", "put", &acme.name, file, "--new"]);
    assert!(
        status == Some(0) && said.contains("\"version\":1"),
        "{said}"
    );
    let (status, said) = run(&["tenant", "put", &acme.name, file, "--new"]);
    assert!(
        status == Some(1) && said.contains("precondition_failed"),
        "{said}"
    );
    let (status, said) = run(&["tenant", "list"]);
    assert!(
        status == Some(0) && said.contains(&acme.name) && said.contains("registry"),
        "{said}"
    );
    let (status, said) = run(&["tenant", "show", &acme.name]);
    assert!(
        status == Some(0) && said.contains("\"set\": true"),
        "{said}"
    );
    assert!(!said.contains(&acme.key));
    document["hosts"] = serde_json::json!([]);
    std::fs::write(file, document.to_string()).unwrap();
    let (status, said) = run(&["tenant", "put", &acme.name, file, "--if-version", "1"]);
    assert!(
        status == Some(1) && said.contains("hosts: found no hosts"),
        "{said}"
    );
    std::fs::write(file, "{\"token\": hunter2}").unwrap();
    let (status, said) = run(&["tenant", "put", &acme.name, file]);
    assert!(status == Some(1) && said.contains(":1:"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let dial = || {
        gateway
            .replica()
            .dial(&acme, CHAT)
            .token(&acme.token(ALICE))
    };
    assert_eq!(run(&["tenant", "suspend", &acme.name]).0, Some(0));
    assert_eq!(dial().refused().await.status, 403);
    assert_eq!(run(&["tenant", "resume", &acme.name]).0, Some(0));
    dial().open().await;
    let (status, said) = run(&["reload"]);
    assert!(
        status == Some(0) && said.contains("\"applied\":1"),
        "{said}"
    );
    dial().open().await;
    assert_eq!(
        run(&["tenant", "delete", &acme.name, "--if-version", "7"]).0,
        Some(1)
    );
    assert_eq!(
        run(&["tenant", "delete", &acme.name, "--if-version", "1"]).0,
        Some(0)
    );
    assert_eq!(dial().refused().await.status, 404);
}

#[tokio::test]
async fn the_tables_are_made_once_and_the_secrets_get_another_key() {
    for store in [
        Store::sqlite(),
        Store::postgres().await,
        Store::mariadb().await,
    ] {
        let mut gateway = store.gateway().set("registry.migrate", false).write().await;
        let (status, said) = lockgate(&gateway, &["registry", "migrate"]);
        assert!(status == Some(0) && said.contains("before: 0"), "{said}");
        let (status, said) = lockgate(&gateway, &["registry", "migrate"]);
        assert!(status == Some(0) && said.contains("already"), "{said}");
        gateway.add_replica().await;
        gateway.replica().ready().await;
        let (acme, document) = registered("acme").await;
        put(&gateway, &acme, &document).await;
        // The new key comes first, and the old one still opens.
        edit(
            &gateway,
            &format!("\"{KEY}\""),
            &format!("[\"{NEXT_KEY}\", \"{KEY}\"]"),
        );
        let (status, said) = lockgate(&gateway, &["tenant", "reseal"]);
        assert!(
            status == Some(0) && said.contains("1 tenant resealed"),
            "{said}"
        );
        let (status, said) = lockgate(&gateway, &["tenant", "reseal"]);
        assert!(
            status == Some(0) && said.contains("1 had the first key"),
            "{said}"
        );
        let both = format!("[\"{NEXT_KEY}\", \"{KEY}\"]");
        edit(&gateway, &both, &format!("\"{NEXT_KEY}\""));
        gateway.add_replica().await;
        let fresh = &gateway.replicas[1];
        fresh.ready().await;
        fresh
            .dial(&acme, CHAT)
            .token(&acme.token(ALICE))
            .open()
            .await;
        edit(&gateway, NEXT_KEY, KEY);
        let (status, said) = lockgate(&gateway, &["tenant", "reseal"]);
        assert!(
            status == Some(1) && said.contains("registry.key does not list"),
            "{said}"
        );
    }
}

/// Before: `explain` said to add the host to a file, and `token` that there is no such tenant.
#[tokio::test]
async fn commands_that_know_the_files_alone_say_so() {
    let store = Store::sqlite();
    let gateway = store.gateway().write().await;
    let (acme, _) = registered("acme").await;
    let url = format!("ws://{}{CHAT}", acme.host);
    for arguments in [
        &["explain", "--url", &url][..],
        &["token", "mint", "--tenant", &acme.name, "--user", ALICE],
        &["token", "explain", "--tenant", &acme.name, "e30.e30.e30"],
    ] {
        let (status, said) = lockgate(&gateway, arguments);
        let told = said.contains("`lockgate tenant list`");
        assert!(status == Some(1) && told, "{arguments:?}: {said}");
    }
}
