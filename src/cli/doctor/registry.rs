//! The registry of tenants: it must answer, and each of its tenants be right.

use super::finding::{Findings, Severity};
use crate::config::Config;
use crate::registry::{self, AllTenants};

/// The most degraded tenants that are listed.
const MOST_LISTED: usize = 20;
const SUBJECT: &str = "registry";

/// Reads all tenants, if the configuration has a registry. Their own dependencies are looked at by `--tenant`.
pub(super) async fn look(config: &Config) -> Findings {
    let mut findings = Findings::default();
    if config.registry.database.is_none() {
        return findings;
    }
    match registry::read_all(config).await {
        Ok(all) => tell(&all, &mut findings),
        Err(problem) => findings.add(
            (SUBJECT, "reach"),
            Severity::Fail,
            problem.to_string(),
            "until it can be read, a replica that starts answers 503 for each host that is not one of the files",
        ),
    }
    findings
}

fn tell(all: &AllTenants, findings: &mut Findings) {
    let count = super::super::counted(all.registered, "tenant");
    findings.add(
        (SUBJECT, "reach"),
        Severity::Ok,
        format!("{count}; --tenant NAME looks at what one of them needs"),
        "",
    );
    for tenant in all.degraded.iter().take(MOST_LISTED) {
        let subject = format!("tenant {}", tenant.id);
        findings.add(
            (&subject, "stored"),
            Severity::Fail,
            tenant.why.clone(),
            "a replica that has served it goes on with its last good configuration, others answer 503: put a right one",
        );
    }
    let more = all.degraded.len().saturating_sub(MOST_LISTED);
    if more > 0 {
        findings.add(
            (SUBJECT, "stored"),
            Severity::Fail,
            format!("{more} more cannot be served as they are stored"),
            "`lockgate tenant list` names them",
        );
    }
}
