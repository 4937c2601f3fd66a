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
use super::way::Way;

/// The pool, and what it knows of the way to the server.
pub(super) struct PoolerAware {
    pub(super) pool: PgPool,
    way: Arc<Way>,
    /// The options for the way through a pooler.
    through: PgConnectOptions,
}

impl PoolerAware {
    /// Makes the pool, which connects at the first query. `pooled`: the URL says that there is a pooler.
    pub(super) fn new(pool: PgPoolOptions, options: PgConnectOptions, pooled: bool) -> Self {
        let through = postgres::for_pooler(options.clone());
        let (direct, is_ours) = postgres::limited(options);
        let way = Arc::new(Way {
            pooled: AtomicBool::new(pooled),
            ..Way::default()
        });
        let (pool, first) = match pooled {
            true => (pool, through.clone()),
            false => {
                let of_pool = way.clone();
                let pool = pool.after_connect(move |conn, _| {
                    let way = of_pool.clone();
                    Box::pin(async move {
                        if is_ours && !postgres::has_limit(conn).await? {
                            way.limit_ignored.store(true, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                });
                (pool, direct)
            }
        };
        Self {
            pool: pool.connect_lazy_with(first),
            way,
            through,
        }
    }

    /// Returns true if there is a pooler.
    pub(super) fn is_pooled(&self) -> bool {
        self.way.is_pooled()
    }

    /// Returns the way for a statement. Changes the pool if a connection has found a pooler.
    pub(super) fn way(&self, endpoint: &str) -> Arc<Way> {
        if self.way.limit_ignored.load(Ordering::Relaxed) {
            self.found_pooler(endpoint, &"it ignores the time limit of statements");
        }
        self.way.clone()
    }

    /// Looks whether two connections have one server process, as behind a transaction pooler alone. For an inspection, whose few
    /// statements may meet no other sign.
    pub(super) async fn compare_servers(&self, endpoint: &str) {
        if self.is_pooled() || self.pool.options().get_max_connections() < 2 {
            return;
        }
        // Both are open at the same time. What cannot be known is no sign.
        let (Ok(mut one), Ok(mut other)) = (self.pool.acquire().await, self.pool.acquire().await)
        else {
            return;
        };
        let servers = (
            postgres::server_process(&mut one).await,
            postgres::server_process(&mut other).await,
        );
        if matches!(servers, (Ok(one), Ok(other)) if one == other) {
            drop((one.detach(), other.detach()));
            self.found_pooler(endpoint, &"two connections have one server process");
        }
    }

    /// Changes the pool for the way through a pooler, which `sign` has shown.
    pub(super) fn found_pooler(&self, endpoint: &str, sign: &dyn Display) {
        if self.way.pooled.swap(true, Ordering::Relaxed) {
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
