//! Checks of one Redis server: it must answer, keep its data, and allow the commands of the gateway.

use std::sync::Arc;

use super::super::counted;
use super::finding::{Findings, Severity, clock, with_kind};
use super::history;
use super::reach;
use super::rights;
use super::scripts;
use super::servers::RedisServer;
use super::shared;
use crate::error::StoreError;
use crate::stores::inspection::{self, DataMark, Facts, Failover, Latency, Role};
use crate::stores::misfit::{UPGRADE_EACH, is_too_old_for_cluster};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys::{self, EPOCH};

/// The number of PINGs that measure the latency.
const PINGS: usize = 20;
/// The latency from which the doctor warns. A handshake waits for it two or three times.
const SLOW: std::time::Duration = std::time::Duration::from_millis(20);

/// A server that was looked at: a node of a cluster, or one alone.
struct LookedServer<'n> {
    subject: String,
    store: &'n Arc<RedisStore>,
    facts: Facts,
}

/// Checks one server, or each master of a cluster. One that does not answer leaves the others to be looked at.
pub(super) async fn look(server: &RedisServer) -> Findings {
    let mut findings = Findings::default();
    let subject = server.subject();
    let on = |check| (subject.as_str(), check);
    let Some(store) = reach::look(&mut findings, on("reach"), server).await else {
        return findings;
    };
    let nodes = store.numbered_servers().await;
    let mut looked = Vec::new();
    for (node, shard) in &nodes {
        let subject = match shard {
            Some(_) => format!("{subject} {}", node.endpoint()),
            None => subject.clone(),
        };
        match look_at_node(&mut findings, &subject, server, (node, *shard)).await {
            Ok(facts) => {
                let version = facts.version.as_deref();
                // One that is too old knows no sharded channels, which says nothing of rights.
                if shard.is_none() || !version.is_some_and(is_too_old_for_cluster) {
                    rights::of_gateway(&mut findings, &subject, (&store, *shard)).await;
                }
                looked.push(LookedServer {
                    subject,
                    store: node,
                    facts,
                });
            }
            Err(error) => findings.add(
                (subject.as_str(), "reach"),
                Severity::Fail,
                with_kind(&error),
                match shard {
                    Some(_) => reach::advice_on_node(&error),
                    None => reach::advice(&error),
                },
            ),
        }
    }
    let Some(first) = looked.first() else {
        return findings;
    };
    scripts::look(&mut findings, on("scripts"), first.store, &server.tenants).await;
    for usage in &server.tenants {
        rights::of_tenant(&mut findings, on("permission"), &store, usage).await;
        for node in &looked {
            history::look(
                &mut findings,
                &node.subject,
                (node.store, &node.facts),
                usage,
            )
            .await;
        }
    }
    findings
}

/// Checks one server, or one master of a cluster, and returns its facts. A `shard` is a number whose slot it has.
async fn look_at_node(
    findings: &mut Findings,
    subject: &str,
    server: &RedisServer,
    (store, shard): (&Arc<RedisStore>, Option<u32>),
) -> Result<Facts, StoreError> {
    let on = |check| (subject, check);
    let latency = Latency::measure(store, PINGS).await?;
    let facts = Facts::ask_all(store).await?;
    version(findings, on("version"), server, &facts);
    speed(findings, on("latency"), &latency);
    role(findings, on("role"), server, &facts);
    eviction(findings, on("eviction"), server, &facts);
    persistence(findings, on("persistence"), server, &facts);
    let (severity, detail, advice) = shared::users(server.url.username().is_some(), &facts);
    findings.add(on("users"), severity, detail, advice);
    if server.shared {
        let (severity, detail, advice) = shared::bounds(&facts);
        findings.add(on("bounds"), severity, detail, advice);
    }
    if server.holds_denylist() {
        failover(findings, on("failover"), server.acknowledged, &facts);
        lost_data(findings, on("lost_data"), store, &redis_keys::epoch(shard)).await;
    }
    clock_offset(findings, on("clock"), store).await;
    Ok(facts)
}

fn version(findings: &mut Findings, on: (&str, &'static str), server: &RedisServer, facts: &Facts) {
    let Some(version) = &facts.version else {
        findings.add(
            on,
            Severity::Note,
            "unknown: the login may not ask (INFO)",
            "",
        );
        return;
    };
    if server.url.is_cluster() && is_too_old_for_cluster(version) {
        let detail = format!("{version}: `serve` serves no tenant of this cluster");
        findings.add(on, Severity::Fail, detail, UPGRADE_EACH);
        return;
    }
    let oldest = inspection::CHANNEL_RULES;
    let without_rules = facts
        .version_numbers()
        .is_some_and(|numbers| numbers < oldest);
    match facts.is_too_old() {
        true => findings.add(
            on,
            if server.holds_denylist() {
                Severity::Fail
            } else {
                Severity::Warn
            },
            format!("{version}; the oldest supported is 5.0"),
            "upgrade it",
        ),
        false if without_rules => findings.add(
            on,
            Severity::Note,
            format!("{version}: its ACL rules know no channels, which came with 6.2"),
            "where several tenants' back ends share it, each can publish to the groups of the others",
        ),
        false => findings.add(on, Severity::Ok, version.clone(), ""),
    }
}

fn speed(findings: &mut Findings, on: (&str, &'static str), latency: &Latency) {
    let (severity, advice) = match latency.median > SLOW {
        true => (
            Severity::Warn,
            "every handshake waits for it: move Redis closer, or look at its SLOWLOG",
        ),
        false => (Severity::Ok, ""),
    };
    let detail = format!(
        "median {:.1?}, slowest {:.1?} of {PINGS}",
        latency.median, latency.max
    );
    findings.add(on, severity, detail, advice);
}

async fn clock_offset(findings: &mut Findings, on: (&str, &'static str), store: &RedisStore) {
    match inspection::clock_offset(store).await {
        Ok(Some(offset)) => {
            let (verdict, detail, advice) = clock(offset);
            findings.add(on, verdict, detail, advice);
        }
        Ok(None) => findings.add(on, Severity::Note, "unknown: the login may not ask", ""),
        Err(error) => findings.add(on, Severity::Fail, with_kind(&error), ""),
    }
}

fn role(findings: &mut Findings, on: (&str, &'static str), server: &RedisServer, facts: &Facts) {
    match facts.role {
        Some(Role::Master) => findings.add(on, Severity::Ok, "master", ""),
        None => findings.add(
            on,
            Severity::Note,
            "unknown: the login may not ask (INFO, ROLE)",
            "grant ROLE: without it a failover behind the server's name is noticed only by the first write that is refused",
        ),
        Some(Role::Replica) => findings.add(
            on,
            if server.holds_denylist() {
                Severity::Fail
            } else {
                Severity::Warn
            },
            "a replica: it may be behind its master and takes no writes",
            "name the master in the URL: the gateway keeps no link to a replica",
        ),
    }
}

fn eviction(
    findings: &mut Findings,
    on: (&str, &'static str),
    server: &RedisServer,
    facts: &Facts,
) {
    let policy = facts.maxmemory_policy.as_deref().unwrap_or("?");
    let maxmemory = facts.maxmemory.unwrap_or_default();
    let detail = match maxmemory {
        0 => "no maxmemory".to_owned(),
        bytes => format!("maxmemory {bytes} bytes, {policy}"),
    };
    match (facts.evicts(), server.holds_denylist()) {
        (None, _) => findings.add(
            on,
            Severity::Note,
            "unknown: the login may not ask (INFO)",
            "a Redis with a denylist needs maxmemory-policy noeviction",
        ),
        (Some(false), _) => findings.add(on, Severity::Ok, detail, ""),
        (Some(true), true) => findings.add(
            on,
            Severity::Fail,
            format!("{detail}: Redis may evict revocations, because all have a time to live"),
            "set maxmemory-policy noeviction, or give the denylist a Redis of its own ([denylist] redis)",
        ),
        (Some(true), false) => {
            findings.add(on, Severity::Ok, format!("{detail}: this server has no denylist"), "");
        }
    }
}

fn persistence(
    findings: &mut Findings,
    on: (&str, &'static str),
    server: &RedisServer,
    facts: &Facts,
) {
    match (facts.persists(), server.holds_denylist()) {
        (Some(true), _) => {
            let log = facts.append_only == Some(true);
            findings.add(
                on,
                Severity::Ok,
                if log { "appendonly" } else { "snapshots" },
                "",
            );
        }
        (None, _) => findings.add(
            on,
            Severity::Note,
            "unknown: the login may not ask (CONFIG GET save)",
            "",
        ),
        (Some(false), true) => findings.add(
            on,
            Severity::Warn,
            "none: a restart forgets every revocation",
            "turn appendonly on, or be ready to repeat revocations",
        ),
        (Some(false), false) => findings.add(
            on,
            Severity::Note,
            "none: a restart forgets cached users",
            "",
        ),
    }
}

/// Looks if a failover can lose a revocation that was confirmed.
fn failover(findings: &mut Findings, on: (&str, &'static str), acknowledged: u32, facts: &Facts) {
    let (severity, detail, advice) = match facts.failover(acknowledged) {
        Failover::Unknown => (
            Severity::Note,
            "unknown: the login may not ask (INFO)".to_owned(),
            "",
        ),
        Failover::None => (Severity::Ok, "no replica".to_owned(), ""),
        Failover::LosesTheLast => (
            Severity::Warn,
            "a failover to a replica may lose the last revocations, also confirmed ones".to_owned(),
            "set [denylist] replicas = 1, so that a revocation is confirmed once a replica has it",
        ),
        Failover::Short(has) => (
            Severity::Fail,
            format!(
                "{}: each revocation is refused, because {acknowledged} must acknowledge it",
                counted(has, "replica")
            ),
            "connect the replicas, or lower [denylist] replicas",
        ),
        Failover::LosesNothing => (
            Severity::Ok,
            "a replica acknowledges each revocation".to_owned(),
            "",
        ),
    };
    findings.add(on, severity, detail, advice);
}

async fn lost_data(
    findings: &mut Findings,
    on: (&str, &'static str),
    store: &RedisStore,
    mark: &str,
) {
    let shell = if mark == EPOCH { "" } else { " -c" };
    let epoch = inspection::epoch(store, mark).await;
    match epoch.map(|value| DataMark::of(value.as_deref())) {
        Ok(DataMark::Whole) => findings.add(on, Severity::Ok, "none since a replica first looked", ""),
        Ok(DataMark::Acknowledged) => findings.add(on, Severity::Ok, "a loss, which an operator has acknowledged", ""),
        Ok(DataMark::Absent) => findings.add(
            on,
            Severity::Note,
            format!("unknown: no replica has set {mark} yet, or all data was lost within the last minute"),
            "run doctor again when a replica has run for a minute",
        ),
        Ok(DataMark::Lost(at)) => findings.add(
            on,
            Severity::Fail,
            format!("all data, including every revocation, was lost before {at} (Unix time)"),
            format!("repeat the revocations that still matter, then run: redis-cli{shell} SET {mark} \"ack:$(date +%s)\""),
        ),
        Err(error) => findings.add(on, Severity::Fail, with_kind(&error), reach::advice(&error)),
    }
}
