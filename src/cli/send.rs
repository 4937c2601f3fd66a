//! `send`: sends an event to a group, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::remote::{AlwaysJson, Remote, RemoteArguments, or_standard_input, segment, tell};
use crate::ids::TenantId;

/// The most bytes that the API accepts (1 MiB).
const LARGEST_EVENT: u64 = 1 << 20;

/// Send an event to every socket of a group
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate send --tenant acme --group chat_lobby '{\"type\":\"chat.message\",\"text\":\"hi\"}'
  echo '{\"type\":\"tick\"}' | lockgate send --tenant acme --group clock --api-key-file key -")]
pub(super) struct SendArguments {
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// The group
    #[arg(long)]
    group: String,
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
    /// The event, a JSON object with a "type"; - reads it from standard input
    event: String,
}

pub(super) fn run(path: Option<&Path>, arguments: &SendArguments) -> ExitCode {
    let sent = Remote::find(path, &arguments.remote).and_then(|remote| {
        let event = event(&arguments.event)?;
        let (tenant, group) = (&arguments.tenant, segment(&arguments.group));
        let path = format!("/v1/tenants/{tenant}/groups/{group}/send");
        remote.call(&path, Some(event))
    });
    tell(sent, str::to_owned)
}

fn event(text: &str) -> Result<String, String> {
    let text = or_standard_input(text, LARGEST_EVENT)?;
    if text.len() as u64 > LARGEST_EVENT {
        return Err("the event is larger than 1 MiB".to_owned());
    }
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text) {
        Ok(event) if event.contains_key("type") => Ok(text),
        Ok(_) => Err("the event has no \"type\"".to_owned()),
        Err(error) => Err(format!("the event is not a JSON object: {error}")),
    }
}
