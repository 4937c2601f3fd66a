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
use super::script::{self, RECORD};

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
        let mut look = Pipeline::with_capacity(3);
        // One byte more, so that a longer value differs.
        look.cmd("GETRANGE").arg(&self.key).arg(0).arg(text.len());
        look.cmd("SCRIPT").arg("EXISTS").arg(RECORD.get_hash());
        look.cmd("FUNCTION")
            .arg("LIST")
            .arg("LIBRARYNAME")
            .arg("lockgate")
            .arg("WITHCODE");
        let answers = self
            .store
            .query_each::<redis::Value>("rules", &mut look)
            .await?;
        let [rules, known, function] = answers.as_slice() else {
            return Ok(());
        };
        let has = |answer: &redis::RedisResult<redis::Value>, wanted: &str| {
            answer.as_ref().is_ok_and(|value| contains(value, wanted))
        };
        let mut write = Pipeline::with_capacity(3);
        if !has(rules, text) {
            write.cmd("SET").arg(&self.key).arg(text);
        }
        if !matches!(known, Ok(redis::Value::Array(known)) if known == &[redis::Value::Int(1)]) {
            write.cmd("SCRIPT").arg("LOAD").arg(script::record_source());
        }
        let library = script::library();
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
        if write.is_empty() {
            return Ok(());
        }
        let written = self
            .store
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
                "Redis did not take the rules of the groups or the function for back ends, whose events are not recorded then: {advice}"
            );
        }
    }
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
        record: RECORD.get_hash().to_owned(),
        groups: groups.collect(),
    };
    serde_json::to_string(&rules).expect("texts and numbers have a form in JSON")
}
