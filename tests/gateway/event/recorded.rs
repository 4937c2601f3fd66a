//! Groups with a memory on every layer: what is sent by the API is recorded, and the API and the command line show it.

use serde_json::{Value, json};

use crate::support::database::ALICE;
use crate::support::http::request;
use crate::support::process::Program;
use crate::support::proxy::{Line, Proxy};
use crate::support::replica::LOCKGATE;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway};

const GROUPS: &str =
    "groups = [{ name = 'chat_quiet' }, { name = 'chat_<slug:room>', history = { size = 5 } }]";

async fn deployment(layer: &str, redis: &RedisServer) -> Gateway {
    let builder = gateway().tenant("acme").with_toml(GROUPS);
    match layer {
        "memory" => builder.with("layer.kind", layer).start().await,
        _ => {
            let builder = builder.redis(&redis.url()).with("layer.kind", layer);
            builder.replicas(2).start().await
        }
    }
}

async fn ask(gateway: &Gateway, method: &str, path: &str, body: &str) -> Value {
    let replica = gateway.replicas.last().expect("one runs");
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let answer = replica.api(&gateway.api_key, method, &path, body).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

/// What `lockgate history` prints.
async fn printed(gateway: &Gateway) -> String {
    let key = gateway.key_file.display().to_string();
    let url = format!("http://{}", gateway.replicas[0].api);
    let arguments = [
        "history",
        "--tenant",
        &gateway.tenant().name,
        "--group",
        "chat_lobby",
    ];
    let program = Program::new("lockgate history", LOCKGATE)
        .args(arguments)
        .args(["--url", &url, "--api-key-file", &key]);
    let process = program.start();
    assert!(process.exited(PATIENCE).await.success());
    eventually(PATIENCE, "the output", async || {
        let text = process.output.text();
        if text.is_empty() { Err(()) } else { Ok(text) }
    })
    .await
}

#[tokio::test]
async fn what_the_api_sends_is_recorded_and_listed_page_by_page() {
    let redis = RedisServer::start().await;
    for layer in ["memory", "pubsub", "core"] {
        let gateway = deployment(layer, &redis).await;
        let tenant = gateway.tenant();
        let dial = gateway.replicas[0].dial(tenant, "/ws/chat/lobby/");
        let mut socket = dial.token(&tenant.token(ALICE)).open().await;
        let event = |n: u32| json!({"type": "chat.message", "n": n});
        for n in 0..3 {
            ask(
                &gateway,
                "POST",
                "groups/chat_lobby/send",
                &event(n).to_string(),
            )
            .await;
        }
        let message = |n: u32| json!({"group": if n == 5 { "chat_quiet" } else { "chat_lobby" }, "event": event(n)});
        let batch = json!({"messages": (3..8).map(message).collect::<Vec<_>>()});
        let sent = ask(&gateway, "POST", "send", &batch.to_string()).await;
        assert_eq!(
            sent["results"],
            json!(vec![json!({"published": 1}); 5]),
            "{layer}"
        );
        for n in [0, 1, 2, 3, 4, 6, 7] {
            assert_eq!(socket.next_json().await["n"], n, "{layer}");
        }
        assert!(socket.ping().await.is_empty(), "{layer}: each came once");

        let list = async |query: &str| {
            ask(
                &gateway,
                "GET",
                &format!("groups/chat_lobby/history{query}"),
                "",
            )
            .await
        };
        let numbers = |page: &Value| -> Vec<(u64, u64)> {
            let events = page["events"].as_array().unwrap().iter();
            let number = |event: &Value| (event["offset"].as_u64(), event["event"]["n"].as_u64());
            events
                .map(number)
                .map(|(offset, n)| (offset.unwrap(), n.unwrap()))
                .collect()
        };
        let all = list("").await;
        assert_eq!(
            numbers(&all),
            [(3, 2), (4, 3), (5, 4), (6, 6), (7, 7)],
            "{layer}: {all}"
        );
        assert_eq!(
            (&all["complete"], &all["next"]),
            (&json!(false), &Value::Null)
        );
        let newest = all["position"].as_str().unwrap().to_owned();
        assert!(
            newest.starts_with("chat_lobby~") && newest.ends_with("~7"),
            "{newest}"
        );
        let at = |offset: u32| format!("{}~{offset}", newest.rsplit_once('~').unwrap().0);
        let page = list(&format!("?since={}&limit=2", at(3))).await;
        assert_eq!(numbers(&page), [(4, 3), (5, 4)]);
        assert_eq!(
            (&page["complete"], &page["next"]),
            (&json!(true), &json!(at(5)))
        );
        let rest = list(&format!("?since={}", at(5))).await;
        assert_eq!((numbers(&rest).len(), &rest["complete"]), (2, &json!(true)));
        assert_eq!(list(&format!("?since={}", at(1))).await["complete"], false);
        assert_eq!(list(&format!("?since={newest}")).await["complete"], true);
        assert_eq!(list(&format!("?since={}", at(8))).await["complete"], false);
        let other = list("?since=chat_lobby~other~3").await;
        assert_eq!(
            (numbers(&other).len(), &other["complete"]),
            (5, &json!(false))
        );

        // Nothing recorded yet is no mistake; a group without a memory, and a query that is none, are.
        let new = ask(&gateway, "GET", "groups/chat_new/history", "").await;
        assert_eq!(
            (&new["events"], &new["complete"]),
            (&json!([]), &json!(true))
        );
        for (path, status, code) in [
            ("groups/chat_quiet/history", 404, "history_not_kept"),
            ("groups/news/history", 404, "history_not_kept"),
            ("groups/a%20b/history", 400, "group_name_not_valid"),
            ("groups/chat_lobby/history?limit=0", 400, "query_not_valid"),
            ("groups/chat_lobby/history?since=x", 400, "query_not_valid"),
            (
                "groups/chat_lobby/history?since=chat_b~e~1",
                400,
                "query_not_valid",
            ),
            ("groups/chat_lobby/history?cursor=x", 400, "query_not_valid"),
        ] {
            let path = format!("/v1/tenants/{}/{path}", tenant.name);
            let replica = gateway.replicas.last().expect("one runs");
            let answer = replica.api(&gateway.api_key, "GET", &path, "").await;
            let found = (answer.status, answer.json()["code"].clone());
            assert_eq!(found, (status, code.into()), "{path}");
            let names_since = answer.json()["detail"].to_string().contains("and since");
            assert_eq!(names_since, code == "query_not_valid", "{path}");
        }
        let printed = printed(&gateway).await;
        assert!(printed.contains("5 events on this page"), "{printed}");
        assert!(printed.contains("\"n\":7"), "{printed}");
        for replica in &gateway.replicas {
            let metrics = replica.metrics().await;
            assert_eq!(metrics.value("lockgate_events_unrecorded_total", &[]), 0.0);
        }
        let metrics = gateway.replicas.last().unwrap().metrics().await;
        assert_eq!(
            metrics.value("lockgate_recorded_total", &[]),
            7.0,
            "{layer}"
        );
    }
}

/// The call used to free its key, and the same call recorded the event once more.
#[tokio::test]
async fn a_call_whose_answer_was_lost_records_once_when_it_comes_again() {
    let redis = RedisServer::start().await;
    for layer in ["pubsub", "core"] {
        let way = Proxy::to(&redis.endpoint()).await;
        let hosts = vec![format!("redis://{}/0", way.endpoint())];
        let gateway = gateway()
            .redis(&redis.url())
            .tenant("acme")
            .with_toml(GROUPS)
            .with("layer.kind", layer)
            .with("layer.hosts", hosts)
            .start()
            .await;
        let path = format!(
            "/v1/tenants/{}/groups/chat_lobby/send",
            gateway.tenant().name
        );
        let bearer = format!("Bearer {}", gateway.api_key);
        let headers = [("Authorization", &*bearer), ("Idempotency-Key", "k")];
        let body = json!({"type": "chat.message", "n": 1}).to_string();
        let send = async || request(gateway.replica().api, "POST", &path, &headers, &body).await;
        let numbers = async || {
            let page = ask(&gateway, "GET", "groups/chat_lobby/history", "").await;
            let events = page["events"].as_array().expect("a list").clone();
            events
                .iter()
                .map(|event| event["event"]["n"].clone())
                .collect::<Vec<_>>()
        };
        let first = json!({"type": "chat.message", "n": 0}).to_string();
        let path = "groups/chat_lobby/send";
        // It loads the script, too: without it the lost call would record nothing.
        ask(&gateway, "POST", path, &first).await;
        way.set(Line::Unanswered);
        let lost = send().await;
        assert_eq!(lost.status, 503, "{layer}: {lost:?}");
        let keys: Vec<String> = redis
            .command(&["KEYS", "lockgate:*:history:*chat_lobby}:call:*"])
            .await;
        assert_eq!(keys.len(), 1, "{layer}: it has recorded: {keys:?}");
        let lives: i64 = redis.command(&["PTTL", &keys[0]]).await;
        assert!((1..=120_000).contains(&lives), "{lives}");
        way.set(Line::Open);
        eventually(PATIENCE, "the same call", async || match send().await {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer),
        })
        .await;
        assert_eq!(numbers().await, [0, 1].map(|n| json!(n)), "{layer}");
        let other = json!({"type": "chat.message", "n": 2}).to_string();
        ask(&gateway, "POST", path, &other).await;
        ask(&gateway, "POST", path, &other).await;
        assert_eq!(numbers().await, [0, 1, 2, 2].map(|n| json!(n)), "{layer}");
        let _: u64 = redis.command(&["DEL", &keys[0]]).await;
    }
}

/// The results of a batch had one word for an event that was refused and for one that may have been published.
#[tokio::test]
async fn a_batch_says_of_each_event_what_a_send_says() {
    let redis = RedisServer::start().await;
    let way = Proxy::to(&redis.endpoint()).await;
    let hosts = vec![format!("redis://{}/0", way.endpoint())];
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .with_toml(GROUPS)
        .with("layer.kind", "pubsub")
        .with("layer.hosts", hosts)
        .start()
        .await;
    let event = json!({"type": "chat.message", "n": 1});
    // It loads the script, too.
    let path = "groups/chat_lobby/send";
    ask(&gateway, "POST", path, &event.to_string()).await;
    let detail = async || {
        let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
        let body = event.to_string();
        let sent = { gateway.replica() }.api(&gateway.api_key, "POST", &path, &body);
        let answer = sent.await;
        assert_eq!(answer.status, 503, "{answer:?}");
        answer.json()["detail"].clone()
    };
    let message = |group: &str| json!({"group": group, "event": event});
    let batch = json!({"messages": [message("chat_lobby"), message("news")]}).to_string();
    let results = async || ask(&gateway, "POST", "send", &batch).await["results"].clone();
    let refused = |detail: &Value| json!({"code": "unavailable", "detail": detail});

    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let not_published = detail().await;
    let words = not_published.to_string();
    assert!(words.contains("so it was not published"), "{words}");
    let expected = json!([refused(&not_published), {"published": 1}]);
    assert_eq!(results().await, expected);
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;

    way.set(Line::Unanswered);
    let in_doubt = detail().await;
    let words = in_doubt.to_string();
    assert!(words.contains("may not have been published"), "{words}");
    let expected = json!([refused(&in_doubt), refused(&in_doubt)]);
    assert_eq!(results().await, expected);
}
