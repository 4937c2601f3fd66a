//! Which tenants have series of their own: the bound of the label `tenant`.

use std::collections::HashSet;

use crate::ids::TenantId;

/// Which tenants have series of their own. Series never go away, so that a tenant that was removed keeps its place.
#[derive(Debug, Default)]
pub struct TenantSeries {
    granted: HashSet<TenantId>,
    most: usize,
}

impl TenantSeries {
    /// At most `most` (`metrics.tenant_series`).
    pub fn new(most: usize) -> Self {
        Self {
            granted: HashSet::new(),
            most,
        }
    }

    /// Whether the tenant has series of its own: who comes first, and stays.
    pub fn grant(&mut self, tenant: &TenantId) -> bool {
        if self.granted.len() < self.most {
            self.granted.insert(tenant.clone());
        }
        self.granted.contains(tenant)
    }
}
