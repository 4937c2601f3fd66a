//! Every golden token of `tests/vectors/simplejwt_tokens.json` gets simplejwt's verdict, users included.
//!
//! The exceptions are those that `docs/token-compatibility.md` lists, each with its reason, and no others: a listed
//! token that agrees fails this test, too.

use std::collections::BTreeSet;
use std::time::Duration;

use super::support::{JwksServer, key};
use lockgate::auth::{
    Asked, Explained, Later, MintRequest, RawToken, Report, TokenError, TokenVerifier,
    VerifiedToken, mint,
};
use lockgate::clock::UnixTime;
use lockgate::config::{IdType, TokenConfig};
use md5::{Digest, Md5};
use serde_json::Value;

const VECTORS: &str = include_str!("../../vectors/simplejwt_tokens.json");
const EXCEPTIONS: &str = include_str!("../../../docs/token-compatibility.md");

/// A verdict in the words that both sides can be put in.
#[derive(Debug, PartialEq)]
enum Verdict {
    Accepted(String),
    Refused(String),
    /// simplejwt fails, or the gateway takes no such configuration: no token is accepted.
    Broken,
    Unavailable,
}

impl Verdict {
    fn expected(vector: &Value) -> Self {
        match vector["result"].as_str().unwrap() {
            "ok" => Verdict::Accepted(text_of(&vector["user_pk"])),
            "denied" => Verdict::Refused(vector["body"]["code"].as_str().unwrap().into()),
            _ => Verdict::Broken,
        }
    }

    /// A token that makes simplejwt fail is refused here, with any reason.
    fn agrees_with(&self, expected: &Self) -> bool {
        match (self, expected) {
            (Verdict::Refused(_), Verdict::Broken) | (Verdict::Broken, Verdict::Refused(_)) => true,
            (ours, theirs) => ours == theirs,
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), Into::into)
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => several.iter().map(text_of).collect(),
        _ => Vec::new(),
    }
}

/// The tenant's `[token]` table that says what the SIMPLE_JWT dict says.
fn token_config(config: &Value, jwks_origin: &str) -> TokenConfig {
    let settings = &config["settings"];
    let text = |name: &str| settings[name].as_str().filter(|text| !text.is_empty());
    let algorithm = text("ALGORITHM").unwrap_or("HS256");
    let signing = text("SIGNING_KEY").or(config["django_secret_key"].as_str());
    let is_hmac = algorithm.starts_with("HS");
    let jwk_url = text("JWK_URL").map(|url| url.replace("http://127.0.0.1:17080", jwks_origin));
    let mut token = TokenConfig {
        algorithm: Some(algorithm.into()),
        audience: texts(&settings["AUDIENCE"]),
        issuer: texts(&settings["ISSUER"]),
        ..TokenConfig::default()
    };
    if is_hmac || jwk_url.is_none() {
        token.keys = vec![key(algorithm, None, signing, text("VERIFYING_KEY"))];
    }
    token.jwk_url = jwk_url;
    for (name, value) in settings.as_object().unwrap() {
        match name.as_str() {
            "LEEWAY" => {
                let seconds = value
                    .get("timedelta")
                    .unwrap_or(value)
                    .as_f64()
                    .unwrap_or(0.0);
                token.leeway = Duration::from_secs_f64(seconds);
            }
            "USER_ID_CLAIM" => token.user_id_claim = text_of(value),
            "USER_ID_FIELD" => token.user_id_field = text_of(value),
            "JTI_CLAIM" => token.jti_claim = value.as_str().map(Into::into),
            "TOKEN_TYPE_CLAIM" => token.token_type_claim = value.as_str().map(Into::into),
            "CHECK_REVOKE_TOKEN" => token.check_revoke_token = value.as_bool().unwrap(),
            "REVOKE_TOKEN_CLAIM" => token.revoke_token_claim = text_of(value),
            "CHECK_USER_IS_ACTIVE" => token.check_user_is_active = value.as_bool().unwrap(),
            "AUTH_TOKEN_CLASSES" => set_token_classes(&mut token, value),
            "ALGORITHM" | "SIGNING_KEY" | "VERIFYING_KEY" | "JWK_URL" | "AUDIENCE" | "ISSUER" => {}
            other => panic!("setting {other} is not mapped"),
        }
    }
    token
}

fn set_token_classes(token: &mut TokenConfig, classes: &Value) {
    token.token_types.clear();
    for class in texts(classes) {
        match class.rsplit('.').next().unwrap() {
            "UntypedToken" => token.token_type_claim = None,
            class => {
                let kind = class.strip_suffix("Token").unwrap().to_lowercase();
                token.token_types.push(kind);
            }
        }
    }
}

/// The verdict of Django's user table on a verified token.
fn judge_user(config: &Value, token: &TokenConfig, verified: &VerifiedToken) -> Verdict {
    let field = |row: &Value, name: &str| match (&row[name], name) {
        (Value::Null, _) => String::new(),
        (value, _) => text_of(value),
    };
    let rows: Vec<&Value> = config["users"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| field(row, &token.user_id_field) == verified.user_id.as_str())
        .collect();
    let user = match rows.as_slice() {
        [] => return Verdict::Refused("user_not_found".into()),
        [user] => user,
        _ => return Verdict::Broken,
    };
    if token.check_user_is_active && user["is_active"] == Value::Bool(false) {
        return Verdict::Refused("user_inactive".into());
    }
    if token.check_revoke_token {
        let digest = Md5::digest(user["password"].as_str().unwrap());
        let digest: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        if verified.revoke_digest != Some(digest) {
            return Verdict::Refused("password_changed".into());
        }
    }
    Verdict::Accepted(text_of(&user["id"]))
}

fn id_type(config: &Value) -> IdType {
    match config["user_pk_type"].as_str().unwrap() {
        "uuid" => IdType::Uuid,
        _ => IdType::Int,
    }
}

async fn judge(
    config: &Value,
    token: &TokenConfig,
    verifier: &TokenVerifier,
    case: &Value,
) -> Verdict {
    let raw = RawToken::new(case["token"].as_str().unwrap().into());
    let now = UnixTime(case["now"].as_f64().unwrap());
    let outcome = verifier.verify(&raw, now).await;
    let explained = verifier.explain(&raw, now).await;
    let verdict = match &outcome {
        Ok(verified) => judge_user(config, token, verified),
        Err(TokenError::Refused(refusal)) => Verdict::Refused(refusal.code().into()),
        Err(TokenError::Unavailable(_)) => Verdict::Unavailable,
    };
    check_report(&explained, &verdict, case);
    verdict
}

/// The report of `token explain` says what the server decided.
fn check_report(explained: &Explained, verdict: &Verdict, case: &Value) {
    let fails = |code: &str| match verdict {
        Verdict::Refused(ours) if ours == code => Asked::Fail,
        _ => Asked::Pass,
    };
    let later = Later {
        denylist: Asked::Pass,
        user: fails("user_not_found"),
        is_active: fails("user_inactive"),
        password: fails("password_changed"),
    };
    let report = Report::assemble(explained, later);
    let accepted = match verdict {
        Verdict::Accepted(_) | Verdict::Broken => (Some(true), None),
        Verdict::Refused(code) => (Some(false), Some(code.as_str())),
        Verdict::Unavailable => (None, Some("unavailable")),
    };
    assert_eq!((report.accepted, report.code), accepted, "{}", case["name"]);
    assert_eq!(report.checks.len(), 18);
    let signature = case["token"].as_str().unwrap().rsplit('.').next().unwrap();
    let printed = serde_json::to_string(&report).unwrap();
    assert!(
        signature.len() < 8 || !printed.contains(signature),
        "{}",
        case["name"]
    );
}

fn exceptions() -> BTreeSet<(String, String)> {
    let cell = |text: &str| {
        text.trim()
            .strip_prefix('`')?
            .strip_suffix('`')
            .map(String::from)
    };
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|');
        Some((cell(cells.next()?)?, cell(cells.next()?)?))
    };
    EXCEPTIONS.lines().filter_map(row).collect()
}

#[tokio::test]
async fn every_golden_token_gets_the_verdict_of_simplejwt() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let (mut disagreeing, mut count) = (BTreeSet::new(), 0);
    for config in vectors["configs"].as_array().unwrap() {
        let name = config["config"].as_str().unwrap();
        let server = match config.get("jwks_document") {
            Some(set) => JwksServer::with_keys(set).await,
            None => JwksServer::start("404 Not Found", "", String::new()).await,
        };
        let token = token_config(config, &server.origin);
        let verifier = TokenVerifier::new(&token, id_type(config));
        for case in config["cases"].as_array().unwrap() {
            count += 1;
            let expected = Verdict::expected(&case["expected"]);
            let ours = match &verifier {
                Ok(verifier) => judge(config, &token, verifier, case).await,
                Err(_) => Verdict::Broken,
            };
            if !ours.agrees_with(&expected) {
                let case = case["name"].as_str().unwrap();
                println!("{name} / {case}: simplejwt {expected:?}, ours {ours:?}");
                disagreeing.insert((name.to_owned(), case.to_owned()));
            }
        }
    }
    assert_eq!(count, 248, "the file is the whole one");
    assert_eq!(
        disagreeing,
        exceptions(),
        "left: found, right: docs/token-compatibility.md"
    );
}

#[tokio::test]
async fn minted_tokens_are_like_those_of_simplejwt() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let mut compared = 0;
    for config in vectors["configs"].as_array().unwrap() {
        let token = token_config(config, "http://127.0.0.1:1");
        let Ok(verifier) = TokenVerifier::new(&token, id_type(config)) else {
            continue;
        };
        if token.keys.is_empty() {
            continue;
        }
        let now = UnixTime(vectors["now_default"].as_f64().unwrap());
        let cases = config["cases"].as_array().unwrap();
        let issued = cases
            .iter()
            .find(|case| case["name"] == "issued")
            .map(members);
        let user_id = match issued
            .as_ref()
            .map(|members| &members[&token.user_id_claim])
        {
            Some(user_id) => user_id.as_str().unwrap().to_owned(),
            None if id_type(config) == IdType::Uuid => uuid::Uuid::nil().to_string(),
            None => "1".to_owned(),
        };
        let request = MintRequest {
            user_id: &user_id,
            lifetime: Duration::from_secs(300),
            claims: serde_json::Map::new(),
        };
        let minted = mint(&token, &request, now).unwrap();
        let verified = verifier.verify(&RawToken::new(minted.clone()), now).await;
        let verified = verified.unwrap_or_else(|error| panic!("{}: {error:?}", config["config"]));
        assert_eq!(verified.user_id.as_str(), user_id);
        if let Some(issued) = issued {
            compared += 1;
            let ours = members(&serde_json::json!({ "token": minted }));
            let without_hash = issued
                .keys()
                .filter(|key| **key != token.revoke_token_claim);
            assert!(
                ours.keys().eq(without_hash),
                "{}: {ours:?}",
                config["config"]
            );
            assert_eq!(
                (&ours["exp"], &ours["iat"]),
                (&issued["exp"], &issued["iat"])
            );
            if let Some(jti) = &token.jti_claim {
                assert_eq!(ours[jti].as_str().unwrap().len(), 32);
            }
        }
    }
    assert!(compared >= 15, "{compared}");
}

fn members(case: &Value) -> serde_json::Map<String, Value> {
    use base64::Engine;
    let payload = case["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .unwrap();
    serde_json::from_slice(&payload).unwrap()
}
