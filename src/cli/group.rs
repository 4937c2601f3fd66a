//! `group`: puts open sockets into a group or takes them out, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};

use super::remote::{AlwaysJson, Remote, RemoteArguments, segment, tell};
use crate::ids::TenantId;

/// Put open sockets into a group, or take them out, on all replicas
#[derive(Debug, Subcommand)]
pub(super) enum GroupVerb {
    /// Put open sockets into a group
    Add(GroupArguments),
    /// Take open sockets out of a group
    Remove(GroupArguments),
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("sockets").required(true).args(["user", "channel"]),
    after_help = "\
Examples:
  lockgate group add --tenant acme --group chat_lobby --user 7
  lockgate group remove --tenant acme --group chat_lobby --channel CHANNEL"
)]
pub(super) struct GroupArguments {
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// The group
    #[arg(long)]
    group: String,
    /// All open sockets of a user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// The socket with this channel name, as `connections` lists it
    #[arg(long)]
    channel: Option<String>,
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
}

pub(super) fn run(path: Option<&Path>, verb: &GroupVerb) -> ExitCode {
    let (GroupVerb::Add(arguments) | GroupVerb::Remove(arguments)) = verb;
    let changed = Remote::find(path, &arguments.remote).and_then(|remote| {
        let sockets = match (&arguments.user, &arguments.channel) {
            (Some(user), _) => format!("users/{}", segment(user)),
            (None, channel) => {
                format!(
                    "connections/{}",
                    segment(channel.as_deref().unwrap_or_default())
                )
            }
        };
        let (tenant, group) = (&arguments.tenant, segment(&arguments.group));
        let path = format!("/v1/tenants/{tenant}/{sockets}/groups/{group}");
        match verb {
            GroupVerb::Add(_) => remote.call(&path, Some("{}".to_owned())),
            GroupVerb::Remove(_) => remote.delete(&path),
        }
    });
    tell(changed, str::to_owned)
}
