//! The sources of a tenant's keys: its configuration, and the URL of a key set. This module reads them and fetches nothing.
//!
//! The check of a configuration and the verifier of a tenant both use it, so that they accept the same keys.

use crate::config::{Fault, Faults, TokenConfig};

use super::jwks::SetUrl;
use super::keys::{Alg, KeyRing};

/// The keys of one tenant before its key set is fetched: at least one key or a set.
#[derive(Debug)]
pub(crate) struct KeySource {
    /// The configured keys.
    pub(crate) ring: KeyRing,
    /// The URL of a key set, and the only algorithm that its keys are used with.
    pub(crate) set: Option<(SetUrl, Alg)>,
}

impl KeySource {
    /// Reads `[tenants.NAME.token]`; fetches nothing.
    ///
    /// # Errors
    /// Every fault of the keys, relative to that table. No fault shows a key.
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

/// Returns true if `jwk_url` is ignored: like simplejwt, the gateway uses it for public keys only.
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
