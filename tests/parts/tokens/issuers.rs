//! Keys by issuer: the `iss` of a token chooses them, whatever its `kid` says.

use lockgate::auth::{RawToken, TokenError, TokenVerifier};
use lockgate::clock::UnixTime;
use lockgate::config::{IdType, IssuerConfig, TokenConfig};
use lockgate::error::Check;
use serde_json::{Value, json};

use super::support::*;

const A: &str = "https://a.example/";
const B: &str = "https://b.example";
const KEY_A: &str = "a-secret-of-issuer-a-with-thirty-two-bytes";
const KEY_B: &str = "a-secret-of-issuer-b-with-thirty-two-bytes";

fn entry(issuer: &str, secret: &str) -> IssuerConfig {
    IssuerConfig {
        issuer: issuer.into(),
        // Both name their key alike.
        keys: vec![key("HS256", Some("k1"), Some(secret), None)],
        ..IssuerConfig::default()
    }
}

fn two() -> TokenConfig {
    TokenConfig {
        issuers: vec![entry(A, KEY_A), entry(B, KEY_B)],
        ..TokenConfig::default()
    }
}

fn by(secret: &str, iss: &Value) -> String {
    let mut claims: Value = serde_json::from_str(PAYLOAD).unwrap();
    match iss {
        Value::Null => {}
        iss => claims["iss"] = iss.clone(),
    }
    let header = r#"{"alg":"HS256","kid":"k1"}"#;
    sign_hs256(
        header.as_bytes(),
        claims.to_string().as_bytes(),
        secret.as_bytes(),
    )
}

#[tokio::test]
async fn the_issuer_chooses_the_key_and_nothing_else_does() {
    let verifier = verifier(&two());
    for (secret, iss, expect) in [
        (KEY_A, json!(A), User("1")),
        (KEY_B, json!(B), User("1")),
        (KEY_B, json!(A), Fails(Check::Signature)),
        (KEY_A, json!(B), Fails(Check::Signature)),
        (KEY_A, json!("https://a.example"), Fails(Check::Issuer)),
        (KEY_B, json!("https://b.example/"), Fails(Check::Issuer)),
        (KEY_A, json!("HTTPS://A.EXAMPLE/"), Fails(Check::Issuer)),
        (KEY_A, json!(" https://a.example/"), Fails(Check::Issuer)),
        (KEY_A, json!("https://c.example/"), Fails(Check::Issuer)),
        (KEY_A, json!([A]), Fails(Check::Issuer)),
        (KEY_A, json!({"a": A}), Fails(Check::Issuer)),
        (KEY_A, json!(7), Fails(Check::Issuer)),
        (KEY_A, json!(""), Fails(Check::Issuer)),
        (KEY_A, Value::Null, Fails(Check::Issuer)),
    ] {
        let judged = judge(&verifier, &by(secret, &iss)).await;
        assert_eq!(judged, expected(expect), "{secret} {iss}");
    }
}

#[tokio::test]
async fn keys_beside_the_list_are_for_all_other_tokens() {
    let mut config = two();
    config.keys = vec![key("HS256", None, Some(SECRET), None)];
    let free = verifier(&config);
    config.issuer = vec!["django".into()];
    let strict = verifier(&config);
    for (verifier, secret, iss, expect) in [
        (&free, SECRET, Value::Null, User("1")),
        (&free, SECRET, json!("https://c.example"), User("1")),
        (&free, SECRET, json!(A), Fails(Check::Signature)),
        (&free, KEY_A, Value::Null, Fails(Check::Signature)),
        (&strict, SECRET, json!("django"), User("1")),
        (&strict, SECRET, Value::Null, Fails(Check::Issuer)),
        (
            &strict,
            SECRET,
            json!("https://c.example"),
            Fails(Check::Issuer),
        ),
        // The accepted issuers beside the list say nothing about those in it.
        (&strict, KEY_A, json!(A), User("1")),
    ] {
        let judged = judge(verifier, &by(secret, &iss)).await;
        assert_eq!(judged, expected(expect), "{secret} {iss}");
    }
}

#[tokio::test]
async fn audiences_are_those_of_the_issuer_or_else_those_beside_the_list() {
    let mut config = two();
    config.audience = vec!["all".into()];
    config.issuers[1].audience = vec!["b".into()];
    let verifier = verifier(&config);
    for (secret, iss, aud, expect) in [
        (KEY_A, A, json!("all"), User("1")),
        (KEY_A, A, json!("b"), Fails(Check::Audience)),
        (KEY_B, B, json!(["x", "b"]), User("1")),
        (KEY_B, B, json!("all"), Fails(Check::Audience)),
    ] {
        let mut claims: Value = serde_json::from_str(PAYLOAD).unwrap();
        (claims["iss"], claims["aud"]) = (iss.into(), aud.clone());
        let token = sign_hs256(
            HEADER.as_bytes(),
            claims.to_string().as_bytes(),
            secret.as_bytes(),
        );
        assert_eq!(
            judge(&verifier, &token).await,
            expected(expect),
            "{iss} {aud}"
        );
    }
}

/// A key set is fetched for tokens of its issuer alone, and one that does not answer hinders no other one.
#[tokio::test]
async fn each_issuer_has_a_key_set_of_its_own() {
    let (good, bad) = (
        JwksServer::with_keys(&json!({"keys": []})).await,
        JwksServer::start("500 Internal Server Error", "", String::new()).await,
    );
    let by_url = |issuer: &str, server: &JwksServer| IssuerConfig {
        issuer: issuer.into(),
        jwk_url: Some(format!("{}/jwks", server.origin)),
        algorithm: Some("RS256".into()),
        ..IssuerConfig::default()
    };
    let config = TokenConfig {
        issuers: vec![
            by_url(A, &good),
            by_url(B, &bad),
            entry("https://c.example", KEY_A),
        ],
        ..TokenConfig::default()
    };
    let verifier = TokenVerifier::new(&config, IdType::Int).unwrap();
    assert_eq!(
        judge(&verifier, &by(KEY_A, &json!("https://c.example"))).await,
        Ok("1".into())
    );
    assert_eq!((good.hits(), bad.hits()), (0, 0));

    let unsigned = |iss: &str| {
        let payload = PAYLOAD.replacen('{', &format!("{{\"iss\":\"{iss}\","), 1);
        format!(
            "{}.{}.AAAA",
            encode(r#"{"alg":"RS256","kid":"k1"}"#),
            encode(payload)
        )
    };
    assert_eq!(
        judge(&verifier, &unsigned(A)).await,
        expected(Fails(Check::Key))
    );
    assert_eq!((good.hits(), bad.hits()), (1, 0));
    let token = RawToken::new(unsigned(B));
    let judged = verifier.verify(&token, UnixTime(NOW)).await;
    assert!(
        matches!(judged, Err(TokenError::Unavailable(_))),
        "{judged:?}"
    );
    assert_eq!((good.hits(), bad.hits()), (1, 1));
    assert!(verifier.ready().await.is_err());
    let fetched = verifier.fetch_each().await;
    let fetched: Vec<_> = fetched
        .iter()
        .map(|(issuer, result)| (*issuer, result.is_ok()))
        .collect();
    assert_eq!(fetched, [(Some(A), true), (Some(B), false)]);
}
