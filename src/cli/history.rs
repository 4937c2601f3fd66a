//! `history`: lists the events that a group keeps, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::remote::{Remote, RemoteArguments, following, segment, tell_list};
use crate::ids::TenantId;

/// List the events that a group with a memory keeps
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate history --tenant acme --group chat_lobby
  lockgate history --tenant acme --group chat_lobby --since chat_lobby~6f0e…~41 --json")]
pub(super) struct HistoryArguments {
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// The group
    #[arg(long)]
    group: String,
    /// Only events after this position
    #[arg(long, value_name = "POSITION")]
    since: Option<String>,
    /// The most events to list, 1 to 1000
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Print the answer of the API unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArguments,
}

pub(super) fn run(path: Option<&Path>, arguments: &HistoryArguments) -> ExitCode {
    let listed = Remote::find(path, &arguments.remote).and_then(|remote| {
        let (tenant, group) = (&arguments.tenant, segment(&arguments.group));
        let since = following("since", arguments.since.as_deref());
        let limit = arguments.limit;
        let path = format!("/v1/tenants/{tenant}/groups/{group}/history?limit={limit}{since}");
        remote.call(&path, None)
    });
    tell_list(listed, arguments.json, as_text)
}

fn as_text(body: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    let position = answer["position"].as_str().unwrap_or_default();
    let events = answer["events"].as_array().map_or(&[][..], Vec::as_slice);
    let mut out = format!(
        "{} on this page; newest position {position}",
        super::counted(events.len(), "event")
    );
    if answer["complete"] == false {
        out.push_str("\nevents are missing here: trimmed, or of another epoch");
    }
    for event in events {
        let offset = event["offset"].to_string();
        out.push_str(&format!("\n{offset:>8}  {}", event["event"]));
    }
    if let Some(next) = answer["next"].as_str() {
        out.push_str(&format!("\nmore: --since {next}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_readable() {
        let page = r#"{"position":"g~e~9","complete":false,"events":[{"offset":7,"event":{"type":"é"}}],"next":"g~e~7"}"#;
        let lines: Vec<String> = as_text(page).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "1 event on this page; newest position g~e~9");
        assert!(lines[1].starts_with("events are missing"), "{lines:?}");
        assert_eq!(lines[2], "       7  {\"type\":\"é\"}");
        assert_eq!(lines[3], "more: --since g~e~7");
        assert_eq!(as_text("no JSON"), "no JSON");
    }
}
