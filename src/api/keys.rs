//! API keys, which are compared by digest in constant time and belong to one tenant or to the operators.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use super::problem::ApiProblem;
use crate::config::{Config, KeyScope, Secret};
use crate::ids::TenantId;

/// The owner of a call's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// An operator (`api.api_keys`), who may act for every tenant.
    Operator,
    /// An operator who may make some calls only (`api.confined_keys`).
    Confined(Arc<[KeyScope]>),
    /// A tenant (`tenants.NAME.api_keys`), who may act for itself only.
    Tenant(TenantId),
}

impl Caller {
    /// Returns true if the key may act for this tenant, which need not exist.
    pub(super) fn may_act_for(&self, tenant: &str) -> bool {
        match self {
            Caller::Operator | Caller::Confined(_) => true,
            Caller::Tenant(own) => own.as_str() == tenant,
        }
    }

    /// Returns true if the key may make calls of this scope. The calls that a tenant's key opens have no scopes for it.
    pub(super) fn has(&self, scope: KeyScope) -> bool {
        match self {
            Caller::Operator | Caller::Tenant(_) => true,
            Caller::Confined(scopes) => scopes.contains(&scope),
        }
    }

    /// Names the key of a call without telling anything of it: `operator key 1a2b3c4d` or `tenant key 1a2b3c4d`, with the
    /// beginning of its digest (SHA-256).
    pub(super) fn actor(&self, key: CallerKey) -> String {
        let owner = match self {
            Caller::Operator | Caller::Confined(_) => "operator",
            Caller::Tenant(_) => "tenant",
        };
        format!("{owner} key {}", hex::encode(&key.0[..4]))
    }
}

/// Refuses a tenant's key.
pub(super) fn operators_only(caller: &Caller) -> Result<(), ApiProblem> {
    match caller {
        // What a confined one may do was checked by the scope of the call.
        Caller::Operator | Caller::Confined(_) => Ok(()),
        Caller::Tenant(_) => Err(ApiProblem::OperatorsOnly),
    }
}

/// The key of a call, by which the log and the audit of the registry name its caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallerKey(pub(super) KeyDigest);

/// Returns the digest of the key in `Authorization: Bearer KEY`. The case of the scheme does not matter (RFC 9110 §11.1).
pub(super) fn presented(headers: &HeaderMap) -> Option<KeyDigest> {
    let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = header.split_once(' ')?;
    { scheme.eq_ignore_ascii_case("bearer") }.then(|| digest(key.trim()))
}

/// The digest of a key.
pub(super) type KeyDigest = [u8; 32];

/// The digests of all keys.
pub struct ApiKeys(ArcSwap<Known>);

struct Known {
    keys: Vec<(KeyDigest, Caller)>,
    /// `api.calls_per_second`
    operator_calls: u32,
}

impl Known {
    fn of(config: &Config) -> Self {
        Self {
            keys: ApiKeys::digests(config),
            operator_calls: config.api.calls_per_second,
        }
    }
}

impl ApiKeys {
    /// Makes the digests of the deployment's and its tenants' keys.
    pub fn new(config: &Config) -> Self {
        Self(ArcSwap::from_pointee(Known::of(config)))
    }

    /// Replaces the keys with those of another configuration.
    pub fn replace(&self, config: &Config) {
        self.0.store(Arc::new(Known::of(config)));
    }

    /// Returns the calls per second of each operator's key; 0 is no limit.
    pub(super) fn operator_calls(&self) -> u32 {
        self.0.load().operator_calls
    }

    fn digests(config: &Config) -> Vec<(KeyDigest, Caller)> {
        let entry = |key: &Secret, caller: &Caller| (digest(key.expose()), caller.clone());
        let mut keys: Vec<_> = config
            .api
            .api_keys
            .iter()
            .map(|key| entry(key, &Caller::Operator))
            .collect();
        for confined in &config.api.confined_keys {
            let caller = Caller::Confined(confined.scopes.as_slice().into());
            keys.extend(confined.key.iter().map(|key| entry(key, &caller)));
        }
        for (id, tenant) in &config.tenants {
            let caller = Caller::Tenant(id.clone());
            keys.extend(tenant.api_keys.iter().map(|key| entry(key, &caller)));
        }
        keys
    }

    /// Returns the owner of a key. It compares all keys, so that its time reveals nothing about them.
    pub(super) fn find(&self, digest: &KeyDigest) -> Option<Caller> {
        let same = |known: &KeyDigest| verify_slices_are_equal(known, digest).is_ok();
        let known = self.0.load();
        known.keys.iter().fold(None, |found, (known, caller)| {
            if same(known) {
                Some(caller.clone())
            } else {
                found
            }
        })
    }
}

fn digest(key: &str) -> KeyDigest {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_its_own_tenant_and_an_operators_key_opens_all() {
        let mut config = Config::default();
        config.api.api_keys = vec!["operator-operator-operator-operat".into()];
        let acme: TenantId = "acme".parse().expect("a tenant name");
        let own = config.tenants.entry(acme.clone()).or_default();
        Arc::make_mut(own).api_keys = vec!["acme-acme-acme-acme-acme-acme-ac".into()];
        let keys = ApiKeys::new(&config);
        let tenant = keys
            .find(&digest("acme-acme-acme-acme-acme-acme-ac"))
            .expect("a known key");
        assert!(tenant.may_act_for("acme") && !tenant.may_act_for("other"));
        assert!(
            keys.find(&digest("operator-operator-operator-operat"))
                .expect("a known key")
                .may_act_for("other")
        );
        assert_eq!(keys.find(&digest("acme-acme-acme-acme-acme-acme-aC")), None);
        assert_eq!(keys.find(&digest("")), None);
    }
}
