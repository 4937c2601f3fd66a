//! The common parts of the token tests: a JWKS server on a loopback port, and hand-made tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lockgate::auth::{RawToken, TokenError, TokenVerifier};
use lockgate::clock::UnixTime;
use lockgate::config::{IdType, KeyConfig, Secret, TokenConfig};
use lockgate::error::{Check, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers every request with the same bytes, and counts them.
pub(crate) struct JwksServer {
    pub(crate) origin: String,
    hits: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl JwksServer {
    pub(crate) async fn start(status: &'static str, headers: &'static str, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let hits = Arc::new(AtomicUsize::new(0));
        let counter = hits.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = format!(
                    "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    if socket.read(&mut head).await.is_ok() {
                        drop(socket.write_all(answer.as_bytes()).await);
                    }
                });
            }
        });
        Self { origin, hits, task }
    }

    pub(crate) async fn with_keys(set: &serde_json::Value) -> Self {
        Self::start("200 OK", "", set.to_string()).await
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for JwksServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn key(
    algorithm: &str,
    kid: Option<&str>,
    signing: Option<&str>,
    verifying: Option<&str>,
) -> KeyConfig {
    KeyConfig {
        algorithm: algorithm.into(),
        kid: kid.map(Into::into),
        signing_key: signing.map(Secret::from),
        verifying_key: verifying.map(Secret::from),
    }
}

pub(crate) fn hs256(secret: &str) -> TokenConfig {
    TokenConfig {
        keys: vec![key("HS256", None, Some(secret), None)],
        ..TokenConfig::default()
    }
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with this header and payload, whatever they are, signed by HMAC-SHA256.
pub(crate) fn sign_hs256(header: &[u8], payload: &[u8], secret: &[u8]) -> String {
    let message = format!("{}.{}", encode(header), encode(payload));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", encode(signature))
}

/// The time at which the hostile tokens are judged.
pub(crate) const NOW: f64 = 1_893_456_000.0;
pub(crate) const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes-0123456789";
pub(crate) const PAYLOAD: &str =
    r#"{"token_type":"access","exp":4102444800,"iat":1700000000,"jti":"j","user_id":"1"}"#;
pub(crate) const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// The verdict that a row expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    User(&'static str),
    Fails(Check),
    Expired,
    NoSuchUser,
}
pub(crate) use Expect::{Expired, Fails, NoSuchUser, User};

pub(crate) async fn judge(verifier: &TokenVerifier, token: &str) -> Result<String, Refusal> {
    match verifier
        .verify(&RawToken::new(token.into()), UnixTime(NOW))
        .await
    {
        Ok(verified) => Ok(verified.user_id.to_string()),
        Err(TokenError::Refused(refusal)) => Err(refusal),
        Err(TokenError::Unavailable(error)) => panic!("{error}"),
    }
}

pub(crate) fn expected(expect: Expect) -> Result<String, Refusal> {
    match expect {
        User(id) => Ok(id.into()),
        Fails(check) => Err(Refusal::TokenNotValid(check)),
        Expired => Err(Refusal::TokenExpired),
        NoSuchUser => Err(Refusal::UserNotFound),
    }
}

pub(crate) fn verifier(config: &TokenConfig) -> TokenVerifier {
    TokenVerifier::new(config, IdType::Int).unwrap()
}
