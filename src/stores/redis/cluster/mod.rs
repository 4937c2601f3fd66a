//! A Redis Cluster: a [`RedisStore`] for each master, and the map of slots that tells which one a key belongs to.
//!
//! It replaces the async cluster client of the crate `redis`: that one holds back all commands while it learns the slots again,
//! so that a shard that is down delays the others; it sends a pipeline to one node, and it has no links whose loss and
//! health can be observed one by one.
//!
//! The map comes from `CLUSTER SHARDS`. It is read again when a node redirects, when a link is lost and every minute, and more
//! often while a shard has no link.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use redis::{RedisError, RedisResult, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Dependency, ErrorKind, StoreError};
use crate::tasks::{self, Task};

use super::RedisStore;
use crate::stores::backoff::Backoff;
use crate::stores::misfit::UPGRADE_EACH;
use crate::stores::redis_link::{ANSWER_LIMIT, LinkState, kind_of};
use crate::stores::redis_master::ServerRoute;
use crate::stores::redis_url::RedisUrl;
use crate::stores::standing::{LinkStanding, LinkWords};

use topology::{NodeAddress, Shard, Topology, owners};

pub use slot::slot_of;

mod commands;
mod servers;
mod slot;
mod topology;

/// Time between two reads of the map while every shard has its link.
const READ_EVERY: Duration = Duration::from_secs(60);
/// The shortest time between two reads. A slot that moves redirects many commands at once.
const READ_PAUSE: Duration = Duration::from_millis(25);
/// The longest time between a redirection and the next read. Reads that bring no change double the pause up to it.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// A master that has not answered for so long may have been replaced, although its link stands. It is asked every second.
const SILENT: Duration = Duration::from_secs(3);
/// The most masters that are asked for the map in one read. The answer of most of them counts: while a failover or a move of
/// slots spreads, one may still give the old map.
const ASKED: usize = 5;

/// The log lines of a cluster that cannot be read.
const WORDS: LinkWords = LinkWords {
    refused: "The Redis Cluster refuses the user or password; correct the URL's credentials",
    lost: "The map of the Redis Cluster cannot be read; trying again until a node answers",
};

/// A Redis Cluster, reached as one user.
pub(super) struct Cluster {
    shared: Arc<ClusterShared>,
    keeper: OnceLock<Task>,
}

struct ClusterShared {
    url: RedisUrl,
    dependency: Dependency,
    /// Nodes may be replicas: the cluster is only looked at.
    any_role: bool,
    map: watch::Sender<Arc<ClusterMap>>,
    /// Counts the links to nodes, and the masters that have left the map.
    links: watch::Sender<u64>,
    /// Asks for the map to be read.
    stale: Notify,
    /// Slots that nodes have redirected since the map was last read.
    hints: Mutex<Vec<(u16, NodeAddress)>>,
    made: Instant,
}

/// A shard and the store of its master.
#[derive(Clone)]
pub struct ShardNode {
    shard: Shard,
    /// Commands to its master.
    pub store: Arc<RedisStore>,
}

impl ShardNode {
    /// Returns true if it serves a slot.
    pub fn has_slots(&self) -> bool {
        !self.shard.slots.is_empty()
    }

    fn answers(&self) -> bool {
        self.store.link_number().is_some() && self.store.silent_for() < SILENT
    }

    fn is_at(&self, (host, port): &NodeAddress) -> bool {
        self.shard.master.1 == *port && self.shard.master.0.eq_ignore_ascii_case(host)
    }
}

/// The shards of a cluster and their slots.
pub struct ClusterMap {
    /// In the order of the masters' addresses.
    pub shards: Vec<ShardNode>,
    owners: Box<[Option<u16>]>,
    /// The reason why the map could not be read, if there is none.
    failure: Option<MapFailure>,
}

/// The state without a map.
#[derive(Clone)]
struct MapFailure {
    /// The answer to each command meanwhile.
    error: RedisError,
    since: Instant,
}

impl ClusterMap {
    fn empty(failure: MapFailure) -> Self {
        Self {
            shards: Vec::new(),
            owners: owners(std::iter::empty()),
            failure: Some(failure),
        }
    }

    /// Returns the reason why there is no shard, if that is known.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.failure.as_ref().map(|failure| kind_of(&failure.error))
    }

    /// Returns the shard that serves a slot.
    pub fn owner(&self, slot: u16) -> Option<&ShardNode> {
        let index = self.owners.get(usize::from(slot)).copied().flatten()?;
        self.shards.get(usize::from(index))
    }

    /// Returns a number whose slot, as a hash tag, the shard has. With three shards of one size, it is found at the third attempt
    /// on average.
    pub fn number_in(&self, node: &ShardNode) -> u32 {
        let is_here = |number: &u32| {
            let owner = self.owner(slot_of(number.to_string().as_bytes()));
            owner.is_some_and(|owner| Arc::ptr_eq(&owner.store, &node.store))
        };
        // Each slot has a number far below.
        (0..1 << 20).find(is_here).unwrap_or_default()
    }

    fn at(&self, address: &NodeAddress) -> Option<&ShardNode> {
        self.shards.iter().find(|node| node.is_at(address))
    }

    fn is_whole(&self) -> bool {
        let mut serving = self.shards.iter().filter(|node| node.has_slots());
        self.owners.iter().all(Option::is_some) && serving.all(ShardNode::answers)
    }
}

impl Cluster {
    pub(super) fn new(url: &RedisUrl, dependency: Dependency, any_role: bool) -> Self {
        let failure = MapFailure {
            error: other("not connected to the cluster yet"),
            since: Instant::now(),
        };
        Self {
            shared: Arc::new(ClusterShared {
                url: url.clone(),
                dependency,
                any_role,
                map: watch::Sender::new(Arc::new(ClusterMap::empty(failure))),
                links: watch::Sender::new(0),
                stale: Notify::new(),
                hints: Mutex::default(),
                made: Instant::now(),
            }),
            keeper: OnceLock::new(),
        }
    }

    pub(super) fn keep_connected(&self) {
        self.keeper.get_or_init(|| {
            let shared = self.shared.clone();
            tasks::lasting("the map of a Redis Cluster", keep(shared))
        });
    }

    /// Returns the present map, which has no shards if none could be read. It waits for the first one, but no longer than for
    /// an answer.
    pub(super) async fn map(&self) -> Arc<ClusterMap> {
        self.keep_connected();
        let mut map = self.shared.map.subscribe();
        let given_up = |map: &ClusterMap| {
            { map.failure.as_ref() }.is_some_and(|failure| failure.since.elapsed() > ANSWER_LIMIT)
        };
        let known = map.wait_for(|map| !map.shards.is_empty() || given_up(map));
        drop(timeout(ANSWER_LIMIT, known).await);
        self.shared.map.borrow().clone()
    }

    /// Returns a receiver of the map.
    pub(super) fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.keep_connected();
        self.shared.map.subscribe()
    }

    /// Asks for the map to be read again.
    pub(super) fn doubt(&self) {
        self.shared.stale.notify_one();
    }

    /// Returns the number of links to nodes so far; `None` while there is no map.
    pub(super) fn link_number(&self) -> Option<u64> {
        let known = !self.shared.map.borrow().shards.is_empty();
        known.then(|| *self.shared.links.borrow())
    }

    /// Waits for a link after the one numbered `seen`; returns its number.
    pub(super) async fn link_after(&self, seen: u64) -> u64 {
        self.keep_connected();
        let mut links = self.shared.links.subscribe();
        let newer = links.wait_for(|link| *link > seen).await;
        newer.map_or(seen, |link| *link)
    }

    /// Returns the longest time for which a shard has not answered.
    pub(super) fn silent_for(&self) -> Duration {
        let map = self.shared.map.borrow().clone();
        let serving = map.shards.iter().filter(|node| node.has_slots());
        let silent = serving.map(|node| node.store.silent_for()).max();
        silent.unwrap_or_else(|| self.shared.made.elapsed())
    }
}

/// Keeps the map. Never returns.
async fn keep(shared: Arc<ClusterShared>) -> Infallible {
    let endpoint = shared.url.endpoint();
    let mut standing = LinkStanding::new(shared.dependency, &endpoint, WORDS);
    let mut backoff = Backoff::default();
    let (mut is_up, mut seen) = (false, Vec::new());
    let mut brake = READ_PAUSE;
    loop {
        match shared.read().await {
            Ok(topology) => {
                if !std::mem::replace(&mut is_up, true) {
                    standing.up();
                }
                brake = match shared.take(topology) {
                    true => READ_PAUSE,
                    false => LONGEST_PAUSE.min(2 * brake),
                };
            }
            Err(error) => {
                is_up = false;
                standing.down(kind_of(&error), &error);
                shared.fail(&error);
            }
        }
        let read_at = Instant::now();
        let map = shared.map.borrow().clone();
        let mut states: Vec<_> = { map.shards.iter() }
            .map(|node| node.store.link_changes())
            .collect();
        shared.count_links(&map, &mut seen);
        let pause = match is_up && map.is_whole() {
            true => {
                backoff.reset();
                READ_EVERY
            }
            false => backoff.pause(),
        };
        // A link that comes back needs no new map, one that is lost does.
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = shared.stale.notified() => break,
                () = sleep_until(until) => break,
                () = any_change(&mut states) => {
                    shared.count_links(&map, &mut seen);
                    if map.shards.iter().any(|node| node.store.link_number().is_none()) {
                        break;
                    }
                }
            }
        }
        // The first doubt after a quiet time is looked into at once.
        sleep_until(read_at + brake).await;
    }
}

/// Waits until the link to a node is made or lost.
async fn any_change(states: &mut [watch::Receiver<LinkState>]) {
    if states.is_empty() {
        return std::future::pending().await;
    }
    let changes = states.iter_mut().map(|state| Box::pin(state.changed()));
    drop(select_all(changes).await);
}

impl ClusterShared {
    /// Reads the map from the masters, or from any node that answers.
    async fn read(&self) -> RedisResult<Topology> {
        let map = self.map.borrow().clone();
        // A silent master would hold up the others for the whole time of an answer.
        let linked = map.shards.iter().filter(|node| node.answers());
        let asked = linked.take(ASKED).map(|node| self.ask_master(node));
        let mut votes: Vec<(Topology, usize)> = Vec::new();
        for topology in join_all(asked).await.into_iter().flatten() {
            let is_alike = |known: &Topology| known.serves_as(topology.shards.iter());
            match votes.iter_mut().find(|(known, _)| is_alike(known)) {
                Some((_, count)) => *count += 1,
                None => votes.push((topology, 1)),
            }
        }
        let is_present =
            |topology: &Topology| topology.serves_as(map.shards.iter().map(|node| &node.shard));
        // Between two answers the present map stays, until another node has learned of the change.
        let best = votes
            .into_iter()
            .max_by_key(|(topology, count)| (*count, is_present(topology)));
        match best {
            Some((topology, _)) => Ok(topology),
            None => self.ask_anyone(&map).await,
        }
    }

    async fn ask_master(&self, node: &ShardNode) -> Option<Topology> {
        let answer: Value = { &node.store }
            .query_here("cluster", &shards_command())
            .await
            .ok()?;
        Topology::read(&answer, &node.shard.master.0, self.url.tls())
    }

    /// Asks every node that was ever named, and the seeds; returns the first answer.
    async fn ask_anyone(&self, map: &ClusterMap) -> RedisResult<Topology> {
        let mut addresses: Vec<NodeAddress> = self.url.seeds().unwrap_or_default().to_vec();
        for node in &map.shards {
            addresses.push(node.shard.master.clone());
            addresses.extend(node.shard.replicas.iter().cloned());
        }
        addresses.sort_unstable();
        addresses.dedup();
        let mut asked: FuturesUnordered<_> = { addresses.iter() }
            .map(|address| self.ask_node(address))
            .collect();
        let mut failure = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(topology) => return Ok(topology),
                // A node that refuses says more than one that is down.
                Err(error) if failure.is_none() || !error.is_io_error() => failure = Some(error),
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(|| other("the URL names no node")))
    }

    async fn ask_node(&self, (host, port): &NodeAddress) -> RedisResult<Topology> {
        let ask = async {
            let client = ServerRoute::new(&self.url.at(host, *port))?
                .client()
                .await?;
            let mut link = client.get_multiplexed_async_connection().await?;
            shards_command().query_async::<Value>(&mut link).await
        };
        let answer = timeout(2 * ANSWER_LIMIT, ask).await;
        let answer = answer.unwrap_or_else(|_| Err(other("no answer in time")));
        let answer = answer.map_err(explained)?;
        Topology::read(&answer, host, self.url.tls())
            .ok_or_else(|| other("the answer to CLUSTER SHARDS names no master with slots"))
    }

    /// Takes a map, and returns true if it is another one. Nodes that were known keep their links.
    fn take(&self, topology: Topology) -> bool {
        let before = self.map.borrow().clone();
        self.hints.lock().clear();
        let shards = before.shards.iter().map(|node| &node.shard);
        if before.failure.is_none() && shards.eq(&topology.shards) {
            return false;
        }
        let mut shards = Vec::with_capacity(topology.shards.len());
        for shard in topology.shards {
            let store = match before.at(&shard.master) {
                Some(known) => Ok(known.store.clone()),
                None => self.store_at(&shard.master),
            };
            match store {
                Ok(store) => shards.push(ShardNode { shard, store }),
                // The same settings made the link that brought the map.
                Err(error) => {
                    tracing::error!(%error, "No link to a node of the cluster can be made")
                }
            }
        }
        let stays = |node: &ShardNode| {
            shards
                .iter()
                .any(|new| Arc::ptr_eq(&new.store, &node.store))
        };
        let mut before = before.shards.iter();
        let is_lost = before.any(|node| node.has_slots() && !stays(node));
        tracing::info!(
            redis.endpoint = self.url.endpoint(),
            count = shards.len(),
            "Read the map of a Redis Cluster"
        );
        self.map.send_replace(Arc::new(ClusterMap {
            owners: owners(shards.iter().map(|node| &node.shard)),
            shards,
            failure: None,
        }));
        // Its slots are served by another node now, without what only it had, though that node's link may be as before.
        if is_lost {
            self.links.send_modify(|links| *links += 1);
        }
        true
    }

    fn store_at(&self, (host, port): &NodeAddress) -> Result<Arc<RedisStore>, StoreError> {
        RedisStore::of_node(&self.url.at(host, *port), self.dependency, self.any_role)
    }

    /// Notes that the map could not be read. The last one stays in use.
    fn fail(&self, error: &RedisError) {
        self.map.send_if_modified(|map| {
            let Some(before) = &map.failure else {
                return false;
            };
            let failure = MapFailure {
                error: error.clone(),
                since: before.since,
            };
            *map = Arc::new(ClusterMap::empty(failure));
            true
        });
    }

    /// Counts the links that were made since the last call.
    fn count_links(&self, map: &ClusterMap, seen: &mut Vec<(String, u64)>) {
        let now: Vec<(String, u64)> = { map.shards.iter() }
            .filter_map(|node| Some((node.store.endpoint().to_owned(), node.store.link_number()?)))
            .collect();
        if now.iter().any(|link| !seen.contains(link)) {
            self.links.send_modify(|links| *links += 1);
        }
        // A lost link stays known, so that only a newer one counts. A node that comes back to the map begins again.
        seen.retain(|(endpoint, _)| {
            let mut nodes = map.shards.iter();
            nodes.any(|node| node.store.endpoint() == endpoint)
        });
        for link in now {
            seen.retain(|(endpoint, _)| *endpoint != link.0);
            seen.push(link);
        }
    }
}

fn shards_command() -> redis::Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SHARDS");
    command
}

fn other(text: &str) -> RedisError {
    std::io::Error::other(text.to_owned()).into()
}

/// Returns the error with the action to take, if the server gave a reason why there is no map. Its kind is one that does not heal.
fn explained(error: RedisError) -> RedisError {
    let text = error.to_string().to_ascii_lowercase();
    let (kind, advice) = if text.contains("cluster support disabled") {
        let advice =
            "this server is no cluster: write redis:// or rediss:// instead of redis+cluster://";
        (redis::ErrorKind::UnexpectedReturnType, advice)
    } else if text.contains("unknown subcommand") || text.contains("unknown command") {
        (redis::ErrorKind::UnexpectedReturnType, UPGRADE_EACH)
    } else if kind_of(&error) == ErrorKind::Permission {
        let advice = "the user may not ask for the map: grant +cluster|shards";
        (
            redis::ErrorKind::Server(redis::ServerErrorKind::NoPerm),
            advice,
        )
    } else {
        return error;
    };
    (kind, "no map of the cluster", format!("{advice} ({error})")).into()
}
