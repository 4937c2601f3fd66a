//! The configuration of a trial's replicas.

use std::fmt::Write as _;

use crate::deployment::Deployment;
use crate::model::HISTORY_SECONDS;
use crate::world::Setup;

/// Returns the options of one replica.
pub(crate) fn setup(deployment: &Deployment) -> Setup {
    let mut tables = format!(
        "[server.heartbeat]\ninterval = \"{}\"\ntimeout = \"1s\"\n",
        duration(deployment.heartbeat_seconds)
    );
    // Writing into a String cannot fail.
    write!(
        tables,
        "[denylist]\nrecheck = \"{}\"\nreplicas = {}\n",
        duration(deployment.recheck_seconds),
        deployment.denylist_replicas
    )
    .ok();
    let slots = deployment.kinds.iter().enumerate();
    let slots = slots.flat_map(|(k, kind)| (0..kind.per_socket as u64).map(move |slot| (k, slot)));
    let (mut path, mut groups) = (String::from("trial/"), Vec::new());
    for (k, slot) in slots {
        write!(path, "<int:n{k}_{slot}>/").ok();
        groups.push(format!("\"k{k}_{{n{k}_{slot}}}\""));
    }
    let groups = groups.join(", ");
    let resume = deployment.kinds.iter().any(|kind| kind.resume);
    write!(
        tables,
        "[[tenants.bench.routes]]\npath = \"{path}\"\ngroups = [{groups}]\nresume = {resume}\n"
    )
    .ok();
    for (k, kind) in deployment.kinds.iter().enumerate() {
        write!(
            tables,
            "[[tenants.bench.groups]]\nname = \"k{k}_<int:n>\"\n"
        )
        .ok();
        if kind.history > 0.0 {
            let (size, seconds) = (kind.history, HISTORY_SECONDS);
            writeln!(
                tables,
                "history = {{ size = {size}, ttl = \"{seconds}s\" }}"
            )
            .ok();
        }
        if kind.presence {
            tables += "presence = { fields = [\"username\"] }\n";
        }
    }
    Setup {
        more: deployment.tenants as usize - 1,
        api: deployment.revocations_per_second > 0.0,
        more_users: format!(
            "cache_ttl = \"{}\"\n",
            duration(deployment.cache_ttl_seconds)
        ),
        more_tables: tables,
        ..Setup::default()
    }
}

/// Writes a duration of the configuration.
fn duration(seconds: f64) -> String {
    format!("{:.0}ms", 1e3 * seconds)
}
