//! One tenant's users: this process's cache, Redis, the database, in that order.
//!
//! Admission reads the two Redis keys of a user together with the denylist and hands them in; what is not fresh is
//! asked of the database, shared among all who wait. A store that does not answer never means "no such user".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use self::cache::{Cached, Policy};
use self::local::LocalCache;
use self::lookup::{Lookups, Source, Wanted};
use crate::clock::UnixTime;
use crate::config::{Faults, TokenConfig, UsersConfig};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::{TenantId, UserId};
use crate::metrics::{self, LookupResult, TenantMetrics};
use crate::stores::database::{ColumnProblem, Database, FetchedUsers, UserQuery, UserRow};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;

pub use self::cache::CachedPair;
pub use self::permissions::{PermissionError, Permissions};
pub use self::record::UserRecord;

mod cache;
mod local;
mod lookup;
mod permissions;
mod record;

/// Answers on their way to Redis, counted in statements; beyond, they are not kept.
const MAX_WRITES: usize = 16;

/// Why a tenant's users cannot be read.
pub type UsersProblem = ColumnProblem;

/// When a lookup began.
#[derive(Clone, Copy, Debug)]
pub struct Moment(u64);

/// One tenant's users.
pub struct Users {
    shared: Arc<Shared>,
    lookups: Lookups,
    metrics: Arc<TenantMetrics>,
    warned: AtomicBool,
}

/// What lookups need of it.
struct Shared {
    policy: Policy,
    query: UserQuery,
    database: Arc<Database>,
    redis: Option<Arc<RedisStore>>,
    local: LocalCache,
    writes: Arc<Semaphore>,
    write_failed: Arc<AtomicBool>,
}

impl Users {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with the configuration; `config check` says the same.
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
        let shared = Arc::new(Shared {
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
        });
        let source: Arc<dyn Source> = shared.clone();
        let max_statements = usize::try_from(config.pool.max).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            lookups: Lookups::new(source, max_statements),
            shared,
            metrics,
            warned: AtomicBool::new(false),
        }))
    }

    /// What this process knows without asking: `None` nothing, `Some(None)` that there is no such user.
    pub fn local(&self, id: &UserId) -> Option<Option<Arc<UserRecord>>> {
        let user = self.shared.local.get(id)?;
        self.metrics.user_lookup(match user {
            Some(_) => LookupResult::Local,
            None => LookupResult::Negative,
        });
        Some(user)
    }

    /// The keys of [`CachedPair`], to be read in one round: `user:ID`, `usergen:ID`.
    pub fn redis_keys(&self, id: &UserId) -> [String; 2] {
        let tenant = &self.shared.policy.tenant;
        [
            redis_keys::user(tenant, id),
            redis_keys::user_generation(tenant, id),
        ]
    }

    /// The moment at which a lookup begins; to be taken before anything is read for it, so that nothing that was read
    /// before a [`Self::forget`] is kept after it.
    pub fn moment(&self) -> Moment {
        Moment(self.shared.local.epoch())
    }

    /// The user, or `None` for an absent one. `cached` is what stands under [`Self::redis_keys`], read since `moment`;
    /// `None` if there is no Redis, or it did not answer.
    ///
    /// # Errors
    /// If the database cannot be asked and nothing that is cached is young enough.
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
                let generation = pair.and_then(|pair| pair.generation().map(Arc::from));
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
        let generation = cached.and_then(|pair| pair.generation().map(Arc::from));
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
        match self.lookups.look_up(wanted).await {
            Ok(user) => {
                self.metrics.user_lookup(LookupResult::Database);
                Ok(user)
            }
            Err(_) if stale.is_some() => {
                self.metrics.user_lookup(LookupResult::Stale);
                Ok(stale)
            }
            Err(error) => {
                self.metrics.user_lookup(LookupResult::Error);
                Err(error)
            }
        }
    }

    /// The users as the database has them now, whatever is cached; for the sockets that are open.
    ///
    /// In the order of `ids`. The answers replace what is cached.
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
        futures_util::future::join_all(wanted.map(|wanted| self.lookups.ask_anew(wanted))).await
    }

    /// The generation of each id; nothing where Redis cannot be asked for it.
    async fn generations(&self, ids: &[UserId]) -> Vec<Option<Arc<str>>> {
        let Some(redis) = &self.shared.redis else {
            return Vec::new();
        };
        let tenant = &self.shared.policy.tenant;
        let keys: Vec<_> = ids
            .iter()
            .map(|id| redis_keys::user_generation(tenant, id))
            .collect();
        let text = |generation| {
            let pair = CachedPair {
                record: Ok(None),
                generation,
            };
            pair.generation().map(Arc::from)
        };
        let found = redis.get_each(keys).await.unwrap_or_default();
        found.into_iter().map(text).collect()
    }

    /// Drops what this process knows of a user; no lookup that is under way can bring it back.
    pub fn forget(&self, id: &UserId) {
        self.shared.local.forget(id);
    }

    /// Gives back what the process remembers of users longer than it should; call it every now and then.
    pub fn upkeep(&self) {
        self.shared.local.upkeep();
    }

    /// Whether the database answers and has the columns that are needed.
    ///
    /// # Errors
    /// [`UsersProblem`] says in one sentence what is wrong.
    pub async fn ready(&self) -> Result<(), UsersProblem> {
        self.shared.database.check_columns(&self.shared.query).await
    }

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
                if !self.warned.swap(true, Ordering::Relaxed) {
                    warn!(tenant.id = %self.shared.policy.tenant, user.id = %id, "A cached user record is not believed: {why}");
                }
                Cached::Nothing
            }
        }
    }

    fn stale_in_memory(&self, id: &UserId) -> Option<Arc<UserRecord>> {
        match self.shared.redis {
            Some(_) => None,
            None => self.shared.local.stale(id),
        }
    }
}

#[async_trait]
impl Source for Shared {
    async fn fetch(&self, ids: &[UserId]) -> Result<FetchedUsers, StoreError> {
        self.database.fetch_users(&self.query, ids).await
    }

    fn record(&self, row: UserRow) -> UserRecord {
        UserRecord::from_row(row, self.policy.check_active)
    }

    fn known(&self, wanted: &Wanted) -> Option<Option<Arc<UserRecord>>> {
        self.local.get_same(wanted)
    }

    /// Writes the answers to Redis, beside everybody's handshake. A failed write costs a query later, nothing else.
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
        // At most MAX_WRITES of them, each as long as Redis' time limit. One round: a write for each record would hold
        // megabytes while a storm lasts.
        tokio::spawn(async move {
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
