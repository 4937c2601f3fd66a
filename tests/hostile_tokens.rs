//! Hostile tokens, one row each: what a careless verifier lets in, and what this one says instead.
//!
//! The ids are those of the catalogue of bad inputs that the project keeps (J01 to J63). Not here:
//! J03 (a parameter given twice): the contract takes the first non-empty value; see `in_the_request`.
//! J28 (a header of 100 KiB): such a token is longer than `max_size`, as J38. J39, J63 (expiry while connecting or
//! connected), J60, J61 (tenants and limits) belong to the socket's life. J49, J50, J58 (denylist, password) need Redis
//! and a user: their pure half is tested in `auth::denylist` and in `vectors_tokens`. J59 (a tenant claim): there is none, the
//! host alone names the tenant. J45 asks for 60 s of grace for `iat`; simplejwt grants `leeway`, and so do we.

mod token_support;

use axum::http::{HeaderMap, HeaderValue};
use lockgate::auth::{RawToken, TokenError, TokenPresence, TokenVerifier, find_token};
use lockgate::clock::UnixTime;
use lockgate::config::{IdType, TokenConfig};
use lockgate::error::{Check, Refusal};
use proptest::prelude::*;
use serde_json::{Value, json};
use token_support::{JwksServer, encode, hs256, key, sign_hs256};

const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes-0123456789";
const NOW: f64 = 1_893_456_000.0;
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const PAYLOAD: &str =
    r#"{"token_type":"access","exp":4102444800,"iat":1700000000,"jti":"j","user_id":"1"}"#;

/// What a row expects.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    User(&'static str),
    Fails(Check),
    Expired,
    NoSuchUser,
}
use Expect::{Expired, Fails, NoSuchUser, User};

async fn judge(verifier: &TokenVerifier, token: &str) -> Result<String, Refusal> {
    match verifier
        .verify(&RawToken::new(token.into()), UnixTime(NOW))
        .await
    {
        Ok(verified) => Ok(verified.user_id.to_string()),
        Err(TokenError::Refused(refusal)) => Err(refusal),
        Err(TokenError::Unavailable(error)) => panic!("{error}"),
    }
}

fn expected(expect: Expect) -> Result<String, Refusal> {
    match expect {
        User(id) => Ok(id.into()),
        Fails(check) => Err(Refusal::TokenNotValid(check)),
        Expired => Err(Refusal::TokenExpired),
        NoSuchUser => Err(Refusal::UserNotFound),
    }
}

fn verifier(config: &TokenConfig) -> TokenVerifier {
    TokenVerifier::new(config, IdType::Int).unwrap()
}

fn keys() -> Value {
    let vectors: Value =
        serde_json::from_str(include_str!("vectors/simplejwt_tokens.json")).unwrap();
    vectors["keys"].clone()
}

fn pem(name: &str, half: &str) -> String {
    keys()[name][format!("{half}_pem")]
        .as_str()
        .unwrap()
        .to_owned()
}

fn signed(header: &str, payload: &str) -> String {
    sign_hs256(header.as_bytes(), payload.as_bytes(), SECRET.as_bytes())
}

/// The good payload with one member replaced, or taken out (`""`).
fn with(name: &str, json: &str) -> String {
    let good = [
        ("token_type", "\"access\""),
        ("exp", "4102444800"),
        ("iat", "1700000000"),
        ("jti", "\"j\""),
        ("user_id", "\"1\""),
    ];
    let mut members: Vec<String> = good
        .iter()
        .filter(|(key, _)| *key != name)
        .map(|(key, value)| format!("\"{key}\":{value}"))
        .collect();
    if !json.is_empty() {
        members.push(format!("\"{name}\":{json}"));
    }
    format!("{{{}}}", members.join(","))
}

#[test]
fn in_the_request() {
    let found = |query: &str, bearer: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        if let Some(bearer) = bearer {
            headers.insert("authorization", HeaderValue::from_static(bearer));
        }
        match find_token(Some(query), &headers, &TokenConfig::default()) {
            TokenPresence::Missing => "missing".to_owned(),
            TokenPresence::NotValid => "not valid".to_owned(),
            TokenPresence::Found { token } => token.expose().to_owned(),
        }
    };
    let rows = [
        ("J01", "other=1", None, "missing"),
        ("J02", "token=", None, "missing"),
        ("J02", "token", None, "missing"),
        ("J03", "token=a&token=b", None, "a"),
        ("J03", "token=b&token=a", None, "b"),
        ("J04", "TOKEN=a", None, "missing"),
        ("J04", "token[]=a", None, "missing"),
        ("J31", "token=%C3%28", None, "not valid"),
        ("J62", "token=a", Some("Bearer b"), "not valid"),
        ("J62", "token=a", Some("Bearer a"), "a"),
    ];
    for (id, query, bearer, expected) in rows {
        assert_eq!(found(query, bearer), expected, "{id} {query}");
    }
}

#[tokio::test]
async fn in_the_envelope() {
    let good = signed(HEADER, PAYLOAD);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let unsigned = |alg: &str| format!("{}.{payload}.", encode(format!(r#"{{"alg":{alg}}}"#)));
    let with_alg = |alg: &str| signed(&format!(r#"{{"alg":{alg}}}"#), PAYLOAD);
    let with_header = |more: &str| signed(&format!(r#"{{"alg":"HS256",{more}}}"#), PAYLOAD);
    let other = sign_hs256(
        HEADER.as_bytes(),
        with("user_id", "\"2\"").as_bytes(),
        b"another secret",
    );
    let swapped = other.split('.').nth(1).unwrap();
    let deep =
        |open: &str, close: &str| format!("{{\"x\":{}{}}}", open.repeat(2000), close.repeat(2000));
    let rows = [
        ("the good one", good.clone(), User("1")),
        ("J02", String::new(), Fails(Check::Format)),
        ("J05", "..".into(), Fails(Check::Format)),
        ("J05", header.into(), Fails(Check::Format)),
        ("J05", message.into(), Fails(Check::Format)),
        ("J05", format!("{good}.{signature}"), Fails(Check::Format)),
        ("J06", format!("{message}."), Fails(Check::Signature)),
        ("J07", unsigned("\"none\""), Fails(Check::Algorithm)),
        ("J07", unsigned("\"None\""), Fails(Check::Algorithm)),
        ("J07", unsigned("\"\""), Fails(Check::Algorithm)),
        ("J07", with_alg("\"none\""), Fails(Check::Algorithm)),
        ("J07", with_alg("\"NONE\""), Fails(Check::Algorithm)),
        ("J07", with_alg("\"nOnE\""), Fails(Check::Algorithm)),
        ("J09", with_alg("\"RS256\""), Fails(Check::Algorithm)),
        ("J10", with_alg("\"HS512\""), Fails(Check::Algorithm)),
        ("J11", with_alg("\"hs256\""), Fails(Check::Algorithm)),
        ("J11", with_alg("[\"HS256\"]"), Fails(Check::Algorithm)),
        ("J11", with_alg("256"), Fails(Check::Algorithm)),
        ("J11", signed("{}", PAYLOAD), Fails(Check::Algorithm)),
        (
            "J17",
            format!("{header}.{swapped}.{signature}"),
            Fails(Check::Signature),
        ),
        ("J19", with_header(r#""kid":"../../etc/passwd""#), User("1")),
        ("J19", with_header(r#""kid":"' OR 1=1 --\r\n""#), User("1")),
        ("J19", with_header(r#""kid":5"#), Fails(Check::Format)),
        ("J19", with_header(r#""kid":null"#), Fails(Check::Format)),
        (
            "J19",
            with_header(&format!(r#""kid":"{}""#, "k".repeat(10_240))),
            Fails(Check::Size),
        ),
        (
            "J23",
            with_header(r#""crit":["exp"],"exp":1"#),
            Fails(Check::Format),
        ),
        ("J23", with_header(r#""crit":[]"#), Fails(Check::Format)),
        (
            "J23",
            with_header(r#""crit":["b64"]"#),
            Fails(Check::Format),
        ),
        ("J24", with_header(r#""b64":false"#), Fails(Check::Format)),
        (
            "J24",
            with_header(r#""b64":false,"crit":["b64"]"#),
            Fails(Check::Format),
        ),
        (
            "J25",
            signed(r#"{"alg":"HS256","zip":"DEF"}"#, "\u{3}\u{0}"),
            Fails(Check::Format),
        ),
        ("J25", "a.b.c.d.e".into(), Fails(Check::Format)),
        ("J26", signed("[]", PAYLOAD), Fails(Check::Format)),
        ("J26", signed("alg", PAYLOAD), Fails(Check::Format)),
        (
            "J26",
            signed(r#"{"alg":"HS256","alg":"none"}"#, PAYLOAD),
            Fails(Check::Algorithm),
        ),
        (
            "J27",
            signed(&deep("[", "]"), PAYLOAD),
            Fails(Check::Format),
        ),
        ("J27", signed(HEADER, &deep("[", "]")), Fails(Check::Format)),
        ("J29", format!("{good}="), User("1")),
        ("J29", format!("{good}=="), Fails(Check::Format)),
        ("J29", good.replacen('.', "=.", 1), Fails(Check::Format)),
        ("J29", format!("{good}\n"), Fails(Check::Format)),
        ("J29", format!(" {good}"), Fails(Check::Format)),
        ("J29", format!("{good}\0"), Fails(Check::Format)),
        ("J29", good.replacen('e', "+", 1), Fails(Check::Format)),
        (
            "J38",
            format!("{message}.{}", "A".repeat(8192)),
            Fails(Check::Size),
        ),
    ];
    let verifier = verifier(&hs256(SECRET));
    for (id, token, expect) in rows {
        assert_eq!(
            judge(&verifier, &token).await,
            expected(expect),
            "{id} {token:.200}"
        );
    }
}

#[tokio::test]
async fn in_the_payload() {
    let twice = |first: &str, second: &str| {
        format!(r#"{{"token_type":"access","jti":"j","user_id":"1","exp":{first},"exp":{second}}}"#)
    };
    let fails = |name: &str, json: &str, check: Check| ("", with(name, json), Fails(check));
    let expired = |json: &str| ("J43", with("exp", json), Expired);
    let user = |json: &str, expect: Expect| ("J53", with("user_id", json), expect);
    let rows = [
        ("J32", "[1]".into(), Fails(Check::Format)),
        ("J32", "\"x\"".into(), Fails(Check::Format)),
        ("J32", "5".into(), Fails(Check::Format)),
        ("J32", "null".into(), Fails(Check::Format)),
        ("J33", format!("{PAYLOAD}x"), Fails(Check::Format)),
        ("J33", format!("{PAYLOAD}{PAYLOAD}"), Fails(Check::Format)),
        ("J34", twice("4102444800", "1"), Expired),
        ("J34", twice("1", "4102444800"), User("1")),
        ("J35", format!("\u{FEFF}{PAYLOAD}"), User("1")),
        ("J36", with("note", r#""\ud800""#), User("1")),
        ("J36", with("user_id", r#""\ud800""#), Fails(Check::UserId)),
        ("J37", with("user_id", "1e308"), NoSuchUser),
        ("J37", with("user_id", "1e400"), Fails(Check::UserId)),
        ("J40", with("exp", "1893455999"), Expired),
        ("J40", with("exp", "1893456000"), Expired),
        ("J40", with("exp", "1893456001"), User("1")),
        fails("exp", "", Check::Exp),
        fails("exp", "null", Check::Exp),
        fails("exp", "[4102444800]", Check::Exp),
        fails("exp", "{}", Check::Exp),
        fails("exp", "\"4102444800\"", Check::Exp),
        fails("exp", "\"soon\"", Check::Exp),
        ("J41", with("exp", "true"), Expired),
        ("J42", with("exp", "4102444800.5"), User("1")),
        expired("0"),
        expired("-1"),
        expired("-1e300"),
        fails("exp", "NaN", Check::Exp),
        fails("exp", "1e400", Check::Exp),
        fails("exp", "9223372036854775808", Check::Exp),
        fails("exp", "18446744073709551616", Check::Exp),
        fails("nbf", "1893456001", Check::Nbf),
        fails("nbf", "\"later\"", Check::Nbf),
        fails("nbf", "\"1893456001\"", Check::Nbf),
        fails("nbf", "null", Check::Nbf),
        fails("iat", "1893456001", Check::Iat),
        fails("iat", "[]", Check::Iat),
        fails("iat", "1e400", Check::Iat),
        fails("token_type", "\"refresh\"", Check::TokenType),
        fails("token_type", "\"sliding\"", Check::TokenType),
        fails("token_type", "\"Access\"", Check::TokenType),
        fails("token_type", "[\"access\"]", Check::TokenType),
        fails("token_type", "null", Check::TokenType),
        fails("token_type", "", Check::TokenType),
        fails("jti", "", Check::Jti),
        fails("jti", "null", Check::Jti),
        fails("jti", "5", Check::Jti),
        ("J47", with("jti", "\"\""), User("1")),
        (
            "J47",
            with("jti", &format!("\"{}\"", "j".repeat(4096))),
            User("1"),
        ),
        ("J48", with("jti", r#""a:b*{c}\r\n\u0000""#), User("1")),
        fails("sub", "5", Check::Sub),
        user("", Fails(Check::UserId)),
        user("null", NoSuchUser),
        user("{}", Fails(Check::UserId)),
        user("[1]", Fails(Check::UserId)),
        user("true", User("1")),
        user("1.5", User("1")),
        ("J54", with("user_id", "1"), User("1")),
        ("J54", with("user_id", "\"1\""), User("1")),
        ("J55", with("user_id", "\"01\""), User("1")),
        ("J55", with("user_id", "\" 1\""), User("1")),
        ("J55", with("user_id", "\"\u{FF11}\""), User("1")),
        ("J55", with("user_id", "\"1.0\""), Fails(Check::UserId)),
        ("J55", with("user_id", "\"1e0\""), Fails(Check::UserId)),
        ("J57", with("user_id", "\"1 OR 1=1\""), Fails(Check::UserId)),
        (
            "J57",
            with("user_id", "\"1\\r\\nFLUSHALL\""),
            Fails(Check::UserId),
        ),
        (
            "exp among others",
            with("exp", "1").replace("\"access\"", "\"refresh\""),
            Fails(Check::Exp),
        ),
        (
            "iat before exp",
            with("exp", "1").replace("1700000000", "4102444800"),
            Fails(Check::Iat),
        ),
    ];
    let verifier = verifier(&hs256(SECRET));
    for (id, payload, expect) in rows {
        let token = signed(HEADER, &payload);
        assert_eq!(
            judge(&verifier, &token).await,
            expected(expect),
            "{id} {payload:.200}"
        );
    }
}

#[tokio::test]
async fn with_audience_issuer_and_other_id_types() {
    let config = TokenConfig {
        audience: vec!["app".into()],
        issuer: vec!["https://a.example".into()],
        ..hs256(SECRET)
    };
    let payload = |aud: &str, iss: &str| {
        let members = format!(r#""aud":{aud},"iss":{iss},"#);
        PAYLOAD.replacen('{', &format!("{{{members}"), 1)
    };
    let ours = "\"https://a.example\"";
    let rows = [
        ("J51", payload("\"app\"", ours), User("1")),
        ("J51", payload("\"other\"", ours), Fails(Check::Audience)),
        ("J51", payload("[\"x\",\"app\"]", ours), User("1")),
        ("J51", payload("[]", ours), Fails(Check::Audience)),
        ("J51", payload("5", ours), Fails(Check::Audience)),
        ("J51", payload("[\"app\",5]", ours), Fails(Check::Audience)),
        (
            "J52",
            payload("\"app\"", "\"https://b.example\""),
            Fails(Check::Issuer),
        ),
        (
            "J52",
            payload("\"app\"", "[\"https://a.example\"]"),
            Fails(Check::Issuer),
        ),
        ("J52", PAYLOAD.into(), Fails(Check::Issuer)),
    ];
    let verifier = verifier(&config);
    for (id, payload, expect) in rows {
        let token = signed(HEADER, &payload);
        assert_eq!(
            judge(&verifier, &token).await,
            expected(expect),
            "{id} {payload}"
        );
    }

    let uuids = TokenVerifier::new(&hs256(SECRET), IdType::Uuid).unwrap();
    let canonical = "6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab";
    let forms = [
        canonical.to_owned(),
        canonical.to_uppercase(),
        format!("{{{canonical}}}"),
    ];
    for form in forms {
        let token = signed(HEADER, &with("user_id", &format!("\"{form}\"")));
        assert_eq!(
            judge(&uuids, &token).await,
            expected(User(canonical)),
            "J56 {form}"
        );
    }
}

/// A raw ECDSA signature as the DER that other protocols use.
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
    // J08: the public key as a shared secret, in each form that a careless verifier may hold it in.
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
                "J08"
            );
            let header = format!(r#"{{"alg":"{name}"}}"#);
            let posing = sign_hs256(header.as_bytes(), PAYLOAD.as_bytes(), secret);
            assert_eq!(
                judge(&tenant, &posing).await,
                expected(Fails(Check::Signature)),
                "J08"
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
        ("J12", vec![0; 64], Check::Signature),
        ("J12", vec![0xFF; 64], Check::Signature),
        ("J12", [&raw[..32], &[0; 32]].concat(), Check::Signature),
        ("J12", der(&raw), Check::Signature),
        ("J12", raw[..63].to_vec(), Check::Signature),
        ("J13", vec![7; 4096], Check::Signature),
        ("J13", vec![7; 16_384], Check::Size),
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
        ("J15", key("HS256", None, Some(""), None), false),
        ("J15", key("HS256", None, Some("secret"), None), true),
        (
            "J08",
            key("HS256", None, Some(&pem("rsa", "public")), None),
            false,
        ),
        (
            "J08",
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

/// A tenant whose keys are at this server.
fn by_url(server: &JwksServer) -> TokenConfig {
    TokenConfig {
        algorithm: Some("RS256".into()),
        jwk_url: Some(format!("{}/jwks", server.origin)),
        ..TokenConfig::default()
    }
}

/// A token signed by one of the vectors' RSA keys, with that `kid`.
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

/// The JWK of one of the vectors' RSA keys, as their own key set has it.
fn jwk(key_name: &str, kid: &str) -> Value {
    let vectors: Value =
        serde_json::from_str(include_str!("vectors/simplejwt_tokens.json")).unwrap();
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
        "J18"
    );
    for n in 0..50 {
        let unknown = rs256("rsa_other", &format!("unknown-{}", n % 2));
        assert_eq!(
            judge(&verifier, &unknown).await,
            expected(Fails(Check::Key)),
            "J18"
        );
    }
    assert_eq!(
        judge(&verifier, &rs256("rsa_other", "k1")).await,
        expected(Fails(Check::Signature))
    );
    assert_eq!(server.hits(), 1, "J18");
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
        assert_eq!(judge(&a, &of_a).await, expected(User("1")), "J20");
        assert_eq!(judge(&b, &of_b).await, expected(User("1")), "J20");
        assert_eq!(
            judge(&a, &of_b).await,
            expected(Fails(Check::Signature)),
            "J20"
        );
        assert_eq!(
            judge(&b, &of_a).await,
            expected(Fails(Check::Signature)),
            "J20"
        );
    }
}

#[tokio::test]
async fn key_sets_that_lie() {
    let mut weak = jwk("rsa", "k1");
    weak["n"] = weak["n"].as_str().unwrap()[..86].into();
    let sets = [
        ("J14", json!({"keys": [weak]})),
        (
            "J21",
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
            "J22"
        );
    }
    assert_eq!(attacker.hits(), 0, "J22");
}

#[tokio::test]
async fn key_sets_that_cannot_be_had_refuse_nobody() {
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

#[tokio::test]
async fn an_expired_token_is_still_a_signed_one() {
    let verifier = verifier(&hs256(SECRET));
    let token = RawToken::new(signed(HEADER, &with("exp", "1000")));
    let signed_token = verifier.verify_signed_only(&token).await.unwrap();
    assert_eq!(signed_token.jti.unwrap().as_str(), "j");
    assert_eq!(signed_token.expires_at, Some(1000.0));
    let forged = RawToken::new(sign_hs256(HEADER.as_bytes(), PAYLOAD.as_bytes(), b"x"));
    assert!(verifier.verify_signed_only(&forged).await.is_err());
}

fn decoded(token: &str) -> Option<Vec<Vec<u8>>> {
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let segment = |text: &str| base64::Engine::decode(&engine, text.trim_end_matches('=')).ok();
    token.split('.').map(segment).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// J16, J30: any change of a byte is refused, or means the same bytes.
    #[test]
    fn a_changed_token_is_refused(place in any::<prop::sample::Index>(), byte in 0_u8..128) {
        let good = signed(HEADER, PAYLOAD);
        let mut bytes = good.clone().into_bytes();
        let place = place.index(bytes.len());
        prop_assume!(bytes[place] != byte);
        bytes[place] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        let outcome = runtime().block_on(judge(&verifier(&hs256(SECRET)), &changed));
        prop_assert!(outcome.is_err() || decoded(&changed) == decoded(&good), "{changed}");
    }

    /// Inserting or removing bytes is a change, too.
    #[test]
    fn a_token_with_more_or_less_in_it_is_refused(
        place in any::<prop::sample::Index>(),
        more in proptest::option::of(any::<char>()),
    ) {
        let good = signed(HEADER, PAYLOAD);
        let mut changed = good.clone();
        let place = place.index(good.len());
        match more {
            Some(c) => changed.insert(place, c),
            None => drop(changed.remove(place)),
        }
        let outcome = runtime().block_on(judge(&verifier(&hs256(SECRET)), &changed));
        prop_assert!(outcome.is_err() || decoded(&changed) == decoded(&good), "{changed}");
    }

    /// Nothing that arrives makes the verifier fail.
    #[test]
    fn any_text_gets_a_verdict(header in ".{0,64}", payload in ".{0,128}", junk in ".{0,128}") {
        let verifier = verifier(&hs256(SECRET));
        let runtime = runtime();
        prop_assert!(runtime.block_on(judge(&verifier, &junk)).is_err());
        prop_assert!(runtime.block_on(judge(&verifier, &signed(&header, &payload))).is_err());
        prop_assert!(runtime.block_on(judge(&verifier, &signed(HEADER, &payload))).is_err());
    }
}
