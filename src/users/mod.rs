//! Finds one tenant's users: in this process's cache, in Redis, in the database, in that order.
//!
//! Admission reads the two Redis keys of a user together with the denylist and hands them in. The database is asked for
//! users that are not fresh, in statements that concurrent lookups share. A store that does not answer is an error, and
//! never means "no such user".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use self::cache::{Cached, Policy, generation_text};
use self::local::LocalCache;
use self::lookup::{Lookups, UserSource, Wanted};
use self::unusable::UserLines;
use crate::clock::UnixTime;
use crate::config::{Faults, TokenConfig, UsersConfig};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::{TenantId, UserId};
use crate::metrics::{self, LookupResult, TenantMetrics};
use crate::stores::database::{ColumnProblem, Database, FetchedUsers, UserQuery, UserRow};
use crate::stores::key_read::KeyRead;
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::tasks;

pub use self::cache::CachedPair;
pub use self::claimed::{UserBook, user_of_claims};
pub use self::named_fields::{MissingField, WantedField, missing_fields, wanted_fields};
pub use self::permissions::{AUTHORIZE_EXAMPLE, PermissionError, Permissions};
pub use self::record::UserRecord;

mod cache;
mod claimed;
mod local;
mod lookup;
mod named_fields;
mod permissions;
mod record;
mod unusable;

/// The longest wait for the database where a stale record is at hand. A healthy database answers sooner, also in a storm of
/// connects; one that is locked would hold each handshake for the time of a statement.
const STALE_AFTER: Duration = Duration::from_millis(500);
/// The most writes to Redis under way, each with the answers of one statement. Further answers are not cached in Redis.
const MAX_WRITES: usize = 16;

/// The reason why a tenant's users cannot be read.
pub type UsersProblem = ColumnProblem;

/// The moment at which a lookup began, as an epoch of the local cache.
#[derive(Clone, Copy, Debug)]
pub struct Moment(u64);

/// One tenant's users.
pub struct Users {
    shared: Arc<UserStores>,
    lookups: Lookups,
    metrics: Arc<TenantMetrics>,
    /// True after a warning about an unreadable record, until a record is readable again.
    warned: AtomicBool,
}

/// The stores of a tenant's users, as lookups use them.
struct UserStores {
    policy: Policy,
    query: UserQuery,
    database: Arc<Database>,
    redis: Option<Arc<RedisStore>>,
    local: LocalCache,
    /// One permit for each of the [`MAX_WRITES`].
    writes: Arc<Semaphore>,
    /// True while writes to Redis fail, so that one warning is logged for each outage.
    write_failed: Arc<AtomicBool>,
    lines: UserLines,
}

impl Users {
    /// Prepares the lookups; no connection is opened yet.
    ///
    /// # Errors
    /// The faults of the configuration; `config check` reports the same.
    pub fn new(
        tenant: &TenantId,
        config: &UsersConfig,
        token: &TokenConfig,
        database: Arc<Database>,
        redis: Option<Arc<RedisStore>>,
        metrics: Arc<TenantMetrics>,
    ) -> Result<Arc<Self>, Faults> {
        let query = UserQuery::new(config, token)?;
        let (answer_for, keep_for) = match redis {
            Some(_) => (config.local_ttl, config.local_ttl),
            None => (config.cache_ttl, config.stale_ttl),
        };
        let shared = Arc::new(UserStores {
            policy: Policy {
                tenant: tenant.clone(),
                cache_ttl: config.cache_ttl,
                stale_ttl: config.stale_ttl,
                negative_ttl: config.negative_ttl,
                check_active: token.check_user_is_active,
                check_password: token.check_revoke_token,
            },
            query,
            database,
            redis,
            local: LocalCache::new(answer_for, config.negative_ttl, keep_for),
            writes: Arc::new(Semaphore::new(MAX_WRITES)),
            write_failed: Arc::default(),
            lines: UserLines::default(),
        });
        let source: Arc<dyn UserSource> = shared.clone();
        let max_statements = usize::try_from(config.pool.max).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            lookups: Lookups::new(source, max_statements, config.negative_ttl),
            shared,
            metrics,
            warned: AtomicBool::new(false),
        }))
    }

    /// Returns the answer of this process's cache: `None` if it has none, `Some(None)` for an absent user.
    pub fn local(&self, id: &UserId) -> Option<Option<Arc<UserRecord>>> {
        let user = self.shared.local.get(id)?;
        self.metrics.user_lookup(match user {
            Some(_) => LookupResult::Local,
            None => LookupResult::Negative,
        });
        Some(user)
    }

    /// Returns the reads of [`CachedPair`], for one round: `user:ID`, `usergen:ID`.
    pub fn redis_reads(&self, id: &UserId) -> [KeyRead; 2] {
        let tenant = &self.shared.policy.tenant;
        let record = KeyRead::text(redis_keys::user(tenant, id), cache::MAX_RECORD);
        [record, generation(tenant, id)]
    }

    /// Returns the moment at which a lookup begins. Take it before the first read of the lookup, so that an answer that
    /// was read before a [`Self::forget`] is not cached after it.
    pub fn moment(&self) -> Moment {
        Moment(self.shared.local.epoch())
    }

    /// Returns the user, or `None` for an absent one. `cached` holds the values of [`Self::redis_reads`], read since
    /// `moment`; it is `None` if there is no Redis, or if Redis did not answer.
    ///
    /// # Errors
    /// Fails if the database does not answer and no cached record is young enough.
    pub async fn look_up(
        &self,
        id: &UserId,
        cached: Option<CachedPair>,
        Moment(epoch): Moment,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        let stale = match cached.as_ref().map(|pair| self.read(id, pair)) {
            Some(Cached::Fresh(user)) => {
                let user = user.map(Arc::new);
                let pair = cached.as_ref();
                let generation = pair.and_then(|pair| pair.generation().ok().map(Arc::from));
                let wanted = Wanted {
                    id: id.clone(),
                    generation,
                    epoch,
                };
                self.shared.local.insert(&wanted, &user);
                self.metrics.user_lookup(match user {
                    Some(_) => LookupResult::Redis,
                    None => LookupResult::Negative,
                });
                return Ok(user);
            }
            Some(Cached::Stale(user)) => Some(Arc::new(user)),
            Some(Cached::Nothing) => None,
            None => self.stale_in_memory(id),
        };
        if stale.is_some() && self.shared.database.seems_down() {
            self.metrics.user_lookup(LookupResult::Stale);
            return Ok(stale);
        }
        let generation = cached.and_then(|pair| pair.generation().ok().map(Arc::from));
        self.ask(id, generation, epoch, stale).await
    }

    async fn ask(
        &self,
        id: &UserId,
        generation: Option<Arc<str>>,
        epoch: u64,
        stale: Option<Arc<UserRecord>>,
    ) -> Result<Option<Arc<UserRecord>>, StoreError> {
        let wanted = Wanted {
            id: id.clone(),
            generation,
            epoch,
        };
        let answer = self.lookups.look_up(wanted);
        let Some(stale) = stale else {
            let answer = answer.await;
            self.metrics.user_lookup(match &answer {
                Ok(_) => LookupResult::Database,
                Err(_) => LookupResult::Error,
            });
            return answer;
        };
        match timeout(STALE_AFTER, answer).await {
            Ok(Ok(user)) => {
                self.metrics.user_lookup(LookupResult::Database);
                return Ok(user);
            }
            Ok(Err(_)) => {}
            // The statement goes on, and its answer is cached for the next handshake.
            Err(_) => self.shared.database.is_late(STALE_AFTER),
        }
        self.metrics.user_lookup(LookupResult::Stale);
        Ok(Some(stale))
    }

    /// Returns the users as the database has them now, in the order of `ids`; for the checks of open sockets.
    ///
    /// No cache is asked. The answers replace the cached records.
    pub async fn revalidate(
        &self,
        ids: &[UserId],
    ) -> Vec<Result<Option<Arc<UserRecord>>, StoreError>> {
        let epoch = self.shared.local.epoch();
        let generations = self.generations(ids).await;
        let wanted = ids.iter().enumerate().map(|(index, id)| Wanted {
            id: id.clone(),
            generation: generations.get(index).cloned().flatten(),
            epoch,
        });
        futures_util::future::join_all(
            wanted.map(|wanted| self.lookups.look_up_in_database(wanted)),
        )
        .await
    }

    /// Returns the generation of each id; no elements if there is no Redis, or if it does not answer.
    async fn generations(&self, ids: &[UserId]) -> Vec<Option<Arc<str>>> {
        let Some(redis) = &self.shared.redis else {
            return Vec::new();
        };
        let tenant = &self.shared.policy.tenant;
        let reads: Vec<KeyRead> = ids.iter().map(|id| generation(tenant, id)).collect();
        let text = |generation| generation_text(&generation).ok().map(Arc::from);
        let found = redis.get_each(reads).await.unwrap_or_default();
        found.into_iter().map(text).collect()
    }

    /// Drops a user from this process's cache. A lookup that is under way does not bring the old record back.
    pub fn forget(&self, id: &UserId) {
        self.shared.local.forget(id);
        self.lookups.forget(id);
    }

    /// Drops every user from this process's cache.
    pub fn forget_all(&self) {
        self.shared.local.forget_all();
    }

    /// Frees the memory of cached users that are too old; to be called from time to time.
    pub fn upkeep(&self) {
        self.shared.local.upkeep();
    }

    /// Checks that the database answers and has the needed columns. Returns the fields of user records.
    ///
    /// # Errors
    /// A [`UsersProblem`] that names the fault in one sentence.
    pub async fn ready(&self) -> Result<Vec<String>, UsersProblem> {
        self.shared.database.check_columns(&self.shared.query).await
    }

    /// Parses a cached record. The first unreadable one is logged; it counts as no record.
    fn read(&self, id: &UserId, pair: &CachedPair) -> Cached {
        match self.shared.policy.read(id, pair, UnixTime::now()) {
            Ok(cached) => {
                if matches!(pair.record, Ok(Some(_))) {
                    self.warned.store(false, Ordering::Relaxed);
                }
                cached
            }
            Err(why) => {
                metrics::dependency_error(Dependency::Redis, ErrorKind::Protocol);
                self.metrics.unreadable_values.increment(1);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    warn!(tenant.id = %self.shared.policy.tenant, user.id = %id, "A cached user record is ignored: {why}");
                }
                Cached::Nothing
            }
        }
    }

    /// Returns a stale record of this process's cache, which stands in for Redis if there is none.
    fn stale_in_memory(&self, id: &UserId) -> Option<Arc<UserRecord>> {
        match self.shared.redis {
            Some(_) => None,
            None => self.shared.local.stale(id),
        }
    }
}

/// Returns the read of a user's generation.
fn generation(tenant: &TenantId, user: &UserId) -> KeyRead {
    let key = redis_keys::user_generation(tenant, user);
    KeyRead::text(key, redis_keys::GENERATION_BYTES)
}

#[async_trait]
impl UserSource for UserStores {
    async fn fetch(&self, ids: &[UserId]) -> Result<FetchedUsers, StoreError> {
        self.database.fetch_users(&self.query, ids).await
    }

    fn record(&self, row: UserRow) -> UserRecord {
        let check_active = self.policy.check_active;
        if row.is_active.is_none() && check_active && self.lines.take() {
            warn!(user.id = %row.id, "The database returns no boolean in is_active; the user counts as inactive");
        }
        UserRecord::from_row(row, check_active)
    }

    fn known(&self, wanted: &Wanted) -> Option<Option<Arc<UserRecord>>> {
        self.local.get_same(wanted)
    }

    /// Caches the answers here, and in Redis by a task, so that no handshake waits for it. A failed write costs one more
    /// query later.
    fn keep(&self, answers: Vec<(Wanted, Option<Arc<UserRecord>>)>) {
        for (wanted, user) in &answers {
            self.local.insert(wanted, user);
        }
        let Some(redis) = self.redis.clone() else {
            return;
        };
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            return;
        };
        let now = UnixTime::now();
        let records: Vec<_> = answers
            .iter()
            .filter_map(|(wanted, user)| {
                let (id, user) = (&wanted.id, user.as_deref());
                let record = self
                    .policy
                    .write(id, user, wanted.generation.as_ref()?, now);
                let key = redis_keys::user(&self.policy.tenant, id);
                Some((key, record, self.policy.keep_for(user)))
            })
            .collect();
        if records.is_empty() {
            return;
        }
        let (failed, tenant) = (Arc::clone(&self.write_failed), self.policy.tenant.clone());
        // At most MAX_WRITES of these tasks run, each within Redis' time limit. The records go in one round, since a
        // command in flight for each record would take more memory than the records during a storm of connects.
        tasks::brief(async move {
            let outcome = redis.set_each_ex(&records).await;
            drop(permit);
            match outcome {
                Err(error) if !failed.swap(true, Ordering::Relaxed) => {
                    warn!(tenant.id = %tenant, error.kind = error.kind.label(), error = %error.source, "User records cannot be cached in Redis");
                }
                Ok(()) if failed.swap(false, Ordering::Relaxed) => {
                    info!(tenant.id = %tenant, "User records are cached in Redis again");
                }
                _ => {}
            }
        });
    }
}
