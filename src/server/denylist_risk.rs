//! The faults of a Redis that holds a denylist: as the log and `/readyz` say it, with the action to take.

use crate::stores::inspection::{CLOCK_MAY_DIFFER, Facts, Failover, OLDEST_VERSION, Role};
use crate::stores::redis_keys::EPOCH;

/// A reason why revocations may be lost, or do not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Risk {
    /// Its version.
    TooOld(String),
    Evicts(String),
    Replica,
    Lost,
    /// It has fewer replicas than must acknowledge a revocation.
    TooFewReplicas {
        has: u64,
        wanted: u32,
    },
    /// It has replicas, and none acknowledges a revocation.
    Unacknowledged,
    ClockOff,
}

impl Risk {
    /// Returns the risks that a server tells of. `wanted` is `denylist.replicas`.
    pub(super) fn of(facts: &Facts, wanted: u32) -> Vec<Self> {
        let mut risks = Vec::new();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        if facts.is_too_old() {
            risks.push(Self::TooOld(text(&facts.version)));
        }
        if facts.evicts() == Some(true) {
            risks.push(Self::Evicts(text(&facts.maxmemory_policy)));
        }
        if facts.role == Some(Role::Replica) {
            risks.push(Self::Replica);
        }
        match facts.failover(wanted) {
            Failover::Short(has) => risks.push(Self::TooFewReplicas { has, wanted }),
            Failover::LosesTheLast => risks.push(Self::Unacknowledged),
            Failover::Unknown | Failover::None | Failover::LosesNothing => {}
        }
        risks
    }

    /// Returns the risk of a clock that is `offset` seconds ahead of this machine's.
    pub(super) fn of_clock(offset: f64) -> Option<Self> {
        (offset.abs() > CLOCK_MAY_DIFFER).then_some(Self::ClockOff)
    }

    /// Returns true if the server may forget a revocation, or has, so that the alert should ring. The others are settings that
    /// many choose, or show by themselves: a revocation that is refused is answered with 503.
    pub(super) fn may_forget(&self) -> bool {
        match self {
            Self::TooOld(_) | Self::Evicts(_) | Self::Replica | Self::Lost => true,
            Self::TooFewReplicas { .. } | Self::Unacknowledged | Self::ClockOff => false,
        }
    }

    /// Returns the text for operators; `mark` is the key of the mark of lost data.
    pub(super) fn text(&self, mark: &str) -> String {
        let shell = if mark == EPOCH { "" } else { " -c" };
        match self {
            Self::TooOld(version) => format!(
                "The denylist's Redis has version {version}, and the oldest that is supported is {}.{}; upgrade it",
                OLDEST_VERSION.0, OLDEST_VERSION.1
            ),
            Self::Evicts(policy) => format!(
                "The denylist's Redis evicts keys ({policy}), revocations among them; set maxmemory-policy noeviction, or \
                 give the denylist a Redis of its own ([denylist] redis)"
            ),
            Self::Replica => "The denylist's Redis is a replica: it may be behind, and takes no revocation; name its master"
                .to_owned(),
            Self::Lost => format!(
                "The denylist's Redis lost its data, and with it every revocation; revoke again what is still needed, then run: \
                 redis-cli{shell} SET {mark} \"ack:$(date +%s)\""
            ),
            Self::TooFewReplicas { has, wanted } => format!(
                "The denylist's Redis has {has} replicas, and {wanted} must acknowledge a revocation, so that each is refused; \
                 connect the replicas, or lower [denylist] replicas"
            ),
            Self::Unacknowledged => "The denylist's Redis has replicas, and a failover to one may lose the last revocations; \
                 set [denylist] replicas = 1, so that a revocation is confirmed once a replica has it"
                .to_owned(),
            Self::ClockOff => "The clock of the denylist's Redis is more than a second off this machine's, so that tokens and \
                 revocations end too early or too late; run a time service such as chrony on both"
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Redis 5 takes revocations; an older one cannot run the scripts that raise a cut-off.
    #[test]
    fn a_server_that_is_too_old_is_at_risk() {
        let version = |version: &str| Facts {
            version: Some(version.to_owned()),
            ..Facts::default()
        };
        let risks = Risk::of(&version("4.0.14"), 0);
        let text = risks.first().expect("a risk").text(EPOCH);
        assert!(text.contains("4.0.14") && text.contains("5.0"), "{text}");
        for fine in [version("5.0.7"), version("8.0.1"), Facts::default()] {
            assert_eq!(Risk::of(&fine, 0), [], "{fine:?}");
        }
    }

    #[test]
    fn replicas_must_be_as_many_as_acknowledge() {
        let with = |replicas| Facts {
            replicas,
            role: Some(Role::Master),
            ..Facts::default()
        };
        for (replicas, wanted, risk) in [
            (None, 0, None),
            (None, 1, None),
            (Some(0), 0, None),
            (Some(1), 0, Some(Risk::Unacknowledged)),
            (Some(1), 1, None),
            (Some(0), 1, Some(Risk::TooFewReplicas { has: 0, wanted: 1 })),
            (Some(1), 2, Some(Risk::TooFewReplicas { has: 1, wanted: 2 })),
        ] {
            let found = Risk::of(&with(replicas), wanted);
            assert_eq!(found.first(), risk.as_ref(), "{replicas:?} of {wanted}");
            assert!(!found.iter().any(Risk::may_forget), "{found:?}");
        }
    }

    #[test]
    fn a_clock_may_differ_by_a_second() {
        for (offset, risk) in [
            (0.0, None),
            (-1.0, None),
            (1.1, Some(Risk::ClockOff)),
            (-3600.0, Some(Risk::ClockOff)),
        ] {
            assert_eq!(Risk::of_clock(offset), risk, "{offset}");
        }
    }
}
