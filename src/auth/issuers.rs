//! The keys of a tenant by the issuer of a token: those of each entry of `issuers`, and those beside the list.
//!
//! The `iss` of a token that is not verified yet chooses whose keys may verify it, byte for byte. It chooses nothing else, and
//! no key verifies a token of another issuer.

use futures_util::future::join_all;

use crate::config::{Fault, Faults, IssuerConfig, TokenConfig, Trust};
use crate::error::StoreError;

use super::json::Json;
use super::jwks::Jwks;
use super::key_source::{KeySettings, KeySource};
use super::keys::KeyRing;
use super::query_token::RawToken;
use super::segments::Segments;

/// Most entries of a tenant.
pub(crate) const MOST_ISSUERS: usize = 16;

/// The result of the search for the key of a token.
pub(crate) enum Signer {
    Found,
    NoKey,
    NotByThese,
}

/// The keys that one issuer signs with.
pub(crate) struct TrustedKeys {
    ring: KeyRing,
    jwks: Option<Jwks>,
}

impl TrustedKeys {
    /// Parses every key. Fetches nothing.
    pub(crate) fn new(settings: KeySettings<'_>) -> Result<Self, Faults> {
        let KeySource { ring, set } = KeySource::read(settings)?;
        let jwks = set.map(|(url, alg)| Jwks::new(url, alg)).transpose()?;
        Ok(Self { ring, jwks })
    }

    fn set_trust(&mut self, trust: &Trust) -> Result<(), Fault> {
        if let Some(jwks) = &self.jwks {
            self.jwks = Some(jwks.trusting(trust)?);
        }
        Ok(())
    }

    pub(crate) fn has_algorithm(&self, name: &str) -> bool {
        let fetched = self.jwks.as_ref().map(|jwks| jwks.algorithm().name);
        self.ring.has_algorithm(name) || fetched == Some(name)
    }

    /// Finds the key of a token. Configured keys come first, so that a key set is fetched only for other keys.
    pub(crate) async fn find_signer(
        &self,
        alg: &str,
        segments: &Segments<'_>,
    ) -> Result<Signer, StoreError> {
        let kid = segments.kid.as_deref();
        let mut signer = Signer::NoKey;
        for key in self.ring.candidates(alg, kid) {
            if key.verifies(segments.signing_input, &segments.signature) {
                return Ok(Signer::Found);
            }
            signer = Signer::NotByThese;
        }
        if let (Some(jwks), Some(kid)) = (&self.jwks, kid)
            && jwks.algorithm().name == alg
            && let Some(key) = jwks.key(kid).await?
        {
            signer = match key.verifies(segments.signing_input, &segments.signature) {
                true => Signer::Found,
                false => Signer::NotByThese,
            };
        }
        Ok(signer)
    }
}

/// One entry of `issuers`.
pub(crate) struct Issuer {
    name: Box<str>,
    keys: TrustedKeys,
    /// The audiences of its tokens. Empty: those beside the list.
    pub(crate) audience: Vec<String>,
}

/// The keys of one tenant.
pub(crate) struct Issuers {
    /// The keys beside the list, for tokens of no issuer in it.
    own: Option<TrustedKeys>,
    listed: Vec<Issuer>,
}

impl Issuers {
    /// Sets the trust in the servers of all key sets.
    pub(crate) fn set_trust(&mut self, trust: &Trust) -> Result<(), Fault> {
        let listed = self.listed.iter_mut().map(|issuer| &mut issuer.keys);
        let mut all = self.own.iter_mut().chain(listed);
        all.try_for_each(|keys| keys.set_trust(trust))
    }

    /// Reads the keys of a tenant. Fetches nothing.
    ///
    /// # Errors
    /// The faults of the keys, relative to `[tenants.NAME.token]`.
    pub(crate) fn new(config: &TokenConfig) -> Result<Self, Faults> {
        let listed = config.issuers.iter().enumerate();
        let listed = listed.map(|(index, entry)| Issuer::new(entry, config, index));
        let (listed, faults): (Vec<_>, Vec<_>) = listed.partition(Result::is_ok);
        let mut faults: Vec<_> = faults
            .into_iter()
            .filter_map(Result::err)
            .flat_map(|faults| faults.0)
            .collect();
        let own = match config.issuers.is_empty() || config.has_own_keys() {
            true => match TrustedKeys::new(KeySettings::own(config)) {
                Ok(keys) => Some(keys),
                Err(own) => {
                    faults.splice(0..0, own.0);
                    None
                }
            },
            false => None,
        };
        match faults.is_empty() {
            true => Ok(Self {
                own,
                listed: listed.into_iter().flatten().collect(),
            }),
            false => Err(Faults(faults)),
        }
    }

    /// Returns the keys for tokens with this `iss`, and their entry unless they stand beside the list. `None`: no key of the
    /// tenant may verify such a token.
    pub(crate) fn of(&self, iss: Option<&str>) -> Option<(&TrustedKeys, Option<&Issuer>)> {
        let listed = iss.and_then(|iss| self.listed.iter().find(|issuer| *issuer.name == *iss));
        match listed {
            Some(issuer) => Some((&issuer.keys, Some(issuer))),
            None => self.own.as_ref().map(|keys| (keys, None)),
        }
    }

    /// Returns the key sets with the issuers that they belong to. `None`: the set beside the list.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (Option<&str>, &Jwks)> {
        let own = self.own.iter().filter_map(|keys| keys.jwks.as_ref());
        let listed = self.listed.iter().filter_map(|issuer| {
            let jwks = issuer.keys.jwks.as_ref()?;
            Some((Some(&*issuer.name), jwks))
        });
        own.map(|jwks| (None, jwks)).chain(listed)
    }

    /// Fetches every key set that is not there yet.
    pub(crate) async fn ready(&self) -> Vec<(Option<&str>, Result<(), StoreError>)> {
        join_all(
            self.sets()
                .map(async |(issuer, jwks)| (issuer, jwks.ready().await)),
        )
        .await
    }

    /// Returns the names of the entries.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.listed.iter().map(|issuer| &*issuer.name)
    }
}

impl Issuer {
    fn new(entry: &IssuerConfig, config: &TokenConfig, index: usize) -> Result<Self, Faults> {
        let keys = TrustedKeys::new(KeySettings::of_issuer(entry, config));
        let keys = keys.map_err(|faults| {
            let below = |fault: crate::config::Fault| fault.below(&format!("issuers[{index}]"));
            Faults(faults.0.into_iter().map(below).collect())
        })?;
        Ok(Self {
            name: entry.issuer.as_str().into(),
            keys,
            audience: entry.audience.clone(),
        })
    }
}

/// Returns the index of the entry in `issuers` whose keys alone count for a token, by the `iss` that it claims to have.
pub(crate) fn listed_issuer(token: &RawToken, config: &TokenConfig) -> Option<usize> {
    if config.issuers.is_empty() {
        return None;
    }
    let segments = Segments::read(token.expose()).ok()?;
    let iss = segments.claims.get("iss").and_then(Json::as_text)?;
    config.issuers.iter().position(|entry| entry.issuer == iss)
}

/// Names the known issuer that a token's `iss` was probably meant to be, and the difference.
pub(crate) fn near_miss<'k>(iss: &str, known: impl Iterator<Item = &'k str>) -> Option<String> {
    let bare = |text: &'k str| text.trim_end_matches('/');
    let no_scheme = |text: &str| text.split_once("://").map(|(_, rest)| rest.to_owned());
    known.into_iter().find_map(|name| {
        let difference = if iss == name {
            return None;
        } else if iss.trim_end_matches('/') == bare(name) {
            match iss.len() > name.len() {
                true => "has a slash more at its end",
                false => "has a slash less at its end",
            }
        } else if iss.eq_ignore_ascii_case(name) {
            "has other capitals"
        } else if no_scheme(iss).is_some_and(|rest| no_scheme(name) == Some(rest)) {
            "has another scheme"
        } else {
            return None;
        };
        Some(format!("the token's iss {difference} than {name:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_that_differs_in_little_is_named() {
        let known = ["https://id.example/", "https://other.example"];
        for (iss, expected) in [
            ("https://id.example", Some("a slash less")),
            ("https://id.example//", Some("a slash more")),
            ("https://other.example/", Some("a slash more")),
            ("https://ID.example/", Some("other capitals")),
            ("http://id.example/", Some("another scheme")),
            ("https://id.example/", None),
            ("https://third.example", None),
            ("", None),
        ] {
            let told = near_miss(iss, known.into_iter());
            match expected {
                None => assert_eq!(told, None, "{iss}"),
                Some(part) => assert!(
                    told.as_ref().is_some_and(|t| t.contains(part)),
                    "{iss} {told:?}"
                ),
            }
        }
    }
}
