//! `lockgate dev --replicas 2`: two replicas in one process, which share the memory that stands in for a Redis.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::dev_with;
use crate::support::PATIENCE;

#[tokio::test]
async fn events_cross_from_one_replica_to_the_other() {
    let dev = dev_with(&["--replicas", "2"]).await;
    let replicas = dev.ready["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 2);
    for (user, replica) in ["alice", "bob"].into_iter().zip(replicas) {
        let on = format!("ws://{}/", replica.as_str().unwrap());
        assert!(dev.url(user).starts_with(&on), "{user}: {replica}");
    }
    let mut alice = dev.open("alice").await;
    let mut bob = dev.open("bob").await;
    for (from, to, text) in [(0, 1, "to bob"), (1, 0, "to alice")] {
        let sockets = [&mut alice, &mut bob];
        sockets[from]
            .send_text(&json!({ "message": text }).to_string())
            .await;
        let [alice, bob] = sockets;
        for socket in [alice, bob] {
            assert_eq!(socket.next_json().await["message"], text, "{from} to {to}");
        }
    }
    let event = json!({"type": "chat.message", "message": "from a back end"});
    let path = "/v1/tenants/demo/groups/chat_lobby/send";
    assert_eq!(dev.call("POST", path, &event).await.status, 200);
    for socket in [&mut alice, &mut bob] {
        assert_eq!(socket.next_json().await["message"], "from a back end");
    }
}

/// The API is on the first replica, bob's socket on the second one.
#[tokio::test]
async fn revocations_and_suspensions_reach_both_replicas() {
    let dev = dev_with(&["--replicas", "2"]).await;
    let mut alice = dev.open("alice").await;
    let mut bob = dev.open("bob").await;
    let all = json!({"expected": 2, "confirmed": 2, "missing": []});
    let listed = dev
        .call("GET", "/v1/tenants/demo/connections", &Value::Null)
        .await;
    let listed = listed.json();
    assert_eq!(
        (&listed["connections"], &listed["replicas"]),
        (&json!(2), &all)
    );
    let (_, token) = dev.url("bob").split_once("?token=").unwrap();
    let revocation = json!({ "token": token });
    let revoked = dev
        .call("POST", "/v1/tenants/demo/revocations", &revocation)
        .await;
    assert_eq!(revoked.json(), json!({"closed": 1, "replicas": all}));
    assert_eq!(bob.closed().await, (4501, "token_revoked".to_owned()));
    let suspended = dev
        .call("POST", "/v1/tenants/demo/suspend", &Value::Null)
        .await;
    assert_eq!(suspended.json(), json!({"closed": 1, "replicas": all}));
    assert_eq!(alice.closed().await.0, 4016);
    let replica = dev.ready["replicas"][1].as_str().unwrap();
    let refused = crate::support::socket::Dial::new(replica.parse().unwrap(), replica, "/ws/echo/");
    assert_eq!(refused.refused().await.json()["code"], "tenant_suspended");
    let resumed = dev
        .call("POST", "/v1/tenants/demo/resume", &Value::Null)
        .await;
    assert_eq!(resumed.json()["replicas"], all);
    dev.open("alice").await;
}

#[tokio::test]
async fn a_signal_ends_all_replicas() {
    let dev = dev_with(&["--replicas", "3"]).await;
    let mut alice = dev.open("alice").await;
    let mut bob = dev.open("bob").await;
    dev.process.signal(Signal::TERM);
    for socket in [&mut alice, &mut bob] {
        assert_eq!(socket.closed().await.0, 1012);
    }
    assert_eq!(dev.process.exited(PATIENCE).await.code(), Some(0));
}
