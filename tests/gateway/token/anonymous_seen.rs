//! What back ends, members of its groups and workers see of a socket without a token.

use std::time::Duration;

use serde_json::{Value, json};

use super::anonymous::{OPEN, call, dial, known, open_house};
use crate::support::replica::LOCKGATE;
use crate::support::worker::FakeWorker;
use crate::support::{Database, PATIENCE, RedisServer, eventually, gateway, unique};

#[tokio::test]
async fn lists_show_it_without_a_user_and_no_id_of_a_user_finds_it() {
    let gateway = open_house().replicas(2).start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let mut alice = known(&gateway, "alice").await;
    let list = call(&gateway, "GET", "connections", Value::Null).await;
    let sockets = list["sockets"].as_array().unwrap();
    let mut users: Vec<&Value> = sockets.iter().map(|socket| &socket["user_id"]).collect();
    users.sort_by_key(|user| user.is_null());
    assert_eq!(users, [&json!("alice"), &Value::Null], "{list}");
    let output = std::process::Command::new(LOCKGATE)
        .args(["connections", "--tenant", &gateway.tenant().name])
        .args(["--url", &format!("http://{}", gateway.replica().api)])
        .args(["--api-key-file", &gateway.key_file.display().to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("-  ")), "{text}");
    for user in [
        "null",
        "None",
        "-",
        "AnonymousUser",
        "anonymous",
        "0",
        "%20",
        "alice",
    ] {
        let closed = call(
            &gateway,
            "POST",
            &format!("users/{user}/disconnect"),
            json!({}),
        )
        .await;
        assert_eq!(closed["closed"], u64::from(user == "alice"), "{user}");
        if user == "alice" {
            break;
        }
        let event = json!({"type": "x", "to": user});
        let sent = call(&gateway, "POST", &format!("users/{user}/send"), event).await;
        assert_eq!(sent["delivered"], 0, "{user}");
    }
    assert_eq!(alice.closed().await, (4508, "disconnected".into()));
    assert!(stranger.ping().await.is_empty());
}

#[tokio::test]
async fn back_ends_reach_it_by_its_channel_alone() {
    let gateway = open_house().replicas(2).start().await;
    let first = gateway.replica();
    let mut stranger = gateway.replicas[1]
        .dial(gateway.tenant(), OPEN)
        .open()
        .await;
    let list = eventually(PATIENCE, "both replicas answer", async || {
        let list = call(&gateway, "GET", "connections", Value::Null).await;
        match list["replicas"]["confirmed"] == 2 {
            true => Ok(list),
            false => Err(list),
        }
    })
    .await;
    let channel = list["sockets"][0]["channel"].as_str().unwrap();
    for user in ["null", "None", "anonymous"] {
        let path = format!("users/{user}/connections");
        let found = call(&gateway, "GET", &path, Value::Null).await;
        assert_eq!(found["connections"], 0, "{found}");
        for method in ["POST", "DELETE"] {
            let path = format!("users/{user}/groups/room_a");
            let changed = call(&gateway, method, &path, Value::Null).await;
            assert_eq!(changed["changed"], 0, "{user}: {changed}");
        }
    }
    let path = format!("connections/{channel}/groups/extra");
    assert_eq!(
        call(&gateway, "POST", &path, Value::Null).await["changed"],
        1
    );
    gateway.send("extra", &json!({"type": "x", "n": 1})).await;
    assert_eq!(stranger.next_json().await, json!({"n": 1}));
    assert_eq!(
        call(&gateway, "DELETE", &path, Value::Null).await["changed"],
        1
    );
    gateway.send("extra", &json!({"type": "x", "n": 2})).await;
    gateway.send("room_a", &json!({"type": "x", "n": 3})).await;
    assert_eq!(stranger.next_json().await, json!({"n": 3}));

    let path = format!("connections/{channel}/disconnect");
    let body = json!({"code": 4321, "reason": "moved"});
    let closed = call(&gateway, "POST", &path, body).await;
    assert_eq!(closed["closed"], 1, "{closed}");
    assert_eq!(stranger.closed().await, (4321, "moved".into()));
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    eventually(PATIENCE, "it is gone", async || {
        let answer = first.api(&gateway.api_key, "POST", &path, "{}").await;
        let found = (answer.status, answer.json()["code"].clone());
        match found == (404, "connection_not_found".into()) {
            true => Ok(()),
            false => Err(found),
        }
    })
    .await;
}

#[tokio::test]
async fn members_are_not_told_of_it_and_it_is_told_of_them() {
    let rule = "groups = [{ name = 'room_<slug:room>', presence = { fields = ['user_id'], notify = true, linger = '1s' } }]";
    let gateway = open_house().with_toml(rule).start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let mut alice = known(&gateway, "alice").await;
    let told = |kind: &str, user: Value| json!({"type": format!("lockgate.{kind}"), "group": "room_a", "user": user});
    let joined = told("join", json!({"id": "alice", "user_id": "alice"}));
    assert_eq!(stranger.next_json().await, joined);
    assert_eq!(alice.next_json().await, joined);
    let _second = dial(&gateway, OPEN).open().await;
    eventually(PATIENCE, "alice alone is there", async || {
        let count = call(&gateway, "GET", "groups/room_a/presence/count", Value::Null).await;
        match count == json!({"sockets": 1, "users": 1}) {
            true => Ok(()),
            false => Err(count),
        }
    })
    .await;
    drop(alice);
    let left = told("leave", json!({"id": "alice"}));
    assert_eq!(
        stranger.next_json_within(Duration::from_secs(20)).await,
        left
    );
}

#[tokio::test]
async fn a_worker_is_told_that_there_is_no_user() {
    let channel = format!("told-{}", unique());
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("layer.serializer_format", "json")
        .route(&format!(
            "path = 'ws/open/'\nanonymous = true\nconsumer = {{ kind = 'worker', channel = '{channel}' }}"
        ))
        .start()
        .await;
    let mut worker = FakeWorker::on(RedisServer::shared().await, &channel).await;
    let mut stranger = dial(&gateway, "/ws/open/").open().await;
    let event = worker.next("websocket.connect").await;
    assert!(
        event.as_object().unwrap().contains_key("user") && event["user"].is_null(),
        "{event}"
    );
    stranger.send_text("x").await;
    let event = worker.next("websocket.receive").await;
    assert!(event["user"].is_null(), "{event}");
    let token = gateway.tenant().token("1");
    let _alice = dial(&gateway, "/ws/open/").token(&token).open().await;
    let event = worker.next("websocket.connect").await;
    assert_eq!(event["user"]["username"], "alice", "{event}");
}

#[tokio::test]
async fn explain_says_that_no_token_is_needed() {
    let gateway = open_house()
        .with("limits.anonymous_connections", 9)
        .start()
        .await;
    let report = |path: &str| -> Value {
        let output = std::process::Command::new(LOCKGATE)
            .args([
                "explain",
                "--json",
                "--path",
                path,
                "--host",
                &gateway.tenant().host,
            ])
            .arg("--config")
            .arg(&gateway.config)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let open = report(OPEN);
    assert_eq!(
        (&open["accepted"], &open["groups"]),
        (&json!(true), &json!(["room_a"]))
    );
    let steps = open["steps"].as_array().unwrap();
    let token = steps.iter().find(|step| step["name"] == "token").unwrap();
    assert_eq!(
        token["detail"],
        "none: the route is anonymous, and the socket has no user"
    );
    // A budget of users is none of its own.
    let budgets = steps.iter().find(|step| step["name"] == "budgets").unwrap();
    assert_eq!(
        (&budgets["verdict"], &budgets["value"]),
        (&json!("unknown"), &json!({"anonymous_connections": 9})),
        "{budgets}"
    );
    assert_eq!(report("/ws/room/a/")["code"], "token_missing");
    let bad = report("/ws/open/a/?token=undefined");
    assert_eq!(
        (&bad["accepted"], &bad["code"]),
        (&json!(false), &json!("token_not_valid"))
    );
}
