//! A tenant's keys: each parsed once and bound to the one algorithm it was configured for.
//!
//! A token's header chooses among keys by `kid`; it never chooses how a key is used.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
};
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use crate::config::{KeyConfig, TokenConfig};

/// As many keys as a rotation could ever need at once.
pub const MAX_KEYS: usize = 8;

/// RFC 7518 §3.2: an HMAC key should be at least as long as the hash of HS256.
const SHORT_HMAC_KEY: usize = 32;

/// Why a tenant's keys cannot be used. Never holds any of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's text says it")]
pub enum KeyError {
    #[error("no key is configured: set signing_key, verifying_key, keys or jwk_url")]
    NoKey,
    #[error("more than {MAX_KEYS} keys")]
    TooManyKeys,
    #[error("algorithm {0:?} is not one of {known}", known = algorithm_names())]
    UnknownAlgorithm(String),
    #[error("{0} needs signing_key")]
    NoSigningKey(&'static str),
    #[error("{0} needs verifying_key, a public key as PEM")]
    NoVerifyingKey(&'static str),
    #[error("signing_key is empty")]
    EmptyHmacKey,
    #[error("signing_key of {0} is an asymmetric key, a certificate or a JWK, not a shared secret")]
    AsymmetricHmacKey(&'static str),
    #[error("verifying_key is a private key; put its public half there")]
    PrivateKey,
    #[error("{0}: the key is not a PEM key for this algorithm")]
    NotAKeyFor(&'static str),
    #[error("{0}: an RSA key must have 2048 to 8192 bits")]
    RsaSize(&'static str),
    #[error("{0}: the key's curve is not that of the algorithm")]
    WrongCurve(&'static str),
    #[error("jwk_url must be https, or http to a loopback address")]
    JwksUrl,
    #[error("jwk_url needs algorithm, the only one that is then accepted")]
    JwksAlgorithm,
    #[error("the HTTP client for jwk_url cannot be made: {0}")]
    JwksClient(String),
}

/// The algorithms of the contract, by their names in `alg` (RFC 7518 §3.1, RFC 8037 §3.1).
const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

fn algorithm_names() -> String {
    ALGORITHMS.map(|(name, _)| name).join(", ")
}

/// An algorithm and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alg {
    pub(crate) name: &'static str,
    pub(crate) id: Algorithm,
}

impl Alg {
    pub(crate) fn named(name: &str) -> Result<Self, KeyError> {
        let known = ALGORITHMS.iter().find(|(known, _)| *known == name);
        let (name, id) = known.ok_or_else(|| KeyError::UnknownAlgorithm(name.to_owned()))?;
        Ok(Self { name, id: *id })
    }

    pub(crate) fn is_hmac(self) -> bool {
        self.id.family() == AlgorithmFamily::Hmac
    }
}

/// One key that verifies, and only by its own algorithm.
pub(crate) struct VerifyKey {
    pub(crate) alg: Alg,
    pub(crate) kid: Option<Box<str>>,
    key: DecodingKey,
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({}, [redacted])", self.alg.name)
    }
}

impl VerifyKey {
    pub(crate) fn from_config(config: &KeyConfig) -> Result<Self, KeyError> {
        let alg = Alg::named(&config.algorithm)?;
        let key = if alg.is_hmac() {
            let secret = config.signing_key.as_ref();
            hmac_key(
                alg,
                secret.ok_or(KeyError::NoSigningKey(alg.name))?.expose(),
            )?
        } else {
            let pem = config.verifying_key.as_ref();
            public_key(alg, pem.ok_or(KeyError::NoVerifyingKey(alg.name))?.expose())?
        };
        Ok(Self {
            alg,
            kid: config.kid.as_deref().map(Box::from),
            key,
        })
    }

    /// A key of a JWKS, checked by the caller but for the point on its curve.
    pub(crate) fn new(alg: Alg, kid: Box<str>, key: DecodingKey) -> Result<Self, KeyError> {
        check_point(alg, &key)?;
        Ok(Self {
            alg,
            kid: Some(kid),
            key,
        })
    }

    /// Whether this key made `signature` over `message`.
    pub(crate) fn verifies(&self, message: &str, signature: &Vec<u8>) -> bool {
        (DEFAULT_PROVIDER.verifier_factory)(&self.alg.id, &self.key)
            .is_ok_and(|verifier| verifier.verify(message.as_bytes(), signature).is_ok())
    }
}

fn hmac_key(alg: Alg, secret: &str) -> Result<DecodingKey, KeyError> {
    if secret.is_empty() {
        return Err(KeyError::EmptyHmacKey);
    }
    if looks_asymmetric(secret) {
        return Err(KeyError::AsymmetricHmacKey(alg.name));
    }
    if secret.len() < SHORT_HMAC_KEY {
        tracing::warn!(
            algorithm = alg.name,
            size_bytes = secret.len(),
            "HMAC key is shorter than 32 bytes: tokens can be forged by guessing it"
        );
    }
    Ok(DecodingKey::from_secret(secret.as_bytes()))
}

/// A public key where a shared secret should be lets everybody who knows it sign tokens.
fn looks_asymmetric(secret: &str) -> bool {
    let trimmed = secret.trim_start_matches(['\u{FEFF}', ' ', '\t', '\r', '\n']);
    let is_pem = ["---- BEGIN ", "-----BEGIN "]
        .iter()
        .any(|mark| secret.contains(mark));
    let is_ssh = ["ssh-", "ecdsa-sha2-"]
        .iter()
        .any(|mark| trimmed.starts_with(mark));
    let is_jwk = trimmed.starts_with(['{', '[']) && secret.contains("\"kty\"");
    is_pem || is_ssh || is_jwk
}

fn public_key(alg: Alg, pem: &str) -> Result<DecodingKey, KeyError> {
    if pem.contains("PRIVATE KEY-----") {
        return Err(KeyError::PrivateKey);
    }
    let pem = pem.trim().as_bytes();
    let key = match alg.id.family() {
        AlgorithmFamily::Hmac => return Err(KeyError::NotAKeyFor(alg.name)),
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem),
    };
    let key = key.map_err(|_| KeyError::NotAKeyFor(alg.name))?;
    if alg.id.family() == AlgorithmFamily::Rsa {
        let der = key
            .try_get_as_bytes()
            .map_err(|_| KeyError::NotAKeyFor(alg.name))?;
        let (n, e) = (DEFAULT_PROVIDER
            .key_utils
            .rsa_pub_components_from_public_key)(der)
        .map_err(|_| KeyError::NotAKeyFor(alg.name))?;
        if !rsa_is_strong(&n, &e) {
            return Err(KeyError::RsaSize(alg.name));
        }
    }
    check_point(alg, &key)?;
    Ok(key)
}

/// The key is a point on the algorithm's own curve. An RSA key passes.
fn check_point(alg: Alg, key: &DecodingKey) -> Result<(), KeyError> {
    let parsed = match (alg.id, key.try_get_as_bytes()) {
        (Algorithm::ES256, Ok(point)) => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
        (Algorithm::ES384, Ok(point)) => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point),
        (Algorithm::EdDSA, Ok(point)) => ParsedPublicKey::new(&ED25519, point),
        _ => return Ok(()),
    };
    match parsed {
        Ok(_) => Ok(()),
        Err(_) => Err(KeyError::WrongCurve(alg.name)),
    }
}

/// 2048 to 8192 bits and an odd public exponent above 1.
pub(crate) fn rsa_is_strong(modulus: &[u8], exponent: &[u8]) -> bool {
    let significant = |bytes: &[u8]| -> Vec<u8> {
        bytes
            .iter()
            .copied()
            .skip_while(|byte| *byte == 0)
            .collect()
    };
    let (n, e) = (significant(modulus), significant(exponent));
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    (2048..=8192).contains(&bits) && odd(&n) && odd(&e) && e != [1]
}

/// A tenant's configured keys.
#[derive(Debug)]
pub(crate) struct KeyRing(Vec<VerifyKey>);

impl KeyRing {
    pub(crate) fn new(config: &TokenConfig) -> Result<Self, KeyError> {
        if config.keys.len() > MAX_KEYS {
            return Err(KeyError::TooManyKeys);
        }
        config
            .keys
            .iter()
            .map(VerifyKey::from_config)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has_algorithm(&self, name: &str) -> bool {
        self.0.iter().any(|key| key.alg.name == name)
    }

    /// Keys that may have signed a token with this header, the likeliest first.
    ///
    /// With a `kid`: those of that kid, then those without one. Without: all, in their order.
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
    use crate::config::Secret;

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
        let config = TokenConfig {
            keys: vec![
                key("HS256", None, "1"),
                key("HS256", Some("a"), "2"),
                key("HS256", Some("b"), "3"),
                key("HS512", Some("a"), "4"),
                key("HS256", Some("a"), "5"),
            ],
            ..TokenConfig::default()
        };
        let ring = KeyRing::new(&config).unwrap();
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

    #[test]
    fn weak_rsa_is_weak() {
        let n = |bytes: usize| [vec![0xC0], vec![1; bytes - 1]].concat();
        assert!(rsa_is_strong(&n(256), &[1, 0, 1]));
        assert!(rsa_is_strong(&[vec![0, 0], n(256)].concat(), &[3]));
        assert!(!rsa_is_strong(&n(255), &[1, 0, 1]));
        assert!(!rsa_is_strong(&n(64), &[1, 0, 1]));
        assert!(!rsa_is_strong(&n(1025), &[1, 0, 1]));
        assert!(!rsa_is_strong(&n(256), &[1]));
        assert!(!rsa_is_strong(&n(256), &[2]));
        assert!(!rsa_is_strong(&[], &[]));
    }
}
