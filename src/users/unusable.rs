//! Remembers the users whose rows cannot be used: there are two, their columns are too large, or the database cannot read
//! a value of them. Asking again at each handshake would not help, and would fill the log.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::Mutex;

use crate::error::StoreError;
use crate::ids::UserId;
use crate::rate::Bucket;

/// The most users that are remembered for one tenant, about 1 MB. Their ids may be long, so each stands there by its digest. A `users.query` that is wrong for everyone must not take
/// more.
const MOST: usize = 4096;

/// The lines of the log about single users. Clients choose how many there are, and each is read again and again; the lines of all
/// would drive those of other tenants out of the queue of the log.
#[derive(Default)]
pub(super) struct UserLines(Mutex<Bucket>);

impl UserLines {
    /// Lines in a second, and twice as many at once.
    const PER_SECOND: u32 = 10;

    /// Returns true if another line may be logged now.
    pub(super) fn take(&self) -> bool {
        self.0.lock().take(Instant::now(), Self::PER_SECOND)
    }
}

/// The unusable users of one tenant.
pub(super) struct UnusableUsers {
    users: Mutex<HashMap<u64, UnusableUser>>,
    /// Makes the digests of ids; its seed is random.
    digests: DefaultHashBuilder,
    /// The time after which the database is asked again.
    ask_again: Duration,
}

struct UnusableUser {
    why: Arc<StoreError>,
    asked_at: Instant,
}

impl UnusableUsers {
    /// Remembers no user yet; the database is asked about a user once in `ask_again`.
    pub(super) fn new(ask_again: Duration) -> Self {
        Self {
            users: Mutex::default(),
            digests: DefaultHashBuilder::default(),
            ask_again,
        }
    }

    /// Returns the reason, if the database was asked about the user lately.
    pub(super) fn why(&self, id: &UserId) -> Option<Arc<StoreError>> {
        let users = self.users.lock();
        let user = users.get(&self.digests.hash_one(id))?;
        (user.asked_at.elapsed() < self.ask_again).then(|| user.why.clone())
    }

    /// Remembers a user. Returns true if the operator is not told of the user yet.
    pub(super) fn add(&self, id: &UserId, why: &Arc<StoreError>) -> bool {
        let user = UnusableUser {
            why: why.clone(),
            asked_at: Instant::now(),
        };
        let digest = self.digests.hash_one(id);
        let mut users = self.users.lock();
        if users.len() < MOST || users.contains_key(&digest) {
            return users.insert(digest, user).is_none();
        }
        // Some other user makes room. The log has told of enough of them.
        if let Some(other) = users.keys().next().copied() {
            users.remove(&other);
        }
        users.insert(digest, user);
        false
    }

    /// Forgets a user whose row is good, or should be read again.
    pub(super) fn forget(&self, id: &UserId) {
        let mut users = self.users.lock();
        if users.remove(&self.digests.hash_one(id)).is_some() && users.is_empty() {
            users.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Dependency, ErrorKind};

    fn why() -> Arc<StoreError> {
        let why = StoreError::new(Dependency::Database, ErrorKind::Other, "two rows");
        Arc::new(why)
    }

    #[test]
    fn an_operator_is_told_once_until_the_user_is_good_again() {
        let users = UnusableUsers::new(Duration::from_secs(60));
        let id = UserId::from("7");
        assert!(users.why(&id).is_none());
        assert!(users.add(&id, &why()));
        assert!(!users.add(&id, &why()));
        assert!(users.why(&id).is_some());
        users.forget(&id);
        assert!(users.why(&id).is_none());
        assert!(users.add(&id, &why()));
        // Asked again at once, and not told again.
        let users = UnusableUsers::new(Duration::ZERO);
        assert!(users.add(&id, &why()));
        assert!(users.why(&id).is_none());
        assert!(!users.add(&id, &why()));
    }

    /// Before: a `users.query` that is wrong for everyone filled the queue of the log, and other tenants' lines were dropped.
    #[test]
    fn lines_about_single_users_are_few() {
        let lines = UserLines::default();
        let logged = (0..10_000).filter(|_| lines.take()).count();
        assert!((20..100).contains(&logged), "{logged}");
    }

    #[test]
    fn a_query_that_is_wrong_for_everyone_takes_no_more_than_its_place() {
        let users = UnusableUsers::new(Duration::from_secs(60));
        let told = (0..2 * MOST).filter(|id| users.add(&id.to_string().as_str().into(), &why()));
        assert_eq!(told.count(), MOST);
        assert_eq!(users.users.lock().len(), MOST);
    }
}
