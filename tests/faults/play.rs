//! One row from calm to calm: the load runs, the fault begins and ends, everything recovers, and the log is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::checker::{Micros, Seen, Session};
use crate::field::{CALM, Field, HURT, Phase, Size};
use crate::judge::{Outcome, judge};
use crate::row::{Row, Sign};
use crate::stage::Stage;
use crate::support::eventually;
use crate::support::http::try_request;
use crate::support::metrics::Metrics;

/// The longest wait for all clients to be there, and for a sign in the metrics.
const PATIENCE: Duration = Duration::from_secs(60);
/// The load before the first event that counts: publishers dial in this time.
const WARM: Duration = Duration::from_millis(500);
/// The load after the recovery.
const AFTER: Duration = Duration::from_secs(1);
/// The longest wait for what is on its way when the load ends.
const EBB: Duration = Duration::from_secs(6);
/// The pause between two looks at the log.
const LOOK: Duration = Duration::from_millis(50);

/// The moments of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// The load is complete.
    pub(crate) loaded: Micros,
    /// The fault begins.
    pub(crate) begun: Micros,
    /// The fault is over.
    pub(crate) lifted: Micros,
    /// Every client has seen an event that was sent after the end, and every connect succeeds again.
    pub(crate) recovered: Option<Micros>,
    pub(crate) over: Micros,
}

impl Times {
    /// The end of what is compared with the time before the fault: the recovery, and as long a time as before at least. A fault
    /// that is over at once would else be judged by the events of a moment.
    pub(crate) fn during_until(&self) -> Micros {
        let recovered = self.recovered.unwrap_or(self.over);
        recovered.max(self.begun + (self.begun - self.loaded))
    }
}

/// What the metrics of each replica said of gaps, by tenant; `None` where it could not be asked.
pub(crate) type Gaps = [[Option<f64>; 2]; 2];

/// Plays a row on servers of its own.
pub(crate) async fn play(row: &Row, size: Size) -> Outcome {
    let mut stage = Stage::set(&row.world, size).await;
    play_on(&mut stage, row).await
}

/// Plays a row on servers that are there.
pub(crate) async fn play_on(stage: &mut Stage, row: &Row) -> Outcome {
    let started = Instant::now();
    let field = Arc::clone(&stage.field);
    let lasts = Duration::from_millis(row.lasts[usize::from(field.size.long)]);
    let mut times = Times::default();
    field.populate(&mut stage.tasks);
    everyone_is_there(&field).await;
    field.load(&mut stage.tasks);
    tokio::time::sleep(WARM).await;
    times.loaded = field.now();
    tokio::time::sleep(field.size.calm).await;

    let gaps_before = gaps(stage).await;
    times.begun = field.now();
    row.fault.begin(stage, lasts).await;
    tokio::time::sleep(lasts).await;
    for sign in row.must.shows {
        shown(stage, sign).await;
    }
    row.fault.end(stage).await;
    times.lifted = field.now();

    let deadline = Instant::now() + Duration::from_secs(row.must.recovers);
    while times.recovered.is_none() && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        times.recovered = has_recovered(&field, times.lifted).then(|| field.now());
    }
    let rest = times.during_until().saturating_sub(field.now());
    tokio::time::sleep(AFTER.max(Duration::from_micros(rest))).await;
    field.phase.send_replace(Phase::Ebbing);
    ebb(&field, row).await;
    field.phase.send_replace(Phase::Over);
    times.over = field.now();
    let mut failures = Vec::new();
    while let Some(ended) = stage.tasks.join_next().await {
        failures.extend(
            ended
                .err()
                .map(|error| format!("a task of the load: {error}")),
        );
    }
    let gaps = [gaps_before, self::gaps(stage).await];
    let mut outcome = judge(&field, row, times, gaps);
    outcome.breaches.append(&mut failures);
    outcome.took = started.elapsed();
    outcome
}

async fn everyone_is_there(field: &Field) {
    let wanted = 2 * (field.size.clients + field.size.victims);
    eventually(
        PATIENCE,
        "every client has its socket",
        async || match field.log.sessions.lock().len() {
            open if open >= wanted => Ok(()),
            open => Err(format!("{open} of {wanted}")),
        },
    )
    .await;
}

/// Waits for a sign in the metrics of the first replica.
async fn shown(stage: &Stage, sign: &Sign) {
    let labels = match sign.label {
        ("", "") => Vec::new(),
        label => vec![label],
    };
    let first = &stage.gateway.replicas[0];
    eventually(PATIENCE, sign.metric, async || {
        let value = first.metrics().await.value(sign.metric, &labels);
        if value >= sign.at_least {
            Ok(())
        } else {
            Err(value)
        }
    })
    .await;
}

/// True once every client that stays has seen a new event, and a connect of each tenant at each replica has succeeded.
///
/// It asks the log where it lies: a copy of it, twenty times a second, would take from the clients the time that is measured.
fn has_recovered(field: &Field, lifted: Micros) -> bool {
    let mut waiting = staying(field);
    for session in field.log.sessions.lock().iter() {
        let session = session.lock();
        if waiting.contains(&session.client) && has_news(field, &session, lifted) {
            waiting.remove(&session.client);
        }
    }
    if !waiting.is_empty() {
        return false;
    }
    let connects = field.log.connects.lock();
    let opened = |tenant| {
        let late = connects.iter().filter(|c| c.began >= lifted);
        late.filter(|c| c.tenant == tenant && c.status == 101)
            .count()
            >= 2
    };
    let refused = connects.iter().rev().take(4);
    let refused = refused.filter(|c| !c.revoked && c.status != 101).count();
    opened(HURT) && opened(CALM) && refused == 0
}

/// True if the socket has seen an event that was sent after `lifted`.
fn has_news(field: &Field, session: &Session, lifted: Micros) -> bool {
    let late = session
        .seen
        .iter()
        .rev()
        .take_while(|(at, _)| *at >= lifted);
    let mut numbers = late.filter_map(|(_, seen)| match *seen {
        Seen::Event { group, number } if group == session.group => Some(number),
        _ => None,
    });
    let sent = field.log.sent[session.group].lock();
    numbers.any(|number| sent.get(number).is_some_and(|sent| sent.at >= lifted))
}

/// The clients that are not there to be revoked.
pub(crate) fn staying(field: &Field) -> BTreeSet<usize> {
    let each = field.size.clients + field.size.victims;
    let clients = (0..2 * each).filter(|client| client % each < field.size.clients);
    clients.collect()
}

/// The log of sockets as it is now.
pub(crate) fn sessions(field: &Field) -> Vec<Session> {
    let sessions = field.log.sessions.lock();
    sessions
        .iter()
        .map(|session| session.lock().clone())
        .collect()
}

/// The log of publishers as it is now.
pub(crate) fn groups(field: &Field) -> Vec<Vec<crate::checker::Sent>> {
    let groups = field.log.sent.iter();
    groups.map(|group| group.lock().clone()).collect()
}

/// Waits until what was sent has arrived and what was revoked is closed, or until it should have.
async fn ebb(field: &Field, row: &Row) {
    let bound = EBB.max(Duration::from_secs(row.must.recovers.min(10)));
    let deadline = Instant::now() + bound;
    while Instant::now() < deadline && !is_quiet(field) {
        tokio::time::sleep(LOOK).await;
    }
    // A second copy would be on its way now.
    tokio::time::sleep(LOOK * 4).await;
}

fn is_quiet(field: &Field) -> bool {
    if field.at_work.load(Ordering::Acquire) > 0 {
        return false;
    }
    let newest: Vec<Option<usize>> = groups(field)
        .iter()
        .map(|sent| sent.iter().rposition(|sent| sent.answered))
        .collect();
    let revoked: BTreeSet<String> = {
        let revocations = field.log.revocations.lock();
        revocations.iter().map(|r| r.jti.clone()).collect()
    };
    let sessions = sessions(field);
    let open = sessions.iter().filter(|session| session.ended.is_none());
    open.into_iter().all(|session| {
        let last = newest[session.group];
        let arrived =
            session.seen.iter().rev().take(20).any(
                |(_, seen)| matches!(*seen, Seen::Event { number, .. } if Some(number) == last),
            );
        (arrived || last.is_none()) && !revoked.contains(&session.jti)
    })
}

async fn gaps(stage: &Stage) -> Gaps {
    let mut found = Gaps::default();
    for (replica, found) in stage.gateway.replicas.iter().zip(&mut found) {
        if !replica.process.is_running() {
            continue;
        }
        let answer = try_request(replica.admin, "GET", "/metrics", &[], "");
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        let Some(metrics) = answer.ok().flatten().map(|a| Metrics::parse(&a.body)) else {
            continue;
        };
        for (tenant, found) in stage.field.tenants.iter().zip(found) {
            let label = [("tenant", tenant.name.as_str())];
            *found = Some(metrics.value("lockgate_gaps_total", &label));
        }
    }
    found
}

/// The number of sockets at each replica and tenant that were told of a gap.
pub(crate) fn told(sessions: &[Session]) -> BTreeMap<(usize, usize), u64> {
    let mut found = BTreeMap::new();
    for session in sessions.iter().filter(|session| session.was_told()) {
        *found.entry((session.replica, session.tenant)).or_default() += 1;
    }
    found
}
