//! One round to Redis: a command, several at once, or a script.
//!
//! On one server a round goes over its link as it is. On a cluster its commands are sent one by one to their nodes.

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

    /// Returns the commands, for a cluster.
    fn commands(&self) -> CommandRound<'_>;
}

/// The commands of a round.
pub struct CommandRound<'a> {
    /// Each has its keys in one slot. Empty if only the script is to be loaded.
    pub commands: Vec<Cmd>,
    /// The answer is that of the only command, and not a list of answers.
    pub is_one: bool,
    /// The script that they call. It is loaded where a node does not know it.
    pub script: Option<&'a Script>,
}

impl RedisRound for Cmd {
    async fn send_over<T: FromRedisValue>(
        &self,
        mut link: MultiplexedConnection,
    ) -> RedisResult<T> {
        self.query_async(&mut link).await
    }

    fn commands(&self) -> CommandRound<'_> {
        CommandRound {
            commands: vec![self.clone()],
            is_one: true,
            script: None,
        }
    }
}

impl RedisRound for Pipeline {
    async fn send_over<T: FromRedisValue>(
        &self,
        mut link: MultiplexedConnection,
    ) -> RedisResult<T> {
        self.query_async(&mut link).await
    }

    /// A transaction is sent as its commands, which stay together and in order on the link to their node.
    fn commands(&self) -> CommandRound<'_> {
        CommandRound {
            commands: self.cmd_iter().cloned().collect(),
            is_one: false,
            script: None,
        }
    }
}

/// Loads a script, on every node of a cluster.
pub struct ScriptLoad<'a>(pub &'a Script);

impl RedisRound for ScriptLoad<'_> {
    async fn send_over<T: FromRedisValue>(
        &self,
        mut link: MultiplexedConnection,
    ) -> RedisResult<T> {
        let digest = self.0.load_async(&mut link).await?;
        Ok(T::from_redis_value(Value::SimpleString(digest))?)
    }

    fn commands(&self) -> CommandRound<'_> {
        CommandRound {
            commands: Vec::new(),
            is_one: true,
            script: Some(self.0),
        }
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
    fn commands(&self) -> CommandRound<'_> {
        CommandRound {
            commands: vec![self.command.clone()],
            is_one: true,
            script: Some(self.script),
        }
    }
}
