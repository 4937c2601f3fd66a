//! Reads the public keys of a configuration, as PEM or in the form of OpenSSH, and holds any public key against its algorithm.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
};
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use super::algorithm::Alg;
use super::ssh_key::{self, SshKey};
use crate::config::Fault;

/// Describes the expected `verifying_key` of an algorithm.
pub(super) fn expected_key(alg: Alg) -> String {
    let kind = match alg.id {
        Algorithm::ES256 => "an EC public key on the curve P-256",
        Algorithm::ES384 => "an EC public key on the curve P-384",
        Algorithm::EdDSA => "an Ed25519 public key",
        _ => "an RSA public key of 2048 to 8192 bits",
    };
    format!("{kind} as PEM, for {}", alg.name)
}

pub(super) fn public_key(alg: Alg, text: &str) -> Result<DecodingKey, Fault> {
    let wrong = |found: &str| Fault::new("verifying_key", found, expected_key(alg));
    if ssh_key::is_ssh(text.trim()) {
        return ssh_public_key(alg, text);
    }
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

/// Reads a key in the form of OpenSSH.
fn ssh_public_key(alg: Alg, text: &str) -> Result<DecodingKey, Fault> {
    let wrong = |found: &str| Fault::new("verifying_key", found, expected_key(alg));
    let curve = match alg.id {
        Algorithm::ES256 => "nistp256",
        _ => "nistp384",
    };
    let key = ssh_key::read(text).ok_or_else(|| wrong("an SSH key that cannot be read"))?;
    let key = match (alg.id.family(), key) {
        (AlgorithmFamily::Rsa, SshKey::Rsa { modulus, exponent }) => {
            if !rsa_is_strong(&modulus, &exponent) {
                let bits = bits(&significant(&modulus));
                return Err(wrong(&format!("an RSA key of {bits} bits")));
            }
            DecodingKey::from_rsa_raw_components(&significant(&modulus), &significant(&exponent))
        }
        (AlgorithmFamily::Ec, SshKey::Ec { curve: own, point }) if own == curve => {
            DecodingKey::from_ec_der(&point)
        }
        (AlgorithmFamily::Ed, SshKey::Ed25519(bytes)) => DecodingKey::from_ed_der(&bytes),
        _ => return Err(wrong("an SSH key of another kind")),
    };
    match is_on_curve(alg, &key) {
        true => Ok(key),
        false => Err(wrong("a key on another curve")),
    }
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
pub(super) fn is_on_curve(alg: Alg, key: &DecodingKey) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
