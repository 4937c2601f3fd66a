//! A tenant as its clients and its back end know it: they sign tokens, and write its keys in Redis.

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use super::{Database, token};

/// The knowledge of a client and a back end of one tenant.
#[derive(Clone)]
pub(crate) struct Tenant {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Its host name.
    pub(crate) host: String,
    /// Its layer's prefix.
    pub(crate) prefix: String,
    /// Its HS256 key.
    pub(crate) key: String,
    /// Its Redis.
    pub(crate) redis: String,
    /// Its database.
    pub(crate) database: Database,
}

impl Tenant {
    /// Makes a valid access token.
    pub(crate) fn token(&self, user_id: &str) -> String {
        self.sign(&token::access(user_id))
    }

    /// Signs claims with its key.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        token::sign(&self.key, claims)
    }

    /// A key of Lockgate's own in Redis.
    pub(crate) fn redis_key(&self, key: &str) -> String {
        format!("lockgate:{}:{key}", self.name)
    }

    /// Revokes a token as a back end may without the API: it is denied first and announced second, in one write.
    pub(crate) async fn revoke_in_redis(&self, jti: &str, link: &mut MultiplexedConnection) {
        let message = json!({"v": 1, "op": "revoke", "jti": jti}).to_string();
        let () = redis::pipe()
            .cmd("SET")
            .arg(self.redis_key(&format!("deny:jti:{jti}")))
            .arg("1")
            .arg("EX")
            .arg(60)
            .ignore()
            .cmd("PUBLISH")
            .arg(self.redis_key("control"))
            .arg(message)
            .ignore()
            .query_async(link)
            .await
            .unwrap();
    }
}
