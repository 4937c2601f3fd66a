//! The sources of a tenant's keys: its configuration, and the URL of a key set. This module reads them and fetches nothing.
//!
//! The check of a configuration and the verifier of a tenant both use it, so that they accept the same keys.

use crate::config::{Fault, Faults, IssuerConfig, KeyConfig, TokenConfig};

use super::algorithm::Alg;
use super::jwks::SetUrl;
use super::keys::KeyRing;

/// The settings of one set of keys: those of a tenant, or of one of its issuers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySettings<'c> {
    keys: &'c [KeyConfig],
    jwk_url: Option<&'c str>,
    algorithm: Option<&'c str>,
    insecure: bool,
}

impl<'c> KeySettings<'c> {
    /// Returns those of `[tenants.NAME.token]` itself.
    pub(crate) fn own(config: &'c TokenConfig) -> Self {
        Self {
            keys: &config.keys,
            jwk_url: config.jwk_url.as_deref(),
            algorithm: config.algorithm.as_deref(),
            insecure: config.insecure_jwk_url,
        }
    }

    /// Returns those of an entry of its `issuers`.
    pub(crate) fn of_issuer(entry: &'c IssuerConfig, config: &TokenConfig) -> Self {
        Self {
            keys: &entry.keys,
            jwk_url: entry.jwk_url.as_deref(),
            algorithm: entry.algorithm.as_deref(),
            insecure: config.insecure_jwk_url,
        }
    }

    /// Returns true if there is a `jwk_url`.
    pub(crate) fn has_set(self) -> bool {
        self.jwk_url.is_some()
    }

    /// Returns true if `jwk_url` is ignored: like simplejwt, the gateway uses it for public keys only.
    pub(crate) fn passes_over_set(self) -> bool {
        let algorithm = self.algorithm.map(Alg::named);
        self.jwk_url.is_some() && matches!(algorithm, Some(Ok(alg)) if alg.is_hmac())
    }

    /// Returns true if the keys come over a connection that others may change.
    pub(crate) fn is_insecure(self) -> bool {
        let url = self.jwk_url.map(|url| SetUrl::parse(url, self.insecure));
        matches!(url, Some(Ok(url)) if url.is_insecure) && !self.passes_over_set()
    }
}

/// One set of keys before what stands at its URL is fetched: at least one key or a URL.
#[derive(Debug)]
pub(crate) struct KeySource {
    /// The configured keys.
    pub(crate) ring: KeyRing,
    /// The URL of a key set, and the only algorithm that its keys are used with.
    pub(crate) set: Option<(SetUrl, Alg)>,
}

impl KeySource {
    /// Reads the settings; fetches nothing.
    ///
    /// # Errors
    /// Every fault of the keys, relative to their table. No fault shows a key.
    pub(crate) fn read(settings: KeySettings<'_>) -> Result<Self, Faults> {
        let ring = KeyRing::new(settings.keys);
        let set = key_set(settings);
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

fn key_set(settings: KeySettings<'_>) -> Result<Option<(SetUrl, Alg)>, Faults> {
    let Some(url) = settings.jwk_url else {
        return Ok(None);
    };
    let algorithm = match settings.algorithm {
        Some(name) => Alg::named(name),
        None => {
            let expected = "the only algorithm that is accepted";
            let fault = Fault::new("algorithm", "jwk_url without algorithm", expected);
            Err(fault.advice("a token's header does not choose it"))
        }
    };
    match (SetUrl::parse(url, settings.insecure), algorithm) {
        (Ok(_), Ok(alg)) if alg.is_hmac() => Ok(None),
        (Ok(url), Ok(alg)) => Ok(Some((url, alg))),
        (url, alg) => {
            let faults = [url.err(), alg.err()];
            Err(Faults(faults.into_iter().flatten().collect()))
        }
    }
}
