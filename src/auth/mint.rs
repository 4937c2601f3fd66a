//! Signs tokens like simplejwt, for `token mint`, `dev` and tests. The gateway itself issues no tokens.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{AlgorithmFamily, EncodingKey};
use serde_json::{Map, Value};

use crate::clock::UnixTime;
use crate::config::{ClaimRule, ClaimValue, ExpectedClaim, Fault, KeyConfig, TokenConfig};
use crate::ids::random_hex;

use super::algorithm::Alg;

/// The reason why no token could be signed. It never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The tenant holds only public keys.
    #[error(
        "no signing_key is configured: the gateway can verify this tenant's tokens, not make them"
    )]
    NoSigningKey,
    /// The key does not fit its algorithm.
    #[error(transparent)]
    Key(#[from] Fault),
    /// The private key cannot sign.
    #[error("signing_key of {0} is not a private key as PEM (PKCS#8, for RSA also PKCS#1)")]
    NotAPrivateKey(&'static str),
}

/// The contents of a new token.
#[derive(Clone, Debug)]
pub struct MintRequest<'a> {
    /// The user's id, written as text like in simplejwt 5.5.
    pub user_id: &'a str,
    /// Time from now to `exp`, in whole seconds.
    pub lifetime: Duration,
    /// Further claims. They replace built-in claims of the same name.
    pub claims: Map<String, Value>,
}

/// Signs an access token with the tenant's first key that can sign.
///
/// The claims are in simplejwt's order: type, `exp`, `iat`, `jti` of 32 hexadecimal digits, user, the rest.
///
/// # Errors
/// [`MintError`] if no configured key can sign.
pub fn mint(
    config: &TokenConfig,
    request: &MintRequest<'_>,
    now: UnixTime,
) -> Result<String, MintError> {
    let can_sign = |key: &&KeyConfig| key.signing_key.is_some();
    let key = config
        .keys
        .iter()
        .find(can_sign)
        .ok_or(MintError::NoSigningKey)?;
    let alg = Alg::named(&key.algorithm)?;

    let mut header = Map::new();
    header.insert("alg".into(), alg.name.into());
    if let Some(kid) = &key.kid {
        header.insert("kid".into(), kid.as_str().into());
    }
    header.insert("typ".into(), "JWT".into());

    let encode = |part: Map<String, Value>| URL_SAFE_NO_PAD.encode(Value::Object(part).to_string());
    let message = format!(
        "{}.{}",
        encode(header),
        encode(claims(config, request, now))
    );
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &encoding_key(alg, key)?, alg.id)
            .map_err(|_| MintError::NotAPrivateKey(alg.name))?;
    Ok(format!("{message}.{signature}"))
}

fn claims(config: &TokenConfig, request: &MintRequest<'_>, now: UnixTime) -> Map<String, Value> {
    let mut claims = Map::new();
    if let (Some(name), Some(kind)) = (&config.token_type_claim, config.token_types.first()) {
        claims.insert(name.clone(), kind.as_str().into());
    }
    let issued_at = now.0 as i64;
    let lifetime = i64::try_from(request.lifetime.as_secs()).unwrap_or(i64::MAX);
    claims.insert("exp".into(), issued_at.saturating_add(lifetime).into());
    claims.insert("iat".into(), issued_at.into());
    if let Some(name) = &config.jti_claim {
        claims.insert(name.clone(), random_hex().into());
    }
    claims.insert(config.user_id_claim.clone(), request.user_id.into());
    match config.audience.as_slice() {
        [] => {}
        [one] => drop(claims.insert("aud".into(), one.as_str().into())),
        several => drop(claims.insert("aud".into(), several.into())),
    }
    if let Some(issuer) = config.issuer.first() {
        claims.insert("iss".into(), issuer.as_str().into());
    }
    for expected in &config.claims {
        satisfy(expected, &mut claims);
    }
    claims.extend(request.claims.clone());
    claims
}

/// Adds a value that the tenant's rule for a claim takes, unless the claim is there.
fn satisfy(expected: &ExpectedClaim, claims: &mut Map<String, Value>) {
    let Some(first) = expected.rule.values().first() else {
        return;
    };
    let first = match first {
        ClaimValue::Text(text) => text.as_str().into(),
        ClaimValue::Integer(number) => (*number).into(),
        ClaimValue::Number(number) => (*number).into(),
        ClaimValue::Flag(flag) => (*flag).into(),
    };
    let value = match &expected.rule {
        ClaimRule::Contains(_) => Value::Array(vec![first]),
        ClaimRule::Equals(_) | ClaimRule::OneOf(_) => first,
    };
    claims.entry(expected.name.as_str()).or_insert(value);
}

fn encoding_key(alg: Alg, key: &KeyConfig) -> Result<EncodingKey, MintError> {
    let secret = key.signing_key.as_ref().ok_or(MintError::NoSigningKey)?;
    let pem = secret.expose().trim().as_bytes();
    let key = match alg.id.family() {
        AlgorithmFamily::Hmac => return Ok(EncodingKey::from_secret(secret.expose().as_bytes())),
        AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => EncodingKey::from_ec_pem(pem),
        AlgorithmFamily::Ed => EncodingKey::from_ed_pem(pem),
    };
    key.map_err(|_| MintError::NotAPrivateKey(alg.name))
}
