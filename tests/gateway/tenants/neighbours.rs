//! Tenants on one Redis server that their URLs call by different names.

use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::http::request;
use crate::support::process::Program;
use crate::support::proxy::Proxy;
use crate::support::replica::LOCKGATE;
use crate::support::{PATIENCE, Publisher, RedisServer, Tenant, gateway, unique};

const CHAT: &str = "/ws/chat/lobby/";

/// Two tenants with one prefix; the second reaches the same server at `second`.
fn two(redis: &RedisServer, second: &str) -> Builder {
    let prefix = format!("shared-{}", unique());
    let builder = gateway().redis(&redis.url());
    let builder = builder
        .tenant("first")
        .with("layer.prefix", prefix.as_str());
    let builder = builder
        .tenant("second")
        .with("layer.prefix", prefix.as_str());
    builder.with("redis.url", format!("redis://{second}/0"))
}

/// Two tenants with one prefix on `127.0.0.1` and `localhost` got each other's events.
#[tokio::test]
async fn two_names_of_one_redis_do_not_let_two_tenants_meet() {
    let redis = RedisServer::start().await;
    let localhost = format!("localhost:{}", redis.port());
    let gateway = two(&redis, &localhost).start().await;
    let (first, second) = (gateway.named("first"), gateway.named("second"));
    let replica = gateway.replica();
    let dial = |tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    let refusal = dial(second).refused().await;
    Problem::new(503, "unavailable").is(&refusal, &second.name);
    assert!(!refusal.body.contains(&first.name), "{refusal:?}");
    let mut socket = dial(first).open().await;
    let publisher = Publisher::new(&redis, &first.prefix).await;
    publisher
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
    // Only operators are told the reason.
    let bearer = format!("Bearer {}", gateway.api_key);
    let headers = [("Authorization", bearer.as_str())];
    let seen = request(replica.admin, "GET", "/readyz", &headers, "").await;
    let reason = seen.json()["tenants"][&second.name].to_string();
    assert!(
        reason.contains(&first.name) && reason.contains("localhost"),
        "{reason}"
    );
    let seen = replica.readyz().await;
    assert!(!seen.body.contains(&first.name), "{seen:?}");
}

/// The server's own identity counts where no address is the same. Here a proxy hides it.
#[tokio::test]
async fn one_redis_behind_a_proxy_is_known_by_what_it_says_of_itself() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::to(&redis.endpoint()).await;
    let gateway = two(&redis, &proxy.endpoint()).start().await;
    let (first, second) = (gateway.named("first"), gateway.named("second"));
    let replica = gateway.replica();
    let dial = |tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    Problem::new(503, "unavailable").is(&dial(second).refused().await, &second.name);
    dial(first).open().await;
    let doctor = Program::new("lockgate doctor", LOCKGATE)
        .args(["doctor", "--json", "--config"])
        .args([&gateway.config])
        .start();
    let finding = doctor
        .line("doctor's findings", PATIENCE, |line| {
            let found: Value = serde_json::from_str(line).ok()?;
            let findings = found["findings"].as_array()?.clone();
            findings
                .into_iter()
                .find(|finding| finding["check"] == "shared_redis")
        })
        .await;
    assert_eq!(finding["verdict"], "fail", "{finding}");
    assert_eq!(finding["subject"], format!("tenant {}", second.name));
}

/// Namespaces of one prefix do, as long as none begins another, whatever the server is called.
#[tokio::test]
async fn namespaces_keep_two_tenants_apart_on_one_redis_with_two_names() {
    let redis = RedisServer::start().await;
    let localhost = format!("localhost:{}", redis.port());
    for (namespaces, apart) in [
        (["a.", "b."], true),
        (["a.", "a."], false),
        (["a.b.", "a."], false),
        (["", "a."], false),
    ] {
        let mut builder = two(&redis, &localhost);
        builder = builder.with("layer.namespace", namespaces[1]);
        builder = builder.of("first").with("layer.namespace", namespaces[0]);
        let gateway = builder.start().await;
        let (first, second) = (gateway.named("first"), gateway.named("second"));
        let replica = gateway.replica();
        let dial = |tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        let mut socket = dial(first).open().await;
        let publisher = Publisher::new(&redis, &first.prefix).await;
        if apart {
            let mut other = dial(second).open().await;
            for (n, namespace) in namespaces.iter().enumerate() {
                let group = format!("{namespace}chat_lobby");
                publisher.send(&group, &json!({"type": "x", "n": n})).await;
            }
            assert_eq!(socket.next_json().await, json!({"n": 0}));
            assert_eq!(other.next_json().await, json!({"n": 1}));
            assert!(socket.ping().await.is_empty() && other.ping().await.is_empty());
            continue;
        }
        let refusal = dial(second).refused().await;
        Problem::new(503, "unavailable").is(&refusal, &second.name);
        let told = replica.logged("could meet those of tenant").await;
        assert!(told.contains("layer.namespace"), "{told}");
    }
}

/// One prefix on two servers keeps two tenants apart.
#[tokio::test]
async fn tenants_of_two_servers_share_a_prefix_in_peace() {
    let (redis, other) = (RedisServer::start().await, RedisServer::start().await);
    let gateway = two(&redis, &other.endpoint()).start().await;
    for word in ["first", "second"] {
        let tenant = gateway.named(word);
        let dial = gateway.replica().dial(tenant, CHAT);
        dial.token(&tenant.token(ALICE)).open().await;
    }
}
