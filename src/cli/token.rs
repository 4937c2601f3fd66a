//! `token mint` makes a token, and `token explain` checks one.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::lookup;
use crate::admission::Authenticator;
use crate::auth::{self, MintRequest, RawToken, Report};
use crate::clock::UnixTime;
use crate::config::{Config, IdType};
use crate::ids::TenantId;
use crate::tenant::build;
use crate::user_id::{self, UserIdError};

/// Make and explain tokens
#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    Mint(MintArguments),
    Explain(ExplainArguments),
}

/// Print a token for a user, signed with the tenant's key
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate token mint --tenant acme --user 1
  lockgate token mint --tenant acme --user 1 --lifetime 1h --claim org=7")]
pub(super) struct MintArguments {
    /// The tenant
    #[arg(long)]
    pub(super) tenant: TenantId,
    /// The id of the user
    #[arg(long)]
    pub(super) user: String,
    /// The time for which the token is valid
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = super::duration)]
    pub(super) lifetime: Duration,
    /// An additional claim, or another value for a claim; the value is JSON, or text if it is not JSON
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    pub(super) claims: Vec<(String, serde_json::Value)>,
}

/// Check a token and print the result of each check: exit 0, 1 if refused, 3 if a dependency does not answer
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate token explain --tenant acme eyJhbGciOi…
  pbpaste | lockgate token explain --tenant acme --offline --json -")]
pub(super) struct ExplainArguments {
    /// The tenant
    #[arg(long)]
    pub(super) tenant: TenantId,
    /// The time at which to check the token, in Unix seconds; the default is now
    #[arg(long, value_name = "UNIX", value_parser = unix_time)]
    pub(super) at: Option<f64>,
    /// Do not ask Redis or the database
    #[arg(long)]
    pub(super) offline: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// The token; - reads it from standard input
    pub(super) token: String,
}

fn claim(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("a claim is NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

fn unix_time(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds: &f64| seconds.is_finite())
        .ok_or_else(|| "the time must be a number of Unix seconds".to_owned())
}

pub(super) fn run(path: Option<&Path>, verb: &TokenVerb) -> ExitCode {
    let loaded = match super::load(path) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let id = match verb {
        TokenVerb::Mint(arguments) => &arguments.tenant,
        TokenVerb::Explain(arguments) => &arguments.tenant,
    };
    let found = lookup::with_tenant(loaded.config, id);
    match (verb, found) {
        (TokenVerb::Mint(arguments), Ok(config)) => mint(&config, arguments),
        (TokenVerb::Mint(_), Err(problem)) => super::fail(&problem.text),
        (TokenVerb::Explain(arguments), Ok(config)) => explain(&config, arguments),
        (TokenVerb::Explain(_), Err(problem)) => problem.tell(),
    }
}

fn mint(config: &Config, arguments: &MintArguments) -> ExitCode {
    let tenant = &config.tenants[&arguments.tenant];
    let id_type = user_id::id_type_of(&tenant.token, tenant.users.id_type);
    match user_id::from_text(&arguments.user, id_type) {
        Ok(_) => {}
        Err(UserIdError::NotReadable) => {
            return super::fail(&format!(
                "--user {:?}: a user id of tenant {} must be {}",
                arguments.user,
                arguments.tenant,
                match id_type {
                    IdType::Int => "an integer",
                    IdType::Uuid => "a UUID",
                    IdType::Text => "text",
                }
            ));
        }
        Err(UserIdError::OutOfRange) => {
            return super::fail(&format!("no user can have the id {:?}", arguments.user));
        }
    }
    let request = MintRequest {
        user_id: &arguments.user,
        lifetime: arguments.lifetime,
        claims: arguments.claims.iter().cloned().collect(),
    };
    match auth::mint(&tenant.token, &request, UnixTime::now()) {
        Ok(token) => {
            super::print(&format!("{token}\n"));
            ExitCode::SUCCESS
        }
        Err(error) => super::fail(&error.to_string()),
    }
}

fn explain(config: &Config, arguments: &ExplainArguments) -> ExitCode {
    let text = match arguments.token.as_str() {
        "-" => match std::io::read_to_string(std::io::stdin()) {
            // `echo` adds one line end. All other characters belong to the token, so that the checks see them.
            Ok(text) => text.strip_suffix('\n').unwrap_or(&text).to_owned(),
            Err(error) => return super::fail(&format!("cannot read standard input: {error}")),
        },
        token => token.to_owned(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("cannot start the runtime: {error}")),
    };
    let now = arguments.at.map_or_else(UnixTime::now, UnixTime);
    let report = runtime.block_on(async {
        let authenticator = build::authenticator(config, arguments.tenant.as_str())?;
        let report = authenticator
            .explain(&RawToken::new(text), now, arguments.offline)
            .await;
        if report.accepted.is_none() {
            tell_causes(&authenticator).await;
        }
        anyhow::Ok(report)
    });
    match report {
        Ok(report) => {
            super::print(&if arguments.json {
                as_json(&report)
            } else {
                as_text(&report)
            });
            ExitCode::from(report.exit_code())
        }
        Err(error) => super::fail(&format!("{error:#}")),
    }
}

/// Asks every dependency of the tenant again, and prints the errors to standard error.
async fn tell_causes(authenticator: &Authenticator) {
    let mut causes = Vec::new();
    for redis in authenticator.redis_servers() {
        causes.extend(redis.ping().await.err().map(|error| error.to_string()));
    }
    if let Some(users) = authenticator.users.stored() {
        let ready = users.ready().await;
        causes.extend(ready.err().map(|problem| problem.to_string()));
    }
    let keys = authenticator.verifier.ready().await;
    causes.extend(keys.err().map(|error| error.to_string()));
    causes.dedup();
    for cause in causes {
        super::complain(&format!("no answer from a dependency: {cause}"));
    }
}

fn as_json(report: &Report) -> String {
    serde_json::to_string(report).unwrap_or_default() + "\n"
}

fn as_text(report: &Report) -> String {
    let mut text = match (report.accepted, report.code) {
        (Some(true), _) => "accepted\n".to_owned(),
        (Some(false), code) => format!("refused: {}\n", code.unwrap_or_default()),
        (None, _) => "not known: a dependency did not answer\n".to_owned(),
    };
    for check in &report.checks {
        text += &check.to_string();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_json_or_text() {
        assert_eq!(claim("org=7"), Ok(("org".to_owned(), 7.into())));
        assert_eq!(claim("org=a=b"), Ok(("org".to_owned(), "a=b".into())));
        assert!(claim("org").is_err());
        assert!(claim("=7").is_err());
    }
}
