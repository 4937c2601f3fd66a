//! The tenants that are asked for and not made yet. Handshakes that ask for one tenant at the same time share its making.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::ids::TenantId;

/// The most tenants that are asked for at the same time. A thousand take less than a second, and those beyond are asked for
/// again by clients that come back.
const MOST: usize = 4096;
/// The most tenants that are made in one step. What waits for the end of a step waits a few milliseconds.
const STEP: usize = 32;
/// Longest wait for the making of a tenant.
const MADE_WITHIN: Duration = Duration::from_secs(5);

/// The tenants that are asked for and not made yet.
#[derive(Default)]
pub struct Demand {
    asked: Mutex<DemandQueue>,
    wanted: Notify,
}

#[derive(Default)]
struct DemandQueue {
    waiting: BTreeMap<TenantId, watch::Sender<()>>,
    /// The last name of the step before, so that names late in the alphabet get their turn.
    last: Option<TenantId>,
}

/// The end of one making.
pub(super) struct MakingEnds(watch::Receiver<()>);

impl MakingEnds {
    /// Waits for the end, for a limited time.
    pub(super) async fn wait(mut self) {
        // The sender is dropped at the end. A timeout needs no case of its own: the caller looks for the tenant.
        drop(timeout(MADE_WITHIN, self.0.changed()).await.map(drop));
    }
}

impl Demand {
    /// Asks for a tenant. `None`: too many others are asked for.
    pub(super) fn ask(&self, id: &TenantId) -> Option<MakingEnds> {
        let mut asked = self.asked.lock();
        if let Some(ends) = asked.waiting.get(id) {
            return Some(MakingEnds(ends.subscribe()));
        }
        if asked.waiting.len() >= MOST {
            return None;
        }
        let (sender, receiver) = watch::channel(());
        asked.waiting.insert(id.clone(), sender);
        drop(asked);
        self.wanted.notify_one();
        Some(MakingEnds(receiver))
    }

    /// Waits until a tenant is asked for.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Returns the tenants of the next step; none if none are asked for. They stay asked for until [`Demand::end`].
    pub fn next(&self) -> Vec<TenantId> {
        let mut asked = self.asked.lock();
        let last = asked.last.take();
        let is_later = |id: &&TenantId| last.as_ref().is_none_or(|last| *id > last);
        let later = asked.waiting.keys().filter(is_later);
        let mut step: Vec<TenantId> = later.take(STEP).cloned().collect();
        if step.is_empty() {
            step = asked.waiting.keys().take(STEP).cloned().collect();
        }
        asked.last = step.last().cloned();
        step
    }

    /// Ends the waiting for a tenant, made or not.
    pub fn end(&self, id: &TenantId) {
        self.asked.lock().waiting.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> TenantId {
        format!("t{n:05}").parse().unwrap()
    }

    #[tokio::test]
    async fn those_that_ask_for_one_tenant_share_its_making() {
        let demand = Demand::default();
        let (first, second) = (demand.ask(&id(1)).unwrap(), demand.ask(&id(1)).unwrap());
        demand.wanted().await;
        assert_eq!(demand.next(), [id(1)]);
        demand.end(&id(1));
        tokio::join!(first.wait(), second.wait());
        assert!(demand.next().is_empty());
    }

    #[test]
    fn the_number_is_bounded_and_every_name_gets_its_turn() {
        let demand = Demand::default();
        for n in 0..MOST {
            assert!(demand.ask(&id(n)).is_some());
        }
        assert!(demand.ask(&id(MOST)).is_none());
        assert!(demand.ask(&id(0)).is_some(), "it shares");
        let mut seen = std::collections::BTreeSet::new();
        // Nothing ends, and still each step has others.
        for _ in 0..MOST / STEP {
            let step = demand.next();
            assert_eq!(step.len(), STEP);
            seen.extend(step);
        }
        assert_eq!(seen.len(), MOST);
        assert_eq!(demand.next()[0], id(0));
    }
}
