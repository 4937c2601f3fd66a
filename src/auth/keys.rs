//! The keys of a tenant. Each is parsed once and bound to its configured algorithm.
//!
//! A token's header selects a key by `kid`. It never selects the algorithm of a key.

use std::fmt;

use aws_lc_rs::hmac;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, DecodingKey};

use super::algorithm::Alg;
use super::public_key::{expected_key, is_on_curve, public_key};
use super::ssh_key;
use crate::config::{Fault, Faults, KeyConfig, Secret};

/// Most keys of a tenant. A rotation needs two or three at once.
pub const MAX_KEYS: usize = 8;

/// Length in bytes below which an HMAC key gets a warning: that of the hash of HS256 (RFC 7518 §3.2).
const SHORT_HMAC_KEY: usize = 32;

/// A key that verifies signatures of its own algorithm only.
pub(crate) struct VerifyKey {
    pub(crate) alg: Alg,
    pub(crate) kid: Option<Box<str>>,
    key: KeyForm,
}

enum KeyForm {
    /// An HMAC key with prepared inner and outer hash, which jsonwebtoken would compute again for each token.
    Hmac(Box<hmac::Key>),
    Public(DecodingKey),
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({}, [redacted])", self.alg.name)
    }
}

impl VerifyKey {
    /// Reads the key of one entry. Faults are at the keys of the entry.
    pub(crate) fn from_config(config: &KeyConfig) -> Result<Self, Fault> {
        let alg = Alg::named(&config.algorithm)?;
        let key = if let Some(hash) = hmac_hash(alg.id) {
            let Some(secret) = &config.signing_key else {
                let found = format!("{} without signing_key", alg.name);
                return Err(Fault::new("signing_key", found, "the shared key"));
            };
            check_secret(secret.expose())
                .map(|()| KeyForm::Hmac(Box::new(hmac::Key::new(hash, secret.expose().as_bytes()))))
        } else {
            let Some(pem) = &config.verifying_key else {
                let found = format!("{} without verifying_key", alg.name);
                return Err(Fault::new("verifying_key", found, expected_key(alg)));
            };
            public_key(alg, pem.expose()).map(KeyForm::Public)
        };
        Ok(Self {
            alg,
            kid: config.kid.as_deref().map(Box::from),
            key: key?,
        })
    }

    /// Wraps a key of a JWKS. The caller has checked everything except that the point is on its curve.
    pub(crate) fn new(alg: Alg, kid: Box<str>, key: DecodingKey) -> Option<Self> {
        is_on_curve(alg, &key).then_some(Self {
            alg,
            kid: Some(kid),
            key: KeyForm::Public(key),
        })
    }

    /// Returns true if `signature` over `message` is by this key.
    pub(crate) fn verifies(&self, message: &str, signature: &Vec<u8>) -> bool {
        match &self.key {
            KeyForm::Hmac(key) => hmac::verify(key, message.as_bytes(), signature).is_ok(),
            KeyForm::Public(key) => (DEFAULT_PROVIDER.verifier_factory)(&self.alg.id, key)
                .is_ok_and(|verifier| verifier.verify(message.as_bytes(), signature).is_ok()),
        }
    }
}

fn hmac_hash(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::HS256 => Some(hmac::HMAC_SHA256),
        Algorithm::HS384 => Some(hmac::HMAC_SHA384),
        Algorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

/// Returns warnings about valid keys, each with the key of the configuration.
pub(crate) fn remarks(config: &KeyConfig) -> Vec<(&'static str, String)> {
    let Some(alg) = Alg::named(&config.algorithm)
        .ok()
        .filter(|alg| alg.is_hmac())
    else {
        return Vec::new();
    };
    let mut remarks = Vec::new();
    if config.verifying_key.is_some() {
        // simplejwt has the same rule, so a project that sets both works here as well.
        let name = alg.name;
        let text = format!("not used: {name} verifies with signing_key, as in simplejwt");
        remarks.push(("verifying_key", text));
    }
    let secret = config.signing_key.as_ref().map_or("", Secret::expose);
    let bytes = secret.len();
    if (1..SHORT_HMAC_KEY).contains(&bytes) {
        let text = format!(
            "{bytes} bytes: a key under {SHORT_HMAC_KEY} bytes can be guessed from a token"
        );
        remarks.push(("signing_key", text));
    } else if secret.starts_with("django-insecure-") {
        let text = "a key that startproject made for development; make another for production";
        remarks.push(("signing_key", text.to_owned()));
    }
    remarks
}

fn check_secret(secret: &str) -> Result<(), Fault> {
    let wrong = |found: &str| Fault::new("signing_key", found, "a shared secret");
    if secret.is_empty() {
        return Err(wrong("an empty text"));
    }
    if looks_asymmetric(secret) {
        let advice = "everyone who knows a public key could sign tokens with it; use RS, PS, ES or EdDSA with verifying_key";
        return Err(wrong("a PEM, SSH or JWK key").advice(advice));
    }
    Ok(())
}

/// Returns true if a shared secret looks like a public key. With it, everyone who knows the public key could sign.
fn looks_asymmetric(secret: &str) -> bool {
    let trimmed = secret.trim_start_matches(['\u{FEFF}', ' ', '\t', '\r', '\n']);
    let is_pem = ["---- BEGIN ", "-----BEGIN "]
        .iter()
        .any(|mark| secret.contains(mark));
    let is_ssh = ssh_key::is_ssh(trimmed);
    let is_jwk = trimmed.starts_with(['{', '[']) && secret.contains("\"kty\"");
    is_pem || is_ssh || is_jwk
}

/// A tenant's configured keys.
#[derive(Debug)]
pub(crate) struct KeyRing(Vec<VerifyKey>);

impl KeyRing {
    /// Reads every key of a tenant. Faults are at `keys` and below.
    pub(crate) fn new(keys: &[KeyConfig]) -> Result<Self, Faults> {
        if keys.len() > MAX_KEYS {
            let found = format!("{} keys", keys.len());
            return Err(Fault::new("keys", found, format!("at most {MAX_KEYS}")).into());
        }
        let keys = keys.iter().enumerate().map(|(index, key)| {
            VerifyKey::from_config(key).map_err(|fault| fault.below(&format!("keys[{index}]")))
        });
        Faults::collect(keys).map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has_algorithm(&self, name: &str) -> bool {
        self.0.iter().any(|key| key.alg.name == name)
    }

    /// Returns the keys that may have signed a token with this header, the likeliest first.
    ///
    /// With a `kid`: keys of that kid, then keys without one. Without a `kid`: all keys in order.
    pub(crate) fn candidates<'a>(
        &'a self,
        alg: &'a str,
        kid: Option<&'a str>,
    ) -> impl Iterator<Item = &'a VerifyKey> {
        let of_algorithm = move |key: &&VerifyKey| key.alg.name == alg;
        let named = move |key: &&VerifyKey| kid.is_none() || key.kid.as_deref() == kid;
        let unnamed = move |key: &&VerifyKey| kid.is_some() && key.kid.is_none();
        let first = self.0.iter().filter(of_algorithm).filter(named);
        first.chain(self.0.iter().filter(of_algorithm).filter(unnamed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(algorithm: &str, kid: Option<&str>, secret: &str) -> KeyConfig {
        KeyConfig {
            algorithm: algorithm.into(),
            kid: kid.map(Into::into),
            signing_key: Some(Secret::from(secret)),
            verifying_key: None,
        }
    }

    #[test]
    fn secrets_that_are_no_secrets_are_refused() {
        let bad = [
            "",
            "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----",
            " \n-----BEGIN CERTIFICATE-----\nAA",
            "ssh-ed25519 AAAA",
            "{\"kty\":\"RSA\"}",
            " [{\"kty\":\"EC\"}]",
        ];
        for secret in bad {
            assert!(
                VerifyKey::from_config(&key("HS256", None, secret)).is_err(),
                "{secret:?}"
            );
        }
        assert!(VerifyKey::from_config(&key("HS256", None, "short")).is_ok());
        for algorithm in ["hs256", "none", "", "ES512", "ES256K", "RS256"] {
            assert!(
                VerifyKey::from_config(&key(algorithm, None, "x")).is_err(),
                "{algorithm}"
            );
        }
    }

    #[test]
    fn a_kid_names_keys_and_those_without_come_after() {
        let keys = [
            key("HS256", None, "1"),
            key("HS256", Some("a"), "2"),
            key("HS256", Some("b"), "3"),
            key("HS512", Some("a"), "4"),
            key("HS256", Some("a"), "5"),
        ];
        let ring = KeyRing::new(&keys).unwrap();
        let order = |kid| -> Vec<usize> {
            let place = |key: &VerifyKey| ring.0.iter().position(|other| std::ptr::eq(key, other));
            ring.candidates("HS256", kid).filter_map(place).collect()
        };
        assert_eq!(order(Some("a")), [1, 4, 0]);
        assert_eq!(order(Some("x")), [0]);
        assert_eq!(order(None), [0, 1, 2, 4]);
    }

    #[test]
    fn no_error_and_no_debug_output_shows_a_key() {
        let error =
            VerifyKey::from_config(&key("HS256", None, "{\"kty\":\"hunter2\"}")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let good = VerifyKey::from_config(&key("HS256", None, "hunter2")).unwrap();
        assert!(!format!("{good:?}").contains("hunter2"));
    }
}
