//! Holds the scrapes of both replicas and the keys of Redis against the model.

use std::collections::{BTreeMap, BTreeSet};

use super::party::{KINDS, Source};
use super::world::World;
use crate::support::{PATIENCE, eventually};

/// Counters and gauges that are known exactly. Other labels beside each are in the scrape's order.
const EXACT: [&str; 9] = [
    "lockgate_connections",
    "lockgate_subscriptions",
    "lockgate_handshakes_total",
    "lockgate_disconnects_total",
    "lockgate_events_total",
    "lockgate_deliveries_total",
    "lockgate_revocations_total",
    "lockgate_rate_limited_total",
    "lockgate_events_dropped_total",
];

/// Never moves: nothing here is an outage.
const STILL: [&str; 1] = ["lockgate_gaps_total"];

impl World {
    /// Metrics of both replicas, keys of Redis: what must be there is, and nothing of anybody else's.
    pub(super) async fn compare(&mut self) {
        if self.source == Source::Registry {
            // What a tenant has counted ends when it is let go.
            return self.keys().await;
        }
        let (last, lookups) = eventually(PATIENCE, "the metrics of all tenants", async || {
            self.metrics().await
        })
        .await;
        for (party, (before, now)) in self.lookups.iter().zip(&lookups).enumerate() {
            let may = self.looks_up.contains(&party);
            assert!(
                may || before == now,
                "a foreign lookup at {}: {last:?}",
                KINDS[party].word
            );
        }
        self.lookups = lookups;
        self.looks_up.clear();
        self.keys().await;
    }

    async fn metrics(&self) -> Result<(String, Vec<f64>), String> {
        let (one, other) = tokio::join!(
            self.gateway.replicas[0].metrics(),
            self.gateway.replicas[1].metrics()
        );
        let scrapes = [one, other];
        let mut known: BTreeSet<_> = self.parties.iter().map(|p| p.tenant.name.clone()).collect();
        known.extend(["_none", "_other"].map(str::to_owned));
        for scrape in &scrapes {
            let labels = scrape.label_values("tenant");
            assert!(labels.is_subset(&known), "{labels:?}");
        }
        let mut lookups = Vec::new();
        for (party, expected) in self.expected.iter().enumerate() {
            let of = self.parties.get(party);
            let label = (
                "tenant",
                of.map_or("_none", |party| party.tenant.name.as_str()),
            );
            let sum = |family: &str| {
                let mut sum: BTreeMap<String, f64> = BTreeMap::new();
                for (labels, value) in scrapes.iter().flat_map(|scrape| scrape.of(family, label)) {
                    *sum.entry(labels).or_default() += value;
                }
                sum.retain(|_, value| *value != 0.0);
                sum
            };
            for family in STILL {
                assert!(
                    sum(family).is_empty(),
                    "{family} {label:?}: {:?}",
                    sum(family)
                );
            }
            for family in EXACT {
                let mut found = sum(family);
                let expected = expected
                    .iter()
                    .filter(|((name, _), value)| *name == family && **value != 0.0);
                let expected: BTreeMap<_, _> = expected
                    .map(|((_, labels), value)| (labels.clone(), *value))
                    .collect();
                for ((name, labels), lingering) in &self.lingering[party] {
                    let least = expected.get(labels).copied().unwrap_or_default();
                    if *name == family
                        && let Some(found) = found.get_mut(labels)
                        && (least..=least + lingering).contains(found)
                    {
                        *found = least;
                    }
                }
                found.retain(|_, value| *value != 0.0);
                if found != expected {
                    return Err(format!("{family} {label:?}: {found:?}, not {expected:?}"));
                }
            }
            lookups.push(sum("lockgate_user_lookups_total").values().sum());
        }
        lookups.truncate(self.parties.len());
        Ok((String::new(), lookups))
    }

    /// Every key of Redis is of a tenant that has reason to have it, and what must be kept is there.
    async fn keys(&self) {
        let mut there: BTreeSet<String> = self
            .command::<Vec<String>>(&[b"KEYS", b"*"])
            .await
            .into_iter()
            .collect();
        there.retain(|key| !key.starts_with("lockgate::"));
        for party in &self.parties {
            let key = |rest: &str| party.tenant.redis_key(rest);
            let mut must: BTreeSet<String> = party
                .denied
                .iter()
                .map(|jti| key(&format!("deny:jti:{jti}")))
                .collect();
            must.extend(
                party
                    .user_cut_offs
                    .keys()
                    .map(|user| key(&format!("deny:user:{user}"))),
            );
            must.extend(party.cut_off.map(|_| key("deny:all")));
            must.extend(party.suspended.then(|| key("state")));
            must.extend(
                party
                    .invalidated
                    .iter()
                    .map(|user| key(&format!("usergen:{user}"))),
            );
            must.extend(
                party
                    .idempotency_keys
                    .iter()
                    .map(|one| key(&format!("idem:{one}"))),
            );
            // A call with an `Idempotency-Key` notes the name of its kept answer.
            let keeps_answers = !party.idempotency_keys.is_empty();
            must.extend(keeps_answers.then(|| key("answers")));
            let missing: Vec<_> = must.difference(&there).collect();
            assert!(missing.is_empty(), "missing: {missing:?}");
            let mut may = must;
            may.insert(key("replicas"));
            may.extend(
                party
                    .looked_up
                    .iter()
                    .map(|user| key(&format!("user:{user}"))),
            );
            there.retain(|key| !may.contains(key));
        }
        assert!(there.is_empty(), "keys without a reason: {there:?}");
    }
}
