//! Several issuers in one tenant: each token is checked by the keys of its own issuer, and by no others.

use serde_json::{Value, json};
use toml::toml;

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::jwks::Jwks;
use crate::support::replica::LOCKGATE;
use crate::support::{Gateway, PATIENCE, eventually, gateway, token};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

const CHAT: &str = "/ws/chat/lobby/";
const ID: &str = "https://id.example.com/";
const PARTNER: &str = "https://partner.example.com";
const PARTNER_KEY: &str = "a key that the partner alone signs with";

fn of(issuer: &str) -> Value {
    let mut claims = token::access(ALICE);
    claims["iss"] = issuer.into();
    claims["aud"] = "acme".into();
    claims
}

/// A provider with a key set, a partner with a shared key, and Django's own key beside the two.
async fn three(jwks: &str) -> Gateway {
    gateway()
        .tenant("acme")
        .with(
            "token.signing_key",
            "the key of Django itself, for tests only",
        )
        .with_toml(&format!(
            "[[token.issuers]]
             issuer = '{ID}'
             jwk_url = '{jwks}'
             algorithm = 'RS256'
             audience = 'acme'
             [[token.issuers]]
             issuer = '{PARTNER}'
             keys = [{{ algorithm = 'HS256', kid = 'k1', signing_key = '{PARTNER_KEY}' }}]"
        ))
        .spawn()
        .await
}

/// The partner's token names the key of the other issuer by its id.
fn by_partner(claims: &Value) -> String {
    let header = json!({"alg": "HS256", "kid": "k1"});
    token::sign_with_header(PARTNER_KEY, &header, claims)
}

#[tokio::test]
async fn a_token_is_checked_by_the_keys_of_its_own_issuer() {
    let jwks = Jwks::start().await;
    let gateway = three(&jwks.url).await;
    gateway.replica().ready().await;
    let tenant = gateway.tenant();
    let dial = |token: &str| gateway.replica().dial(tenant, CHAT).token(token);
    for token in [
        jwks.sign(&of(ID)),
        by_partner(&of(PARTNER)),
        tenant.token(ALICE),
        tenant.sign(&of("https://elsewhere.example")),
    ] {
        dial(&token).open().await;
    }
    let mut no_audience = of(ID);
    no_audience.as_object_mut().unwrap().remove("aud");
    for (check, token) in [
        ("signature", by_partner(&of(&ID[..ID.len() - 1]))),
        ("algorithm", by_partner(&of(ID))),
        ("algorithm", jwks.sign(&of(PARTNER))),
        ("signature", tenant.sign(&of(PARTNER))),
        ("algorithm", jwks.sign(&token::access(ALICE))),
        ("audience", jwks.sign(&no_audience)),
    ] {
        Problem::token(check).is(&dial(&token).refused().await, &tenant.name);
    }
}

/// Tokens of a provider whose keys do not come get 503; those of the others are served.
#[tokio::test]
async fn an_issuer_that_is_down_takes_no_other_one_with_it() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let gateway = three(&format!("http://{address}/jwks")).await;
    let tenant = gateway.tenant();
    let jwks = Jwks::start().await;
    let dial = |token: &str| gateway.replica().dial(tenant, CHAT).token(token);
    eventually(PATIENCE, "the partner's token", async || {
        let attempt = dial(&by_partner(&of(PARTNER))).attempt().await;
        attempt.map(drop).map_err(|refusal| refusal.status)
    })
    .await;
    dial(&tenant.token(ALICE)).open().await;
    let refusal = dial(&jwks.sign(&of(ID))).refused().await;
    Problem::new(503, "unavailable").is(&refusal, &tenant.name);
}

#[tokio::test]
async fn an_issuer_that_leaves_the_list_opens_no_socket_any_more() {
    let jwks = Jwks::start().await;
    let gateway = three(&jwks.url).await;
    gateway.replica().ready().await;
    let tenant = gateway.tenant();
    let dial = |token: &str| gateway.replica().dial(tenant, CHAT).token(token);
    let mut socket = dial(&by_partner(&of(PARTNER))).open().await;
    change(&gateway, |table| {
        let token = tenant_table(table, tenant)["token"].as_table_mut().unwrap();
        token["issuers"].as_array_mut().unwrap().pop();
    });
    hang_up(&gateway, APPLIED).await;
    let refusal = dial(&by_partner(&of(PARTNER))).refused().await;
    Problem::token("signature").is(&refusal, &tenant.name);
    assert!(socket.ping().await.is_empty());
    dial(&jwks.sign(&of(ID))).open().await;
}

/// `serve` and `doctor` name a key set that others may change.
#[tokio::test]
async fn keys_over_http_are_told_at_the_start_and_by_doctor() {
    let gateway = gateway()
        .tenant("acme")
        .with("token.insecure_jwk_url", true)
        .with(
            "token.issuers",
            vec![toml! {
                issuer = "https://id.example.com/"
                jwk_url = "http://127.0.0.2:1/jwks"
                algorithm = "RS256"
            }],
        )
        .with(
            "token.signing_key",
            "the key of Django itself, for tests only",
        )
        .write()
        .await;
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(LOCKGATE);
        let output = command
            .args(arguments)
            .arg("--config")
            .arg(&gateway.config)
            .output();
        let output = output.unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    // An address of the loopback is not told, any other one is.
    assert!(!run(&["config", "check"]).contains("keys over http"));
    change(&gateway, |table| {
        let token = tenant_table(table, gateway.tenant())["token"]
            .as_table_mut()
            .unwrap();
        token["issuers"][0]["jwk_url"] = "http://keys.invalid/jwks".into();
    });
    let told = run(&["config", "check"]);
    assert!(
        told.contains("issuers[0].jwk_url: keys over http"),
        "{told}"
    );
    let told = run(&["doctor"]);
    assert!(
        told.contains("issuer \"https://id.example.com/\": over http"),
        "{told}"
    );
}

#[tokio::test]
async fn an_explanation_names_the_issuer_that_was_meant() {
    let gateway = gateway()
        .tenant("acme")
        .with(
            "token.issuers",
            vec![toml! {
                issuer = "https://id.example.com/"
                algorithm = "HS256"
                signing_key = "a key that the partner alone signs with"
            }],
        )
        .write()
        .await;
    let explain = |token: &str| -> Value {
        let output = std::process::Command::new(LOCKGATE)
            .args(["token", "explain", "--json", "--offline", "--tenant"])
            .args([&gateway.tenant().name, token, "--config"])
            .arg(&gateway.config)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == "issuer")
            .unwrap()
            .clone()
    };
    let sign = |claims: &Value| token::sign(PARTNER_KEY, claims);
    assert_eq!(explain(&sign(&of(ID)))["verdict"], "pass");
    let missed = explain(&sign(&of("https://id.example.com")));
    assert_eq!(missed["verdict"], "fail");
    assert_eq!(
        missed["detail"],
        "not one of the configured issuers; the token's iss has a slash less at its end than \"https://id.example.com/\""
    );
    // The claims of a token that no key may verify are anybody's, and are not shown.
    assert_eq!(missed["value"], Value::Null);
    let unknown = explain(&sign(&token::access(ALICE)));
    assert_eq!(unknown["detail"], "not one of the configured issuers");
}
