//! Writes that replicas of the server acknowledge (`WAIT`).

use std::time::Instant;

use deadpool_redis::PoolError;
use redis::{Cmd, FromRedisValue, RedisResult, Value};
use tokio::time::timeout;

use super::RedisStore;
use crate::error::{ErrorKind, StoreError};
use crate::stores::redis_link::{ANSWER_LIMIT, store_error};
use crate::stores::redis_role::is_demotion;

impl RedisStore {
    /// Sends a write; returns once at least `replicas` of the server's replicas have acknowledged it (`WAIT`).
    ///
    /// It uses a connection of the pool: WAIT is about the writes of its own connection and delays the commands behind it.
    ///
    /// # Errors
    /// [`StoreError`], also if fewer replicas acknowledge within a second: a failover may lose the write then.
    pub async fn write_acknowledged(
        &self,
        operation: &'static str,
        command: &Cmd,
        replicas: u32,
    ) -> Result<(), StoreError> {
        match &self.cluster {
            Some(cluster) => {
                cluster
                    .write_acknowledged(operation, command, replicas)
                    .await
            }
            None => self.acknowledged(operation, command, replicas, false).await,
        }
    }

    /// Sends a write to this server as [`RedisStore::write_acknowledged`] does. With `asking`, its slot is moving here.
    pub(super) async fn acknowledged(
        &self,
        operation: &'static str,
        command: &Cmd,
        replicas: u32,
        asking: bool,
    ) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut pipe = redis::Pipeline::with_capacity(3);
        let limit = ANSWER_LIMIT.as_millis() as u64;
        if asking {
            pipe.cmd("ASKING");
        }
        pipe.add_command(command.clone());
        pipe.cmd("WAIT").arg(replicas).arg(limit);
        pipe.ignore_errors();
        let ask = async {
            // A pool is made for a link, so the link comes first.
            let (_, link) = self.connection().await?;
            let mut connection = self.pool()?.get().await.map_err(|error| match error {
                PoolError::Backend(error) => store_error(self.dependency, error),
                error => StoreError::new(self.dependency, ErrorKind::Io, error.to_string()),
            })?;
            let answers: RedisResult<Vec<RedisResult<Value>>> =
                pipe.query_async(&mut connection).await;
            let answers = answers.and_then(|answers| answers.into_iter().collect());
            let acknowledged = answers.and_then(|mut answers: Vec<Value>| {
                let last = answers.pop().unwrap_or(Value::Nil);
                Ok(u32::from_redis_value(last)?)
            });
            acknowledged.map_err(|error| {
                if is_demotion(&error) {
                    self.shared.report_demoted(link);
                }
                store_error(self.dependency, self.explained(error))
            })
        };
        let answer = timeout(2 * ANSWER_LIMIT, ask).await;
        let answer =
            answer.unwrap_or_else(|_| Err(StoreError::timeout(self.dependency, 2 * ANSWER_LIMIT)));
        let acknowledged = answer.map_err(|error| self.failed(error))?;
        self.times.took(operation, started.elapsed());
        if acknowledged < replicas {
            let text = format!("{acknowledged} of {replicas} replicas acknowledged the write");
            return Err(self.failed(StoreError::new(self.dependency, ErrorKind::Other, text)));
        }
        Ok(())
    }
}
