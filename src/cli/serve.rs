//! `serve`: the gateway.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

/// Run the gateway
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate serve --config lockgate.toml
  LOCKGATE_CONFIG=lockgate.toml LOCKGATE_SERVER__LISTEN=127.0.0.1:8000 lockgate serve")]
pub(super) struct ServeArguments {
    /// Stop where a tenant cannot be served, instead of serving the others
    #[arg(long)]
    pub(super) strict: bool,
}

pub(super) fn run(path: Option<&Path>, arguments: &ServeArguments) -> ExitCode {
    let loaded = match super::load(path) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    drop((loaded, arguments.strict));
    super::fail("this build has no server")
}
