//! Hostile tokens, one row each, with the check that refuses each.
//!
//! Other tests cover: expiry while a socket connects or is open, tenants and limits (the gateway's tests); denylist and
//! password, which need Redis and a user (`auth::denylist`, `vectors`); keys and key sets (`hostile_keys`). Of a
//! parameter that is given twice the first value that is not empty counts. A header of 100 KiB makes a token longer than
//! `max_size`. No claim names the tenant, because the host alone does. `iat` has a grace of `leeway`, as in simplejwt.

use super::support::{
    Expect, Expired, Fails, HEADER, NoSuchUser, PAYLOAD, SECRET, User, encode, expected, hs256,
    judge, sign_hs256, verifier,
};
use axum::http::{HeaderMap, HeaderValue};
use lockgate::auth::{RawToken, TokenPresence, TokenVerifier, find_token};
use lockgate::config::{IdType, TokenConfig};
use lockgate::error::Check;
use proptest::prelude::*;

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
            TokenPresence::Found { token, .. } => token.expose().to_owned(),
        }
    };
    let rows = [
        ("no token", "other=1", None, "missing"),
        ("empty token", "token=", None, "missing"),
        ("empty token", "token", None, "missing"),
        ("token twice", "token=a&token=b", None, "a"),
        ("token twice", "token=b&token=a", None, "b"),
        ("parameter name", "TOKEN=a", None, "missing"),
        ("parameter name", "token[]=a", None, "missing"),
        ("not UTF-8", "token=%C3%28", None, "not valid"),
        ("two places", "token=a", Some("Bearer b"), "not valid"),
        ("two places", "token=a", Some("Bearer a"), "a"),
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
        ("empty token", String::new(), Fails(Check::Format)),
        ("segments", "..".into(), Fails(Check::Format)),
        ("segments", header.into(), Fails(Check::Format)),
        ("segments", message.into(), Fails(Check::Format)),
        (
            "segments",
            format!("{good}.{signature}"),
            Fails(Check::Format),
        ),
        (
            "no signature",
            format!("{message}."),
            Fails(Check::Signature),
        ),
        ("alg none", unsigned("\"none\""), Fails(Check::Algorithm)),
        ("alg none", unsigned("\"None\""), Fails(Check::Algorithm)),
        ("alg none", unsigned("\"\""), Fails(Check::Algorithm)),
        ("alg none", with_alg("\"none\""), Fails(Check::Algorithm)),
        ("alg none", with_alg("\"NONE\""), Fails(Check::Algorithm)),
        ("alg none", with_alg("\"nOnE\""), Fails(Check::Algorithm)),
        (
            "other algorithm",
            with_alg("\"RS256\""),
            Fails(Check::Algorithm),
        ),
        (
            "other algorithm",
            with_alg("\"HS512\""),
            Fails(Check::Algorithm),
        ),
        ("alg", with_alg("\"hs256\""), Fails(Check::Algorithm)),
        ("alg", with_alg("[\"HS256\"]"), Fails(Check::Algorithm)),
        ("alg", with_alg("256"), Fails(Check::Algorithm)),
        ("alg", signed("{}", PAYLOAD), Fails(Check::Algorithm)),
        (
            "other payload",
            format!("{header}.{swapped}.{signature}"),
            Fails(Check::Signature),
        ),
        ("kid", with_header(r#""kid":"../../etc/passwd""#), User("1")),
        ("kid", with_header(r#""kid":"' OR 1=1 --\r\n""#), User("1")),
        ("kid", with_header(r#""kid":5"#), Fails(Check::Format)),
        ("kid", with_header(r#""kid":null"#), Fails(Check::Format)),
        (
            "kid",
            with_header(&format!(r#""kid":"{}""#, "k".repeat(10_240))),
            Fails(Check::Size),
        ),
        (
            "crit",
            with_header(r#""crit":["exp"],"exp":1"#),
            Fails(Check::Format),
        ),
        ("crit", with_header(r#""crit":[]"#), Fails(Check::Format)),
        (
            "crit",
            with_header(r#""crit":["b64"]"#),
            Fails(Check::Format),
        ),
        ("b64", with_header(r#""b64":false"#), Fails(Check::Format)),
        (
            "b64",
            with_header(r#""b64":false,"crit":["b64"]"#),
            Fails(Check::Format),
        ),
        (
            "compressed",
            signed(r#"{"alg":"HS256","zip":"DEF"}"#, "\u{3}\u{0}"),
            Fails(Check::Format),
        ),
        ("compressed", "a.b.c.d.e".into(), Fails(Check::Format)),
        ("header", signed("[]", PAYLOAD), Fails(Check::Format)),
        ("header", signed("alg", PAYLOAD), Fails(Check::Format)),
        (
            "header",
            signed(r#"{"alg":"HS256","alg":"none"}"#, PAYLOAD),
            Fails(Check::Algorithm),
        ),
        (
            "depth",
            signed(&deep("[", "]"), PAYLOAD),
            Fails(Check::Format),
        ),
        (
            "depth",
            signed(HEADER, &deep("[", "]")),
            Fails(Check::Format),
        ),
        ("base64", format!("{good}="), User("1")),
        ("base64", format!("{good}=="), Fails(Check::Format)),
        ("base64", good.replacen('.', "=.", 1), Fails(Check::Format)),
        ("base64", format!("{good}\n"), Fails(Check::Format)),
        ("base64", format!(" {good}"), Fails(Check::Format)),
        ("base64", format!("{good}\0"), Fails(Check::Format)),
        ("base64", good.replacen('e', "+", 1), Fails(Check::Format)),
        (
            "size",
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
    let fails = |id, name: &str, json: &str, check: Check| (id, with(name, json), Fails(check));
    let expired = |json: &str| ("exp", with("exp", json), Expired);
    let user = |json: &str, expect: Expect| ("user_id", with("user_id", json), expect);
    let rows = [
        ("no object", "[1]".into(), Fails(Check::Format)),
        ("no object", "\"x\"".into(), Fails(Check::Format)),
        ("no object", "5".into(), Fails(Check::Format)),
        ("no object", "null".into(), Fails(Check::Format)),
        ("trailing text", format!("{PAYLOAD}x"), Fails(Check::Format)),
        (
            "trailing text",
            format!("{PAYLOAD}{PAYLOAD}"),
            Fails(Check::Format),
        ),
        ("exp twice", twice("4102444800", "1"), Expired),
        ("exp twice", twice("1", "4102444800"), User("1")),
        ("byte order mark", format!("\u{FEFF}{PAYLOAD}"), User("1")),
        ("surrogate", with("note", r#""\ud800""#), User("1")),
        (
            "surrogate",
            with("user_id", r#""\ud800""#),
            Fails(Check::UserId),
        ),
        ("number", with("user_id", "1e308"), NoSuchUser),
        ("number", with("user_id", "1e400"), Fails(Check::UserId)),
        ("exp at now", with("exp", "1893455999"), Expired),
        ("exp at now", with("exp", "1893456000"), Expired),
        ("exp at now", with("exp", "1893456001"), User("1")),
        fails("exp", "exp", "", Check::Exp),
        fails("exp", "exp", "null", Check::Exp),
        fails("exp", "exp", "[4102444800]", Check::Exp),
        fails("exp", "exp", "{}", Check::Exp),
        fails("exp", "exp", "\"4102444800\"", Check::Exp),
        fails("exp", "exp", "\"soon\"", Check::Exp),
        ("exp", with("exp", "true"), Expired),
        ("exp", with("exp", "4102444800.5"), User("1")),
        expired("0"),
        expired("-1"),
        expired("-1e300"),
        fails("exp", "exp", "NaN", Check::Exp),
        fails("exp", "exp", "1e400", Check::Exp),
        fails("exp", "exp", "9223372036854775808", Check::Exp),
        fails("exp", "exp", "18446744073709551616", Check::Exp),
        fails("nbf", "nbf", "1893456001", Check::Nbf),
        fails("nbf", "nbf", "\"later\"", Check::Nbf),
        fails("nbf", "nbf", "\"1893456001\"", Check::Nbf),
        fails("nbf", "nbf", "null", Check::Nbf),
        fails("iat", "iat", "1893456001", Check::Iat),
        fails("iat", "iat", "[]", Check::Iat),
        fails("iat", "iat", "1e400", Check::Iat),
        fails("token_type", "token_type", "\"refresh\"", Check::TokenType),
        fails("token_type", "token_type", "\"sliding\"", Check::TokenType),
        fails("token_type", "token_type", "\"Access\"", Check::TokenType),
        fails("token_type", "token_type", "[\"access\"]", Check::TokenType),
        fails("token_type", "token_type", "null", Check::TokenType),
        fails("token_type", "token_type", "", Check::TokenType),
        fails("jti", "jti", "", Check::Jti),
        fails("jti", "jti", "null", Check::Jti),
        fails("jti", "jti", "5", Check::Jti),
        ("jti", with("jti", "\"\""), User("1")),
        (
            "jti",
            with("jti", &format!("\"{}\"", "j".repeat(4096))),
            User("1"),
        ),
        ("jti", with("jti", r#""a:b*{c}\r\n\u0000""#), User("1")),
        fails("sub", "sub", "5", Check::Sub),
        user("", Fails(Check::UserId)),
        user("null", NoSuchUser),
        user("{}", Fails(Check::UserId)),
        user("[1]", Fails(Check::UserId)),
        user("true", User("1")),
        user("1.5", User("1")),
        ("user_id", with("user_id", "1"), User("1")),
        ("user_id", with("user_id", "\"1\""), User("1")),
        ("user_id", with("user_id", "\"01\""), User("1")),
        ("user_id", with("user_id", "\" 1\""), User("1")),
        ("user_id", with("user_id", "\"\u{FF11}\""), User("1")),
        ("user_id", with("user_id", "\"1.0\""), Fails(Check::UserId)),
        ("user_id", with("user_id", "\"1e0\""), Fails(Check::UserId)),
        (
            "user_id",
            with("user_id", "\"1 OR 1=1\""),
            Fails(Check::UserId),
        ),
        (
            "user_id",
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
        ("audience", payload("\"app\"", ours), User("1")),
        (
            "audience",
            payload("\"other\"", ours),
            Fails(Check::Audience),
        ),
        ("audience", payload("[\"x\",\"app\"]", ours), User("1")),
        ("audience", payload("[]", ours), Fails(Check::Audience)),
        ("audience", payload("5", ours), Fails(Check::Audience)),
        (
            "audience",
            payload("[\"app\",5]", ours),
            Fails(Check::Audience),
        ),
        (
            "issuer",
            payload("\"app\"", "\"https://b.example\""),
            Fails(Check::Issuer),
        ),
        (
            "issuer",
            payload("\"app\"", "[\"https://a.example\"]"),
            Fails(Check::Issuer),
        ),
        ("issuer", PAYLOAD.into(), Fails(Check::Issuer)),
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
            "UUID: {form}"
        );
    }
}

#[tokio::test]
async fn an_expired_token_is_still_a_signed_one() {
    let verifier = verifier(&hs256(SECRET));
    let token = RawToken::new(signed(HEADER, &with("exp", "1000")));
    let signed_token = verifier.verify_signed_only(&token).await.unwrap();
    assert_eq!(signed_token.jti.unwrap().to_string(), "j");
    assert_eq!(signed_token.exp, Some(1000.0));
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

    /// A token with one changed byte is refused, or its base64 decodes to the same bytes.
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
