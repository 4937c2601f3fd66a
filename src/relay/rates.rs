//! The budgets for publishes into the groups of a tenant: `limits.publishes_per_second`, and within it the share of sockets
//! without a user, so that they leave the rest to users and back ends.

use std::time::Instant;

use parking_lot::Mutex;

use crate::config::LimitsConfig;
use crate::rate::Bucket;

/// The buckets of a tenant. New limits hold at once.
#[derive(Debug, Default)]
pub(super) struct PublishRates(Mutex<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    all: Bucket,
    strangers: Bucket,
}

impl PublishRates {
    /// Takes room for one event, of a socket without a user if `is_stranger`.
    ///
    /// # Errors
    /// The name of the limit that is reached; nothing is then taken.
    pub(super) fn take(
        &self,
        limits: &LimitsConfig,
        is_stranger: bool,
    ) -> Result<(), &'static str> {
        let all = limits.publishes_per_second;
        let strangers = match is_stranger {
            true => limits.of_strangers().publishes_per_second,
            false => 0,
        };
        if all == 0 && strangers == 0 {
            return Ok(());
        }
        let (now, mut buckets) = (Instant::now(), self.0.lock());
        if !buckets.strangers.has_one(now, strangers) {
            return Err("anonymous_publishes_per_second");
        }
        if !buckets.all.take(now, all) {
            return Err("publishes_per_second");
        }
        buckets.strangers.take(now, strangers);
        Ok(())
    }

    /// Takes room for as many of `count` events of a back end as there is room for; returns their number.
    pub(super) fn take_up_to(&self, limits: &LimitsConfig, count: usize) -> usize {
        let per_second = limits.publishes_per_second;
        if per_second == 0 {
            return count;
        }
        let (now, mut buckets) = (Instant::now(), self.0.lock());
        (0..count)
            .take_while(|_| buckets.all.take(now, per_second))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_half_of_the_rate_or_what_their_own_limit_leaves() {
        for (of_strangers, share) in [(0, 50), (10, 10)] {
            let limits = LimitsConfig {
                publishes_per_second: 100,
                anonymous_publishes_per_second: of_strangers,
                ..LimitsConfig::default()
            };
            let rates = PublishRates::default();
            // A bucket holds two seconds; the clock may go on meanwhile, by far less than a second.
            let taken = (0..1000).map_while(|_| rates.take(&limits, true).ok());
            let taken = taken.count();
            assert!((2 * share..3 * share).contains(&taken), "{taken}");
            let refused = rates.take(&limits, true);
            assert!(refused.is_err_and(|limit| limit == "anonymous_publishes_per_second"));
            assert_eq!(rates.take_up_to(&limits, 50), 50);
            assert!((0..50).all(|_| rates.take(&limits, false).is_ok()));
            // What users publish fills no bucket of strangers.
            let rest = (0..1000).map_while(|_| rates.take(&limits, true).ok());
            assert!(rest.count() < share);
        }
    }

    #[test]
    fn what_users_have_used_up_is_not_there_for_strangers() {
        let limits = LimitsConfig {
            publishes_per_second: 1,
            anonymous_publishes_per_second: 5,
            ..LimitsConfig::default()
        };
        let rates = PublishRates::default();
        assert_eq!(rates.take_up_to(&limits, 2), 2);
        assert_eq!(rates.take(&limits, true), Err("publishes_per_second"));
    }
}
