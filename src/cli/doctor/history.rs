//! Checks of the histories of groups on one Redis server: that it keeps them, what they take, and that back ends can record.

use super::finding::{Findings, Severity};
use super::servers::Usage;
use crate::stores::inspection::Facts;
use crate::stores::redis::RedisStore;

/// The bytes of an event in the estimate of memory.
const EVENT: u64 = 300;
/// The bytes that a stream of Redis takes for an entry beside the event.
const ENTRY: u64 = 40;

/// Checks the histories of one tenant.
pub(super) async fn look(
    findings: &mut Findings,
    subject: &str,
    (store, facts): (&RedisStore, &Facts),
    usage: &Usage,
) {
    if usage.histories.is_empty() {
        return;
    }
    let tenant = &usage.tenant;
    let sizes = usage.histories.iter().map(|(name, history)| {
        let bytes = u64::from(history.size) * (EVENT + ENTRY);
        let kib = bytes.div_ceil(1024);
        format!(
            "{name}: up to {} events, about {kib} KiB for each group in use",
            history.size
        )
    });
    let detail = format!(
        "{tenant}: {} (with events of {EVENT} bytes)",
        sizes.collect::<Vec<_>>().join("; ")
    );
    let (severity, detail, advice) = match facts.evicts() {
        Some(true) => (
            Severity::Warn,
            format!("{detail}; Redis may evict them before their time"),
            "set maxmemory-policy noeviction and watch used_memory, or give the layer a Redis of its own",
        ),
        _ => (Severity::Ok, detail, ""),
    };
    findings.add((subject, "history"), severity, detail, advice);
    let kind = usage.layer.as_ref().map(|(kind, _)| kind);
    if kind.is_some_and(|kind| kind.has_channels()) {
        function(findings, subject, store, usage).await;
    }
}

/// Looks for the function by which back ends record.
async fn function(findings: &mut Findings, subject: &str, store: &RedisStore, usage: &Usage) {
    let on = (subject, "function");
    let tenant = &usage.tenant;
    let mut list = redis::cmd("FUNCTION");
    list.arg("LIST").arg("LIBRARYNAME").arg("lockgate");
    match store.query::<Vec<redis::Value>>("function", &list).await {
        Ok(found) if !found.is_empty() => {
            let detail = format!("{tenant}: the function by which back ends record is loaded");
            findings.add(on, Severity::Ok, detail, "");
        }
        Ok(_) => findings.add(
            on,
            Severity::Note,
            format!("{tenant}: no replica has loaded the function by which back ends record"),
            "a replica loads it when it connects; run doctor again once one runs",
        ),
        Err(error) => findings.add(
            on,
            Severity::Note,
            format!("{tenant}: functions cannot be listed ({error})"),
            "Redis has functions from 7.0 on; before that only back ends that may run EVALSHA record",
        ),
    }
}
