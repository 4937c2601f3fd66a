//! A small HTTP client for the commands that talk to a running replica.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::config::Trust;
use crate::stores::trust::client_config;

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot start an HTTP client: {0}")]
    Start(String),
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// A replica's answer.
pub(super) struct HttpAnswer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Sends one request and reads its answer within `timeout`. Follows no redirect and uses no proxy.
pub(super) fn exchange(
    timeout: Duration,
    request: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder,
) -> Result<HttpAnswer, ClientError> {
    // The call fails if the process already has a provider; any provider will do.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Start(error.to_string()))?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls()?)
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Start(reason(&error)))?;
        let response = request(&client)
            .send()
            .await
            .map_err(|error| ClientError::NoAnswer(reason(&error)))?;
        let status = response.status().as_u16();
        let body = response
            .text()
            .await
            .map_err(|error| ClientError::NoAnswer(reason(&error)))?;
        Ok(HttpAnswer { status, body })
    })
}

/// Returns the settings for `https`. A machine without authorities can still ask over `http`.
fn tls() -> Result<rustls::ClientConfig, ClientError> {
    let trust = Trust::default();
    let settings = client_config(&trust, true).or_else(|_| client_config(&trust, false));
    settings.map_err(|error| ClientError::Start(error.to_string()))
}

/// Returns the innermost cause. The outer errors only say that there was an error.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it took too long".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let refused = cause.downcast_ref::<std::io::Error>();
    match refused.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        true => format!("{cause}; nothing listens there: does `lockgate serve` run?"),
        false => cause.to_string(),
    }
}

/// Returns the base URL that a person typed, with `http://` if it has no scheme.
pub(super) fn base_of(typed: &str) -> String {
    let typed = typed.trim_end_matches('/');
    match typed.contains("://") {
        true => typed.to_owned(),
        false => format!("http://{typed}"),
    }
}

/// Returns the base URL of a listener on this machine. A listener on all addresses gets the loopback address.
pub(super) fn local_url(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before: `127.0.0.1:9001` was "relative URL without a base".
    #[test]
    fn a_url_needs_no_scheme() {
        for (typed, base) in [
            ("127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("localhost:9001/", "http://localhost:9001"),
            ("[::1]:9001", "http://[::1]:9001"),
            ("https://api.example.com/", "https://api.example.com"),
        ] {
            assert_eq!(base_of(typed), base);
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (listen, url) in [
            ("0.0.0.0:9000", "http://127.0.0.1:9000"),
            ("[::]:9000", "http://[::1]:9000"),
            ("10.0.0.1:9000", "http://10.0.0.1:9000"),
        ] {
            assert_eq!(local_url(listen.parse().unwrap()), url);
        }
    }
}
