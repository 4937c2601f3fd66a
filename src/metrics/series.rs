//! The places for tenants with series of their own: at most `metrics.tenant_series` at a time.
//!
//! A tenant keeps its place until it is gone with its last socket. Then another tenant may take the place, and the series
//! of the first end: the recorder keeps them, but [`render`] leaves them out until the tenant comes back.

use std::collections::HashMap;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;

use crate::ids::TenantId;

/// Tenants whose series have begun in this process, each with the number of its places; at 0 its series have ended.
static BEGUN: Mutex<Option<HashMap<TenantId, usize>>> = Mutex::new(None);

/// The places of a process.
#[derive(Debug, Default)]
pub struct TenantSeries {
    granted: Arc<Mutex<HashMap<TenantId, usize>>>,
    most: usize,
}

/// A tenant's right to series of its own; dropping it gives the place back.
#[derive(Debug)]
pub struct SeriesPlace {
    tenant: TenantId,
    granted: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl TenantSeries {
    /// Builds places for at most `most` tenants (`metrics.tenant_series`).
    pub fn new(most: usize) -> Self {
        Self {
            granted: Arc::default(),
            most,
        }
    }

    /// Returns a place for the tenant, if one is free or the tenant has one already.
    pub fn grant(&self, tenant: &TenantId) -> Option<SeriesPlace> {
        let mut granted = self.granted.lock();
        if !granted.contains_key(tenant) && granted.len() >= self.most {
            return None;
        }
        *granted.entry(tenant.clone()).or_default() += 1;
        let mut begun = BEGUN.lock();
        let begun = begun.get_or_insert_default();
        *begun.entry(tenant.clone()).or_default() += 1;
        Some(SeriesPlace {
            tenant: tenant.clone(),
            granted: self.granted.clone(),
        })
    }
}

impl Drop for SeriesPlace {
    fn drop(&mut self) {
        let mut granted = self.granted.lock();
        if let Some(places) = granted.get_mut(&self.tenant) {
            *places -= 1;
            if *places == 0 {
                granted.remove(&self.tenant);
            }
        }
        let mut begun = BEGUN.lock();
        if let Some(places) = begun.as_mut().and_then(|begun| begun.get_mut(&self.tenant)) {
            *places -= 1;
        }
    }
}

/// Returns the scrape: everything in the recorder without the series that have ended.
pub fn render(recorder: &PrometheusHandle) -> String {
    let text = recorder.render();
    let begun = BEGUN.lock();
    match begun.as_ref() {
        Some(begun) if begun.values().any(|places| *places == 0) => without_ended(&text, begun),
        _ => text,
    }
}

fn without_ended(text: &str, begun: &HashMap<TenantId, usize>) -> String {
    let has_ended = |line: &str| {
        let tenant = line
            .split_once("tenant=\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        tenant.is_some_and(|(tenant, _)| begun.get(tenant) == Some(&0))
    };
    let lines = text.split_inclusive('\n');
    lines
        .filter(|line| line.starts_with('#') || !has_ended(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_given_back_is_the_next_tenants() {
        let series = TenantSeries::new(1);
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = series.grant(&a);
        // A tenant that a reload moves is built twice for a while, and takes one place.
        let second = series.grant(&a);
        assert!(first.is_some() && second.is_some() && series.grant(&b).is_none());
        drop(first);
        assert!(series.grant(&b).is_none());
        drop(second);
        assert!(series.grant(&b).is_some());
        assert!(series.grant(&a).is_some(), "b's place is free again");
    }

    #[test]
    fn a_scrape_leaves_out_series_that_have_ended() {
        let begun = HashMap::from([("gone".parse().unwrap(), 0), ("here".parse().unwrap(), 1)]);
        let text = "# HELP a tenant=\"gone\"\na{tenant=\"gone\"} 1\na{tenant=\"here\",code=\"1\"} 2\nb 3\n";
        let left = "# HELP a tenant=\"gone\"\na{tenant=\"here\",code=\"1\"} 2\nb 3\n";
        assert_eq!(without_ended(text, &begun), left);
    }
}
