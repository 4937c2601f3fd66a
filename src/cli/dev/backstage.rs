//! The parts behind the page: its calls go to the management API and the admin listener as calls from outside do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::demo::DemoLogin;
use super::{ROOM, demo};
use crate::cli::http_client::local_url;
use crate::config::Secret;
use crate::config::Trust;
use crate::stores::trust::client_config;

/// Longest time for one call. The API waits for replicas for a quarter of a second.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a call that the API takes.
const LARGEST_CALL: usize = 1 << 20;

/// The facts of a running demo.
pub(super) struct DemoFacts {
    /// The socket listeners of the replicas. The page is on the first one.
    pub(super) sockets: Vec<SocketAddr>,
    pub(super) admin: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) api_key: Secret,
    pub(super) api_key_file: PathBuf,
    pub(super) config_file: PathBuf,
    /// The text of the configuration. Its secrets are in files beside it.
    pub(super) config: String,
}

/// The parts of the demo that the page reaches.
pub(super) struct Backstage {
    pub(super) login: DemoLogin,
    client: reqwest::Client,
    /// Known once the listeners are bound, which serve the page already.
    facts: OnceLock<DemoFacts>,
}

/// The facts that the page needs, as it finds them in a script element.
#[derive(Serialize)]
struct PageFacts<'a> {
    room: &'a str,
    users: Vec<&'a str>,
    replicas: Vec<String>,
    api: String,
    api_key: &'a str,
    api_key_file: String,
    config_file: String,
    config: &'a str,
}

impl Backstage {
    /// Makes the parts. [`Backstage::tell`] completes them.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub(super) fn new(login: DemoLogin) -> anyhow::Result<Self> {
        // The call fails if the process already has a provider; any provider will do.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        // Only this machine is asked, over http, so no authority of the system is needed. A small one has none.
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(client_config(&Trust::default(), false)?)
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self {
            login,
            client,
            facts: OnceLock::new(),
        })
    }

    /// Says where everything is.
    ///
    /// # Errors
    /// If it was told before.
    pub(super) fn tell(&self, facts: DemoFacts) -> anyhow::Result<&DemoFacts> {
        self.facts.set(facts).ok().context("told twice")?;
        self.facts.get().context("just told")
    }

    /// Returns the facts as JSON for a script element; `None` until the demo is ready.
    pub(super) fn page_facts(&self) -> Option<String> {
        let facts = self.facts.get()?;
        let told = PageFacts {
            room: ROOM,
            users: demo::USERS.iter().map(|(_, name)| *name).collect(),
            replicas: facts.sockets.iter().map(ToString::to_string).collect(),
            api: local_url(facts.api),
            api_key: facts.api_key.expose(),
            api_key_file: facts.api_key_file.display().to_string(),
            config_file: facts.config_file.display().to_string(),
            config: &facts.config,
        };
        // With "<" escaped, no text can end the script element.
        let json = serde_json::to_string(&told).ok()?;
        Some(json.replace('<', "\\u003c"))
    }

    /// Passes a call of the page to the management API, with the key that the page sent.
    pub(super) async fn call(&self, request: Request) -> Response {
        let Some(facts) = self.facts.get() else {
            return not_ready();
        };
        let (head, body) = request.into_parts();
        let Ok(body) = to_bytes(body, LARGEST_CALL).await else {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        };
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = format!("{}{path}", local_url(facts.api));
        let mut headers = HeaderMap::new();
        for name in [AUTHORIZATION, CONTENT_TYPE] {
            if let Some(value) = head.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let call = self.client.request(head.method, url);
        answer(call.headers(headers).body(body)).await
    }

    /// Returns the scrape of the admin listener.
    pub(super) async fn metrics(&self) -> Response {
        match self.facts.get() {
            Some(facts) => {
                let url = format!("{}/metrics", local_url(facts.admin));
                answer(self.client.get(url)).await
            }
            None => not_ready(),
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Response {
    let answered = async {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
    };
    match answered.await {
        Ok((status, headers, bytes)) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            if let Some(kind) = headers.get(CONTENT_TYPE) {
                response.headers_mut().insert(CONTENT_TYPE, kind.clone());
            }
            response
        }
        // The listener is in this process, so that it is gone only while the process ends.
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn not_ready() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the demo is starting\n").into_response()
}
