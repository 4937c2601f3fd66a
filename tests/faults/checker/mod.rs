//! Accounts for every event and every socket of a run, from its log alone. It asks no server and knows no fault.
//!
//! An event arrives once and in order, or it is missing inside a gap that its client was told of. Order and arrival are
//! required of events that their publisher was told of as taken: what was sent into an outage may arrive late, or never.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(test)]
#[allow(dead_code, reason = "the suite itself has no test harness")]
mod tests;

/// Microseconds since the beginning of the run.
pub(crate) type Micros = u64;

/// The longest time from the first event after a loss to the frame that tells of it.
pub(crate) const TOLD_WITHIN: Micros = 3_000_000;
/// The close code of a revoked token.
pub(crate) const REVOKED: u16 = 4501;

/// An event that was published; its number is its place in its group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// The moment before the call.
    pub(crate) at: Micros,
    /// True if the call confirmed it.
    pub(crate) answered: bool,
}

/// The frames that a socket saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Event `number` of a group.
    Event { group: usize, number: usize },
    /// The frame that tells of a gap.
    Gap,
}

/// The end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A close frame with this code.
    Closed(u16),
    /// No close frame.
    Cut,
}

/// One socket from its 101 to its end.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The client, which may have had other sockets before.
    pub(crate) client: usize,
    pub(crate) tenant: usize,
    pub(crate) replica: usize,
    pub(crate) group: usize,
    pub(crate) jti: String,
    pub(crate) opened: Micros,
    pub(crate) seen: Vec<(Micros, Seen)>,
    pub(crate) ended: Option<(Micros, End)>,
}

impl Session {
    /// True if its client was told of a gap.
    pub(crate) fn was_told(&self) -> bool {
        self.seen.iter().any(|(_, seen)| *seen == Seen::Gap)
    }
}

/// The sum over all sockets. A socket and an event that it should see are one of `expected`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    /// Missing, and told of.
    pub(crate) announced: u64,
    /// Missing, and not told of.
    pub(crate) silent: u64,
    pub(crate) swapped: u64,
    pub(crate) doubled: u64,
    pub(crate) foreign: u64,
    /// The first breach, in words.
    pub(crate) breach: Option<String>,
}

impl Account {
    /// True if nothing happened that no fault excuses.
    pub(crate) fn is_clean(&self) -> bool {
        self.silent + self.swapped + self.doubled + self.foreign == 0
    }

    fn breach(&mut self, text: impl FnOnce() -> String) {
        self.breach.get_or_insert_with(text);
    }

    /// Adds another account.
    pub(crate) fn add(&mut self, other: Self) {
        self.expected += other.expected;
        self.delivered += other.delivered;
        self.announced += other.announced;
        self.silent += other.silent;
        self.swapped += other.swapped;
        self.doubled += other.doubled;
        self.foreign += other.foreign;
        if let Some(breach) = other.breach {
            self.breach(|| breach);
        }
    }
}

/// Accounts for one socket; `sent` are the events of its group.
pub(crate) fn account(session: &Session, sent: &[Sent]) -> Account {
    let mut account = Account::default();
    // The place and the time of each event of the group that arrived.
    let mut arrived: BTreeMap<usize, (usize, Micros)> = BTreeMap::new();
    let mut newest = None;
    for (place, (at, seen)) in session.seen.iter().enumerate() {
        let Seen::Event { group, number } = *seen else {
            continue;
        };
        let known = sent
            .get(number)
            .filter(|sent| group == session.group && sent.at <= *at);
        let Some(known) = known else {
            account.foreign += 1;
            account.breach(|| format!("{}: event {number} of group {group}", name(session)));
            continue;
        };
        if arrived.contains_key(&number) {
            account.doubled += 1;
            account.breach(|| format!("{}: event {number} twice", name(session)));
            continue;
        }
        arrived.insert(number, (place, *at));
        if known.answered {
            if newest.is_some_and(|newest| number < newest) {
                account.swapped += 1;
                account.breach(|| format!("{}: event {number} out of turn", name(session)));
            }
            newest = newest.max(Some(number));
        }
    }
    losses(&mut account, session, sent, &arrived);
    account
}

fn name(session: &Session) -> String {
    let Session {
        client,
        tenant,
        replica,
        group,
        ..
    } = session;
    format!("client {client} of tenant {tenant}, group {group}, replica {replica}")
}

fn seconds(at: Micros) -> String {
    format!("{:.2}", at as f64 / 1e6)
}

/// Counts what should have arrived, and judges what did not.
fn losses(
    account: &mut Account,
    session: &Session,
    sent: &[Sent],
    arrived: &BTreeMap<usize, (usize, Micros)>,
) {
    let answered = arrived.iter().filter(|(number, _)| sent[**number].answered);
    let taken: BTreeMap<usize, (usize, Micros)> = answered.map(|(n, at)| (*n, *at)).collect();
    // A socket that ended was told so: its client loads what it missed.
    let end = match session.ended {
        Some(_) => taken.keys().last().map_or(0, |last| last + 1),
        None => sent.len(),
    };
    let due = sent.iter().enumerate().take(end);
    for (number, _) in due.filter(|(_, sent)| sent.answered && sent.at > session.opened) {
        account.expected += 1;
        if arrived.contains_key(&number) {
            account.delivered += 1;
            continue;
        }
        let before = taken
            .range::<usize, _>(..number)
            .next_back()
            .map(|(_, at)| at.0);
        let after = taken.range::<usize, _>(number..).next().map(|(_, at)| at.1);
        let in_time = |at: Micros| after.is_none_or(|after| at <= after + TOLD_WITHIN);
        let told = session.seen.iter().enumerate().any(|(place, (at, seen))| {
            *seen == Seen::Gap && before.is_none_or(|before| place > before) && in_time(*at)
        });
        // A socket that ended before its gap was due is told by its end.
        if told || session.ended.is_some_and(|(at, _)| in_time(at)) {
            account.announced += 1;
        } else {
            account.silent += 1;
            account.breach(|| {
                let gaps = session.seen.iter().filter(|(_, seen)| *seen == Seen::Gap);
                let gaps: Vec<_> = gaps.map(|(at, _)| seconds(*at)).collect();
                format!(
                    "{}: event {number}, sent at {} s, is missing and no gap was told; next event: {}, gaps: {gaps:?}",
                    name(session),
                    seconds(sent[number].at),
                    after.map_or_else(|| "none".to_owned(), seconds),
                )
            });
        }
    }
}

/// A revocation that the API has confirmed.
#[derive(Clone, Debug)]
pub(crate) struct Revocation {
    pub(crate) jti: String,
    pub(crate) confirmed: Micros,
}

/// The sockets of revoked tokens that stayed open, or opened, after they should not: `within` of the confirmation, or of
/// `lifted`, the end of the fault, where that came later.
pub(crate) fn survivors(
    revocations: &[Revocation],
    sessions: &[Session],
    lifted: Micros,
    within: Micros,
) -> Vec<String> {
    let mut found = Vec::new();
    for revocation in revocations {
        let bound = revocation.confirmed.max(lifted) + within;
        for session in sessions.iter().filter(|s| s.jti == revocation.jti) {
            if session.opened > revocation.confirmed {
                found.push(format!("{}: opened after its revocation", name(session)));
            } else if session.ended.is_none_or(|(at, _)| at > bound) {
                found.push(format!(
                    "{}: open after its revocation, confirmed at {} s; the fault over at {} s, open until {}",
                    name(session),
                    seconds(revocation.confirmed),
                    seconds(lifted),
                    session.ended.map_or_else(|| "the end".to_owned(), |(at, _)| seconds(at)),
                ));
            }
        }
    }
    found
}

/// The ends that nothing excuses: `allowed` are those of the fault, beside that of a token in `revoked`, whose revocation was
/// asked for.
pub(crate) fn unwanted_ends(
    sessions: &[Session],
    revoked: &BTreeSet<&str>,
    allowed: &[End],
) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for session in sessions {
        let Some((_, end)) = session.ended else {
            continue;
        };
        let of_revocation = end == End::Closed(REVOKED) && revoked.contains(session.jti.as_str());
        if !of_revocation && !allowed.contains(&end) {
            let text = format!("{end:?} at replica {}", session.replica);
            *found.entry(text).or_default() += 1;
        }
    }
    found
}

/// The times from `since` to the first event that was sent after it, one for each client that saw one.
pub(crate) fn recoveries(
    sessions: &[Session],
    groups: &[Vec<Sent>],
    since: Micros,
) -> BTreeMap<usize, Micros> {
    let mut found: BTreeMap<usize, Micros> = BTreeMap::new();
    for session in sessions {
        let first = session.seen.iter().find_map(|(at, seen)| match *seen {
            Seen::Event { group, number } => {
                let sent = groups.get(group)?.get(number)?;
                (sent.at >= since).then(|| at.saturating_sub(since))
            }
            Seen::Gap => None,
        });
        if let Some(first) = first {
            let best = found.entry(session.client).or_insert(first);
            *best = first.min(*best);
        }
    }
    found
}

/// The times from publish to socket of events that were sent from `from` to `until`, sorted.
pub(crate) fn latencies<'a>(
    sessions: impl IntoIterator<Item = &'a Session>,
    groups: &[Vec<Sent>],
    from: Micros,
    until: Micros,
) -> Vec<Micros> {
    let seen = sessions.into_iter().flat_map(|session| &session.seen);
    let mut found: Vec<_> = seen
        .filter_map(|(at, seen)| match *seen {
            Seen::Event { group, number } => {
                let sent = groups.get(group)?.get(number)?.at;
                (from..until)
                    .contains(&sent)
                    .then(|| at.saturating_sub(sent))
            }
            Seen::Gap => None,
        })
        .collect();
    found.sort_unstable();
    found
}

/// The value below which `part` of the sorted values lie; 0 of none.
pub(crate) fn quantile(sorted: &[Micros], part: f64) -> Micros {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or(0)
}
