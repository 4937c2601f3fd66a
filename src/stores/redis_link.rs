//! Keeps one multiplexed connection to a Redis server open, and states the reason while there is none.
//!
//! It replaces redis-rs' `ConnectionManager`, whose retries hide whether a password is wrong or a server is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::error::{Dependency, ErrorKind, StoreError};
use crate::metrics;
use crate::tasks;

use super::backoff::Backoff;
use super::redis_master::{SentinelLink, ServerRoute, address};
use super::redis_role::{Role, RoleQuestion, is_replica};
use super::redis_stream::Dialler;
use super::standing::{LinkStanding, LinkWords};

/// The longest time for one answer, and the longest time for which a command waits for a link.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// The time between probes of a link. A probe asks for the server's role, so that a lost link or one to a demoted master is
/// replaced before a command needs it.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// The time between two checks with the Sentinels that the server is still the master. In a split brain an old master
/// goes on taking commands, and after an operator's failover it does so for some seconds.
const MASTER_ASKED_EVERY: Duration = Duration::from_secs(1);
/// The most commands between callers and socket; further callers wait.
const PIPELINE: usize = 1024;

/// The state without a connection.
#[derive(Clone, Debug)]
pub(super) struct Down {
    pub(super) kind: ErrorKind,
    pub(super) text: Arc<str>,
    pub(super) since: Instant,
}

impl Down {
    pub(super) fn new(kind: ErrorKind, text: &str) -> Self {
        Self {
            kind,
            text: text.into(),
            since: Instant::now(),
        }
    }
}

#[derive(Clone)]
pub(super) enum LinkState {
    Up(MultiplexedConnection, u64),
    Down(Down),
}

/// Keeps the task of a connection going. After its drop the commands that are under way have the time for an answer, and a server
/// that is silent keeps no socket.
type Driven = oneshot::Sender<()>;

/// The state that commands and the keeper of the link share.
pub(super) struct LinkShared {
    pub(super) state: watch::Sender<LinkState>,
    /// The number of the newest link that a command found broken. Links count from 1.
    broken: AtomicU64,
    broke: Notify,
    /// The number of times that the server behind a link was found to be a replica.
    pub(super) demotions: watch::Sender<u64>,
    made: Instant,
    /// Milliseconds from `made` to the last answer.
    answered: AtomicU64,
    /// The client of the newest link's server.
    pub(super) client: Mutex<Option<Client>>,
}

impl LinkShared {
    pub(super) fn new() -> Self {
        let down = Down::new(ErrorKind::Io, "not connected yet");
        Self {
            state: watch::Sender::new(LinkState::Down(down)),
            broken: AtomicU64::new(0),
            broke: Notify::new(),
            demotions: watch::Sender::new(0),
            made: Instant::now(),
            answered: AtomicU64::new(0),
            client: Mutex::new(None),
        }
    }

    pub(super) fn heard(&self) {
        let now = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered.fetch_max(now, Ordering::Relaxed);
    }

    /// Returns the time since the last answer, or since the start if there was none.
    pub(super) fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.answered.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(last)
    }

    /// Notes that the server of a link is a replica: the link ends, and so do the other links to that server.
    pub(super) fn report_demoted(&self, link: u64) {
        let current = matches!(&*self.state.borrow(), LinkState::Up(_, number) if *number == link);
        if current {
            self.demotions.send_modify(|count| *count += 1);
        }
        self.report_broken(link);
    }

    /// Notes that a link is broken, so that no further command uses it.
    pub(super) fn report_broken(&self, link: u64) {
        self.state.send_if_modified(|state| {
            // A late report about an old link must not take down the newer one.
            let current = matches!(state, LinkState::Up(_, number) if *number == link);
            if current {
                *state = LinkState::Down(Down::new(ErrorKind::Io, "the link was lost"));
            }
            current
        });
        self.broken.fetch_max(link, Ordering::AcqRel);
        self.broke.notify_one();
    }
}

/// Connects, watches the link and connects again, while its task runs.
pub(super) struct LinkKeeper {
    pub(super) route: ServerRoute,
    pub(super) dialler: Arc<Dialler>,
    /// The link may lead to a replica.
    pub(super) any_role: bool,
    pub(super) endpoint: String,
    pub(super) dependency: Dependency,
    pub(super) shared: Arc<LinkShared>,
}

/// The log lines of a lost link.
const WORDS: LinkWords = LinkWords {
    refused: "Redis refuses the user or password; correct the URL's credentials",
    lost: "No link to Redis; trying again until it answers",
};

impl LinkKeeper {
    pub(super) async fn run(self) {
        let mut standing = LinkStanding::new(self.dependency, &self.endpoint, WORDS);
        let mut backoff = Backoff::default();
        loop {
            let error = match self.connect().await {
                Ok((connection, client, _driven)) => {
                    let link = standing.up();
                    *self.shared.client.lock() = Some(client.clone());
                    self.up(&connection, link);
                    let made = Instant::now();
                    let error = tokio::select! {
                        error = self.watch(connection, link) => error,
                        error = self.moved(&client) => {
                            // Subscribers of the old master hear no more.
                            self.shared.report_demoted(link);
                            error
                        }
                    };
                    backoff.lived(made.elapsed());
                    error
                }
                Err(error) => error,
            };
            standing.down(kind_of(&error), &error);
            self.down(&error);
            sleep(backoff.pause()).await;
        }
    }

    async fn connect(&self) -> RedisResult<(MultiplexedConnection, Client, Driven)> {
        let client = self.route.client().await?;
        let attempt = timeout(CONNECT_LIMIT + ANSWER_LIMIT, self.dial(&client)).await;
        let (mut connection, driven) = attempt.unwrap_or_else(|_| Err(late()))?;
        if !self.any_role {
            let mut role = RoleQuestion::default();
            role.demand_master(&mut connection).await?;
        }
        Ok((connection, client, driven))
    }

    async fn dial(&self, client: &Client) -> RedisResult<(MultiplexedConnection, Driven)> {
        let (host, port) = address(client).ok_or_else(|| std::io::Error::other("no address"))?;
        let open = timeout(CONNECT_LIMIT, self.dialler.open(host, port)).await;
        let stream = open.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWER_LIMIT))
            .set_pipeline_buffer_size(PIPELINE);
        let login = client.get_connection_info().redis_settings();
        let made = MultiplexedConnection::new_with_config(login, stream, config).await;
        let (connection, driver) = made?;
        let (driven, ended) = oneshot::channel();
        tasks::brief(async move {
            let ended = async {
                // The sender is dropped, never used.
                drop(ended.await);
                sleep(2 * ANSWER_LIMIT).await;
            };
            tokio::select! {
                () = driver => {}
                () = ended => {}
            }
        });
        Ok((connection, driven))
    }

    /// Returns when the Sentinels name another server as the master; never returns without Sentinels.
    async fn moved(&self, client: &Client) -> RedisError {
        if !self.route.moves() {
            return std::future::pending().await;
        }
        let is_it = |host: &str, port| address(client) == Some((host, port));
        let mut sentinel = SentinelLink::default();
        loop {
            sleep(MASTER_ASKED_EVERY).await;
            // A missing answer means nothing for the link. One Sentinel alone may be out of date, so all are asked
            // before the link is given up.
            if let Some(Ok((host, port))) = self.route.hearsay(&mut sentinel).await
                && !is_it(&host, port)
                && let Ok(master) = self.route.client().await
                && address(&master).is_some_and(|(host, port)| !is_it(host, port))
            {
                let text = "the Sentinels name another server as the master";
                return std::io::Error::other(text).into();
            }
        }
    }

    fn up(&self, connection: &MultiplexedConnection, link: u64) {
        info!(
            redis.endpoint = self.endpoint,
            dependency = self.dependency.label(),
            "Connected to Redis"
        );
        self.shared.heard();
        let up = LinkState::Up(connection.clone(), link);
        self.shared.state.send_replace(up);
    }

    /// Notes a failure for callers that wait for the link. The start of an outage is its first failure.
    fn down(&self, error: &RedisError) {
        let mut down = Down::new(kind_of(error), &error.to_string());
        if let LinkState::Down(before) = &*self.shared.state.borrow() {
            down.since = before.since;
        }
        self.shared.state.send_replace(LinkState::Down(down));
    }

    /// Returns when the link is broken, or leads to a replica.
    async fn watch(&self, mut connection: MultiplexedConnection, link: u64) -> RedisError {
        let gone = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let mut role = RoleQuestion::default();
        loop {
            tokio::select! {
                () = self.shared.broke.notified() => {
                    if self.shared.broken.load(Ordering::Acquire) >= link {
                        return gone();
                    }
                }
                () = sleep(PROBE_EVERY) => {
                    let answer = role.ask(&mut connection).await;
                    match answer {
                        Ok(Some(Role::Replica)) if !self.any_role => {
                            self.shared.report_demoted(link);
                            return is_replica();
                        }
                        Err(error) if error.is_unrecoverable_error() => return error,
                        // The link of a server that is busy or stopped stays, and the next probe uses it again.
                        answer => {
                            if answer.is_ok() {
                                self.shared.heard();
                            }
                            let up = !answer.is_err_and(|error| error.is_timeout());
                            metrics::dependency_up(self.dependency, &self.endpoint, up);
                        }
                    }
                }
            }
        }
    }
}

fn late() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// The words for a command in a script that the script's user may not run; such an error has no code of its own. The first are
/// those of Redis 7.0, the second those of later versions and of Valkey.
const REFUSED_IN_SCRIPT: [&str; 2] = [
    "The user executing the script can't",
    "ACL failure in script",
];

/// Returns the kind of a redis-rs error.
pub(super) fn kind_of(error: &RedisError) -> ErrorKind {
    use redis::ErrorKind as Redis;
    match (error.kind(), error.code()) {
        (Redis::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => ErrorKind::Auth,
        (Redis::Server(ServerErrorKind::NoPerm), _) => ErrorKind::Permission,
        (Redis::Server(_), _) if is_refused_in_script(error) => ErrorKind::Permission,
        _ if error.is_timeout() => ErrorKind::Timeout,
        (Redis::Io, _) => ErrorKind::Io,
        (Redis::Parse | Redis::UnexpectedReturnType, _) => ErrorKind::Protocol,
        _ => ErrorKind::Other,
    }
}

fn is_refused_in_script(error: &RedisError) -> bool {
    let text = error.detail().unwrap_or_default();
    { REFUSED_IN_SCRIPT.iter() }.any(|words| text.contains(words))
}

/// Converts a redis-rs error.
pub(super) fn store_error(dependency: Dependency, error: RedisError) -> StoreError {
    StoreError::new(dependency, kind_of(&error), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valkey and Redis from 7.2 say it in other words than Redis 7.0, and it was told as any error.
    #[test]
    fn what_a_script_may_not_run_is_a_lack_of_permission() {
        for (reply, kind) in [
            (
                "-NOPERM User a has no permissions to run the 'xadd' command",
                ErrorKind::Permission,
            ),
            (
                "-ERR The user executing the script can't run this command or subcommand script: 9",
                ErrorKind::Permission,
            ),
            (
                "-ERR ACL failure in script: User a has no permissions to run the 'xadd' command",
                ErrorKind::Permission,
            ),
            ("-ERR value is not an integer", ErrorKind::Other),
            (
                "-READONLY You can't write against a read only replica.",
                ErrorKind::Other,
            ),
        ] {
            let reply = redis::parse_redis_value(format!("{reply}\r\n").as_bytes()).unwrap();
            assert_eq!(kind_of(&reply.extract_error().unwrap_err()), kind);
        }
    }
}
