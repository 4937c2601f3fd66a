//! The keys of a tenant. Each is parsed once and bound to its configured algorithm.
//!
//! A token's header selects a key by `kid`. It never selects the algorithm of a key.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
};
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use crate::config::{Fault, Faults, KeyConfig, Secret, TokenConfig};

/// Most keys of a tenant. A rotation needs two or three at once.
pub const MAX_KEYS: usize = 8;

/// Length in bytes below which an HMAC key gets a warning: that of the hash of HS256 (RFC 7518 §3.2).
const SHORT_HMAC_KEY: usize = 32;

/// The supported algorithms by their names in `alg` (RFC 7518 §3.1, RFC 8037 §3.1).
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

/// An algorithm and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alg {
    pub(crate) name: &'static str,
    pub(crate) id: Algorithm,
}

impl Alg {
    /// Finds the algorithm of this name. The fault is at the key `algorithm`.
    pub(crate) fn named(name: &str) -> Result<Self, Fault> {
        let known = ALGORITHMS.iter().find(|(known, _)| *known == name);
        let Some((name, id)) = known else {
            let found = match name {
                "" => "no algorithm".to_owned(),
                // A longer text is no name and may be a key, so it is not shown.
                short if short.len() <= 16 => format!("{short:?}"),
                _ => "another text".to_owned(),
            };
            let names = ALGORITHMS.map(|(name, _)| name).join(", ");
            return Err(Fault::new("algorithm", found, format!("one of {names}")));
        };
        Ok(Self { name, id: *id })
    }

    pub(crate) fn is_hmac(self) -> bool {
        self.id.family() == AlgorithmFamily::Hmac
    }
}

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
    let is_ssh = ["ssh-", "ecdsa-sha2-"]
        .iter()
        .any(|mark| trimmed.starts_with(mark));
    let is_jwk = trimmed.starts_with(['{', '[']) && secret.contains("\"kty\"");
    is_pem || is_ssh || is_jwk
}

/// Describes the expected `verifying_key` of an algorithm.
fn expected_key(alg: Alg) -> String {
    let kind = match alg.id {
        Algorithm::ES256 => "an EC public key on the curve P-256",
        Algorithm::ES384 => "an EC public key on the curve P-384",
        Algorithm::EdDSA => "an Ed25519 public key",
        _ => "an RSA public key of 2048 to 8192 bits",
    };
    format!("{kind} as PEM, for {}", alg.name)
}

fn public_key(alg: Alg, text: &str) -> Result<DecodingKey, Fault> {
    let wrong = |found: &str| Fault::new("verifying_key", found, expected_key(alg));
    if text.contains("PRIVATE KEY-----") {
        let advice = "put its public half here: openssl pkey -pubout";
        return Err(wrong("a private key").advice(advice));
    }
    if !text.contains("-----BEGIN ") || !text.contains("-----END ") {
        let advice = "it begins with -----BEGIN PUBLIC KEY-----";
        return Err(wrong("text that is no PEM").advice(advice));
    }
    if text.contains("\\n") {
        let advice = "a PEM has real line breaks: write it over several lines between \'\'\', or as { file = \"…\" }";
        return Err(wrong("a PEM with \\n in place of its line breaks").advice(advice));
    }
    let pem = text.trim().as_bytes();
    let key = match alg.id.family() {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem),
        AlgorithmFamily::Hmac => return Err(wrong("a PEM")),
    };
    let key = key.map_err(|_| wrong(kind_of(pem)))?;
    if alg.id.family() == AlgorithmFamily::Rsa {
        let parts = key.try_get_as_bytes().and_then(|der| {
            (DEFAULT_PROVIDER
                .key_utils
                .rsa_pub_components_from_public_key)(der)
        });
        let (n, e) = parts.map_err(|_| wrong(kind_of(pem)))?;
        if !rsa_is_strong(&n, &e) {
            let bits = bits(&significant(&n));
            return Err(wrong(&format!("an RSA key of {bits} bits")));
        }
    }
    if !is_on_curve(alg, &key) {
        return Err(wrong("a key on another curve"));
    }
    Ok(key)
}

/// Describes the key in a PEM that is of the wrong kind.
fn kind_of(pem: &[u8]) -> &'static str {
    if DecodingKey::from_ec_pem(pem).is_ok() {
        "an EC key"
    } else if DecodingKey::from_ed_pem(pem).is_ok() {
        "an Ed25519 key"
    } else if DecodingKey::from_rsa_pem(pem).is_ok() {
        "an RSA key"
    } else {
        "a PEM that cannot be read"
    }
}

/// Returns true if the key is a point on the algorithm's curve. An RSA key passes.
fn is_on_curve(alg: Alg, key: &DecodingKey) -> bool {
    let parsed = match (alg.id, key.try_get_as_bytes()) {
        (Algorithm::ES256, Ok(point)) => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
        (Algorithm::ES384, Ok(point)) => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point),
        (Algorithm::EdDSA, Ok(point)) => ParsedPublicKey::new(&ED25519, point),
        _ => return true,
    };
    parsed.is_ok()
}

/// Returns true for 2048 to 8192 bits and an odd public exponent above 1.
pub(crate) fn rsa_is_strong(modulus: &[u8], exponent: &[u8]) -> bool {
    let (n, e) = (significant(modulus), significant(exponent));
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    (2048..=8192).contains(&bits(&n)) && odd(&n) && odd(&e) && e != [1]
}

fn significant(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.iter().copied();
    bytes.skip_while(|byte| *byte == 0).collect()
}

/// Returns the length in bits of a number without leading zero bytes.
fn bits(number: &[u8]) -> usize {
    number.len() * 8
        - number
            .first()
            .map_or(0, |first| first.leading_zeros() as usize)
}

/// A tenant's configured keys.
#[derive(Debug)]
pub(crate) struct KeyRing(Vec<VerifyKey>);

impl KeyRing {
    /// Reads every key of a tenant. Faults are at `keys` and below.
    pub(crate) fn new(config: &TokenConfig) -> Result<Self, Faults> {
        if config.keys.len() > MAX_KEYS {
            let found = format!("{} keys", config.keys.len());
            return Err(Fault::new("keys", found, format!("at most {MAX_KEYS}")).into());
        }
        let keys = config.keys.iter().enumerate().map(|(index, key)| {
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
