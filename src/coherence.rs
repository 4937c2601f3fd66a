//! Rechecks the users of open sockets, and closes sockets whose user was deactivated or deleted, changed the password, or
//! lost the right to a group.
//!
//! Every user is rechecked once in `users.cache_ttl`. `invalidate` rechecks one user at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use crate::clock::UnixTime;
use crate::close_code::CloseReason;
use crate::error::StoreError;
use crate::hub::{CloseOrder, Hub, Member};
use crate::ids::{TenantId, UserId, random_hex};
use crate::routes::Routes;
use crate::stores::key_store::{KeyStore, Lifetime};
use crate::stores::redis_keys;
use crate::users::{Permissions, UserBook, UserRecord};

/// Users per database statement of a recheck.
const BATCH: usize = 500;
/// Concurrent `authorize` statements of a recheck. Handshakes keep the rest of the pool.
const QUESTIONS: usize = 2;
/// Interval of the recheck, as a part of `cache_ttl`, so that it ends before `cache_ttl` is over.
const EVERY: f64 = 0.8;

/// The recheck of one tenant's users.
pub struct Coherence {
    /// The tenant.
    pub tenant: TenantId,
    /// The open sockets.
    pub hub: Arc<Hub>,
    /// The current user records. Without any, only the rights are rechecked.
    pub users: UserBook,
    /// The current rights.
    pub permissions: Arc<Permissions>,
    /// The store of the users' generations.
    pub key_store: KeyStore,
    /// Finds route and parameters of a path.
    pub routes: Arc<Routes>,
    /// `token.check_user_is_active`
    pub check_active: bool,
    /// `token.check_revoke_token`
    pub check_password: bool,
    /// `users.cache_ttl`
    pub cache_ttl: Duration,
    /// `users.stale_ttl`
    pub stale_ttl: Duration,
}

impl Coherence {
    /// Returns the interval of [`Coherence::look_at_all`].
    pub fn interval(&self) -> Duration {
        self.cache_ttl
            .mul_f64(EVERY)
            .max(Duration::from_millis(100))
    }

    /// Returns true if an invalidation can have an effect: there are records to read again, or rights to ask for.
    pub fn has_something_to_reread(&self) -> bool {
        self.users.stored().is_some() || self.permissions.are_asked()
    }

    /// Invalidates every cached record of the user on all replicas: cached records of an older generation do not count.
    ///
    /// # Errors
    /// [`StoreError`]. Old records may then still be used.
    pub async fn renew_generation(&self, user: &UserId) -> Result<(), StoreError> {
        if self.users.stored().is_none() {
            return Ok(());
        }
        let key = redis_keys::user_generation(&self.tenant, user);
        let lifetime = Lifetime::For(2 * self.stale_ttl);
        let generation = random_hex();
        self.key_store
            .put(&key, generation.as_bytes(), lifetime, 0)
            .await
    }

    /// Drops this process's cached records of a user, so that no handshake meets an old one. [`Coherence::look_again`]
    /// rechecks the user's sockets.
    pub fn forget(&self, user: &UserId) {
        if let Some(users) = self.users.stored() {
            users.forget(user);
        }
        self.permissions.forget();
        // In this order a marked handshake asks again and cannot meet an old record.
        self.hub.mark_stale(user);
    }

    /// Does the same as [`Coherence::forget`] for every user, because invalidations may have been missed.
    pub fn forget_all(&self) {
        if let Some(users) = self.users.stored() {
            users.forget_all();
        }
        self.permissions.forget();
        self.hub.mark_all_stale();
    }

    /// Rechecks the sockets of invalidated users. Returns the number of sockets closed, for each user.
    pub async fn look_again(&self, users: &[UserId]) -> Vec<usize> {
        let mut closed = vec![0; users.len()];
        let with_sockets = users.iter().enumerate();
        let with_sockets = with_sockets.filter(|(_, user)| !self.hub.of_user(user).is_empty());
        let (places, users): (Vec<usize>, Vec<UserId>) =
            with_sockets.map(|(at, user)| (at, user.clone())).unzip();
        for (places, users) in places.chunks(BATCH).zip(users.chunks(BATCH)) {
            let found = self.look_at(users).await;
            for ((place, user), found) in places.iter().zip(users).zip(found) {
                closed[*place] = found + self.ask_permissions(self.hub.of_user(user)).await;
            }
        }
        closed
    }

    /// Rechecks the users of all open sockets. Returns the number of sockets closed.
    pub async fn look_at_all(&self) -> usize {
        let began = UnixTime::now();
        let mut closed = 0;
        if self.users.stored().is_some() {
            for batch in self.hub.users().chunks(BATCH) {
                closed += self.look_at(batch).await.iter().sum::<usize>();
            }
        }
        if self.permissions.are_asked() {
            self.permissions.forget();
            closed += self.ask_permissions(self.hub.members()).await;
        }
        if closed > 0 {
            let took = (UnixTime::now().0 - began.0) * 1000.0;
            tracing::info!(
                tenant.id = %self.tenant, count = closed, duration_ms = took as u64,
                "Closed connections whose users or rights have changed"
            );
        }
        closed
    }

    /// Returns the number of sockets closed, for each user.
    async fn look_at(&self, users: &[UserId]) -> Vec<usize> {
        let mut closed = vec![0; users.len()];
        let Some(stored) = self.users.stored() else {
            return closed;
        };
        let found = stored.revalidate(users).await;
        for ((user, found), closed) in users.iter().zip(found).zip(&mut closed) {
            // An outage of the database closes no socket.
            let Ok(record) = found else { continue };
            for member in self.hub.of_user(user) {
                if let Some(reason) = self.objection(&member, record.as_deref())
                    && member.outbound().close(reason.frame(), CloseOrder::Now)
                {
                    *closed += 1;
                }
            }
        }
        closed
    }

    /// Returns the reason to close a socket.
    fn objection(&self, member: &Member, record: Option<&UserRecord>) -> Option<CloseReason> {
        let Some(record) = record else {
            return Some(CloseReason::UserNotFound);
        };
        if self.check_active && !record.is_active {
            return Some(CloseReason::UserInactive);
        }
        // At the handshake the token's claim matched the record, so the member keeps the digest of that record.
        (self.check_password && record.password_digest != member.password())
            .then_some(CloseReason::PasswordChanged)
    }

    async fn ask_permissions(&self, members: Vec<Arc<Member>>) -> usize {
        if !self.permissions.are_asked() {
            return 0;
        }
        let asked = members.into_iter().map(|member| async move {
            let (route, params) = self.routes.find(member.path())?;
            let verdict = self
                .permissions
                .may_join(route, member.user(), &params)
                .await;
            (verdict.is_ok_and(|may| !may)).then_some(member)
        });
        let mut asked = stream::iter(asked).buffer_unordered(QUESTIONS);
        let mut closed = 0;
        while let Some(lost) = asked.next().await {
            let frame = CloseReason::GroupForbidden.frame();
            if lost.is_some_and(|member| member.outbound().close(frame, CloseOrder::Now)) {
                closed += 1;
            }
        }
        closed
    }
}
