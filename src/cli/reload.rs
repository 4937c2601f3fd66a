//! `reload`: makes every replica read its files again, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::remote::{AlwaysJson, Remote, RemoteArguments, tell};

/// Make every replica read its configuration again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate reload
  lockgate reload --url http://127.0.0.1:9001 --api-key-file operator-key")]
pub(super) struct ReloadArguments {
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
}

pub(super) fn run(path: Option<&Path>, arguments: &ReloadArguments) -> ExitCode {
    let reloaded = Remote::find(path, &arguments.remote)
        .and_then(|remote| remote.call("/v1/reload", Some("{}".to_owned())));
    tell(reloaded, str::to_owned)
}
