//! The handshake: where a token may stand, and what host, origin and subprotocols decide.

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::{Tenant, gateway};

const CHAT: &str = "/ws/chat/lobby/";

#[tokio::test]
async fn the_handshake_is_that_of_rfc_6455() {
    let gateway = gateway().tenant("acme").start().await;
    let socket = gateway.open(CHAT).await;
    let handshake = &socket.handshake;
    assert_eq!(
        handshake.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    let lower = |name| handshake.header(name).map(str::to_ascii_lowercase);
    assert_eq!(lower("upgrade").as_deref(), Some("websocket"));
    assert_eq!(lower("connection").as_deref(), Some("upgrade"));
    assert_eq!(lower("sec-websocket-extensions"), None);
    assert_eq!(lower("sec-websocket-protocol"), None);
}

#[tokio::test]
async fn a_token_comes_in_the_query_a_header_or_a_subprotocol() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let (token, other) = (tenant.token(ALICE), tenant.token(ALICE));
    let dial = || gateway.replica().dial(tenant, CHAT);
    let bearer = format!("Bearer {token}");
    let offered = format!("bearer, {token}");

    for query in [
        format!("token={token}"),
        format!("a=b&token={token}&c=d"),
        // The first value that is not empty counts, whatever follows.
        format!("token=&token={token}&token=rubbish"),
        format!("token&token={token}"),
        format!("token={}", token.replace('.', "%2E")),
        format!("%74oken={token}"),
    ] {
        println!("{query}");
        dial().query(&query).open().await;
    }
    dial().header("Authorization", &bearer).open().await;
    dial()
        .header("Authorization", &format!("bearer {token}"))
        .open()
        .await;
    for carrier in ["bearer", "Bearer", "token", "Token"] {
        let socket = dial()
            .subprotocols(&format!("{carrier}, {token}"))
            .open()
            .await;
        let answered = socket.handshake.header("sec-websocket-protocol");
        assert_eq!(answered, Some(carrier));
    }
    dial()
        .token(&token)
        .header("Authorization", &bearer)
        .subprotocols(&offered)
        .open()
        .await;

    for refused in [
        dial().token(&other).header("Authorization", &bearer),
        dial().token(&other).subprotocols(&offered),
        dial()
            .header("Authorization", &format!("Bearer {other}"))
            .subprotocols(&offered),
    ] {
        let refusal = refused.refused().await;
        Problem::new(401, "token_not_valid").is(&refusal, &tenant.name);
    }
    for missing in [
        dial().query(&format!("TOKEN={token}")),
        dial().query(&format!("token[]={token}")),
        dial().header("Authorization", "Basic YTpi"),
        dial().subprotocols("bearer"),
    ] {
        Problem::new(401, "token_missing").is(&missing.refused().await, &tenant.name);
    }
}

#[tokio::test]
async fn a_tenant_chooses_where_tokens_come_from() {
    let gateway = gateway()
        .tenant("acme")
        .with("token.query_parameter", "jwt")
        .with("token.sources", vec!["query"])
        .start()
        .await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    let dial = || gateway.replica().dial(tenant, CHAT);
    dial().query(&format!("jwt={token}")).open().await;
    // A place that is not a source is ignored, whether its token is good or bad.
    dial()
        .query(&format!("jwt={token}"))
        .header("Authorization", "Bearer wrong")
        .open()
        .await;
    for missing in [
        dial().token(&token),
        dial().header("Authorization", &format!("Bearer {token}")),
    ] {
        Problem::new(401, "token_missing").is(&missing.refused().await, &tenant.name);
    }
}

#[tokio::test]
async fn the_clients_first_known_subprotocol_is_answered() {
    let gateway = gateway()
        .tenant("acme")
        .route("path = 'ws/'\n groups = ['all']\n subprotocols = ['v2', 'v1']")
        .start()
        .await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    for (offered, answered) in [
        ("v1, v2", Some("v1")),
        ("v3, v2", Some("v2")),
        ("v3", None),
        ("bearer, TOKEN, v2", Some("v2")),
        ("bearer, TOKEN", Some("bearer")),
        ("bearer,TOKEN,v3", Some("bearer")),
        ("Token, TOKEN, v1", Some("v1")),
        ("v3, token, TOKEN", Some("token")),
    ] {
        let mut dial = gateway.replica().dial(tenant, "/ws/");
        if !offered.contains("TOKEN") {
            dial = dial.token(&token);
        }
        let socket = dial
            .subprotocols(&offered.replace("TOKEN", &token))
            .open()
            .await;
        assert_eq!(
            socket.handshake.header("sec-websocket-protocol"),
            answered,
            "{offered}"
        );
    }
}

#[tokio::test]
async fn origins_are_held_against_the_tenants_list() {
    let gateway = gateway()
        .tenant("default")
        .tenant("listed")
        .with(
            "origins",
            vec!["https://app.example.com", "https://*.example.org"],
        )
        .tenant("strict")
        .with("origins", vec!["https://app.example.com"])
        .with("require_origin", true)
        .tenant("any")
        .with("origins", vec!["*"])
        .start()
        .await;
    let own = format!("https://{}", gateway.named("default").host);
    let allowed = [
        ("default", None),
        ("default", Some(own.as_str())),
        ("listed", None),
        ("listed", Some("https://app.example.com")),
        ("listed", Some("https://x.example.org")),
        ("strict", Some("https://app.example.com")),
        ("any", Some("https://anything.example")),
        ("any", None),
    ];
    let refused = [
        ("default", Some("https://evil.example")),
        ("default", Some("null")),
        ("listed", Some("http://app.example.com")),
        ("listed", Some("https://app.example.com:8443")),
        ("listed", Some("https://app.example.com.evil.example")),
        ("listed", Some("https://example.org")),
        ("listed", Some("https://a.b.example.org")),
        ("strict", None),
    ];
    let attempt = async |(word, origin): (&str, Option<&str>)| {
        let tenant = gateway.named(word);
        let mut dial = gateway
            .replica()
            .dial(tenant, CHAT)
            .token(&tenant.token(ALICE));
        if let Some(origin) = origin {
            dial = dial.header("Origin", origin);
        }
        dial.attempt().await
    };
    for case in allowed {
        if let Err(refusal) = attempt(case).await {
            panic!("{case:?}: {refusal:?}");
        }
    }
    for case in refused {
        let refusal = attempt(case)
            .await
            .err()
            .unwrap_or_else(|| panic!("{case:?}: accepted"));
        Problem::new(403, "origin_not_allowed").is(&refusal, &gateway.named(case.0).name);
    }
}

#[tokio::test]
async fn hosts_are_names_wildcards_or_anything() {
    let gateway = gateway()
        .tenant("wild")
        .with("hosts", vec!["*.wild.test"])
        .tenant("exact")
        .with("hosts", vec!["exact.wild.test"])
        .start()
        .await;
    let open = async |word: &str, host: &str| {
        let tenant = gateway.named(word).clone();
        let tenant = Tenant {
            host: host.to_owned(),
            ..tenant
        };
        let dial = gateway
            .replica()
            .dial(&tenant, CHAT)
            .token(&tenant.token(ALICE));
        dial.attempt()
            .await
            .map(drop)
            .map_err(|refusal| refusal.status)
    };
    assert_eq!(open("wild", "a.wild.test").await, Ok(()));
    assert_eq!(open("wild", "A.Wild.Test:8000").await, Ok(()));
    assert_eq!(open("exact", "exact.wild.test").await, Ok(()));
    assert_eq!(open("wild", "exact.wild.test").await, Err(401));
    assert_eq!(open("wild", "a.b.wild.test").await, Err(404));
    assert_eq!(open("wild", "wild.test").await, Err(404));
}
