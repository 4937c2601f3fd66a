//! A JWK set on a loopback port, as an identity provider serves it, with the key that signs for it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The name of its one key.
pub(crate) const KID: &str = "k1";

/// Serves one RSA key; gone when this goes.
pub(crate) struct Jwks {
    /// The URL of the set.
    pub(crate) url: String,
    signing: EncodingKey,
    task: JoinHandle<()>,
}

impl Jwks {
    /// Serves the set of the token vectors.
    pub(crate) async fn start() -> Self {
        let vectors: Value =
            serde_json::from_str(include_str!("../../vectors/simplejwt_tokens.json"))
                .expect("the vectors are JSON");
        let configs = vectors["configs"].as_array().expect("a list");
        let mut sets = configs.iter().filter_map(|c| c.get("jwks_document"));
        let body = sets.next().expect("one of them has a set").to_string();
        let pem = vectors["keys"]["rsa"]["private_pem"]
            .as_str()
            .expect("a key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    if stream.read(&mut head).await.is_ok() {
                        drop(stream.write_all(answer.as_bytes()).await);
                    }
                });
            }
        });
        Self {
            url: format!("http://{address}/jwks"),
            signing: EncodingKey::from_rsa_pem(pem.as_bytes()).expect("an RSA key"),
            task,
        }
    }

    /// Signs claims with RS256.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": KID});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &self.signing, Algorithm::RS256);
        format!("{signed}.{}", signature.expect("the key is RSA"))
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        self.task.abort();
    }
}
