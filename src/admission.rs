//! Authenticates tokens: the order of the checks from the token to its user.
//!
//! One Redis round reads everything that Redis knows about a token: the denylist keys of the token, its user and its
//! tenant, and the cached user record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::http::HeaderMap;

use crate::auth::denylist::{self, DenyVerdict, UnreadableNotice};
use crate::auth::query_token::{TokenPresence, find_token};
use crate::auth::{Asked, Later, RawToken, Report, TokenError, TokenVerifier, VerifiedToken};
use crate::clock::UnixTime;
use crate::config::{OnOutage, TokenConfig};
use crate::error::{Check, Dependency, ErrorKind, Refusal, StoreError};
use crate::hub::{Hub, Member, Pending, PendingPlace};
use crate::ids::TenantId;
use crate::metrics::{self, AuthStep, TenantMetrics};
use crate::stores::key_read::{KeyRead, KeyValue};
use crate::stores::key_store::KeyStore;
use crate::stores::redis::RedisStore;
use crate::users::{CachedPair, UserBook, UserRecord, Users, user_of_claims};

/// A verified token and its user.
#[derive(Clone)]
pub struct Identity {
    /// The user record.
    pub user: Arc<UserRecord>,
    /// The token's verified content.
    pub token: Arc<VerifiedToken>,
    /// The token's entry in the indexes of the hub, if it is to open a socket or to become the token of one.
    pub(crate) pending: Option<Arc<PendingPlace>>,
}

/// The denylist of a tenant, and the rule for the time while it does not answer.
pub struct DenylistSource {
    /// The store of its keys; in memory if this process has no Redis.
    pub store: KeyStore,
    /// True if the same Redis holds the user records; one round then reads both.
    pub shares_users_redis: bool,
    /// The setting `denylist.on_outage`.
    pub on_outage: OnOutage,
    /// Tells an operator of an unreadable cut-off.
    pub notice: Arc<UnreadableNotice>,
    /// True if the tenant's cut-off was there when the keys of a token were last read.
    pub has_cut_off: AtomicBool,
}

/// Authenticates the tokens of one tenant.
pub struct Authenticator {
    /// The tenant.
    pub tenant: TenantId,
    /// The table `token`: the place of tokens in a request, and the checks that are switched on.
    pub config: Arc<TokenConfig>,
    /// Checks signatures and claims.
    pub verifier: TokenVerifier,
    /// The revoked tokens.
    pub denylist: DenylistSource,
    /// The tenant's Redis, which caches user records.
    pub redis: Option<Arc<RedisStore>>,
    /// The tenant's users.
    pub users: UserBook,
    /// Records the duration of each step.
    pub metrics: Arc<TenantMetrics>,
    /// The hub. A token is entered there before the denylist is read, so that no revocation falls between. `None` if
    /// tokens do not open sockets.
    pub hub: Option<Arc<Hub>>,
}

/// The answers of one Redis round.
struct RedisAnswers {
    verdict: DenyVerdict,
    cached: Option<CachedPair>,
}

impl Authenticator {
    /// Returns the Redis servers that it asks: that of the users, then that of the denylist if it is another.
    pub fn redis_servers(&self) -> Vec<&Arc<RedisStore>> {
        let own = self.denylist.store.redis();
        let own = own.filter(|_| !self.denylist.shares_users_redis);
        self.redis.iter().chain(own).collect()
    }

    /// Finds the token of a request and authenticates it.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`]; also if the request has no token, or more than one.
    pub async fn identify(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Identity, Refusal> {
        let token = self.verify(query, headers).await?;
        self.look_up(token, None).await
    }

    /// Finds the token of a request and verifies it. Asks no store, but for a key set that has to be fetched.
    ///
    /// # Errors
    /// As [`Authenticator::identify`].
    pub async fn verify(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<VerifiedToken, Refusal> {
        let token = self.verify_if_any(query, headers).await?;
        token.ok_or(Refusal::TokenMissing)
    }

    /// Verifies the token of a request for which it is optional; `None` if there is none. A token that is not valid is
    /// refused: its client takes itself for a user, and would else get less than it expects without a word.
    ///
    /// # Errors
    /// As [`Authenticator::verify`], but for a token that is missing.
    pub async fn verify_if_any(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Option<VerifiedToken>, Refusal> {
        match find_token(query, headers, &self.config) {
            TokenPresence::Missing => Ok(None),
            TokenPresence::NotValid => Err(Refusal::TokenNotValid(Check::Format)),
            found if found.lacks_origin(headers) => Err(Refusal::OriginNotAllowed),
            TokenPresence::Found { token, .. } => self.verify_raw(&token).await.map(Some),
        }
    }

    /// Verifies a token, checks the denylist and finds its user.
    ///
    /// # Errors
    /// The first refusal; [`Refusal::Unavailable`] if a needed dependency does not answer.
    pub async fn authenticate(&self, raw: &RawToken) -> Result<Identity, Refusal> {
        let token = self.verify_raw(raw).await?;
        self.look_up(token, None).await
    }

    /// Verifies a token: its signature and its claims.
    ///
    /// # Errors
    /// The check that failed; [`Refusal::Unavailable`] if a key set that is needed cannot be fetched.
    pub async fn verify_raw(&self, raw: &RawToken) -> Result<VerifiedToken, Refusal> {
        let started = Instant::now();
        let token = match self.verifier.verify(raw, UnixTime::now()).await {
            Ok(token) => token,
            Err(TokenError::Refused(refusal)) => return Err(refusal),
            Err(TokenError::Unavailable(error)) => return Err(unavailable(&self.tenant, &error)),
        };
        self.lap(AuthStep::Token, started);
        Ok(token)
    }

    /// Checks the denylist for a verified token and finds its user. `socket` is the open socket that is to get the token;
    /// `None` for a handshake.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub async fn look_up(
        &self,
        token: VerifiedToken,
        socket: Option<&Arc<Member>>,
    ) -> Result<Identity, Refusal> {
        let pending = self.hub.as_ref().map(|hub| {
            let (user, jti) = (token.user_id.clone(), token.jti.clone());
            let pending = Pending::new(user, jti, token.issued_at);
            Arc::new(hub.expect(pending.for_socket(socket.cloned())))
        });
        let user = match &self.users {
            UserBook::Stored(users) => self.stored_user(users, &token).await?,
            UserBook::Claimed(id_type) => {
                let started = Instant::now();
                let round = self.ask_redis(&token, None).await;
                self.lap(AuthStep::Denylist, started);
                self.obey(round.verdict)?;
                Arc::new(user_of_claims(&token.user_id, *id_type, &token.claims))
            }
        };
        Ok(Identity {
            user,
            token: Arc::new(token),
            pending,
        })
    }

    /// Checks the denylist, finds the token's user in this process, in Redis or in the database, and checks it.
    async fn stored_user(
        &self,
        users: &Users,
        token: &VerifiedToken,
    ) -> Result<Arc<UserRecord>, Refusal> {
        let started = Instant::now();
        let moment = users.moment();
        let local = users.local(&token.user_id);
        let reads = local.is_none().then(|| users.redis_reads(&token.user_id));
        let round = self.ask_redis(token, reads).await;
        let started = self.lap(AuthStep::Denylist, started);
        self.obey(round.verdict)?;
        let user = match local {
            Some(known) => known,
            None => {
                let found = users.look_up(&token.user_id, round.cached, moment).await;
                found.map_err(|error| unavailable(&self.tenant, &error))?
            }
        };
        self.lap(AuthStep::User, started);
        self.check_user(token, user)
    }

    /// Refuses a token as the denylist's verdict says.
    fn obey(&self, verdict: DenyVerdict) -> Result<(), Refusal> {
        match (verdict, self.denylist.on_outage) {
            (DenyVerdict::Clear, _) | (DenyVerdict::Unreadable, OnOutage::Allow) => Ok(()),
            (DenyVerdict::Revoked, _) => Err(Refusal::TokenRevoked),
            (DenyVerdict::Unreadable, OnOutage::Refuse) => Err(Refusal::Unavailable),
        }
    }

    /// Looks the token's user up again, for a handshake during which the user was invalidated.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub async fn user_again(&self, token: &VerifiedToken) -> Result<Arc<UserRecord>, Refusal> {
        let users = match &self.users {
            UserBook::Stored(users) => users,
            UserBook::Claimed(id_type) => {
                let user = user_of_claims(&token.user_id, *id_type, &token.claims);
                return Ok(Arc::new(user));
            }
        };
        let moment = users.moment();
        let reads = users.redis_reads(&token.user_id);
        let cached = self.ask_for_user(Some(reads)).await;
        let found = users.look_up(&token.user_id, cached, moment).await;
        let user = found.map_err(|error| unavailable(&self.tenant, &error))?;
        self.check_user(token, user)
    }

    /// Reports the result of each check that [`Authenticator::authenticate`] would make at `now`.
    ///
    /// With `offline`, neither Redis nor the database is asked.
    pub async fn explain(&self, raw: &RawToken, now: UnixTime, offline: bool) -> Report {
        let explained = self.verifier.explain(raw, now).await;
        let later = match &explained.outcome {
            Ok(token) if !offline => self.later_checks(token).await,
            _ if offline => Later::OFFLINE,
            _ => Later::NOT_REACHED,
        };
        Report::assemble(&explained, later)
    }

    /// Makes the checks of a verified token that ask stores.
    async fn later_checks(&self, token: &VerifiedToken) -> Later {
        let users = self.users.stored();
        let moment = users.map(|users| users.moment());
        let reads = users.map(|users| users.redis_reads(&token.user_id));
        let round = self.ask_redis(token, reads).await;
        let denylist = match (&self.denylist.store, round.verdict) {
            (KeyStore::Memory(_), _) => Asked::NotAsked,
            (_, DenyVerdict::Clear) => Asked::Pass,
            (_, DenyVerdict::Revoked) => Asked::Fail,
            (_, DenyVerdict::Unreadable) => Asked::Unavailable,
        };
        let (Some(users), Some(moment)) = (users, moment) else {
            return Later {
                denylist,
                ..Later::CLAIMED
            };
        };
        let found = users.look_up(&token.user_id, round.cached, moment).await;
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

    /// Checks that the user exists, is active, and has the password that the token was made with.
    ///
    /// # Errors
    /// The refusal of the first check that fails.
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

    /// Reads the denylist and, by `user_reads`, the cached user: in one round if one Redis holds both, else in two parallel rounds.
    /// A cluster counts as two: the user's shard may be down while the denylist answers.
    ///
    /// Most tokens have no key in the denylist, so the round asks only whether one is there, and a second round reads the
    /// keys of the others. While the tenant has a cut-off, the first round reads the keys at once.
    async fn ask_redis(
        &self,
        token: &VerifiedToken,
        user_reads: Option<[KeyRead; 2]>,
    ) -> RedisAnswers {
        let wants_user = user_reads.is_some();
        let mut reads = match self.denylist.has_cut_off.load(Ordering::Relaxed) {
            true => Vec::from(self.denial_reads(token)),
            false => {
                let (jti, user) = (token.jti.as_ref(), &token.user_id);
                let mut reads = Vec::with_capacity(3);
                reads.push(denylist::any_read(&self.tenant, jti, user));
                reads
            }
        };
        let denials = reads.len();
        let store = &self.denylist.store;
        let is_cluster = store.redis().is_some_and(|redis| redis.is_cluster());
        let (denied, cached) = match self.denylist.shares_users_redis && !is_cluster {
            true => {
                reads.extend(user_reads.into_iter().flatten());
                let mut denied = store.get_each(reads).await;
                let cached = denied
                    .as_mut()
                    .ok()
                    .map(|values| cached_pair(values.split_off(denials.min(values.len()))));
                (denied, cached.filter(|_| wants_user))
            }
            // The rarer reads are boxed, so that a handshake is not as large as all of them.
            false => {
                let denied = Box::pin(store.get_each(reads));
                tokio::join!(denied, Box::pin(self.ask_for_user(user_reads)))
            }
        };
        let denied = match denied.as_deref() {
            Ok([Ok(None)]) => {
                return RedisAnswers {
                    verdict: DenyVerdict::Clear,
                    cached,
                };
            }
            Ok([_]) => Box::pin(store.get_each(self.denial_reads(token))).await,
            _ => denied,
        };
        RedisAnswers {
            verdict: self.verdict(token, denied.as_deref().ok()),
            cached,
        }
    }

    fn denial_reads(&self, token: &VerifiedToken) -> [KeyRead; 3] {
        denylist::reads(&self.tenant, token.jti.as_ref(), &token.user_id)
    }

    /// Returns the denylist's verdict; `Unreadable` without an answer, or if a cut-off is unreadable.
    fn verdict(&self, token: &VerifiedToken, answers: Option<&[KeyValue]>) -> DenyVerdict {
        let Some([jti, user, all]) = answers else {
            return DenyVerdict::Unreadable;
        };
        let is_there = !matches!(all, Ok(None));
        self.denylist.has_cut_off.store(is_there, Ordering::Relaxed);
        let jti = token.jti.is_some().then_some(jti);
        let verdict = denylist::verdict_of_answers(token.issued_at, jti, user, all);
        if verdict == DenyVerdict::Unreadable {
            metrics::dependency_error(Dependency::Denylist, ErrorKind::Protocol);
            self.metrics.unreadable_values.increment(1);
            self.denylist.notice.tell(&denylist::fault(user, all));
        }
        verdict
    }

    /// Records the duration of a step and returns the start of the next.
    fn lap(&self, step: AuthStep, started: Instant) -> Instant {
        let now = Instant::now();
        self.metrics.auth_step_took(step, now - started);
        now
    }

    async fn ask_for_user(&self, reads: Option<[KeyRead; 2]>) -> Option<CachedPair> {
        let answers = self.redis.as_ref()?.get_each(reads?).await.ok()?;
        Some(cached_pair(answers))
    }
}

/// Returns the values of the user's two keys. An unreadable one is left to [`Users`].
fn cached_pair(answers: Vec<KeyValue>) -> CachedPair {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Ok(None));
    CachedPair {
        record: next(),
        generation: next(),
    }
}

/// Logs a dependency that does not answer and returns its refusal, which is never "denied" or "unknown user".
fn unavailable(tenant: &TenantId, error: &StoreError) -> Refusal {
    tracing::debug!(tenant.id = %tenant, error = %error, "A handshake was refused because a dependency does not answer");
    Refusal::Unavailable
}
