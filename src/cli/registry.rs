//! `registry`: the tables of the registry of tenants.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::registry::{self, RegistryProblem};

/// The database with tenants ([registry] of the configuration)
#[derive(Debug, Subcommand)]
pub(super) enum RegistryVerb {
    Migrate(MigrateArguments),
}

/// Make the tables, or bring them up to date
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate registry migrate --config lockgate.toml")]
pub(super) struct MigrateArguments {
    /// Print the versions of the tables before and after as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: Option<&Path>, verb: &RegistryVerb) -> ExitCode {
    let RegistryVerb::Migrate(arguments) = verb;
    let config = match super::load(path) {
        Ok(loaded) => loaded.config,
        Err(status) => return status,
    };
    match wait_for(registry::migrate(&config)) {
        Ok((before, after)) => {
            super::print(&match arguments.json {
                true => format!("{}\n", json!({"before": before, "after": after})),
                false if before == after => format!("the tables have version {after} already\n"),
                false => format!("the tables have version {after} now; before: {before}\n"),
            });
            ExitCode::SUCCESS
        }
        Err(problem) => super::fail(&problem),
    }
}

/// Runs work on the registry to its end.
pub(super) fn wait_for<T>(
    work: impl Future<Output = Result<T, RegistryProblem>>,
) -> Result<T, String> {
    // The call fails if the process already has a provider; any provider will do.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async { work.await.map_err(|problem| problem.to_string()) })
}
