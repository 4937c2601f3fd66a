//! The limit on the database connections of the process: `server.max_database_connections`.
//!
//! The budget counts open connections, not queries in progress. A pool keeps its connections for a while, so a thousand
//! tenants that query one after another would leave a thousand connections open. If there is no room for a new
//! connection, an idle one of another pool is closed for it.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Pool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

/// The longest wait for a free or a new connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two checks for room while connections return to their pools.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The longest wait for a server to take the end of a connection.
const FAREWELL: Duration = Duration::from_millis(200);

/// The budget of connections for all databases of a process.
#[derive(Debug)]
pub struct ConnectionBudget {
    most: usize,
    /// One permit for each query in progress. A query with a permit finds an idle connection or room for a new one.
    in_use: Arc<Semaphore>,
    pools: Mutex<OpenPools>,
    next_id: AtomicU64,
}

/// The pools that may have connections, by the ids of their gates. Thousands of tenants without one cost nothing.
#[derive(Debug, Default)]
struct OpenPools {
    by_id: BTreeMap<u64, OpenPool>,
    /// The sum of [`OpenPool::at_most`].
    at_most: usize,
}

#[derive(Debug)]
struct OpenPool {
    pool: Box<dyn Counted>,
    /// At least the number of its connections that are open or being opened. A pool does not tell of those that it closes, so all
    /// are counted again once nothing is left.
    at_most: usize,
}

impl OpenPools {
    /// Counts the connections of a pool.
    fn note<DB: sqlx::Database>(&mut self, id: u64, pool: &Pool<DB>, spared: bool) {
        let noted = self.by_id.entry(id).or_insert_with(|| OpenPool {
            pool: Box::new(CountedPool {
                pool: pool.clone(),
                spared,
            }),
            at_most: 0,
        });
        self.at_most -= noted.at_most;
        noted.at_most = noted.pool.expected();
        self.at_most += noted.at_most;
    }

    fn has_room(&mut self, most: usize) -> bool {
        if self.at_most >= most {
            self.by_id.retain(|_, noted| {
                noted.at_most = noted.pool.expected();
                noted.at_most > 0
            });
            self.at_most = self.by_id.values().map(|noted| noted.at_most).sum();
        }
        self.at_most < most
    }

    /// Takes an idle connection out of some pool.
    fn idle_one(&self) -> Option<Farewell> {
        self.by_id.values().find_map(|noted| noted.pool.take_idle())
    }

    fn remove(&mut self, id: u64) {
        if let Some(noted) = self.by_id.remove(&id) {
            self.at_most -= noted.at_most;
        }
    }
}

impl ConnectionBudget {
    /// Makes a budget of `most` connections, at least one.
    pub fn new(most: u32) -> Arc<Self> {
        let most = most.max(1) as usize;
        Arc::new(Self {
            most,
            in_use: Arc::new(Semaphore::new(most)),
            pools: Mutex::default(),
            next_id: AtomicU64::new(0),
        })
    }

    /// Returns the number of connections that are open or being opened.
    pub fn open(&self) -> usize {
        let pools = self.pools.lock();
        pools.by_id.values().map(|noted| noted.pool.open()).sum()
    }

    /// Makes a gate for `pool`, whose connections count until the gate is dropped. A pool that is not `spared` may lose
    /// idle connections to other pools.
    pub(super) fn gate<DB: sqlx::Database>(
        self: &Arc<Self>,
        pool: &Pool<DB>,
        spared: bool,
    ) -> Gate {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if spared {
            self.pools.lock().note(id, pool, spared);
        }
        Gate {
            id,
            spared,
            budget: self.clone(),
            slots: Arc::new(Semaphore::new(pool.options().get_max_connections() as usize)),
        }
    }
}

type Farewell = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A pool of any kind of database, as the budget uses it.
trait Counted: std::fmt::Debug + Send + Sync {
    fn open(&self) -> usize;
    /// Returns the same with a connection that it is about to open by itself.
    fn expected(&self) -> usize;
    /// Takes out an idle connection, which then no longer counts; the future closes it.
    fn take_idle(&self) -> Option<Farewell>;
}

#[derive(Debug)]
struct CountedPool<DB: sqlx::Database> {
    pool: Pool<DB>,
    spared: bool,
}

impl<DB: sqlx::Database> Counted for CountedPool<DB> {
    fn open(&self) -> usize {
        self.pool.size() as usize
    }

    fn expected(&self) -> usize {
        self.open().max(usize::from(self.spared))
    }

    fn take_idle(&self) -> Option<Farewell> {
        if self.spared {
            return None;
        }
        let connection = self.pool.try_acquire()?.detach();
        Some(Box::pin(async move {
            // After the time limit the connection is dropped, and the server sees the end of the stream.
            drop(tokio::time::timeout(FAREWELL, connection.close()).await);
        }))
    }
}

/// The access to the connections of one pool.
#[derive(Debug)]
pub(super) struct Gate {
    id: u64,
    spared: bool,
    budget: Arc<ConnectionBudget>,
    /// As many permits as the pool may have connections. A query that waits here holds no permit of the budget, so a
    /// slow database does not block others.
    slots: Arc<Semaphore>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.budget.pools.lock().remove(self.id);
    }
}

/// The right to use one connection of a pool. Drop it after the connection.
#[derive(Debug)]
pub(super) struct ConnectionTurn {
    _slot: OwnedSemaphorePermit,
    _in_use: OwnedSemaphorePermit,
}

impl Gate {
    /// Waits for the permits of one query, at most [`ACQUIRE_TIMEOUT`].
    pub(super) async fn turn(&self) -> Result<ConnectionTurn, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let permit = async |semaphore: &Arc<Semaphore>| {
            let permit = timeout_at(deadline, semaphore.clone().acquire_owned()).await;
            permit
                .map_err(|_| sqlx::Error::PoolTimedOut)?
                .map_err(|_| sqlx::Error::PoolClosed)
        };
        Ok(ConnectionTurn {
            _slot: permit(&self.slots).await?,
            _in_use: permit(&self.budget.in_use).await?,
        })
    }

    fn idle_one(&self) -> Option<Farewell> {
        self.budget.pools.lock().idle_one()
    }

    /// Returns a connection of `pool`. Opens a new one only if the budget has room, and makes room if needed.
    pub(super) async fn acquire<DB: sqlx::Database>(
        &self,
        pool: &Pool<DB>,
    ) -> Result<PoolConnection<DB>, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let mut acquire = pin!(pool.acquire());
        loop {
            // A pool counts a new connection from the first poll on. The poll happens under the lock, so that two
            // queries cannot use the same room.
            let begun = poll_fn(|cx| {
                let mut pools = self.budget.pools.lock();
                if pool.num_idle() == 0 && !pools.has_room(self.budget.most) {
                    return Poll::Ready(None);
                }
                let begun = acquire.as_mut().poll(cx);
                pools.note(self.id, pool, self.spared);
                Poll::Ready(Some(begun))
            });
            match begun.await {
                Some(Poll::Ready(result)) => return result,
                Some(Poll::Pending) => {
                    let result = acquire.await;
                    let mut pools = self.budget.pools.lock();
                    pools.note(self.id, pool, self.spared);
                    return result;
                }
                None if Instant::now() >= deadline => return Err(sqlx::Error::PoolTimedOut),
                None => match self.idle_one() {
                    Some(farewell) => farewell.await,
                    None => sleep(LOOK_AGAIN).await,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::SqlitePool;
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::*;

    fn pool(dir: &tempfile::TempDir) -> SqlitePool {
        let file = dir.path().join("db");
        let options = SqliteConnectOptions::new().filename(file);
        let options = options.create_if_missing(true);
        SqlitePoolOptions::new().connect_lazy_with(options)
    }

    /// Before: each connection was taken by a look at the pools of all tenants.
    #[tokio::test]
    async fn only_pools_that_may_have_connections_are_counted() {
        let (dir, budget) = (tempfile::tempdir().unwrap(), ConnectionBudget::new(2));
        let pools: Vec<_> = (0..1000).map(|_| pool(&dir)).collect();
        let gates = pools.iter().map(|pool| budget.gate(pool, false));
        let gates: Vec<_> = gates.collect();
        for (pool, gate) in pools.iter().zip(&gates) {
            let conn = gate.acquire(pool).await.unwrap();
            assert!(budget.open() <= 2);
            drop(conn);
            assert!(budget.pools.lock().by_id.len() <= 3);
        }
    }
}
