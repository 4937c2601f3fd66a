//! The rules and the function for back ends on each host of a layer: written when the link comes up, and looked at again now
//! and then, since others may remove them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::Pipeline;
use serde::Serialize;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::error::{ErrorKind, StoreError};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;

use super::GroupHistories;
use super::script;

/// Time between two looks. During a rollout replicas with other rules write theirs; after this time those of the last ones
/// stand.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Time after which a failed look is repeated.
const RETRY: Duration = Duration::from_secs(2);

/// The rules as back ends read them.
#[derive(Debug, Serialize)]
struct RulesForBackEnds {
    v: u8,
    /// The digest of the script that records, for a Redis without functions.
    record: String,
    /// The first one whose `regex` matches the whole name counts.
    groups: Vec<RuleForBackEnds>,
}

/// One rule. The syntax of `regex` is Python's, and `size` 0 means no history.
#[derive(Debug, Serialize)]
struct RuleForBackEnds {
    regex: String,
    size: u32,
    ttl_ms: u64,
}

/// The work at one host.
pub(in crate::channel_layer) struct RulesAtHost {
    store: Arc<RedisStore>,
    tenant: String,
    key: String,
    /// The value of the key; `None` if no group has a history.
    text: Option<String>,
    /// The host is a cluster.
    sharded: bool,
    /// A server without functions was logged.
    told: bool,
}

/// Keeps the rules at every host. Never returns.
pub(in crate::channel_layer) async fn keep_rules(hosts: Vec<RulesAtHost>) -> Infallible {
    join_all(hosts.into_iter().map(RulesAtHost::keep)).await;
    std::future::pending().await
}

impl RulesAtHost {
    pub(in crate::channel_layer) fn new(
        store: &Arc<RedisStore>,
        histories: &GroupHistories,
    ) -> Self {
        let rules = histories.rules();
        let any = rules.longest_history().is_some();
        Self {
            store: store.clone(),
            tenant: histories.tenant().to_string(),
            key: redis_keys::group_rules(histories.tenant()),
            text: any.then(|| text_of(histories)),
            sharded: histories.sharded,
            told: false,
        }
    }

    async fn keep(mut self) {
        let mut link = 0;
        loop {
            link = self.store.link_after(link).await;
            // A tenant without histories removes the rules of an earlier configuration, once for each link.
            let Some(text) = self.text.clone() else {
                let mut delete = Pipeline::with_capacity(1);
                delete.del(&self.key);
                // A login without rights to it has written none, so a refusal is no failure.
                drop(self.store.query_each::<u64>("rules", &mut delete).await);
                continue;
            };
            loop {
                let pause = match self.look(&text).await {
                    Ok(()) => LOOK_EVERY.mul_f64(rand::random_range(0.8..1.2)),
                    Err(_) => RETRY,
                };
                if let Ok(newer) = timeout(pause, self.store.link_after(link)).await {
                    link = newer;
                }
            }
        }
    }

    /// Writes what is missing or different.
    async fn look(&mut self, text: &str) -> Result<(), StoreError> {
        // One byte more, so that a longer value differs.
        let mut look = Pipeline::with_capacity(1);
        look.cmd("GETRANGE").arg(&self.key).arg(0).arg(text.len());
        let rules = { &self.store }
            .query_each::<redis::Value>("rules", &mut look)
            .await?;
        if !rules.first().is_some_and(|rules| has(rules, text)) {
            let mut write = Pipeline::with_capacity(1);
            write.cmd("SET").arg(&self.key).arg(text);
            self.write(&self.store.clone(), write).await?;
        }
        // Each master of a cluster has scripts and functions of its own.
        let mut looked = Ok(());
        for server in self.store.servers().await {
            // One that is away leaves the others to be looked at.
            looked = looked.and(self.look_at_functions(&server).await);
        }
        looked
    }

    async fn look_at_functions(&mut self, server: &RedisStore) -> Result<(), StoreError> {
        let record = script::record(self.sharded).get_hash();
        let mut look = Pipeline::with_capacity(2);
        look.cmd("SCRIPT").arg("EXISTS").arg(record);
        look.cmd("FUNCTION")
            .arg("LIST")
            .arg("LIBRARYNAME")
            .arg("lockgate")
            .arg("WITHCODE");
        let answers = server
            .query_each::<redis::Value>("rules", &mut look)
            .await?;
        let [known, function] = answers.as_slice() else {
            return Ok(());
        };
        let mut write = Pipeline::with_capacity(2);
        if !matches!(known, Ok(redis::Value::Array(known)) if known == &[redis::Value::Int(1)]) {
            let source = script::record_source(self.sharded);
            write.cmd("SCRIPT").arg("LOAD").arg(source);
        }
        let library = script::library(self.sharded);
        match function {
            Err(error) => self.say_no_functions(error),
            Ok(_) if has(function, &library) => {}
            Ok(_) => {
                write
                    .cmd("FUNCTION")
                    .arg("LOAD")
                    .arg("REPLACE")
                    .arg(&library);
            }
        }
        self.write(server, write).await
    }

    async fn write(&mut self, server: &RedisStore, mut write: Pipeline) -> Result<(), StoreError> {
        if write.is_empty() {
            return Ok(());
        }
        let written = server
            .query_each::<redis::Value>("rules", &mut write)
            .await?;
        for error in written.into_iter().filter_map(Result::err) {
            self.say_refused(&error);
        }
        Ok(())
    }

    fn say_no_functions(&mut self, error: &redis::RedisError) {
        if !std::mem::replace(&mut self.told, true) {
            info!(
                tenant.id = self.tenant, redis.endpoint = self.store.endpoint(), error = %error,
                "Redis lists no functions (it has them from 7.0 on), so that back ends record by EVALSHA"
            );
        }
    }

    fn say_refused(&mut self, error: &redis::RedisError) {
        if !std::mem::replace(&mut self.told, true) {
            let kind = crate::stores::redis::error_kind(error);
            let user = self.store.url().username().unwrap_or("default");
            let advice = match kind {
                ErrorKind::Permission => "grant what doctor --acl prints",
                _ => "look at the server",
            };
            warn!(
                tenant.id = self.tenant, redis.endpoint = self.store.endpoint(), redis.user = user,
                error.kind = kind.label(), error = %error,
                "Redis did not take the rules of the groups or the function for back ends, which cannot record events then: {advice}"
            );
        }
    }
}

fn has(answer: &redis::RedisResult<redis::Value>, wanted: &str) -> bool {
    answer.as_ref().is_ok_and(|value| contains(value, wanted))
}

/// Returns true if a text is the value, or stands somewhere in it.
fn contains(value: &redis::Value, wanted: &str) -> bool {
    match value {
        redis::Value::BulkString(text) => text == wanted.as_bytes(),
        redis::Value::Array(values) => values.iter().any(|value| contains(value, wanted)),
        redis::Value::Map(pairs) => pairs.iter().any(|(_, value)| contains(value, wanted)),
        _ => false,
    }
}

fn text_of(histories: &GroupHistories) -> String {
    // Back ends know the names on the wire. Of the characters of a namespace only the period means something else.
    let namespace = histories.namespace().replace('.', "\\.");
    let groups = histories
        .rules()
        .patterns()
        .map(|(regex, history)| RuleForBackEnds {
            regex: format!("{namespace}{regex}"),
            size: history.map_or(0, |history| history.size),
            ttl_ms: history.map_or(0, |history| {
                u64::try_from(history.ttl.as_millis()).unwrap_or(u64::MAX)
            }),
        });
    let rules = RulesForBackEnds {
        v: 1,
        record: script::record(histories.sharded).get_hash().to_owned(),
        groups: groups.collect(),
    };
    serde_json::to_string(&rules).expect("texts and numbers have a form in JSON")
}
