//! A token in a cookie: who may send it, how it is written, and which one counts.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::problem::Problem;
use crate::support::browser::Page;
use crate::support::database::{ALICE, BOB};
use crate::support::{Gateway, gateway, token};

const CHAT: &str = "/ws/chat/lobby/";
const APP: &str = "https://app.example.com";

async fn by_cookie(sources: &[&str]) -> Gateway {
    gateway()
        .tenant("acme")
        .with("token.sources", sources.to_vec())
        .with("origins", vec![APP])
        .route("path = 'ws/chat/<slug:room>/'\n groups = ['user_{user.id}']")
        .start()
        .await
}

#[tokio::test]
async fn a_cookie_is_a_token_for_the_tenants_own_pages() {
    let gateway = by_cookie(&["cookie"]).await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    let dial = || gateway.replica().dial(tenant, CHAT).header("Origin", APP);
    for cookie in [
        format!("access_token={token}"),
        format!("access_token=\"{token}\""),
        format!("sessionid=x; access_token={token}; csrftoken=y"),
        format!("access_token=; access_token={token}"),
        format!("access_token={token}; access_token=rubbish"),
    ] {
        dial().header("Cookie", &cookie).open().await;
    }
    let header = dial().header("Cookie", "a=1");
    header
        .header("Cookie", &format!("access_token={token}"))
        .open()
        .await;
    for (cookie, code) in [
        (format!("other={token}"), "token_missing"),
        (
            format!("access_token=rubbish; access_token={token}"),
            "token_not_valid",
        ),
        (
            format!("access_token={}", "x".repeat(8200)),
            "token_not_valid",
        ),
    ] {
        let refusal = dial().header("Cookie", &cookie).refused().await;
        Problem::new(401, code).is(&refusal, &tenant.name);
    }
    Problem::new(401, "token_missing").is(&dial().token(&token).refused().await, &tenant.name);
    // A browser says which page it is. Without that nothing tells the tenant's page from another.
    let cookie = format!("access_token={token}");
    let bare = gateway
        .replica()
        .dial(tenant, CHAT)
        .header("Cookie", &cookie);
    Problem::new(403, "origin_not_allowed").is(&bare.refused().await, &tenant.name);
    let log = gateway
        .replica()
        .logged("counts beside an Origin alone")
        .await;
    assert!(!gateway.output().contains(&token), "{log}");
}

/// A browser adds a cookie by itself, so that an old one must not refuse the token that a page has sent.
#[tokio::test]
async fn the_order_of_the_list_decides_between_cookie_and_query() {
    for (sources, expected) in [
        (["query", "cookie"], "user_1"),
        (["cookie", "query"], "user_2"),
    ] {
        let gateway = by_cookie(&sources).await;
        let tenant = gateway.tenant();
        let cookie = format!("access_token={}", tenant.token(BOB));
        let dial = || gateway.replica().dial(tenant, CHAT);
        let both = dial().token(&tenant.token(ALICE)).header("Cookie", &cookie);
        let mut socket = both.header("Origin", APP).open().await;
        gateway
            .send(expected, &serde_json::json!({"type": "x", "n": 1}))
            .await;
        assert_eq!(socket.next_json().await["n"], 1, "{sources:?}");
        // A client that is no browser has no origin and a token in the query.
        dial().token(&tenant.token(ALICE)).open().await;
        let mut old = token::access(BOB);
        old["exp"] = (token::now() - 5).into();
        let old = format!("access_token={}", tenant.sign(&old));
        let both = dial().token(&tenant.token(ALICE)).header("Cookie", &old);
        let opened = both.header("Origin", APP).attempt().await.is_ok();
        assert_eq!(opened, sources[0] == "query");
    }
}

/// Serves an empty page on a port of its own. Returns its origin.
async fn site() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok() {
                    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\nConnection: close\r\n\r\n<!doctype html>";
                    drop(stream.write_all(page.as_bytes()).await);
                }
            });
        }
    });
    origin
}

/// The browser itself writes the cookie and the origin. The other page is of the same site, so that it gets the cookie.
#[tokio::test]
async fn a_page_that_sets_the_cookie_connects_and_a_page_of_another_origin_does_not() {
    let (own, other) = (site().await, site().await);
    let gateway = gateway()
        .tenant("acme")
        .with("hosts", vec!["127.0.0.1"])
        .with("token.sources", vec!["query", "cookie"])
        .with("token.cookie", "jwt")
        .with("origins", vec![own.clone()])
        .with("refusal", "close")
        .start()
        .await;
    let token = gateway.tenant().token(ALICE);
    let connect = format!(
        "new Promise((done) => {{
            const socket = new WebSocket('ws://{}{CHAT}');
            socket.onclose = (event) => done(event.code);
            socket.onopen = () => setTimeout(() => socket.send('x'));
            socket.onmessage = (event) => done(event.data);
        }})",
        gateway.replica().server
    );
    let mut page = Page::open(&own).await;
    page.wait_for(&format!(
        "location.origin === '{own}' && document.readyState === 'complete'"
    ))
    .await;
    assert_eq!(page.evaluate(&connect).await, 4512, "no cookie yet");
    let set = |path: &str| format!("document.cookie = 'jwt={token}; path={path}'");
    page.evaluate(&set("/site/")).await;
    assert_eq!(page.evaluate(&connect).await, 4512, "of another path");
    page.evaluate(&set("/ws/")).await;
    let open = format!(
        "new Promise((done) => {{
            window.socket = new WebSocket('ws://{}{CHAT}');
            window.socket.onclose = (event) => done(event.code);
            window.socket.onopen = () => done('open');
        }})",
        gateway.replica().server
    );
    assert_eq!(page.evaluate(&open).await, "open");
    page.go_to(&other).await;
    page.wait_for(&format!(
        "location.origin === '{other}' && document.readyState === 'complete'"
    ))
    .await;
    assert_eq!(page.evaluate(&connect).await, 4504);
}
