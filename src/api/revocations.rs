//! `POST /v1/tenants/{t}/revocations`: revokes tokens and closes the sockets that they have opened.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::body::JsonBody;
use super::problem::ApiProblem;
use super::user_ids::canonical;
use super::{ApiState, PathTenant};
use crate::auth::{RawToken, TokenError};
use crate::clock::UnixTime;
use crate::fleet::message::Op;
use crate::fleet::{Gathered, Replicas};
use crate::ids::RevocationTarget;
use crate::metrics;
use crate::tenant::Tenant;

/// The latest cut-off, in seconds from now. A later one would refuse all tokens until then; the usual cause is
/// milliseconds in place of seconds.
const LARGEST_LEAD: f64 = 86_400.0;

/// The last second of the year 9999, the largest `exp`. Redis refuses larger times, and no token is valid for so long.
const LATEST: f64 = 253_402_300_799.0;

/// The tokens to revoke.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Revocation {
    /// The id of one token; needs `exp`.
    jti: Option<String>,
    /// The expiry of that token, in Unix seconds.
    #[schema(minimum = 0, maximum = 253402300799i64)]
    exp: Option<f64>,
    /// One token, signed by a key of the tenant, expired or not.
    token: Option<String>,
    /// The user whose tokens issued at or before `issued_before` are revoked.
    user_id: Option<String>,
    /// The cut-off in Unix seconds, that second included; with `user_id` the default is now.
    issued_before: Option<f64>,
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
    JsonBody(body): JsonBody<Revocation>,
) -> Result<Json<Closed>, ApiProblem> {
    let started = Instant::now();
    let (target, expires_at) = body.target(&tenant).await?;
    let denied = tenant.revocations.deny(&target, expires_at).await;
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
    /// Returns the tokens to revoke, and the expiry of a single one.
    async fn target(self, tenant: &Tenant) -> Result<(RevocationTarget, Option<f64>), ApiProblem> {
        let now = UnixTime::now().0;
        match self {
            Self {
                jti: Some(jti),
                exp: Some(exp),
                token: None,
                user_id: None,
                issued_before: None,
            } => match (0.0..=LATEST).contains(&exp) {
                true => Ok((RevocationTarget::Token(jti.into()), Some(exp))),
                false => Err(ApiProblem::TimeNotValid),
            },
            Self {
                jti: None,
                exp: None,
                token: Some(token),
                user_id: None,
                issued_before: None,
            } => signed(tenant, token).await,
            Self {
                jti: None,
                exp: None,
                token: None,
                user_id,
                issued_before,
            } => {
                let cut_off = match (&user_id, issued_before) {
                    (_, Some(before)) => before,
                    (Some(_), None) => now.floor(),
                    (None, None) => return Err(ApiProblem::RevocationNotValid),
                };
                if !(0.0..=now + LARGEST_LEAD).contains(&cut_off) {
                    return Err(ApiProblem::TimeNotValid);
                }
                Ok(match user_id {
                    Some(user) => (
                        RevocationTarget::User(canonical(tenant, &user)?, cut_off),
                        None,
                    ),
                    None => (RevocationTarget::All(cut_off), None),
                })
            }
            _ => Err(ApiProblem::RevocationNotValid),
        }
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
            Ok((RevocationTarget::Token(jti), signed.expires_at))
        }
        Err(TokenError::Refused(_)) => Err(ApiProblem::TokenNotOfTenant),
        Err(TokenError::Unavailable(error)) => {
            tracing::warn!(tenant.id = %tenant.id, error = %error, "Cannot fetch the keys that verify a token to be revoked");
            Err(ApiProblem::NotRevoked)
        }
    }
}
