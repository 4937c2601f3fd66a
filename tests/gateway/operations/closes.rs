//! The words by which metrics and log tell why a socket closed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::gateway;

const CHAT: &str = "/ws/chat/lobby/";

/// A text or the code 4508 in the call made the close one of `other`. 1012 made it one of a drain, and a client's own 1008 was
/// counted as a message that did not come in time. No log line had the word.
#[tokio::test]
async fn a_close_is_counted_and_logged_by_the_word_of_what_has_happened() {
    let gateway = gateway()
        .set("log.level", "debug")
        .tenant("acme")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let path = format!("/v1/tenants/{}/users/1/disconnect", tenant.name);
    for (body, closed) in [
        (json!({}), (4508, "disconnected")),
        (json!({"reason": "canary"}), (4508, "canary")),
        (json!({"code": 4508}), (4508, "disconnected")),
        (json!({"code": 1012}), (1012, "disconnected")),
        (json!({"code": 1000, "reason": "canary"}), (1000, "canary")),
    ] {
        let mut socket = gateway.open(CHAT).await;
        let body = body.to_string();
        let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
        assert_eq!(answer.json()["closed"], 1, "{body}");
        assert_eq!(socket.closed().await, (closed.0, closed.1.to_owned()));
    }
    for code in [1008, 1012, 4321] {
        let mut socket = gateway.open(CHAT).await;
        socket.close(code, "canary").await;
        assert_eq!(socket.closed().await.0, code);
    }
    let expected = [
        ("code=1000 reason=normal", 1.0),
        ("code=4508 reason=disconnected", 3.0),
        ("code=other reason=other", 4.0),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(labels, n)| (labels.to_owned(), n)).into();
    let of_tenant = ("tenant", &*tenant.name);
    replica
        .metric("lockgate_disconnects_total", &[of_tenant], |n| n == 8.0)
        .await;
    let counted = replica.metrics().await;
    assert_eq!(
        counted.of("lockgate_disconnects_total", of_tenant),
        expected
    );

    let printed = gateway.output();
    let lines = printed
        .lines()
        .filter(|line| line.contains("Closed a connection"));
    let lines: Vec<Value> = lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["close.code"].clone(), line["close.reason"].clone()))
        .collect();
    let word = |code: u16, word: &str| (json!(code), json!(word));
    let expected = [
        word(4508, "disconnected"),
        word(4508, "disconnected"),
        word(4508, "disconnected"),
        word(1012, "other"),
        word(1000, "normal"),
        word(1008, "other"),
        word(1012, "other"),
        word(4321, "other"),
    ];
    assert_eq!(told, expected);
    assert!(!printed.contains("canary"), "texts are not for the log");
}
