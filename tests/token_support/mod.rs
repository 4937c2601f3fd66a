//! What the token tests share: a JWKS server on a loopback port, hand-made tokens.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lockgate::config::{KeyConfig, Secret, TokenConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers every request with the same bytes, and counts them.
pub struct JwksServer {
    pub origin: String,
    hits: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl JwksServer {
    pub async fn start(status: &'static str, headers: &'static str, body: String) -> Self {
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

    pub async fn with_keys(set: &serde_json::Value) -> Self {
        Self::start("200 OK", "", set.to_string()).await
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for JwksServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn key(
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

pub fn hs256(secret: &str) -> TokenConfig {
    TokenConfig {
        keys: vec![key("HS256", None, Some(secret), None)],
        ..TokenConfig::default()
    }
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with this header and payload, whatever they are, signed by HMAC-SHA256.
pub fn sign_hs256(header: &[u8], payload: &[u8], secret: &[u8]) -> String {
    let message = format!("{}.{}", encode(header), encode(payload));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", encode(signature))
}
