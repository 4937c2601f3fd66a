//! The role of a Redis server: only a master takes writes, and only its publishes reach every subscriber.
//!
//! A failover may swap master and replica behind one name while links stay open. So a link asks for the role when it is
//! made and every second of its life, and a refused write is a sign as well.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, ServerErrorKind, Value};

/// The role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The server takes writes.
    Master,
    /// The server copies a master and may be behind it.
    Replica,
}

/// The text of an error that ends a link to a replica.
pub(super) const IS_REPLICA: &str =
    "the server is a replica: it takes no writes, and its name should lead to the master";

/// The command that a login may ask for the role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum RoleCommand {
    #[default]
    Role,
    Info,
    /// Both are refused; a PING shows that the server answers.
    Ping,
}

/// The questions of one link for the role of its server.
#[derive(Debug, Default)]
pub(super) struct RoleQuestion {
    command: RoleCommand,
}

impl RoleCommand {
    fn command(self) -> Cmd {
        match self {
            RoleCommand::Role => redis::cmd("ROLE"),
            RoleCommand::Info => redis::cmd("INFO").arg("replication").to_owned(),
            RoleCommand::Ping => redis::cmd("PING"),
        }
    }

    /// Returns the command to try after a refusal.
    fn other(self) -> Option<Self> {
        match self {
            RoleCommand::Role => Some(RoleCommand::Info),
            RoleCommand::Info => Some(RoleCommand::Ping),
            RoleCommand::Ping => None,
        }
    }
}

impl RoleQuestion {
    /// Returns the role of the server; `None` if the login may not ask for it. A refused command is not sent again.
    ///
    /// # Errors
    /// [`RedisError`] if the server does not answer.
    pub(super) async fn ask(
        &mut self,
        link: &mut MultiplexedConnection,
    ) -> RedisResult<Option<Role>> {
        loop {
            let answer: RedisResult<Value> = self.command.command().query_async(link).await;
            match (answer, self.command.other()) {
                (Ok(answer), _) => return Ok(role_in(&answer)),
                (Err(error), Some(other)) if is_refusal(&error) => self.command = other,
                (Err(error), _) => return Err(error),
            }
        }
    }

    /// Fails if the server is known to be a replica.
    ///
    /// # Errors
    /// [`RedisError`], also if the server does not answer.
    pub(super) async fn demand_master(
        &mut self,
        link: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        match self.ask(link).await? {
            Some(Role::Replica) => Err(is_replica()),
            Some(Role::Master) | None => Ok(()),
        }
    }
}

/// Returns the error of a link that leads to a replica.
pub(super) fn is_replica() -> RedisError {
    std::io::Error::other(IS_REPLICA).into()
}

/// Returns true if the server refuses a command for lack of permission, or does not know it.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOPERM" | "ERR"))
}

/// Reads the role from an answer to ROLE or INFO.
pub(super) fn role_in(answer: &Value) -> Option<Role> {
    match answer {
        Value::Array(parts) => match parts.first()? {
            Value::BulkString(word) => role_of(std::str::from_utf8(word).ok()?),
            Value::SimpleString(word) => role_of(word),
            _ => None,
        },
        Value::BulkString(info) => role_in_info(std::str::from_utf8(info).ok()?),
        Value::VerbatimString { text, .. } => role_in_info(text),
        _ => None,
    }
}

/// Reads the role from a text of INFO.
pub(super) fn role_in_info(info: &str) -> Option<Role> {
    let mut lines = info.lines().map(str::trim_end);
    role_of(lines.find_map(|line| line.strip_prefix("role:"))?)
}

fn role_of(word: &str) -> Option<Role> {
    match word {
        "master" => Some(Role::Master),
        "slave" | "replica" => Some(Role::Replica),
        _ => None,
    }
}

/// Returns true if an error says that the server is a replica, also from inside a pipeline, a transaction or a script.
pub(super) fn is_demotion(error: &RedisError) -> bool {
    let Some(errors) = error.clone().into_server_errors() else {
        return false;
    };
    errors.iter().any(|(_, error)| {
        // Redis 6 wraps the error of a script's command in the text of a plain ERR.
        let wrapped = || {
            error
                .details()
                .is_some_and(|text| text.contains("-READONLY"))
        };
        let refused = [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown];
        error.kind().is_some_and(|kind| refused.contains(&kind)) || wrapped()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_read_from_each_answer() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let master = Value::Array(vec![
            bulk("master"),
            Value::Int(7),
            Value::Array(Vec::new()),
        ]);
        let replica = Value::Array(vec![bulk("slave"), bulk("127.0.0.1"), Value::Int(6379)]);
        for (answer, role) in [
            (master, Some(Role::Master)),
            (replica, Some(Role::Replica)),
            (Value::Array(vec![bulk("sentinel")]), None),
            (bulk("# Replication\r\nrole:slave\r\n"), Some(Role::Replica)),
            (bulk("# Replication\r\nrole:master\r\n"), Some(Role::Master)),
            (Value::SimpleString("PONG".into()), None),
            (Value::Array(Vec::new()), None),
        ] {
            assert_eq!(role_in(&answer), role, "{answer:?}");
        }
    }

    #[test]
    fn a_refused_write_is_found_wherever_it_stands() {
        let error = |line: &str| {
            let reply = redis::parse_redis_value(line.as_bytes()).unwrap();
            reply.extract_error().unwrap_err()
        };
        for (line, demoted) in [
            (
                "-READONLY You can't write against a read only replica.\r\n",
                true,
            ),
            (
                "-ERR Error running script: @user_script: 1: -READONLY You can't write against a read only replica.\r\n",
                true,
            ),
            ("-MASTERDOWN Link with MASTER is down\r\n", true),
            ("-NOPERM no\r\n", false),
            ("-MISCONF errors writing to the AOF file\r\n", false),
        ] {
            assert_eq!(is_demotion(&error(line)), demoted, "{line}");
        }
    }
}
