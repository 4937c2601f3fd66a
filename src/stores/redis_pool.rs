//! A pool of connections to one server, for commands that block or need a connection of their own.

use deadpool_redis::{Manager, Pool};
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client};

use super::redis_link::ANSWER_LIMIT;

/// The number of connections in a pool.
const SIZE: usize = 4;

/// The pool of the newest link. Each link has a new one, so that no connection outlives a failover.
#[derive(Default)]
pub(super) struct LinkPool {
    /// With the number of the link in whose life it was made.
    newest: Mutex<Option<(u64, Pool)>>,
}

impl LinkPool {
    /// Returns the pool of a link to the server of `client`. Answers have no time limit.
    ///
    /// # Errors
    /// A text if the pool cannot be set up.
    pub(super) fn of_link(&self, link: u64, client: &Client) -> Result<Pool, String> {
        let mut newest = self.newest.lock();
        if let Some((made_for, pool)) = &*newest
            && *made_for == link
        {
            return Ok(pool.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_LIMIT))
            .set_response_timeout(None);
        let manager = Manager::new_with_config(client.get_connection_info().clone(), config);
        let manager = manager.map_err(|error| error.to_string())?;
        let pool = Pool::builder(manager).max_size(SIZE).build();
        let pool = pool.map_err(|error| error.to_string())?;
        *newest = Some((link, pool.clone()));
        Ok(pool)
    }
}
