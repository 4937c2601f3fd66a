//! A JWK set on a loopback port, as an identity provider serves it, with the key that signs for it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The name of the key that signs.
pub(crate) const KID: &str = "k1";
/// The name of a second RSA key of the vectors' set.
pub(crate) const NEXT_KID: &str = "k2";

/// Serves one set; gone when this goes.
pub(crate) struct Jwks {
    /// The URL of the set.
    pub(crate) url: String,
    algorithm: &'static str,
    signing: EncodingKey,
    whole: Value,
    body: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

/// The vectors, which have the keys.
fn vectors() -> Value {
    serde_json::from_str(include_str!("../../vectors/simplejwt_tokens.json"))
        .expect("the vectors are JSON")
}

/// The set of the token vectors: one RSA key.
pub(crate) fn rsa_set() -> Value {
    let vectors = vectors();
    let configs = vectors["configs"].as_array().expect("a list");
    let mut sets = configs.iter().filter_map(|c| c.get("jwks_document"));
    sets.next().expect("one of them has a set").clone()
}

impl Jwks {
    /// Serves the set of the token vectors, and signs with RS256.
    pub(crate) async fn start() -> Self {
        Self::serve("RS256", &rsa_set()).await
    }

    /// The same over TLS, as `localhost`, with this certificate and key.
    pub(crate) async fn start_tls(certificate: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate).expect("a file");
        let chain = chain.collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let settings = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("they belong together");
        let tls = Some(Arc::new(settings).into());
        Self::run("RS256", &rsa_set(), "https", "localhost", tls).await
    }

    /// Serves this set, and signs with a key of the vectors: RS256 or ES256.
    pub(crate) async fn serve(algorithm: &'static str, set: &Value) -> Self {
        Self::run(algorithm, set, "http", "127.0.0.1", None).await
    }

    async fn run(
        algorithm: &'static str,
        set: &Value,
        scheme: &str,
        host: &str,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let body = Arc::new(Mutex::new(set.to_string()));
        let served = body.clone();
        let keys = &vectors()["keys"];
        let pem = |name: &str| keys[name]["private_pem"].as_str().map(str::to_owned);
        let signing = match algorithm {
            "RS256" => EncodingKey::from_rsa_pem(pem("rsa").expect("a key").as_bytes()),
            _ => EncodingKey::from_ec_pem(pem("p256").expect("a key").as_bytes()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let body = served.lock().expect("no panic").clone();
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => respond(stream, &answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                respond(stream, &answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            url: format!("{scheme}://{host}:{}/jwks", address.port()),
            algorithm,
            signing: signing.expect("a key of the algorithm"),
            whole: set.clone(),
            body,
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

    /// Signs claims with its key.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(KID, &self.signing, claims)
    }

    /// Signs claims with the second RSA key of the vectors.
    pub(crate) fn sign_with_next(&self, claims: &Value) -> String {
        let pem = vectors()["keys"]["rsa_other"]["private_pem"].clone();
        let key = EncodingKey::from_rsa_pem(pem.as_str().expect("a key").as_bytes());
        self.sign_with(NEXT_KID, &key.expect("an RSA key"), claims)
    }

    fn sign_with(&self, kid: &str, key: &EncodingKey, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm, "typ": "JWT", "kid": kid});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let algorithm = match self.algorithm {
            "RS256" => Algorithm::RS256,
            _ => Algorithm::ES256,
        };
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, algorithm);
        format!("{signed}.{}", signature.expect("the key fits"))
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) {
    let mut head = [0; 4096];
    if stream.read(&mut head).await.is_ok() {
        drop(stream.write_all(answer.as_bytes()).await);
        drop(stream.shutdown().await);
    }
}
