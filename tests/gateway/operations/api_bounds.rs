//! The bounds of the management API: long answers, events that cannot be carried, numbers, rates, and keys of calls.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::database::{ALICE, BOB};
use crate::support::http::{Response, request};
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";
const OWN_KEY: &str = "acmes-own-key-which-is-long-enough";

async fn call(gateway: &Gateway, method: &str, path: &str, body: &str) -> Response {
    let path = path.replace("TENANT", &gateway.tenant().name);
    let replica = gateway.replicas.last().unwrap();
    replica.api(&gateway.api_key, method, &path, body).await
}

/// 600 sockets with paths of 15.6 KB on another replica used to make `connections` answer 0 with that replica `missing`: the
/// answer was longer than what a link carries.
#[tokio::test]
async fn sockets_with_long_paths_are_listed_page_by_page() {
    const SOCKETS: usize = 600;
    let gateway = gateway()
        .replicas(2)
        // A debug build on a busy machine takes its time.
        .set("api.timeout", "10s")
        // The sockets do not answer pings.
        .set("server.heartbeat.interval", "24h")
        .set("server.heartbeat.timeout", "1h")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .route("path = \"ws/any/<path:rest>\"\ngroups = [\"all\"]")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let path = format!("/ws/any/{}", "x".repeat(15_600));
    let token = tenant.token(ALICE);
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(replica.dial(tenant, &path).token(&token).open().await);
    }
    for list in ["connections", "groups/all"] {
        let (mut channels, mut after, mut pages) = (BTreeSet::new(), String::new(), 0);
        loop {
            let asked = format!("/v1/tenants/TENANT/{list}?limit=1000{after}");
            let page = call(&gateway, "GET", &asked, "").await.json();
            assert_eq!(page["connections"], SOCKETS, "{}", page["replicas"]);
            assert_eq!(page["replicas"]["missing"], json!([]), "{list}");
            for socket in page["sockets"].as_array().unwrap() {
                assert_eq!(socket["path"], *path, "{list}");
                let channel = socket["channel"].as_str().unwrap().to_owned();
                assert!(channels.insert(channel), "listed twice");
            }
            pages += 1;
            match page["cursor"].as_str() {
                Some(cursor) => after = format!("&cursor={cursor}"),
                None => break,
            }
        }
        println!("{list}: {pages} pages");
        assert_eq!(channels.len(), SOCKETS);
    }
}

/// It used to answer `published: 1`, and no replica read it.
#[tokio::test]
async fn an_event_that_no_replica_would_read_is_refused() {
    // A debug build takes its time for 50,000 numbers.
    let gateway = gateway()
        .set("api.timeout", "10s")
        .tenant("acme")
        .start()
        .await;
    let mut socket = gateway.open(CHAT).await;
    let event = |numbers: usize| format!("{{\"type\":\"x\",\"n\":[{}1]}}", "1e15,".repeat(numbers));
    let path = "/v1/tenants/TENANT/users/1/send";
    let refused = call(&gateway, "POST", path, &event(200_000)).await;
    assert_eq!(refused.status, 413, "{refused:?}");
    assert_eq!(refused.json()["code"], "event_too_large");
    let sent = call(&gateway, "POST", path, &event(50_000)).await;
    assert_eq!(sent.status, 200, "{sent:?}");
    assert_eq!(sent.json()["replicas"]["missing"], json!([]), "{sent:?}");
    assert_eq!(sent.json()["delivered"], 1, "{sent:?}");
    let heard = socket.next_json().await;
    assert_eq!(heard["n"].as_array().map(Vec::len), Some(50_001));
}

/// It was 400 on the calls that take no body, as if a small one would have been too large too.
#[tokio::test]
async fn a_body_over_the_bound_is_413_on_every_call() {
    let gateway = gateway().tenant("acme").start().await;
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(1024 * 1024));
    for (method, path) in [
        ("POST", "/v1/tenants/TENANT/suspend"),
        ("POST", "/v1/tenants/TENANT/resume"),
        ("POST", "/v1/tenants/TENANT/users/1/invalidate"),
        ("POST", "/v1/tenants/TENANT/users/1/groups/g"),
        ("DELETE", "/v1/tenants/TENANT/users/1/groups/g"),
        ("POST", "/v1/reload"),
        ("DELETE", "/v1/tenants/TENANT"),
        ("POST", "/v1/tenants/TENANT/users/1/disconnect"),
    ] {
        let refused = call(&gateway, method, path, &body).await;
        assert_eq!(refused.status, 413, "{method} {path}: {refused:?}");
        assert_eq!(refused.json()["code"], "body_too_large", "{method} {path}");
    }
}

/// Each took a thread of the runtime for as long as it was read and written.
#[tokio::test]
async fn events_of_many_numbers_arrive_whole_while_others_are_served() {
    const NUMBERS: usize = 50_000;
    let gateway = gateway()
        .tenant("acme")
        .tenant("other")
        // It pings without pause.
        .with("limits.messages_per_second", 0)
        .start()
        .await;
    let mut socket = gateway.open(CHAT).await;
    let other = gateway.named("other");
    let dial = gateway.replica().dial(other, CHAT);
    let mut neighbour = dial.token(&other.token(ALICE)).open().await;
    let event = format!("{{\"type\":\"x\",\"n\":[{}1]}}", "1e15,".repeat(NUMBERS));
    let path = "/v1/tenants/TENANT/groups/chat_lobby/send";
    let calls = (0..4).map(|_| call(&gateway, "POST", path, &event));
    let mut calls = std::pin::pin!(futures_util::future::join_all(calls));
    let answers = loop {
        tokio::select! {
            answers = &mut calls => break answers,
            _ = neighbour.ping() => {}
        }
    };
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{answers:?}"
    );
    for _ in answers {
        let heard = socket.next_json().await;
        assert_eq!(heard["n"].as_array().map(Vec::len), Some(NUMBERS + 1));
        neighbour.ping().await;
    }
}

/// `{"jti":"x","exp":9e18}` used to be 503, with an ERROR in the log.
#[tokio::test]
async fn a_number_out_of_range_is_the_callers_mistake() {
    let gateway = gateway().tenant("acme").start().await;
    let revocations = "/v1/tenants/TENANT/revocations";
    let disconnect = "/v1/tenants/TENANT/users/1/disconnect";
    for (path, body) in [
        (revocations, r#"{"jti":"x","exp":9e18}"#),
        (revocations, r#"{"jti":"x","exp":9223372036854775807}"#),
        (revocations, r#"{"jti":"x","exp":253402300800}"#),
        (revocations, r#"{"jti":"x","exp":-1}"#),
        (revocations, r#"{"jti":"x","exp":-1e300}"#),
        (revocations, r#"{"jti":"x","exp":1e400}"#),
        (revocations, r#"{"jti":"x","exp":NaN}"#),
        (revocations, r#"{"jti":"x","exp":"NaN"}"#),
        (revocations, r#"{"jti":"x","exp":true}"#),
        (revocations, r#"{"user_id":"1","issued_before":9e18}"#),
        (revocations, r#"{"user_id":"1","issued_before":-1}"#),
        (
            revocations,
            r#"{"user_id":"1","issued_before":1767225600000}"#,
        ),
        (revocations, r#"{"issued_before":1e308}"#),
        (revocations, r#"{"issued_before":"1"}"#),
        (disconnect, r#"{"code":-1}"#),
        (disconnect, r#"{"code":4000.5}"#),
        (disconnect, r#"{"code":1e3}"#),
        (disconnect, r#"{"code":65536}"#),
        (disconnect, r#"{"code":9e18}"#),
        (disconnect, r#"{"code":"4000"}"#),
    ] {
        let answer = call(&gateway, "POST", path, body).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(
            answer.json()["detail"]
                .as_str()
                .is_some_and(|d| d.len() > 20)
        );
    }
    for list in ["/v1/tenants", "/v1/tenants/TENANT/connections"] {
        for limit in [
            "-1",
            "0",
            "1001",
            "1.5",
            "1e2",
            "NaN",
            "99999999999999999999",
            "",
        ] {
            let path = format!("{list}?limit={limit}");
            let answer = call(&gateway, "GET", &path, "").await;
            assert_eq!(answer.status, 400, "{path}: {answer:?}");
        }
    }
    // The end of time is one all the same, and so is a fraction; a token may say what it likes.
    let mut claims = crate::support::token::access(ALICE);
    claims["exp"] = json!(9e18);
    let token = gateway.tenant().sign(&claims);
    for body in [
        r#"{"jti":"x","exp":253402300799}"#.to_owned(),
        r#"{"jti":"x","exp":1.5}"#.to_owned(),
        json!({"token": token}).to_string(),
    ] {
        let answer = call(&gateway, "POST", revocations, &body).await;
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
    }
    assert!(!gateway.output().contains("ERROR"), "{}", gateway.output());
}

/// Bodies of these calls used to be ignored, so that one meant for another call did something else.
#[tokio::test]
async fn a_call_that_takes_no_body_refuses_one() {
    let gateway = gateway().tenant("acme").start().await;
    let of_tenant = ["users/1/invalidate", "suspend", "resume"];
    let of_tenant = of_tenant.map(|end| format!("/v1/tenants/TENANT/{end}"));
    for path in of_tenant.iter().map(String::as_str).chain(["/v1/reload"]) {
        for body in [r#"{"user_id":"1"}"#, "[]", "{", "x"] {
            let answer = call(&gateway, "POST", path, body).await;
            assert_eq!(answer.status, 400, "{path} {body}: {answer:?}");
        }
        for body in ["", "{}", " {} ", "null"] {
            let answer = call(&gateway, "POST", path, body).await;
            assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
        }
    }
}

/// There used to be no bound: a back end in a loop took the processor from all sockets.
#[tokio::test]
async fn a_key_makes_as_many_calls_as_it_may_and_still_revokes() {
    let gateway = gateway()
        .tenant("acme")
        .with("api_keys", vec![OWN_KEY])
        .with("limits.api_calls_per_second", 3)
        .tenant("other")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let path = |end: &str| format!("/v1/tenants/{}/{end}", tenant.name);
    let send = path("groups/chat_lobby/send");
    let calls = (0..30).map(|_| replica.api(OWN_KEY, "POST", &send, r#"{"type":"x"}"#));
    let answers = futures_util::future::join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter(|a| a.status == 429).collect();
    let served = answers.iter().filter(|a| a.status == 200).count();
    assert_eq!(served + refused.len(), 30);
    assert!(served >= 6 && refused.len() >= 10, "{served} were served");
    for answer in refused {
        assert_eq!(answer.json()["code"], "rate_limited");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    // The flood takes nothing from a revocation, nor from operators.
    let body = json!({"user_id": BOB}).to_string();
    let revocations = path("revocations");
    let revoked = replica.api(OWN_KEY, "POST", &revocations, &body);
    assert_eq!(revoked.await.status, 200);
    assert_eq!(call(&gateway, "GET", "/v1/tenants", "").await.status, 200);
    let labels = [("tenant", &*tenant.name), ("limit", "api_calls_per_second")];
    let metrics = replica.metrics().await;
    assert!(metrics.value("lockgate_rate_limited_total", &labels) >= 10.0);
}

/// Calls that wait for a Redis which stands still took every connection of the listener, so that no other tenant had an answer.
#[tokio::test]
async fn the_calls_of_a_tenant_whose_redis_stands_still_leave_room_for_others() {
    const CALLS: usize = 600;
    let own = RedisServer::start().await;
    let gateway = gateway()
        .tenant("acme")
        .with("api_keys", vec![OWN_KEY])
        .with("layer.hosts", vec![own.url()])
        .with("limits.api_calls_per_second", 0)
        .tenant("other")
        .start()
        .await;
    let (replica, other) = (gateway.replica(), gateway.named("other"));
    let send = |name: &str| format!("/v1/tenants/{name}/groups/chat_lobby/send");
    let (slow, quick) = (send(&gateway.tenant().name), send(&other.name));
    own.freeze();
    let calls = (0..CALLS).map(|_| replica.api(OWN_KEY, "POST", &slow, r#"{"type":"x"}"#));
    let mut calls = std::pin::pin!(futures_util::future::join_all(calls));
    let answered = async {
        // Some of the calls are refused at once, and those that wait do not keep this one out.
        for _ in 0..3 {
            let answer = replica.api(&gateway.api_key, "POST", &quick, r#"{"type":"x"}"#);
            assert_eq!(answer.await.status, 200);
        }
    };
    let mut answered = std::pin::pin!(answered);
    let mut is_answered = false;
    let answers = loop {
        tokio::select! {
            answers = &mut calls => break answers,
            () = &mut answered, if !is_answered => {
                is_answered = true;
                own.thaw();
            }
        }
    };
    assert!(is_answered);
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    assert!((1..CALLS).contains(&refused), "{refused} of {CALLS}");
}

/// The key of a call used to be free after 30 s, and a batch on a Redis that stands still takes longer; and a client that went
/// away left half of its batch published.
#[tokio::test]
async fn a_key_is_held_as_long_as_its_call_runs() {
    let (redis, layer) = (RedisServer::start().await, RedisServer::start().await);
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("layer.hosts", vec![layer.url()])
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let message = json!({"group": "chat_lobby", "event": {"type": "x"}});
    let messages = vec![message; 1000];
    let body = json!({"messages": messages}).to_string();
    let path = format!("/v1/tenants/{}/send", tenant.name);
    let bearer = format!("Bearer {}", gateway.api_key);
    let again = async || {
        let headers = [("Authorization", &*bearer), ("Idempotency-Key", "k")];
        request(replica.api, "POST", &path, &headers, &body).await
    };
    layer.freeze();
    let mut client = TcpStream::connect(replica.api).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nIdempotency-Key: k\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let key = tenant.redis_key("idem:k");
    let left = async || redis.command::<i64>(&["PTTL", &key]).await;
    let (mut least, deadline) = (i64::MAX, Duration::from_secs(20));
    eventually(deadline, "the key is held for longer", async || {
        let now = left().await;
        let was_renewed = least < now - 1000;
        if now > 0 {
            least = least.min(now);
        }
        if was_renewed { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(again().await.json()["code"], "idempotency_key_in_use");
    // The client goes away; the call does not.
    drop(client);
    layer.thaw();
    let done = eventually(4 * PATIENCE, "the answer of the call", async || {
        let answer = again().await;
        match answer.status {
            200 => Ok(answer.json()),
            _ => Err(answer),
        }
    })
    .await;
    assert_eq!(done["results"].as_array().map(Vec::len), Some(1000));
    let kept: i64 = redis
        .command(&["ZCARD", &tenant.redis_key("answers:long")])
        .await;
    assert_eq!(kept, 1);
}
