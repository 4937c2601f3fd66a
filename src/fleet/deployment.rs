//! The line of all replicas: their control channel and the store of their list, on the Redis of `[redis]`. A reload may move it.

use std::sync::Arc;

use super::Fleet;
use crate::channel_layer::Control;
use crate::stores::key_store::KeyStore;

/// The way to all replicas on one Redis.
pub struct DeploymentLine {
    /// The channel on which they receive questions.
    pub control: Arc<Control>,
    /// The store of their list and of their signs of life.
    pub key_store: KeyStore,
}

impl Fleet {
    /// Returns the line on which all replicas are asked; `None` without a `[redis]`.
    pub fn deployment(&self) -> Option<Arc<DeploymentLine>> {
        self.deployment.load_full()
    }

    /// Changes the line on which all replicas are asked, for later questions.
    pub fn set_deployment(&self, line: Option<Arc<DeploymentLine>>) {
        self.deployment.store(line);
    }
}

/// The stores of the list of all replicas.
#[derive(Default)]
pub(super) struct DeploymentStores {
    /// Those in whose lists this replica is: the present one, and then those that it is about to leave.
    entered: Vec<KeyStore>,
    /// Those whose lists it has to leave.
    left: Vec<KeyStore>,
}

impl DeploymentStores {
    /// Sets the stores in whose lists this replica is to be, the present one first. Returns true if that has moved.
    pub(super) fn replace(&mut self, stores: Vec<KeyStore>) -> bool {
        let before = std::mem::replace(&mut self.entered, stores);
        let has = |stores: &[KeyStore], one: &KeyStore| stores.iter().any(|own| own.is_same(one));
        let now = self.entered.first();
        let moved =
            now.is_some_and(|now| before.first().is_some_and(|before| !before.is_same(now)));
        self.left.retain(|left| !has(&self.entered, left));
        let left = before
            .into_iter()
            .filter(|before| !has(&self.entered, before));
        self.left.extend(left);
        moved
    }

    /// Returns the stores in whose lists this replica is to be, the present one first.
    pub(super) fn entered(&self) -> &[KeyStore] {
        &self.entered
    }

    /// Returns the stores whose lists to enter, the present one first, and those whose lists to leave now.
    pub(super) fn due(&mut self) -> (Vec<KeyStore>, Vec<KeyStore>) {
        (self.entered.clone(), std::mem::take(&mut self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_left_once_and_not_if_a_reload_comes_back_to_it() {
        let [a, b] = [(); 2].map(|()| KeyStore::Memory(Arc::default()));
        let mut stores = DeploymentStores::default();
        let is = |found: &[KeyStore], expected: &[&KeyStore]| {
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(one, other)| one.is_same(other))
        };
        assert!(!stores.replace(vec![a.clone()]));
        assert!(stores.replace(vec![b.clone(), a.clone()]));
        assert!(is(stores.entered(), &[&b, &a]));
        assert!(stores.due().1.is_empty());
        assert!(!stores.replace(vec![b.clone()]));
        assert!(is(&stores.due().1, &[&a]));
        assert!(stores.due().1.is_empty());
        assert!(stores.replace(vec![a.clone()]));
        assert!(stores.replace(vec![b.clone(), a.clone()]));
        assert!(stores.due().1.is_empty(), "it comes back to both");
    }
}
