//! API keys: found by digest, compared in constant time, bound to one tenant or to none.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use sha2::{Digest, Sha256};

use crate::config::{Config, Secret};
use crate::ids::TenantId;

/// Whose key a call carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// `api.api_keys`: every tenant.
    Operator,
    /// `tenants.NAME.api_keys`: this one only.
    Tenant(TenantId),
}

impl Caller {
    /// Returns true if the key opens this tenant's resources, whether the tenant exists or not.
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
    /// The keys of the deployment and of its tenants.
    pub fn new(config: &Config) -> Self {
        Self(ArcSwap::from_pointee(Self::digests(config)))
    }

    /// Puts the keys of another configuration in the place of these.
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

    /// Whose key this is. Every key is looked at, so that the time tells nothing.
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
