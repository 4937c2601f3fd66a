//! `connections`: lists the open sockets of a tenant, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::remote::{Remote, RemoteArguments, following, segment, tell_list};
use crate::ids::TenantId;

/// List the open sockets of a tenant, on all replicas
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate connections --tenant acme
  lockgate connections --tenant acme --user 7
  lockgate connections --tenant acme --group chat_lobby --limit 1000 --json")]
pub(super) struct ConnectionsArguments {
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// Only the sockets of this group
    #[arg(long)]
    group: Option<String>,
    /// Only the sockets of this user
    #[arg(long, value_name = "ID", conflicts_with = "group")]
    user: Option<String>,
    /// The most sockets to list, 1 to 1000
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Only sockets whose channel name sorts after this one: the cursor of the previous page
    #[arg(long, value_name = "CHANNEL")]
    after: Option<String>,
    /// Print the answer of the API unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArguments,
}

pub(super) fn run(path: Option<&Path>, arguments: &ConnectionsArguments) -> ExitCode {
    let listed = Remote::find(path, &arguments.remote).and_then(|remote| {
        let what = match (&arguments.group, &arguments.user) {
            (Some(group), _) => format!("groups/{}", segment(group)),
            (None, Some(user)) => format!("users/{}/connections", segment(user)),
            (None, None) => "connections".to_owned(),
        };
        let after = following("cursor", arguments.after.as_deref());
        let (tenant, limit) = (&arguments.tenant, arguments.limit);
        let path = format!("/v1/tenants/{tenant}/{what}?limit={limit}{after}");
        remote.call(&path, None)
    });
    tell_list(listed, arguments.json, as_text)
}

fn as_text(body: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let replicas = &answer["replicas"];
    let expected = match &replicas["expected"] {
        Value::Null => "an unknown number of".to_owned(),
        expected => expected.to_string(),
    };
    let mut out = format!(
        "{}; {} of {expected} replicas answered",
        super::counted(&answer["connections"], "connection"),
        replicas["confirmed"]
    );
    if let Some(warning) = replicas["warning"].as_str() {
        out.push_str(&format!("\nwarning: {warning}"));
    }
    for socket in answer["sockets"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "\n{:<20} {:>8} s  {}  {}",
            match &socket["user_id"] {
                // An anonymous socket.
                Value::Null => "-".to_owned(),
                user => text(user),
            },
            // A JSON value ignores the width of a column.
            socket["age"].to_string(),
            text(&socket["channel"]),
            text(&socket["path"])
        ));
    }
    if let Some(cursor) = answer["cursor"].as_str() {
        out.push_str(&format!("\nmore: --after {cursor}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_stand_in_columns() {
        let body = r#"{"connections":2,"replicas":{"expected":null,"confirmed":1,"warning":"w"},"cursor":"b","sockets":[
            {"user_id":"7","age":5,"channel":"a","path":"/ws/"},
            {"user_id":null,"age":86400,"channel":"b","path":"/ws/"}]}"#;
        let lines = [
            "2 connections; 1 of an unknown number of replicas answered",
            "warning: w",
            "7                           5 s  a  /ws/",
            "-                       86400 s  b  /ws/",
            "more: --after b",
        ];
        assert_eq!(as_text(body).lines().collect::<Vec<_>>(), lines);
        assert_eq!(as_text("no JSON"), "no JSON");
    }
}
