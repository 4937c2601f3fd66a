//! Publishes many events at once: the events for one host go in few rounds, in their order.

use futures_util::future::join_all;
use redis::{Pipeline, RedisResult, Value};

use crate::error::StoreError;
use crate::event::Event;
use crate::ids::GroupName;
use crate::position::Position;
use crate::stores::redis::{RedisStore, error_kind};
use crate::stores::redis_keys::NEVER_WRITTEN;

use super::super::LayerError;
use super::super::recorded::{self, script};
use super::super::shards::shard_of;
use super::PubSubLayer;

/// Events in one round: many, so that the number of rounds does not matter; few enough that other commands on the link
/// do not wait for long.
const ROUND: usize = 128;

type Outcome = Result<Option<Position>, LayerError>;

/// An event on its way to one host.
struct BatchItem {
    /// Its place among all.
    index: usize,
    command: redis::Cmd,
    recorded: bool,
}

/// Publishes `events`; returns the outcome of each.
pub(super) async fn publish(layer: &PubSubLayer, events: &[(GroupName, Event)]) -> Vec<Outcome> {
    let sharded = layer.lines.iter().any(|line| line.store.is_cluster());
    let word = if sharded { "SPUBLISH" } else { "PUBLISH" };
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(events.len());
    let mut hosts: Vec<Vec<BatchItem>> = Vec::new();
    hosts.resize_with(layer.lines.len(), Vec::new);
    for (index, (group, event)) in events.iter().enumerate() {
        // It stands until the answer comes.
        outcomes.push(Ok(None));
        let payload = match layer.codec.encode(event) {
            Ok(payload) => payload,
            Err(error) => {
                outcomes[index] = Err(error.into());
                continue;
            }
        };
        let (channel, group) = layer.names(group);
        let command = match &group {
            Some(group) => group.recording(&channel, &payload, None).into_command(),
            None => {
                let mut publish = redis::cmd(word);
                publish.arg(&channel[..]).arg(&payload);
                publish
            }
        };
        hosts[shard_of(&channel, layer.lines.len())].push(BatchItem {
            index,
            command,
            recorded: group.is_some(),
        });
    }
    let sends = layer.lines.iter().zip(hosts);
    let sends = sends.map(|(line, items)| send(&line.store, items));
    for (index, outcome) in join_all(sends).await.into_iter().flatten() {
        outcomes[index] = outcome;
    }
    outcomes
}

/// Sends to one host, round by round.
async fn send(store: &RedisStore, items: Vec<BatchItem>) -> Vec<(usize, Outcome)> {
    let mut outcomes = Vec::with_capacity(items.len());
    for round in items.chunks(ROUND) {
        let answers = send_round(store, round).await;
        for (at, item) in round.iter().enumerate() {
            let outcome = match &answers {
                Err(error) => Err(error.for_another().into()),
                Ok(answers) => outcome_of(store, item, answers.get(at)),
            };
            outcomes.push((item.index, outcome));
        }
    }
    outcomes
}

/// Returns the answers to the events of one round. The script is loaded with it, so that no event waits for another round
/// and is overtaken. The write without effect is refused by a replica, which would take a plain publish; on a cluster a
/// replica passes that on to its shard.
async fn send_round(
    store: &RedisStore,
    round: &[BatchItem],
) -> Result<Vec<RedisResult<Value>>, StoreError> {
    let mut pipe = Pipeline::with_capacity(round.len() + 2);
    let records = round.iter().any(|item| item.recorded);
    if records {
        let source = script::record_source(store.is_cluster());
        pipe.cmd("SCRIPT").arg("LOAD").arg(source);
    }
    for item in round {
        pipe.add_command(item.command.clone());
    }
    if !store.is_cluster() {
        pipe.del(NEVER_WRITTEN);
    }
    let mut answers = store.query_each("publish", &mut pipe).await?;
    if records {
        drop(answers.remove(0));
    }
    Ok(answers)
}

fn outcome_of(
    store: &RedisStore,
    item: &BatchItem,
    answer: Option<&RedisResult<Value>>,
) -> Outcome {
    let failed = |error: &redis::RedisError| {
        StoreError::new(store.dependency(), error_kind(error), error.to_string())
    };
    match answer {
        Some(Ok(Value::BulkString(position))) if item.recorded => {
            recorded::recorded(store, Ok(position.clone())).map(Some)
        }
        Some(Ok(_)) if !item.recorded => Ok(None),
        Some(Err(error)) if item.recorded => Err(recorded::refused(failed(error))),
        Some(Err(error)) => Err(failed(error).into()),
        _ => Err(recorded::not_understood(store)),
    }
}
