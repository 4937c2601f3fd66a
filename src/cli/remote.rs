//! The shared part of the commands that call the management API: its address, its key and its answer.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use super::http_client::{HttpAnswer, base_of, exchange, local_url};
use crate::config::{Config, Fault, Secret, file};

/// The longest time for one call, which is longer than a replica waits for other replicas.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The characters to encode: all but the unreserved ones of RFC 3986 §2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The address of the API, and its key.
#[derive(Debug, Args)]
pub(super) struct RemoteArguments {
    /// The management API; without it, api.listen of the configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A file with the key; without it, the first operator key of the configuration
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// The option of commands whose answer is JSON in any case, so that a script can pass it to each.
#[derive(Debug, Args)]
pub(super) struct AlwaysJson {
    /// Print the answer of the API as JSON, as is done without it too
    #[arg(long = "json")]
    _json: bool,
}

/// A call that was not made or got no answer.
pub(super) enum Failure {
    /// The reason is printed already.
    Told(ExitCode),
    Text(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// The API with its address and key.
pub(super) struct Remote {
    base: String,
    key: Secret,
}

impl Remote {
    /// Takes address and key from the command line. Reads the configuration only if one of them is missing there.
    pub(super) fn find(path: Option<&Path>, arguments: &RemoteArguments) -> Result<Self, Failure> {
        if let (Some(url), Some(file)) = (&arguments.url, &arguments.api_key_file) {
            let (base, key) = (base_of(url), key_from(file)?);
            return Ok(Self { base, key });
        }
        let config = super::load(path).map_err(Failure::Told)?.config;
        Ok(Self {
            base: base_url(&config, arguments)?,
            key: api_key(&config, arguments)?,
        })
    }

    /// Sends a POST with a JSON body to `path`, or a GET without a body.
    pub(super) fn call(&self, path: &str, body: Option<String>) -> Result<HttpAnswer, Failure> {
        self.exchange(path, |client, url| match body {
            Some(body) => client
                .post(url)
                .header(CONTENT_TYPE, "application/json")
                .body(body),
            None => client.get(url),
        })
    }

    /// Sends a PUT with a JSON body to `path`, with the header of its precondition.
    pub(super) fn put(
        &self,
        path: &str,
        body: String,
        condition: Option<(&'static str, String)>,
    ) -> Result<HttpAnswer, Failure> {
        self.exchange(path, |client, url| {
            let request = client
                .put(url)
                .header(CONTENT_TYPE, "application/json")
                .body(body);
            with(request, condition)
        })
    }

    /// Sends a DELETE to `path`, with the header of its precondition.
    pub(super) fn delete_if(
        &self,
        path: &str,
        condition: Option<(&'static str, String)>,
    ) -> Result<HttpAnswer, Failure> {
        self.exchange(path, |client, url| with(client.delete(url), condition))
    }

    /// Sends a DELETE to `path`.
    pub(super) fn delete(&self, path: &str) -> Result<HttpAnswer, Failure> {
        self.exchange(path, |client, url| client.delete(url))
    }

    fn exchange(
        &self,
        path: &str,
        request: impl FnOnce(&reqwest::Client, &str) -> reqwest::RequestBuilder,
    ) -> Result<HttpAnswer, Failure> {
        let url = format!("{}{path}", self.base);
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", self.key.expose()))
            .map_err(|_| "the key has characters that a header cannot carry".to_owned())?;
        authorization.set_sensitive(true);
        let answer = exchange(TIMEOUT, |client| {
            request(client, &url).header(AUTHORIZATION, authorization)
        });
        answer.map_err(|error| Failure::Text(format!("{url}: {error}")))
    }
}

/// Adds the header of a precondition.
fn with(
    request: reqwest::RequestBuilder,
    condition: Option<(&'static str, String)>,
) -> reqwest::RequestBuilder {
    match condition {
        Some((name, value)) => request.header(name, value),
        None => request,
    }
}

/// Encodes text as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Prints the answer of a call that lists something: as text, or unchanged with `--json`.
pub(super) fn tell_list(
    called: Result<HttpAnswer, Failure>,
    json: bool,
    as_text: impl FnOnce(&str) -> String,
) -> ExitCode {
    tell(called, |body| match json {
        true => body.to_owned(),
        false => as_text(body),
    })
}

/// Returns the part of a query that asks for what follows a page; empty for the first page.
pub(super) fn following(name: &str, place: Option<&str>) -> String {
    let place = place.map(segment);
    place.map_or(String::new(), |place| format!("&{name}={place}"))
}

/// Prints the result of a call: the text that `show` makes of a good answer, or the error.
pub(super) fn tell(
    called: Result<HttpAnswer, Failure>,
    show: impl FnOnce(&str) -> String,
) -> ExitCode {
    match called {
        Ok(answer) if (200..300).contains(&answer.status) => {
            super::print(&format!("{}\n", show(answer.body.trim_end())));
            ExitCode::SUCCESS
        }
        Ok(answer) => super::fail(&problem(&answer)),
        Err(Failure::Told(status)) => status,
        Err(Failure::Text(text)) => super::fail(&text),
    }
}

/// Writes the answer that tells why a call failed (RFC 9457): its detail, then the members of its own, and each mistake of a
/// document on a line.
fn problem(answer: &HttpAnswer) -> String {
    let (status, body) = (answer.status, answer.body.trim_end());
    let read = serde_json::from_str::<Value>(body).ok();
    let detail = read.as_ref().and_then(|problem| problem["detail"].as_str());
    let (Some(problem), Some(detail)) = (&read, detail) else {
        return format!("status {status}: {body}");
    };
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
    let code = problem["code"].as_str();
    let code = code.map_or(String::new(), |code| format!(", {code}"));
    let mut out = format!("{detail} (status {status}{code})");
    for (name, value) in problem.as_object().into_iter().flatten() {
        if !MEMBERS.contains(&name.as_str()) {
            out.push_str(&format!("\n{name}: {value}"));
        }
    }
    for mistake in problem["mistakes"].as_array().into_iter().flatten() {
        let fault = Fault {
            key: text(mistake, "key"),
            found: text(mistake, "found"),
            expected: text(mistake, "expected"),
            advice: text(mistake, "advice"),
        };
        out.push_str(&format!("\n{fault}"));
    }
    out
}

/// The members of a problem that are written in another form, or say nothing more.
const MEMBERS: [&str; 6] = ["type", "title", "status", "code", "detail", "mistakes"];

/// Returns `text`, or standard input if `text` is `-`. Reads at most one byte more than `most`, so that the caller can
/// tell an input that is too large.
pub(super) fn or_standard_input(text: &str, most: u64) -> Result<String, String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut read = String::new();
    std::io::stdin()
        .lock()
        .take(most + 1)
        .read_to_string(&mut read)
        .map_err(|error| format!("standard input: {error}"))?;
    Ok(read)
}

fn base_url(config: &Config, arguments: &RemoteArguments) -> Result<String, String> {
    let configured = || config.api.listen.map(local_url);
    arguments
        .url
        .as_deref()
        .map(base_of)
        .or_else(configured)
        .ok_or_else(|| "no api.listen in the configuration: name the API with --url".to_owned())
}

fn api_key(config: &Config, arguments: &RemoteArguments) -> Result<Secret, String> {
    match &arguments.api_key_file {
        Some(file) => key_from(file),
        None => config.api.api_keys.first().cloned().ok_or_else(|| {
            "no api.api_keys in the configuration: name a key with --api-key-file".to_owned()
        }),
    }
}

/// Largest file of a key, in bytes.
const LARGEST_KEY_FILE: u64 = 64 << 10;

fn key_from(path: &Path) -> Result<Secret, String> {
    let read = file::read(path, LARGEST_KEY_FILE).and_then(|(_, bytes)| {
        String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not UTF-8 text"))
    });
    let text = read.map_err(|error| format!("--api-key-file {}: {error}", path.display()))?;
    let key = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::from(key.strip_suffix('\r').unwrap_or(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> Vec<String> {
        let answer = HttpAnswer {
            status,
            body: body.to_owned(),
        };
        problem(&answer).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_problem_is_told_in_words() {
        let body = r#"{"type":"urn:x","title":"Unprocessable","status":422,"code":"tenant_not_valid","detail":"It has mistakes.",
            "mistakes":[{"key":"hosts","found":"no hosts","expected":"hosts","advice":""},
            {"key":"","found":"a","expected":"b","advice":"c"}]}"#;
        let lines = [
            "It has mistakes. (status 422, tenant_not_valid)",
            "hosts: found no hosts, expected hosts",
            "found a, expected b; c",
        ];
        assert_eq!(told(422, body), lines);
        let body = r#"{"code":"scope_missing","detail":"It is confined.","scope":"tenants:write"}"#;
        let lines = [
            "It is confined. (status 403, scope_missing)",
            "scope: \"tenants:write\"",
        ];
        assert_eq!(told(403, body), lines);
        assert_eq!(told(502, "Bad Gateway\n"), ["status 502: Bad Gateway"]);
    }
}
