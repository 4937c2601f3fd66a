//! Where a tenant's keys come from: those of its configuration, and those of a key set. Read here, fetched by nobody yet.
//!
//! The check of a configuration and the verifier of a tenant read the same, so that what one takes the other takes.

use crate::config::{Fault, Faults, TokenConfig};

use super::jwks::SetUrl;
use super::keys::{Alg, KeyRing};

/// The keys of one tenant, before any of a key set was fetched. There is at least one key or a set.
#[derive(Debug)]
pub(crate) struct KeySource {
    /// The configured keys.
    pub(crate) ring: KeyRing,
    /// Where a set of keys lies, and the only algorithm that they are used with.
    pub(crate) set: Option<(SetUrl, Alg)>,
}

impl KeySource {
    /// Reads `[tenants.NAME.token]`; fetches nothing.
    ///
    /// # Errors
    /// Everything that is wrong with the keys, at keys below that table. None shows any of a key.
    pub(crate) fn read(config: &TokenConfig) -> Result<Self, Faults> {
        let ring = KeyRing::new(config);
        let set = key_set(config);
        let (ring, set) = match (ring, set) {
            (Ok(ring), Ok(set)) => (ring, set),
            (ring, set) => {
                let faults = [ring.err(), set.err()].into_iter().flatten();
                return Err(Faults(faults.flat_map(|faults| faults.0).collect()));
            }
        };
        if ring.is_empty() && set.is_none() {
            let expected = "algorithm with signing_key or verifying_key, keys, or jwk_url";
            return Err(Fault::new("", "no key", expected).into());
        }
        Ok(Self { ring, set })
    }
}

/// Whether a `jwk_url` is passed over: simplejwt, too, looks at `JWK_URL` for public keys only.
pub(crate) fn passes_over_set(config: &TokenConfig) -> bool {
    let algorithm = config.algorithm.as_deref().map(Alg::named);
    config.jwk_url.is_some() && matches!(algorithm, Some(Ok(alg)) if alg.is_hmac())
}

fn key_set(config: &TokenConfig) -> Result<Option<(SetUrl, Alg)>, Faults> {
    let Some(url) = &config.jwk_url else {
        return Ok(None);
    };
    let algorithm = match &config.algorithm {
        Some(name) => Alg::named(name),
        None => {
            let expected = "the only algorithm that is accepted";
            let fault = Fault::new("algorithm", "jwk_url without algorithm", expected);
            Err(fault.advice("a token's header does not choose it"))
        }
    };
    match (SetUrl::parse(url), algorithm) {
        (Ok(_), Ok(alg)) if alg.is_hmac() => Ok(None),
        (Ok(url), Ok(alg)) => Ok(Some((url, alg))),
        (url, alg) => {
            let faults = [url.err(), alg.err()];
            Err(Faults(faults.into_iter().flatten().collect()))
        }
    }
}
