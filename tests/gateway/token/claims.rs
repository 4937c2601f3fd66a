//! Rules for claims: which tokens they let in, at a connect and in the place of another token, and what tells of them.

use std::process::Command;

use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::replica::LOCKGATE;
use crate::support::{Gateway, gateway, token};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

const TEAM: &str = "/ws/team/";

/// The rules of most tests, with a route whose groups come out of the token.
fn ruled() -> Builder {
    gateway()
        .tenant("acme")
        .with_toml(
            r#"
            [token.claims]
            azp = "web"
            client_id = ["a", "b"]
            scope = { contains = "chat" }
            "realm_access.roles" = { contains = "user" }
            "#,
        )
        .route("path = 'ws/team/'\n groups = ['team_{claims.org.team}']")
}

/// Claims that satisfy the rules.
fn good() -> Value {
    let mut claims = token::access(ALICE);
    for (name, value) in [
        ("azp", json!("web")),
        ("client_id", json!("b")),
        ("scope", json!("read chat")),
        ("realm_access", json!({"roles": ["admin", "user"]})),
        ("org", json!({"team": "red"})),
    ] {
        claims[name] = value;
    }
    claims
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn a_token_must_satisfy_every_rule() {
    let gateway = ruled().start().await;
    let tenant = gateway.tenant();
    let dial = |claims: &Value| {
        let dial = gateway.replica().dial(tenant, TEAM);
        dial.token(&tenant.sign(claims))
    };
    for claims in [
        good(),
        with("scope", json!(["chat"])),
        with("client_id", json!("a")),
        with("realm_access.roles", json!("user")),
    ] {
        dial(&claims).open().await;
    }
    for claims in [
        without("azp"),
        with("azp", Value::Null),
        with("azp", json!(5)),
        with("azp", json!({"web": "web"})),
        with("azp", json!("w".repeat(4000))),
        with("azp", json!(["web"])),
        with("client_id", json!("c")),
        with("scope", json!("chats")),
        with("scope", json!(17)),
        with("realm_access", json!({"roles": ["admin"]})),
        with("realm_access", json!(["user"])),
        // The whole name comes before the path.
        with("realm_access.roles", json!([])),
    ] {
        let refusal = dial(&claims).refused().await;
        Problem::token("claims").is(&refusal, &tenant.name);
    }
    // Of several failed checks the first one is told, and `exp` is no longer all that failed.
    let mut expired = without("azp");
    expired["exp"] = json!(token::now() - 5);
    Problem::token("exp").is(&dial(&expired).refused().await, &tenant.name);
    let log = gateway.replica().logged("\"claims\"").await;
    assert!(log.contains("token.claims does not hold"), "{log}");
}

/// Before: `{claims.org.team}` looked for a claim of that name alone.
#[tokio::test]
async fn a_group_is_named_by_a_claim_inside_an_object() {
    let gateway = ruled().start().await;
    let tenant = gateway.tenant();
    let dial = |claims: &Value| {
        let dial = gateway.replica().dial(tenant, TEAM);
        dial.token(&tenant.sign(claims))
    };
    let mut red = dial(&good()).open().await;
    let mut blue = dial(&with("org.team", json!("blue"))).open().await;
    for (group, n) in [("team_red", 1), ("team_blue", 2)] {
        gateway.send(group, &json!({"type": "x", "n": n})).await;
    }
    assert_eq!(red.next_json().await, json!({"n": 1}));
    assert_eq!(blue.next_json().await, json!({"n": 2}));
    for org in [
        json!({}),
        json!("red"),
        json!({"team": ["red"]}),
        Value::Null,
    ] {
        let refusal = dial(&with("org", org)).refused().await;
        Problem::new(400, "group_name_not_valid").is(&refusal, &tenant.name);
    }
}

#[tokio::test]
async fn a_refresh_in_place_obeys_the_rules_and_a_refusal_can_be_a_close() {
    let gateway = ruled()
        .with("token.refresh", true)
        .with("refusal", "close")
        .start()
        .await;
    let tenant = gateway.tenant();
    let dial = |claims: &Value| {
        let dial = gateway.replica().dial(tenant, TEAM);
        dial.token(&tenant.sign(claims))
    };
    let mut refused = dial(&without("scope")).open().await;
    assert_eq!(refused.closed().await, (4500, "token_not_valid".into()));

    let mut socket = dial(&good()).open().await;
    let request = |claims: &Value| {
        let token = tenant.sign(claims);
        json!({"type": "lockgate.refresh", "token": token}).to_string()
    };
    socket
        .send_text(&request(&with("azp", json!("other"))))
        .await;
    let answer = socket.next_json().await;
    assert_eq!(
        (&answer["code"], &answer["check"]),
        (&json!("token_not_valid"), &json!("claims"))
    );
    socket.send_text(&request(&good())).await;
    assert_eq!(socket.next_json().await["type"], "lockgate.refreshed");
}

/// A rule that comes with a reload holds from then on; open sockets keep what they have until they refresh.
#[tokio::test]
async fn a_reload_brings_rules_to_new_tokens() {
    let gateway = gateway()
        .tenant("acme")
        .with("token.refresh", true)
        .route("path = 'ws/team/'\n groups = ['all']")
        .start()
        .await;
    let tenant = gateway.tenant();
    let mut socket = gateway.open(TEAM).await;
    change(&gateway, |table| {
        let token = tenant_table(table, tenant)["token"].as_table_mut().unwrap();
        token.insert("claims".into(), toml::toml! { azp = "web" }.into());
    });
    hang_up(&gateway, APPLIED).await;
    let dial = || gateway.replica().dial(tenant, TEAM);
    let refusal = dial().token(&tenant.token(ALICE)).refused().await;
    Problem::token("claims").is(&refusal, &tenant.name);
    dial().token(&tenant.sign(&good())).open().await;
    let request = json!({"type": "lockgate.refresh", "token": tenant.token(ALICE)});
    socket.send_text(&request.to_string()).await;
    assert_eq!(socket.next_json().await["check"], "claims");
    assert!(socket.ping().await.is_empty());
}

fn run(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = Command::new(LOCKGATE)
        .args(["token", arguments[0], "--tenant", &gateway.tenant().name])
        .arg("--config")
        .arg(&gateway.config)
        .args(&arguments[1..])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn an_explanation_names_the_rules_that_fail_and_no_value() {
    let gateway = ruled().write().await;
    let tenant = gateway.tenant();
    let explain = |claims: &Value| -> Value {
        let token = tenant.sign(claims);
        let text = run(&gateway, &["explain", "--json", "--offline", &token]);
        let report: Value = serde_json::from_str(&text).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let names: Vec<_> = checks.iter().map(|check| &check["name"]).collect();
        let at = names.iter().position(|name| **name == "claims").unwrap();
        assert_eq!(
            (names[at - 1], names[at + 1]),
            (&json!("token_type"), &json!("user_id"))
        );
        assert!(!text.contains("hunter2"), "{text}");
        checks[at].clone()
    };
    let passed = json!({"name": "claims", "verdict": "pass", "value": null, "detail": ""});
    assert_eq!(explain(&good()), passed);
    let mut bad = with("azp", json!("hunter2"));
    bad["scope"] = json!(7);
    bad.as_object_mut().unwrap().remove("client_id");
    let failed = explain(&bad);
    assert_eq!(failed["verdict"], "fail");
    assert_eq!(
        failed["detail"],
        "the rule azp = \"web\" does not hold: the claim has another value; \
         the rule client_id = [\"a\", \"b\"] does not hold: the token has no such claim; \
         the rule scope = { contains = \"chat\" } does not hold: the claim is a number, which contains nothing"
    );
    // A token that the gateway makes itself satisfies the rules.
    let minted = run(&gateway, &["mint", "--user", ALICE]);
    let text = run(
        &gateway,
        &["explain", "--json", "--offline", minted.trim_end()],
    );
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["accepted"], true, "{report}");
}
