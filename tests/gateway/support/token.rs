//! Good and bad tokens, encoded here without the gateway's own libraries.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::unique;

/// Unix seconds.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_secs()).expect("before the year 292e9")
}

/// The claims of an access token of five minutes, in simplejwt's order, with a `jti` of its own.
pub(crate) fn access(user_id: &str) -> Value {
    json!({
        "token_type": "access",
        "exp": now() + 300,
        "iat": now() - 1,
        "jti": format!("jti-{}", unique()),
        "user_id": user_id,
    })
}

/// Signs `claims` with HS256.
pub(crate) fn sign(key: &str, claims: &Value) -> String {
    sign_with_header(key, &json!({"alg": "HS256", "typ": "JWT"}), claims)
}

/// Signs with HMAC-SHA-256 whatever the header says.
pub(crate) fn sign_with_header(key: &str, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
