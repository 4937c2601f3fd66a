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
    /// What was wrong for which client, of the first few.
    pub(crate) complaints: Vec<String>,
}

/// The most complaints that are kept.
const COMPLAINTS: usize = 8;

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.due > 0 && self.flaws() == 0
    }

    /// The number of all that must not be.
    fn flaws(&self) -> usize {
        self.missing + self.gaps + self.double + self.unordered + self.foreign
    }

    /// Adds a client; `truth` has the numbers of its group's events in the order of their offsets.
    pub(crate) fn add(&mut self, log: &Log, truth: &[u64]) {
        let before = self.flaws();
        self.clients += 1;
        self.sockets += log.sockets;
        self.gaps += log.gaps.len();
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
        let missing: Vec<usize> = { begin..truth.len() }
            .filter(|at| !times.contains_key(at))
            .collect();
        self.got += due.len() - missing.len();
        self.missing += missing.len();
        if self.flaws() > before && self.complaints.len() < COMPLAINTS {
            let again: Vec<usize> = times
                .iter()
                .filter(|(_, n)| **n > 1)
                .map(|(at, _)| *at)
                .collect();
            self.complaints.push(format!(
                "a client of group {} with {} sockets, due {begin}..{}, seen {}: places missing {:?}, twice {again:?}, gaps {:?}",
                log.group,
                log.sockets,
                truth.len(),
                log.seen.len(),
                &missing[..missing.len().min(20)],
                log.gaps
            ));
        }
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
