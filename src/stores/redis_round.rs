//! One round to Redis: a command, several at once, or a script.

use std::future::Future;

use redis::aio::MultiplexedConnection;
use redis::{
    Cmd, FromRedisValue, Pipeline, RedisResult, Script, ServerErrorKind, ToRedisArgs, Value,
};

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

/// A call of a script, by its digest. Where the server does not know the script yet, it is loaded and called again; it has not
/// run then.
#[derive(Clone)]
pub struct ScriptCall {
    script: &'static Script,
    command: Cmd,
}

impl ScriptCall {
    /// Calls `script` on these keys; arguments follow.
    pub fn new(script: &'static Script, keys: &[&str]) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len()).arg(keys);
        Self { script, command }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Returns the bare command, for a pipeline that loads the script itself.
    pub fn into_command(self) -> Cmd {
        self.command
    }
}

impl RedisRound for ScriptCall {
    async fn send_over<T: FromRedisValue>(
        &self,
        mut link: MultiplexedConnection,
    ) -> RedisResult<T> {
        let unknown = redis::ErrorKind::Server(ServerErrorKind::NoScript);
        let answer: RedisResult<Value> = self.command.query_async(&mut link).await;
        let answer = match answer {
            Err(error) if error.kind() == unknown => {
                self.script.load_async(&mut link).await?;
                self.command.query_async(&mut link).await?
            }
            answer => answer?,
        };
        Ok(redis::from_redis_value(answer)?)
    }
}
