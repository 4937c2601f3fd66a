//! `tenant`: lists, shows and changes tenants through the management API, and seals their secrets with another key.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::registry::wait_for;
use super::remote::{
    AlwaysJson, Failure, Remote, RemoteArguments, following, or_standard_input, tell, tell_list,
};
use crate::config::file;
use crate::ids::TenantId;
use crate::registry::{Resealed, reseal};

/// The most bytes of a document, as the API takes them.
const LARGEST_DOCUMENT: u64 = 1 << 20;

/// List, show and change tenants, on all replicas
#[derive(Debug, Subcommand)]
pub(super) enum TenantVerb {
    List(ListArguments),
    Show(NamedTenant),
    Put(PutArguments),
    Delete(DeleteArguments),
    /// Close the sockets of a tenant, and refuse new ones
    Suspend(NamedTenant),
    /// Serve a suspended tenant again
    Resume(NamedTenant),
    Reseal(ResealArguments),
}

/// List the tenants
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate tenant list
  lockgate tenant list --limit 1000 --after acme --json")]
pub(super) struct ListArguments {
    /// The most tenants to list, 1 to 1000
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Only tenants whose name sorts after this one: the last of the previous page
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
    /// Print the answer of the API unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// Show the configuration of a tenant without its secrets, its state and its sockets
#[derive(Debug, Args)]
pub(super) struct NamedTenant {
    /// The tenant
    name: TenantId,
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// Make a tenant of the registry, or replace its configuration
#[derive(Debug, Args)]
#[command(after_help = "\
The file holds the keys of [tenants.NAME] as JSON. A secret is a text, or {\"set\": true} where the stored tenant has it.

Examples:
  lockgate tenant put acme acme.json --new
  lockgate tenant put acme acme.json --if-version 3
  lockgate tenant put acme - < acme.json")]
pub(super) struct PutArguments {
    /// The tenant
    name: TenantId,
    /// A file with the configuration as JSON; - reads standard input
    file: PathBuf,
    /// Only if there is no such tenant
    #[arg(long, conflicts_with = "if_version")]
    new: bool,
    /// Only if the tenant has this version, as `tenant show` tells it
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// Delete a tenant of the registry; its sockets close
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate tenant delete acme
  lockgate tenant delete acme --if-version 3")]
pub(super) struct DeleteArguments {
    /// The tenant
    name: TenantId,
    /// Only if the tenant has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// Seal the secrets of all tenants with the first key of registry.key
#[derive(Debug, Args)]
#[command(after_help = "\
The command works on the database of the configuration, without the API. A new key goes to the front of registry.key on
every replica first; once this command has ended, the old one can go.

Examples:
  lockgate tenant reseal --config lockgate.toml
  lockgate tenant reseal --json")]
pub(super) struct ResealArguments {
    /// Print the counts, and the tenants that failed with the reasons, as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: Option<&Path>, verb: &TenantVerb) -> ExitCode {
    let post = |named: &NamedTenant, what: &str| {
        let called = Remote::find(path, &named.remote).and_then(|remote| {
            let path = format!("/v1/tenants/{}/{what}", named.name);
            remote.call(&path, Some("{}".to_owned()))
        });
        tell(called, str::to_owned)
    };
    match verb {
        TenantVerb::List(arguments) => list(path, arguments),
        TenantVerb::Show(named) => {
            let shown = Remote::find(path, &named.remote)
                .and_then(|remote| remote.call(&format!("/v1/tenants/{}", named.name), None));
            tell(shown, indented)
        }
        TenantVerb::Put(arguments) => put(path, arguments),
        TenantVerb::Delete(arguments) => {
            let condition = if_match(arguments.if_version);
            let deleted = Remote::find(path, &arguments.remote).and_then(|remote| {
                remote.delete_if(&format!("/v1/tenants/{}", arguments.name), condition)
            });
            tell(deleted, str::to_owned)
        }
        TenantVerb::Suspend(named) => post(named, "suspend"),
        TenantVerb::Resume(named) => post(named, "resume"),
        TenantVerb::Reseal(arguments) => reseal_all(path, arguments.json),
    }
}

fn if_match(version: Option<u64>) -> Option<(&'static str, String)> {
    version.map(|version| ("if-match", format!("\"{version}\"")))
}

fn list(path: Option<&Path>, arguments: &ListArguments) -> ExitCode {
    let listed = Remote::find(path, &arguments.remote).and_then(|remote| {
        let after = following("after", arguments.after.as_deref());
        let path = format!("/v1/tenants?limit={}{after}", arguments.limit);
        remote.call(&path, None)
    });
    tell_list(listed, arguments.json, as_text)
}

fn put(path: Option<&Path>, arguments: &PutArguments) -> ExitCode {
    let stored = Remote::find(path, &arguments.remote).and_then(|remote| {
        let document = document(&arguments.file)?;
        let condition = match arguments.new {
            true => Some(("if-none-match", "*".to_owned())),
            false => if_match(arguments.if_version),
        };
        remote.put(
            &format!("/v1/tenants/{}", arguments.name),
            document,
            condition,
        )
    });
    tell(stored, str::to_owned)
}

/// Reads the document, and tells a file that is no JSON at once.
fn document(file: &Path) -> Result<String, Failure> {
    let text = match file.to_str() {
        Some("-") => or_standard_input("-", LARGEST_DOCUMENT)?,
        _ => {
            let read = file::read(file, LARGEST_DOCUMENT);
            let read = read.map_err(|error| format!("{}: {error}", file.display()))?;
            let text = String::from_utf8(read.1);
            text.map_err(|_| format!("{}: it is not UTF-8 text", file.display()))?
        }
    };
    // The message of the reader has line and column, and never quotes the text, which may hold secrets.
    let read: Result<serde_json::Map<String, Value>, _> = serde_json::from_str(&text);
    read.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!(
            "{}:{line}:{column}: found another text, expected a JSON object",
            file.display()
        )
    })?;
    Ok(text)
}

fn indented(body: &str) -> String {
    let value = serde_json::from_str::<Value>(body);
    let indented = value.and_then(|value| serde_json::to_string_pretty(&value));
    indented.unwrap_or_else(|_| body.to_owned())
}

fn as_text(body: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    let mut lines = Vec::new();
    for tenant in answer["tenants"].as_array().into_iter().flatten() {
        let text = |name: &str| tenant[name].as_str().unwrap_or_default().to_owned();
        let state = match (&tenant["degraded"], &tenant["suspended"]) {
            (Value::Bool(true), _) => "degraded",
            (_, Value::Bool(true)) => "suspended",
            // The replica has not made it.
            (_, Value::Null) => "unused",
            _ => "served",
        };
        let connections = match &tenant["connections"] {
            Value::Null => "?".to_owned(),
            count => count.to_string(),
        };
        let line = format!(
            "{:<32} {:<9} {state:<9} {connections:>8}  {}",
            text("name"),
            text("source"),
            text("reason")
        );
        lines.push(line.trim_end().to_owned());
    }
    if let Some(cursor) = answer["cursor"].as_str() {
        lines.push(format!("more: --after {cursor}"));
    }
    lines.join("\n")
}

fn reseal_all(path: Option<&Path>, json: bool) -> ExitCode {
    let config = match super::load(path) {
        Ok(loaded) => loaded.config,
        Err(status) => return status,
    };
    match wait_for(reseal(&config)) {
        Ok(outcome) => {
            match json {
                true => super::print(&format!("{}\n", resealed_as_json(&outcome))),
                false => tell_resealed(&outcome),
            }
            match outcome.failed.is_empty() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(problem) => super::fail(&problem),
    }
}

fn tell_resealed(outcome: &Resealed) {
    let (resealed, current) = (outcome.resealed, outcome.current);
    super::print(&format!(
        "{} resealed; {current} had the first key already\n",
        super::counted(resealed, "tenant")
    ));
    for (name, why) in &outcome.failed {
        super::complain(&format!("error: tenant {name}: {why}"));
    }
}

fn resealed_as_json(outcome: &Resealed) -> Value {
    let failed = outcome.failed.iter();
    let failed: Vec<_> = failed
        .map(|(tenant, reason)| json!({"tenant": tenant, "reason": reason}))
        .collect();
    json!({"resealed": outcome.resealed, "current": outcome.current, "failed": failed})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_stand_in_columns() {
        let body = r#"{"tenants":[
            {"name":"acme","source":"registry","suspended":false,"degraded":false,"reason":null,"connections":5},
            {"name":"b","source":"file","suspended":true,"degraded":false,"reason":null,"connections":0},
            {"name":"c","source":"registry","suspended":false,"degraded":true,"reason":"no key","connections":null},
            {"name":"d","source":"registry","suspended":null,"degraded":false,"reason":null,"connections":null}],
            "cursor":"c"}"#;
        let lines = [
            "acme                             registry  served           5",
            "b                                file      suspended        0",
            "c                                registry  degraded         ?  no key",
            "d                                registry  unused           ?",
            "more: --after c",
        ];
        assert_eq!(as_text(body).lines().collect::<Vec<_>>(), lines);
        assert_eq!(as_text("no JSON"), "no JSON");
    }

    #[test]
    fn a_reseal_is_one_line_of_json() {
        let outcome = Resealed {
            current: 1,
            resealed: 2,
            failed: vec![("acme".to_owned(), "its key is not there".to_owned())],
        };
        let line = r#"{"resealed":2,"current":1,"failed":[{"tenant":"acme","reason":"its key is not there"}]}"#;
        assert_eq!(resealed_as_json(&outcome).to_string(), line);
    }
}
