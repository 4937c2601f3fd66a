//! Keeps one multiplexed connection to a Redis server open, and tells why there is none.
//!
//! Not redis-rs' `ConnectionManager`: that one hides behind its retries whether a password is wrong or a server is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::error::{Dependency, ErrorKind, StoreError};
use crate::metrics;

use super::redis_master::{Route, address};

/// How long one answer may take, and how long a command waits for a link.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// First and last pause between attempts; each is cut by up to a half at random.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// An idle link is probed this often: a lost one is then replaced before somebody needs it.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Where Sentinels lead to the server, they are asked this often whether it is still the master: the far side of a split
/// brain takes commands for as long as nobody tells it.
const MASTER_ASKED_EVERY: Duration = Duration::from_secs(5);
/// Commands between callers and socket; beyond it callers wait.
const PIPELINE: usize = 1024;

/// What there is instead of a connection.
#[derive(Clone, Debug)]
pub(super) struct Down {
    pub(super) kind: ErrorKind,
    pub(super) text: Arc<str>,
    pub(super) since: Instant,
    /// Whether the log has it.
    said: bool,
}

impl Down {
    fn new(kind: ErrorKind, text: &str) -> Self {
        Self {
            kind,
            text: text.into(),
            since: Instant::now(),
            said: false,
        }
    }
}

#[derive(Clone)]
pub(super) enum LinkState {
    Up(MultiplexedConnection, u64),
    Down(Down),
}

/// What commands and the keeper of the link share.
pub(super) struct Shared {
    pub(super) state: watch::Sender<LinkState>,
    /// The number of the link on which a command found out that it is gone; links count from 1.
    broken: AtomicU64,
    broke: Notify,
    /// Answers since the last probe.
    answers: AtomicU64,
    made: Instant,
    /// Milliseconds from `made` to the last answer.
    answered: AtomicU64,
    /// Leads to the server of the newest link.
    pub(super) client: Mutex<Option<Client>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let down = Down::new(ErrorKind::Io, "not connected yet");
        Self {
            state: watch::Sender::new(LinkState::Down(down)),
            broken: AtomicU64::new(0),
            broke: Notify::new(),
            answers: AtomicU64::new(0),
            made: Instant::now(),
            answered: AtomicU64::new(0),
            client: Mutex::new(None),
        }
    }

    pub(super) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.heard();
    }

    fn heard(&self) {
        let now = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered.fetch_max(now, Ordering::Relaxed);
    }

    /// Since the last answer, or since there was none yet.
    pub(super) fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.answered.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(last)
    }

    /// The link is gone: nobody shall use it any more.
    pub(super) fn report_broken(&self, link: u64) {
        self.state.send_if_modified(|state| {
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

/// Connects, watches and connects again, for as long as the task lives.
pub(super) struct Keeper {
    pub(super) route: Route,
    pub(super) endpoint: String,
    pub(super) dependency: Dependency,
    pub(super) shared: Arc<Shared>,
}

impl Keeper {
    pub(super) async fn run(self) {
        let mut links = 0;
        let mut pause = BACKOFF[0];
        loop {
            match self.connect().await {
                Ok((connection, client)) => {
                    links += 1;
                    *self.shared.client.lock() = Some(client.clone());
                    self.up(&connection, links);
                    let made = Instant::now();
                    let error = tokio::select! {
                        error = self.watch(connection, links) => error,
                        error = self.moved(&client) => error,
                    };
                    self.down(&error);
                    if made.elapsed() > BACKOFF[1] {
                        pause = BACKOFF[0];
                    }
                }
                Err(error) => self.down(&error),
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(BACKOFF[1]);
        }
    }

    async fn connect(&self) -> RedisResult<(MultiplexedConnection, Client)> {
        let client = self.route.client().await?;
        let connection = connect(&client, Some(ANSWER_LIMIT)).await?;
        Ok((connection, client))
    }

    /// Returns once Sentinels call another server the master; never where there are none.
    async fn moved(&self, client: &Client) -> RedisError {
        if !self.route.moves() {
            return std::future::pending().await;
        }
        let is_it = |host: &str, port| address(client) == Some((host, port));
        loop {
            sleep(MASTER_ASKED_EVERY).await;
            // No answer says nothing about the link, and one Sentinel alone may be behind.
            if let Some(Ok((host, port))) = self.route.hearsay().await
                && !is_it(&host, port)
                && let Ok(master) = self.route.client().await
                && address(&master).is_some_and(|(host, port)| !is_it(host, port))
            {
                let text = "the Sentinels call another server the master";
                return std::io::Error::other(text).into();
            }
        }
    }

    fn up(&self, connection: &MultiplexedConnection, link: u64) {
        if link > 1 {
            metrics::reconnected(self.dependency);
        }
        metrics::dependency_up(self.dependency, &self.endpoint, true);
        info!(
            redis.endpoint = self.endpoint,
            dependency = self.dependency.label(),
            "Connected to Redis"
        );
        self.shared.heard();
        let up = LinkState::Up(connection.clone(), link);
        self.shared.state.send_replace(up);
    }

    /// Says once per change of state what is wrong and what to do.
    fn down(&self, error: &RedisError) {
        let kind = kind_of(error);
        metrics::dependency_error(self.dependency, kind);
        let before = match &*self.shared.state.borrow() {
            LinkState::Down(down) => Some(down.clone()),
            LinkState::Up(..) => None,
        };
        let mut down = Down::new(kind, &error.to_string());
        if let Some(before) = &before {
            down.since = before.since;
        }
        if !before.is_some_and(|before| before.said && before.kind == kind) {
            self.say_down(kind, error);
        }
        down.said = true;
        self.shared.state.send_replace(LinkState::Down(down));
    }

    fn say_down(&self, kind: ErrorKind, error: &RedisError) {
        metrics::dependency_up(self.dependency, &self.endpoint, false);
        let advice = match kind {
            ErrorKind::Auth => "Redis refuses the user or password; correct the URL's credentials",
            _ => "No link to Redis; trying again until it is back",
        };
        warn!(
            redis.endpoint = self.endpoint,
            dependency = self.dependency.label(),
            error.kind = kind.label(),
            error = %error,
            "{advice}"
        );
    }

    /// Returns once the link is gone.
    async fn watch(&self, mut connection: MultiplexedConnection, link: u64) -> RedisError {
        let gone = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        loop {
            tokio::select! {
                () = self.shared.broke.notified() => {
                    if self.shared.broken.load(Ordering::Acquire) >= link {
                        return gone();
                    }
                }
                () = sleep(PROBE_EVERY) => {
                    if self.shared.answers.swap(0, Ordering::Relaxed) > 0 {
                        continue;
                    }
                    let answer: RedisResult<redis::Value> =
                        redis::cmd("PING").query_async(&mut connection).await;
                    match answer {
                        Err(error) if error.is_unrecoverable_error() => return error,
                        // A server that is busy or stopped is asked again on the same link.
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

pub(super) async fn connect(
    client: &Client,
    answer_limit: Option<Duration>,
) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_LIMIT))
        .set_response_timeout(answer_limit)
        .set_pipeline_buffer_size(PIPELINE);
    let attempt = client.get_multiplexed_async_connection_with_config(&config);
    let in_time = timeout(CONNECT_LIMIT + ANSWER_LIMIT, attempt).await;
    in_time.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

/// Returns the word for what redis-rs says.
pub(super) fn kind_of(error: &RedisError) -> ErrorKind {
    use redis::ErrorKind as Redis;
    match (error.kind(), error.code()) {
        (Redis::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => ErrorKind::Auth,
        (Redis::Server(ServerErrorKind::NoPerm), _) => ErrorKind::Permission,
        _ if error.is_timeout() => ErrorKind::Timeout,
        (Redis::Io, _) => ErrorKind::Io,
        (Redis::Parse | Redis::UnexpectedReturnType, _) => ErrorKind::Protocol,
        _ => ErrorKind::Other,
    }
}

/// redis-rs' error as ours.
pub(super) fn store_error(dependency: Dependency, error: RedisError) -> StoreError {
    StoreError::new(dependency, kind_of(&error), error)
}
