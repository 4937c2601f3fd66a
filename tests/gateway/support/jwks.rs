//! A JWK set on a loopback port, as an identity provider serves it, with the key that signs for it.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The name of the key that signs.
pub(crate) const KID: &str = "k1";
/// The name of a second key.
pub(crate) const NEXT_KID: &str = "k2";

/// Serves RSA keys; gone when this goes.
pub(crate) struct Jwks {
    /// The URL of the set.
    pub(crate) url: String,
    whole: Value,
    body: Arc<Mutex<String>>,
    signing: [EncodingKey; 2],
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
        let whole = sets.next().expect("one of them has a set").clone();
        let signing = ["rsa", "rsa_other"].map(|name| {
            let pem = vectors["keys"][name]["private_pem"].as_str();
            EncodingKey::from_rsa_pem(pem.expect("a key").as_bytes()).expect("an RSA key")
        });
        let body = Arc::new(Mutex::new(whole.to_string()));
        let served = body.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let body = served.lock().expect("no panic").clone();
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
            whole,
            body,
            signing,
            task,
        }
    }

    /// Serves these keys of the set from now on, and no others.
    pub(crate) fn publish(&self, kids: &[&str]) {
        let mut set = self.whole.clone();
        let keys = set["keys"].as_array_mut().expect("a list");
        keys.retain(|key| key["kid"].as_str().is_some_and(|kid| kids.contains(&kid)));
        assert_eq!(keys.len(), kids.len());
        *self.body.lock().expect("no panic") = set.to_string();
    }

    /// Signs claims with RS256.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(KID, claims)
    }

    /// Signs claims with one of the two keys.
    pub(crate) fn sign_with(&self, kid: &str, claims: &Value) -> String {
        let key = &self.signing[usize::from(kid == NEXT_KID)];
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": kid});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, Algorithm::RS256);
        format!("{signed}.{}", signature.expect("the key is RSA"))
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        self.task.abort();
    }
}
