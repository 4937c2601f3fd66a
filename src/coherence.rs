//! What open sockets were let in by, held against what holds now: users that became inactive, vanished or changed their
//! password, and groups that they may no longer be in.
//!
//! Everybody is looked at once in `users.cache_ttl`; `invalidate` looks at one user at once.

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
use crate::users::{Permissions, UserRecord, Users};

/// Users asked for in one statement of a look at all.
const BATCH: usize = 500;
/// Statements of `authorize` at a time, so that handshakes keep most of the pool.
const QUESTIONS: usize = 2;
/// A part of `cache_ttl`: everybody has been looked at before it is over.
const EVERY: f64 = 0.8;

/// What is looked at, and how.
pub struct Coherence {
    /// Whose users.
    pub tenant: TenantId,
    /// The sockets.
    pub hub: Arc<Hub>,
    /// The users as they are now.
    pub users: Arc<Users>,
    /// Their rights as they are now.
    pub permissions: Arc<Permissions>,
    /// Where generations lie.
    pub keys: KeyStore,
    /// From path to route and parameters.
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
    /// The time from one look at all users to the next.
    pub fn interval(&self) -> Duration {
        self.cache_ttl
            .mul_f64(EVERY)
            .max(Duration::from_millis(100))
    }

    /// Makes every record of the user that was read before now worthless, for all replicas.
    ///
    /// # Errors
    /// [`StoreError`]: old records may then still be believed.
    pub async fn renew_generation(&self, user: &UserId) -> Result<(), StoreError> {
        let key = redis_keys::user_generation(&self.tenant, user);
        let lifetime = Lifetime::For(2 * self.stale_ttl);
        let generation = random_hex();
        self.keys
            .put(&key, generation.as_bytes(), lifetime, 0)
            .await
    }

    /// The user was invalidated: forgets what this process knows, and looks at the user's sockets; answers how many were
    /// closed.
    pub async fn invalidate(&self, user: &UserId) -> usize {
        self.users.forget(user);
        self.permissions.forget();
        // After the forgetting: a handshake that is marked asks again, and finds nothing old.
        self.hub.mark_stale(user);
        if self.hub.of_user(user).is_empty() {
            return 0;
        }
        let closed = self.look_at(std::slice::from_ref(user)).await;
        closed + self.ask_permissions(self.hub.of_user(user)).await
    }

    /// Looks at the users of all open sockets; answers how many sockets were closed.
    pub async fn look_at_all(&self) -> usize {
        let (began, users) = (UnixTime::now(), self.hub.users());
        let mut closed = 0;
        for batch in users.chunks(BATCH) {
            closed += self.look_at(batch).await;
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

    async fn look_at(&self, users: &[UserId]) -> usize {
        let found = self.users.revalidate(users).await;
        let mut closed = 0;
        for (user, found) in users.iter().zip(found) {
            // A database that does not answer closes nobody.
            let Ok(record) = found else { continue };
            for member in self.hub.of_user(user) {
                if let Some(reason) = self.objection(&member, record.as_deref())
                    && member.outbound().close(reason.frame(), CloseOrder::Now)
                {
                    closed += 1;
                }
            }
        }
        closed
    }

    /// Why the socket may not stay.
    fn objection(&self, member: &Member, record: Option<&UserRecord>) -> Option<CloseReason> {
        let Some(record) = record else {
            return Some(CloseReason::UserNotFound);
        };
        if self.check_active && !record.is_active {
            return Some(CloseReason::UserInactive);
        }
        // The token's claim was that of the record at the handshake.
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
