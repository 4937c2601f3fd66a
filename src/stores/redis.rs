//! Commands to one Redis server, or to a cluster of them: over one multiplexed link, and over a pool for commands that must
//! not share a link.
//!
//! A lost link is reconnected. After that, reads and idempotent writes are sent once more; a command that could act twice,
//! such as a publish, never is.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use deadpool_redis::Pool;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, Value};
use rustls::ClientConfig;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::{Dependency, ErrorKind, StoreError};
use crate::metrics::{self, OperationTimes};
use crate::tasks::{self, Task};

use super::key_read::{self, CallerReads, KeyRead, KeyValue};
use super::redis_keys::NEVER_WRITTEN;
use super::redis_link::{LinkKeeper, LinkShared, LinkState, kind_of, store_error};
use super::redis_master::ServerRoute;
use super::redis_pool::LinkPool;
use super::redis_reads::Reads;
use super::redis_role::{IS_REPLICA, is_demotion};
use super::redis_round::RedisRound;
use super::redis_stream::Dialler;
use super::server_identity::ServerIdentity;

pub use super::redis_url::{RedisUrl, RedisUrlError};
use cluster::Cluster;

mod acknowledged;
mod asking;
pub mod cluster;
mod identity;

/// The largest number of keys in a read that is gathered with others; a handshake needs no more.
const GATHERED: usize = 8;

/// Returns the kind of a failure of one command in a pipeline.
pub fn error_kind(error: &RedisError) -> ErrorKind {
    kind_of(error)
}

/// Commands to one Redis server, or to a cluster, as one user.
pub struct RedisStore {
    url: RedisUrl,
    endpoint: String,
    dependency: Dependency,
    route: ServerRoute,
    /// The nodes, if the URL names a cluster: this store has no link of its own then.
    cluster: Option<Cluster>,
    /// It is a node of a cluster, which may leave it.
    is_node: bool,
    /// The link may lead to a replica.
    any_role: bool,
    shared: Arc<LinkShared>,
    keeper: OnceLock<Task>,
    reads: Reads,
    times: OperationTimes,
    /// The server's identity, with the number of the link on which it was asked.
    identity: Mutex<Option<(u64, Arc<ServerIdentity>)>>,
    pool: LinkPool,
    dialler: Arc<Dialler>,
}

impl RedisStore {
    /// Builds a store that connects in the background: at once inside a runtime, otherwise with the first command. Its link
    /// leads to a master or is down.
    ///
    /// # Errors
    /// [`StoreError`] if TLS is asked for and cannot be set up. An unreachable server is not an error here.
    pub fn new(url: &RedisUrl, dependency: Dependency) -> Result<Arc<Self>, StoreError> {
        Self::with_role(url, dependency, false).map(Arc::new)
    }

    /// Builds a store to look at a server, which may be a replica.
    ///
    /// # Errors
    /// As [`RedisStore::new`].
    pub fn to_inspect(url: &RedisUrl, dependency: Dependency) -> Result<Arc<Self>, StoreError> {
        Self::with_role(url, dependency, true).map(Arc::new)
    }

    /// Builds a store of a cluster's node, which ends with the node.
    fn of_node(
        url: &RedisUrl,
        dependency: Dependency,
        any_role: bool,
    ) -> Result<Arc<Self>, StoreError> {
        let mut store = Self::with_role(url, dependency, any_role)?;
        store.is_node = true;
        Ok(Arc::new(store))
    }

    fn with_role(
        url: &RedisUrl,
        dependency: Dependency,
        any_role: bool,
    ) -> Result<Self, StoreError> {
        let route = ServerRoute::new(url).map_err(|error| store_error(dependency, error))?;
        let store = Self {
            endpoint: url.endpoint(),
            url: url.clone(),
            dependency,
            route,
            cluster: { url.is_cluster() }.then(|| Cluster::new(url, dependency, any_role)),
            is_node: false,
            any_role,
            shared: Arc::new(LinkShared::new()),
            keeper: OnceLock::new(),
            reads: Reads::default(),
            times: OperationTimes::new(dependency),
            pool: LinkPool::default(),
            identity: Mutex::new(None),
            dialler: Arc::new(Dialler::new(url, dependency)),
        };
        if Handle::try_current().is_ok() {
            store.keep_connected();
        }
        Ok(store)
    }

    /// Returns `host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the dependency that the store stands for, in metrics and errors.
    pub fn dependency(&self) -> Dependency {
        self.dependency
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// Returns the settings of a TLS link to the server.
    ///
    /// # Errors
    /// If there is no authority to trust.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.dialler.tls()
    }

    /// Returns the number of the link, which counts from 1; `None` while there is none. A cluster counts the links to all nodes,
    /// and the masters that have left its map.
    pub fn link_number(&self) -> Option<u64> {
        if let Some(cluster) = &self.cluster {
            return cluster.link_number();
        }
        match &*self.shared.state.borrow() {
            LinkState::Up(_, link) => Some(*link),
            LinkState::Down(_) => None,
        }
    }

    /// Returns a receiver that changes when the server turns out to be a replica, so that its other links end as well.
    pub fn demotions(&self) -> watch::Receiver<u64> {
        self.shared.demotions.subscribe()
    }

    /// Returns the time for which the URL has led to nothing but a replica; `None` while there is a link, or if the link is
    /// down for another reason.
    pub fn is_replica_for(&self) -> Option<Duration> {
        match &*self.shared.state.borrow() {
            LinkState::Down(down) if &*down.text == IS_REPLICA => Some(down.since.elapsed()),
            _ => None,
        }
    }

    /// Returns the client, for connections of another kind.
    pub(super) async fn client(&self) -> RedisResult<Client> {
        self.route.client().await
    }

    /// Waits for a link made after the one numbered `seen`, and returns its number; links count from 1.
    pub async fn link_after(&self, seen: u64) -> u64 {
        if let Some(cluster) = &self.cluster {
            return cluster.link_after(seen).await;
        }
        self.keep_connected();
        let newer = |state: &LinkState| matches!(state, LinkState::Up(_, link) if *link > seen);
        let mut state = self.shared.state.subscribe();
        if state.wait_for(newer).await.is_err() {
            // This does not happen: the sender lives as long as this store.
            return seen;
        }
        match &*state.borrow() {
            LinkState::Up(_, link) => *link,
            // The link was lost again meanwhile. With `seen` unchanged, the caller's next call waits for a newer one.
            LinkState::Down(_) => seen,
        }
    }

    /// Returns the values of keys, read in one round, in order. Redis sends no more of a value than its form allows.
    ///
    /// Few keys are sent together with those that other callers ask for at the same moment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_each(
        &self,
        reads: impl Into<Vec<KeyRead>>,
    ) -> Result<Vec<KeyValue>, StoreError> {
        let reads = reads.into();
        // On a cluster callers are not gathered: those of a shard that is away would hold up the others.
        if reads.len() > GATHERED || self.is_cluster() {
            return self.get_apart(reads).await?.into_iter().collect();
        }
        if reads.is_empty() {
            return Ok(Vec::new());
        }
        self.reads.get(reads, |reads| self.get_all(reads)).await
    }

    /// Reads keys as [`RedisStore::get_each`] does, with a result for each: on a cluster one shard that is down leaves the keys of
    /// the others.
    ///
    /// # Errors
    /// [`StoreError`] if no key could be read.
    pub async fn get_apart(
        &self,
        reads: Vec<KeyRead>,
    ) -> Result<Vec<Result<KeyValue, StoreError>>, StoreError> {
        let mut values = self.get_all(vec![Arc::new(reads)]).await?;
        match values.iter().all(Result::is_err) {
            true => values
                .pop()
                .map_or(Ok(Vec::new()), |value| value.map(|_| Vec::new())),
            false => Ok(values),
        }
    }

    /// Reads for all callers in one round, with a result for each key.
    async fn get_all(
        &self,
        callers: Vec<CallerReads>,
    ) -> Result<Vec<Result<KeyValue, StoreError>>, StoreError> {
        if let Some(cluster) = &self.cluster {
            let values = cluster.read(&callers).await.into_iter();
            return Ok(values.map(|value| self.told(value)).collect());
        }
        let pipe = key_read::commands(&callers);
        let read = |mut link: MultiplexedConnection| {
            let pipe = &pipe;
            async move { pipe.query_async::<Vec<RedisResult<_>>>(&mut link).await }
        };
        let answers = self.ask_again("mget", read).await?;
        let values = key_read::values(&callers, answers).into_iter();
        Ok(values.map(|value| self.told(value)).collect())
    }

    /// Stores `value` for `ttl`, rounded up to milliseconds.
    ///
    /// # Errors
    /// [`StoreError`]: the value may or may not be stored then.
    pub async fn set_ex(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), StoreError> {
        self.query_again("set", &set_command(key, value, ttl)).await
    }

    /// Stores several values in one round: each with its key and its time to live.
    ///
    /// # Errors
    /// [`StoreError`]: any of the values may or may not be stored then.
    pub async fn set_each_ex(
        &self,
        values: &[(String, String, Duration)],
    ) -> Result<(), StoreError> {
        let mut pipe = Pipeline::with_capacity(values.len());
        for (key, value, ttl) in values {
            pipe.add_command(set_command(key, value.as_bytes(), *ttl));
        }
        let _answers: redis::Value = self.query_again("set", &pipe).await?;
        Ok(())
    }

    /// Publishes a message; returns the number of this server's subscribers that it reached.
    ///
    /// All publishes of a store use one link, so that messages of successive calls arrive in that order. A publish is never
    /// repeated: after an error the message may or may not have been sent.
    ///
    /// A replica takes a publish, too, and delivers it to its own subscribers alone. So a write without effect follows, which
    /// a replica refuses; it costs Redis less than the publish.
    ///
    /// On a cluster it is a sharded channel. A replica passes such a message on to its whole shard.
    ///
    /// # Errors
    /// [`StoreError`], also if the server is a replica.
    pub async fn publish(&self, channel: &[u8], payload: &[u8]) -> Result<u64, StoreError> {
        if self.cluster.is_some() {
            let mut publish = redis::cmd("SPUBLISH");
            publish.arg(channel).arg(payload);
            return self.query("publish", &publish).await;
        }
        let mut pipe = Pipeline::with_capacity(2);
        pipe.cmd("PUBLISH").arg(channel).arg(payload);
        pipe.del(NEVER_WRITTEN);
        let answers = self.query_each("publish", &mut pipe).await?;
        let published = answers.into_iter().next().unwrap_or(Ok(0));
        self.told(published)
    }

    /// Sends a short command, or several in one round, once. `operation` is a fixed word for the metric.
    ///
    /// # Errors
    /// [`StoreError`], also if one of several commands fails.
    pub async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &impl RedisRound,
    ) -> Result<T, StoreError> {
        match &self.cluster {
            Some(cluster) => self.told(cluster.query(operation, commands, false).await),
            None => self.query_here(operation, commands).await,
        }
    }

    /// Sends to this server as [`RedisStore::query`] does; it is no cluster.
    pub(super) async fn query_here<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &impl RedisRound,
    ) -> Result<T, StoreError> {
        let answer = self.ask(operation, |link| commands.send_over(link)).await;
        answer.map_err(|(error, _)| error)
    }

    /// Sends as [`RedisStore::query`] does, and once more after a lost link. For commands that may act twice.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn query_again<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &impl RedisRound,
    ) -> Result<T, StoreError> {
        match &self.cluster {
            Some(cluster) => self.told(cluster.query(operation, commands, true).await),
            None => self.query_again_here(operation, commands).await,
        }
    }

    /// Sends to this server as [`RedisStore::query_again`] does; it is no cluster.
    pub(super) async fn query_again_here<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &impl RedisRound,
    ) -> Result<T, StoreError> {
        let send = |link| commands.send_over(link);
        self.ask_again(operation, send).await
    }

    /// Returns the time since the server's last answer. It is asked every second, so that more than three seconds are an
    /// outage. For a cluster it is that of the shard that has been silent for longest.
    pub fn silent_for(&self) -> Duration {
        if let Some(cluster) = &self.cluster {
            return cluster.silent_for();
        }
        self.shared.silent_for()
    }

    /// Sends a PING; returns the time until its answer. Every shard of a cluster must answer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ping(&self) -> Result<Duration, StoreError> {
        let started = Instant::now();
        if let Some(cluster) = &self.cluster {
            let answers = cluster.ping().await;
            answers.map_err(|error| self.failed(error))?;
            return Ok(started.elapsed());
        }
        let _pong: Value = self.query_here("ping", &redis::cmd("PING")).await?;
        Ok(started.elapsed())
    }

    /// Sends short commands in one round, once, and returns the answer to each.
    ///
    /// # Errors
    /// [`StoreError`] if the server does not answer, or one of the commands was refused because it is a replica.
    pub async fn query_each<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &mut Pipeline,
    ) -> Result<Vec<RedisResult<T>>, StoreError> {
        let answers = match &self.cluster {
            Some(cluster) => {
                let commands: Vec<Cmd> = commands.cmd_iter().cloned().collect();
                cluster.send_each(operation, &commands, false).await
            }
            None => { self.answers(operation, commands).await }.map_err(|(error, _)| error)?,
        };
        let read = |answer: RedisResult<Value>| Ok(T::from_redis_value(answer?)?);
        Ok(answers.into_iter().map(read).collect())
    }

    /// Sends short commands to this server in one round, once, and returns the answer to each; or the error with true if the link
    /// was lost or led to a replica.
    pub(super) async fn answers(
        &self,
        operation: &'static str,
        commands: &mut Pipeline,
    ) -> Result<Vec<RedisResult<Value>>, (StoreError, bool)> {
        let commands = &*commands.ignore_errors();
        let explained = |answer: RedisResult<Value>| answer.map_err(|error| self.explained(error));
        let send = |mut link: MultiplexedConnection| async move {
            let answers: Vec<RedisResult<Value>> = commands.query_async(&mut link).await?;
            let refused = { answers.iter() }.filter_map(|answer| answer.as_ref().err());
            match { refused }.find(|error| is_demotion(error)) {
                Some(error) => Err(error.clone()),
                None => Ok(answers.into_iter().map(explained).collect()),
            }
        };
        self.ask(operation, send).await
    }

    /// Returns a pool for commands that block or need a connection of their own; their answers have no time limit. It is a new
    /// pool for each link, so that no connection outlives a failover.
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
        let link = self.link_number().unwrap_or_default();
        self.pool.of_link(link, &client).map_err(failed)
    }

    /// Counts the error of an answer that is one.
    fn told<T>(&self, answer: RedisResult<T>) -> Result<T, StoreError> {
        answer.map_err(|error| {
            let error = self.explained(error);
            self.failed(store_error(self.dependency, error))
        })
    }

    fn failed(&self, error: StoreError) -> StoreError {
        metrics::dependency_failed(&error);
        error
    }

    fn keep_connected(&self) {
        if let Some(cluster) = &self.cluster {
            return cluster.keep_connected();
        }
        self.keeper.get_or_init(|| {
            let keeper = LinkKeeper {
                route: self.route.clone(),
                dialler: self.dialler.clone(),
                any_role: self.any_role,
                endpoint: self.endpoint.clone(),
                dependency: self.dependency,
                shared: self.shared.clone(),
            };
            tasks::lasting("a link to Redis", keeper.run())
        });
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        if self.is_node {
            drop(self.keeper.take());
            metrics::dependency_gone(self.dependency, &self.endpoint);
        }
    }
}

/// Returns a `SET` with a time to live, which is rounded up to milliseconds.
fn set_command(key: &str, value: &[u8], ttl: Duration) -> Cmd {
    let ttl = ttl.as_nanos().div_ceil(1_000_000).max(1);
    let ttl = u64::try_from(ttl).unwrap_or(u64::MAX);
    let mut command = redis::cmd("SET");
    command.arg(key).arg(value).arg("PX").arg(ttl);
    command
}
