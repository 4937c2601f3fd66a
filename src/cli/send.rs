//! `send`: an event into a group, through the management API.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};

use super::http_client::{Answer, exchange, local_url};
use crate::config::{Config, Secret};
use crate::ids::TenantId;

/// What the API takes at most (1 MiB); more need not be read.
const LARGEST_EVENT: u64 = 1 << 20;

/// Longer than any replica waits for others.
const TIMEOUT: Duration = Duration::from_secs(10);

/// All but what RFC 3986 §2.3 leaves as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

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
    /// The management API; without it, api.listen of the configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A file with the key; without it, the first operator key of the configuration
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// The event, a JSON object with a "type"; - reads it from standard input
    event: String,
}

pub(super) fn run(path: Option<&Path>, arguments: &SendArguments) -> ExitCode {
    let sent = target(path, arguments).and_then(|(base, key)| {
        let event = event(&arguments.event)?;
        publish(&base, &key, arguments, event)
    });
    match sent {
        Ok(answer) if (200..300).contains(&answer.status) => {
            super::print(&format!("{}\n", answer.body.trim_end()));
            ExitCode::SUCCESS
        }
        Ok(answer) => super::fail(&format!(
            "status {}: {}",
            answer.status,
            answer.body.trim_end()
        )),
        Err(Failure::Told(status)) => status,
        Err(Failure::Text(text)) => super::fail(&text),
    }
}

/// Why nothing was sent.
enum Failure {
    /// The reason was told already.
    Told(ExitCode),
    Text(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Where the API is and which key opens it. The configuration is read only for what the command line leaves out.
fn target(path: Option<&Path>, arguments: &SendArguments) -> Result<(String, Secret), Failure> {
    if let (Some(url), Some(file)) = (&arguments.url, &arguments.api_key_file) {
        return Ok((url.clone(), key_from(file)?));
    }
    let config = super::load(path).map_err(Failure::Told)?.config;
    Ok((base_url(&config, arguments)?, api_key(&config, arguments)?))
}

fn base_url(config: &Config, arguments: &SendArguments) -> Result<String, String> {
    let configured = || config.api.listen.map(local_url);
    arguments
        .url
        .clone()
        .or_else(configured)
        .ok_or_else(|| "no api.listen in the configuration: name the API with --url".to_owned())
}

fn api_key(config: &Config, arguments: &SendArguments) -> Result<Secret, String> {
    match &arguments.api_key_file {
        Some(file) => key_from(file),
        None => config.api.api_keys.first().cloned().ok_or_else(|| {
            "no api.api_keys in the configuration: name a key with --api-key-file".to_owned()
        }),
    }
}

fn key_from(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("--api-key-file {}: {error}", file.display()))?;
    let key = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::from(key.strip_suffix('\r').unwrap_or(key)))
}

fn event(text: &str) -> Result<String, String> {
    let text = if text == "-" {
        let mut read = String::new();
        std::io::stdin()
            .lock()
            .take(LARGEST_EVENT + 1)
            .read_to_string(&mut read)
            .map_err(|error| format!("standard input: {error}"))?;
        read
    } else {
        text.to_owned()
    };
    if text.len() as u64 > LARGEST_EVENT {
        return Err("the event is larger than 1 MiB".to_owned());
    }
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text) {
        Ok(event) if event.contains_key("type") => Ok(text),
        Ok(_) => Err("the event has no \"type\"".to_owned()),
        Err(error) => Err(format!("the event is no JSON object: {error}")),
    }
}

fn publish(
    base: &str,
    key: &Secret,
    arguments: &SendArguments,
    event: String,
) -> Result<Answer, Failure> {
    let url = format!(
        "{}/v1/tenants/{}/groups/{}/send",
        base.trim_end_matches('/'),
        arguments.tenant,
        utf8_percent_encode(&arguments.group, SEGMENT)
    );
    let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.expose()))
        .map_err(|_| "the key has characters that a header cannot carry".to_owned())?;
    authorization.set_sensitive(true);
    exchange(TIMEOUT, |client| {
        client
            .post(&url)
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(event)
    })
    .map_err(|error| Failure::Text(format!("{url}: {error}")))
}
