//! `healthcheck`: asks the replica of this machine whether it is alive or ready.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::http_client::{base_of, exchange, local_url};
use crate::config::{Draft, Environment, TenantFiles};

/// Ask the local replica whether it is alive: exit 0 or 1
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate healthcheck --config lockgate.toml
  lockgate healthcheck --ready --url http://127.0.0.1:9000 --timeout 500ms")]
pub(super) struct HealthcheckArguments {
    /// Ask whether it is ready (/readyz) instead of alive (/livez)
    #[arg(long)]
    ready: bool,
    /// The admin listener; without it, admin.listen of the configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The longest time to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = super::duration)]
    timeout: Duration,
}

pub(super) fn run(path: Option<&Path>, arguments: &HealthcheckArguments) -> ExitCode {
    // Mistakes in the file are ignored, because only the address is needed: a running replica stays healthy while an
    // operator corrects its file.
    let base = arguments.url.as_deref().map(base_of).unwrap_or_else(|| {
        let draft = Draft::read(path, &Environment::of_process(), &[], &TenantFiles::new());
        local_url(draft.config.admin.listen)
    });
    let page = if arguments.ready { "readyz" } else { "livez" };
    let url = format!("{base}/{page}");
    match exchange(arguments.timeout, |client| client.get(&url)) {
        Ok(answer) if answer.status == 200 => ExitCode::SUCCESS,
        Ok(answer) => super::fail(&format!(
            "{url}: status {}\n{}",
            answer.status,
            answer.body.trim_end()
        )),
        Err(error) => super::fail(&format!("{url}: {error}")),
    }
}
