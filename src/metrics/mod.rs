//! Every metric of the gateway: a table of the families, and the functions that record values.
//!
//! No other module names a family or uses the recorder. Labels come from closed sets. [`TenantMetrics`] keeps the handles of a
//! tenant, and [`TenantSeries`] their values: `/metrics` names at most `metrics.tenant_series` tenants.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

pub use dependency::*;
pub use family::Description;
pub use replica::*;
pub use scrape::SeriesPage;
pub use series::{SeriesStay, TenantSeries};
pub use tenant::{GaugeGuard, TenantMetrics};
pub use words::{
    AuthStep, ControlDrop, DropCause, EventSource, FrameKind, GapCause, HandshakeStage,
    LookupResult, RecoveryResult,
};

mod dependency;
mod families;
mod family;
mod ledger;
mod replica;
mod scrape;
mod series;
mod tenant;
mod words;

/// The recorder of this process.
static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the recorder of this process and describes every family. Further gateways of the process share it.
///
/// # Errors
/// If the program has installed a recorder of its own.
pub fn install() -> Result<
    PrometheusHandle,
    metrics::SetRecorderError<metrics_exporter_prometheus::PrometheusRecorder>,
> {
    let mut installed = INSTALLED.lock();
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for family in families::ALL {
        if let Some(buckets) = family.buckets {
            let matcher = Matcher::Full(family.name.to_owned());
            let with_buckets = builder.set_buckets_for_metric(matcher, buckets);
            builder = with_buckets.expect("no list of buckets is empty");
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    metrics_process::Collector::default().describe();
    metrics::with_recorder(|recorder| {
        for family in families::ALL {
            family.describe(recorder);
        }
    });
    *installed = Some(handle.clone());
    Ok(handle)
}

/// Returns every family of the gateway, without those of `process_*`.
pub fn families() -> &'static [Description] {
    families::ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule_and_stand_once() {
        let mut seen = std::collections::BTreeSet::new();
        for family in families() {
            let name = family.name;
            assert!(seen.insert(name), "{name} stands twice");
            assert!(name.starts_with("lockgate_"), "{name}");
            assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}");
            assert_eq!(
                family.buckets.is_some(),
                family.kind == "histogram",
                "{name}"
            );
        }
    }
}
