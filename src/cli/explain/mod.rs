//! `explain`: goes through a whole handshake by the server's own code, and prints the result of each step.

use std::path::Path;
use std::process::ExitCode;

use axum::http::header::{COOKIE, HOST, ORIGIN};
use axum::http::{HeaderValue, Request};
use clap::Args;

use self::report::HandshakeReport;
use self::walk::{AskedHandshake, walk};
use super::lookup::{NoTenant, unread};
use super::registry::wait_for;
use crate::config::Config;
use crate::hosts::HostTable;
use crate::registry::{self, AllTenants};
use crate::tenant::Makings;

mod report;
mod walk;

/// Go through a whole handshake and print each step: exit 0, 1 if refused, 3 if a dependency does not answer
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate explain --url 'wss://acme.example.com/ws/chat/lobby/?token=…' --origin https://app.example.com
  pbpaste | lockgate explain --host acme.example.com --path /ws/chat/lobby/ --token -")]
pub(super) struct HandshakeArguments {
    /// The URL that a client opens, with its token; the scheme may be left out
    #[arg(long, required_unless_present = "path", conflicts_with_all = ["path", "host"])]
    url: Option<String>,
    /// The path, without --url
    #[arg(long)]
    path: Option<String>,
    /// The host, without --url; the default is that of the only tenant
    #[arg(long)]
    host: Option<String>,
    /// The origin of the page; without it, a client that is no browser
    #[arg(long)]
    origin: Option<String>,
    /// The cookies of the page, as in the header: NAME=VALUE; NAME=VALUE
    #[arg(long, value_name = "COOKIES")]
    cookie: Option<String>,
    /// The token, if it is not in the URL; - reads it from standard input
    #[arg(long)]
    token: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: Option<&Path>, arguments: &HandshakeArguments) -> ExitCode {
    let config = match super::load(path) {
        Ok(loaded) => loaded.config,
        Err(status) => return status,
    };
    let (all, unread) = match all_tenants(&config) {
        Ok(all) => (all, None),
        Err(problem) => (of_files(config), Some(problem)),
    };
    let asked = match asked(&all.config, arguments) {
        Ok(asked) => asked,
        Err(text) => return super::fail(&text),
    };
    if let Some(problem) = unread {
        // A replica serves the tenants of its files without the registry.
        if !has_host(&all.config, &asked) {
            return problem.tell();
        }
        let text = &problem.text;
        super::complain(&format!(
            "warning: the host is of a tenant of the files; {text}"
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("cannot start the runtime: {error}")),
    };
    let walked = runtime.block_on(walk(&all, &asked));
    runtime.shutdown_background();
    match walked {
        Ok(report) => {
            tell(&report, arguments.json);
            ExitCode::from(report.exit_code())
        }
        Err(error) => super::fail(&format!("{error:#}")),
    }
}

fn tell(report: &HandshakeReport, json: bool) {
    match json {
        true => super::print(&(serde_json::to_string(report).unwrap_or_default() + "\n")),
        false => super::print_painted(&report.to_string()),
    }
}

/// Returns the tenants of the files with those of the registry, if there is one: any of them may have the host.
fn all_tenants(config: &Config) -> Result<AllTenants, NoTenant> {
    if config.registry.database.is_none() {
        return Ok(of_files(config.clone()));
    }
    let read = wait_for(registry::read_all(config));
    read.map_err(|problem| unread("any tenant may have the host", &problem))
}

fn of_files(config: Config) -> AllTenants {
    AllTenants {
        config,
        makings: Makings::default(),
        registered: 0,
        degraded: Vec::new(),
    }
}

/// Returns true if a tenant of the configuration has the host of the request.
fn has_host(config: &Config, asked: &AskedHandshake) -> bool {
    let host = asked.head.headers.get(HOST);
    let host = host.and_then(|host| host.to_str().ok());
    let table = HostTable::new(&config.tenants).ok();
    host.zip(table)
        .is_some_and(|(host, table)| table.find(host).is_some())
}

/// Returns the request that a client would send.
fn asked(config: &Config, arguments: &HandshakeArguments) -> Result<AskedHandshake, String> {
    let (host, target) = match &arguments.url {
        Some(url) => taken_apart(url),
        None => {
            let host = arguments.host.clone().unwrap_or_else(|| host_of(config));
            (host, arguments.path.clone().unwrap_or_default())
        }
    };
    let target = match target.starts_with('/') {
        true => target,
        false => format!("/{target}"),
    };
    let header = |name: &str, text: &str| {
        HeaderValue::from_str(text).map_err(|_| format!("{name} cannot be sent as a header"))
    };
    let mut request = Request::get(&target).header(HOST, header("the host", &host)?);
    if let Some(origin) = &arguments.origin {
        request = request.header(ORIGIN, header("the origin", origin)?);
    }
    if let Some(cookies) = &arguments.cookie {
        request = request.header(COOKIE, header("the cookie", cookies)?);
    }
    let request = request.body(());
    // The text of the error could quote the token.
    let request = request.map_err(|_| "the path cannot be sent as one".to_owned())?;
    let token = match arguments.token.as_deref() {
        Some("-") => {
            let read = std::io::read_to_string(std::io::stdin());
            let text = read.map_err(|error| format!("cannot read standard input: {error}"))?;
            Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
        }
        token => token.map(str::to_owned),
    };
    Ok(AskedHandshake {
        head: request.into_parts().0,
        token,
    })
}

/// Returns host and target of a URL.
fn taken_apart(url: &str) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (rest[..end].to_owned(), rest[end..].to_owned())
}

/// Returns the first host of the only tenant that is a plain name; it may serve every host.
fn host_of(config: &Config) -> String {
    let mut hosts = config.tenants.values().flat_map(|tenant| &tenant.hosts);
    let plain = hosts.find(|host| !host.contains('*'));
    match (config.tenants.len(), plain) {
        (1, Some(host)) => host.clone(),
        _ => "localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_with_or_without_its_scheme() {
        for (url, host, target) in [
            ("wss://a.test/ws/x/?token=t", "a.test", "/ws/x/?token=t"),
            ("a.test:8000/ws/", "a.test:8000", "/ws/"),
            ("ws://[::1]:8000?token=t#x", "[::1]:8000", "?token=t"),
            ("a.test", "a.test", ""),
        ] {
            assert_eq!(taken_apart(url), (host.to_owned(), target.to_owned()));
        }
    }
}
