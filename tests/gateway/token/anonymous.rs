//! `anonymous = true`: sockets without a token, and all that is about users and does not touch them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::gateway::Builder;
use crate::support::replica::LOCKGATE;
use crate::support::socket::{Dial, Socket};
use crate::support::worker::FakeWorker;
use crate::support::{
    Database, Gateway, PATIENCE, RedisServer, eventually, gateway, token, unique,
};

const OPEN: &str = "/ws/open/a/";
/// A route that lets anyone in, into the group of another that asks for a token.
const ROUTES: [&str; 2] = [
    "path = 'ws/open/<slug:room>/'\ngroups = ['room_{room}']\nanonymous = true\n\
     consumer = { kind = 'broadcast', type = 'said' }",
    "path = 'ws/room/<slug:room>/'\ngroups = ['room_{room}']",
];

/// A tenant whose ids are any text, so that no text stands for an anonymous socket.
fn open_house() -> Builder {
    let builder = gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .with("users.id_type", "text")
        .with("limits.connections_per_user", 1);
    ROUTES
        .iter()
        .fold(builder, |builder, route| builder.route(route))
}

fn dial(gateway: &Gateway, path: &str) -> Dial {
    gateway.replica().dial(gateway.tenant(), path)
}

async fn known(gateway: &Gateway, user: &str) -> Socket {
    dial(gateway, OPEN)
        .token(&gateway.tenant().token(user))
        .open()
        .await
}

async fn call(gateway: &Gateway, method: &str, path: &str, body: Value) -> Value {
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = gateway
        .replica()
        .api(&gateway.api_key, method, &path, &body)
        .await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_socket_without_a_token_is_open_and_a_bad_token_is_refused() {
    let gateway = open_house().start().await;
    let tenant = gateway.tenant();
    let mut stranger = dial(&gateway, OPEN).open().await;
    // An empty value is no token.
    let mut second = dial(&gateway, OPEN).query("token=").open().await;
    let mut alice = known(&gateway, "alice").await;
    stranger.send_text(r#"{"n":1,"user_id":"alice"}"#).await;
    for socket in [&mut stranger, &mut second, &mut alice] {
        assert_eq!(
            socket.next_json().await,
            json!({"n": 1, "user_id": "alice"})
        );
    }
    let mut expired = token::access("alice");
    expired["exp"] = (token::now() - 100).into();
    let mut revoked = token::access("alice");
    revoked["jti"] = unique().into();
    let body = json!({"jti": revoked["jti"], "exp": revoked["exp"]});
    call(&gateway, "POST", "revocations", body).await;
    for (token, code) in [
        ("undefined", "token_not_valid"),
        (&tenant.sign(&expired), "token_not_valid"),
        (&tenant.sign(&revoked), "token_revoked"),
    ] {
        let refused = dial(&gateway, OPEN).token(token).refused().await;
        Problem::new(401, code).is(&refused, &tenant.name);
    }
    let refused = dial(&gateway, "/ws/room/a/").refused().await;
    Problem::new(401, "token_missing").is(&refused, &tenant.name);
}

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
async fn revocations_pass_it_by_and_suspension_and_age_do_not() {
    let gateway = open_house().set("denylist.recheck", "1s").start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let mut claims = token::access("alice");
    claims["iat"] = (token::now() - 10).into();
    let token = gateway.tenant().sign(&claims);
    let mut alice = dial(&gateway, OPEN).token(&token).open().await;
    // It has no token that could have been issued before the cut-off.
    let body = json!({"issued_before": claims["iat"]});
    call(&gateway, "POST", "revocations", body).await;
    assert_eq!(alice.closed().await, (4501, "token_revoked".into()));
    // The recheck closes one that was not announced, and passes the other by.
    let claims = token::access("bob");
    let token = gateway.tenant().sign(&claims);
    let mut bob = dial(&gateway, OPEN).token(&token).open().await;
    let key = gateway
        .tenant()
        .redis_key(&format!("deny:jti:{}", claims["jti"].as_str().unwrap()));
    let redis = RedisServer::shared().await;
    let () = redis.command(&["SET", &key, "1", "EX", "600"]).await;
    assert_eq!(bob.closed().await, (4501, "token_revoked".into()));
    assert!(stranger.ping().await.is_empty());
    // A new one still opens under the cut-off.
    let mut late = dial(&gateway, OPEN).open().await;
    let body = call(&gateway, "POST", "suspend", Value::Null).await;
    assert_eq!(body["closed"], 2, "{body}");
    for socket in [&mut stranger, &mut late] {
        assert_eq!(socket.closed().await.0, 4016);
    }
    let refused = dial(&gateway, OPEN).refused().await;
    Problem::new(403, "tenant_suspended").is(&refused, &gateway.tenant().name);
}

#[tokio::test]
async fn an_old_one_closes_like_any_other() {
    let gateway = open_house().set("server.max_age", "2s").start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let (code, reason) = stranger.closed().await;
    assert_eq!(code, 1012);
    assert!(reason.starts_with("max_age"), "{reason}");
}

#[tokio::test]
async fn the_tenants_budget_counts_it_and_the_users_does_not() {
    for excess in ["refuse", "replace"] {
        let gateway = open_house()
            .with("limits.on_excess", excess)
            .with("limits.connections", 4)
            .start()
            .await;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(dial(&gateway, OPEN).open().await);
        }
        open.push(known(&gateway, "alice").await);
        let refused = dial(&gateway, OPEN).refused().await;
        Problem::new(429, "too_many_connections").is(&refused, &gateway.tenant().name);
        for socket in &mut open {
            assert!(socket.ping().await.is_empty(), "{excess}");
        }
    }
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
async fn it_cannot_become_a_user_by_a_refresh() {
    let gateway = open_house().with("token.refresh", true).start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    for token in [gateway.tenant().token("alice"), "undefined".to_owned()] {
        let request = json!({"type": "lockgate.refresh", "token": token});
        stranger.send_text(&request.to_string()).await;
        let expected = json!({"type": "lockgate.error", "code": "token_not_valid", "of": "lockgate.refresh", "check": "user_id"});
        assert_eq!(stranger.next_json().await, expected);
    }
    assert!(
        stranger.ping().await.is_empty(),
        "no consumer saw the frame"
    );
    let list = call(&gateway, "GET", "connections", Value::Null).await;
    assert_eq!(list["sockets"][0]["user_id"], Value::Null, "{list}");
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
async fn it_comes_back_to_what_it_missed() {
    let gateway = gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .with_toml("groups = [{ name = 'room_<slug:room>', history = { } }]")
        .route("path = 'ws/open/<slug:room>/'\ngroups = ['room_{room}']\nanonymous = true\nresume = true")
        .start()
        .await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let position = stranger.next_json().await["position"]
        .as_str()
        .unwrap()
        .to_owned();
    drop(stranger);
    for n in 0..2 {
        gateway.send("room_a", &json!({"type": "x", "n": n})).await;
    }
    let mut again = dial(&gateway, OPEN)
        .query(&format!("since={position}"))
        .open()
        .await;
    for n in 0..2 {
        assert_eq!(again.next_json().await["n"], n);
    }
}

#[tokio::test]
async fn a_statement_about_the_path_decides_for_it_too() {
    let gateway = gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .users(&Database::sqlite().await)
        .route(
            "path = 'ws/open/<slug:room>/'\ngroups = ['room_{room}']\nanonymous = true\n\
             authorize = \"SELECT 1 FROM auth_user WHERE username = :room\"",
        )
        .start()
        .await;
    let _stranger = dial(&gateway, "/ws/open/alice/").open().await;
    let refused = dial(&gateway, "/ws/open/nobody/").refused().await;
    Problem::new(403, "group_forbidden").is(&refused, &gateway.tenant().name);
}

#[tokio::test]
async fn explain_says_that_no_token_is_needed() {
    let gateway = open_house().start().await;
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
    assert_eq!(report("/ws/room/a/")["code"], "token_missing");
    let bad = report("/ws/open/a/?token=undefined");
    assert_eq!(
        (&bad["accepted"], &bad["code"]),
        (&json!(false), &json!("token_not_valid"))
    );
}
