//! Checks that a Redis server runs scripts for the login, and names what does not work without them.

use super::finding::{Findings, Severity, with_kind};
use super::servers::Usage;
use crate::stores::redis::RedisStore;
use crate::stores::scripting;
use crate::tenant::scripts::ADVICE;

/// Checks one server.
pub(super) async fn look(
    findings: &mut Findings,
    on: (&str, &'static str),
    store: &RedisStore,
    tenants: &[Usage],
) {
    let why = match scripting::refusal(store).await {
        Ok(None) => return findings.add(on, Severity::Ok, "they run", ""),
        Ok(Some(why)) => why,
        Err(error) => return findings.add(on, Severity::Fail, with_kind(&error), ""),
    };
    let lacking = tenants.iter().filter_map(|usage| {
        let lacking = Some(usage.scripts.lacking()).filter(|lacking| !lacking.is_empty())?;
        Some(format!("{}: {lacking}", usage.tenant))
    });
    let lacking: Vec<_> = lacking.collect();
    let is_configured = |usage: &Usage| {
        let needs = usage.scripts;
        needs.core || needs.history || needs.presence
    };
    let severity = match (lacking.is_empty(), tenants.iter().any(is_configured)) {
        (true, _) => Severity::Note,
        (false, false) => Severity::Warn,
        (false, true) => Severity::Fail,
    };
    let detail = match lacking.is_empty() {
        true => format!("refused ({why}); nothing here needs them"),
        false => format!("refused ({why}); {}", lacking.join("; ")),
    };
    findings.add(on, severity, detail, ADVICE);
}
