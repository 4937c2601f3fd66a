//! The log has a line for each call of the API that changes something, with the key that made it and the status.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::database::ALICE;
use crate::support::{Gateway, PATIENCE, gateway};

const OWN_KEY: &str = "acmes-own-key-which-is-long-enough";
const JTI: &str = "a-token-id-that-no-line-has";

/// The name of a key in the log.
fn actor(owner: &str, key: &str) -> String {
    let digest = hex::encode(Sha256::digest(key.as_bytes()));
    format!("{owner} key {}", &digest[..8])
}

/// The lines of calls so far, without those that were not asked for.
fn lines(gateway: &Gateway) -> Vec<Value> {
    let output = gateway.output();
    let lines = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(is_of_a_call).collect()
}

fn is_of_a_call(line: &Value) -> bool {
    line["message"] == "A call of the API"
}

/// Makes the calls with both keys, and waits for the line of the last one.
async fn call_all(gateway: &Gateway) {
    let tenant = &gateway.tenant().name;
    let other = &gateway.named("other").name;
    let user = format!("/v1/tenants/{tenant}/users/{ALICE}");
    let event = json!({"type": "x"}).to_string();
    let revocations = format!("/v1/tenants/{tenant}/revocations");
    let of_token = json!({"jti": JTI, "exp": 4_102_444_800_u64}).to_string();
    let calls = [
        (OWN_KEY, "POST", format!("{user}/invalidate"), "", 200),
        (OWN_KEY, "POST", format!("{user}/disconnect"), "{}", 200),
        (OWN_KEY, "POST", format!("{user}/groups/room_7"), "", 200),
        (
            OWN_KEY,
            "POST",
            format!("/v1/tenants/{tenant}/groups/room_7/send"),
            event.as_str(),
            200,
        ),
        (OWN_KEY, "POST", revocations.clone(), of_token.as_str(), 200),
        (OWN_KEY, "GET", format!("{user}/connections"), "", 200),
        // It may not, and that is worth a line.
        (
            OWN_KEY,
            "POST",
            format!("/v1/tenants/{other}/users/{ALICE}/disconnect"),
            "{}",
            403,
        ),
    ];
    let replica = gateway.replica();
    for (key, method, path, body, status) in calls {
        let answer = replica.api(key, method, &path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
    let of_user = json!({"user_id": ALICE}).to_string();
    let key = &gateway.api_key;
    let answer = replica.api(key, "POST", &revocations, &of_user).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let last = actor("operator", key);
    let written = |line: &str| line.contains(&last).then_some(());
    replica
        .process
        .line("the last call", PATIENCE, written)
        .await;
}

/// A gateway that logs at this level, after the calls.
async fn called(level: &str) -> Gateway {
    let gateway = gateway()
        .set("log.level", level)
        .tenant("acme")
        .with("api_keys", vec![OWN_KEY])
        .tenant("other")
        .start()
        .await;
    call_all(&gateway).await;
    gateway
}

/// These fields of a line.
fn fields(line: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| line[*name].clone()).collect()
}

#[tokio::test]
async fn a_call_that_changes_something_has_a_line_with_its_key_and_its_status() {
    let gateway = called("info").await;
    let seen: Vec<_> = lines(&gateway)
        .iter()
        .map(|line| {
            let names = ["actor", "tenant.id", "call", "revoked", "user.id", "status"];
            fields(line, &names)
        })
        .collect();
    let (own, operator) = (
        actor("tenant", OWN_KEY),
        actor("operator", &gateway.api_key),
    );
    let (acme, other) = (&gateway.tenant().name, &gateway.named("other").name);
    let expected = [
        json!([own, acme, "invalidate", null, ALICE, 200]),
        json!([own, acme, "disconnect", null, ALICE, 200]),
        json!([own, acme, "revocations", "token", null, 200]),
        json!([own, other, "disconnect", null, ALICE, 403]),
        json!([operator, acme, "revocations", "user", ALICE, 200]),
    ];
    assert_eq!(seen, expected);
    let output = gateway.output();
    for secret in [OWN_KEY, &gateway.api_key, JTI] {
        assert!(!output.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn sends_and_changes_of_groups_have_lines_at_debug() {
    let gateway = called("info,lockgate::api=debug").await;
    let lines = lines(&gateway);
    let debug = lines.iter().filter(|line| line["level"] == "DEBUG");
    let seen: Vec<_> = debug
        .map(|line| fields(line, &["scope", "call", "group.name", "user.id"]))
        .collect();
    let expected = [
        json!(["groups", "POST", "room_7", ALICE]),
        json!(["send", "send", "room_7", null]),
    ];
    assert_eq!(seen, expected);
    assert_eq!(lines.len(), 7, "{lines:?}");
}
