//! Tenants come, change and go by the API, on all three kinds of databases.

use serde_json::json;

use super::*;
use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};

/// Two replicas that know each other, on a Redis without others: every replica of a Redis is of one deployment.
async fn two(store: &Store, redis: &RedisServer) -> Gateway {
    let gateway = store
        .gateway()
        .redis(&redis.url())
        .replicas(2)
        .start()
        .await;
    gateway.know_each_other().await;
    gateway
}

fn everybody() -> Value {
    json!({"expected": 2, "confirmed": 2, "missing": []})
}

async fn comes_changes_and_goes(store: &Store) {
    let redis = RedisServer::start().await;
    let gateway = two(store, &redis).await;
    let [first, second] = [&gateway.replicas[0], &gateway.replicas[1]];
    let mut of_file = gateway.open(CHAT).await;
    let (acme, mut document) = registered("acme").await;
    let unknown = second.dial(&acme, CHAT).token(&acme.token(ALICE));
    assert_eq!(unknown.refused().await.status, 404);

    let made = call_with(&gateway, "PUT", &acme, ("If-None-Match", "*"), &document).await;
    assert_eq!((made.status, made.header("etag")), (201, Some("\"1\"")));
    assert_eq!(made.json()["replicas"], everybody());
    // The answer has come, so both replicas serve it.
    let mut alice = second
        .dial(&acme, CHAT)
        .token(&acme.token(ALICE))
        .open()
        .await;
    let mut bob = first.dial(&acme, CHAT).token(&acme.token(BOB)).open().await;
    let again = call_with(&gateway, "PUT", &acme, ("If-None-Match", "*"), &document).await;
    assert_eq!(again.status, 412, "{again:?}");

    let shown = call(&gateway, "GET", &acme, &Value::Null).await;
    assert!(!shown.body.contains(&acme.key), "{shown:?}");
    assert_eq!(shown.header("etag"), Some("\"1\""));
    let mut view = shown.json();
    assert_eq!(
        (&view["state"], &view["connections"]),
        (&json!("served"), &json!(2))
    );
    // What was shown can be put again: the key stays.
    let mut shown = view["config"].take();
    assert_eq!(shown["token"]["signing_key"], json!({"set": true}));
    shown["limits"] = json!({"connections": 2, "message_size": "10B"});
    let changed = call_with(&gateway, "PUT", &acme, ("If-Match", "\"1\""), &shown).await;
    assert_eq!(
        (changed.status, changed.header("etag")),
        (200, Some("\"2\""))
    );
    let stale = ("If-Match", "\"1\", W/\"2\"");
    let stale = call_with(&gateway, "PUT", &acme, stale, &shown).await;
    assert_eq!(stale.status, 412);
    let full = second
        .dial(&acme, CHAT)
        .token(&acme.token(ALICE))
        .open()
        .await;
    let over = second
        .dial(&acme, CHAT)
        .token(&acme.token(ALICE))
        .refused()
        .await;
    assert_eq!(over.status, 429, "the new limit holds");
    drop(full);
    bob.send_text("more than ten bytes").await;
    assert_eq!(bob.closed().await.0, 1009);

    // A new key: open sockets stay, and old tokens are refused.
    document["token"]["signing_key"] = "another signing key of acme, only for tests".into();
    put(&gateway, &acme, &document).await;
    let old = first
        .dial(&acme, CHAT)
        .token(&acme.token(ALICE))
        .refused()
        .await;
    assert_eq!(old.status, 401);
    alice.ping().await;

    let deleted = call(&gateway, "DELETE", &acme, &Value::Null).await;
    assert_eq!(
        (deleted.status, &deleted.json()["replicas"]),
        (200, &everybody())
    );
    assert_eq!(alice.closed().await.0, 4017);
    let gone = second.dial(&acme, CHAT).token(&acme.token(ALICE));
    assert_eq!(gone.refused().await.status, 404);
    assert_eq!(call(&gateway, "GET", &acme, &Value::Null).await.status, 404);
    assert_eq!(
        call(&gateway, "DELETE", &acme, &Value::Null).await.status,
        404
    );
    of_file.ping().await;
    assert!(!gateway.output().contains(&acme.key));
}

#[tokio::test]
async fn a_tenant_comes_changes_and_goes_with_postgres() {
    comes_changes_and_goes(&Store::postgres().await).await;
}

#[tokio::test]
async fn a_tenant_comes_changes_and_goes_with_mariadb() {
    comes_changes_and_goes(&Store::mariadb().await).await;
}

#[tokio::test]
async fn a_tenant_comes_changes_and_goes_with_sqlite() {
    comes_changes_and_goes(&Store::sqlite()).await;
}

/// Returns the keys of the mistakes in an answer, sorted.
fn mistaken(refused: &Response) -> Vec<String> {
    let problem = refused.json();
    let mistakes = problem["mistakes"].as_array().into_iter().flatten();
    let keys = mistakes.map(|mistake| mistake["key"].as_str().unwrap().to_owned());
    let mut keys: Vec<_> = keys.collect();
    keys.sort();
    keys
}

/// Of two values the last one was stored, without a word.
#[tokio::test]
async fn a_document_that_repeats_a_key_is_refused_with_the_name_of_the_key() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    let rest = document.to_string();
    let rest = rest.strip_prefix('{').unwrap();
    let repeats = rest.replace(
        r#""users":{"#,
        r#""users":{"source":"claims","id_type":"text","id_type":"int","#,
    );
    let body = format!(r#"{{"hosts":["a.test"],{repeats}"#);
    let (replica, path) = (gateway.replica(), path(&acme));
    let refused = replica.api(&gateway.api_key, "PUT", &path, &body).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let expected = ["hosts", "users.id_type", "users.source"];
    assert_eq!(mistaken(&refused), expected, "{refused:?}");
    assert_eq!(call(&gateway, "GET", &acme, &Value::Null).await.status, 404);
}

#[tokio::test]
async fn a_document_with_mistakes_is_refused_with_all_of_them_and_changes_nothing() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let file = gateway.tenant();
    let mut wrong = document.clone();
    wrong["hosts"] = json!([]);
    wrong["token"]["signing_kye"] = "hunter2-hunter2-hunter2-hunter2".into();
    wrong["limits"] = json!({"connections": "many"});
    wrong["api_keys"] = json!([{"file": "/etc/passwd"}, {"set": true}]);
    let refused = call(&gateway, "PUT", &acme, &wrong).await;
    assert_eq!(refused.status, 422);
    assert!(!refused.body.contains("hunter2"), "{refused:?}");
    let expected = [
        "api_keys[0]",
        "api_keys[1]",
        "hosts",
        "limits.connections",
        "token.signing_kye",
    ];
    assert_eq!(mistaken(&refused), expected);
    // The form of hosts, and what another tenant has, used to be told once all other mistakes were mended.
    let others_host = json!([file.host]);
    for hosts in [json!(["bad host"]), others_host] {
        let mut wrong = document.clone();
        wrong["hosts"] = hosts;
        wrong["origins"] = json!(["nope"]);
        wrong["api_keys"] = json!([gateway.api_key]);
        let refused = call(&gateway, "PUT", &acme, &wrong).await;
        let expected = ["api_keys[0]", "hosts[0]", "origins[0]"];
        assert_eq!(mistaken(&refused), expected, "{refused:?}");
    }
    // What is right by itself may still be another tenant's.
    for (key, taken) in [
        ("hosts", json!([file.host])),
        ("layer", json!({"kind": "pubsub", "prefix": file.prefix})),
        ("api_keys", json!([gateway.api_key])),
    ] {
        let mut wrong = document.clone();
        wrong[key] = taken;
        let refused = call(&gateway, "PUT", &acme, &wrong).await;
        assert_eq!(refused.status, 422, "{key}: {refused:?}");
        assert!(!refused.body.contains(&gateway.api_key));
    }
    let of_file = call(&gateway, "PUT", file, &document).await;
    assert_eq!(of_file.status, 409);
    assert_eq!(
        call(&gateway, "DELETE", file, &Value::Null).await.status,
        409
    );
    let view = show(&gateway, file).await;
    assert_eq!(
        (&view["source"], &view["config"]),
        (&json!("file"), &Value::Null)
    );
    let bad = gateway
        .replica()
        .api(&gateway.api_key, "PUT", "/v1/tenants/No", "{}");
    assert_eq!(bad.await.status, 400);
    let dial = gateway.replica().dial(&acme, CHAT);
    dial.token(&acme.token(ALICE)).open().await;
    assert_eq!(show(&gateway, &acme).await["version"], 1);
}

#[tokio::test]
async fn a_tenants_own_key_opens_its_own_calls_and_none_of_these() {
    const OWN: &str = "acmes-own-key-which-is-long-enough";
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, mut document) = registered("acme").await;
    document["api_keys"] = json!([OWN]);
    put(&gateway, &acme, &document).await;
    let replica = gateway.replica();
    let own = format!("{}/connections", path(&acme));
    assert_eq!(replica.api(OWN, "GET", &own, "").await.status, 200);
    let other = format!("{}/connections", path(gateway.tenant()));
    assert_eq!(replica.api(OWN, "GET", &other, "").await.status, 403);
    for method in ["GET", "PUT", "DELETE"] {
        let body = if method == "PUT" { "{}" } else { "" };
        let answer = replica.api(OWN, method, &path(&acme), body).await;
        assert_eq!(answer.status, 403, "{method}");
    }
    call(&gateway, "DELETE", &acme, &Value::Null).await;
    let answer = replica.api(OWN, "GET", &own, "").await;
    assert_eq!(answer.status, 401, "its key is gone with it");
}

#[tokio::test]
async fn revocation_suspension_sends_and_a_reload_reach_a_tenant_of_the_registry() {
    let store = Store::sqlite();
    let redis = RedisServer::start().await;
    let gateway = two(&store, &redis).await;
    let (acme, document) = registered("acme").await;
    put(&gateway, &acme, &document).await;
    let second = &gateway.replicas[1];
    let post = async |what: &str, body: Value| {
        let path = format!("{}/{what}", path(&acme));
        let first = gateway.replica();
        let answer = first
            .api(&gateway.api_key, "POST", &path, &body.to_string())
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let mut alice = second
        .dial(&acme, CHAT)
        .token(&acme.token(ALICE))
        .open()
        .await;
    post("groups/chat_lobby/send", json!({"type": "x", "n": 1})).await;
    assert_eq!(alice.next_json().await, json!({"n": 1}));
    // The files are read again, and the tenants beside them stay.
    super::super::reload::hang_up(&gateway, super::super::reload::APPLIED).await;
    alice.ping().await;
    post("revocations", json!({"user_id": ALICE})).await;
    assert_eq!(alice.closed().await.0, 4501);
    let mut bob = second
        .dial(&acme, CHAT)
        .token(&acme.token(BOB))
        .open()
        .await;
    post("suspend", Value::Null).await;
    assert_eq!(bob.closed().await.0, 4016);
    assert_eq!(show(&gateway, &acme).await["state"], "suspended");
    // A change does not end a suspension.
    let mut changed = document.clone();
    changed["limits"] = json!({"connections": 5});
    put(&gateway, &acme, &changed).await;
    let refused = second
        .dial(&acme, CHAT)
        .token(&acme.token(BOB))
        .refused()
        .await;
    Problem::new(403, "tenant_suspended").is(&refused, &acme.name);
    post("resume", Value::Null).await;
    second
        .dial(&acme, CHAT)
        .token(&acme.token(BOB))
        .open()
        .await;
}

/// Before two changes were counted against each other, both were stored, and each replica served another tenant.
#[tokio::test]
async fn of_two_tenants_with_one_host_made_at_the_same_time_one_is_refused() {
    let store = Store::postgres().await;
    let redis = RedisServer::start().await;
    let gateway = two(&store, &redis).await;
    for _ in 0..5 {
        let (one, document) = registered("one").await;
        let (other, mut same) = registered("other").await;
        same["hosts"] = document["hosts"].clone();
        let put = async |replica: usize, tenant: &Tenant, document: &Value| {
            let replica = &gateway.replicas[replica];
            let body = document.to_string();
            replica
                .api(&gateway.api_key, "PUT", &path(tenant), &body)
                .await
        };
        let (first, second) = tokio::join!(put(0, &one, &document), put(1, &other, &same));
        let mut answers = [first.status, second.status];
        answers.sort_unstable();
        assert_eq!(answers, [201, 422], "{first:?} {second:?}");
    }
}

/// Sockets of the first one stayed, and got the events of its successor.
#[tokio::test]
async fn a_tenant_that_was_deleted_and_made_again_is_another_one() {
    let store = Store::sqlite();
    let gateway = store.gateway().start().await;
    let (acme, document) = registered("acme").await;
    let made = call(&gateway, "PUT", &acme, &document).await;
    let first = made.header("etag").unwrap().to_owned();
    let dial = || {
        let dial = gateway.replica().dial(&acme, CHAT);
        dial.token(&acme.token(ALICE))
    };
    let mut alice = dial().open().await;
    // As a replica finds it that was away between the end of the one and the beginning of the other.
    store.tamper(&acme, "made = made + 1").await;
    let (other, of_other) = registered("other").await;
    put(&gateway, &other, &of_other).await;
    assert_eq!(alice.closed().await.0, 4017);
    dial().open().await;

    call(&gateway, "DELETE", &acme, &Value::Null).await;
    put(&gateway, &acme, &document).await;
    let stale = call_with(&gateway, "PUT", &acme, ("If-Match", &first), &document).await;
    assert_eq!(stale.status, 412, "{stale:?}");
}
