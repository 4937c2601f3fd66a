//! A tenant's keys by URL (RFC 7517): fetched when a `kid` asks for it, cached for this tenant alone.
//!
//! No claim and no header of a token has a say in where keys come from.

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

use super::key_set::{KeysByKid, read_set};
use super::keys::{Alg, VerifyKey};
use crate::config::Fault;

/// From request to last byte.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The largest sets in the field have some 20 keys of 2 KiB each.
const MAX_BYTES: usize = 256 * 1024;
/// How long a set is used without looking for a newer one, as PyJWT does.
const FRESH: Duration = Duration::from_secs(300);
/// How long a set is used if no newer one can be had.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// One refresh in this time, however many unknown `kid`s come.
const PAUSE: Duration = Duration::from_secs(10);

/// The keys at one URL, for one algorithm and one tenant.
pub(crate) struct Jwks {
    inner: Arc<Inner>,
    state: Mutex<State>,
}

/// A `jwk_url` that may be asked.
#[derive(Debug)]
pub(crate) struct SetUrl {
    url: Url,
    /// host:port, for metrics.
    endpoint: String,
    is_loopback: bool,
}

impl SetUrl {
    /// Reads a `jwk_url`; its host answers over TLS, or is this machine.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
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
            "http" if is_loopback => {}
            _ => return Err(wrong("another URL")),
        }
        let port = url.port_or_known_default().unwrap_or_default();
        Ok(Self {
            endpoint: format!("{host}:{port}"),
            url,
            is_loopback,
        })
    }
}

struct Inner {
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
struct State {
    started: Option<Instant>,
    refresh: Option<Refresh>,
}

/// Why a set could not be had; shared by all who waited for it.
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
        // A URL may carry a secret in its query.
        Self::new(kind, error.without_url().to_string())
    }
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Jwks({})", self.inner.endpoint)
    }
}

/// What to do for a handshake that asks for a `kid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Take what the set says, be it a key or none.
    UseSet,
    /// Wait for a refresh: the running one, or a new one.
    Wait,
    /// No set can be had now.
    Unavailable,
}

/// What is known when a handshake asks.
#[derive(Clone, Copy, Debug)]
struct Situation {
    /// The age of the set, if there is one that may still be used.
    age: Option<Duration>,
    /// The set has the `kid`.
    known: bool,
    /// A refresh is on its way.
    running: bool,
    /// The last refresh began so long ago that another may begin.
    may_start: bool,
    /// The last refresh brought nothing.
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
                // Others need not wait for a set that is merely old.
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
    /// Fetches nothing yet.
    /// The keys at `place`, for one algorithm; fetches nothing.
    pub(crate) fn new(place: SetUrl, alg: Alg) -> Result<Self, Fault> {
        let client = client(place.is_loopback)?;
        Ok(Self {
            inner: Arc::new(Inner {
                url: place.url,
                endpoint: place.endpoint,
                alg,
                client,
                keys: ArcSwapOption::empty(),
            }),
            state: Mutex::default(),
        })
    }

    pub(crate) fn algorithm(&self) -> Alg {
        self.inner.alg
    }

    /// The key of that name, `None` if the set has none that may be used.
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

    /// Whether a set is there, or can be had.
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

    fn situation(&self, state: &State, kid: &str) -> Situation {
        let keys = self.usable();
        let may_start = state
            .started
            .is_none_or(|started| started.elapsed() >= PAUSE);
        let outcome = state.refresh.as_ref().map(|refresh| refresh.peek());
        Situation {
            age: keys.as_ref().map(|keys| keys.fetched_at.elapsed()),
            known: keys.is_some_and(|keys| keys.by_kid.contains_key(kid)),
            // One that nobody waits for any more does not run on by itself.
            running: matches!(outcome, Some(None)) && !may_start,
            may_start,
            failed: matches!(outcome, Some(Some(Err(_)))),
        }
    }

    fn last_error(&self, state: &State) -> StoreError {
        match state.refresh.as_ref().and_then(|refresh| refresh.peek()) {
            Some(Err(error)) => error.clone().into_store_error(),
            _ => StoreError::new(Dependency::Jwks, ErrorKind::Other, "the key set is too old"),
        }
    }

    fn running_or_new(&self, state: &mut State) -> Refresh {
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

async fn refresh(inner: Arc<Inner>) -> Result<(), FetchError> {
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
                "JWKS cannot be had; keys fetched before are used for up to 24 h"
            );
            Err(error)
        }
    }
}

async fn fetch(inner: &Inner) -> Result<KeysByKid, FetchError> {
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

fn client(is_loopback: bool) -> Result<reqwest::Client, Fault> {
    let failed = |why: String| {
        Fault::new("jwk_url", "no HTTP client to ask it with", "TLS that works").advice(why)
    };
    let mut roots = rustls::RootCertStore::empty();
    if !is_loopback {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
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
            assert!(SetUrl::parse(url).is_ok(), "{url}");
        }
        let bad = [
            "http://id.example/jwks",
            "http://127.0.0.1.example/",
            "file:///etc/passwd",
            "ftp://localhost/",
            "x",
            "",
        ];
        for url in bad {
            assert!(SetUrl::parse(url).is_err(), "{url}");
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
