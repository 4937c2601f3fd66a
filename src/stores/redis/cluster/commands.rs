//! Commands to a cluster: each goes to the master of its slot, those of one round in parallel. Redirections are followed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{ErrorKind, StoreError};

use super::slot::{CommandRoute, route_of};
use super::topology::NodeAddress;
use super::{ANSWER_LIMIT, Cluster, ClusterMap, other};
use crate::stores::key_read::{self, CallerReads, KeyValue};
use crate::stores::redis::RedisStore;
use crate::stores::redis_round::{CommandRound, RedisRound, ScriptLoad};

/// The time for which commands follow redirections. A slot that moves is served again within it.
const FOLLOW_LIMIT: Duration = ANSWER_LIMIT;
/// The pause before a command is sent again that no node takes at the moment.
const AGAIN: Duration = Duration::from_millis(30);

/// The answer of a node that does not serve a command.
enum Redirection {
    /// Another node has the slot.
    Moved(u16, NodeAddress),
    /// Another node has this key, while the slot moves there.
    Ask(NodeAddress),
    /// No node can serve it at the moment.
    Later,
}

impl Redirection {
    /// Reads an error that `asked` answered.
    fn of(error: &RedisError, asked: &RedisStore) -> Option<Self> {
        let redis::ErrorKind::Server(kind) = error.kind() else {
            return None;
        };
        let target = || {
            let (target, slot) = error.redirect_node()?;
            let (host, port) = target.rsplit_once(':')?;
            // A node that does not know its own address leaves out the host.
            let host = match host {
                "" | "?" => asked.url().address()?.0,
                host => host.trim_start_matches('[').trim_end_matches(']'),
            };
            Some((slot, (host.to_owned(), port.parse().ok()?)))
        };
        match kind {
            ServerErrorKind::Moved => {
                let (slot, address) = target()?;
                Some(Self::Moved(slot, address))
            }
            ServerErrorKind::Ask => Some(Self::Ask(target()?.1)),
            ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown => Some(Self::Later),
            _ => None,
        }
    }
}

/// A node and the positions of its commands in a round.
type NodeRound = (Arc<RedisStore>, Vec<usize>);

impl Cluster {
    /// Sends the commands of a round, and once more after a lost link if they may act `again`.
    pub(in crate::stores) async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        round: &impl RedisRound,
        again: bool,
    ) -> RedisResult<T> {
        let CommandRound {
            commands,
            is_one,
            script,
        } = round.commands();
        if commands.is_empty() {
            if let Some(script) = script {
                let map = self.map().await;
                let nodes = map.shards.iter().map(|node| node.store.clone());
                load(operation, script, nodes.collect()).await?;
            }
            return Ok(T::from_redis_value(Value::Nil)?);
        }
        let mut answers = self.send_each(operation, &commands, again).await;
        let unknown = redis::ErrorKind::Server(ServerErrorKind::NoScript);
        let is_unknown = |answer: &RedisResult<Value>| {
            { answer.as_ref().err() }.is_some_and(|error| error.kind() == unknown)
        };
        if let Some(script) = script
            && answers.iter().any(is_unknown)
        {
            // On every node, since a slot may be moving.
            let map = self.map().await;
            let nodes = map.shards.iter().map(|node| node.store.clone());
            load(operation, script, nodes.collect()).await?;
            answers = self.send_each(operation, &commands, again).await;
        }
        let mut answers = answers.into_iter().collect::<RedisResult<Vec<Value>>>()?;
        let answer = match is_one {
            true => answers.pop().unwrap_or(Value::Nil),
            false => Value::Array(answers),
        };
        Ok(T::from_redis_value(answer)?)
    }

    /// Sends commands, each to the node of its slot; returns the answer to each. Those of one node go in one round, in order.
    pub(in crate::stores) async fn send_each(
        &self,
        operation: &'static str,
        commands: &[Cmd],
        again: bool,
    ) -> Vec<RedisResult<Value>> {
        let mut answers: Vec<RedisResult<Value>> = Vec::new();
        answers.resize_with(commands.len(), || Err(other("no answer from a node")));
        let mut map = self.map().await;
        let until = Instant::now() + FOLLOW_LIMIT;
        let mut repeats = again;
        let mut left: Vec<usize> = (0..commands.len()).collect();
        let is_along = |at: &usize| route_of(&commands[*at]) == CommandRoute::Along;
        let along: Vec<usize> = left.iter().copied().filter(is_along).collect();
        loop {
            let rounds = self.rounds(&map, commands, &left, &mut answers);
            let sends = rounds.iter().map(|(node, positions)| async move {
                let mut pipe = Pipeline::with_capacity(positions.len());
                for at in positions {
                    pipe.add_command(commands[*at].clone());
                }
                node.answers(operation, &mut pipe).await
            });
            let sent = join_all(sends).await;
            let mut lost = Vec::new();
            left.clear();
            for ((node, positions), sent) in rounds.iter().zip(sent) {
                match sent {
                    Ok(sent) => {
                        for (at, answer) in positions.iter().zip(sent) {
                            let before = along.iter().filter(|other| *other < at);
                            let before = before.map(|other| &commands[*other]);
                            let to_send = before.chain([&commands[*at]]);
                            let answer = self.asked(operation, to_send, node, answer).await;
                            if self.is_redirected(&answer, node) {
                                left.push(*at);
                            }
                            answers[*at] = answer;
                        }
                    }
                    Err((error, is_lost)) => {
                        self.doubt();
                        let error = redis_error(named(error, node));
                        for at in positions {
                            answers[*at] = Err(error.clone());
                        }
                        if is_lost {
                            lost.extend(positions);
                        }
                    }
                }
            }
            if std::mem::take(&mut repeats) {
                left.append(&mut lost);
            }
            if left.is_empty() || Instant::now() > until {
                return answers;
            }
            // Another node needs them as well.
            left.extend(&along);
            left.sort_unstable();
            left.dedup();
            map = self.after_redirection(&map).await;
        }
    }

    /// Reads the keys of callers, with a result for each read.
    pub(in crate::stores) async fn read(
        &self,
        callers: &[CallerReads],
    ) -> Vec<RedisResult<KeyValue>> {
        // Two keys may lie on two nodes, so each is read by itself.
        let mut single = Vec::new();
        let mut counts = Vec::new();
        for read in callers.iter().flat_map(|reads| reads.iter()) {
            let reads = read.each_key().map(|read| Arc::new(vec![read]));
            let before = single.len();
            single.extend(reads);
            counts.push(single.len() - before);
        }
        let commands: Vec<Cmd> = key_read::commands(&single).cmd_iter().cloned().collect();
        let answers = self.send_each("mget", &commands, true).await;
        let mut values = key_read::values(&single, answers).into_iter();
        let joined = counts.into_iter().map(|count| {
            // Of several keys, the first that is there decides, else one that could not be read.
            let of_keys: Vec<_> = values.by_ref().take(count).collect();
            let is_there = |value: &RedisResult<KeyValue>| matches!(value, Ok(Ok(Some(_))));
            let decides = |value: &RedisResult<KeyValue>| !matches!(value, Ok(Ok(None)));
            let chosen = { of_keys.iter() }
                .position(is_there)
                .or_else(|| of_keys.iter().position(decides));
            let chosen = of_keys.into_iter().nth(chosen.unwrap_or(0));
            chosen.unwrap_or_else(|| Err(other("a read without a key")))
        });
        joined.collect()
    }

    /// Sends a PING to every shard; returns the error of the first that does not answer.
    pub(in crate::stores) async fn ping(&self) -> Result<(), StoreError> {
        let map = self.map().await;
        if map.shards.is_empty() {
            return Err(self.store_error(self.no_node(&map)));
        }
        let serving = map.shards.iter().filter(|node| node.has_slots());
        let ping = redis::cmd("PING");
        let pings = serving.map(async |node| {
            let answer = node.store.query_here::<Value>("ping", &ping).await;
            answer.map_err(|error| named(error, &node.store))
        });
        let answers = join_all(pings).await;
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Sends a write that `replicas` of its master acknowledge.
    pub(in crate::stores) async fn write_acknowledged(
        &self,
        operation: &'static str,
        command: &Cmd,
        replicas: u32,
    ) -> Result<(), StoreError> {
        let until = Instant::now() + FOLLOW_LIMIT;
        let mut map = self.map().await;
        let mut asked_at = None;
        loop {
            let node = match (asked_at.take(), route_of(command)) {
                (Some(node), _) => Some((node, true)),
                (None, CommandRoute::Slot(slot)) => {
                    self.node_of(&map, slot).map(|node| (node, false))
                }
                (None, _) => None,
            };
            let Some((node, asking)) = node else {
                return Err(self.store_error(self.no_node(&map)));
            };
            let written = node
                .acknowledged(operation, command, replicas, asking)
                .await;
            let Err(error) = &written else { return written };
            let redirection = error.source.downcast_ref::<RedisError>();
            let redirection = redirection.and_then(|error| Redirection::of(error, &node));
            match redirection {
                None => return written.map_err(|error| named(error, &node)),
                Some(_) if Instant::now() > until => return written,
                Some(Redirection::Ask(target)) => asked_at = self.node_at(&target).await,
                Some(Redirection::Moved(slot, target)) => {
                    self.note(slot, target);
                    map = self.after_redirection(&map).await;
                }
                Some(Redirection::Later) => map = self.after_redirection(&map).await,
            }
        }
    }

    pub(in crate::stores) fn store_error(&self, error: RedisError) -> StoreError {
        crate::stores::redis_link::store_error(self.shared.dependency, error)
    }

    /// Sorts commands by their nodes. Those without a node get an error as their answer.
    fn rounds(
        &self,
        map: &ClusterMap,
        commands: &[Cmd],
        left: &[usize],
        answers: &mut [RedisResult<Value>],
    ) -> Vec<NodeRound> {
        let mut rounds: Vec<NodeRound> = Vec::new();
        let enter =
            |rounds: &mut Vec<NodeRound>, node: &Arc<RedisStore>, at| match { rounds.iter_mut() }
                .find(|(known, _)| Arc::ptr_eq(known, node))
            {
                Some((_, positions)) => positions.push(at),
                None => rounds.push((node.clone(), vec![at])),
            };
        let mut along = Vec::new();
        for at in left {
            let node = match route_of(&commands[*at]) {
                CommandRoute::Slot(slot) => self.node_of(map, slot),
                CommandRoute::Anywhere => {
                    let linked = |store: &&Arc<RedisStore>| store.link_number().is_some();
                    let mut stores = map.shards.iter().map(|node| &node.store);
                    stores
                        .clone()
                        .find(linked)
                        .or_else(|| stores.next())
                        .cloned()
                }
                CommandRoute::Along => {
                    along.push(*at);
                    continue;
                }
            };
            match node {
                Some(node) => enter(&mut rounds, &node, *at),
                None => answers[*at] = Err(self.no_node(map)),
            }
        }
        if rounds.is_empty() && !along.is_empty() {
            rounds = { map.shards.iter() }
                .map(|node| (node.store.clone(), Vec::new()))
                .collect();
        }
        for (_, positions) in &mut rounds {
            positions.extend(&along);
            positions.sort_unstable();
        }
        rounds
    }

    fn node_of(&self, map: &ClusterMap, slot: u16) -> Option<Arc<RedisStore>> {
        let hints = self.shared.hints.lock();
        let hint = hints.iter().rev().find(|(known, _)| *known == slot);
        let hinted = hint.and_then(|(_, address)| map.at(address));
        let node = hinted.or_else(|| map.owner(slot))?;
        Some(node.store.clone())
    }

    fn no_node(&self, map: &ClusterMap) -> RedisError {
        self.doubt();
        match &map.failure {
            Some(failure) => failure.error.clone(),
            None => other("no node of the cluster serves the slot of this key"),
        }
    }

    /// Follows an ASK: the key is on the node to which its slot is moving.
    /// `commands` end with the one that was answered.
    async fn asked<'c>(
        &self,
        operation: &'static str,
        commands: impl Iterator<Item = &'c Cmd>,
        node: &RedisStore,
        answer: RedisResult<Value>,
    ) -> RedisResult<Value> {
        let Err(error) = &answer else { return answer };
        let Some(Redirection::Ask(target)) = Redirection::of(error, node) else {
            return answer;
        };
        let Some(target) = self.node_at(&target).await else {
            return answer;
        };
        let mut pipe = Pipeline::new();
        for command in commands {
            pipe.cmd("ASKING").add_command(command.clone());
        }
        let answers = target.answers(operation, &mut pipe).await;
        let mut answers = answers.map_err(|(error, _)| redis_error(named(error, &target)))?;
        answers.pop().unwrap_or(answer)
    }

    /// Returns true if a command should be sent again, and notes the node that has its slot.
    fn is_redirected(&self, answer: &RedisResult<Value>, node: &RedisStore) -> bool {
        let Err(error) = answer else { return false };
        match Redirection::of(error, node) {
            None => false,
            Some(Redirection::Moved(slot, target)) => {
                self.note(slot, target);
                true
            }
            Some(Redirection::Ask(_) | Redirection::Later) => true,
        }
    }

    fn note(&self, slot: u16, target: NodeAddress) {
        let mut hints = self.shared.hints.lock();
        hints.retain(|(known, _)| *known != slot);
        hints.push((slot, target));
        drop(hints);
        self.doubt();
    }

    /// Returns the master at an address. It waits for the next map if the present one lacks it.
    async fn node_at(&self, address: &NodeAddress) -> Option<Arc<RedisStore>> {
        let mut maps = self.maps();
        if self.shared.map.borrow().at(address).is_none() {
            self.doubt();
            let known = maps.wait_for(|map| map.at(address).is_some());
            drop(timeout(ANSWER_LIMIT, known).await);
        }
        let map = self.shared.map.borrow();
        map.at(address).map(|node| node.store.clone())
    }

    /// Waits for another map, or for a moment; returns the present map.
    async fn after_redirection(&self, before: &Arc<ClusterMap>) -> Arc<ClusterMap> {
        let mut maps = self.maps();
        self.doubt();
        tokio::select! {
            _ = maps.wait_for(|map| !Arc::ptr_eq(map, before)) => {}
            () = sleep(AGAIN) => {}
        }
        self.shared.map.borrow().clone()
    }
}

/// Loads a script on these nodes. One that is away does not stop the others; it fails if none has loaded it.
async fn load(
    operation: &'static str,
    script: &redis::Script,
    nodes: Vec<Arc<RedisStore>>,
) -> RedisResult<()> {
    let load = ScriptLoad(script);
    let loads = nodes.iter().map(async |node| {
        let loaded = node.query_again_here::<Value>(operation, &load).await;
        loaded.map_err(|error| named(error, node))
    });
    let mut failure = None;
    for loaded in join_all(loads).await {
        match loaded {
            Ok(_) => return Ok(()),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or_else(|| other("the cluster has no node"), redis_error))
}

/// Returns the error of a node that does not answer with the node's name, which stands in no URL. An answer stays as it is.
fn named(error: StoreError, node: &RedisStore) -> StoreError {
    let source = error.source.downcast_ref::<RedisError>();
    if source.is_some_and(|error| matches!(error.kind(), redis::ErrorKind::Server(_))) {
        return error;
    }
    let text = format!("{}: {}", node.endpoint(), error.source);
    StoreError::new(error.dependency, error.kind, text)
}

/// Returns the error of a node as the answer to one of its commands.
fn redis_error(error: StoreError) -> RedisError {
    if let Some(error) = error.source.downcast_ref::<RedisError>() {
        return error.clone();
    }
    let text = error.source.to_string();
    let kind = match error.kind {
        ErrorKind::Io => return other(&text),
        ErrorKind::Timeout => {
            return std::io::Error::new(std::io::ErrorKind::TimedOut, text).into();
        }
        ErrorKind::Auth => redis::ErrorKind::AuthenticationFailed,
        ErrorKind::Permission => redis::ErrorKind::Server(ServerErrorKind::NoPerm),
        ErrorKind::Protocol => redis::ErrorKind::UnexpectedReturnType,
        ErrorKind::Other => redis::ErrorKind::Client,
    };
    (kind, "no link to a node", text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Dependency;
    use crate::stores::redis_link::kind_of;

    /// Most were an `io` error, which heals by itself.
    #[test]
    fn the_error_of_a_node_keeps_its_kind() {
        use ErrorKind::{Auth, Io, Other, Permission, Protocol, Timeout};
        for kind in [Io, Timeout, Auth, Permission, Protocol, Other] {
            let error = StoreError::new(Dependency::Redis, kind, "h:1: no");
            let error = redis_error(error);
            assert_eq!(kind_of(&error), kind, "{error}");
            assert!(error.to_string().contains("h:1: no"), "{error}");
        }
    }
}
