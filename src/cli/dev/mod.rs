//! `dev`: runs the whole gateway in one process, without any server beside it.
//!
//! It is the same gateway as `serve` with a configuration of its own: the memory layer, users in a temporary SQLite file,
//! one tenant with a new key at every start, and a page to try it with.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::serve::GatewayProcess;
use crate::config::{Config, LogConfig, LogFormat};
use crate::server::{Addresses, Ended, Options, Server, SharedMemory, Signals};
use crate::telemetry::LogOutput;

use announce::announce;
use backstage::{Backstage, DemoFacts};
use demo::{DemoFolder, DemoLogin};

mod announce;
mod backstage;
mod demo;
mod leftover;
mod manual;
mod page;

/// The log of the demo. A stranger whose first socket is refused sees the reason, and Ctrl-C says what it does.
const LOG_LEVEL: &str = "warn,lockgate::socket::refusal_log=info,lockgate::server::drain=info";
/// The address of the API where none is asked for.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);
/// The path of the printed addresses.
const ROOM: &str = "ws/chat/lobby/";
/// Longest time between the ends of two replicas that heard the same signal: the window of the drain, and the last words.
const TOGETHER: Duration = Duration::from_secs(5);

/// Try Lockgate: two demo users, a page, no server and no file needed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate dev
  lockgate dev --replicas 2
  lockgate dev --listen localhost:8001 --admin localhost:0 --api localhost:0 --json")]
pub(super) struct DevArguments {
    /// The address that accepts sockets, and serves the page
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000", value_parser = super::address)]
    pub(super) listen: SocketAddr,
    /// The address that serves probes and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000", value_parser = super::address)]
    pub(super) admin: SocketAddr,
    /// The address of the management API; without it 127.0.0.1:9001, or another port if that one is taken
    #[arg(long, value_name = "ADDRESS", value_parser = super::address)]
    pub(super) api: Option<SocketAddr>,
    /// Run so many replicas, the second one on the port after that of --listen
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub(super) replicas: u16,
    /// Print one line of JSON when the gateway is ready
    #[arg(long)]
    pub(super) json: bool,
    /// Allow an address that other machines can reach
    #[arg(long)]
    pub(super) allow_remote: bool,
}

pub(super) fn run(arguments: &DevArguments) -> ExitCode {
    let process = match GatewayProcess::begin() {
        Ok(process) => process,
        Err(status) => return status,
    };
    let remote = [arguments.listen, arguments.admin]
        .into_iter()
        .chain(arguments.api)
        .find(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (remote, arguments.allow_remote) {
        return super::fail(&format!(
            "other machines can reach {address}, and dev shows its tokens and the key of its API; --allow-remote allows it"
        ));
    }
    // Logs go to standard error, because standard output is for the addresses.
    let log = LogConfig {
        format: LogFormat::Text,
        level: LOG_LEVEL.into(),
    };
    process.run(&log, LogOutput::Stderr, async |signals| {
        serve(arguments, signals).await
    })
}

async fn serve(arguments: &DevArguments, signals: Signals) -> anyhow::Result<Ended> {
    // Every replica hears signals itself; all listen from the beginning.
    let more_signals = (1..arguments.replicas).map(|_| Signals::new());
    let more_signals = more_signals.collect::<Result<Vec<_>, _>>()?;
    let folder = DemoFolder::create().await?;
    let config = folder.load(arguments)?;
    let backstage = Arc::new(Backstage::new(DemoLogin::new(&config)?)?);
    let memory = SharedMemory::default();
    let first = start_first(&config, arguments, &backstage, &memory).await;
    let first = first.map_err(|error| busy(error, arguments))?;
    let addresses = first.addresses();
    let mut others = Vec::new();
    for (number, signals) in (1..).zip(more_signals) {
        let config = replica_config(&config, arguments, &addresses, number)?;
        let options = Options {
            only_loopback: !arguments.allow_remote,
            memory: memory.clone(),
            ..Options::default()
        };
        let server = Server::start(config, options).await;
        others.push((server.map_err(|error| busy(error, arguments))?, signals));
    }
    for server in std::iter::once(&first).chain(others.iter().map(|(server, _)| server)) {
        server.ready().await;
    }
    let sockets = others.iter().map(|(server, _)| server.addresses().server);
    let facts = DemoFacts {
        sockets: std::iter::once(addresses.server).chain(sockets).collect(),
        admin: addresses.admin,
        api: addresses.api.context("the demo has an API")?,
        api_key: folder.api_key()?,
        api_key_file: folder.api_key_file(),
        config_file: folder.config(),
        config: folder.tell(arguments, &addresses)?,
    };
    announce(backstage.tell(facts)?, &backstage.login, arguments.json)?;
    run_all((first, signals), others).await
}

/// Starts the replica with the page and the API. Unless its address was asked for, the API gives way to another program.
async fn start_first(
    config: &Config,
    arguments: &DevArguments,
    backstage: &Arc<Backstage>,
    memory: &SharedMemory,
) -> anyhow::Result<Server> {
    let options = || Options {
        pages: Some(page::pages(backstage.clone())),
        only_loopback: !arguments.allow_remote,
        memory: memory.clone(),
        ..Options::default()
    };
    let error = match Server::start(config.clone(), options()).await {
        Ok(server) => return Ok(server),
        Err(error) => error,
    };
    if arguments.api.is_some() || !is_taken(&error, API) {
        return Err(error);
    }
    let mut config = config.clone();
    config.api.listen = Some(SocketAddr::new(API.ip(), 0));
    Server::start(config, options()).await
}

/// Returns true if the error is that another program has `address`.
fn is_taken(error: &anyhow::Error, address: SocketAddr) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::AddrInUse)
        && error.to_string().contains(&address.to_string())
}

/// Returns the configuration of a further replica: on ports of its own, without an API, and for the page of the first one.
fn replica_config(
    first: &Config,
    arguments: &DevArguments,
    addresses: &Addresses,
    number: u16,
) -> anyhow::Result<Config> {
    let mut config = first.clone();
    let port = match arguments.listen.port() {
        0 => 0,
        port => port
            .checked_add(number)
            .context("--listen leaves no port for the next replica")?,
    };
    config.server.listen.set_port(port);
    config.admin.listen.set_port(0);
    config.api.listen = None;
    let origins = match arguments.allow_remote {
        true => vec!["*".to_owned()],
        false => page_origins(addresses.server),
    };
    for tenant in config.tenants.values_mut().map(Arc::make_mut) {
        tenant.origins.clone_from(&origins);
    }
    Ok(config)
}

/// Returns the addresses under which a browser on this machine may have the page.
fn page_origins(page: SocketAddr) -> Vec<String> {
    let own = match page.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".into(), "[::1]".into()];
    if !hosts.contains(&own) {
        hosts.push(own);
    }
    let origin = |host: String| format!("http://{host}:{}", page.port());
    hosts.into_iter().map(origin).collect()
}

/// Runs all replicas to their end. A signal is for all of them, and the failure of one ends the demo.
async fn run_all(
    (first, signals): (Server, Signals),
    others: Vec<(Server, Signals)>,
) -> anyhow::Result<Ended> {
    if others.is_empty() {
        return first.run(signals).await;
    }
    let mut running: Vec<_> = others
        .into_iter()
        .chain([(first, signals)])
        .map(|(server, signals)| Box::pin(server.run(signals)))
        .collect();
    let (mut ended, _, rest) = futures_util::future::select_all(running).await;
    running = rest;
    let rest = futures_util::future::join_all(running);
    let rest = tokio::time::timeout(TOGETHER, rest).await;
    for other in rest.unwrap_or_else(|_| vec![Ok(Ended::CutShort)]) {
        if matches!(
            (&ended, &other),
            (Ok(Ended::InTime), Ok(Ended::CutShort)) | (Ok(_), Err(_))
        ) {
            ended = other;
        }
    }
    ended
}

/// Names the option that chooses another address, if the error is a port that another program has.
fn busy(error: anyhow::Error, arguments: &DevArguments) -> anyhow::Error {
    let cause = error.downcast_ref::<std::io::Error>();
    if cause.is_none_or(|cause| cause.kind() != ErrorKind::AddrInUse) {
        return error;
    }
    let told = format!("{error:#}");
    let option = match arguments.api {
        _ if is_taken(&error, arguments.admin) => "--admin",
        Some(api) if is_taken(&error, api) => "--api",
        _ => "--listen",
    };
    anyhow::anyhow!("{told}; that port is taken: choose another one with {option} localhost:PORT")
}
