//! Reads a JWK set (RFC 7517 §5), and selects the keys that may verify a tenant's tokens.
//!
//! Unsafe keys are left out: shared secrets, private or weak keys, keys for other uses, and keys that share a `kid`.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::{Map, Value};

use super::algorithm::Alg;
use super::keys::VerifyKey;
use super::public_key::rsa_is_strong;

/// The keys of a set by `kid`.
pub(crate) type KeysByKid = HashMap<Box<str>, Arc<VerifyKey>>;

/// Returns the keys of a set that may verify tokens by `alg`. `None`: the bytes are no JWK set.
pub(crate) fn read_set(body: &[u8], alg: Alg) -> Option<KeysByKid> {
    let set: Value = serde_json::from_slice(body).ok()?;
    let mut by_kid: HashMap<Box<str>, Option<Arc<VerifyKey>>> = HashMap::new();
    for jwk in set.get("keys")?.as_array()? {
        let usable = jwk.as_object().filter(|jwk| is_for(jwk, alg));
        let Some(kid) = usable.and_then(|jwk| jwk.get("kid")?.as_str()) else {
            continue;
        };
        let Some(key) = usable.and_then(|jwk| read_key(jwk, alg, kid)) else {
            continue;
        };
        // Two keys with one `kid` are ambiguous, so neither is used.
        let only = !by_kid.contains_key(kid);
        by_kid.insert(kid.into(), only.then(|| Arc::new(key)));
    }
    let unique = by_kid.into_iter();
    Some(unique.filter_map(|(kid, key)| Some((kid, key?))).collect())
}

/// Returns true if the set does not exclude the key from verifying signatures by `alg` (RFC 7517 §4).
fn is_for(jwk: &Map<String, Value>, alg: Alg) -> bool {
    let says = |name: &str, expected: &str| jwk.get(name).is_none_or(|value| value == expected);
    let operations = jwk.get("key_ops").and_then(Value::as_array);
    let may_verify = operations.is_none_or(|list| list.iter().any(|name| name == "verify"));
    let is_private = ["d", "p", "q", "dp", "dq", "qi", "k"]
        .iter()
        .any(|name| jwk.contains_key(*name));
    says("use", "sig") && says("alg", alg.name) && may_verify && !is_private
}

fn read_key(jwk: &Map<String, Value>, alg: Alg, kid: &str) -> Option<VerifyKey> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| {
        URL_SAFE_NO_PAD
            .decode(text(name)?.trim_end_matches('='))
            .ok()
    };
    let key = match (alg.id.family(), text("kty")?) {
        (AlgorithmFamily::Rsa, "RSA") => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            if !rsa_is_strong(&n, &e) {
                return None;
            }
            DecodingKey::from_rsa_raw_components(&n, &e)
        }
        (AlgorithmFamily::Ec, "EC") => {
            let (curve, size) = match alg.id {
                Algorithm::ES256 => ("P-256", 32),
                _ => ("P-384", 48),
            };
            let (x, y) = (bytes("x")?, bytes("y")?);
            if text("crv")? != curve || x.len() != size || y.len() != size {
                return None;
            }
            DecodingKey::from_ec_der(&[&[4], x.as_slice(), y.as_slice()].concat())
        }
        (AlgorithmFamily::Ed, "OKP") if text("crv")? == "Ed25519" => {
            DecodingKey::from_ed_der(&bytes("x")?)
        }
        _ => return None,
    };
    VerifyKey::new(alg, kid.into(), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: &str = "3vfmLf9xDXyEAkplnyH4203O55m5zir1pYs3um7Y5C23zTwm8oFfTHNVBOXPLeDp6PelyOMDj88I3lk2n_E2IsnKd0ffTEss9ympeHqjr2wwfF-oJvr6238iW-muB-iBVLXc04FZgB3I5BS3STe_D1JdGMEc3F0UUeezZFXCZ3Y1xcQt1gYEboE0K-TuP8vy8OXh6Xz5iWl3uS8V0xxT-tPuIWGSb_u5rEb_ez_VI_hiHqiSFsjAUzhrKif9gNNHynClpXBiBx6r-feoKCtsIfLVx5_F8EuYbit4nN1hsO7EXxXf3efMXEJf1sLDPDW2ScwIduNH1O0-I3NUe-bTSw";

    #[test]
    fn keys_that_must_not_verify_are_left_out() {
        let set = serde_json::json!({"keys": [
            {"kty": "RSA", "kid": "good", "n": N, "e": "AQAB", "use": "sig", "alg": "RS256"},
            {"kty": "RSA", "kid": "bare", "n": N, "e": "AQAB"},
            {"kty": "RSA", "kid": "ops", "n": N, "e": "AQAB", "key_ops": ["verify"]},
            {"kty": "RSA", "kid": "enc", "n": N, "e": "AQAB", "use": "enc"},
            {"kty": "RSA", "kid": "other-alg", "n": N, "e": "AQAB", "alg": "RS512"},
            {"kty": "RSA", "kid": "wrap", "n": N, "e": "AQAB", "key_ops": ["encrypt"]},
            {"kty": "RSA", "kid": "weak", "n": &N[..86], "e": "AQAB"},
            {"kty": "RSA", "kid": "e1", "n": N, "e": "AQ"},
            {"kty": "RSA", "kid": "private", "n": N, "e": "AQAB", "d": "AQAB"},
            {"kty": "RSA", "n": N, "e": "AQAB"},
            {"kty": "RSA", "kid": 5, "n": N, "e": "AQAB"},
            {"kty": "RSA", "kid": "twin", "n": N, "e": "AQAB"},
            {"kty": "RSA", "kid": "twin", "n": N, "e": "AQAB"},
            {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "what", "kid": "what"},
            null, [], "x",
        ]});
        let keys = read_set(set.to_string().as_bytes(), Alg::named("RS256").unwrap()).unwrap();
        let mut kids: Vec<&str> = keys.keys().map(|kid| &**kid).collect();
        kids.sort_unstable();
        assert_eq!(kids, ["bare", "good", "ops"]);
        assert!(read_set(b"[]", Alg::named("RS256").unwrap()).is_none());
        assert!(read_set(b"{\"keys\":{}}", Alg::named("RS256").unwrap()).is_none());
    }

    #[test]
    fn curves_must_be_those_of_the_algorithm() {
        let point = serde_json::json!({"keys": [
            {"kty": "EC", "kid": "off-curve", "crv": "P-256",
             "x": URL_SAFE_NO_PAD.encode([1; 32]), "y": URL_SAFE_NO_PAD.encode([2; 32])},
            {"kty": "EC", "kid": "k1", "crv": "secp256k1",
             "x": URL_SAFE_NO_PAD.encode([1; 32]), "y": URL_SAFE_NO_PAD.encode([2; 32])},
            {"kty": "OKP", "kid": "x", "crv": "X25519", "x": URL_SAFE_NO_PAD.encode([1; 32])},
        ]});
        for alg in ["ES256", "ES384", "EdDSA"] {
            let keys = read_set(point.to_string().as_bytes(), Alg::named(alg).unwrap()).unwrap();
            assert!(keys.is_empty(), "{alg}");
        }
    }
}
