//! Hostile messages on the channels of commands and answers, from a writer that has access to Redis. Each message that is
//! not valid is counted, all of them make one log line, and a healthy socket receives an event after each.

use serde_json::{Value, json};

use super::values::Healthy;
use crate::support::database::{ALICE, BOB};
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway};
use crate::tenants::registry::Store;

const TOLD: &str = "Ignored a message on the tenant's control channel";

async fn one() -> (RedisServer, Gateway) {
    // Of its own: the channels of the deployment are everybody's on one Redis.
    let redis = RedisServer::start().await;
    let acme = gateway().redis(&redis.url()).tenant("acme");
    let gateway = acme.users(&Database::sqlite().await).start().await;
    (redis, gateway)
}

async fn publish(redis: &RedisServer, channel: &str, payload: &[u8]) -> u64 {
    let mut link = redis.connection().await.unwrap();
    let mut command = ::redis::cmd("PUBLISH");
    command.arg(channel).arg(payload);
    command.query_async(&mut link).await.unwrap()
}

/// A command of version 1.
fn op(op: &str, members: Value) -> Vec<u8> {
    let mut command = json!({"v": 1, "op": op});
    for (name, value) in members.as_object().unwrap() {
        command[name] = value.clone();
    }
    command.to_string().into_bytes()
}

/// None of these is a command; most would close alice's sockets if it were taken for one.
fn no_commands() -> Vec<Vec<u8>> {
    let good = op("disconnect", json!({"user_id": ALICE}));
    let text = |text: &str| text.as_bytes().to_vec();
    let mut rows = vec![
        text(""),
        text(" "),
        text("null"),
        text("1"),
        text("\"disconnect\""),
        text("[1,\"disconnect\",null,null,null,\"1\"]"),
        text("{"),
        good[..good.len() - 1].to_vec(),
        [&good[..], b"x"].concat(),
        [&good[..], &good[..]].concat(),
        [b"\xef\xbb\xbf", &good[..]].concat(),
        good.iter().map(|byte| byte ^ 0x80).collect(),
        text("{\"v\":1,\"op\":\"disconnect\",\"user_id\":\"\\ud800\"}"),
        text("{\"v\":1.0,\"op\":\"disconnect\",\"user_id\":\"1\"}"),
        text("{\"v\":\"1\",\"op\":\"disconnect\",\"user_id\":\"1\"}"),
        text("{\"v\":true,\"op\":\"disconnect\",\"user_id\":\"1\"}"),
        text("{\"op\":\"disconnect\",\"user_id\":\"1\"}"),
        text("{\"v\":1,\"v\":1,\"op\":\"disconnect\",\"user_id\":\"1\"}"),
        text("{\"v\":2,\"op\":\"disconnect\",\"user_id\":\"1\"}"),
        text("{\"v\":1,\"user_id\":\"1\"}"),
        text("{\"v\":1,\"op\":\"Disconnect\",\"user_id\":\"1\"}"),
        text("{\"v\":1,\"op\":\"\",\"user_id\":\"1\"}"),
        text("{\"v\":1,\"op\":\"revoke\",\"issued_before\":1e400}"),
        text("{\"v\":1,\"op\":\"revoke\",\"issued_before\":NaN}"),
        op("reload", json!({})),
    ];
    for members in [
        json!({}),
        json!({"user_id": null}),
        json!({"user_id": 1.5}),
        json!({"user_id": [ALICE]}),
        json!({"user_id": ALICE, "code": 999}),
        json!({"user_id": ALICE, "code": 1006}),
        json!({"user_id": ALICE, "channel": null}),
        json!({"user_id": ALICE, "code": 5000}),
        json!({"user_id": ALICE, "code": 70_000}),
        json!({"user_id": ALICE, "code": -1}),
        json!({"user_id": ALICE, "code": "4000"}),
        json!({"user_id": ALICE, "reason": "x".repeat(124)}),
        json!({"user_id": ALICE, "reason": 1}),
        json!({"user_id": ALICE, "id": 1}),
        json!({"user_id": ALICE, "reply": {}}),
    ] {
        rows.push(op("disconnect", members));
    }
    for members in [
        json!({}),
        json!({"jti": 1}),
        json!({"jti": "a", "user_id": ALICE, "issued_before": 1}),
        json!({"user_id": ALICE}),
        json!({"user_id": ALICE, "issued_before": "9999999999"}),
        json!({"issued_before": null}),
        // A null that counted as absent reached the whole tenant.
        json!({"user_id": null, "issued_before": 9_999_999_999_u64}),
        json!({"jti": null, "issued_before": 9_999_999_999_u64}),
        json!({"jti": null, "user_id": ALICE, "issued_before": 9_999_999_999_u64}),
        json!({"issued_before": [9_999_999_999_u64]}),
    ] {
        rows.push(op("revoke", members));
    }
    for members in [
        json!({"user_id": ALICE}),
        json!({"user_id": ALICE, "event": null}),
        json!({"user_id": ALICE, "event": []}),
        json!({"user_id": ALICE, "event": "{\"type\":\"x\"}"}),
        json!({"event": {"type": "x"}}),
    ] {
        rows.push(op("send", members));
    }
    rows.push(op("invalidate", json!({})));
    rows.push(op("list", json!({"limit": -1})));
    rows.push(op("list", json!({"group": 1})));
    rows.push(op("list", json!({"group": null})));
    rows
}

#[tokio::test]
async fn what_is_no_command_is_counted_told_once_and_does_nothing() {
    let (redis, gateway) = one().await;
    is_no_command(&redis, &gateway).await;
}

#[tokio::test]
async fn what_is_no_command_does_nothing_to_a_tenant_of_the_registry() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let acme = gateway().redis(&redis.url()).tenant("acme");
    let gateway = store.holds(acme).start().await;
    is_no_command(&redis, &gateway).await;
}

/// The healthy socket keeps a tenant of the registry made.
async fn is_no_command(redis: &RedisServer, gateway: &Gateway) {
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::on(gateway, redis).await;
    let channel = tenant.redis_key("control");
    let labels = [("tenant", tenant.name.as_str()), ("cause", "not_decoded")];
    for (number, payload) in no_commands().iter().enumerate() {
        let shown = payload.escape_ascii().to_string();
        let shown = &shown[..shown.len().min(120)];
        assert_eq!(publish(redis, &channel, payload).await, 1, "{shown}");
        println!("{shown}");
        let expected = number as f64 + 1.0;
        let counted = replica.metric("lockgate_events_dropped_total", &labels, |n| n >= expected);
        assert_eq!(counted.await, expected, "{shown}");
        healthy.hears(shown).await;
    }
    assert_eq!(gateway.output().matches(TOLD).count(), 1);
    // Odd, and commands all the same: a later version may say more, and a number is a user's key as a back end has it.
    let dial = replica.dial(tenant, "/ws/chat/den/");
    let mut bob = dial.token(&tenant.token(BOB)).open().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let more =
        format!(r#"{{"v":1,"more":{deep},"op":"disconnect","user_id":2,"code":4321,"reason":""}}"#);
    publish(redis, &channel, more.as_bytes()).await;
    assert_eq!(bob.closed().await, (4321, String::new()));
    healthy.hears("a command").await;
    assert_eq!(
        replica
            .metrics()
            .await
            .value("lockgate_events_dropped_total", &labels),
        no_commands().len() as f64
    );
}

/// Answers without a question are dropped, and a forged answer does not change the number of replicas.
#[tokio::test]
async fn the_channels_of_the_deployment_take_no_orders_but_reload() {
    let (redis, gateway) = one().await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::on(&gateway, &redis).await;
    let replies: Vec<String> = redis
        .command(&["PUBSUB", "CHANNELS", "lockgate::reply:*"])
        .await;
    let [reply] = replies.as_slice() else {
        panic!("{replies:?}")
    };
    let forged = json!({"v": 1, "id": "x", "replica": "another", "closed": 99, "connections": 99});
    let mut payloads = no_commands();
    payloads.push(forged.to_string().into_bytes());
    payloads.push(op("suspend", json!({})));
    payloads.push(op("disconnect", json!({"user_id": ALICE})));
    payloads.push(op("revoke", json!({"issued_before": 9_999_999_999_u64})));
    let mut ignored = 0.0;
    for payload in &payloads {
        // A file that is read again changes nothing here, but is not what this is about.
        if *payload == op("reload", json!({})) {
            continue;
        }
        for channel in ["lockgate::control", reply] {
            assert_eq!(publish(&redis, channel, payload).await, 1, "{channel}");
        }
        ignored += 1.0;
        healthy.hears(&payload.escape_ascii().to_string()).await;
    }
    let told = "Ignored a message on the deployment's control channel";
    replica.logged(told).await;
    // Only the first one showed, in the log.
    let labels = [("tenant", "_none"), ("cause", "not_decoded")];
    replica
        .metric("lockgate_events_dropped_total", &labels, |n| n == ignored)
        .await;
    assert_eq!(gateway.output().matches(told).count(), 1);
    let path = format!("/v1/tenants/{}/connections", tenant.name);
    let list = replica.api(&gateway.api_key, "GET", &path, "").await.json();
    assert_eq!(
        (&list["connections"], &list["replicas"]["expected"]),
        (&json!(1), &json!(1))
    );
    // And a reload is carried out all the same.
    publish(&redis, "lockgate::control", &op("reload", json!({}))).await;
    eventually(PATIENCE, "the configuration is read again", async || {
        let output = gateway.output();
        if output.contains("Applied the configuration") {
            Ok(())
        } else {
            Err(output.len())
        }
    })
    .await;
    healthy.hears("a reload").await;
}
