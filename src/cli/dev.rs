//! `dev`: runs the whole gateway in one process, without any server beside it.
//!
//! It is the same gateway as `serve` with a built-in configuration: the memory layer, users in a temporary SQLite
//! file, one tenant with a new key at every start, and a page to try it with.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use serde::Serialize;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::serve::GatewayProcess;
use crate::auth::{MintRequest, mint};
use crate::clock::UnixTime;
use crate::config::{
    Config, ConsumerConfig, KeyConfig, LogConfig, LogFormat, OnInvalid, RouteConfig, Secret,
    TenantConfig,
};
use crate::hosts;
use crate::ids::{TenantId, random_hex};
use crate::server::{Addresses, Ended, Options, Server, Signals};
use crate::telemetry::LogOutput;

/// The demo users of `users.sql`: id and name.
const USERS: [(&str, &str); 2] = [("1", "alice"), ("2", "bob")];
/// The lifetime of the printed tokens, enough for a working day.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// The log of the demo. A stranger whose first socket is refused sees the reason, and Ctrl-C says what it does.
const LOG_LEVEL: &str = "warn,lockgate::socket::refusal_log=info,lockgate::server::drain=info";
/// The path of the printed addresses.
const ROOM: &str = "ws/chat/lobby/";

/// Try Lockgate: two demo users, a page, no server and no file needed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate dev
  lockgate dev --listen 127.0.0.1:0 --admin 127.0.0.1:0 --json")]
pub(super) struct DevArguments {
    /// The address that accepts sockets
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000", value_parser = super::address)]
    pub(super) listen: SocketAddr,
    /// The address that serves probes and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000", value_parser = super::address)]
    pub(super) admin: SocketAddr,
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
        .find(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (remote, arguments.allow_remote) {
        return super::fail(&format!(
            "other machines can reach {address}, and dev prints its tokens; --allow-remote allows it"
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
    let users = DemoUsers::create().await?;
    let config = config(arguments, &users)?;
    let token = config
        .tenants
        .values()
        .next()
        .map(|tenant| tenant.token.clone());
    let token = token.context("the demo tenant is there")?;
    let sign = |(id, name): (&str, &str)| {
        let request = MintRequest {
            user_id: id,
            lifetime: TOKEN_LIFETIME,
            claims: serde_json::Map::new(),
        };
        Ok((name.to_owned(), mint(&token, &request, UnixTime::now())?))
    };
    let tokens = USERS
        .into_iter()
        .map(sign)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let options = Options {
        pages: Some(pages(&tokens, arguments.allow_remote)),
        ..Options::default()
    };
    let server = Server::start(config, options).await;
    let server = server.map_err(|error| busy(error, arguments))?;
    server.ready().await;
    announce(&server.addresses(), &tokens, arguments.json);
    server.run(signals).await
}

/// Names the option that chooses another address, if the error is a port that another program has.
fn busy(error: anyhow::Error, arguments: &DevArguments) -> anyhow::Error {
    let cause = error.downcast_ref::<std::io::Error>();
    if cause.is_none_or(|cause| cause.kind() != ErrorKind::AddrInUse) {
        return error;
    }
    let is_admin = error.to_string().contains(&arguments.admin.to_string());
    let option = if is_admin { "--admin" } else { "--listen" };
    let told = format!("{error:#}");
    anyhow::anyhow!(
        "{told}; another program has that port: choose one with {option} localhost:PORT"
    )
}

/// Returns the configuration of the demo, which resembles the first one of a new user.
fn config(arguments: &DevArguments, users: &DemoUsers) -> anyhow::Result<Config> {
    let signing_key = Secret::new(random_hex() + &random_hex());
    let mut tenant = TenantConfig::default();
    tenant.token.keys = vec![KeyConfig {
        algorithm: "HS256".into(),
        kid: None,
        signing_key: Some(signing_key),
        verifying_key: None,
    }];
    tenant.token.refresh = true;
    tenant.users.database = Some(Secret::new(format!(
        "sqlite://{}?mode=ro",
        users.0.display()
    )));
    let chat = RouteConfig {
        path: "ws/chat/<slug:room>/".into(),
        groups: vec!["chat_{room}".into()],
        consumer: ConsumerConfig {
            kind: "broadcast".into(),
            event_type: Some("chat.message".into()),
            stamp: vec!["user_id".into(), "username".into()],
            on_invalid: OnInvalid::Reply,
            ..ConsumerConfig::default()
        },
        ..RouteConfig::default()
    };
    let echo = RouteConfig {
        path: "ws/echo/".into(),
        consumer: ConsumerConfig {
            kind: "echo".into(),
            ..ConsumerConfig::default()
        },
        ..RouteConfig::default()
    };
    tenant.hosts = demo_hosts(arguments);
    tenant.routes = vec![chat, echo];
    let mut config = Config::default();
    config.server.listen = arguments.listen;
    config.server.drain.delay = Duration::ZERO;
    config.server.drain.window = Duration::from_secs(1);
    config.admin.listen = arguments.admin;
    config.tenants.insert("demo".parse::<TenantId>()?, tenant);
    Ok(config)
}

/// The SQLite file with the demo users. Dropping this removes the file.
struct DemoUsers(PathBuf);

impl DemoUsers {
    async fn create() -> anyhow::Result<Self> {
        let users =
            Self(std::env::temp_dir().join(format!("lockgate-dev-{}.sqlite3", random_hex())));
        let options = SqliteConnectOptions::new()
            .filename(&users.0)
            .create_if_missing(true);
        let mut connection = options
            .connect()
            .await
            .context("cannot create the demo users")?;
        std::fs::set_permissions(&users.0, Permissions::from_mode(0o600))?;
        sqlx::raw_sql(include_str!("../../deploy/dev/users.sql"))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(users)
    }
}

impl Drop for DemoUsers {
    fn drop(&mut self) {
        // A file that cannot be removed stays in the temporary folder, which the system cleans.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Returns the page on `/`. It contains tokens, so `dev` listens on loopback unless `--allow-remote` is given, and answers
/// only requests for a loopback host then.
fn pages(tokens: &[(String, String)], allow_remote: bool) -> Router {
    let users: Vec<_> = tokens
        .iter()
        .map(|(name, token)| DemoUser { name, token })
        .collect();
    // With "<" escaped, no name or token can end the script element.
    let users = serde_json::to_string(&users)
        .unwrap_or_default()
        .replace('<', "\\u003c");
    let page = include_str!("dev.html").replace("/*USERS*/", &users);
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self' ws: wss:",
        ),
    ];
    let client = (
        [(CONTENT_TYPE, "text/javascript")],
        include_str!("../../clients/js/index.js"),
    );
    let router = Router::new()
        .route(
            "/",
            get(move || std::future::ready((headers, page.clone()))),
        )
        .route("/lockgate.js", get(move || std::future::ready(client)));
    match allow_remote {
        true => router,
        false => router.layer(middleware::from_fn(only_loopback)),
    }
}

/// Refuses a request for another host than this machine. A foreign page can have its own name resolved to 127.0.0.1 (DNS
/// rebinding); to a browser this server is then its origin, and it could read the tokens.
async fn only_loopback(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST);
    match host.and_then(|host| host.to_str().ok()) {
        Some(host) if hosts::is_loopback(host) => next.run(request).await,
        _ => {
            let why = "lockgate dev answers for localhost, 127.0.0.1 and [::1]; --allow-remote allows other hosts\n";
            (StatusCode::MISDIRECTED_REQUEST, why).into_response()
        }
    }
}

/// Returns the hosts of the demo tenant: those that [`only_loopback`] knows, or every host (none are listed).
fn demo_hosts(arguments: &DevArguments) -> Vec<String> {
    if arguments.allow_remote {
        return Vec::new();
    }
    let listen = match arguments.listen.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let mut hosts = ["localhost", "127.0.0.1", "[::1]"]
        .map(str::to_owned)
        .to_vec();
    if !hosts.contains(&listen) {
        hosts.push(listen);
    }
    hosts
}

#[derive(Serialize)]
struct DemoUser<'a> {
    name: &'a str,
    token: &'a str,
}

#[derive(Serialize)]
struct Announcement {
    listen: String,
    admin: String,
    page: String,
    users: Vec<UserUrl>,
}

#[derive(Serialize)]
struct UserUrl {
    name: String,
    url: String,
}

fn announce(addresses: &Addresses, tokens: &[(String, String)], json: bool) {
    let url = |token: &str| format!("ws://{}/{ROOM}?token={token}", addresses.server);
    let users = tokens.iter().map(|(name, token)| UserUrl {
        name: name.clone(),
        url: url(token),
    });
    let told = Announcement {
        listen: addresses.server.to_string(),
        admin: addresses.admin.to_string(),
        page: format!("http://{}/", addresses.server),
        users: users.collect(),
    };
    if json {
        super::print(&format!(
            "{}\n",
            serde_json::to_string(&told).unwrap_or_default()
        ));
        return;
    }
    let mut text = format!(
        "Lockgate is ready.\n\n  page     {}\n  metrics  http://{}/metrics\n\n",
        told.page, told.admin
    );
    for user in &told.users {
        text += &format!("  {:<7}  {}\n", user.name, user.url);
    }
    text += "\nBoth users receive each JSON object that one of them sends: {\"message\": \"hello\"}. Ctrl-C stops the gateway.\n";
    super::print(&text);
}
