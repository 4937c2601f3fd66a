//! Which frames are refreshes, on every kind of route; what the others and bad ones do.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    CHAT, CHAT_ROUTE, ECHO, ECHO_ROUTE, claims, counted, error, open, refresh, refreshed,
    refreshing, request,
};
use crate::support::database::ALICE;
use crate::support::socket::Socket;
use crate::support::{PATIENCE, RedisServer, gateway, token, unique, within};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

/// No consumer sees the frame: an echo does not come back, a group hears nothing, a worker is not told.
#[tokio::test]
async fn on_every_kind_of_route_the_consumer_never_sees_the_frame() {
    let redis = RedisServer::shared().await;
    let prefix = format!("acme-{}", unique());
    let worker =
        format!("path = 'ws/worker/'\nconsumer = {{ kind = 'worker', channel = '{prefix}.work' }}");
    let gateway = refreshing()
        .with("layer.prefix", prefix.as_str())
        .route("path = 'ws/said/'\ngroups = ['said']\nconsumer = { kind = 'broadcast', type = 'said' }")
        .route("path = 'ws/strict/'\nconsumer = { kind = 'listen', on_frame = 'close' }")
        .route(&worker)
        .start()
        .await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut working = client.get_async_pubsub().await.unwrap();
    working.subscribe(format!("{prefix}.work")).await.unwrap();
    let mut working = working.into_on_message();
    let mut told = async || -> Vec<u8> {
        let message = within(PATIENCE, "a message to the worker", working.next()).await;
        message.unwrap().get_payload().unwrap()
    };

    let mut listener = gateway.open("/ws/said/").await;
    for (round, path) in [CHAT, ECHO, "/ws/said/", "/ws/strict/", "/ws/worker/"]
        .iter()
        .enumerate()
    {
        let mut socket = gateway.open(path).await;
        refreshed(&mut socket, gateway.tenant(), &token::access(ALICE)).await;
        assert!(socket.ping().await.is_empty(), "{path}");
        assert_eq!(counted(&gateway, "refreshed").await, (round + 1) as f64);
        match *path {
            ECHO => {
                socket.send_text("hello").await;
                assert_eq!(socket.next_text().await, "hello");
            }
            "/ws/said/" => {
                socket.send_text(r#"{"n":1}"#).await;
                assert_eq!(socket.next_json().await, json!({"n": 1}));
                assert_eq!(listener.next_json().await, json!({"n": 1}));
            }
            "/ws/worker/" => {
                socket.send_text("to the worker").await;
                let has = |message: &[u8], text: &str| {
                    message
                        .windows(text.len())
                        .any(|part| part == text.as_bytes())
                };
                assert!(has(&told().await, "websocket.connect"));
                let next = told().await;
                assert!(has(&next, "websocket.receive") && has(&next, "to the worker"));
            }
            _ => {}
        }
    }
    assert!(listener.ping().await.is_empty());
}

/// The setting is looked up at each such frame, so a reload switches it on for open sockets too.
#[tokio::test]
async fn without_the_setting_the_frame_is_the_consumers_until_a_reload_switches_it_on() {
    let gateway = gateway()
        .tenant("acme")
        .route(CHAT_ROUTE)
        .route(ECHO_ROUTE)
        .start()
        .await;
    let mut socket = gateway.open(ECHO).await;
    let new = token::access(ALICE);
    let text = request(&gateway.tenant().sign(&new));
    socket.send_text(&text).await;
    assert_eq!(socket.next_text().await, text);
    for (on, expected) in [(true, "refreshed"), (false, "echo"), (true, "refreshed")] {
        change(&gateway, |table| {
            let tenant = tenant_table(table, gateway.tenant());
            let token = tenant["token"].as_table_mut().unwrap();
            token.insert("refresh".into(), on.into());
        });
        hang_up(&gateway, APPLIED).await;
        match expected {
            "echo" => {
                socket.send_text(&text).await;
                assert_eq!(socket.next_text().await, text);
            }
            _ => refreshed(&mut socket, gateway.tenant(), &new).await,
        }
    }
}

#[tokio::test]
async fn a_bad_frame_is_answered_or_the_consumers_and_loses_nothing() {
    let gateway = refreshing()
        .with("limits.message_size", "2MiB")
        .with("limits.messages_per_second", 0)
        .start()
        .await;
    let long = "x".repeat(1024 * 1024);
    let not_valid = |check: &str| Some(error("token_not_valid", json!({"check": check})));
    let missing = || Some(error("token_missing", json!({})));
    let refresh = "lockgate.refresh";
    let cases: Vec<(String, Option<Value>)> = vec![
        (json!({"type": refresh}).to_string(), missing()),
        (
            json!({"type": refresh, "token": null}).to_string(),
            missing(),
        ),
        (json!({"type": refresh, "token": ""}).to_string(), missing()),
        (
            json!({"type": refresh, "token": 7}).to_string(),
            not_valid("format"),
        ),
        (
            json!({"type": refresh, "token": ["a.b.c"]}).to_string(),
            not_valid("format"),
        ),
        (
            json!({"type": refresh, "token": {"a": "b"}}).to_string(),
            not_valid("format"),
        ),
        (
            json!({"type": refresh, "token": "no token"}).to_string(),
            not_valid("format"),
        ),
        (
            json!({"type": refresh, "token": long}).to_string(),
            not_valid("size"),
        ),
        (
            r#"{"type":"lockgate.refresh","token":"a.b.c""#.to_owned(),
            None,
        ),
        (
            r#"{"type":"lockgate.refresh","token":"a.b.c"}{}"#.to_owned(),
            None,
        ),
        (
            json!({"type": "lockgate.refreshed", "token": "a.b.c"}).to_string(),
            None,
        ),
        (
            json!({"text": "lockgate.refresh", "token": "a.b.c"}).to_string(),
            None,
        ),
        (json!([refresh, "a.b.c"]).to_string(), None),
        (refresh.to_owned(), None),
    ];
    for (text, answer) in cases {
        // A socket for each, so that none is over the rate.
        let mut socket = gateway.open(ECHO).await;
        socket.send_text(&text).await;
        let shown = &text[..text.len().min(80)];
        match answer {
            Some(answer) => assert_eq!(socket.next_json().await, answer, "{shown}"),
            None => assert_eq!(socket.next_text().await, text, "{shown}"),
        }
        socket.send_text("still here").await;
        assert_eq!(socket.next_text().await, "still here", "{shown}");
    }
    let mut socket = gateway.open(ECHO).await;
    let frame = request(&gateway.tenant().token(ALICE));
    let binary = Message::binary(frame.into_bytes());
    socket.send(binary.clone()).await;
    assert_eq!(socket.next().await, binary);
    // A key more, and white space, change nothing.
    let token = gateway.tenant().token(ALICE);
    let text =
        format!(" {{ \"id\": [1, {{}}], \"token\": \"{token}\" ,\r\n\t\"type\": \"{refresh}\" }} ");
    socket.send_text(&text).await;
    assert_eq!(socket.next_json().await["type"], "lockgate.refreshed");
    assert!(!gateway.output().contains(&token), "a token was logged");
}

#[tokio::test]
async fn a_refresh_counts_in_the_budgets_of_messages() {
    let gateway = refreshing()
        .with("limits.message_size", "1KiB")
        .with("limits.messages_per_second", 2)
        .start()
        .await;
    let mut large = gateway.open(ECHO).await;
    large.send_text(&request(&"x".repeat(2000))).await;
    assert_eq!(large.closed().await.0, 1009);
    let mut many = gateway.open(ECHO).await;
    let text = request("no token");
    for _ in 0..100 {
        if !many.try_send(Message::text(text.as_str())).await {
            break;
        }
    }
    let (before, (code, reason)) = many.drained().await;
    assert_eq!(code, 4013, "{reason}");
    // Two seconds' worth.
    assert!(before.len() >= 4, "{before:?}");
}

/// Those that wait are served in order, and the consumer gets what came behind them afterwards.
#[tokio::test]
async fn several_at_once_are_served_in_order_and_more_are_refused_until_later() {
    let gateway = refreshing().start().await;
    let tenant = gateway.tenant();
    let mut socket = gateway.open(ECHO).await;
    let mut expected = Vec::new();
    for n in 0..20 {
        let mut claims = token::access(ALICE);
        claims["exp"] = (token::now() + 100 + n).into();
        socket.send_text(&request(&tenant.sign(&claims))).await;
        expected.push(json!({"type": "lockgate.refreshed", "expires_at": claims["exp"]}));
    }
    socket.send_text("behind").await;
    let over = error("rate_limited", json!({"retry_after_ms": 1000}));
    let (mut passed, mut refused) = (0, 0);
    for answer in expected {
        match socket.next_json().await {
            given if given == answer => passed += 1,
            given => {
                assert_eq!(given, over);
                refused += 1;
            }
        }
    }
    assert!(
        passed >= 5 && refused > 0,
        "{passed} passed, {refused} refused"
    );
    assert_eq!(socket.next_text().await, "behind");
    assert_eq!(counted(&gateway, "rate_limited").await, f64::from(refused));
    crate::support::eventually(PATIENCE, "a refresh passes again", async || {
        let answer = refresh(&mut socket, &tenant.token(ALICE)).await;
        match answer["type"] == "lockgate.refreshed" {
            true => Ok(()),
            false => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(answer)
            }
        }
    })
    .await;
}

/// The records of users are cached, so the change is announced.
#[tokio::test]
async fn the_consumer_sees_the_users_record_of_the_new_token() {
    let gateway = refreshing()
        .route(
            "path = 'ws/stamped/'\ngroups = ['stamped']\n\
             consumer = { kind = 'broadcast', type = 'said', stamp = ['user_id', 'username'] }",
        )
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut socket = open(&gateway, "/ws/stamped/", &claims("first", token::now())).await;
    let says = async |socket: &mut Socket, name: &str| {
        socket.send_text("{}").await;
        let expected = json!({"user_id": ALICE, "username": name});
        assert_eq!(socket.next_json().await, expected);
    };
    says(&mut socket, "alice").await;
    let rename = "UPDATE auth_user SET username = 'alicia' WHERE id = 1";
    tenant.database.execute(rename).await;
    let path = format!("/v1/tenants/{}/users/{ALICE}/invalidate", tenant.name);
    let replica = gateway.replica();
    let answer = replica.api(&gateway.api_key, "POST", &path, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // Until the refresh it is the record of the handshake.
    says(&mut socket, "alice").await;
    refreshed(&mut socket, tenant, &claims("second", token::now())).await;
    says(&mut socket, "alicia").await;
}
