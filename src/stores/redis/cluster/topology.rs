//! The answer to `CLUSTER SHARDS`: which node serves which slots. No IO.

use redis::{FromRedisValue as _, Value};

use super::slot::SLOTS;

/// Host and port of a node, as clients reach it.
pub(super) type NodeAddress = (String, u16);

/// A master, its slots and its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    /// Pairs of the first and the last slot, in order. Empty for a master that serves none yet.
    pub(super) slots: Vec<(u16, u16)>,
    pub(super) master: NodeAddress,
    pub(super) replicas: Vec<NodeAddress>,
}

/// All shards, in the order of their masters' addresses, so that two answers can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Topology {
    pub(super) shards: Vec<Shard>,
}

/// A node in an answer.
struct ShardMember {
    address: NodeAddress,
    is_master: bool,
    is_online: bool,
}

impl Topology {
    /// Reads an answer. A node that does not know its own address has that of `asked`, the host that answered.
    ///
    /// Returns `None` if the answer is not understood, or names no master with slots.
    pub(super) fn read(answer: &Value, asked: &str, tls: bool) -> Option<Self> {
        let shards = answer.as_sequence()?.iter();
        let mut shards: Vec<Shard> = shards
            .filter_map(|shard| read_shard(shard, asked, tls))
            .collect();
        shards.sort_by(|a, b| a.master.cmp(&b.master));
        let has_slots = shards.iter().any(|shard| !shard.slots.is_empty());
        has_slots.then_some(Self { shards })
    }

    /// Returns true if the same masters have the same slots in both. Replicas may differ: nodes learn of them at different
    /// times, and no command goes to them.
    pub(super) fn serves_as<'a>(&self, shards: impl Iterator<Item = &'a Shard>) -> bool {
        let served = |shard: &'a Shard| (&shard.master, &shard.slots);
        { self.shards.iter() }
            .map(|shard| (&shard.master, &shard.slots))
            .eq(shards.map(served))
    }
}

/// Returns the index of the shard of each slot.
pub(super) fn owners<'a>(shards: impl Iterator<Item = &'a Shard>) -> Box<[Option<u16>]> {
    let mut owners = vec![None; usize::from(SLOTS)];
    for (index, shard) in (0..).zip(shards) {
        for (first, last) in &shard.slots {
            owners[usize::from(*first)..=usize::from(*last)].fill(Some(index));
        }
    }
    owners.into()
}

/// Reads a shard; `None` if no node of it can serve: a dead master whose slots another one took over.
fn read_shard(shard: &Value, asked: &str, tls: bool) -> Option<Shard> {
    let slots = field(shard, "slots")?.as_sequence()?;
    let bound = |value: &Value| u16::from_redis_value_ref(value).ok();
    let slots = slots.chunks_exact(2).map(|pair| {
        let (first, last) = (bound(&pair[0])?, bound(&pair[1])?);
        (first <= last && last < SLOTS).then_some((first, last))
    });
    let mut slots: Vec<(u16, u16)> = slots.collect::<Option<_>>()?;
    slots.sort_unstable();
    let nodes = field(shard, "nodes")?.as_sequence()?.iter();
    let nodes: Vec<ShardMember> = nodes
        .filter_map(|node| read_node(node, asked, tls))
        .collect();
    let mut masters = nodes.iter().filter(|node| node.is_master);
    let online = masters.clone().find(|node| node.is_online);
    // A dead master keeps its slots until a replica takes over.
    let master = online.or_else(|| masters.next().filter(|_| !slots.is_empty()))?;
    let replicas = nodes.iter().filter(|node| !node.is_master);
    let mut replicas: Vec<NodeAddress> = replicas.map(|node| node.address.clone()).collect();
    replicas.sort_unstable();
    Some(Shard {
        slots,
        master: master.address.clone(),
        replicas,
    })
}

fn read_node(node: &Value, asked: &str, tls: bool) -> Option<ShardMember> {
    let text = |name: &str| String::from_redis_value_ref(field(node, name)?).ok();
    let port = match tls {
        true => field(node, "tls-port").or_else(|| field(node, "port")),
        false => field(node, "port"),
    };
    // `endpoint` is what the node wants clients to use: its address, or a hostname that it announces. It is empty if that is the
    // host by which the client has reached the cluster, and `?` if the node has no hostname.
    let host = match text("endpoint").as_deref() {
        Some("") => None,
        None | Some("?") => text("ip").filter(|ip| !ip.is_empty()),
        Some(endpoint) => Some(endpoint.to_owned()),
    };
    let host = host.unwrap_or_else(|| asked.to_owned());
    Some(ShardMember {
        address: (host, u16::from_redis_value_ref(port?).ok()?),
        is_master: text("role")? == "master",
        is_online: text("health").is_none_or(|health| health == "online"),
    })
}

/// Returns a field of a map, which RESP2 writes as names and values in turn.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let is_named = |key: &Value| match key {
        Value::BulkString(key) => key == name.as_bytes(),
        Value::SimpleString(key) => key == name,
        _ => false,
    };
    value
        .as_map_iter()?
        .find_map(|(key, value)| is_named(key).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn node(endpoint: &str, port: i64, role: &str, health: &str) -> Value {
        Value::Array(vec![
            bulk("port"),
            Value::Int(port),
            bulk("tls-port"),
            Value::Int(port + 1),
            bulk("ip"),
            bulk("10.0.0.1"),
            bulk("endpoint"),
            bulk(endpoint),
            bulk("role"),
            bulk(role),
            bulk("health"),
            bulk(health),
        ])
    }

    fn shard(slots: &[i64], nodes: Vec<Value>) -> Value {
        let slots = slots.iter().map(|slot| Value::Int(*slot)).collect();
        Value::Array(vec![
            bulk("slots"),
            Value::Array(slots),
            bulk("nodes"),
            Value::Array(nodes),
        ])
    }

    #[test]
    fn masters_that_serve_are_found_with_their_slots() {
        let answer = Value::Array(vec![
            shard(
                &[8192, 16383, 0, 10],
                vec![
                    node("b", 1, "replica", "online"),
                    node("b", 3, "master", "online"),
                ],
            ),
            // A dead master whose slots another one has.
            shard(&[], vec![node("a", 5, "master", "fail")]),
            // A new master.
            shard(&[], vec![node("?", 7, "master", "online")]),
            // A dead master that no replica follows yet.
            shard(&[11, 8191], vec![node("", 9, "master", "fail")]),
        ]);
        let topology = Topology::read(&answer, "asked", false).unwrap();
        let masters = topology.shards.iter().map(|shard| shard.master.clone());
        let masters: Vec<_> = masters.collect();
        let expected = [("10.0.0.1", 7), ("asked", 9), ("b", 3)];
        assert_eq!(
            masters,
            expected.map(|(host, port)| (host.to_owned(), port))
        );
        assert_eq!(topology.shards[2].replicas, [("b".to_owned(), 1)]);
        let owners = owners(topology.shards.iter());
        let of = |slot: usize| owners[slot];
        assert_eq!(
            [of(0), of(10), of(11), of(8191), of(8192), of(16383)],
            [2, 2, 1, 1, 2, 2].map(Some)
        );
        let tls = Topology::read(&answer, "asked", true).unwrap();
        assert_eq!(tls.shards[2].master.1, 4);
        assert!(!topology.serves_as(tls.shards.iter()));
        let mut alone = topology.clone();
        alone.shards[2].replicas.clear();
        assert!(topology.serves_as(alone.shards.iter()));
        alone.shards[2].slots.pop();
        assert!(!topology.serves_as(alone.shards.iter()));
    }

    #[test]
    fn an_answer_without_a_serving_master_is_none() {
        for answer in [
            Value::Nil,
            Value::Array(Vec::new()),
            Value::Array(vec![shard(&[], vec![node("a", 1, "master", "online")])]),
            Value::Array(vec![shard(
                &[0, 99999],
                vec![node("a", 1, "master", "online")],
            )]),
        ] {
            assert_eq!(Topology::read(&answer, "asked", false), None, "{answer:?}");
        }
    }
}
