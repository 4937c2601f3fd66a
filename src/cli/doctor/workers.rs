//! Looks for the Channels workers of `worker` routes: consumers on their channels, and events that no worker takes.
//!
//! On `pubsub` a worker subscribes to its channel. On `core` it takes events out of a list by time, so that only the age of
//! the oldest one shows that no worker does.

use redis::Value;

use super::super::counted;
use super::finding::{Findings, Severity, with_kind};
use crate::clock::UnixTime;
use crate::config::{Accept, Config, ConsumerConfig, Effective, LayerKind, TenantConfig};
use crate::error::{Dependency, StoreError};
use crate::ids::TenantId;
use crate::stores::redis::RedisStore;
use crate::stores::redis_url::RedisUrl;

/// The age in seconds from which an event counts as one that no worker takes. A worker at work takes it in milliseconds.
const LEFT: f64 = 10.0;

/// Checks the workers of every tenant that has such routes.
pub(super) async fn look(config: &Config) -> Findings {
    let mut findings = Findings::default();
    for (id, tenant) in &config.tenants {
        let effective = config.effective(tenant);
        let kind = effective.layer_kind();
        for worker in workers(tenant) {
            let found = match kind {
                LayerKind::PubSub | LayerKind::Sharded => listened(&effective, worker).await,
                LayerKind::Core => taken(&effective, worker).await,
                LayerKind::Memory => continue,
            };
            add(&mut findings, id, worker, found);
        }
    }
    findings
}

fn workers(tenant: &TenantConfig) -> impl Iterator<Item = &ConsumerConfig> {
    let consumers = tenant.routes.iter().map(|route| &route.consumer);
    consumers.filter(|consumer| consumer.kind == "worker")
}

/// The state of a route's workers.
enum Workers {
    /// Each channel has consumers, or is emptied; the text says how it shows.
    AtWork(String),
    /// Events find no worker on this channel; the text says how it shows.
    Absent(String, String),
}

/// Looks for a subscriber of each channel, on any of the layer's servers.
async fn listened(
    effective: &Effective<'_>,
    worker: &ConsumerConfig,
) -> Result<Workers, StoreError> {
    let channels = worker.worker_channels();
    let mut consumers = vec![0; channels.len()];
    let mut servers = Vec::new();
    for store in stores(effective)? {
        servers.extend(store.servers().await);
    }
    let word = match effective.layer_kind() {
        LayerKind::Sharded => "SHARDNUMSUB",
        _ => "NUMSUB",
    };
    for store in servers {
        let mut ask = redis::cmd("PUBSUB");
        ask.arg(word).arg(&channels);
        let counts: Vec<(String, u64)> = store.query("pubsub", &ask).await?;
        for (total, (_, count)) in consumers.iter_mut().zip(counts) {
            *total += count;
        }
    }
    let lonely = consumers.iter().position(|count| *count == 0);
    Ok(match lonely {
        Some(at) => Workers::Absent(channels[at].clone(), "nothing listens".to_owned()),
        None => Workers::AtWork(counted(consumers.iter().sum::<u64>(), "consumer")),
    })
}

/// Looks for events that wait in the list of a channel, on any of the layer's servers.
async fn taken(effective: &Effective<'_>, worker: &ConsumerConfig) -> Result<Workers, StoreError> {
    let mut depth = 0;
    for store in stores(effective)? {
        for channel in worker.worker_channels() {
            let key = format!("{}{channel}", effective.tenant.layer.prefix);
            let count: u64 = store.query("depth", redis::cmd("ZCARD").arg(&key)).await?;
            depth += count;
            let mut ask = redis::cmd("ZRANGE");
            ask.arg(&key).arg(0).arg(0).arg("WITHSCORES");
            let first: Vec<Value> = store.query("depth", &ask).await?;
            let since = first.get(1).and_then(|score| {
                let text = redis::from_redis_value_ref::<f64>(score);
                text.ok()
            });
            let age = since.map_or(0.0, |since| UnixTime::now().0 - since);
            if age > LEFT {
                let text = format!(
                    "{} waiting, the first for {age:.0} s",
                    counted(count, "event")
                );
                return Ok(Workers::Absent(channel, text));
            }
        }
    }
    let text = format!("{} waiting, none for long", counted(depth, "event"));
    Ok(Workers::AtWork(text))
}

/// Returns a store on each of the layer's servers.
fn stores(effective: &Effective<'_>) -> Result<Vec<std::sync::Arc<RedisStore>>, StoreError> {
    let trust = effective.trusts().layer;
    let store = |url| {
        let url = RedisUrl::parse(url).map_err(|error| {
            let kind = crate::error::ErrorKind::Other;
            StoreError::new(Dependency::Redis, kind, error.to_string())
        })?;
        RedisStore::to_inspect(&url.trusting(trust.clone()), Dependency::Redis)
    };
    effective.layer_hosts().into_iter().map(store).collect()
}

fn add(
    findings: &mut Findings,
    id: &TenantId,
    worker: &ConsumerConfig,
    found: Result<Workers, StoreError>,
) {
    let subject = format!("tenant {id}");
    let on = (subject.as_str(), "workers");
    let channel = worker.channel.as_deref().unwrap_or_default();
    match found {
        Ok(Workers::AtWork(text)) => {
            findings.add(on, Severity::Ok, format!("{channel:?}: {text}"), "");
        }
        Ok(Workers::Absent(channel, text)) => {
            let (severity, then) = match worker.accept {
                Accept::Worker => (Severity::Fail, "until then no socket of its route opens"),
                Accept::Gateway => (Severity::Warn, "until then its frames are lost or wait"),
            };
            let detail = format!("{channel:?}: {text}");
            let advice = format!("run `manage.py runworker {channel}`; {then}");
            findings.add(on, severity, detail, advice);
        }
        Err(error) => {
            let detail = format!("{channel:?}: unknown: {}", with_kind(&error));
            findings.add(on, Severity::Note, detail, "");
        }
    }
}
