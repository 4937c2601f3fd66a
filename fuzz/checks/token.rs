//! Tokens: the text of a query, and claims that carry a good signature. The report says what the server does.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use lockgate::auth::{RawToken, TokenPresence, TokenVerifier, find_token};
use lockgate::clock::UnixTime;
use lockgate::config::{IdType, KeyConfig, Secret, TokenConfig};

const KEY: &str = "the key of the fuzzer, and of nothing else";

static CONFIG: LazyLock<TokenConfig> = LazyLock::new(|| TokenConfig {
    keys: vec![KeyConfig {
        algorithm: "HS256".to_owned(),
        kid: None,
        signing_key: Some(Secret::from(KEY)),
        verifying_key: None,
    }],
    ..TokenConfig::default()
});
static VERIFIER: LazyLock<TokenVerifier> =
    LazyLock::new(|| TokenVerifier::new(&CONFIG, IdType::Int).expect("the key is good"));

fn signed(claims: &[u8]) -> RawToken {
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, input.as_bytes()));
    RawToken::new(format!("{input}.{signature}"))
}

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let token = match kind % 2 {
        0 => signed(bytes),
        _ => match find_token(str::from_utf8(bytes).ok(), &HeaderMap::new(), &CONFIG) {
            TokenPresence::Found { token, .. } => token,
            TokenPresence::Missing | TokenPresence::NotValid => return,
        },
    };
    let now = UnixTime(1_800_000_000.0);
    // Nothing is fetched, so the answers are there at once.
    let verified = VERIFIER.verify(&token, now).now_or_never();
    let explained = VERIFIER.explain(&token, now).now_or_never();
    let (verified, explained) = verified.zip(explained).expect("no key is fetched");
    assert_eq!(verified.is_ok(), explained.outcome.is_ok());
    if let Ok(verified) = verified {
        assert!(!verified.user_id.as_str().is_empty());
        assert!(
            serde_json::from_str::<serde_json::Value>(&verified.claims)
                .is_ok_and(|c| c.is_object())
        );
        // A signature of another key is never taken.
        let other = format!("{}A", token.expose());
        let other = VERIFIER.verify(&RawToken::new(other), now).now_or_never();
        assert!(other.expect("no key is fetched").is_err());
    }
}
