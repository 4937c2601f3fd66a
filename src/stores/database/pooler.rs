//! A pool of connections to PostgreSQL that finds out whether a transaction pooler such as PgBouncer stands in between.
//!
//! The first connections go as to a server: with a time limit and with prepared statements. A pooler refuses or ignores the
//! limit, and its servers do not know the statements. At such a sign the pool changes for good: each statement is a short
//! transaction of its own, with the limit inside, and nothing is prepared by name.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tracing::info;

use super::postgres;

/// The pool, and what it knows of the way to the server.
pub(super) struct PoolerAware {
    pub(super) pool: PgPool,
    pooled: AtomicBool,
    /// Set by a new connection whose server does not have our time limit: a pooler was told to ignore it.
    limit_ignored: Arc<AtomicBool>,
    /// The options for the way through a pooler.
    through: PgConnectOptions,
}

impl PoolerAware {
    /// Makes the pool, which connects at the first query. `pooled`: the URL says that there is a pooler.
    pub(super) fn new(pool: PgPoolOptions, options: PgConnectOptions, pooled: bool) -> Self {
        let through = postgres::for_pooler(options.clone());
        let (direct, is_ours) = postgres::limited(options);
        let limit_ignored = Arc::<AtomicBool>::default();
        let (pool, first) = match pooled {
            true => (pool, through.clone()),
            false => {
                let ignored = limit_ignored.clone();
                let pool = pool.after_connect(move |conn, _| {
                    let ignored = ignored.clone();
                    Box::pin(async move {
                        if is_ours && !postgres::has_limit(conn).await? {
                            ignored.store(true, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                });
                (pool, direct)
            }
        };
        Self {
            pool: pool.connect_lazy_with(first),
            pooled: AtomicBool::new(pooled),
            limit_ignored,
            through,
        }
    }

    /// Returns true if there is a pooler. Changes the pool if a connection has found it out.
    pub(super) fn is_pooled(&self, endpoint: &str) -> bool {
        let pooled = self.pooled.load(Ordering::Relaxed);
        if !pooled && self.limit_ignored.load(Ordering::Relaxed) {
            self.found_pooler(endpoint, &"it ignores the time limit of statements");
            return true;
        }
        pooled
    }

    /// Changes the pool for the way through a pooler, which `sign` has shown.
    pub(super) fn found_pooler(&self, endpoint: &str, sign: &dyn Display) {
        if self.pooled.swap(true, Ordering::Relaxed) {
            return;
        }
        self.pool.set_connect_options(self.through.clone());
        info!(
            endpoint, %sign,
            "The way to the database leads through a transaction pooler such as PgBouncer: each query is a transaction of its own \
             from now on, without prepared statements"
        );
        // What they have prepared is not known to the next server.
        while let Some(connection) = self.pool.try_acquire() {
            drop(connection.detach());
        }
    }
}
