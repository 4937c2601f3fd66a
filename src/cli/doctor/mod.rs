//! `doctor`: checks everything that a configuration depends on, and gives advice for each finding.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use futures_util::future::join_all;

use self::finding::{Findings, Severity};
use self::servers::{RedisServer, redis_servers};
use super::lookup::{self, Vicinity};
use crate::config::Config;
use crate::ids::TenantId;
use crate::tenant::Makings;
use crate::validation::{self, LoadOptions};

mod acl;
mod database;
mod finding;
mod history;
mod machine;
mod neighbours;
mod reach;
mod redis;
mod registry;
mod rights;
mod scripts;
mod servers;
mod shared;
mod workers;

/// Check Redis, databases, clocks and limits, and print advice: exit 0, or 1 if a check fails
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate doctor --config lockgate.toml
  lockgate doctor --json | jq '.findings[] | select(.verdict != \"ok\")'
  lockgate doctor --tenant acme
  lockgate doctor --acl     the Redis users that separate the tenants' back ends")]
pub(super) struct DoctorArguments {
    /// Print the Redis ACL line of the gateway and of each tenant's back end (with --tenant: of its back end alone), and check nothing
    #[arg(long)]
    acl: bool,
    /// Look only at this tenant, of a file or of the registry, and at what it needs
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: Option<&Path>, arguments: &DoctorArguments) -> ExitCode {
    let config = match super::load_with(path, &LoadOptions::default()) {
        Ok(loaded) => loaded.config,
        Err(status) => return status,
    };
    let subject = match &arguments.tenant {
        // What the tenant shares with others counts for its line.
        Some(id) if arguments.acl => lookup::with_tenant(config, id).map(Subject::all),
        Some(id) => lookup::with_vicinity(config, id).map(|near| Subject::alone(near, id)),
        None => Ok(Subject::all(config)),
    };
    let subject = match subject {
        Ok(subject) => subject,
        Err(problem) => return super::fail(&problem.text),
    };
    let servers = match redis_servers(&subject.config) {
        Ok(servers) => servers,
        Err(error) => return super::fail(&error.to_string()),
    };
    if arguments.acl {
        let mut lines = acl::lines(&servers);
        if let Some(id) = &arguments.tenant {
            // The gateway's line has to name the prefixes of all tenants, so a part of it would take rights away.
            lines.retain(|line| line.tenants.iter().any(|tenant| tenant == id.as_str()));
        }
        super::print(&match arguments.json {
            true => format!("{}\n", acl::json(&lines)),
            false => acl::text(&lines),
        });
        return ExitCode::SUCCESS;
    }
    // The process needs one TLS provider. A key set may be fetched before a Redis link has set it.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let findings = match runtime {
        Ok(runtime) => {
            let findings = runtime.block_on(look(&subject, &servers));
            runtime.shutdown_background();
            findings
        }
        Err(error) => return super::fail(&format!("cannot start the runtime: {error}")),
    };
    match arguments.json {
        true => super::print(&format!("{}\n", findings.json())),
        false => super::print_painted(&format!("{findings:#}")),
    }
    if findings.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The subject of a look.
struct Subject {
    config: Config,
    /// The tenant that is looked at alone, with those whose events could meet its own.
    vicinity: Option<(TenantId, Vicinity)>,
}

impl Subject {
    fn all(config: Config) -> Self {
        Self {
            config,
            vicinity: None,
        }
    }

    fn alone(near: Vicinity, id: &TenantId) -> Self {
        let mut config = near.config.clone();
        config.tenants.retain(|known, _| known == id);
        // Its row has been read, and the other tenants are not asked for.
        config.registry.database = None;
        Self {
            config,
            vicinity: Some((id.clone(), near)),
        }
    }

    /// Looks for tenants that share names with others on one server.
    async fn neighbours(&self, servers: &[RedisServer]) -> Findings {
        let Some((id, near)) = &self.vicinity else {
            return neighbours::look(servers, &Makings::default(), None).await;
        };
        // Invalid URLs are those of others: its own have been read.
        let servers = redis_servers(&near.config).unwrap_or_default();
        let mut findings = neighbours::look(&servers, &near.makings, Some(id)).await;
        if let Some(problem) = &near.unread {
            findings.add(
                ("registry", "reach"),
                Severity::Fail,
                problem.clone(),
                "names that meet those of its tenants were not looked for",
            );
        }
        findings
    }
}

async fn look(subject: &Subject, servers: &[RedisServer]) -> Findings {
    let config = &subject.config;
    let mut findings = Findings::default();
    if servers.is_empty() {
        findings.add(
            ("redis", "reach"),
            Severity::Note,
            "none is configured: only one replica can run, and it forgets revocations when it ends",
            "set [redis] url before a second replica starts",
        );
    }
    for (key, authority) in validation::authorities(config) {
        let on = (key.as_str(), "expiry");
        match validation::expired(authority) {
            Some(text) => findings.add(on, Severity::Fail, text, "name its successor in ca"),
            None => findings.add(on, Severity::Ok, "none of its certificates has expired", ""),
        }
    }
    let (redis, neighbours, databases, key_sets, workers, registered) = tokio::join!(
        join_all(servers.iter().map(redis::look)),
        subject.neighbours(servers),
        database::look_at_databases(config),
        database::look_at_key_sets(config),
        workers::look(config),
        registry::look(config),
    );
    redis.into_iter().for_each(|found| findings.append(found));
    findings.append(neighbours);
    findings.append(databases);
    findings.append(key_sets);
    findings.append(workers);
    findings.append(registered);
    findings.append(machine::look(&config.server));
    findings
}
