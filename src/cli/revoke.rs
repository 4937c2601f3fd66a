//! `revoke`: revokes tokens, through the management API.

use std::path::Path;
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::remote::{AlwaysJson, Remote, RemoteArguments, or_standard_input, tell};
use crate::ids::TenantId;

/// The most bytes read from standard input, more than any tenant's `token.max_size`.
const LARGEST_TOKEN: u64 = 1 << 20;

/// Revoke tokens and close the sockets that they have opened
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("target").required(true).args(["jti", "token", "user", "all"]),
    after_help = "\
Examples:
  lockgate revoke --tenant acme --jti 9f1c4d2e8a7b4c6d9e0f1a2b3c4d5e6f --exp 1767225600
  echo \"$TOKEN\" | lockgate revoke --tenant acme --token -
  lockgate revoke --tenant acme --user 7
  lockgate revoke --tenant acme --all --issued-before 1767225600"
)]
pub(super) struct RevokeArguments {
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// The id of one token; needs --exp
    #[arg(long, requires = "exp")]
    jti: Option<String>,
    /// The expiry of that token, in Unix seconds
    #[arg(long, value_name = "UNIX", requires = "jti", value_parser = unix)]
    exp: Option<f64>,
    /// One token, read from standard input, because other users can see a command line
    #[arg(long, value_name = "-", value_parser = ["-"])]
    token: Option<String>,
    /// Every token of a user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Every token of the tenant; needs --issued-before
    #[arg(long, requires = "issued_before")]
    all: bool,
    /// Only tokens issued at or before this time, in Unix seconds; with --user the default is now
    #[arg(long, value_name = "UNIX", conflicts_with_all = ["jti", "token"], value_parser = unix)]
    issued_before: Option<f64>,
    #[command(flatten)]
    _json: AlwaysJson,
    #[command(flatten)]
    remote: RemoteArguments,
}

pub(super) fn run(path: Option<&Path>, arguments: &RevokeArguments) -> ExitCode {
    let revoked = Remote::find(path, &arguments.remote).and_then(|remote| {
        let path = format!("/v1/tenants/{}/revocations", arguments.tenant);
        let body = body(arguments)?;
        remote.call(&path, Some(body.to_string()))
    });
    tell(revoked, str::to_owned)
}

/// Reads Unix seconds. JSON has no form for NaN and the infinities: they would arrive as null.
fn unix(text: &str) -> Result<f64, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds: &f64| seconds.is_finite());
    seconds.ok_or_else(|| "Unix seconds are a number, such as 1767225600".to_owned())
}

fn body(arguments: &RevokeArguments) -> Result<Value, String> {
    let before = arguments.issued_before;
    Ok(match (&arguments.jti, &arguments.token, &arguments.user) {
        (Some(jti), ..) => json!({"jti": jti, "exp": arguments.exp}),
        (_, Some(token), _) => {
            let token = or_standard_input(token, LARGEST_TOKEN)?;
            json!({"token": token.trim_end()})
        }
        (_, _, Some(user)) if before.is_none() => json!({"user_id": user}),
        (_, _, Some(user)) => json!({"user_id": user, "issued_before": before}),
        _ => json!({"issued_before": before}),
    })
}
