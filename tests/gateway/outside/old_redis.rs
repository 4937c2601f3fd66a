//! Redis before 6.2: it has no `EXAT`, no `MINID` and no functions, and 5, the oldest that is supported, no users either.

use serde_json::{Value, json};

use crate::operations::doctor::{doctor, findings, is};
use crate::support::database::{ALICE, BOB};
use crate::support::http::Response;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway, token, unique};

/// Events are so short-lived that some are too old while others come; the number of events alone removes none.
const GROUPS: &str = "groups = [{ name = 'chat_<slug:room>', history = { size = 1000, ttl = '1s' }, presence = {} }]";

/// A deployment of which no replica runs yet.
async fn deployment(url: &str, kind: &str) -> Gateway {
    let builder = gateway().redis(url).tenant("acme");
    let builder = builder.with("layer.kind", kind).with_toml(GROUPS);
    builder.write().await
}

/// Starts two replicas.
async fn start(gateway: &mut Gateway) {
    for _ in 0..2 {
        gateway.add_replica().await;
    }
    for replica in &gateway.replicas {
        replica.ready().await;
    }
}

async fn api(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Response {
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let replica = gateway.replica();
    replica
        .api(&gateway.api_key, method, &path, &body.to_string())
        .await
}

/// Opens a socket on the second replica, in a room, with a token of this `jti`.
async fn enter(gateway: &Gateway, room: &str, user: &str, jti: &str) -> Socket {
    let tenant = gateway.tenant();
    let mut claims = token::access(user);
    claims["jti"] = jti.into();
    let dial = gateway.replicas[1].dial(tenant, &format!("/ws/chat/{room}/"));
    dial.token(&tenant.sign(&claims)).open().await
}

/// The number of events that Redis keeps of the room `old`.
async fn kept(redis: &RedisServer, gateway: &Gateway) -> u64 {
    let pattern = gateway.tenant().redis_key("history:*old*");
    let keys: Vec<String> = redis.command(&["KEYS", &pattern]).await;
    for key in keys {
        let kind: String = redis.command(&["TYPE", &key]).await;
        if kind == "stream" {
            return redis.command(&["XLEN", &key]).await;
        }
    }
    0
}

/// Before: XTRIM with MINID failed after the event was stored, so that it was not published.
async fn old_events_go_while_new_ones_come(redis: &RedisServer, gateway: &Gateway) {
    let mut sent = 0;
    eventually(PATIENCE, "the end of old events", async || {
        let event = json!({"type": "x", "n": sent});
        gateway.send("chat_old", &event).await;
        sent += 1;
        let kept = kept(redis, gateway).await;
        // Each fourth event looks for old ones.
        if 0 < kept && kept + 4 < sent {
            Ok(())
        } else {
            Err((kept, sent))
        }
    })
    .await;
}

/// Before: each was 503, since SET with EXAT came with Redis 6.2.
async fn revocations_of_each_kind_close_sockets(redis: &RedisServer, gateway: &Gateway) {
    let before = token::now() + 1;
    let (one, user, all) = (unique(), unique(), unique());
    let mut sockets = Vec::new();
    for (person, jti) in [(ALICE, &one), (ALICE, &user), (BOB, &all)] {
        sockets.push(enter(gateway, "lobby", person, jti).await);
    }
    for ((body, key), socket) in [
        (
            json!({"jti": one, "exp": token::now() + 300}),
            format!("deny:jti:{one}"),
        ),
        (
            json!({"user_id": ALICE, "issued_before": before}),
            format!("deny:user:{ALICE}"),
        ),
        (json!({"issued_before": before}), "deny:all".to_owned()),
    ]
    .into_iter()
    .zip(&mut sockets)
    {
        let answer = api(gateway, "POST", "revocations", &body).await;
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
        assert_eq!(
            socket.closed().await,
            (4501, "token_revoked".into()),
            "{body}"
        );
        let left: i64 = redis
            .command(&["TTL", &gateway.tenant().redis_key(&key)])
            .await;
        assert!(left > 60, "{key} lives for {left} s");
    }
}

/// Everything that the gateway keeps in Redis works, on each layer.
async fn does_everything(redis: &RedisServer, gateway: &Gateway) {
    let mut alice = enter(gateway, "lobby", ALICE, &unique()).await;
    let event = json!({"type": "x", "n": 1});
    gateway.send("chat_lobby", &event).await;
    assert_eq!(alice.next_json().await["n"], 1);
    let count = "groups/chat_lobby/presence/count";
    eventually(PATIENCE, "the presence", async || {
        let answer = api(gateway, "GET", count, &Value::Null).await;
        match answer.status == 200 && answer.json() == json!({"sockets": 1, "users": 1}) {
            true => Ok(()),
            false => Err(answer),
        }
    })
    .await;
    drop(alice);
    old_events_go_while_new_ones_come(redis, gateway).await;
    revocations_of_each_kind_close_sockets(redis, gateway).await;

    assert_eq!(gateway.readyz().await.json()["warnings"], json!({}));
    let found = findings(&gateway.config);
    for (check, verdict, detail) in [
        ("version", "note", "its ACL rules know no channels"),
        ("scripts", "ok", "they run"),
        ("role", "ok", "master"),
    ] {
        is(&found, ("redis ", check), verdict, detail);
    }
    assert_eq!(found["ok"], true, "{found}");
}

#[tokio::test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "its package is for x86_64 alone"
)]
async fn a_redis_5_serves_events_histories_presence_and_revocations() {
    let redis = RedisServer::old("5.0.6").await;
    for kind in ["pubsub", "core"] {
        let mut gateway = deployment(&redis.url(), kind).await;
        start(&mut gateway).await;
        does_everything(&redis, &gateway).await;
    }
}

/// With the line of `doctor --acl`, less the rules for channels.
#[tokio::test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "its package is for x86_64 alone"
)]
async fn a_redis_6_0_serves_the_same_to_a_user_whose_rules_know_no_channels() {
    let redis = RedisServer::old("6.0.9").await;
    for kind in ["pubsub", "core"] {
        let url = format!("redis://lockgate:hunter2@{}/0", redis.endpoint());
        let mut gateway = deployment(&url, kind).await;
        let printed = doctor(&gateway.config, &["--acl", "--json"]);
        let printed: Value = serde_json::from_str(&printed.text).unwrap();
        let line = printed["users"][0]["line"].as_str().unwrap();
        let line = line.replace(">PASSWORD", ">hunter2");
        let knows = |word: &&str| !word.starts_with('&') && *word != "resetchannels";
        let words: Vec<_> = line.split(' ').filter(knows).collect();
        let () = redis.command(&words).await;
        start(&mut gateway).await;
        does_everything(&redis, &gateway).await;
    }
}
