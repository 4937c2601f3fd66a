//! Commands to one Redis server: a multiplexed link for everybody, and a pool for what must not share one.
//!
//! The link makes itself anew when it is lost. Nothing is repeated that could act twice: reads and idempotent writes are
//! asked once more after a lost link, a publish never is.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use deadpool_redis::{Manager, Pool};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError, RedisResult,
};
use tokio::net::lookup_host;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::error::{Dependency, ErrorKind, StoreError};
use crate::metrics;

use super::redis_link::{
    ANSWER_LIMIT, LinkKeeper, LinkShared, LinkState, connect, kind_of, store_error,
};
use super::redis_master::{ServerRoute, address};
use super::redis_reads::Reads;

use super::server_identity::ServerIdentity;

pub use super::redis_reads::{KeyValue, WrongType};
pub use super::redis_url::{RedisUrl, RedisUrlError};

/// Keys of one question that are still few: those of a handshake.
const GATHERED: usize = 8;
/// Connections of the pool for blocking and exclusive commands.
const POOL_SIZE: usize = 4;

/// The word for a failure of one command among others.
pub fn error_kind(error: &RedisError) -> ErrorKind {
    kind_of(error)
}

/// Commands to one Redis server as one user.
pub struct RedisStore {
    url: RedisUrl,
    endpoint: String,
    dependency: Dependency,
    route: ServerRoute,
    shared: Arc<LinkShared>,
    keeper: OnceLock<AbortHandle>,
    reads: Reads,
    /// What the server was known by, with the number of the link that asked.
    identity: Mutex<Option<(u64, Arc<ServerIdentity>)>>,
    /// With the address that it leads to.
    pool: Mutex<Option<((String, u16), Pool)>>,
}

impl RedisStore {
    /// A store that connects in the background: at once inside a runtime, else with the first command.
    ///
    /// # Errors
    /// [`StoreError`] if TLS is asked for and cannot be set up. An unreachable server is no error here.
    pub fn new(url: &RedisUrl, dependency: Dependency) -> Result<Arc<Self>, StoreError> {
        let route = ServerRoute::new(url).map_err(|error| store_error(dependency, error))?;
        let store = Self {
            endpoint: url.endpoint(),
            url: url.clone(),
            dependency,
            route,
            shared: Arc::new(LinkShared::new()),
            keeper: OnceLock::new(),
            reads: Reads::default(),
            pool: Mutex::new(None),
            identity: Mutex::new(None),
        };
        if Handle::try_current().is_ok() {
            store.keep_connected();
        }
        Ok(Arc::new(store))
    }

    /// `host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the store was made for.
    pub fn dependency(&self) -> Dependency {
        self.dependency
    }

    /// Where it leads.
    pub fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// What tells the server from others; it is asked once for each link, and again where it did not answer.
    pub async fn identity(&self) -> Arc<ServerIdentity> {
        let link = match &*self.shared.state.borrow() {
            LinkState::Up(_, link) => Some(*link),
            LinkState::Down(_) => None,
        };
        if let Some((known, identity)) = &*self.identity.lock()
            && Some(*known) == link
        {
            return identity.clone();
        }
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let (info, address) = tokio::join!(self.query::<String>("info", &info), self.address());
        let is_final = match &info {
            Ok(_) => true,
            Err(error) => error.kind == ErrorKind::Permission,
        };
        let addresses = match address {
            Ok((host, port)) => {
                let found = timeout(ANSWER_LIMIT, lookup_host((host, port))).await;
                found.ok().and_then(Result::ok)
            }
            Err(_) => None,
        };
        let info = info.ok();
        let addresses = addresses.into_iter().flatten();
        let identity = ServerIdentity::new(&self.endpoint, info.as_deref(), addresses);
        let identity = Arc::new(identity);
        let link = link.filter(|_| is_final);
        *self.identity.lock() = link.map(|link| (link, identity.clone()));
        identity
    }

    /// For what needs a connection of another kind.
    pub(super) async fn client(&self) -> RedisResult<Client> {
        self.route.client().await
    }

    /// Waits for a link made after the one numbered `seen`, and returns its number; links count from 1.
    pub async fn link_after(&self, seen: u64) -> u64 {
        self.keep_connected();
        let newer = |state: &LinkState| matches!(state, LinkState::Up(_, link) if *link > seen);
        let mut state = self.shared.state.subscribe();
        if state.wait_for(newer).await.is_err() {
            // It ends with a link: the sender lives as long as this store.
            return seen;
        }
        match &*state.borrow() {
            LinkState::Up(_, link) => *link,
            // Lost again meanwhile: the next one is newer still.
            LinkState::Down(_) => seen,
        }
    }

    /// The values of `keys` in one round, in order; `None` where a key is absent.
    ///
    /// # Errors
    /// [`StoreError`], also where a key holds no string: what it means is not known then.
    pub async fn mget(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let values = self.get_each(keys).await?;
        let values: Result<Vec<_>, WrongType> = values.into_iter().collect();
        values.map_err(|error| StoreError::new(self.dependency, ErrorKind::Other, error))
    }

    /// Like [`RedisStore::mget`], but says for each key whether it holds something else than a string.
    ///
    /// A pipeline of GETs and not MGET, which answers nil for such a key. Few keys go with those that others ask for at
    /// the same moment ([`Reads`]).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_each(
        &self,
        keys: impl Into<Vec<String>>,
    ) -> Result<Vec<KeyValue>, StoreError> {
        let keys = keys.into();
        if keys.len() > GATHERED {
            let values = self.get_all(vec![Arc::new(keys)]).await?;
            return values.into_iter().collect();
        }
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.reads.get(keys, |keys| self.get_all(keys)).await
    }

    /// The values of `keys` in one round, each for itself.
    async fn get_all(
        &self,
        keys: Vec<Arc<Vec<String>>>,
    ) -> Result<Vec<Result<KeyValue, StoreError>>, StoreError> {
        let count = keys.iter().map(|keys| keys.len()).sum();
        let mut pipe = Pipeline::with_capacity(count);
        for key in keys.iter().flat_map(|keys| keys.iter()) {
            pipe.get(key);
        }
        drop(keys);
        pipe.ignore_errors();
        let read = |mut link: MultiplexedConnection| {
            let pipe = &pipe;
            async move { pipe.query_async::<Vec<RedisResult<_>>>(&mut link).await }
        };
        let answers = self.ask_again("mget", read).await?;
        let key_value = |answer: RedisResult<Option<Vec<u8>>>| match answer {
            Ok(value) => Ok(Ok(value)),
            Err(error) if error.code() == Some("WRONGTYPE") => Ok(Err(WrongType)),
            Err(error) => Err(self.failed(store_error(self.dependency, error))),
        };
        Ok(answers.into_iter().map(key_value).collect())
    }

    /// Stores `value` for `ttl`, rounded up to milliseconds.
    ///
    /// # Errors
    /// [`StoreError`]: the value is then not stored, or it is not known.
    pub async fn set_ex(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), StoreError> {
        self.query_again("set", &set_command(key, value, ttl)).await
    }

    /// The same for several values in one round: keys, values and how long each is kept.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known then which of them are stored.
    pub async fn set_each_ex(
        &self,
        values: &[(String, String, Duration)],
    ) -> Result<(), StoreError> {
        let mut pipe = Pipeline::with_capacity(values.len());
        for (key, value, ttl) in values {
            pipe.add_command(set_command(key, value.as_bytes(), *ttl));
        }
        self.pipeline_again("set", &pipe).await
    }

    /// Publishes; returns how many subscribers of this server it reached.
    ///
    /// All publishes of a store go over one link, so that calls made one after another arrive in that order. Never
    /// repeated: after an error the message may or may not have been sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn publish(&self, channel: &[u8], payload: &[u8]) -> Result<u64, StoreError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(payload);
        self.query("publish", &command).await
    }

    /// Any short command, sent once. `operation` is a fixed word for the metric.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let send =
            |mut link: MultiplexedConnection| async move { command.query_async(&mut link).await };
        self.ask(operation, send).await.map_err(|(error, _)| error)
    }

    /// As [`RedisStore::query`], asked once more after a lost link: only for what may happen twice.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn query_again<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let send =
            |mut link: MultiplexedConnection| async move { command.query_async(&mut link).await };
        self.ask_again(operation, send).await
    }

    /// Commands in one round, asked once more after a lost link; what they answer is of no interest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pipeline_again(
        &self,
        operation: &'static str,
        pipe: &redis::Pipeline,
    ) -> Result<(), StoreError> {
        let send = |mut link: MultiplexedConnection| async move {
            let _answers: redis::Value = pipe.query_async(&mut link).await?;
            Ok(())
        };
        self.ask_again(operation, send).await
    }

    /// A write that at least `replicas` of the server's replicas have acknowledged (`WAIT`) when this returns.
    ///
    /// On a connection of its own: WAIT speaks of the writes of its connection, and holds back what comes behind it.
    ///
    /// # Errors
    /// [`StoreError`]; also where fewer replicas acknowledge within a second: the write may then be lost by a failover.
    pub async fn write_acknowledged(
        &self,
        operation: &'static str,
        command: &Cmd,
        replicas: u32,
    ) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut pipe = redis::Pipeline::with_capacity(2);
        let limit = ANSWER_LIMIT.as_millis() as u64;
        pipe.add_command(command.clone()).ignore();
        pipe.cmd("WAIT").arg(replicas).arg(limit);
        let ask = async {
            let mut connection = self.pool()?.get().await.map_err(|error| {
                StoreError::new(self.dependency, ErrorKind::Io, error.to_string())
            })?;
            let answer = pipe.query_async::<(u32,)>(&mut connection).await;
            answer.map_err(|error| store_error(self.dependency, error))
        };
        let answer = timeout(2 * ANSWER_LIMIT, ask).await;
        let answer =
            answer.unwrap_or_else(|_| Err(StoreError::timeout(self.dependency, 2 * ANSWER_LIMIT)));
        let (acknowledged,) = answer.map_err(|error| self.failed(error))?;
        metrics::dependency_took(self.dependency, operation, started.elapsed());
        if acknowledged < replicas {
            let text = format!("{acknowledged} of {replicas} replicas acknowledged the write");
            return Err(self.failed(StoreError::new(self.dependency, ErrorKind::Other, text)));
        }
        Ok(())
    }

    /// For how long the server has answered nothing. It is asked every second, so that a silence of more than three is
    /// an outage.
    pub fn silent_for(&self) -> Duration {
        self.shared.silent_for()
    }

    /// How long a PING takes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ping(&self) -> Result<Duration, StoreError> {
        let started = Instant::now();
        let pong: redis::Value = self.query("ping", &redis::cmd("PING")).await?;
        drop(pong);
        Ok(started.elapsed())
    }

    /// Short commands in one round, sent once. `operation` is a fixed word for the metric.
    ///
    /// # Errors
    /// [`StoreError`]; also if one of the commands fails.
    pub async fn query_all<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> Result<T, StoreError> {
        let send =
            |mut link: MultiplexedConnection| async move { commands.query_async(&mut link).await };
        self.ask(operation, send).await.map_err(|(error, _)| error)
    }

    /// Where the server is right now: of the URL, or what Sentinels say.
    ///
    /// # Errors
    /// [`StoreError`] if no Sentinel knows, or what they name is no master.
    pub async fn address(&self) -> Result<(String, u16), StoreError> {
        if let Some((host, port)) = self.url.address() {
            return Ok((host.to_owned(), port));
        }
        let client = self.route.client().await;
        let client = client.map_err(|error| store_error(self.dependency, error))?;
        self.address_of(&client)
    }

    fn address_of(&self, client: &Client) -> Result<(String, u16), StoreError> {
        let found = address(client).map(|(host, port)| (host.to_owned(), port));
        let text = "the server has no address";
        found.ok_or_else(|| StoreError::new(self.dependency, ErrorKind::Other, text.to_owned()))
    }

    /// A connection for one task alone, whose commands may block: it has no answer limit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn own_connection(&self) -> Result<MultiplexedConnection, StoreError> {
        let attempt = async { connect(&self.route.client().await?, None).await };
        attempt
            .await
            .map_err(|error| self.failed(store_error(self.dependency, error)))
    }

    /// A pool for commands that block or need a connection of their own; these have no answer limit. After a failover it
    /// is another pool.
    ///
    /// # Errors
    /// [`StoreError`] if the pool cannot be set up, or no Sentinel has named the server yet.
    pub fn pool(&self) -> Result<Pool, StoreError> {
        let failed = |error: String| StoreError::new(self.dependency, ErrorKind::Other, error);
        let client = match &self.route {
            ServerRoute::Fixed(client) => (**client).clone(),
            ServerRoute::Sentinel(_) => {
                let known = self.shared.client.lock().clone();
                known.ok_or_else(|| failed("not connected yet".to_owned()))?
            }
        };
        let leads_to = self.address_of(&client)?;
        let mut pool = self.pool.lock();
        if let Some((address, pool)) = &*pool
            && *address == leads_to
        {
            return Ok(pool.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_LIMIT))
            .set_response_timeout(None);
        let manager = Manager::new_with_config(client.get_connection_info().clone(), config);
        let manager = manager.map_err(|error| failed(error.to_string()))?;
        let new = Pool::builder(manager).max_size(POOL_SIZE).build();
        let new = new.map_err(|error| failed(error.to_string()))?;
        *pool = Some((leads_to, new.clone()));
        Ok(new)
    }

    /// Asks, and once more if the link was found lost: only for what may happen twice.
    async fn ask_again<T, F: Future<Output = RedisResult<T>>>(
        &self,
        operation: &'static str,
        send: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, StoreError> {
        match self.ask(operation, &send).await {
            Err((_, true)) => self.ask(operation, &send).await.map_err(|(error, _)| error),
            Err((error, false)) => Err(error),
            Ok(answer) => Ok(answer),
        }
    }

    /// The answer, or the error and whether it lost the link.
    async fn ask<T, F: Future<Output = RedisResult<T>>>(
        &self,
        operation: &'static str,
        send: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, (StoreError, bool)> {
        let (connection, link) = self.connection().await.map_err(|error| (error, false))?;
        let started = Instant::now();
        let answer = send(connection).await;
        match answer {
            Ok(answer) => {
                self.shared.answered();
                metrics::dependency_took(self.dependency, operation, started.elapsed());
                Ok(answer)
            }
            Err(error) => {
                let lost = error.is_unrecoverable_error();
                // A master that became a replica: the next link leads to the new one.
                if lost || (self.route.moves() && error.code() == Some("READONLY")) {
                    self.shared.report_broken(link);
                }
                Err((self.failed(store_error(self.dependency, error)), lost))
            }
        }
    }

    /// The link, and its number. Waits for a lost one to come back, but not for one that has been gone for longer.
    async fn connection(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        self.keep_connected();
        if let LinkState::Up(connection, link) = &*self.shared.state.borrow() {
            return Ok((connection.clone(), *link));
        }
        let mut state = self.shared.state.subscribe();
        let back = state.wait_for(|state| match state {
            LinkState::Up(..) => true,
            LinkState::Down(down) => down.since.elapsed() > ANSWER_LIMIT,
        });
        let seen = match timeout(ANSWER_LIMIT, back).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) | Err(_) => self.shared.state.borrow().clone(),
        };
        match seen {
            LinkState::Up(connection, link) => Ok((connection, link)),
            LinkState::Down(down) => {
                let error = StoreError::new(self.dependency, down.kind, down.text.to_string());
                Err(self.failed(error))
            }
        }
    }

    fn failed(&self, error: StoreError) -> StoreError {
        metrics::dependency_failed(&error);
        error
    }

    fn keep_connected(&self) {
        self.keeper.get_or_init(|| {
            let keeper = LinkKeeper {
                route: self.route.clone(),
                endpoint: self.endpoint.clone(),
                dependency: self.dependency,
                shared: self.shared.clone(),
            };
            tokio::spawn(keeper.run()).abort_handle()
        });
    }
}

/// `SET` with a time to live, rounded up to milliseconds.
fn set_command(key: &str, value: &[u8], ttl: Duration) -> Cmd {
    let ttl = ttl.as_nanos().div_ceil(1_000_000).max(1);
    let ttl = u64::try_from(ttl).unwrap_or(u64::MAX);
    let mut command = redis::cmd("SET");
    command.arg(key).arg(value).arg("PX").arg(ttl);
    command
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.abort();
        }
    }
}
