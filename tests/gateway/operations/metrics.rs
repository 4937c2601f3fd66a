//! The content of a scrape, and the secrets that neither it nor a log may contain.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::database::ALICE;
use crate::support::socket::Dial;
use crate::support::{Publisher, RedisServer, gateway, http, token};

/// Every family that this version has: name, type, labels; `true` where it is there from the first handshake on.
const FAMILIES: &[(&str, &str, &[&str], bool)] = &[
    ("lockgate_build_info", "gauge", &["version"], true),
    ("lockgate_ready", "gauge", &[], true),
    ("lockgate_draining", "gauge", &[], true),
    ("lockgate_drain_remaining_connections", "gauge", &[], true),
    ("lockgate_connections", "gauge", &["tenant"], true),
    (
        "lockgate_anonymous_connections",
        "gauge",
        &["tenant"],
        false,
    ),
    ("lockgate_connections_limit", "gauge", &[], true),
    ("lockgate_connection_saturation", "gauge", &[], true),
    (
        "lockgate_handshakes_total",
        "counter",
        &["result", "tenant"],
        true,
    ),
    (
        "lockgate_handshake_duration_seconds",
        "histogram",
        &[],
        true,
    ),
    (
        "lockgate_auth_duration_seconds",
        "histogram",
        &["step"],
        true,
    ),
    (
        "lockgate_disconnects_total",
        "counter",
        &["code", "reason", "tenant"],
        true,
    ),
    (
        "lockgate_connection_duration_seconds",
        "histogram",
        &[],
        true,
    ),
    (
        "lockgate_frames_received_total",
        "counter",
        &["kind", "tenant"],
        true,
    ),
    ("lockgate_frames_sent_total", "counter", &["tenant"], true),
    (
        "lockgate_received_bytes_total",
        "counter",
        &["tenant"],
        true,
    ),
    ("lockgate_sent_bytes_total", "counter", &["tenant"], true),
    (
        "lockgate_events_total",
        "counter",
        &["source", "tenant"],
        true,
    ),
    ("lockgate_deliveries_total", "counter", &["tenant"], true),
    (
        "lockgate_events_dropped_total",
        "counter",
        &["cause", "tenant"],
        true,
    ),
    ("lockgate_fanout_duration_seconds", "histogram", &[], true),
    ("lockgate_delivery_lag_seconds", "histogram", &[], false),
    ("lockgate_fanout_recipients", "histogram", &[], true),
    ("lockgate_send_queue_bytes", "gauge", &[], true),
    ("lockgate_layer_queue_bytes", "gauge", &["tenant"], true),
    ("lockgate_subscriptions", "gauge", &["tenant"], true),
    ("lockgate_gaps_total", "counter", &["cause", "tenant"], true),
    (
        "lockgate_unhealed_gaps_total",
        "counter",
        &["cause", "tenant"],
        true,
    ),
    (
        "lockgate_history_memory_ratio",
        "gauge",
        &["endpoint"],
        false,
    ),
    (
        "lockgate_canary_rtt_seconds",
        "histogram",
        &["endpoint"],
        false,
    ),
    (
        "lockgate_canary_missed_total",
        "counter",
        &["endpoint"],
        false,
    ),
    (
        "lockgate_dependency_up",
        "gauge",
        &["dependency", "endpoint"],
        true,
    ),
    (
        "lockgate_dependency_duration_seconds",
        "histogram",
        &["dependency", "operation"],
        true,
    ),
    (
        "lockgate_dependency_errors_total",
        "counter",
        &["dependency", "kind"],
        false,
    ),
    (
        "lockgate_reconnects_total",
        "counter",
        &["dependency"],
        false,
    ),
    (
        "lockgate_user_lookups_total",
        "counter",
        &["result", "tenant"],
        true,
    ),
    (
        "lockgate_unreadable_values_total",
        "counter",
        &["tenant"],
        true,
    ),
    ("lockgate_user_queries_total", "counter", &[], true),
    ("lockgate_denylist_at_risk", "gauge", &[], true),
    (
        "lockgate_rate_limited_total",
        "counter",
        &["limit", "tenant"],
        false,
    ),
    (
        "lockgate_revocations_total",
        "counter",
        &["kind", "tenant"],
        true,
    ),
    (
        "lockgate_revocation_propagation_seconds",
        "histogram",
        &[],
        false,
    ),
    ("lockgate_recorded_total", "counter", &["tenant"], true),
    ("lockgate_worker_waiting", "gauge", &["tenant"], true),
    ("lockgate_worker_depth", "gauge", &["tenant"], false),
    ("lockgate_worker_lag_seconds", "gauge", &["tenant"], false),
    (
        "lockgate_worker_timeouts_total",
        "counter",
        &["tenant"],
        true,
    ),
    (
        "lockgate_events_unrecorded_total",
        "counter",
        &["tenant"],
        true,
    ),
    (
        "lockgate_control_dropped_total",
        "counter",
        &["reason", "tenant"],
        true,
    ),
    (
        "lockgate_replicas_unknown_total",
        "counter",
        &["tenant"],
        true,
    ),
    ("lockgate_config_degraded", "gauge", &["tenant"], true),
    ("lockgate_tenant_degraded", "gauge", &["tenant"], true),
    ("lockgate_registry_tenants", "gauge", &["state"], false),
    ("lockgate_tenants_made", "gauge", &[], true),
    (
        "lockgate_registry_read_timestamp_seconds",
        "gauge",
        &[],
        false,
    ),
    ("lockgate_config_reload_successful", "gauge", &[], true),
    (
        "lockgate_config_reload_timestamp_seconds",
        "gauge",
        &[],
        true,
    ),
    ("lockgate_unchecked_servers", "gauge", &[], true),
    ("lockgate_loop_lag_seconds", "histogram", &[], true),
    ("lockgate_half_open_connections", "gauge", &[], true),
    ("lockgate_half_open_limit", "gauge", &[], true),
    (
        "lockgate_half_open_dropped_total",
        "counter",
        &["stage"],
        false,
    ),
    ("lockgate_held_bytes", "gauge", &["kind"], true),
    ("lockgate_held_bytes_limit", "gauge", &[], true),
    ("lockgate_panics_total", "counter", &[], false),
    ("lockgate_runtime_tasks", "gauge", &[], true),
    (
        "lockgate_recoveries_total",
        "counter",
        &["result", "tenant"],
        false,
    ),
    (
        "lockgate_recovered_events_total",
        "counter",
        &["tenant"],
        false,
    ),
    (
        "lockgate_healed_events_total",
        "counter",
        &["tenant"],
        false,
    ),
    ("lockgate_presence_entries", "gauge", &["tenant"], false),
    (
        "lockgate_presence_unwritten_groups",
        "gauge",
        &["tenant"],
        false,
    ),
    (
        "lockgate_token_refreshes_total",
        "counter",
        &["result", "tenant"],
        false,
    ),
];

/// Families with type and labels, as the gateway declares them; `docs/metrics.md` is held against the same table.
#[test]
fn the_families_tested_here_are_those_that_the_gateway_describes() {
    let tested: BTreeSet<_> = FAMILIES
        .iter()
        .map(|(name, kind, labels, _)| (*name, *kind, labels.iter().copied().collect()))
        .collect();
    let described: BTreeSet<(_, _, BTreeSet<_>)> = lockgate::metrics::families()
        .iter()
        .map(|family| {
            (
                family.name,
                family.kind,
                family.labels.iter().copied().collect(),
            )
        })
        .collect();
    assert_eq!(tested, described);
}

#[tokio::test]
async fn a_scrape_has_the_families_of_the_contract_and_no_other() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n consumer = { kind = 'broadcast', type = 'x' }")
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    let publisher = Publisher::new(RedisServer::shared().await, &tenant.prefix).await;
    publisher
        .send("chat_lobby", &json!({"type": "x", "n": 1}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
    socket.send_text("{\"n\": 2}").await;
    assert_eq!(socket.next_json().await, json!({"n": 2}));
    gateway
        .send("chat_lobby", &json!({"type": "x", "n": 3}))
        .await;
    assert_eq!(socket.next_json().await, json!({"n": 3}));
    socket.ping().await;
    socket.close(3333, "bye").await;
    gateway
        .replica()
        .dial(tenant, "/ws/chat/lobby/")
        .token("rubbish")
        .refused()
        .await;
    gateway.replica().dial(tenant, "/nowhere").refused().await;
    let of_tenant = [("tenant", tenant.name.as_str())];
    gateway
        .replica()
        .metric("lockgate_connections", &of_tenant, |n| n == 0.0)
        .await;

    let metrics = gateway.replica().metrics().await;
    let families = metrics.families();
    let known: BTreeMap<_, _> = FAMILIES
        .iter()
        .map(|(name, kind, ..)| (*name, *kind))
        .collect();
    let mut wrong = Vec::new();
    for (name, kind) in &families {
        match known.get(name.as_str()) {
            Some(expected) if expected == kind => {}
            Some(expected) => wrong.push(format!("{name} is a {kind}, not a {expected}")),
            None if name.starts_with("process_") => {}
            None => wrong.push(format!("{name} is not in the contract")),
        }
    }
    for (name, _, labels, always) in FAMILIES {
        if *always && !families.contains_key(*name) {
            wrong.push(format!("{name} is missing"));
        }
        let found = metrics.labels(name);
        if !found.is_empty() && !found.iter().map(String::as_str).eq(labels.iter().copied()) {
            wrong.push(format!("{name} has the labels {found:?}, not {labels:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for process in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(families.contains_key(process), "{process} is missing");
    }

    let value =
        |name: &str, labels: &[(&str, &str)]| metrics.value(name, &[&of_tenant, labels].concat());
    assert_eq!(
        value("lockgate_handshakes_total", &[("result", "accepted")]),
        1.0
    );
    assert_eq!(
        value(
            "lockgate_handshakes_total",
            &[("result", "token_not_valid")]
        ),
        1.0
    );
    assert_eq!(
        value(
            "lockgate_handshakes_total",
            &[("result", "route_not_found")]
        ),
        1.0
    );
    assert_eq!(value("lockgate_events_total", &[("source", "api")]), 1.0);
    assert_eq!(value("lockgate_events_total", &[("source", "socket")]), 1.0);
    assert_eq!(value("lockgate_deliveries_total", &[]), 3.0);
    assert_eq!(
        value("lockgate_frames_received_total", &[("kind", "text")]),
        1.0
    );
    assert_eq!(
        value("lockgate_frames_received_total", &[("kind", "ping")]),
        1.0
    );
    // A code that a client chose.
    assert_eq!(
        value(
            "lockgate_disconnects_total",
            &[("code", "other"), ("reason", "other")]
        ),
        1.0
    );
    assert_eq!(value("lockgate_subscriptions", &[]), 0.0);
    assert_eq!(metrics.value("lockgate_ready", &[]), 1.0);
    // Nothing that a client can make up is a label.
    for label in ["user", "user_id", "group", "address", "path", "token"] {
        assert!(metrics.label_values(label).is_empty(), "{label}");
    }
}

#[tokio::test]
async fn no_token_key_or_query_is_in_any_log_line_or_metric() {
    let gateway = gateway()
        .set("log.level", "trace")
        .tenant("acme")
        .with("token.check_revoke_token", false)
        .start()
        .await;
    let tenant = gateway.tenant();
    let replica = gateway.replica();
    let mut canaries = vec![tenant.key.clone(), gateway.api_key.clone()];
    let mut tokens = Vec::new();
    let mut claims = token::access(ALICE);
    claims["note"] = json!("a claim for nobody's eyes");
    tokens.push(tenant.sign(&claims));
    claims["exp"] = json!(1);
    tokens.push(tenant.sign(&claims));
    tokens.push(tenant.token("99"));
    tokens.push(token::sign(
        "some other key of thirty-two bytes",
        &token::access(ALICE),
    ));
    tokens.push("canary-that-is-no-token-at-all".to_owned());
    for token in &tokens {
        for dial in [
            replica.dial(tenant, "/ws/chat/lobby/").token(token),
            replica
                .dial(tenant, "/ws/chat/lobby/")
                .header("Authorization", &format!("Bearer {token}")),
            replica
                .dial(tenant, "/ws/chat/lobby/")
                .subprotocols(&format!("bearer, {token}")),
            replica.dial(tenant, "/nowhere/").token(token),
            replica
                .dial(tenant, "/ws/chat/lobby/")
                .token(token)
                .replace("Upgrade", None),
            replica
                .dial(tenant, "/ws/chat/lobby/")
                .token(token)
                .replace("Sec-WebSocket-Key", Some("short")),
            Dial::new(replica.server, "nobody.test", "/ws/chat/lobby/").token(token),
            replica
                .dial(tenant, "/ws/chat/lobby/")
                .query(&format!("secret=canary-in-a-query&token={token}")),
        ] {
            drop(dial.attempt().await);
        }
        let bad =
            format!("GET /?token={token} HTTP/1.1\r\nHost: a\r\nHost: b\r\nbad header\r\n\r\n");
        http::exchange(replica.server, bad.as_bytes()).await;
        http::request(replica.server, "GET", &format!("/?token={token}"), &[], "").await;
        replica
            .api(
                token,
                "POST",
                "/v1/tenants/x/groups/y/send?key=canary-in-a-query",
                "{}",
            )
            .await;
        // The parts of a token are as secret as the whole.
        canaries.extend(
            token
                .split('.')
                .filter(|part| part.len() > 40)
                .map(str::to_owned),
        );
    }
    canaries.push("canary-that-is-no-token-at-all".into());
    canaries.push("canary-in-a-query".into());
    canaries.push("a claim for nobody's eyes".into());
    // The header of every token is the same and known to all.
    canaries.retain(|canary| !canary.starts_with("eyJhbGciOi"));
    let publisher = Publisher::new(RedisServer::shared().await, &tenant.prefix).await;
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    publisher
        .send(
            "chat_lobby",
            &json!({"type": "x", "text": "canary in a message body"}),
        )
        .await;
    socket.next_json().await;
    publisher
        .send_bytes("chat_lobby", b"\xc1canary in a message body")
        .await;
    socket.send_text("canary in a message body").await;
    socket.ping().await;
    canaries.push("canary in a message body".into());

    let scrape = replica.metrics().await;
    replica.terminate();
    let output = gateway.output();
    assert!(output.contains("\"DEBUG\""), "the log is on: {output}");
    for canary in canaries {
        assert!(!scrape.text().contains(&canary), "{canary} is in a metric");
        let line = output.lines().find(|line| line.contains(&canary));
        assert_eq!(line, None, "{canary} is in the log");
    }
}
