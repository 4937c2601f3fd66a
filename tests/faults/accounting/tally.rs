//! The sums over the logs of some clients, against the truth.

use std::collections::HashMap;

use super::client::Log;

/// What some clients got of what they were due.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) clients: usize,
    pub(crate) sockets: usize,
    pub(crate) due: usize,
    pub(crate) got: usize,
    pub(crate) missing: usize,
    pub(crate) gaps: usize,
    pub(crate) double: usize,
    pub(crate) unordered: usize,
    pub(crate) foreign: usize,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.due > 0 && self.missing + self.gaps + self.double + self.unordered + self.foreign == 0
    }

    /// Adds a client; `truth` has the numbers of its group's events in the order of their offsets.
    pub(crate) fn add(&mut self, log: &Log, truth: &[u64]) {
        self.clients += 1;
        self.sockets += log.sockets;
        self.gaps += log.gaps;
        let place: HashMap<u64, usize> = truth.iter().copied().zip(0..).collect();
        let due = &truth[first_due(log, &place, truth.len())..];
        let mut times: HashMap<usize, usize> = HashMap::new();
        let mut last = None;
        for number in &log.seen {
            let Some(at) = number.and_then(|number| place.get(&number).copied()) else {
                self.foreign += 1;
                continue;
            };
            let again = times.entry(at).or_default();
            *again += 1;
            match *again {
                1 => {
                    self.unordered += usize::from(last.is_some_and(|last| at < last));
                    last = Some(at);
                }
                _ => self.double += 1,
            }
        }
        self.due += due.len();
        let begin = truth.len() - due.len();
        let got = (begin..truth.len())
            .filter(|at| times.contains_key(at))
            .count();
        self.got += got;
        self.missing += due.len() - got;
    }
}

/// Returns the place of the first event that a client is owed: behind its first position, or, without positions, its first one.
fn first_due(log: &Log, place: &HashMap<u64, usize>, all: usize) -> usize {
    let first = match log.first {
        Some(offset) if log.resumes => usize::try_from(offset).ok(),
        // It never had a socket, and is owed everything.
        None if log.resumes => Some(0),
        _ => {
            let mut numbers = log.seen.iter().flatten();
            numbers.next().and_then(|number| place.get(number).copied())
        }
    };
    first.unwrap_or(all).min(all)
}
