//! A tenant's key set at a URL (RFC 7517), fetched when a token needs one of its keys and cached for this tenant only.
//!
//! The URL comes from the configuration alone, never from a claim or a header of a token.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::Instant;

use crate::error::{Dependency, ErrorKind, StoreError};
use crate::metrics;

use super::algorithm::Alg;
use super::key_set::{KeysByKid, read_set};
use super::keys::VerifyKey;
use crate::config::{Fault, Trust};
use crate::stores::trust;

/// Longest time of a fetch, from the request to the last byte.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Largest key set, in bytes. Large sets in use have some 20 keys of 2 KiB each.
const MAX_BYTES: usize = 256 * 1024;
/// Age up to which a set is used without a refresh, as in PyJWT.
const FRESH: Duration = Duration::from_secs(300);
/// Age up to which a set is used if refreshes fail.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Shortest time between two refreshes, however many unknown `kid`s come.
const PAUSE: Duration = Duration::from_secs(10);

/// The keys at one URL, for one algorithm and one tenant.
pub(crate) struct Jwks {
    inner: Arc<RemoteKeySet>,
    state: Mutex<RefreshState>,
    /// Its URL is neither https nor loopback.
    pub(crate) is_insecure: bool,
}

/// A `jwk_url` that may be asked.
#[derive(Debug)]
pub(crate) struct SetUrl {
    url: Url,
    /// host:port, for metrics.
    endpoint: String,
    is_loopback: bool,
    /// Others may read and change what comes from it.
    pub(crate) is_insecure: bool,
}

impl SetUrl {
    /// Reads a `jwk_url`. It must use TLS or a loopback address, unless `insecure` allows any address.
    pub(crate) fn parse(text: &str, insecure: bool) -> Result<Self, Fault> {
        let wrong = |found: &str| {
            let expected = "https://…, or http:// with a loopback address";
            Fault::new("jwk_url", found, expected)
        };
        let url = Url::parse(text).map_err(|_| wrong("text that is not a URL"))?;
        let host = url
            .host_str()
            .ok_or_else(|| wrong("a URL without a host"))?;
        let is_loopback = is_loopback(host);
        match url.scheme() {
            "https" => {}
            "http" if is_loopback || insecure => {}
            "http" => {
                let advice = "https keeps others from giving you their keys; token.insecure_jwk_url = true allows http in a network that you trust";
                return Err(wrong("a URL over http").advice(advice));
            }
            _ => return Err(wrong("another URL")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            let advice = "take it out: a URL is shown, and a key set is public";
            return Err(wrong("a URL with a user or a password").advice(advice));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        Ok(Self {
            is_insecure: url.scheme() == "http" && !is_loopback,
            endpoint: format!("{host}:{port}"),
            url,
            is_loopback,
        })
    }
}

struct RemoteKeySet {
    url: Url,
    /// host:port, for metrics.
    endpoint: String,
    alg: Alg,
    client: reqwest::Client,
    keys: ArcSwapOption<KeySet>,
}

struct KeySet {
    by_kid: KeysByKid,
    fetched_at: Instant,
}

type Refresh = Shared<BoxFuture<'static, Result<(), FetchError>>>;

#[derive(Default)]
struct RefreshState {
    started: Option<Instant>,
    refresh: Option<Refresh>,
}

/// A failed fetch, shared by all handshakes that waited for it.
#[derive(Clone, Debug)]
struct FetchError {
    kind: ErrorKind,
    text: Arc<str>,
}

impl FetchError {
    fn new(kind: ErrorKind, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        Self { kind, text }
    }

    fn into_store_error(self) -> StoreError {
        StoreError::new(Dependency::Jwks, self.kind, self.text.to_string())
    }
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        let kind = match &error {
            error if error.is_timeout() => ErrorKind::Timeout,
            error if error.is_connect() || error.is_request() || error.is_body() => ErrorKind::Io,
            _ => ErrorKind::Protocol,
        };
        // The query of the URL may hold a secret.
        Self::new(kind, error.without_url().to_string())
    }
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Jwks({})", self.inner.endpoint)
    }
}

/// The action for a handshake that needs a `kid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Use the set: it has the key, or there is none.
    UseSet,
    /// Wait for the running refresh, or start one.
    Wait,
    /// No usable set exists, and a refresh may not start yet.
    Unavailable,
}

/// The state of the set when a handshake needs a `kid`.
#[derive(Clone, Copy, Debug)]
struct Situation {
    /// The age of the set. `None`: there is no usable set.
    age: Option<Duration>,
    /// The set has the `kid`.
    known: bool,
    /// A refresh is running.
    running: bool,
    /// The last refresh began longer than [`PAUSE`] ago.
    may_start: bool,
    /// The last refresh failed.
    failed: bool,
}

impl Situation {
    fn step(self) -> Step {
        match self {
            Situation {
                age: Some(age),
                known: true,
                running,
                may_start,
                ..
            } => {
                // Only the handshake that starts the refresh waits; the others use the old set.
                let refreshes = age > FRESH && may_start && !running;
                if refreshes { Step::Wait } else { Step::UseSet }
            }
            Situation {
                running, may_start, ..
            } if running || may_start => Step::Wait,
            Situation {
                age: Some(_),
                failed: false,
                ..
            } => Step::UseSet,
            _ => Step::Unavailable,
        }
    }
}

impl Jwks {
    /// Makes the key set at `url`, for one algorithm. Fetches nothing yet.
    pub(crate) fn new(url: SetUrl, alg: Alg) -> Result<Self, Fault> {
        Self::with_client(url, alg, &Trust::default())
    }

    /// Returns a key set that trusts the server of the URL as `trust` says. It has fetched nothing.
    pub(crate) fn trusting(&self, trust: &Trust) -> Result<Self, Fault> {
        let RemoteKeySet { url, alg, .. } = &*self.inner;
        let url = SetUrl {
            url: url.clone(),
            endpoint: self.inner.endpoint.clone(),
            is_loopback: url.host_str().is_some_and(is_loopback),
            is_insecure: self.is_insecure,
        };
        Self::with_client(url, *alg, trust)
    }

    fn with_client(url: SetUrl, alg: Alg, trust: &Trust) -> Result<Self, Fault> {
        let client = client(url.is_loopback, trust)?;
        Ok(Self {
            inner: Arc::new(RemoteKeySet {
                url: url.url,
                endpoint: url.endpoint,
                alg,
                client,
                keys: ArcSwapOption::empty(),
            }),
            state: Mutex::default(),
            is_insecure: url.is_insecure,
        })
    }

    pub(crate) fn algorithm(&self) -> Alg {
        self.inner.alg
    }

    /// Returns the key with the id `kid`. `None`: the set has no such key.
    pub(crate) async fn key(&self, kid: &str) -> Result<Option<Arc<VerifyKey>>, StoreError> {
        let refresh = {
            let mut state = self.state.lock();
            match self.situation(&state, kid).step() {
                Step::UseSet => return Ok(self.cached(kid)),
                Step::Unavailable => return Err(self.last_error(&state)),
                Step::Wait => self.running_or_new(&mut state),
            }
        };
        let refreshed = refresh.await;
        match (self.cached(kid), refreshed) {
            (Some(key), _) => Ok(Some(key)),
            (None, Ok(())) => Ok(None),
            (None, Err(error)) => Err(error.into_store_error()),
        }
    }

    /// Returns `Ok` if a usable set exists or can be fetched.
    pub(crate) async fn ready(&self) -> Result<(), StoreError> {
        if self.usable().is_some() {
            return Ok(());
        }
        let refresh = self.running_or_new(&mut self.state.lock());
        refresh.await.map_err(FetchError::into_store_error)
    }

    fn usable(&self) -> Option<Arc<KeySet>> {
        let keys = self.inner.keys.load_full();
        keys.filter(|keys| keys.fetched_at.elapsed() <= STALE)
    }

    fn cached(&self, kid: &str) -> Option<Arc<VerifyKey>> {
        self.usable()?.by_kid.get(kid).cloned()
    }

    fn situation(&self, state: &RefreshState, kid: &str) -> Situation {
        let keys = self.usable();
        let may_start = state
            .started
            .is_none_or(|started| started.elapsed() >= PAUSE);
        let outcome = state.refresh.as_ref().map(|refresh| refresh.peek());
        Situation {
            age: keys.as_ref().map(|keys| keys.fetched_at.elapsed()),
            known: keys.is_some_and(|keys| keys.by_kid.contains_key(kid)),
            // A shared future only advances while a handshake polls it. After `PAUSE` it counts as abandoned.
            running: matches!(outcome, Some(None)) && !may_start,
            may_start,
            failed: matches!(outcome, Some(Some(Err(_)))),
        }
    }

    fn last_error(&self, state: &RefreshState) -> StoreError {
        match state.refresh.as_ref().and_then(|refresh| refresh.peek()) {
            Some(Err(error)) => error.clone().into_store_error(),
            _ => StoreError::new(Dependency::Jwks, ErrorKind::Other, "the key set is too old"),
        }
    }

    fn running_or_new(&self, state: &mut RefreshState) -> Refresh {
        let is_recent = state
            .started
            .is_some_and(|started| started.elapsed() < PAUSE);
        match &state.refresh {
            Some(refresh) if is_recent => refresh.clone(),
            _ => {
                let refresh = refresh(self.inner.clone()).boxed().shared();
                state.started = Some(Instant::now());
                state.refresh = Some(refresh.clone());
                refresh
            }
        }
    }
}

async fn refresh(inner: Arc<RemoteKeySet>) -> Result<(), FetchError> {
    let started = Instant::now();
    let outcome = fetch(&inner).await;
    metrics::dependency_took(Dependency::Jwks, "fetch", started.elapsed());
    metrics::dependency_up(Dependency::Jwks, &inner.endpoint, outcome.is_ok());
    match outcome {
        Ok(by_kid) => {
            let count = by_kid.len();
            tracing::debug!(endpoint = inner.endpoint, count, "Fetched JWKS");
            inner.keys.store(Some(Arc::new(KeySet {
                by_kid,
                fetched_at: started,
            })));
            Ok(())
        }
        Err(error) => {
            metrics::dependency_error(Dependency::Jwks, error.kind);
            tracing::warn!(
                endpoint = inner.endpoint,
                error.kind = error.kind.label(),
                error = %error.text,
                "The key set cannot be fetched; the keys of the last fetch are used for up to 24 h"
            );
            Err(error)
        }
    }
}

async fn fetch(inner: &RemoteKeySet) -> Result<KeysByKid, FetchError> {
    let mut response = inner.client.get(inner.url.clone()).send().await?;
    if response.status() != reqwest::StatusCode::OK {
        let status = response.status().as_u16();
        return Err(FetchError::new(
            ErrorKind::Protocol,
            format!("status {status}"),
        ));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(FetchError::new(ErrorKind::Protocol, "larger than 256 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    read_set(&body, inner.alg).ok_or_else(|| FetchError::new(ErrorKind::Protocol, "not a JWK set"))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address: Result<std::net::IpAddr, _> = bare.parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn client(is_loopback: bool, trust: &Trust) -> Result<reqwest::Client, Fault> {
    let failed = |why: String| {
        Fault::new("jwk_url", "no HTTP client to ask it with", "TLS that works").advice(why)
    };
    // The authorities of the system name no loopback address, and reading them takes a while.
    let tls = trust::client_config(trust, !is_loopback);
    let tls = tls.map_err(|error| failed(error.to_string()))?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT);
    let client = if is_loopback {
        client.no_proxy()
    } else {
        client
    };
    let client = client.build();
    client.map_err(|error| failed(error.without_url().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_loopback_urls_are_taken() {
        let good = [
            "https://id.example/jwks",
            "http://127.0.0.1:1/x",
            "http://localhost/x",
            "http://[::1]:8/",
        ];
        for url in good {
            assert!(SetUrl::parse(url, false).is_ok(), "{url}");
        }
        let bad = [
            "http://id.example/jwks",
            "http://127.0.0.1.example/",
            "file:///etc/passwd",
            "ftp://localhost/",
            "https://user@id.example/jwks",
            "https://:hunter2@id.example/jwks",
            "x",
            "",
        ];
        for url in bad {
            assert!(SetUrl::parse(url, false).is_err(), "{url}");
        }
        for (url, insecure) in [
            ("http://id.example/jwks", Some(true)),
            ("https://id.example/jwks", Some(false)),
            ("http://127.0.0.1:1/x", Some(false)),
            ("ftp://id.example/", None),
        ] {
            let read = SetUrl::parse(url, true).ok();
            assert_eq!(read.map(|url| url.is_insecure), insecure, "{url}");
        }
    }

    #[test]
    fn a_handshake_waits_only_where_waiting_helps() {
        let hour = Duration::from_secs(3600);
        let new = Duration::from_secs(1);
        let of = |age, known, running, may_start, failed| {
            Situation {
                age,
                known,
                running,
                may_start,
                failed,
            }
            .step()
        };
        // A fresh set with the key answers at once.
        assert_eq!(of(Some(new), true, false, true, false), Step::UseSet);
        // An old one is refreshed by one handshake; the others use it.
        assert_eq!(of(Some(hour), true, false, true, false), Step::Wait);
        assert_eq!(of(Some(hour), true, true, false, false), Step::UseSet);
        assert_eq!(of(Some(hour), true, false, false, true), Step::UseSet);
        // An unknown kid costs one refresh in 10 s; in between the answer stands.
        assert_eq!(of(Some(new), false, false, true, false), Step::Wait);
        assert_eq!(of(Some(new), false, true, false, false), Step::Wait);
        assert_eq!(of(Some(new), false, false, false, false), Step::UseSet);
        // Where the refresh failed, an unknown kid may well be a new key.
        assert_eq!(of(Some(new), false, false, false, true), Step::Unavailable);
        assert_eq!(of(None, false, false, false, true), Step::Unavailable);
        assert_eq!(of(None, false, false, true, true), Step::Wait);
    }
}
