//! `anonymous = true`: sockets without a token, and all that is about users and does not touch them.

use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::gateway::Builder;
use crate::support::socket::{Dial, Socket};
use crate::support::{Database, Gateway, RedisServer, gateway, token, unique};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

pub(super) const OPEN: &str = "/ws/open/a/";
/// A route that lets anyone in, into the group of another that asks for a token.
const ROUTES: [&str; 2] = [
    "path = 'ws/open/<slug:room>/'\ngroups = ['room_{room}']\nanonymous = true\n\
     consumer = { kind = 'broadcast', type = 'said' }",
    "path = 'ws/room/<slug:room>/'\ngroups = ['room_{room}']",
];

/// A tenant whose ids are any text, so that no text stands for an anonymous socket.
pub(super) fn open_house() -> Builder {
    let builder = gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .with("users.id_type", "text")
        .with("limits.connections_per_user", 1);
    ROUTES
        .iter()
        .fold(builder, |builder, route| builder.route(route))
}

pub(super) fn dial(gateway: &Gateway, path: &str) -> Dial {
    gateway.replica().dial(gateway.tenant(), path)
}

pub(super) async fn known(gateway: &Gateway, user: &str) -> Socket {
    dial(gateway, OPEN)
        .token(&gateway.tenant().token(user))
        .open()
        .await
}

pub(super) async fn call(gateway: &Gateway, method: &str, path: &str, body: Value) -> Value {
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = gateway
        .replica()
        .api(&gateway.api_key, method, &path, &body)
        .await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_socket_without_a_token_is_open_and_a_bad_token_is_refused() {
    let gateway = open_house().start().await;
    let tenant = gateway.tenant();
    let mut stranger = dial(&gateway, OPEN).open().await;
    // An empty value is no token.
    let mut second = dial(&gateway, OPEN).query("token=").open().await;
    let mut alice = known(&gateway, "alice").await;
    stranger.send_text(r#"{"n":1,"user_id":"alice"}"#).await;
    for socket in [&mut stranger, &mut second, &mut alice] {
        assert_eq!(
            socket.next_json().await,
            json!({"n": 1, "user_id": "alice"})
        );
    }
    let mut expired = token::access("alice");
    expired["exp"] = (token::now() - 100).into();
    let mut revoked = token::access("alice");
    revoked["jti"] = unique().into();
    let body = json!({"jti": revoked["jti"], "exp": revoked["exp"]});
    call(&gateway, "POST", "revocations", body).await;
    for (token, code) in [
        ("undefined", "token_not_valid"),
        (&tenant.sign(&expired), "token_not_valid"),
        (&tenant.sign(&revoked), "token_revoked"),
    ] {
        let refused = dial(&gateway, OPEN).token(token).refused().await;
        Problem::new(401, code).is(&refused, &tenant.name);
    }
    let refused = dial(&gateway, "/ws/room/a/").refused().await;
    Problem::new(401, "token_missing").is(&refused, &tenant.name);
}

#[tokio::test]
async fn revocations_pass_it_by_and_suspension_and_age_do_not() {
    let gateway = open_house().set("denylist.recheck", "1s").start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let mut claims = token::access("alice");
    claims["iat"] = (token::now() - 10).into();
    let token = gateway.tenant().sign(&claims);
    let mut alice = dial(&gateway, OPEN).token(&token).open().await;
    // It has no token that could have been issued before the cut-off.
    let body = json!({"issued_before": claims["iat"]});
    call(&gateway, "POST", "revocations", body).await;
    assert_eq!(alice.closed().await, (4501, "token_revoked".into()));
    // The recheck closes one that was not announced, and passes the other by.
    let claims = token::access("bob");
    let token = gateway.tenant().sign(&claims);
    let mut bob = dial(&gateway, OPEN).token(&token).open().await;
    let key = gateway
        .tenant()
        .redis_key(&format!("deny:jti:{}", claims["jti"].as_str().unwrap()));
    let redis = RedisServer::shared().await;
    let () = redis.command(&["SET", &key, "1", "EX", "600"]).await;
    assert_eq!(bob.closed().await, (4501, "token_revoked".into()));
    assert!(stranger.ping().await.is_empty());
    // A new one still opens under the cut-off.
    let mut late = dial(&gateway, OPEN).open().await;
    let body = call(&gateway, "POST", "suspend", Value::Null).await;
    assert_eq!(body["closed"], 2, "{body}");
    for socket in [&mut stranger, &mut late] {
        assert_eq!(socket.closed().await.0, 4016);
    }
    let refused = dial(&gateway, OPEN).refused().await;
    Problem::new(403, "tenant_suspended").is(&refused, &gateway.tenant().name);
}

#[tokio::test]
async fn an_old_one_closes_like_any_other() {
    let gateway = open_house().set("server.max_age", "2s").start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let (code, reason) = stranger.closed().await;
    assert_eq!(code, 1012);
    assert!(reason.starts_with("max_age"), "{reason}");
}

#[tokio::test]
async fn the_tenants_budget_counts_it_and_the_users_does_not() {
    for excess in ["refuse", "replace"] {
        let gateway = open_house()
            .with("limits.on_excess", excess)
            .with("limits.connections", 4)
            .with("limits.anonymous_connections", 4)
            .start()
            .await;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(dial(&gateway, OPEN).open().await);
        }
        open.push(known(&gateway, "alice").await);
        let refused = dial(&gateway, OPEN).refused().await;
        Problem::new(429, "too_many_connections").is(&refused, &gateway.tenant().name);
        for socket in &mut open {
            assert!(socket.ping().await.is_empty(), "{excess}");
        }
    }
}

#[tokio::test]
async fn strangers_have_a_budget_of_their_own() {
    let gateway = open_house()
        .with("limits.connections", 3)
        .with("limits.anonymous_connections", 1)
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let stranger = dial(&gateway, OPEN).open().await;
    let refused = dial(&gateway, OPEN).refused().await;
    Problem::new(429, "too_many_connections").is(&refused, &tenant.name);
    replica.logged("limits.anonymous_connections is 1").await;
    let mut alice = known(&gateway, "alice").await;
    let _bob = known(&gateway, "bob").await;
    let of_tenant = [("tenant", &*tenant.name)];
    let counted = async |strangers: f64, all: f64| {
        let name = "lockgate_anonymous_connections";
        replica.metric(name, &of_tenant, |n| n == strangers).await;
        replica
            .metric("lockgate_connections", &of_tenant, |n| n == all)
            .await;
    };
    counted(1.0, 3.0).await;
    let limit = [of_tenant[0], ("limit", "anonymous_connections")];
    replica
        .metric("lockgate_rate_limited_total", &limit, |n| n == 1.0)
        .await;
    drop(stranger);
    counted(0.0, 2.0).await;
    let _next = dial(&gateway, OPEN).open().await;
    assert!(alice.ping().await.is_empty());
}

/// Before, strangers shared the tenant's rates with its users, and a client without a token could use them up.
#[tokio::test]
async fn users_connect_and_publish_while_strangers_flood() {
    let gateway = open_house()
        .with("limits.connections_per_user", 0)
        .with("limits.connects_per_second", 16)
        .with("limits.publishes_per_second", 16)
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut alice = known(&gateway, "alice").await;
    // Half of the rate is theirs, for two seconds at once.
    let mut strangers = Vec::new();
    let mut refused = None;
    while refused.is_none() {
        let flood = (0..24).map(|_| dial(&gateway, OPEN).attempt());
        for attempt in futures_util::future::join_all(flood).await {
            match attempt {
                Ok(socket) => strangers.push(socket),
                Err(refusal) => refused = Some(refusal),
            }
        }
    }
    let refused = refused.expect("the loop ends with one");
    Problem::new(429, "rate_limited").is(&refused, &tenant.name);
    assert!(refused.header("retry-after").is_some());
    let told = "limits.anonymous_connects_per_second is 8";
    gateway.replica().logged(told).await;
    // A user for each stranger that tries: the half that is left takes 16 at once.
    for _ in 0..15 {
        let (_, user) = tokio::join!(dial(&gateway, OPEN).attempt(), known(&gateway, "bob"));
        drop(user);
    }
    // A flood of events ends with the socket that sends it; others of its kind go on.
    for stranger in strangers.iter_mut().take(4) {
        for _ in 0..40 {
            stranger.send_text(r#"{"of":"stranger"}"#).await;
        }
    }
    for n in 0..12 {
        let event = json!({"of": "alice", "n": n});
        alice.send_text(&event.to_string()).await;
        while alice.next_json().await != event {}
    }
    let (_, (code, reason)) = strangers[0].drained().await;
    assert_eq!((code, &*reason), (4013, "rate_limited retry_after_ms=1000"));
    for limit in [
        "anonymous_connects_per_second",
        "anonymous_publishes_per_second",
    ] {
        let labels = [("tenant", &*tenant.name), ("limit", limit)];
        let metrics = gateway.replica().metrics().await;
        assert!(metrics.value("lockgate_rate_limited_total", &labels) >= 1.0);
    }
}

#[tokio::test]
async fn half_of_the_places_are_left_for_users() {
    let gateway = open_house().with("limits.connections", 4).start().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(dial(&gateway, OPEN).open().await);
    }
    let refused = dial(&gateway, OPEN).refused().await;
    Problem::new(429, "too_many_connections").is(&refused, &gateway.tenant().name);
    for user in ["alice", "bob"] {
        open.push(known(&gateway, user).await);
    }
    for socket in &mut open {
        assert!(socket.ping().await.is_empty());
    }
}

#[tokio::test]
async fn a_route_that_asks_for_tokens_from_now_on_closes_it() {
    let gateway = open_house().start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    change(&gateway, |table| {
        let tenant = tenant_table(table, gateway.tenant());
        let route = tenant["routes"][0].as_table_mut().unwrap();
        assert!(route.remove("anonymous").is_some());
    });
    hang_up(&gateway, APPLIED).await;
    assert_eq!(stranger.closed().await.0, 1012);
    let refused = dial(&gateway, OPEN).refused().await;
    Problem::new(401, "token_missing").is(&refused, &gateway.tenant().name);
}

#[tokio::test]
async fn a_cookie_is_a_token_here_too() {
    let app = "https://app.example.com";
    let gateway = open_house()
        .with("token.sources", vec!["query", "cookie"])
        .with("origins", vec![app])
        .start()
        .await;
    let tenant = gateway.tenant();
    let page = |cookie: &str| {
        let dial = dial(&gateway, OPEN).header("Origin", app);
        dial.header("Cookie", cookie)
    };
    let _stranger = page("theme=dark; access_token=").open().await;
    let token = tenant.token("alice");
    let _alice = page(&format!("access_token={token}")).open().await;
    let list = call(&gateway, "GET", "users/alice/connections", Value::Null).await;
    assert_eq!(list["connections"], 1, "{list}");
    let refused = page("access_token=old").refused().await;
    Problem::new(401, "token_not_valid").is(&refused, &tenant.name);
    // Without an origin the cookie may have been sent by any page's socket; it makes nobody of its user.
    let bare = dial(&gateway, OPEN).header("Cookie", &format!("access_token={token}"));
    Problem::new(403, "origin_not_allowed").is(&bare.refused().await, &tenant.name);
    let _no_browser = dial(&gateway, OPEN).open().await;
}

#[tokio::test]
async fn it_cannot_become_a_user_by_a_refresh() {
    let gateway = open_house().with("token.refresh", true).start().await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    for token in [gateway.tenant().token("alice"), "undefined".to_owned()] {
        let request = json!({"type": "lockgate.refresh", "token": token});
        stranger.send_text(&request.to_string()).await;
        let expected = json!({"type": "lockgate.error", "code": "token_not_valid", "of": "lockgate.refresh", "check": "user_id"});
        assert_eq!(stranger.next_json().await, expected);
    }
    assert!(
        stranger.ping().await.is_empty(),
        "no consumer saw the frame"
    );
    let list = call(&gateway, "GET", "connections", Value::Null).await;
    assert_eq!(list["sockets"][0]["user_id"], Value::Null, "{list}");
}

#[tokio::test]
async fn it_comes_back_to_what_it_missed() {
    let gateway = gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .with_toml("groups = [{ name = 'room_<slug:room>', history = { } }]")
        .route("path = 'ws/open/<slug:room>/'\ngroups = ['room_{room}']\nanonymous = true\nresume = true")
        .start()
        .await;
    let mut stranger = dial(&gateway, OPEN).open().await;
    let position = stranger.next_json().await["position"]
        .as_str()
        .unwrap()
        .to_owned();
    drop(stranger);
    for n in 0..2 {
        gateway.send("room_a", &json!({"type": "x", "n": n})).await;
    }
    let mut again = dial(&gateway, OPEN)
        .query(&format!("since={position}"))
        .open()
        .await;
    for n in 0..2 {
        assert_eq!(again.next_json().await["n"], n);
    }
}

#[tokio::test]
async fn a_statement_about_the_path_decides_for_it_too() {
    let database = Database::sqlite().await;
    let gateway = gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .with("users.cache_ttl", "1s")
        .users(&database)
        .route(
            "path = 'ws/open/<slug:room>/'\ngroups = ['room_{room}']\nanonymous = true\n\
             authorize = \"SELECT 1 FROM auth_user WHERE username = :room\"",
        )
        .start()
        .await;
    let mut stranger = dial(&gateway, "/ws/open/alice/").open().await;
    let refused = dial(&gateway, "/ws/open/nobody/").refused().await;
    Problem::new(403, "group_forbidden").is(&refused, &gateway.tenant().name);
    // The room is not for everyone any more.
    let renamed = "UPDATE auth_user SET username = 'gone' WHERE username = 'alice'";
    database.execute(renamed).await;
    assert_eq!(stranger.closed().await, (4507, "group_forbidden".into()));
}
