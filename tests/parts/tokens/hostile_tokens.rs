//! Hostile tokens, one row each: what a careless verifier lets in, and what this one says instead.
//!
//! The ids are those of the catalogue of bad inputs that the project keeps (J01 to J63). Not here:
//! J03 (a parameter given twice): the contract takes the first non-empty value; see `in_the_request`.
//! J28 (a header of 100 KiB): such a token is longer than `max_size`, as J38. J39, J63 (expiry while connecting or
//! connected), J60, J61 (tenants and limits) belong to the socket's life. J49, J50, J58 (denylist, password) need Redis
//! and a user: their pure half is tested in `auth::denylist` and in `vectors`. J59 (a tenant claim): there is none, the
//! host alone names the tenant. J45 asks for 60 s of grace for `iat`; simplejwt grants `leeway`, and so do we.
//! Those about keys and key sets (J08, J12 to J15, J18, J20 to J22) stand in `hostile_keys`.

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
    let fails = |id, name: &str, json: &str, check: Check| (id, with(name, json), Fails(check));
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
        fails("J41", "exp", "", Check::Exp),
        fails("J41", "exp", "null", Check::Exp),
        fails("J41", "exp", "[4102444800]", Check::Exp),
        fails("J41", "exp", "{}", Check::Exp),
        fails("J41", "exp", "\"4102444800\"", Check::Exp),
        fails("J41", "exp", "\"soon\"", Check::Exp),
        ("J41", with("exp", "true"), Expired),
        ("J42", with("exp", "4102444800.5"), User("1")),
        expired("0"),
        expired("-1"),
        expired("-1e300"),
        fails("J43", "exp", "NaN", Check::Exp),
        fails("J43", "exp", "1e400", Check::Exp),
        fails("J43", "exp", "9223372036854775808", Check::Exp),
        fails("J43", "exp", "18446744073709551616", Check::Exp),
        fails("J44", "nbf", "1893456001", Check::Nbf),
        fails("J44", "nbf", "\"later\"", Check::Nbf),
        fails("J44", "nbf", "\"1893456001\"", Check::Nbf),
        fails("J44", "nbf", "null", Check::Nbf),
        fails("J45", "iat", "1893456001", Check::Iat),
        fails("J45", "iat", "[]", Check::Iat),
        fails("J45", "iat", "1e400", Check::Iat),
        fails("J46", "token_type", "\"refresh\"", Check::TokenType),
        fails("J46", "token_type", "\"sliding\"", Check::TokenType),
        fails("J46", "token_type", "\"Access\"", Check::TokenType),
        fails("J46", "token_type", "[\"access\"]", Check::TokenType),
        fails("J46", "token_type", "null", Check::TokenType),
        fails("J46", "token_type", "", Check::TokenType),
        fails("J47", "jti", "", Check::Jti),
        fails("J47", "jti", "null", Check::Jti),
        fails("J47", "jti", "5", Check::Jti),
        ("J47", with("jti", "\"\""), User("1")),
        (
            "J47",
            with("jti", &format!("\"{}\"", "j".repeat(4096))),
            User("1"),
        ),
        ("J48", with("jti", r#""a:b*{c}\r\n\u0000""#), User("1")),
        fails("sub", "sub", "5", Check::Sub),
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

#[tokio::test]
async fn an_expired_token_is_still_a_signed_one() {
    let verifier = verifier(&hs256(SECRET));
    let token = RawToken::new(signed(HEADER, &with("exp", "1000")));
    let signed_token = verifier.verify_signed_only(&token).await.unwrap();
    assert_eq!(signed_token.jti.unwrap().to_string(), "j");
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
