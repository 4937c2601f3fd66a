//! A Redis that refuses scripts: what a tenant lacks without them, and where that is said.

use serde_json::{Value, json};

use super::managed_redis::{
    CHAT, EVAL, GROUPS, api, dial, does_everything, revokes_a_token, server, with_login,
};
use crate::operations::doctor::{findings, is};
use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::{
    Gateway, PATIENCE, Publisher, RedisServer, Tenant, eventually, gateway, token, unique,
};

/// Before: ready without a word, and every revocation of a user was 503.
#[tokio::test]
async fn without_scripts_a_tenant_is_served_and_what_it_lacks_is_named_until_they_are_granted() {
    let redis = server(&[EVAL]).await;
    let gateway = with_login(&redis, EVAL).start().await;
    let mut socket = dial(&gateway, &unique()).await;
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await["n"], 1);
    revokes_a_token(&gateway).await;
    let user = json!({"user_id": ALICE, "issued_before": token::now() + 1});
    let refused = api(&gateway, "POST", "revocations", &user).await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (503, &json!("unavailable"))
    );
    assert!(socket.ping().await.is_empty(), "it is not revoked");

    let lacks = "revocations of users and of the whole tenant are refused";
    let told = warned(&gateway, lacks).await;
    assert!(
        told.contains("refuses scripts (EVAL: ") && told.contains("grant +@scripting"),
        "{told}"
    );
    assert!(
        !told.contains("history") && !told.contains("presence"),
        "{told}"
    );
    gateway.replica().logged(lacks).await;
    let found = findings(&gateway.config);
    is(&found, ("redis eval@", "scripts"), "warn", lacks);

    let () = redis
        .command(&["ACL", "SETUSER", "eval", "+@scripting"])
        .await;
    let answer = api(&gateway, "POST", "revocations", &user).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
    is(
        &findings(&gateway.config),
        ("redis eval@", "scripts"),
        "ok",
        "they run",
    );
}

/// Waits until `/readyz` has a warning about the tenant with this text; the replica is ready.
async fn warned(gateway: &Gateway, text: &str) -> String {
    eventually(PATIENCE, "the warning", async || {
        let seen = gateway.readyz().await;
        let tenant = format!("tenant {}", gateway.tenant().name);
        let told = seen.json()["warnings"][&tenant].to_string();
        match seen.status == 200 && told.contains(text) {
            true => Ok(told),
            false => Err(seen),
        }
    })
    .await
}

#[tokio::test]
async fn without_scripts_histories_and_presence_are_refused_and_told() {
    let redis = server(&[EVAL]).await;
    let gateway = with_login(&redis, EVAL).with_toml(GROUPS).start().await;
    let told = warned(&gateway, "events of groups with a history are refused").await;
    assert!(told.contains("presence is not kept"), "{told}");
    let found = findings(&gateway.config);
    is(
        &found,
        ("redis eval@", "scripts"),
        "fail",
        "events of groups with a history",
    );

    let mut socket = dial(&gateway, &unique()).await;
    let event = json!({"type": "x", "n": 1});
    let refused = api(&gateway, "POST", "groups/chat_lobby/send", &event).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    for path in ["history", "presence"] {
        let path = format!("groups/chat_lobby/{path}");
        let refused = api(&gateway, "GET", &path, &Value::Null).await;
        assert_eq!(refused.status, 503, "{path}: {refused:?}");
    }
    // What a back end publishes as ever still arrives.
    let publisher = Publisher::new(&redis, &gateway.tenant().prefix).await;
    let event = json!({"type": "x", "n": 2});
    assert_eq!(publisher.send("chat_lobby", &event).await, 1);
    assert_eq!(socket.next_json().await["n"], 2);

    drop(socket);
    let grant = ["ACL", "SETUSER", "eval", "+@scripting"];
    let () = redis.command(&grant).await;
    // A tenant that is served is looked at twice a minute.
    eventually(4 * PATIENCE, "nothing lacks any more", async || {
        let seen = gateway.readyz().await.json();
        match seen["warnings"] == json!({}) {
            true => Ok(()),
            false => Err(seen),
        }
    })
    .await;
    does_everything(&gateway).await;
}

/// The layer `core` is made of scripts.
#[tokio::test]
async fn without_scripts_the_layer_core_is_degraded_until_they_are_granted() {
    let redis = server(&[EVAL]).await;
    let gateway = with_login(&redis, EVAL)
        .with("layer.kind", "core")
        .spawn()
        .await;
    let why = "the layer core needs scripts, which Redis at";
    let tenant: &Tenant = gateway.tenant();
    eventually(PATIENCE, "the tenant is degraded", async || {
        let seen = gateway.readyz().await;
        let told = seen.json()["tenants"][&tenant.name].to_string();
        match told.contains(why) && seen.json()["degraded"] == 1 {
            true => Ok(()),
            false => Err(seen),
        }
    })
    .await;
    let line = gateway.replica().logged(why).await;
    assert!(
        line.contains("The tenant cannot be served") && line.contains("EVAL: "),
        "{line}"
    );
    let dial = || {
        gateway
            .replica()
            .dial(tenant, CHAT)
            .token(&tenant.token(ALICE))
    };
    Problem::new(503, "unavailable").is(&dial().refused().await, &tenant.name);
    let found = findings(&gateway.config);
    is(
        &found,
        ("redis eval@", "scripts"),
        "fail",
        "the layer core delivers nothing",
    );

    let () = redis
        .command(&["ACL", "SETUSER", "eval", "+@scripting"])
        .await;
    eventually(PATIENCE, "the tenant is served", async || {
        dial().attempt().await.map(drop)
    })
    .await;
    gateway.replica().logged("The tenant is served again").await;
}

/// Managed servers do not say NOPERM: they do not know the command.
#[tokio::test]
async fn a_command_that_the_server_does_not_know_is_as_one_that_it_refuses() {
    let mut options = Vec::new();
    for command in [
        "CONFIG", "ROLE", "CLIENT", "FUNCTION", "EVAL", "EVALSHA", "SCRIPT",
    ] {
        options.extend(["--rename-command", command, ""]);
    }
    let redis = RedisServer::with(&options).await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let told = warned(&gateway, "revocations of users").await;
    assert!(told.contains("unknown command"), "{told}");
    revokes_a_token(&gateway).await;
    let found = findings(&gateway.config);
    for (check, verdict, detail) in [
        ("scripts", "warn", "unknown command"),
        ("role", "ok", "master"),
        ("persistence", "note", "unknown"),
    ] {
        is(&found, ("redis 127.0.0.1:", check), verdict, detail);
    }
}
