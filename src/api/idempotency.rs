//! `Idempotency-Key`: a call that is repeated with its key is carried out once and gets the same answer again.
//!
//! `lockgate:TENANT:idem:KEY` holds the digest of path and body, and later the answer, for a day.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ApiState;
use super::problem::{ApiProblem, unavailable};
use crate::stores::key_read::KeyRead;
use crate::stores::key_store::Lifetime;
use crate::stores::redis_keys;
use crate::tenant::Tenant;

/// The time for which an answer is kept.
const KEPT: Duration = Duration::from_secs(86_400);
/// The longest time of a call. If the replica dies during the call, its key stays in use for the rest of this time.
const UNDER_WAY: Duration = Duration::from_secs(30);
/// The most characters of a key.
const MAX_KEY: usize = 255;

/// The key of a call; `None` if it has none.
pub(super) struct Idempotent(Option<String>);

impl FromRequestParts<ApiState> for Idempotent {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiProblem> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else {
            return Ok(Self(None));
        };
        let key = value.to_str().ok().filter(|key| {
            let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
            visible && (1..=MAX_KEY).contains(&key.len())
        });
        match (key, values.next()) {
            (Some(key), None) => Ok(Self(Some(key.to_owned()))),
            _ => Err(ApiProblem::IdempotencyKeyNotValid),
        }
    }
}

/// The value of a key in Redis.
#[derive(Serialize, Deserialize)]
struct StoredAnswer {
    v: u32,
    /// The digest of path and body.
    digest: String,
    /// The answer as JSON text; `None` during the call.
    answer: Option<String>,
}

impl Idempotent {
    /// Carries out `call`, or repeats the answer of an earlier call with this key. `resource` is the path below the
    /// tenant.
    pub(super) async fn once<T: Serialize>(
        self,
        tenant: &Tenant,
        resource: &str,
        body: &[u8],
        call: impl AsyncFnOnce() -> Result<T, ApiProblem>,
    ) -> Result<Response, ApiProblem> {
        let Some(key) = self.0 else {
            return Ok(axum::Json(call().await?).into_response());
        };
        let key = redis_keys::idempotency(&tenant.id, &key);
        let digest = Sha256::new().chain_update(resource).chain_update([0]);
        let digest = format!("{:x}", digest.chain_update(body).finalize());
        let entry = |answer| {
            let (v, digest) = (1, digest.clone());
            let entry = StoredAnswer { v, digest, answer };
            serde_json::to_vec(&entry).map_err(|_| ApiProblem::FleetUnavailable)
        };
        let failed = |error| unavailable(tenant, &error);
        let lifetime = Lifetime::For(UNDER_WAY);
        if !tenant
            .key_store
            .put_new(&key, &entry(None)?, lifetime)
            .await
            .map_err(failed)?
        {
            return self::before(tenant, &key, &digest).await;
        }
        match call().await {
            Ok(answer) => {
                let text = serde_json::to_string(&answer);
                let text = text.map_err(|_| ApiProblem::FleetUnavailable)?;
                let kept = entry(Some(text.clone()))?;
                // The call succeeded, so its answer goes out even if it cannot be stored.
                drop(
                    tenant
                        .key_store
                        .put(&key, &kept, Lifetime::For(KEPT), 0)
                        .await,
                );
                Ok(as_json(text))
            }
            Err(problem) => {
                // The call had no effect, so the key is free for another attempt.
                drop(tenant.key_store.remove(&key).await);
                Err(problem)
            }
        }
    }
}

/// Returns the stored answer of the key.
async fn before(tenant: &Tenant, key: &str, digest: &str) -> Result<Response, ApiProblem> {
    let read = KeyRead::text(key.to_owned(), redis_keys::IDEMPOTENCY_BYTES);
    let found = tenant.key_store.get_each([read]).await;
    let found = found.map_err(|error| unavailable(tenant, &error))?;
    let entry = match found.first() {
        Some(Ok(Some(bytes))) => serde_json::from_slice::<StoredAnswer>(bytes).ok(),
        Some(Err(_)) => {
            tenant.metrics.unreadable_values.increment(1);
            None
        }
        _ => None,
    };
    match entry {
        Some(StoredAnswer {
            digest: before,
            answer,
            ..
        }) if before == digest => answer.map(as_json).ok_or(ApiProblem::IdempotencyKeyInUse),
        // The key belongs to another call.
        Some(_) => Err(ApiProblem::IdempotencyKeyReused),
        // The first call has just failed and removed the entry, or the entry is not readable.
        None => Err(ApiProblem::IdempotencyKeyInUse),
    }
}

fn as_json(text: String) -> Response {
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (json, text).into_response()
}
