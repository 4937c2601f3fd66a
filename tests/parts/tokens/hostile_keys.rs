//! Hostile keys: text that is not a key, keys of other tenants, and wrong key sets.

use super::support::{
    Fails, HEADER, JwksServer, NOW, PAYLOAD, SECRET, User, encode, expected, judge, key,
    sign_hs256, verifier,
};
use lockgate::auth::{RawToken, TokenError, TokenVerifier};
use lockgate::clock::UnixTime;
use lockgate::config::{IdType, TokenConfig};
use lockgate::error::Check;
use serde_json::{Value, json};

fn keys() -> Value {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/simplejwt_tokens.json")).unwrap();
    vectors["keys"].clone()
}

fn pem(name: &str, half: &str) -> String {
    keys()[name][format!("{half}_pem")]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Converts a raw ECDSA signature to DER, the form of other protocols.
fn der(raw: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| {
        let mut body: Vec<u8> = bytes
            .iter()
            .copied()
            .skip_while(|byte| *byte == 0)
            .collect();
        if body[0] >= 0x80 {
            body.insert(0, 0);
        }
        [&[2, body.len() as u8], body.as_slice()].concat()
    };
    let body = [integer(&raw[..32]), integer(&raw[32..])].concat();
    [&[0x30, body.len() as u8], body.as_slice()].concat()
}

#[tokio::test]
async fn against_public_keys() {
    let rsa = pem("rsa", "public");
    let rs256 = TokenConfig {
        keys: vec![key("RS256", None, None, Some(&rsa))],
        ..TokenConfig::default()
    };
    let es256 = TokenConfig {
        keys: vec![key(
            "ES256",
            None,
            Some(&pem("p256", "private")),
            Some(&pem("p256", "public")),
        )],
        ..TokenConfig::default()
    };
    // The public key as a shared secret, in each form in which a careless verifier may hold it.
    let body: String = rsa.lines().filter(|line| !line.starts_with('-')).collect();
    let der_form =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
    let forms = [
        rsa.clone().into_bytes(),
        format!(" {rsa}").into_bytes(),
        rsa.trim().into(),
        der_form,
    ];
    for (tenant, name) in [(&rs256, "RS256"), (&es256, "ES256")] {
        let tenant = verifier(tenant);
        for secret in &forms {
            let confused = sign_hs256(HEADER.as_bytes(), PAYLOAD.as_bytes(), secret);
            assert_eq!(
                judge(&tenant, &confused).await,
                expected(Fails(Check::Algorithm)),
                "public key as secret"
            );
            let header = format!(r#"{{"alg":"{name}"}}"#);
            let posing = sign_hs256(header.as_bytes(), PAYLOAD.as_bytes(), secret);
            assert_eq!(
                judge(&tenant, &posing).await,
                expected(Fails(Check::Signature)),
                "public key as secret"
            );
        }
    }

    let request = lockgate::auth::MintRequest {
        user_id: "1",
        lifetime: std::time::Duration::from_secs(60),
        claims: serde_json::Map::new(),
    };
    let good = lockgate::auth::mint(&es256, &request, UnixTime(NOW)).unwrap();
    let (message, signature) = good.rsplit_once('.').unwrap();
    let raw = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, signature)
        .unwrap();
    let verifier = verifier(&es256);
    assert_eq!(judge(&verifier, &good).await, expected(User("1")));
    let rows: [(&str, Vec<u8>, Check); 7] = [
        ("ECDSA signature", vec![0; 64], Check::Signature),
        ("ECDSA signature", vec![0xFF; 64], Check::Signature),
        (
            "ECDSA signature",
            [&raw[..32], &[0; 32]].concat(),
            Check::Signature,
        ),
        ("ECDSA signature", der(&raw), Check::Signature),
        ("ECDSA signature", raw[..63].to_vec(), Check::Signature),
        ("signature size", vec![7; 4096], Check::Signature),
        ("signature size", vec![7; 16_384], Check::Size),
    ];
    for (id, signature, check) in rows {
        let token = format!("{message}.{}", encode(&signature));
        assert_eq!(
            judge(&verifier, &token).await,
            expected(Fails(check)),
            "{id} {}",
            signature.len()
        );
    }
}

#[test]
fn in_the_configuration() {
    let rows = [
        ("secret", key("HS256", None, Some(""), None), false),
        ("secret", key("HS256", None, Some("secret"), None), true),
        (
            "public key as secret",
            key("HS256", None, Some(&pem("rsa", "public")), None),
            false,
        ),
        (
            "public key as secret",
            key(
                "HS256",
                None,
                Some(&format!(" {}", pem("p256", "public"))),
                None,
            ),
            false,
        ),
        (
            "",
            key("RS256", None, None, Some(&pem("rsa", "private"))),
            false,
        ),
        (
            "",
            key("RS256", None, None, Some(&pem("p256", "public"))),
            false,
        ),
        ("", key("RS256", None, None, Some("not a key")), false),
        (
            "",
            key("ES256", None, None, Some(&pem("p384", "public"))),
            false,
        ),
        (
            "",
            key("ES256", None, None, Some(&pem("k256", "public"))),
            false,
        ),
        (
            "",
            key("ES384", None, None, Some(&pem("p384", "public"))),
            true,
        ),
        (
            "",
            key("EdDSA", None, None, Some(&pem("ed448", "public"))),
            false,
        ),
        (
            "",
            key("EdDSA", None, None, Some(&pem("ed25519", "public"))),
            true,
        ),
        (
            "",
            key("PS512", None, None, Some(&pem("rsa", "public"))),
            true,
        ),
    ];
    for (id, key, good) in rows {
        let algorithm = key.algorithm.clone();
        let config = TokenConfig {
            keys: vec![key],
            ..TokenConfig::default()
        };
        let verifier = TokenVerifier::new(&config, IdType::Int);
        assert_eq!(
            verifier.is_ok(),
            good,
            "{id} {algorithm} {:?}",
            verifier.err()
        );
    }
    assert!(
        TokenVerifier::new(&TokenConfig::default(), IdType::Int).is_err(),
        "no key"
    );
    let nine = TokenConfig {
        keys: vec![key("HS256", None, Some(SECRET), None); 9],
        ..TokenConfig::default()
    };
    assert!(TokenVerifier::new(&nine, IdType::Int).is_err(), "nine keys");
}

/// Returns a configuration whose key set is on this server.
fn by_url(server: &JwksServer) -> TokenConfig {
    TokenConfig {
        algorithm: Some("RS256".into()),
        jwk_url: Some(format!("{}/jwks", server.origin)),
        ..TokenConfig::default()
    }
}

/// Returns a token signed by one of the vectors' RSA keys, with this `kid`.
fn rs256(key_name: &str, kid: &str) -> String {
    let config = TokenConfig {
        keys: vec![key(
            "RS256",
            Some(kid),
            Some(&pem(key_name, "private")),
            Some(&pem(key_name, "public")),
        )],
        ..TokenConfig::default()
    };
    let request = lockgate::auth::MintRequest {
        user_id: "1",
        lifetime: std::time::Duration::from_secs(60),
        claims: serde_json::Map::new(),
    };
    lockgate::auth::mint(&config, &request, UnixTime(NOW)).unwrap()
}

/// Returns the JWK of one of the vectors' RSA keys, as in the vectors' key set.
fn jwk(key_name: &str, kid: &str) -> Value {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/simplejwt_tokens.json")).unwrap();
    let sets = vectors["configs"].as_array().unwrap();
    let set = sets
        .iter()
        .find_map(|config| config.get("jwks_document"))
        .unwrap();
    let place = usize::from(key_name == "rsa_other");
    let mut jwk = set["keys"][place].clone();
    jwk["kid"] = kid.into();
    jwk
}

#[tokio::test]
async fn unknown_kids_cost_one_refresh_in_ten_seconds() {
    let server = JwksServer::with_keys(&json!({"keys": [jwk("rsa", "k1")]})).await;
    let verifier = verifier(&by_url(&server));
    assert_eq!(
        judge(&verifier, &rs256("rsa", "k1")).await,
        expected(User("1")),
        "unknown kid"
    );
    for n in 0..50 {
        let unknown = rs256("rsa_other", &format!("unknown-{}", n % 2));
        assert_eq!(
            judge(&verifier, &unknown).await,
            expected(Fails(Check::Key)),
            "unknown kid"
        );
    }
    assert_eq!(
        judge(&verifier, &rs256("rsa_other", "k1")).await,
        expected(Fails(Check::Signature))
    );
    assert_eq!(server.hits(), 1, "unknown kid");
}

#[tokio::test]
async fn handshakes_that_wait_together_share_one_refresh() {
    let server = JwksServer::with_keys(&json!({"keys": [jwk("rsa", "k1")]})).await;
    let verifier = verifier(&by_url(&server));
    let token = rs256("rsa", "k1");
    let waiting = (0..100).map(|_| judge(&verifier, &token));
    for outcome in futures_util::future::join_all(waiting).await {
        assert_eq!(outcome, expected(User("1")));
    }
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn a_kid_of_another_tenant_opens_nothing() {
    let server_a = JwksServer::with_keys(&json!({"keys": [jwk("rsa", "k1")]})).await;
    let server_b = JwksServer::with_keys(&json!({"keys": [jwk("rsa_other", "k1")]})).await;
    let (a, b) = (verifier(&by_url(&server_a)), verifier(&by_url(&server_b)));
    let (of_a, of_b) = (rs256("rsa", "k1"), rs256("rsa_other", "k1"));
    // Cold, then warm.
    for _ in 0..2 {
        assert_eq!(judge(&a, &of_a).await, expected(User("1")), "other tenant");
        assert_eq!(judge(&b, &of_b).await, expected(User("1")), "other tenant");
        assert_eq!(
            judge(&a, &of_b).await,
            expected(Fails(Check::Signature)),
            "other tenant"
        );
        assert_eq!(
            judge(&b, &of_a).await,
            expected(Fails(Check::Signature)),
            "other tenant"
        );
    }
}

#[tokio::test]
async fn key_sets_that_lie() {
    let mut weak = jwk("rsa", "k1");
    weak["n"] = weak["n"].as_str().unwrap()[..86].into();
    let sets = [
        ("weak key", json!({"keys": [weak]})),
        (
            "two keys",
            json!({"keys": [jwk("rsa", "k1"), jwk("rsa_other", "k1")]}),
        ),
        ("", json!({"keys": []})),
    ];
    for (id, set) in sets {
        let server = JwksServer::with_keys(&set).await;
        let verifier = verifier(&by_url(&server));
        assert_eq!(
            judge(&verifier, &rs256("rsa", "k1")).await,
            expected(Fails(Check::Key)),
            "{id}"
        );
    }
}

#[tokio::test]
async fn keys_that_a_token_brings_along_are_not_looked_at() {
    let attacker = JwksServer::with_keys(&json!({"keys": [jwk("rsa_other", "k1")]})).await;
    let server = JwksServer::with_keys(&json!({"keys": [jwk("rsa", "k1")]})).await;
    let verifier = verifier(&by_url(&server));
    let headers = [
        json!({"alg": "RS256", "kid": "k1", "jku": format!("{}/jwks", attacker.origin)}),
        json!({"alg": "RS256", "kid": "k1", "x5u": attacker.origin, "x5c": ["AAAA"]}),
        json!({"alg": "RS256", "kid": "k1", "jwk": jwk("rsa_other", "k1")}),
    ];
    for header in headers {
        let message = format!("{}.{}", encode(header.to_string()), encode(PAYLOAD));
        let private =
            jsonwebtoken::EncodingKey::from_rsa_pem(pem("rsa_other", "private").as_bytes())
                .unwrap();
        let signature = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &private,
            jsonwebtoken::Algorithm::RS256,
        )
        .unwrap();
        let token = format!("{message}.{signature}");
        assert_eq!(
            judge(&verifier, &token).await,
            expected(Fails(Check::Signature)),
            "key in the token"
        );
    }
    assert_eq!(attacker.hits(), 0, "key in the token");
}

#[tokio::test]
async fn key_sets_that_cannot_be_loaded_refuse_no_token() {
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300 * 1024));
    let target = JwksServer::with_keys(&json!({"keys": [jwk("rsa", "k1")]})).await;
    let to_target: &'static str = format!("Location: {}/jwks\r\n", target.origin).leak();
    let servers = [
        JwksServer::start("404 Not Found", "", String::new()).await,
        JwksServer::start("200 OK", "", "no set".into()).await,
        JwksServer::start("200 OK", "", large).await,
        JwksServer::start("302 Found", to_target, String::new()).await,
    ];
    for server in servers {
        let verifier = verifier(&by_url(&server));
        let token = RawToken::new(rs256("rsa", "k1"));
        for _ in 0..3 {
            let outcome = verifier.verify(&token, UnixTime(NOW)).await;
            assert!(
                matches!(outcome, Err(TokenError::Unavailable(_))),
                "{outcome:?}"
            );
        }
        assert!(verifier.ready().await.is_err());
        assert_eq!(server.hits(), 1);
    }
    assert_eq!(target.hits(), 0, "redirects are not followed");
}

#[tokio::test]
async fn a_rotation_finds_each_key() {
    let second = "another-secret-of-more-than-thirty-two-bytes-0123";
    let config = TokenConfig {
        keys: vec![
            key("HS256", Some("new"), Some(SECRET), None),
            key("HS256", None, Some(second), None),
            key("RS256", Some("new"), None, Some(&pem("rsa", "public"))),
        ],
        ..TokenConfig::default()
    };
    let verifier = verifier(&config);
    let by = |kid: &str, secret: &str| {
        let header = format!(r#"{{"alg":"HS256"{kid}}}"#);
        sign_hs256(header.as_bytes(), PAYLOAD.as_bytes(), secret.as_bytes())
    };
    let rows = [
        (by(r#","kid":"new""#, SECRET), User("1")),
        (by(r#","kid":"new""#, second), User("1")),
        (by("", SECRET), User("1")),
        (by("", second), User("1")),
        (by(r#","kid":"old""#, second), User("1")),
        (by(r#","kid":"old""#, SECRET), Fails(Check::Signature)),
        (rs256("rsa", "new"), User("1")),
        (rs256("rsa_other", "new"), Fails(Check::Signature)),
        (rs256("rsa", "old"), Fails(Check::Key)),
    ];
    for (token, expect) in rows {
        assert_eq!(judge(&verifier, &token).await, expected(expect), "{token}");
    }
}
