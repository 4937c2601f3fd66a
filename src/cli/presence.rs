//! `presence`: lists the users who are in a group, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::remote::{Remote, RemoteArguments, following, segment, tell_list};
use crate::ids::TenantId;

/// List the users who are in a group, on all replicas
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate presence --tenant acme --group chat_lobby
  lockgate presence --tenant acme --group chat_lobby --count --json")]
pub(super) struct PresenceArguments {
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// The group
    #[arg(long)]
    group: String,
    /// Only count the users and their sockets
    #[arg(long, conflicts_with_all = ["limit", "after"])]
    count: bool,
    /// The most users to list, 1 to 1000
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Only users whose ids sort after this one: `next` of the previous page
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Print the answer of the API unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArguments,
}

pub(super) fn run(path: Option<&Path>, arguments: &PresenceArguments) -> ExitCode {
    let listed = Remote::find(path, &arguments.remote).and_then(|remote| {
        let (tenant, group) = (&arguments.tenant, segment(&arguments.group));
        let what = match arguments.count {
            true => "/count".to_owned(),
            false => {
                let after = following("cursor", arguments.after.as_deref());
                format!("?limit={}{after}", arguments.limit)
            }
        };
        let path = format!("/v1/tenants/{tenant}/groups/{group}/presence{what}");
        remote.call(&path, None)
    });
    tell_list(listed, arguments.json, as_text)
}

fn as_text(body: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    let users = answer["users"].as_array();
    let count = match users {
        Some(users) => users.len().to_string(),
        None => answer["users"].to_string(),
    };
    let mut out = format!(
        "{}; {}",
        super::counted(&answer["sockets"], "socket"),
        super::counted(count, "user")
    );
    if users.is_some() {
        out.push_str(" on this page");
    }
    for user in users.into_iter().flatten() {
        let id = user["id"].as_str().unwrap_or_default();
        // A JSON value ignores the width of a column.
        let sockets = user["sockets"].to_string();
        out.push_str(&format!("\n{id:<20} {sockets:>6}  {}", user["user"]));
    }
    if let Some(next) = answer["next"].as_str() {
        out.push_str(&format!("\nmore: --after {next}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_counts_are_readable() {
        let page =
            r#"{"sockets":3,"users":[{"id":"7","sockets":2,"user":{"name":"é"}}],"next":"7"}"#;
        let lines = as_text(page);
        let columns = "7                         2  {\"name\":\"é\"}";
        assert_eq!(
            lines,
            format!("3 sockets; 1 user on this page\n{columns}\nmore: --after 7")
        );
        assert_eq!(as_text(r#"{"sockets":3,"users":2}"#), "3 sockets; 2 users");
        assert_eq!(as_text("no JSON"), "no JSON");
    }
}
