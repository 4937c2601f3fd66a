//! Hostile names of groups, types and paths. After each of them a healthy socket receives an event.

use serde_json::{Value, json};

use super::values::Healthy;
use crate::support::database::{ALICE, BOB};
use crate::support::http::{Response, request};
use crate::support::{Database, Gateway, RedisServer, gateway};

/// Texts that are not names of groups, percent-encoded.
const NO_NAMES: [(&str, &str); 19] = [
    ("a space", "%20"),
    ("a space within", "a%20b"),
    ("CR LF", "a%0D%0A"),
    ("a newline at the end", "a%0A"),
    ("NUL", "a%00"),
    ("a tab", "%09a"),
    ("all", "%2A"),
    ("any letter", "a%3F"),
    ("some letters", "%5Bab%5D"),
    ("a backslash", "a%5C"),
    ("a hash tag", "%7Ba%7D"),
    ("a channel", "specific.abc%21def"),
    ("an encoding of an encoding", "%252e"),
    ("a key of ours", "lockgate%3Aacme%3Acontrol"),
    ("a colon", "a%3Ab"),
    ("composed", "%C3%A9"),
    ("decomposed", "e%CC%81"),
    ("full width", "%EF%BC%A1"),
    ("Arabic digits", "%D9%A1"),
];

async fn three(route: &str) -> Gateway {
    gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n consumer = { kind = 'broadcast', type = 'chat' }")
        .route(route)
        .start()
        .await
}

async fn sent(gateway: &Gateway, path: &str, body: &str) -> Response {
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let replica = gateway.replica();
    replica.api(&gateway.api_key, "POST", &path, body).await
}

#[tokio::test]
async fn a_text_that_is_not_a_name_is_refused_everywhere_and_harms_no_socket() {
    let gateway = three("path = 'ws/any/<path:room>/'\n groups = ['{room}']").await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::open(&gateway).await;
    let counted = async |family: &str, label: (&str, &str)| {
        let labels = [("tenant", tenant.name.as_str()), label];
        replica.metrics().await.value(family, &labels)
    };
    let (long, longer) = ("a".repeat(100), "a".repeat(101));
    let lengths = [
        ("length: 100", long.as_str()),
        ("length: 101", longer.as_str()),
    ];
    for (row, name) in NO_NAMES.into_iter().chain(lengths) {
        let answer = sent(&gateway, &format!("groups/{name}/send"), r#"{"type":"x"}"#).await;
        let code = answer.json()["code"].clone();
        assert_eq!(
            (answer.status, code),
            (400, "group_name_not_valid".into()),
            "{row}"
        );
        // Django's `path` converter takes no newline, so no route matches.
        let word = match name.contains("%0A") {
            true => "route_not_found",
            false => "group_name_not_valid",
        };
        let result = ("result", word);
        let before = counted("lockgate_handshakes_total", result).await;
        let path = format!("/ws/any/{name}/");
        let dial = replica.dial(tenant, &path).token(&tenant.token(BOB));
        let refusal = dial.refused().await;
        assert_eq!(refusal.json()["code"], word, "{row}: {refusal:?}");
        let after = counted("lockgate_handshakes_total", result).await;
        assert_eq!(after, before + 1.0, "{row}");
        healthy.hears(row).await;
    }
    assert_eq!(
        counted("lockgate_events_total", ("source", "api")).await,
        0.0
    );
    // These are valid names, and their events reach no other group.
    let longest = "a".repeat(99);
    let strange = [
        "a",
        &longest,
        "asgi__group__x",
        "__group__",
        "__proto__",
        "constructor",
        "a..b",
        "...",
        "CHAT_LOBBY",
        "chat_lobby.",
        "-",
    ];
    for (number, name) in strange.into_iter().enumerate() {
        let path = format!("/ws/any/{name}/");
        let dial = replica.dial(tenant, &path).token(&tenant.token(BOB));
        let mut socket = dial.open().await;
        let event = json!({"type": "x", "n": number});
        let answer = sent(&gateway, &format!("groups/{name}/send"), &event.to_string()).await;
        assert_eq!(answer.json(), json!({"published": 1}), "{name}");
        assert_eq!(socket.next_json().await, json!({"n": number}), "{name}");
        healthy.hears(name).await;
    }
}

/// A batch answers for each bad name on its own.
#[tokio::test]
async fn a_batch_tells_its_bad_names_one_by_one_and_takes_no_other_types_for_names() {
    let gateway = three("path = 'unused/'\n groups = ['unused']").await;
    let mut healthy = Healthy::open(&gateway).await;
    for name in [
        json!(1),
        json!(null),
        json!(["chat_lobby"]),
        json!({"a": 1}),
        json!(true),
    ] {
        let body = json!({"messages": [{"group": name, "event": {"type": "x"}}]});
        let answer = sent(&gateway, "send", &body.to_string()).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &"body_not_valid".into())
        );
        healthy.hears("type of a name").await;
    }
    let names = ["", " ", "a\0", "chat_*", "{chat_lobby}", "a!b", "é"];
    let message = |name: &&str| json!({"group": name, "event": {"type": "x"}});
    let body = json!({"messages": names.iter().map(message).collect::<Vec<_>>()});
    let answer = sent(&gateway, "send", &body.to_string()).await;
    let answer = answer.json();
    let results = answer["results"].as_array().expect("a list");
    let codes: Vec<&Value> = results.iter().map(|result| &result["code"]).collect();
    assert_eq!(codes, vec!["group_name_not_valid"; names.len()]);
    healthy.hears("a batch").await;
}

/// A route that names a group twice joins it once, and each event of the group arrives once.
#[tokio::test]
async fn a_group_that_is_named_twice_is_joined_once() {
    let redis = RedisServer::shared().await;
    let gateway =
        three("path = 'ws/twice/<slug:room>/'\n groups = ['twin_{room}', 'twin_a']").await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut socket = gateway.open("/ws/twice/a/").await;
    let labels = [("tenant", tenant.name.as_str())];
    let metrics = replica.metrics().await;
    assert_eq!(metrics.value("lockgate_subscriptions", &labels), 1.0);
    let publisher = crate::support::Publisher::new(redis, &tenant.prefix).await;
    for n in 0..3 {
        publisher
            .send("twin_a", &json!({"type": "x", "n": n}))
            .await;
        assert_eq!(socket.next_json().await, json!({"n": n}));
    }
    drop(socket);
    replica
        .metric("lockgate_subscriptions", &labels, |n| n == 0.0)
        .await;
}

/// A client's frame becomes an event of the route's type, and its content gives no orders.
#[tokio::test]
async fn a_frame_cannot_name_its_type_nor_give_orders() {
    let gateway = three("path = 'unused/'\n groups = ['unused']").await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let open = async |user: &str| {
        let dial = replica.dial(tenant, "/ws/chat/den/");
        dial.token(&tenant.token(user)).open().await
    };
    let (mut sender, mut listener) = (open(ALICE).await, open(BOB).await);
    let mut healthy = Healthy::open(&gateway).await;
    for frame in [
        json!({"type": "websocket.close", "code": 4000, "n": 1}),
        json!({"type": "websocket.send", "text": "forged", "n": 2}),
        json!({"type": "lockgate.group_add", "group": "chat_lobby", "n": 3}),
        json!({"type": "lockgate.gap", "n": 4}),
        json!({"__asgi_channel__": "x!y", "__asgi_group__": {"a": 1}, "__epoch": 1, "__offset": 2, "n": 5}),
        json!({"type": 1, "n": 6}),
        json!({"type": {"type": "websocket.close"}, "n": 7}),
    ] {
        sender.send_text(&frame.to_string()).await;
        let mut expected = frame.clone();
        let own = |key: &String| key == "type" || key.starts_with("__");
        expected.as_object_mut().unwrap().retain(|key, _| !own(key));
        for socket in [&mut sender, &mut listener] {
            assert_eq!(socket.next_json().await, expected, "{frame}");
        }
        healthy.hears(&frame.to_string()).await;
    }
    // An order that is sent to a group is not carried out but counted.
    let order = json!({"type": "lockgate.group_add", "group": "chat_lobby"}).to_string();
    sent(&gateway, "groups/chat_den/send", &order).await;
    let labels = [("tenant", tenant.name.as_str()), ("cause", "not_valid")];
    replica
        .metric("lockgate_events_dropped_total", &labels, |n| n == 1.0)
        .await;
    healthy.hears("an order through a group").await;
    assert!(sender.ping().await.is_empty());
    assert!(listener.ping().await.is_empty());
}

/// Each listener has its own paths and methods, and none has CORS.
#[tokio::test]
async fn every_listener_keeps_to_its_paths_and_methods() {
    let gateway = three("path = 'unused/'\n groups = ['unused']").await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::open(&gateway).await;
    let bearer = format!("Bearer {}", gateway.api_key);
    let suspend = format!("/v1/tenants/{}/suspend", tenant.name);
    let send = format!("/v1/tenants/{}/groups/chat_lobby/send", tenant.name);
    let key = ("Authorization", bearer.as_str());
    let preflight = [
        ("Origin", "https://evil.test"),
        ("Access-Control-Request-Method", "POST"),
    ];
    let (server, admin, api) = (replica.server, replica.admin, replica.api);
    let rows = vec![
        (
            "metrics and probes",
            server,
            "GET",
            "/metrics",
            vec![key],
            404,
        ),
        ("metrics and probes", server, "GET", "/livez", vec![], 404),
        ("metrics and probes", api, "GET", "/metrics", vec![key], 404),
        ("metrics and probes", api, "GET", "/metrics", vec![], 401),
        (
            "other listener",
            server,
            "GET",
            "/v1/tenants",
            vec![key],
            404,
        ),
        (
            "other listener",
            server,
            "GET",
            "/openapi.json",
            vec![],
            404,
        ),
        (
            "other listener",
            admin,
            "GET",
            "/v1/tenants",
            vec![key],
            404,
        ),
        ("other listener", admin, "GET", "/debug/pprof/", vec![], 404),
        ("other listener", admin, "GET", "/", vec![], 404),
        ("other listener", api, "GET", "/debug", vec![key], 404),
        ("other listener", api, "GET", "/admin", vec![key], 404),
        (
            "CORS",
            server,
            "OPTIONS",
            "/ws/chat/lobby/",
            preflight.into(),
            404,
        ),
        ("CORS", admin, "OPTIONS", "/metrics", preflight.into(), 405),
        ("CORS", api, "OPTIONS", &send, preflight.into(), 401),
        (
            "CORS",
            api,
            "OPTIONS",
            &send,
            [vec![key], preflight.into()].concat(),
            405,
        ),
        ("method", admin, "HEAD", "/livez", vec![], 200),
        ("method", admin, "HEAD", "/readyz", vec![], 200),
        ("method", admin, "OPTIONS", "/livez", vec![], 405),
        ("method", admin, "POST", "/readyz", vec![], 405),
        ("method", admin, "DELETE", "/metrics", vec![], 405),
        (
            "method override",
            api,
            "GET",
            &suspend,
            vec![key, ("X-HTTP-Method-Override", "POST")],
            405,
        ),
        (
            "method override",
            api,
            "GET",
            &suspend,
            vec![key, ("X-HTTP-Method", "POST")],
            405,
        ),
        (
            "method override",
            api,
            "GET",
            &suspend,
            vec![key, ("X-Method-Override", "POST")],
            405,
        ),
    ];
    for (row, listener, method, path, headers, status) in rows {
        let answer = request(listener, method, path, &headers, "").await;
        assert_eq!(answer.status, status, "{row} {method} {path}: {answer:?}");
        let cors = |(name, _): &&(String, String)| name.starts_with("access-control-");
        assert_eq!(answer.headers.iter().find(cors), None, "{row} {path}");
        if method == "HEAD" {
            assert_eq!(answer.body, "", "{row} {path}");
        }
        healthy.hears(row).await;
    }
    let override_in_query = format!("{suspend}?_method=POST");
    let answer = request(api, "GET", &override_in_query, &[key], "").await;
    assert_eq!(answer.status, 405);
    healthy.hears("method override").await;
}

/// The input of a call is neither in the answer nor in the log.
#[tokio::test]
async fn no_answer_and_no_log_line_echoes_what_may_be_a_secret() {
    const CANARY: &str = "canary-0123456789-0123456789-0123456789";
    let gateway = three("path = 'unused/'\n groups = ['unused']").await;
    let api = gateway.replica().api;
    let mut healthy = Healthy::open(&gateway).await;
    let tenant = format!("/v1/tenants/{}", gateway.tenant().name);
    let (own, wrong) = (
        format!("Bearer {}", gateway.api_key),
        format!("Bearer {CANARY}"),
    );
    let body = |key: &str| json!({key: CANARY}).to_string();
    let token = json!({"token": format!("{CANARY}.{CANARY}.{CANARY}")}).to_string();
    let event = format!(r#"{{"type":"x","secret":"{CANARY}""#);
    for (key, path, body) in [
        (&wrong, format!("{tenant}/send"), body("x")),
        (&wrong, format!("{tenant}/send?key={CANARY}"), body("x")),
        (&own, format!("{tenant}/send"), body("messages")),
        (&own, format!("{tenant}/send"), body(CANARY)),
        (
            &own,
            format!("{tenant}/groups/a%20{CANARY}/send"),
            r#"{"type":"x"}"#.to_owned(),
        ),
        (&own, format!("{tenant}/groups/g/send"), event),
        (&own, format!("{tenant}/revocations"), body("jti")),
        (&own, format!("{tenant}/revocations"), token),
        (&own, format!("{tenant}/users/1/disconnect"), body("code")),
        (&own, format!("/v1/tenants/{CANARY}/send"), body("x")),
        (&own, format!("/v1/{CANARY}"), body("x")),
    ] {
        let answer = request(api, "POST", &path, &[("Authorization", key)], &body).await;
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        assert!(
            !format!("{answer:?}").contains(CANARY),
            "{path}: {answer:?}"
        );
        healthy.hears(&path).await;
    }
    assert!(!gateway.output().contains(CANARY));
    assert!(!gateway.replica().metrics().await.text().contains(CANARY));
}

/// A thousand calls at once are answered with 200 or 429, and the refused ones are counted.
#[tokio::test]
async fn a_thousand_calls_at_once_meet_the_limit_and_nothing_else() {
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("limits.publishes_per_second", 50)
        .start()
        .await;
    let mut healthy = Healthy::open(&gateway).await;
    let calls = (0..1_000).map(|_| sent(&gateway, "groups/other/send", r#"{"type":"x"}"#));
    let answers = futures_util::future::join_all(calls).await;
    let count = |status: u16| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    let (sent, refused) = (count(200), count(429));
    let other = { answers.iter() }.find(|answer| ![200, 429].contains(&answer.status));
    assert_eq!(sent + refused, 1_000, "{other:?}");
    assert!(sent >= 100 && refused > 0, "{sent} sent, {refused} refused");
    let late = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert_eq!(late.json()["code"], "rate_limited");
    assert!(late.header("retry-after").is_some());
    let labels = [
        ("tenant", gateway.tenant().name.as_str()),
        ("limit", "publishes_per_second"),
    ];
    let metrics = gateway.replica().metrics().await;
    assert_eq!(
        metrics.value("lockgate_rate_limited_total", &labels),
        refused as f64
    );
    healthy.hears("a thousand calls").await;
}
