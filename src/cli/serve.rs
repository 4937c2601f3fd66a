//! `serve`: runs the gateway.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio::runtime::Runtime;

use crate::config::{Config, LogConfig, TenantFiles};
use crate::server::limits::forbid_core_dumps;
use crate::server::{Ended, Options, Server, Signals};
use crate::telemetry::{LogOutput, Telemetry};
use crate::validation::{LoadOptions, Loaded};

/// Turns of tasks after which a busy worker looks for bytes that have come. Tokio's 61 let an event wait for as many handshakes
/// of a storm; more looks cost nothing that can be measured.
const EVENT_INTERVAL: u32 = 8;

/// Run the gateway
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate serve --config lockgate.toml
  LOCKGATE_CONFIG=lockgate.toml LOCKGATE_SERVER__LISTEN=127.0.0.1:8000 lockgate serve")]
pub(super) struct ServeArguments {
    /// Stop if a tenant cannot be served, and refuse a reload with a mistake in any file, instead of serving the others
    #[arg(long)]
    pub(super) strict: bool,
}

pub(super) fn run(path: Option<&Path>, arguments: &ServeArguments) -> ExitCode {
    // Before the first secret is read.
    if let Err(error) = forbid_core_dumps() {
        super::complain(&format!("warning: core dumps stay possible: {error}"));
    }
    let process = match GatewayProcess::begin() {
        Ok(process) => process,
        Err(status) => return status,
    };
    let strict = arguments.strict;
    let read = move |path: Option<&Path>, before: &TenantFiles| {
        let options = LoadOptions::default();
        match strict {
            true => Config::load(path, &options),
            false => Config::load_each(path, &options, before),
        }
    };
    let loaded = match super::told_with_warnings(path, read(path, &TenantFiles::new())) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let Loaded {
        config,
        mut files,
        secret_files,
        marks,
        included,
        ..
    } = loaded;
    files.extend(secret_files);
    let source = path.map(Path::to_owned);
    let options = Options {
        strict,
        load: Some(Arc::new(move |before: &TenantFiles| {
            read(source.as_deref(), before)
        })),
        sources: files,
        marks,
        included,
        ..Options::default()
    };
    let log = config.log.clone();
    process.run(&log, LogOutput::Stdout, async move |signals| {
        Server::start(config, options).await?.run(signals).await
    })
}

/// A process that will serve: its runtime, and the signals that have come since its first moment.
pub(super) struct GatewayProcess {
    runtime: Runtime,
    signals: Signals,
}

impl GatewayProcess {
    /// Sets the handlers of the signals. Call it first: until then a signal ends the process, SIGHUP included. A signal
    /// that comes before the gateway runs is obeyed once it does.
    ///
    /// # Errors
    /// The exit status. The reason is printed already.
    pub(super) fn begin() -> Result<Self, ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .event_interval(EVENT_INTERVAL)
            .enable_all()
            .build();
        let runtime =
            runtime.map_err(|error| super::fail(&format!("cannot start the runtime: {error}")))?;
        let signals = {
            let _entered = runtime.enter();
            Signals::new()
        };
        let signals =
            signals.map_err(|error| super::fail(&format!("cannot handle signals: {error}")))?;
        Ok(Self { runtime, signals })
    }

    /// Runs a gateway to its end and returns the exit status.
    pub(super) fn run(
        self,
        log: &LogConfig,
        output: LogOutput,
        gateway: impl AsyncFnOnce(Signals) -> anyhow::Result<Ended>,
    ) -> ExitCode {
        let _telemetry = match Telemetry::start(log, output) {
            Ok(telemetry) => telemetry,
            Err(error) => return super::fail(&error.to_string()),
        };
        let ended = self.runtime.block_on(gateway(self.signals));
        // Tasks that still run belong to sockets that did not close before the drain's deadline.
        self.runtime.shutdown_background();
        match ended {
            Ok(Ended::InTime) => ExitCode::SUCCESS,
            Ok(Ended::CutShort) => ExitCode::FAILURE,
            Err(error) => super::fail(&format!("{error:#}")),
        }
    }
}
