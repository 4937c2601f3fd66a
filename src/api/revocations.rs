//! `POST /v1/tenants/{t}/revocations`: revokes tokens and closes the sockets that they have opened.

use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Deserializer, Serialize};

use super::body::JsonBody;
use super::call_line::RevokedPart;
use super::problem::ApiProblem;
use super::user_ids::written;
use super::{ApiState, PathTenant};
use crate::auth::{RawToken, TokenError};
use crate::clock::{LATEST, UnixTime};
use crate::fleet::message::Op;
use crate::fleet::{Gathered, Replicas};
use crate::ids::{RevocationTarget, WrittenUserId};
use crate::metrics;
use crate::tenant::Tenant;

/// The latest cut-off, in seconds from now. A later one would refuse all tokens until then; the usual cause is
/// milliseconds in place of seconds.
const LARGEST_LEAD: f64 = 86_400.0;

/// The tokens to revoke.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Revocation {
    /// The id of one token; needs `exp`.
    #[serde(default)]
    #[schema(value_type = String)]
    jti: Given<String>,
    /// The expiry of that token, in Unix seconds.
    #[serde(default)]
    // The maximum is [`LATEST`]; the macro takes a literal alone.
    #[schema(value_type = f64, minimum = 0, maximum = 253402300799i64)]
    exp: Given<f64>,
    /// One token, signed by a key of the tenant, expired or not.
    #[serde(default)]
    #[schema(value_type = String)]
    token: Given<String>,
    /// The user whose tokens issued at or before `issued_before` are revoked.
    #[serde(default)]
    #[schema(value_type = WrittenUserId, inline)]
    user_id: Given<WrittenUserId>,
    /// The cut-off in Unix seconds, that second included; with `user_id` the default is now.
    #[serde(default)]
    #[schema(value_type = f64)]
    issued_before: Given<f64>,
}

/// A member of a body, where null is not the same as no member. A caller who lost a value sends null: taken as absent, a
/// missing user would stand for the whole tenant.
#[derive(Debug, Default)]
enum Given<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Value))
    }
}

impl<T> Given<T> {
    /// Returns the value, or `null` as the error.
    fn or(self, null: ApiProblem) -> Result<Option<T>, ApiProblem> {
        match self {
            Self::Absent => Ok(None),
            Self::Null => Err(null),
            Self::Value(value) => Ok(Some(value)),
        }
    }
}

/// The result of a call that closes sockets.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Closed {
    /// The number of sockets closed on the replicas that confirmed.
    closed: u64,
    /// The replicas that confirmed.
    replicas: Replicas,
}

impl From<Gathered> for Closed {
    fn from(gathered: Gathered) -> Self {
        Self {
            closed: gathered.closed(),
            replicas: gathered.replicas,
        }
    }
}

/// Revokes tokens: stores the revocation first, and then announces it. Answers 503 if it cannot be stored.
#[utoipa::path(
    post,
    path = "/v1/tenants/{tenant}/revocations",
    params(("tenant" = String, Path, description = "The tenant's name")),
    request_body = Revocation,
    responses((status = 200, description = "Carried out", body = Closed)),
)]
pub(super) async fn revoke(
    State(state): State<ApiState>,
    PathTenant(tenant): PathTenant,
    Extension(revoked): Extension<RevokedPart>,
    JsonBody(body): JsonBody<Revocation>,
) -> Result<Json<Closed>, ApiProblem> {
    let started = Instant::now();
    let (target, exp) = body.target(&tenant).await?;
    revoked.is(&target);
    let denied = tenant.revocations.deny(&target, exp).await;
    denied.map_err(|error| {
        tracing::error!(tenant.id = %tenant.id, error = %error, "A revocation could not be stored");
        ApiProblem::NotRevoked
    })?;
    let asked = tenant.ask(&state.fleet, Op::Revoke(target.clone()));
    let gathered = asked.await.map_err(|error| {
        // It is stored, so the other replicas find it at their next recheck of the denylist.
        let closed = state.tenants.evict(&tenant.id, &target);
        tracing::warn!(
            tenant.id = %tenant.id, error = %error, count = closed,
            "A revocation is stored, but could not be announced"
        );
        ApiProblem::NotAnnounced
    })?;
    metrics::revocation_propagated(started.elapsed());
    Ok(Json(gathered.into()))
}

impl Revocation {
    /// Returns the tokens to revoke, and the `exp` of a single one.
    async fn target(self, tenant: &Tenant) -> Result<(RevocationTarget, Option<f64>), ApiProblem> {
        let user_id = self.user_id.or(ApiProblem::UserIdNull)?;
        let jti = self.jti.or(ApiProblem::JtiNull)?;
        let exp = self.exp.or(ApiProblem::RevocationNull)?;
        let token = self.token.or(ApiProblem::RevocationNull)?;
        let issued_before = self.issued_before.or(ApiProblem::RevocationNull)?;
        match (jti, exp, token, user_id, issued_before) {
            (Some(jti), Some(exp), None, None, None) => match (0.0..=LATEST).contains(&exp) {
                true => Ok((RevocationTarget::Token(jti.into()), Some(exp))),
                false => Err(ApiProblem::TimeNotValid),
            },
            (None, None, Some(token), None, None) => signed(tenant, token).await,
            (None, None, None, Some(user), before) => {
                let before = cut_off(before)?;
                let user = written(tenant, &user)?;
                Ok((RevocationTarget::User(user, before), None))
            }
            (None, None, None, None, Some(before)) => {
                Ok((RevocationTarget::All(cut_off(Some(before))?), None))
            }
            _ => Err(ApiProblem::RevocationNotValid),
        }
    }
}

/// Returns the cut-off in Unix seconds; without one it is now.
fn cut_off(before: Option<f64>) -> Result<f64, ApiProblem> {
    let now = UnixTime::now().0;
    let before = before.unwrap_or_else(|| now.floor());
    match (0.0..=now + LARGEST_LEAD).contains(&before) {
        true => Ok(before),
        false => Err(ApiProblem::TimeNotValid),
    }
}

async fn signed(
    tenant: &Tenant,
    token: String,
) -> Result<(RevocationTarget, Option<f64>), ApiProblem> {
    let verifier = &tenant.authenticator.verifier;
    match verifier.verify_signed_only(&RawToken::new(token)).await {
        Ok(signed) => {
            let jti = signed.jti.ok_or(ApiProblem::TokenWithoutId)?;
            Ok((RevocationTarget::Token(jti), signed.exp))
        }
        Err(TokenError::Refused(_)) => Err(ApiProblem::TokenNotOfTenant),
        Err(TokenError::Unavailable(error)) => {
            tracing::warn!(tenant.id = %tenant.id, error = %error, "Cannot fetch the keys that verify a token to be revoked");
            Err(ApiProblem::NotRevoked)
        }
    }
}
