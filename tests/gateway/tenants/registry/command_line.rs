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
        let (status, said) = lockgate(&gateway, &["registry", "migrate", "--json"]);
        let versions: Value = serde_json::from_str(&said).unwrap();
        assert!(
            status == Some(0) && versions["before"] == versions["after"],
            "{said}"
        );
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
        let (status, said) = lockgate(&gateway, &["tenant", "reseal", "--json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        let expected = json!({"resealed": 0, "current": 1, "failed": []});
        assert_eq!((status, said), (Some(0), expected));
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
        let (status, said) = lockgate(&gateway, &["tenant", "reseal", "--json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((status, &said["resealed"]), (Some(1), &json!(0)));
        let failed = &said["failed"][0];
        assert_eq!(failed["tenant"], acme.name, "{said}");
        let reason = failed["reason"].as_str().unwrap();
        assert!(reason.contains("registry.key does not list"), "{said}");
    }
}

/// Before: `token`, `explain` and `doctor` knew the tenants of the files alone.
#[tokio::test]
async fn commands_know_the_tenants_of_the_registry() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let name = acme.name.as_str();
    let (status, token) = lockgate(
        &gateway,
        &["token", "mint", "--tenant", name, "--user", ALICE],
    );
    assert_eq!(status, Some(0), "{token}");
    let token = token.trim();
    // The token is one that a replica takes.
    gateway
        .replica()
        .dial(&acme, CHAT)
        .token(token)
        .open()
        .await;
    let explain = ["token", "explain", "--tenant", name, token];
    let (status, said) = lockgate(&gateway, &explain);
    assert!(status == Some(0) && said.contains("accepted"), "{said}");
    let url = format!("ws://{}{CHAT}?token={token}", acme.host);
    let (status, said) = lockgate(&gateway, &["explain", "--url", &url]);
    assert!(status == Some(0) && said.contains("chat_lobby"), "{said}");
    let (_, said) = lockgate(&gateway, &["doctor", "--tenant", name, "--json"]);
    assert!(said.contains(&format!("\"tenant {name}\"")), "{said}");
    assert!(!said.contains(&gateway.named("file").name), "{said}");
    let (_, said) = lockgate(&gateway, &["doctor"]);
    assert!(said.contains("1 tenant; --tenant NAME"), "{said}");
    for command in [
        &["token", "mint", "--tenant", "nobody", "--user", ALICE][..],
        &["token", "explain", "--tenant", "nobody", token],
        &["doctor", "--tenant", "nobody"],
    ] {
        let (status, said) = lockgate(&gateway, command);
        let told = said.contains("the registry has none of this name");
        assert!(status == Some(1) && told, "{command:?}: {said}");
    }
}

/// With `--tenant` only the tenants of the files were beside it, and names that meet on one server under two URLs never told.
#[tokio::test]
async fn doctor_looks_at_one_tenant_beside_all_others() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let gateway = store.gateway().redis(&redis.url()).start().await;
    let (first, document) = registered("the-first").await;
    put(&gateway, &first, &document).await;
    // By name it comes first; it was made later.
    let (second, mut document) = registered("a-second").await;
    let same = format!("redis://localhost:{}/3", redis.port());
    document["layer"] = json!({"kind": "pubsub", "prefix": first.prefix, "hosts": [same]});
    put(&gateway, &second, &document).await;
    let look = |tenant: &Tenant| {
        let doctor = ["doctor", "--tenant", &tenant.name, "--json"];
        let (_, said) = lockgate(&gateway, &doctor);
        let line = said.lines().next().unwrap_or_default();
        let found: Value = serde_json::from_str(line).expect(&said);
        let findings = found["findings"].as_array().expect("a list").clone();
        let mut shared = { findings.into_iter() }.filter(|one| one["check"] == "shared_redis");
        let first = shared.next();
        assert!(shared.next().is_none(), "{said}");
        first
    };
    assert_eq!(look(&first), None);
    let told = look(&second).expect("they meet");
    let subject = format!("tenant {}", second.name);
    assert_eq!(
        (&told["verdict"], &told["subject"]),
        (&json!("fail"), &json!(subject))
    );
    assert!(told.to_string().contains(&first.name), "{told}");
}

#[tokio::test]
async fn commands_tell_why_a_tenant_of_the_registry_cannot_be_served() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let name = acme.name.as_str();
    let wrong = format!(
        "config = '{{\"hosts\":[\"{}\"],\"limits\":{{\"connections\":-1}}}}'",
        acme.host
    );
    store.tamper(&acme, &wrong).await;
    let url = format!("ws://{}{CHAT}", acme.host);
    for command in [
        &["token", "mint", "--tenant", name, "--user", ALICE][..],
        &["token", "explain", "--tenant", name, "e30.e30.e30"],
        &["explain", "--url", &url],
        &["doctor", "--tenant", name],
        &["doctor"],
    ] {
        let (status, said) = lockgate(&gateway, command);
        assert!(status != Some(0), "{command:?}: {said}");
        let told = said.contains("limits.connections") && said.contains(name);
        assert!(told, "{command:?}: {said}");
    }
}

#[tokio::test]
async fn commands_tell_that_the_registry_cannot_be_read() {
    let store = Store::sqlite();
    let gateway = store.gateway().write().await;
    let away = "postgres://gate:hunter2@127.0.0.1:1/none";
    edit(&gateway, store.database.url(), away);
    let (acme, _) = registered("acme").await;
    let url = format!("ws://{}{CHAT}", acme.host);
    for (command, code) in [
        (&["explain", "--url", &url][..], 3),
        (
            &["token", "explain", "--tenant", &acme.name, "e30.e30.e30"],
            3,
        ),
        (
            &["token", "mint", "--tenant", &acme.name, "--user", ALICE],
            1,
        ),
        (&["doctor", "--tenant", &acme.name], 1),
    ] {
        let (status, said) = lockgate(&gateway, command);
        let told = said.contains("the registry could not be read");
        assert!(status == Some(code) && told, "{command:?}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    // A tenant of the files needs no registry.
    let file = &gateway.named("file").name;
    let (status, said) = lockgate(
        &gateway,
        &["token", "mint", "--tenant", file, "--user", ALICE],
    );
    assert_eq!(status, Some(0), "{said}");
    let url = format!("ws://{}{CHAT}?token=none", gateway.named("file").host);
    let (status, said) = lockgate(&gateway, &["explain", "--url", &url]);
    let is_walked = said.contains("of a tenant of the files") && said.contains("token_not_valid");
    assert!(status == Some(1) && is_walked, "{said}");
}
