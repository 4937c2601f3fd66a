//! A tenant's keys: which algorithm goes with which key. Never shows any of a key.

use std::net::IpAddr;

use crate::config::{KeyConfig, TokenConfig};
use crate::ids::TenantId;

use super::Checker;

/// As many keys as a rotation could ever need at once.
const MAX_KEYS: usize = 8;

/// RFC 7518 §3.2: a key of HS256 should be as long as its hash.
const HMAC_KEY_BYTES: usize = 32;

const ALGORITHMS: [&str; 12] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256",
    "ES384", "EdDSA",
];

pub(super) fn check(id: &TenantId, token: &TokenConfig, checker: &mut Checker<'_>) {
    let table = format!("tenants.{id}.token");
    let listed = checker.has(&format!("{table}.keys"));
    let shared = token
        .algorithm
        .as_deref()
        .is_some_and(|name| name.starts_with("HS"));
    if token.keys.is_empty() && (token.jwk_url.is_none() || shared) {
        let expected = "algorithm with signing_key or verifying_key, keys, or jwk_url";
        checker.mistake(&table, "no key", expected, "");
    }
    if token.keys.len() > MAX_KEYS {
        let found = format!("{} keys", token.keys.len());
        checker.mistake(
            &format!("{table}.keys"),
            found,
            format!("at most {MAX_KEYS}"),
            "",
        );
    }
    for (index, key) in token.keys.iter().enumerate() {
        let path = if listed {
            format!("{table}.keys[{index}]")
        } else {
            table.clone()
        };
        check_key(&path, key, checker);
    }
    let single = ["signing_key", "verifying_key"];
    let single = single
        .iter()
        .any(|name| checker.has(&format!("{table}.{name}")));
    if listed && !single && token.algorithm.is_some() && token.jwk_url.is_none() {
        let path = format!("{table}.algorithm");
        checker.mistake(
            &path,
            "algorithm beside keys",
            "the algorithm of each key in the list",
            "",
        );
    }
    if let Some(url) = &token.jwk_url {
        check_key_set(&table, url, token.algorithm.as_deref(), checker);
    }
    check_claims(&table, token, checker);
}

fn check_key(path: &str, key: &KeyConfig, checker: &mut Checker<'_>) {
    let at = |name: &str| format!("{path}.{name}");
    let algorithm = key.algorithm.as_str();
    if !is_algorithm(path, algorithm, checker) {
        return;
    }
    let shared = algorithm.starts_with("HS");
    match (shared, &key.signing_key, &key.verifying_key) {
        (true, None, _) => {
            let found = format!("{algorithm} without signing_key");
            checker.mistake(&at("signing_key"), found, "the shared key", "");
        }
        (true, _, Some(_)) => {
            // simplejwt's own rule: a project that sets both goes on working.
            let said = format!("not used: {algorithm} verifies with signing_key, as in simplejwt");
            checker.warn(&at("verifying_key"), said);
        }
        (false, _, None) => {
            let found = format!("{algorithm} without verifying_key");
            checker.mistake(&at("verifying_key"), found, "the public key as PEM", "");
        }
        _ => {}
    }
    if let (true, Some(secret)) = (shared, &key.signing_key) {
        check_shared(&at("signing_key"), secret.expose(), checker);
    }
    if let (false, Some(pem)) = (shared, &key.verifying_key) {
        check_public(&at("verifying_key"), pem.expose(), checker);
    }
}

fn is_algorithm(path: &str, algorithm: &str, checker: &mut Checker<'_>) -> bool {
    if ALGORITHMS.contains(&algorithm) {
        return true;
    }
    let found = match algorithm {
        "" => "no algorithm".to_owned(),
        short if short.len() <= 16 => format!("{short:?}"),
        _ => "another text".to_owned(),
    };
    let expected = format!("one of {}", ALGORITHMS.join(", "));
    checker.mistake(&format!("{path}.algorithm"), found, expected, "");
    false
}

fn check_shared(path: &str, secret: &str, checker: &mut Checker<'_>) {
    let trimmed = secret.trim_start();
    let public = secret.contains("---- BEGIN ")
        || secret.contains("-----BEGIN ")
        || ["ssh-", "ecdsa-sha2-"]
            .iter()
            .any(|mark| trimmed.starts_with(mark))
        || trimmed.starts_with(['{', '[']) && trimmed.contains("\"kty\"");
    if public {
        let advice = "with a public key here, everybody who knows it could sign tokens; use RS, PS, ES or EdDSA with verifying_key";
        checker.mistake(path, "a PEM, SSH or JWK key", "a shared secret", advice);
    } else if secret.len() < HMAC_KEY_BYTES {
        let bytes = secret.len();
        checker.warn(
            path,
            format!(
                "{bytes} bytes: a key under {HMAC_KEY_BYTES} bytes can be guessed from a token"
            ),
        );
    } else if secret.starts_with("django-insecure-") {
        checker.warn(
            path,
            "a key that startproject made for development; make another for production",
        );
    }
}

fn check_public(path: &str, pem: &str, checker: &mut Checker<'_>) {
    if pem.contains("PRIVATE KEY-----") {
        let advice = "put its public half here: openssl pkey -pubout";
        checker.mistake(path, "a private key", "a public key as PEM", advice);
    } else if !pem.contains("-----BEGIN ") || !pem.contains("-----END ") {
        let advice = "it begins with -----BEGIN PUBLIC KEY-----";
        checker.mistake(path, "text that is no PEM", "a public key as PEM", advice);
    }
}

fn check_key_set(table: &str, url: &str, algorithm: Option<&str>, checker: &mut Checker<'_>) {
    if !is_safe_url(url) {
        let expected = "https://…, or http:// with a loopback address";
        checker.mistake(&format!("{table}.jwk_url"), "another URL", expected, "");
    }
    let path = format!("{table}.algorithm");
    match algorithm {
        None => {
            let advice = "a token's header does not choose it";
            checker.mistake(
                &path,
                "jwk_url without algorithm",
                "the only algorithm that is accepted",
                advice,
            );
        }
        Some(shared) if shared.starts_with("HS") => {
            let said = format!("not used: {shared} verifies with signing_key, as in simplejwt");
            checker.warn(&format!("{table}.jwk_url"), said);
        }
        Some(other) => {
            is_algorithm(table, other, checker);
        }
    }
}

/// https, or a loopback address, which nobody else answers for.
fn is_safe_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<axum::http::Uri>() else {
        return false;
    };
    let Some(host) = uri.host() else { return false };
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    match uri.scheme_str() {
        Some("https") => true,
        Some("http") => host == "localhost" || address.is_ok_and(|ip| ip.is_loopback()),
        _ => false,
    }
}

fn check_claims(table: &str, token: &TokenConfig, checker: &mut Checker<'_>) {
    let at = |name: &str| format!("{table}.{name}");
    if token.sources.is_empty() {
        checker.mistake(
            &at("sources"),
            "an empty list",
            "at least one place for tokens",
            "",
        );
    }
    if token.token_type_claim.is_some() && token.token_types.is_empty() {
        let advice = "token_type_claim = false switches the check off";
        checker.mistake(
            &at("token_types"),
            "an empty list",
            "at least one type",
            advice,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::is_safe_url;

    #[test]
    fn key_sets_come_from_https_or_this_machine() {
        for good in [
            "https://a.example/jwks",
            "http://127.0.0.1:1/x",
            "http://[::1]/x",
            "http://localhost/x",
        ] {
            assert!(is_safe_url(good), "{good}");
        }
        for bad in [
            "http://a.example/jwks",
            "ftp://a",
            "/jwks",
            "",
            "http://10.0.0.1/",
            "http://127.0.0.1.example/",
        ] {
            assert!(!is_safe_url(bad), "{bad}");
        }
    }
}
