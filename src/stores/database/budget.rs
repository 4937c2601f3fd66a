//! The bound on database connections of the whole process: `server.max_database_connections`.
//!
//! Every pool keeps what it opened for a while, so that counting questions would not do: a thousand tenants that ask one
//! after another would leave a thousand connections open. Counted is what is open; where there is no room for one more,
//! a connection that another pool does not use is closed for it.

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

use super::link::ACQUIRE_TIMEOUT;

/// Between two looks for room while connections are on their way back into their pools.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long a server may take to hear that a connection ends.
const FAREWELL: Duration = Duration::from_millis(200);

/// How many connections all databases of a process may have open together.
#[derive(Debug)]
pub struct ConnectionBudget {
    most: usize,
    /// One permit for each question under way: whoever has one finds a connection that is not in use, or room.
    in_use: Arc<Semaphore>,
    pools: Mutex<Vec<(u64, Box<dyn Counted>)>>,
    next_id: AtomicU64,
}

impl ConnectionBudget {
    /// Returns a budget of `most` connections, at least one.
    pub fn new(most: u32) -> Arc<Self> {
        let most = most.max(1) as usize;
        Arc::new(Self {
            most,
            in_use: Arc::new(Semaphore::new(most)),
            pools: Mutex::default(),
            next_id: AtomicU64::new(0),
        })
    }

    /// Connections that are open, or being opened.
    pub fn open(&self) -> usize {
        self.pools.lock().iter().map(|(_, pool)| pool.open()).sum()
    }

    /// Returns a gate for `pool`, whose connections count until the gate goes. One that is not `spared` may lose idle
    /// connections to others.
    pub(super) fn gate<DB: sqlx::Database>(
        self: &Arc<Self>,
        pool: &Pool<DB>,
        spared: bool,
    ) -> Gate {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let counted = CountedPool {
            pool: pool.clone(),
            spared,
        };
        self.pools.lock().push((id, Box::new(counted)));
        Gate {
            id,
            budget: self.clone(),
            slots: Arc::new(Semaphore::new(pool.options().get_max_connections() as usize)),
        }
    }

    /// Takes a connection out of some pool that does not use it.
    fn idle_one(&self) -> Option<Farewell> {
        let pools = self.pools.lock();
        pools.iter().find_map(|(_, pool)| pool.take_idle())
    }
}

type Farewell = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the budget asks a pool, whatever its database.
trait Counted: std::fmt::Debug + Send + Sync {
    fn open(&self) -> usize;
    /// Takes an idle connection out, no longer counted; the future ends it.
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

    fn take_idle(&self) -> Option<Farewell> {
        if self.spared {
            return None;
        }
        let connection = self.pool.try_acquire()?.detach();
        Some(Box::pin(async move {
            // A server that does not listen sees the end of the stream instead.
            drop(tokio::time::timeout(FAREWELL, connection.close()).await);
        }))
    }
}

/// The way to the connections of one pool.
#[derive(Debug)]
pub(super) struct Gate {
    id: u64,
    budget: Arc<ConnectionBudget>,
    /// As many as the pool may have: who waits for this database holds nothing that others could use.
    slots: Arc<Semaphore>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.budget.pools.lock().retain(|(id, _)| *id != self.id);
    }
}

/// The right to use one connection of a pool. Goes after the connection.
#[derive(Debug)]
pub(super) struct Turn {
    _slot: OwnedSemaphorePermit,
    _in_use: OwnedSemaphorePermit,
}

impl Gate {
    /// Waits until it is this question's turn, at most [`ACQUIRE_TIMEOUT`].
    pub(super) async fn turn(&self) -> Result<Turn, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let permit = async |semaphore: &Arc<Semaphore>| {
            let permit = timeout_at(deadline, semaphore.clone().acquire_owned()).await;
            permit
                .map_err(|_| sqlx::Error::PoolTimedOut)?
                .map_err(|_| sqlx::Error::PoolClosed)
        };
        Ok(Turn {
            _slot: permit(&self.slots).await?,
            _in_use: permit(&self.budget.in_use).await?,
        })
    }

    /// Returns a connection of `pool`; a new one only where the budget has room, or after room was made.
    pub(super) async fn acquire<DB: sqlx::Database>(
        &self,
        pool: &Pool<DB>,
    ) -> Result<PoolConnection<DB>, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let mut acquire = pin!(pool.acquire());
        loop {
            // A pool counts a new connection as soon as it begins with it, in the first poll: under the lock, two cannot
            // see the same room.
            let begun = poll_fn(|cx| {
                let pools = self.budget.pools.lock();
                let open = || pools.iter().map(|(_, pool)| pool.open()).sum::<usize>();
                let room = pool.num_idle() > 0 || open() < self.budget.most;
                Poll::Ready(room.then(|| acquire.as_mut().poll(cx)))
            });
            match begun.await {
                Some(Poll::Ready(result)) => return result,
                Some(Poll::Pending) => return acquire.await,
                None if Instant::now() >= deadline => return Err(sqlx::Error::PoolTimedOut),
                None => match self.budget.idle_one() {
                    Some(farewell) => farewell.await,
                    None => sleep(LOOK_AGAIN).await,
                },
            }
        }
    }
}
