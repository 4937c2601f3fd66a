//! `serve`: runs the gateway.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use crate::config::{Config, LogConfig};
use crate::server::{Ended, Options, Server, Signals};
use crate::telemetry::{LogOutput, Telemetry};
use crate::validation::{LoadOptions, Loaded};

/// Run the gateway
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate serve --config lockgate.toml
  LOCKGATE_CONFIG=lockgate.toml LOCKGATE_SERVER__LISTEN=127.0.0.1:8000 lockgate serve")]
pub(super) struct ServeArguments {
    /// Stop if a tenant cannot be served, instead of serving the others
    #[arg(long)]
    pub(super) strict: bool,
}

pub(super) fn run(path: Option<&Path>, arguments: &ServeArguments) -> ExitCode {
    let loaded = match super::load(path) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let Loaded {
        config,
        mut files,
        secret_files,
        ..
    } = loaded;
    files.extend(secret_files);
    let source = path.map(Path::to_owned);
    let options = Options {
        strict: arguments.strict,
        load: Some(Arc::new(move || {
            Config::load(source.as_deref(), &LoadOptions::default())
        })),
        sources: files,
        ..Options::default()
    };
    in_runtime(&config.log.clone(), LogOutput::Stdout, async move {
        let signals = Signals::new()?;
        Server::start(config, options).await?.run(signals).await
    })
}

/// Runs a gateway to its end and returns the exit status.
pub(super) fn in_runtime(
    log: &LogConfig,
    output: LogOutput,
    gateway: impl Future<Output = anyhow::Result<Ended>>,
) -> ExitCode {
    let _telemetry = match Telemetry::start(log, output) {
        Ok(telemetry) => telemetry,
        Err(error) => return super::fail(&error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("cannot start the runtime: {error}")),
    };
    let ended = runtime.block_on(gateway);
    // Tasks that still run belong to sockets that did not close before the drain's deadline.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::InTime) => ExitCode::SUCCESS,
        Ok(Ended::CutShort) => ExitCode::FAILURE,
        Err(error) => super::fail(&format!("{error:#}")),
    }
}
