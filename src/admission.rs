//! Who may come in: the order of refusals from the token to the groups.
//!
//! One Redis round asks for everything that Redis knows of a token: whether it, its user or its tenant is denied,
//! and the cached user record.

use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;

use crate::auth::denylist::{self, DenyVerdict};
use crate::auth::query_token::{TokenPresence, find_token};
use crate::auth::{Asked, Later, RawToken, Report, TokenError, TokenVerifier, VerifiedToken};
use crate::clock::UnixTime;
use crate::config::{OnOutage, TokenConfig};
use crate::error::{Check, Dependency, ErrorKind, Refusal, StoreError};
use crate::hub::{Hub, Pending, PendingPlace};
use crate::ids::TenantId;
use crate::metrics::{self, AuthStep, TenantMetrics};
use crate::stores::key_store::KeyStore;
use crate::stores::redis::{KeyValue, RedisStore};
use crate::users::{CachedPair, UserRecord, Users};

/// A token's verified content and its user.
#[derive(Clone)]
pub struct Identity {
    /// The user record.
    pub user: Arc<UserRecord>,
    /// What the token says.
    pub token: Arc<VerifiedToken>,
    /// The handshake's place in the indexes of its hub, where the token is a socket's.
    pub(crate) pending: Option<Arc<PendingPlace>>,
}

/// Where the denylist is, and what holds while it cannot be asked.
pub struct DenylistSource {
    /// Its keys; in memory where this process has no Redis.
    pub store: KeyStore,
    /// Whether it is the Redis that also holds the user records: then one round asks for both.
    pub shares_users_redis: bool,
    /// `denylist.on_outage`.
    pub on_outage: OnOutage,
}

/// Authenticates the tokens of one tenant.
pub struct Authenticator {
    /// Whose tokens these are.
    pub tenant: TenantId,
    /// Where tokens stand in a request, and which checks are switched on.
    pub config: Arc<TokenConfig>,
    /// Keys and claims.
    pub verifier: TokenVerifier,
    /// Revoked tokens.
    pub denylist: DenylistSource,
    /// The tenant's Redis, where user records are cached.
    pub redis: Option<Arc<RedisStore>>,
    /// The tenant's users.
    pub users: Arc<Users>,
    /// Where its steps are timed.
    pub metrics: Arc<TenantMetrics>,
    /// Where handshakes are entered before they are asked about, so that no revocation falls between; `None` where
    /// tokens do not open sockets.
    pub hub: Option<Arc<Hub>>,
}

/// What the Redis round said.
struct RedisAnswers {
    verdict: DenyVerdict,
    cached: Option<CachedPair>,
}

impl Authenticator {
    /// The Redis servers that it asks: that of the users, then the denylist's where it is another.
    pub fn redis_servers(&self) -> Vec<&Arc<RedisStore>> {
        let own = self.denylist.store.redis();
        let own = own.filter(|_| !self.denylist.shares_users_redis);
        self.redis.iter().chain(own).collect()
    }

    /// From a request to its user: steps 7 to 10 of a socket's life.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`]; also where the request has no token, or more than one.
    pub async fn identify(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Identity, Refusal> {
        match find_token(query, headers, &self.config) {
            TokenPresence::Missing => Err(Refusal::TokenMissing),
            TokenPresence::NotValid => Err(Refusal::TokenNotValid(Check::Format)),
            TokenPresence::Found { token } => self.authenticate(&token).await,
        }
    }

    /// From a token to its user: steps 8 to 10 of a socket's life.
    ///
    /// # Errors
    /// The first refusal; [`Refusal::Unavailable`] if somebody who has to be asked does not answer.
    pub async fn authenticate(&self, raw: &RawToken) -> Result<Identity, Refusal> {
        let started = Instant::now();
        let token = match self.verifier.verify(raw, UnixTime::now()).await {
            Ok(token) => token,
            Err(TokenError::Refused(refusal)) => return Err(refusal),
            Err(TokenError::Unavailable(error)) => return Err(unavailable(&self.tenant, &error)),
        };
        let started = self.lap(AuthStep::Token, started);
        let pending = self.hub.as_ref().map(|hub| {
            let (user, jti) = (token.user_id.clone(), token.jti.clone());
            Arc::new(hub.expect(Pending::new(user, jti, token.issued_at)))
        });
        let moment = self.users.moment();
        let local = self.users.local(&token.user_id);
        let round = self.ask_redis(&token, local.is_none()).await;
        let started = self.lap(AuthStep::Denylist, started);
        match (round.verdict, self.denylist.on_outage) {
            (DenyVerdict::Clear, _) | (DenyVerdict::Unreadable, OnOutage::Allow) => {}
            (DenyVerdict::Revoked, _) => return Err(Refusal::TokenRevoked),
            (DenyVerdict::Unreadable, OnOutage::Refuse) => return Err(Refusal::Unavailable),
        }
        let user = match local {
            Some(known) => known,
            None => {
                let found = self
                    .users
                    .look_up(&token.user_id, round.cached, moment)
                    .await;
                found.map_err(|error| unavailable(&self.tenant, &error))?
            }
        };
        self.lap(AuthStep::User, started);
        let user = self.check_user(&token, user)?;
        Ok(Identity {
            user,
            token: Arc::new(token),
            pending,
        })
    }

    /// The token's user once more, for a handshake during which the user was invalidated.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub async fn user_again(&self, token: &VerifiedToken) -> Result<Arc<UserRecord>, Refusal> {
        let moment = self.users.moment();
        let keys = self.users.redis_keys(&token.user_id);
        let cached = self.ask_for_user(Some(keys)).await;
        let found = self.users.look_up(&token.user_id, cached, moment).await;
        let user = found.map_err(|error| unavailable(&self.tenant, &error))?;
        self.check_user(token, user)
    }

    /// What [`Authenticator::authenticate`] would do with the token at `now`, check by check.
    ///
    /// With `offline`, neither Redis nor database is asked.
    pub async fn explain(&self, raw: &RawToken, now: UnixTime, offline: bool) -> Report {
        let explained = self.verifier.explain(raw, now).await;
        let later = match &explained.outcome {
            Ok(token) if !offline => self.later_checks(token).await,
            _ if offline => Later::OFFLINE,
            _ => Later::NOT_REACHED,
        };
        Report::assemble(&explained, later)
    }

    async fn later_checks(&self, token: &VerifiedToken) -> Later {
        let moment = self.users.moment();
        let round = self.ask_redis(token, true).await;
        let denylist = match (&self.denylist.store, round.verdict) {
            (KeyStore::Memory(_), _) => Asked::NotAsked,
            (_, DenyVerdict::Clear) => Asked::Pass,
            (_, DenyVerdict::Revoked) => Asked::Fail,
            (_, DenyVerdict::Unreadable) => Asked::Unavailable,
        };
        let found = self
            .users
            .look_up(&token.user_id, round.cached, moment)
            .await;
        let Ok(user) = found else {
            return Later {
                denylist,
                user: Asked::Unavailable,
                is_active: Asked::Unavailable,
                password: Asked::Unavailable,
            };
        };
        let refusal = self.check_user(token, user).err();
        let asked = |failed| match refusal == Some(failed) {
            true => Asked::Fail,
            false => Asked::Pass,
        };
        let checked = |is_checked, asked| if is_checked { asked } else { Asked::NotChecked };
        Later {
            denylist,
            user: asked(Refusal::UserNotFound),
            is_active: checked(
                self.config.check_user_is_active,
                asked(Refusal::UserInactive),
            ),
            password: checked(
                self.config.check_revoke_token,
                asked(Refusal::PasswordChanged),
            ),
        }
    }

    /// Step 10: the user exists, is active, and still has the password that the token was made with.
    ///
    /// # Errors
    /// The refusal that says which of these fails.
    pub fn check_user(
        &self,
        token: &VerifiedToken,
        user: Option<Arc<UserRecord>>,
    ) -> Result<Arc<UserRecord>, Refusal> {
        let user = user.ok_or(Refusal::UserNotFound)?;
        if self.config.check_user_is_active && !user.is_active {
            return Err(Refusal::UserInactive);
        }
        if self.config.check_revoke_token
            && !token
                .revoke_digest
                .as_deref()
                .is_some_and(|claim| user.password_matches(claim))
        {
            return Err(Refusal::PasswordChanged);
        }
        Ok(user)
    }

    /// Asks for denylist and cached user: one round where one Redis holds both, else two in parallel.
    async fn ask_redis(&self, token: &VerifiedToken, wants_user: bool) -> RedisAnswers {
        let (jti, user, all) = denylist::keys(&self.tenant, token.jti.as_ref(), &token.user_id);
        // A token without jti has no key of its own: its place in the round is taken by a key that decides anyway.
        let mut keys = Vec::with_capacity(5);
        keys.extend([jti.unwrap_or_else(|| all.clone()), user, all]);
        let user_keys = wants_user.then(|| self.users.redis_keys(&token.user_id));
        let store = &self.denylist.store;
        if !self.denylist.shares_users_redis {
            let (denied, cached) = tokio::join!(store.get_each(keys), self.ask_for_user(user_keys));
            return RedisAnswers {
                verdict: verdict(token, denied.as_deref().ok()),
                cached,
            };
        }
        keys.extend(user_keys.into_iter().flatten());
        match store.get_each(keys).await {
            Ok(mut denied) => {
                let cached = denied.split_off(3.min(denied.len()));
                RedisAnswers {
                    verdict: verdict(token, Some(&denied)),
                    cached: wants_user.then(|| cached_pair(cached)),
                }
            }
            Err(_) => RedisAnswers {
                verdict: DenyVerdict::Unreadable,
                cached: None,
            },
        }
    }

    fn lap(&self, step: AuthStep, started: Instant) -> Instant {
        let now = Instant::now();
        self.metrics.auth_step_took(step, now - started);
        now
    }

    async fn ask_for_user(&self, keys: Option<[String; 2]>) -> Option<CachedPair> {
        let answers = self.redis.as_ref()?.get_each(keys?).await.ok()?;
        Some(cached_pair(answers))
    }
}

/// The denylist's verdict; without an answer, or with a key that holds no string, it is not known.
fn verdict(token: &VerifiedToken, answers: Option<&[KeyValue]>) -> DenyVerdict {
    let Some([jti, user, all]) = answers else {
        return DenyVerdict::Unreadable;
    };
    let jti = token.jti.is_some().then_some(jti);
    let verdict = denylist::verdict_of_answers(token.issued_at, jti, user, all);
    if verdict == DenyVerdict::Unreadable {
        metrics::dependency_error(Dependency::Denylist, ErrorKind::Protocol);
    }
    verdict
}

/// The user's two keys; what a key of the wrong type means, the users know.
fn cached_pair(answers: Vec<KeyValue>) -> CachedPair {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Ok(None));
    CachedPair {
        record: next(),
        generation: next(),
    }
}

/// The answer for a dependency that does not answer: never "denied", never "unknown".
fn unavailable(tenant: &TenantId, error: &StoreError) -> Refusal {
    tracing::debug!(tenant.id = %tenant, error = %error, "A handshake was refused because a dependency does not answer");
    Refusal::Unavailable
}
