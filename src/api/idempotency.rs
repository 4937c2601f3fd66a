//! `Idempotency-Key`: a call that is repeated with its key is carried out once and gets the same answer again.
//!
//! `lockgate:TENANT:idem:KEY` holds the digest of path and body, and later the answer, for a day. A call with a key runs to
//! its end even if its client goes away, and its key is held for as long.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::ApiState;
use super::at_work::CallPlace;
use super::problem::{ApiProblem, unavailable};
use crate::channel_layer::CallId;
use crate::error::StoreError;
use crate::stores::key_read::KeyRead;
use crate::stores::key_store::{LISTED_NAME_BYTES, Lifetime};
use crate::stores::redis_keys;
use crate::tasks;
use crate::tenant::Tenant;

/// The time for which an answer is kept.
const KEPT: Duration = Duration::from_secs(86_400);
/// The time for which the key of a call under way is held. If the replica dies, the key is free after it.
const UNDER_WAY: Duration = Duration::from_secs(30);
/// The interval at which the key of a call under way is held for another [`UNDER_WAY`]: a batch takes as long as Redis makes
/// it wait.
const RENEWED: Duration = Duration::from_secs(5);
/// The most characters of a key.
const MAX_KEY: usize = LISTED_NAME_BYTES;
/// The most answers that a tenant keeps; the oldest give way. Most are a few bytes long.
const MOST: u64 = 100_000;
/// Bytes from which an answer is long, and the most long ones: a batch of a thousand refusals has 35 KB.
const LONG: usize = 1024;
const MOST_LONG: u64 = 1000;

/// A call, with its key if it has one.
pub(super) struct Idempotent {
    key: Option<String>,
    /// Its place among those of its caller.
    place: Option<CallPlace>,
}

impl FromRequestParts<ApiState> for Idempotent {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiProblem> {
        let place = parts.extensions.get().cloned();
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else {
            let key = None;
            return Ok(Self { key, place });
        };
        let key = value.to_str().ok().filter(|key| {
            let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
            visible && (1..=MAX_KEY).contains(&key.len())
        });
        match (key, values.next()) {
            (Some(key), None) => Ok(Self {
                key: Some(key.to_owned()),
                place,
            }),
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
    /// tenant. The call gets an id by which it is known when it comes again.
    pub(super) async fn once<T, C>(
        self,
        tenant: &Arc<Tenant>,
        resource: &str,
        body: &[u8],
        call: impl FnOnce(Option<CallId>) -> C,
    ) -> Result<Response, ApiProblem>
    where
        T: Serialize + Send + 'static,
        C: Future<Output = Result<T, ApiProblem>> + Send + 'static,
    {
        let Some(key) = self.key else {
            return Ok(axum::Json(call(None).await?).into_response());
        };
        let digest = Sha256::new().chain_update(resource).chain_update([0]);
        let digest = format!("{:x}", digest.chain_update(body).finalize());
        // A key whose call failed may be used for another call.
        let call = call(Some(CallId::of(&format!("{key} {digest}"))));
        let held = HeldKey {
            tenant: tenant.clone(),
            key: redis_keys::idempotency(&tenant.id, &key),
            name: key,
            digest,
        };
        if !held
            .take()
            .await
            .map_err(|error| unavailable(tenant, &error))?
        {
            return held.earlier_answer().await;
        }
        // A task of its own, which ends with the call: a client that goes away must not leave half of a batch published.
        let (tell, told) = oneshot::channel();
        let place = self.place;
        tasks::brief(async move {
            let _place = place;
            // Fails if the client has gone away.
            drop(tell.send(held.carry_out(call).await));
        });
        told.await.unwrap_or(Err(ApiProblem::FleetUnavailable))
    }
}

/// A key that this call may hold.
struct HeldKey {
    tenant: Arc<Tenant>,
    key: String,
    /// The key of the call.
    name: String,
    digest: String,
}

impl HeldKey {
    /// Takes the key; returns false if another call has it.
    async fn take(&self) -> Result<bool, StoreError> {
        let (store, lifetime) = (&self.tenant.key_store, Lifetime::For(UNDER_WAY));
        store.put_new(&self.key, &self.entry(None), lifetime).await
    }

    fn entry(&self, answer: Option<String>) -> Vec<u8> {
        let (v, digest) = (1, self.digest.clone());
        let entry = StoredAnswer { v, digest, answer };
        serde_json::to_vec(&entry).expect("a number and texts are JSON")
    }

    /// Runs the call and keeps its answer.
    async fn carry_out<T: Serialize>(
        self,
        call: impl Future<Output = Result<T, ApiProblem>>,
    ) -> Result<Response, ApiProblem> {
        let outcome = tokio::select! {
            outcome = call => outcome,
            never = self.hold() => never,
        };
        let text = match outcome {
            Ok(answer) => serde_json::to_string(&answer).map_err(|_| ApiProblem::FleetUnavailable),
            Err(problem) => Err(problem),
        };
        let store = &self.tenant.key_store;
        match text {
            Ok(text) => {
                let (kept, lifetime) = (self.entry(Some(text.clone())), Lifetime::For(KEPT));
                // The call succeeded, so its answer goes out even if it cannot be stored.
                drop(store.put(&self.key, &kept, lifetime, 0).await);
                drop(self.make_room(kept.len()).await);
                Ok(as_json(text))
            }
            Err(problem) => {
                // The key is free for another attempt. Where the call had an effect and its answer was lost, a history knows its id.
                drop(store.remove(&self.key).await);
                Err(problem)
            }
        }
    }

    /// Holds the key until the future is dropped.
    async fn hold<T>(&self) -> T {
        loop {
            tokio::time::sleep(RENEWED).await;
            let (entry, lifetime) = (self.entry(None), Lifetime::For(UNDER_WAY));
            // A failed renewal is repeated, and five fit into the time for which the key is held.
            drop(
                self.tenant
                    .key_store
                    .put(&self.key, &entry, lifetime, 0)
                    .await,
            );
        }
    }

    /// Notes the new answer of `bytes` bytes, and removes the oldest ones beyond the bound.
    async fn make_room(&self, bytes: usize) -> Result<(), StoreError> {
        let (list, most) = match bytes > LONG {
            false => (redis_keys::answers(&self.tenant.id), MOST),
            true => (redis_keys::long_answers(&self.tenant.id), MOST_LONG),
        };
        let store = &self.tenant.key_store;
        let prefix = redis_keys::idempotency(&self.tenant.id, "");
        store
            .keep_newest(&list, (&prefix, &self.name), most, KEPT)
            .await
    }

    /// Returns the answer of the earlier call with this key.
    async fn earlier_answer(&self) -> Result<Response, ApiProblem> {
        let read = KeyRead::text(self.key.clone(), redis_keys::IDEMPOTENCY_BYTES);
        let found = self.tenant.key_store.get_each([read]).await;
        let found = found.map_err(|error| unavailable(&self.tenant, &error))?;
        let entry = match found.first() {
            Some(Ok(Some(bytes))) => serde_json::from_slice::<StoredAnswer>(bytes).ok(),
            Some(Err(_)) => {
                self.tenant.metrics.unreadable_values.increment(1);
                None
            }
            _ => None,
        };
        match entry {
            Some(StoredAnswer { digest, answer, .. }) if digest == self.digest => {
                answer.map(as_json).ok_or(ApiProblem::IdempotencyKeyInUse)
            }
            // The key belongs to another call.
            Some(_) => Err(ApiProblem::IdempotencyKeyReused),
            // The first call has just failed and removed the entry, or the entry is not readable.
            None => Err(ApiProblem::IdempotencyKeyInUse),
        }
    }
}

fn as_json(text: String) -> Response {
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (json, text).into_response()
}
