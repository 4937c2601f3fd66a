//! `dict`: pairs in the order of their first keys; a repeated key keeps its place and takes the last value.

use std::collections::HashMap;
use std::hash::Hash;

/// Collects the pairs of one dict.
///
/// It replaces `indexmap`: an event keeps its fields in a plain vector, and most dicts are too short for hashing to pay.
pub struct Dict<K, V> {
    pairs: Vec<(K, V)>,
    /// Positions by key; built once the dict has more than [`Dict::LINEAR`] pairs.
    index: Option<HashMap<K, usize>>,
    repeated: bool,
}

impl<K, V> Default for Dict<K, V> {
    fn default() -> Self {
        Self {
            pairs: Vec::new(),
            index: None,
            repeated: false,
        }
    }
}

impl<K: Eq + Hash + Clone, V> Dict<K, V> {
    /// The number of pairs up to which a search through all keys is cheaper than hashing.
    const LINEAR: usize = 24;

    /// Does `dict[key] = value`.
    pub fn insert(&mut self, key: K, value: V) {
        let known = match &self.index {
            Some(index) => index.get(&key).copied(),
            None => self.pairs.iter().position(|(old, _)| *old == key),
        };
        if let Some(position) = known {
            self.pairs[position].1 = value;
            self.repeated = true;
            return;
        }
        if let Some(index) = &mut self.index {
            index.insert(key.clone(), self.pairs.len());
        }
        self.pairs.push((key, value));
        if self.index.is_none() && self.pairs.len() > Self::LINEAR {
            let keys = self.pairs.iter().enumerate();
            self.index = Some(keys.map(|(at, (key, _))| (key.clone(), at)).collect());
        }
    }

    /// Returns true if a key came more than once.
    pub fn repeated(&self) -> bool {
        self.repeated
    }

    /// Returns the pairs.
    pub fn into_pairs(self) -> Vec<(K, V)> {
        self.pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_key_keeps_its_place_and_takes_the_last_value() {
        for count in [2, 1000] {
            let mut dict = Dict::default();
            for number in 0..count {
                dict.insert(number, 0);
            }
            assert!(!dict.repeated());
            dict.insert(1, 7);
            assert!(dict.repeated());
            let pairs = dict.into_pairs();
            assert_eq!((pairs.len(), pairs[0], pairs[1]), (count, (0, 0), (1, 7)));
        }
    }
}
