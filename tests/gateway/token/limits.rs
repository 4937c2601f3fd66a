//! The limits of a tenant and of its users, each where the order of refusals has it.

use serde_json::json;

use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::gateway;

const CHAT: &str = "/ws/chat/lobby/";
const BROADCAST: &str = "path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n \
                         consumer = { kind = 'broadcast', type = 'x' }";

#[tokio::test]
async fn a_tenant_has_as_many_sockets_as_it_may_and_unverified_clients_use_none_up() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.connections", 2)
        .tenant("other")
        .start()
        .await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    for _ in 0..20 {
        replica.dial(acme, CHAT).token("rubbish").refused().await;
    }
    let first = gateway.open(CHAT).await;
    let _second = gateway.open(CHAT).await;
    let third = replica.dial(acme, CHAT).token(&acme.token(BOB));
    let refusal = third.refused().await;
    Problem::new(429, "too_many_connections").is(&refusal, &acme.name);
    assert_eq!(refusal.header("retry-after"), Some("1"));
    replica
        .dial(other, CHAT)
        .token(&other.token(ALICE))
        .open()
        .await;
    let limit = [("tenant", &*acme.name), ("limit", "connections")];
    replica
        .metric("lockgate_rate_limited_total", &limit, |n| n == 1.0)
        .await;
    drop(first);
    let of_acme = [("tenant", &*acme.name)];
    replica
        .metric("lockgate_connections", &of_acme, |n| n == 1.0)
        .await;
    gateway.open(CHAT).await;
}

/// A browser is told by a code that has it come back, unlike one whose user has too many.
#[tokio::test]
async fn a_browser_is_told_that_its_tenant_is_full() {
    let gateway = gateway()
        .tenant("acme")
        .with("refusal", "close")
        .with("limits.connections", 1)
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut first = gateway.open(CHAT).await;
    let dial = || replica.dial(tenant, CHAT).token(&tenant.token(BOB));
    let (code, reason) = dial().open().await.closed().await;
    let told = "too_many_connections retry_after_ms=1000";
    assert_eq!((code, &*reason), (4015, told));
    let labels = [
        ("tenant", &*tenant.name),
        ("result", "too_many_connections"),
    ];
    replica
        .metric("lockgate_handshakes_total", &labels, |n| n == 1.0)
        .await;
    assert!(first.ping().await.is_empty());
    drop(first);
    let of_tenant = [("tenant", &*tenant.name)];
    replica
        .metric("lockgate_connections", &of_tenant, |n| n == 0.0)
        .await;
    assert!(dial().open().await.ping().await.is_empty());
}

#[tokio::test]
async fn new_sockets_come_at_the_rate_of_their_tenant() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.connects_per_second", 2)
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut outcomes = Vec::new();
    for _ in 0..8 {
        let dial = replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
        outcomes.push(dial.attempt().await);
    }
    // Two seconds' worth is there at once, and what has come since.
    let open = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((4..8).contains(&open), "{open}");
    let refusal = outcomes.into_iter().find_map(Result::err).unwrap();
    Problem::new(429, "rate_limited").is(&refusal, &tenant.name);
}

#[tokio::test]
async fn one_user_too_many_is_refused_or_takes_the_place_of_the_oldest() {
    let gateway = gateway()
        .tenant("strict")
        .with("limits.connections_per_user", 1)
        .tenant("lenient")
        .with("limits.connections_per_user", 2)
        .with("limits.on_excess", "replace")
        .tenant("browsers")
        .with("limits.connections_per_user", 1)
        .with("refusal", "close")
        .start()
        .await;
    let dial = |word: &str, user: &str| {
        let tenant = gateway.named(word);
        let dial = gateway.replica().dial(tenant, CHAT);
        dial.token(&tenant.token(user))
    };
    let mut only = dial("strict", ALICE).open().await;
    let refusal = dial("strict", ALICE).refused().await;
    Problem::new(429, "too_many_connections").is(&refusal, &gateway.named("strict").name);
    dial("strict", BOB).open().await;
    assert!(only.ping().await.is_empty());

    let mut oldest = dial("lenient", ALICE).open().await;
    let mut next = dial("lenient", ALICE).open().await;
    let mut newest = dial("lenient", ALICE).open().await;
    assert_eq!(oldest.closed().await, (4506, "replaced".into()));
    assert!(next.ping().await.is_empty());
    assert!(newest.ping().await.is_empty());

    let _first = dial("browsers", ALICE).open().await;
    let mut told = dial("browsers", ALICE).open().await;
    assert_eq!(told.closed().await, (4514, "too_many_connections".into()));
}

/// It was counted as a refused handshake alone, which a lost right is too.
#[tokio::test]
async fn a_route_with_more_groups_than_a_socket_may_have_hits_the_limit() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.groups_per_socket", 1)
        .route("path = 'two/'\n groups = ['one', 'two']")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let dial = replica.dial(tenant, "/two/").token(&tenant.token(ALICE));
    Problem::new(403, "group_forbidden").is(&dial.refused().await, &tenant.name);
    let limited = replica.metrics().await;
    let limited = limited.of("lockgate_rate_limited_total", ("tenant", &tenant.name));
    let once = ("limit=groups_per_socket".to_owned(), 1.0);
    assert_eq!(limited, [once].into());
}

#[tokio::test]
async fn who_publishes_too_much_is_told_by_429_and_4013() {
    let gateway = gateway()
        .tenant("acme")
        .with("limits.publishes_per_second", 2)
        .route(BROADCAST)
        .start()
        .await;
    let tenant = gateway.tenant();
    let path = format!("/v1/tenants/{}/groups/chat_lobby/send", tenant.name);
    let event = json!({"type": "x"}).to_string();
    let mut refused = None;
    for _ in 0..8 {
        let replica = gateway.replica();
        let answer = replica.api(&gateway.api_key, "POST", &path, &event).await;
        if answer.status == 429 {
            refused = Some(answer);
        }
    }
    let answer = refused.expect("eight are more than two seconds' worth");
    assert_eq!(answer.json()["code"], "rate_limited");
    assert_eq!(answer.header("retry-after"), Some("1"));
    let mut socket = gateway.open(CHAT).await;
    for _ in 0..8 {
        socket.send_text(r#"{"n": 1}"#).await;
    }
    let (_, (code, reason)) = socket.drained().await;
    assert_eq!(code, 4013);
    assert_eq!(reason, "rate_limited retry_after_ms=1000");
}
