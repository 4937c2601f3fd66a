//! Revokes tokens: denies them durably, and closes the sockets that they have opened.
//!
//! A revocation is stored first and announced second, through [`crate::fleet`]. Every replica that hears it closes the
//! sockets that its indexes name. [`Revocations::recheck`] finds the sockets that an announcement missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::auth::denylist::{self, DenyVerdict, UnreadableNotice};
use crate::clock::{LATEST, UnixTime};
use crate::close_code::CloseReason;
use crate::config::{DenylistConfig, OnExpiry, TokenConfig};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::hub::{CloseOrder, Hub, Member, TokenOf, close_paced};
use crate::ids::{RevocationTarget, TenantId};
use crate::metrics;
use crate::stores::key_read::KeyValue;
use crate::stores::key_store::{KeyStore, Lifetime};
use crate::stores::redis_keys;

/// The answer about a key: an error if its shard did not give one.
type ShardAnswer = Result<KeyValue, StoreError>;

/// Time in seconds for which a denied `jti` is kept after its token expires, because clocks differ.
const MARGIN: f64 = 60.0;
/// Sockets per round of a recheck: some 1,000 keys, which take Redis a millisecond.
const BATCH: usize = 500;
/// Sockets closed per second after the denylist has been away for `max_unverified`.
const UNVERIFIED_PER_SECOND: f64 = 300.0;

/// The revocations of one tenant.
pub struct Revocations {
    tenant: TenantId,
    store: KeyStore,
    config: DenylistConfig,
    /// Sockets stay open after `exp`, so denials must be kept longer as well.
    keeps_expired: bool,
    leeway: f64,
    recheck_wanted: Notify,
    notice: Arc<UnreadableNotice>,
}

impl Revocations {
    /// Makes the revocations of `tenant`, kept in `store`. `notice` is that of the handshakes.
    pub fn new(
        tenant: &TenantId,
        store: KeyStore,
        notice: Arc<UnreadableNotice>,
        config: &DenylistConfig,
        token: &TokenConfig,
    ) -> Arc<Self> {
        Arc::new(Self {
            tenant: tenant.clone(),
            store,
            config: config.clone(),
            keeps_expired: token.on_expiry == OnExpiry::Keep,
            leeway: token.leeway.as_secs_f64(),
            recheck_wanted: Notify::new(),
            notice,
        })
    }

    /// The settings in `[denylist]`.
    pub fn config(&self) -> &DenylistConfig {
        &self.config
    }

    /// Denies the tokens until they expire on every replica. `exp` is the claim of a single token in Unix seconds, to which
    /// this adds the leeway; `None`: it is not known.
    ///
    /// After `Ok`, every handshake that asks the denylist refuses them. Each replica closes its open sockets when it hears
    /// the announcement.
    ///
    /// # Errors
    /// [`StoreError`] if the denylist does not confirm in time. The tokens are then NOT revoked: tell the caller.
    pub async fn deny(
        &self,
        target: &RevocationTarget,
        exp: Option<f64>,
    ) -> Result<(), StoreError> {
        let (now, replicas) = (UnixTime::now().0, self.config.replicas);
        let keep_until = (now + self.config.keep.as_secs_f64()).ceil() as u64;
        let raised = async |key: String, cut_off: f64| {
            self.store.raise(&key, cut_off, keep_until, replicas).await
        };
        match target {
            RevocationTarget::Token(jti) => {
                let until = match exp {
                    Some(exp) if !self.keeps_expired => {
                        // An expired token is denied for a while too: on another clock it may still be valid.
                        let end = (exp + self.leeway).max(now) + MARGIN;
                        // A token may say any time, and Redis refuses those that it cannot hold in milliseconds.
                        end.ceil().min(LATEST) as u64
                    }
                    _ => keep_until,
                };
                let key = redis_keys::deny_jti(&self.tenant, jti);
                let lifetime = Lifetime::Until(until);
                self.store.put(&key, b"1", lifetime, replicas).await
            }
            RevocationTarget::User(user, cut_off) => {
                raised(redis_keys::deny_user(&self.tenant, user), *cut_off).await
            }
            RevocationTarget::All(cut_off) => {
                raised(redis_keys::deny_all(&self.tenant), *cut_off).await
            }
        }
    }

    /// Requests a recheck soon, because announcements may have been missed.
    pub fn want_recheck(&self) {
        self.recheck_wanted.notify_one();
    }

    /// Waits for the next request of [`Revocations::want_recheck`].
    pub async fn recheck_wanted(&self) {
        self.recheck_wanted.notified().await;
    }

    /// Checks every open socket of `hub`, and every handshake that has already asked the denylist, in batches. Returns the
    /// number of sockets closed. An unreadable cut-off closes no socket: it is counted, and logged once until it is
    /// readable again.
    ///
    /// # Errors
    /// [`StoreError`] if the denylist does not answer, or one shard of a cluster. Sockets that were not checked stay open.
    pub async fn recheck(&self, hub: &Hub) -> Result<usize, StoreError> {
        let (mut closed, mut checked, mut unreadable) = (0, false, false);
        let mut unanswered = None;
        // Handshakes come first: one that completes meanwhile is then found among the members.
        for batch in hub.pending().chunks(BATCH) {
            let tokens = batch.iter().map(|pending| pending.token()).collect();
            let verdicts = self.ask(tokens, &mut unanswered).await?;
            checked = true;
            for (pending, (_, verdict)) in batch.iter().zip(verdicts) {
                unreadable |= verdict == Some(DenyVerdict::Unreadable);
                if verdict == Some(DenyVerdict::Revoked) {
                    closed += hub.evict_pending(pending, &CloseReason::TokenRevoked.frame());
                }
            }
        }
        // Anonymous sockets have no token that could be revoked.
        let mut members = hub.members();
        members.retain(|member| member.user().is_some());
        for batch in members.chunks(BATCH) {
            let tokens = batch.iter().filter_map(|member| member.token()).collect();
            let verdicts = self.ask(tokens, &mut unanswered).await?;
            checked = true;
            for (member, (token, verdict)) in batch.iter().zip(verdicts) {
                unreadable |= verdict == Some(DenyVerdict::Unreadable);
                let frame = CloseReason::TokenRevoked.frame();
                // A token that a refresh has replaced meanwhile says nothing about the socket.
                if verdict == Some(DenyVerdict::Revoked)
                    && Some(token) == member.token()
                    && member.outbound().close(frame, CloseOrder::Now)
                {
                    closed += 1;
                }
            }
        }
        if unreadable {
            metrics::dependency_error(Dependency::Denylist, ErrorKind::Protocol);
            self.notice.tell("found by a check of open connections");
        } else if checked && unanswered.is_none() {
            self.notice.over();
        }
        if closed > 0 {
            tracing::info!(tenant.id = %self.tenant, count = closed, "Closed connections whose revocation had not been heard");
        }
        unanswered.map_or(Ok(closed), Err)
    }

    /// Reads the verdicts over a batch of tokens in one round, and returns them with the tokens. A verdict is `None` if a shard
    /// did not answer about one of its keys and the others do not revoke the token; `unanswered` keeps the first such error. If no
    /// shard answered there are no verdicts: other batches may have keys elsewhere.
    async fn ask<'b>(
        &self,
        asked: Vec<TokenOf<'b>>,
        unanswered: &mut Option<StoreError>,
    ) -> Result<Vec<(TokenOf<'b>, Option<DenyVerdict>)>, StoreError> {
        // The tenant's cut-off is apart from those of the users, so that an empty one of these leaves it readable.
        let mut reads = vec![denylist::of_all(&self.tenant)];
        let of_token = |token: &TokenOf<'_>| denylist::of_token(&self.tenant, token.jti.as_ref());
        reads.extend(asked.iter().map(of_token));
        let of_user = |token: &TokenOf<'_>| denylist::of_user(&self.tenant, token.user);
        reads.extend(asked.iter().map(of_user));
        let answers = match self.store.get_apart(reads).await {
            Err(error) if self.store.redis().is_some_and(|redis| redis.is_cluster()) => {
                unanswered.get_or_insert(error);
                return Ok(Vec::new());
            }
            answers => answers?,
        };
        let Some((all, each)) = answers.split_first() else {
            return Ok(Vec::new());
        };
        let (tokens, users) = each.split_at(each.len() / 2);
        let verdict = |(token, (own, user)): (TokenOf<'b>, (_, _))| {
            let own = token.jti.is_some().then_some(own);
            let verdict = verdict_of_shards(token.issued_at, own, user, all);
            let verdict = verdict.map_err(|error| unanswered.get_or_insert(error));
            (token, verdict.ok())
        };
        let answers = tokens.iter().zip(users);
        Ok(asked.into_iter().zip(answers).map(verdict).collect())
    }

    /// Closes the sockets that were open for `denylist.max_unverified` while the denylist did not answer, at a limited
    /// rate. Without the setting it does nothing.
    pub async fn close_unverified(&self, hub: &Hub) {
        let Some(most) = self.config.max_unverified else {
            return;
        };
        if self.store.silent_for() <= most {
            return;
        }
        let mut members = hub.members();
        let unverified = |member: &Arc<Member>| {
            // An anonymous socket has nothing to verify.
            member.user().is_some()
                && Duration::from_secs(member.age()) > most
                && !member.outbound().is_closing()
        };
        members.retain(unverified);
        if members.is_empty() {
            return;
        }
        tracing::warn!(
            tenant.id = %self.tenant, count = members.len(),
            "Closing connections: the denylist has not answered for longer than denylist.max_unverified"
        );
        close_paced(members, UNVERIFIED_PER_SECOND, CloseReason::Unavailable).await;
    }

    /// Returns the time since the denylist last answered.
    pub fn silent_for(&self) -> Duration {
        self.store.silent_for()
    }
}

/// Decides over the answers of a store in which a shard may not have answered: what the others say may be enough.
fn verdict_of_shards(
    issued_at: Option<f64>,
    jti: Option<&ShardAnswer>,
    user: &ShardAnswer,
    all: &ShardAnswer,
) -> Result<DenyVerdict, StoreError> {
    let value = |answer: &'_ ShardAnswer| answer.as_ref().map_or(Ok(None), Clone::clone);
    let (of_token, of_user, of_all) = (jti.map(value), value(user), value(all));
    let verdict = denylist::verdict_of_answers(issued_at, of_token.as_ref(), &of_user, &of_all);
    let unread = [jti, Some(user), Some(all)].into_iter().flatten();
    match unread.filter_map(|answer| answer.as_ref().err()).next() {
        Some(error) if verdict != DenyVerdict::Revoked => {
            let text = error.source.to_string();
            Err(StoreError::new(error.dependency, error.kind, text))
        }
        _ => Ok(verdict),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_does_not_answer_hides_no_revocation_and_makes_none() {
        let away = || -> ShardAnswer {
            let (dependency, kind) = (Dependency::Redis, ErrorKind::Timeout);
            Err(StoreError::new(dependency, kind, "away".to_owned()))
        };
        let answer = |text: Option<&str>| -> ShardAnswer { Ok(Ok(text.map(|text| text.into()))) };
        let verdict = |jti: ShardAnswer, user: ShardAnswer, all: ShardAnswer| {
            let verdict = verdict_of_shards(Some(5.0), Some(&jti), &user, &all);
            verdict.map_err(|error| error.kind)
        };
        let clear = || answer(None);
        let revoked = Ok(DenyVerdict::Revoked);
        assert_eq!(verdict(answer(Some("1")), away(), away()), revoked);
        assert_eq!(verdict(away(), answer(Some("9")), clear()), revoked);
        assert_eq!(verdict(away(), clear(), answer(Some("9"))), revoked);
        assert_eq!(verdict(away(), clear(), clear()), Err(ErrorKind::Timeout));
        assert_eq!(
            verdict(clear(), away(), answer(Some("4"))),
            Err(ErrorKind::Timeout)
        );
        assert_eq!(verdict(clear(), clear(), clear()), Ok(DenyVerdict::Clear));
    }
    use crate::hub::{Budget, Pending, Profile};

    #[tokio::test]
    async fn a_recheck_finds_a_socket_by_the_token_that_it_is_about_to_get() {
        let tenant = "acme".parse().unwrap();
        let store = KeyStore::Memory(Arc::default());
        let (config, token) = (DenylistConfig::default(), TokenConfig::default());
        let notice = UnreadableNotice::new(&tenant);
        let revocations = Revocations::new(&tenant, store, notice, &config, &token);
        let hub = Arc::new(Hub::default());
        let member = Member::new(Profile {
            user: Some("7".into()),
            jti: Some("first".into()),
            issued_at: Some(5.0),
            ..Profile::default()
        });
        hub.admit(&member, None, &Budget::default()).unwrap();
        let next = Pending::new("7".into(), Some("second".into()), Some(6.0));
        let place = hub.expect(next.for_socket(Some(member.clone())));
        assert_eq!(revocations.recheck(&hub).await.unwrap(), 0);
        let target = RevocationTarget::Token("second".into());
        revocations.deny(&target, None).await.unwrap();
        assert_eq!(revocations.recheck(&hub).await.unwrap(), 1);
        let cause = member.outbound().closing_cause();
        assert_eq!(cause, Some(CloseReason::TokenRevoked));
        drop(place);
    }

    /// A handshake used to open its socket after the recheck, if it had asked the denylist before a revocation was stored
    /// and no announcement could be heard.
    #[tokio::test]
    async fn a_recheck_also_looks_at_handshakes_that_have_asked_the_denylist() {
        let tenant = "acme".parse().unwrap();
        let store = KeyStore::Memory(Arc::default());
        let (config, token) = (DenylistConfig::default(), TokenConfig::default());
        let revocations = Revocations::new(
            &tenant,
            store,
            UnreadableNotice::new(&tenant),
            &config,
            &token,
        );
        let hub = Arc::new(Hub::default());
        let pending = |jti: &str| hub.expect(Pending::new("7".into(), Some(jti.into()), Some(5.0)));
        let (revoked, other) = (pending("revoked"), pending("other"));
        let target = RevocationTarget::Token("revoked".into());
        revocations.deny(&target, None).await.unwrap();
        assert_eq!(revocations.recheck(&hub).await.unwrap(), 0);
        for (place, jti, expected) in [(&revoked, "revoked", true), (&other, "other", false)] {
            let member = Member::new(Profile {
                user: Some("7".into()),
                jti: Some(jti.into()),
                issued_at: Some(5.0),
                ..Profile::default()
            });
            let standing = hub.admit(&member, Some(place.pending()), &Budget::default());
            assert_eq!(standing.unwrap().revoked, expected, "{jti}");
        }
        // Closes only a socket that has opened since.
        let frame = CloseReason::TokenRevoked.frame();
        assert_eq!(hub.evict_pending(revoked.pending(), &frame), 1);
    }
}
