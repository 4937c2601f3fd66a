//! What is sent to Redis in one round: a command, or several at once.

use std::future::Future;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, Pipeline, RedisResult};

/// One or more commands that are sent together.
pub trait RedisRound: Sync {
    /// Sends them over a link, and returns the answer, or the answers of a pipeline.
    ///
    /// # Errors
    /// `RedisError`, also if one of the commands fails.
    fn send_over<T: FromRedisValue>(
        &self,
        link: MultiplexedConnection,
    ) -> impl Future<Output = RedisResult<T>> + Send;
}

impl RedisRound for Cmd {
    async fn send_over<T: FromRedisValue>(
        &self,
        mut link: MultiplexedConnection,
    ) -> RedisResult<T> {
        self.query_async(&mut link).await
    }
}

impl RedisRound for Pipeline {
    async fn send_over<T: FromRedisValue>(
        &self,
        mut link: MultiplexedConnection,
    ) -> RedisResult<T> {
        self.query_async(&mut link).await
    }
}
