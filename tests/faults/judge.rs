//! The verdict on a row: its log against what must hold.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checker::{
    Account, Micros, Sent, Session, account, latencies, quantile, recoveries, survivors,
    unwanted_ends,
};
use crate::field::{CALM, Connect, Field, HURT};
use crate::noise::Waits;
use crate::play::{Gaps, Times, groups, sessions, staying, told};
use crate::row::Row;

/// The bound of a p99 in every form. Loose, since other programs share the cores; `noise` has the rule of the long form.
const LOOSE: Micros = 3_000_000;

/// The figures of a row, and what was wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) sockets: usize,
    pub(crate) hurt: Account,
    pub(crate) calm: Account,
    /// Sockets that were told of a gap.
    pub(crate) told: u64,
    pub(crate) revoked: usize,
    /// Connects, and those of them that were refused or cut.
    pub(crate) connects: [usize; 2],
    /// From the end of the fault to events at the clients of `hurt`: p50 and maximum.
    pub(crate) recovery: [Micros; 2],
    /// The events of `calm` before the fault, and from its beginning on: to the recovery, and for as long as before at least.
    pub(crate) waits: Waits,
    /// The ratio of each play of the row.
    pub(crate) ratios: Vec<f64>,
    pub(crate) took: Duration,
    pub(crate) breaches: Vec<String>,
}

impl Outcome {
    /// The p99 of `calm` during the fault, in units of that before; `None` of too few events.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.waits.ratio()
    }
}

/// Judges the log of a run.
pub(crate) fn judge(field: &Field, row: &Row, times: Times, gaps: [Gaps; 2]) -> Outcome {
    let (sessions, groups) = (sessions(field), groups(field));
    let mut outcome = Outcome {
        sockets: sessions.len(),
        ..Outcome::default()
    };
    for session in &sessions {
        let account = account(session, &groups[session.group]);
        match session.tenant {
            HURT => outcome.hurt.add(account),
            _ => outcome.calm.add(account),
        }
    }
    delivery(&mut outcome, row);
    elsewhere(&mut outcome, field, &sessions, times);
    counted(&mut outcome, &sessions, gaps);
    recovery(&mut outcome, field, &sessions, row, times);
    waits(&mut outcome, &sessions, &groups, row, times);
    sockets(&mut outcome, field, &sessions, row, times);
    connects(&mut outcome, &field.log.connects.lock(), row, times);
    outcome
}

/// The times of the calm tenant's events.
fn waits(
    outcome: &mut Outcome,
    sessions: &[Session],
    groups: &[Vec<Sent>],
    row: &Row,
    times: Times,
) {
    let sides = [
        (times.loaded, times.begun),
        (times.begun, times.during_until()),
    ];
    for (side, (from, until)) in sides.into_iter().enumerate() {
        let of_calm = sessions.iter().filter(|session| session.tenant == CALM);
        let found = latencies(of_calm, groups, from, until);
        outcome.waits.p99[side] = quantile(&found, 0.99);
        outcome.waits.arrivals[side] = found.len();
    }
    outcome.ratios.extend(outcome.ratio());
    let during = outcome.waits.p99[1];
    if !row.must.calm_too && during > LOOSE {
        let seconds = during as f64 / 1e6;
        let text = format!("the calm tenant waited: p99 {seconds:.2} s");
        outcome.breaches.push(text);
    }
}

/// Events of both tenants.
fn delivery(outcome: &mut Outcome, row: &Row) {
    let must = &row.must;
    for (name, account, may_miss) in [
        ("hurt", &outcome.hurt, must.gaps),
        ("calm", &outcome.calm, must.gaps && must.calm_too),
    ] {
        if account.expected == 0 {
            outcome.breaches.push(format!("{name}: no event was due"));
        }
        if !account.is_clean() {
            let Account {
                silent,
                swapped,
                doubled,
                foreign,
                ..
            } = account;
            let first = account.breach.as_deref().unwrap_or_default();
            outcome.breaches.push(format!(
                "{name}: {silent} lost in silence, {swapped} out of order, {doubled} twice, {foreign} foreign; first: {first}"
            ));
        } else if account.announced > 0 && !may_miss {
            let lost = account.announced;
            outcome
                .breaches
                .push(format!("{name}: {lost} events lost, where none may be"));
        }
    }
}

/// Groups of `hurt` that the fault does not concern have lost nothing, are told of nothing, and are served meanwhile.
fn elsewhere(outcome: &mut Outcome, field: &Field, sessions: &[Session], times: Times) {
    let concerned = field.concerned.lock();
    let Some(concerned) = &*concerned else {
        return;
    };
    let until = times.recovered.unwrap_or(times.over);
    let mut unserved = Vec::new();
    for group in (0..field.size.groups).filter(|group| !concerned.contains(group)) {
        let sent = field.log.sent[group].lock();
        let meanwhile = sent
            .iter()
            .filter(|sent| (times.begun..until).contains(&sent.at));
        unserved.extend(
            meanwhile
                .filter(|sent| !sent.answered)
                .map(|sent| (group, sent.at)),
        );
    }
    if let Some((group, at)) = unserved.first() {
        let (count, seconds) = (unserved.len(), *at as f64 / 1e6);
        outcome.breaches.push(format!(
            "{count} events of groups that the fault does not concern were refused; first: group {group}, at {seconds:.2} s"
        ));
    }
    let theirs = sessions
        .iter()
        .filter(|session| session.tenant == HURT && !concerned.contains(&session.group));
    let p99 = quantile(&latencies(theirs, &groups(field), times.begun, until), 0.99);
    if p99 > LOOSE {
        let seconds = p99 as f64 / 1e6;
        outcome.breaches.push(format!(
            "groups that the fault does not concern waited: p99 {seconds:.2} s"
        ));
    }
    let others = sessions.iter().filter(|session| {
        session.tenant == HURT && session.ended.is_none() && !concerned.contains(&session.group)
    });
    let groups = groups(field);
    let touched = others.filter(|session| {
        session.was_told() || account(session, &groups[session.group]).announced > 0
    });
    let touched: BTreeSet<usize> = touched.map(|session| session.group).collect();
    if !touched.is_empty() {
        outcome.breaches.push(format!(
            "groups {touched:?} were told of a gap, and the fault concerns only {concerned:?}"
        ));
    }
}

/// Each gap that clients were told of is counted.
fn counted(outcome: &mut Outcome, sessions: &[Session], [before, after]: [Gaps; 2]) {
    for ((replica, tenant), sockets) in told(sessions) {
        outcome.told += sockets;
        let (before, after) = (before[replica][tenant], after[replica][tenant]);
        // A replica that was replaced counts from zero.
        let uncounted = match (before, after) {
            (Some(before), Some(after)) => after == before,
            (None, Some(after)) => after == 0.0,
            (_, None) => false,
        };
        if uncounted {
            outcome.breaches.push(format!(
                "{sockets} sockets of tenant {tenant} were told of a gap that replica {replica} does not count"
            ));
        }
    }
}

fn recovery(outcome: &mut Outcome, field: &Field, sessions: &[Session], row: &Row, times: Times) {
    let back = recoveries(sessions, &groups(field), times.lifted);
    let stay = staying(field);
    let hurt = field.size.clients + field.size.victims;
    let mut took: Vec<_> = back
        .iter()
        .filter(|(client, _)| **client < hurt && stay.contains(client))
        .map(|(_, took)| *took)
        .collect();
    took.sort_unstable();
    outcome.recovery = [quantile(&took, 0.5), quantile(&took, 1.0)];
    if times.recovered.is_none() {
        let missing = stay.iter().filter(|client| !back.contains_key(client));
        let refused = field.log.connects.lock();
        let refused: Vec<u16> = refused.iter().rev().take(4).map(|c| c.status).collect();
        outcome.breaches.push(format!(
            "not recovered after {} s: {} clients get no events; the last connects: {refused:?}",
            row.must.recovers,
            missing.count()
        ));
    }
}

/// Ends of sockets, and revocations.
fn sockets(outcome: &mut Outcome, field: &Field, sessions: &[Session], row: &Row, times: Times) {
    let revocations = field.log.revocations.lock();
    outcome.revoked = revocations.len();
    if revocations.is_empty() {
        outcome.breaches.push("nothing was revoked".to_owned());
    }
    let within = row.must.recovers.min(10) * 1_000_000;
    let left = survivors(&revocations, sessions, times.lifted, within);
    if let Some(first) = left.first() {
        let count = left.len();
        outcome
            .breaches
            .push(format!("{count} revoked sockets; first: {first}"));
    }
    let asked = field.log.asked.lock();
    let revoked: BTreeSet<_> = asked.iter().map(String::as_str).collect();
    for tenant in [HURT, CALM] {
        let allowed = match tenant == HURT || row.must.calm_too {
            true => row.must.ends,
            false => &[],
        };
        let of_tenant = sessions.iter().filter(|s| s.tenant == tenant).cloned();
        let of_tenant: Vec<_> = of_tenant.collect();
        for (end, count) in unwanted_ends(&of_tenant, &revoked, allowed) {
            outcome.breaches.push(format!(
                "{count} sockets of tenant {tenant} ended with {end}"
            ));
        }
    }
}

/// A 503 says "come again", and is right where other programs have the cores. Where this part of the connects of calm times
/// gets one, something else is wrong.
const REFUSED: f64 = 0.25;

fn connects(outcome: &mut Outcome, connects: &[Connect], row: &Row, times: Times) {
    let until = times.recovered.unwrap_or(times.over);
    let mut wrong = Vec::new();
    let (mut in_calm, mut come_again) = (0, 0);
    for connect in connects {
        let hurts = connect.tenant == HURT || row.must.calm_too;
        let during = hurts && connect.ended >= times.begun && connect.began <= until;
        let excused = during && row.must.refusals.contains(&connect.status);
        let right = match connect.revoked {
            true => connect.status == 401 || connect.status == 101 && row.must.forgets && hurts,
            false => connect.status == 101,
        };
        if connect.status != 101 && !connect.revoked {
            outcome.connects[1] += 1;
        }
        in_calm += usize::from(!during);
        if right || excused {
            continue;
        }
        if connect.status == 503 {
            come_again += 1;
        } else {
            wrong.push(connect);
        }
    }
    outcome.connects[0] = connects.len();
    if come_again as f64 > REFUSED * in_calm as f64 {
        outcome.breaches.push(format!(
            "{come_again} connects got a 503 that the fault does not explain, of {in_calm} in calm times"
        ));
    }
    if let Some(first) = wrong.first() {
        let count = wrong.len();
        outcome.breaches.push(format!(
            "{count} connects went wrong; first: {first:?} ({times:?})"
        ));
    }
}
