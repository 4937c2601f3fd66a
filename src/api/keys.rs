//! API keys, which are compared by digest in constant time and belong to one tenant or to the operators.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use sha2::{Digest, Sha256};

use crate::config::{Config, Secret};
use crate::ids::TenantId;

/// The owner of a call's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// An operator (`api.api_keys`), who may act for every tenant.
    Operator,
    /// A tenant (`tenants.NAME.api_keys`), who may act for itself only.
    Tenant(TenantId),
}

impl Caller {
    /// Returns true if the key may act for this tenant, which need not exist.
    pub fn may_act_for(&self, tenant: &str) -> bool {
        match self {
            Caller::Operator => true,
            Caller::Tenant(own) => own.as_str() == tenant,
        }
    }
}

/// The digests of all keys.
pub struct ApiKeys(ArcSwap<Vec<([u8; 32], Caller)>>);

impl ApiKeys {
    /// Makes the digests of the deployment's and its tenants' keys.
    pub fn new(config: &Config) -> Self {
        Self(ArcSwap::from_pointee(Self::digests(config)))
    }

    /// Replaces the keys with those of another configuration.
    pub fn replace(&self, config: &Config) {
        self.0.store(Arc::new(Self::digests(config)));
    }

    fn digests(config: &Config) -> Vec<([u8; 32], Caller)> {
        let entry = |key: &Secret, caller: &Caller| (digest(key.expose()), caller.clone());
        let mut keys: Vec<_> = config
            .api
            .api_keys
            .iter()
            .map(|key| entry(key, &Caller::Operator))
            .collect();
        for (id, tenant) in &config.tenants {
            let caller = Caller::Tenant(id.clone());
            keys.extend(tenant.api_keys.iter().map(|key| entry(key, &caller)));
        }
        keys
    }

    /// Returns the owner of a key. It compares all keys, so that its time reveals nothing about them.
    pub fn find(&self, key: &str) -> Option<Caller> {
        let digest = digest(key);
        let same = |known: &[u8; 32]| verify_slices_are_equal(known, &digest).is_ok();
        self.0.load().iter().fold(None, |found, (known, caller)| {
            if same(known) {
                Some(caller.clone())
            } else {
                found
            }
        })
    }
}

fn digest(key: &str) -> [u8; 32] {
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
        config.tenants.entry(acme.clone()).or_default().api_keys =
            vec!["acme-acme-acme-acme-acme-acme-ac".into()];
        let keys = ApiKeys::new(&config);
        let tenant = keys
            .find("acme-acme-acme-acme-acme-acme-ac")
            .expect("a known key");
        assert!(tenant.may_act_for("acme") && !tenant.may_act_for("other"));
        assert!(
            keys.find("operator-operator-operator-operat")
                .expect("a known key")
                .may_act_for("other")
        );
        assert_eq!(keys.find("acme-acme-acme-acme-acme-acme-aC"), None);
        assert_eq!(keys.find(""), None);
    }
}
