//! The answers about described deployments: fleet, bottleneck, what breaks first at ten times, and the storm after a zone's loss.

use std::fmt::Write as _;

use anyhow::Result;

use crate::deployment::{Deployment, Fleet};
use crate::model::Model;
use crate::plan::{Plan, Reason, Usage, Use, plan};
use crate::report::table;
use crate::storm::Storm;
use crate::units::{Meter, Units};

/// The growth that the answers look at.
const GROWTH: f64 = 10.0;

/// Returns the tables, as Markdown.
pub(crate) fn answers(units: &Units, deployments: &[Deployment]) -> Result<String> {
    let mut columns = Vec::new();
    for deployment in deployments {
        columns.push(column(units, deployment)?);
    }
    let mut out = String::new();
    for (deployment, lines) in deployments.iter().zip(columns) {
        // Writing into a String cannot fail.
        writeln!(out, "**{}**\n", deployment.name).ok();
        table(&mut out, &["question", "answer"], lines.into_iter(), true);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    Ok(out)
}

type Line = [String; 2];

fn column(units: &Units, deployment: &Deployment) -> Result<Vec<Line>> {
    let found = plan(units, deployment)?;
    let mut lines = vec![line("sockets, tenants", sizes(deployment))];
    lines.push(line("fleet", fleet_of(&found)));
    lines.extend(machines(&found));
    lines.push(line("bottleneck", bottleneck(&found)));
    lines.extend(traffic(&found));
    lines.extend(ten_times(units, deployment, &found)?);
    lines.extend(storm(units, &found)?);
    Ok(lines)
}

fn line(question: &str, answer: String) -> Line {
    [question.to_owned(), answer]
}

fn sizes(deployment: &Deployment) -> String {
    let kinds: Vec<String> = { deployment.kinds.iter() }
        .map(|kind| {
            let members = kind.members(deployment.sockets);
            let groups = number(kind.groups);
            format!("{groups} {} of {}", kind.name, of(members, "socket"))
        })
        .collect();
    format!(
        "{}, {}; {}",
        number(deployment.sockets),
        number(deployment.tenants),
        kinds.join(", ")
    )
}

fn fleet_of(plan: &Plan) -> String {
    let Fleet { replicas, shards } = plan.fleet;
    let followers = match plan.cell.redis_replicas {
        0.0 => String::new(),
        count => format!(", each a master and {} of its replicas", number(count)),
    };
    let servers = |cells: f64| {
        let (replicas, shards) = (of(cells * replicas, "replica"), of(cells * shards, "shard"));
        format!("{replicas}, {shards}")
    };
    let each = format!("{}{followers}", servers(1.0));
    if plan.cells == 1.0 {
        return each;
    }
    let reason = match plan.reason {
        Some(Reason::Bound(bound)) => format!("fewer cells exceed the limit of {}", bound.name()),
        Some(Reason::Servers) | None => "fewer cells take more servers".to_owned(),
    };
    format!(
        "{} cells of {each}: {}; {reason}",
        number(plan.cells),
        servers(plan.cells),
    )
}

fn machines(plan: &Plan) -> [Line; 2] {
    let shown = |[cores, bytes, gbit]: [f64; 3]| {
        format!(
            "{:.0} % of a core, {} MiB, {:.2} Gbit/s",
            cores * 100.0,
            number(bytes / 1_048_576.0),
            gbit
        )
    };
    let replica = format!(
        "{} sockets, {}",
        number(plan.cell.sockets / plan.fleet.replicas),
        shown(plan.usage.replica)
    );
    let shard = format!(
        "{}, {} links that take {:.0} % of it while they are idle",
        shown(plan.usage.shard),
        number(plan.usage.links),
        plan.usage.idle / plan.usage.shard[0] * 100.0
    );
    [line("a replica", replica), line("the busiest shard", shard)]
}

fn bottleneck(plan: &Plan) -> String {
    let when = match plan.cell.survives_zone() {
        true => " when a zone is lost",
        false => "",
    };
    format!("{}{when}", tightest(plan.deciding.tightest()))
}

fn tightest(used: Use) -> String {
    format!(
        "{}: {:.0} % of its limit",
        used.bound.name(),
        used.part * 100.0
    )
}

fn traffic(plan: &Plan) -> [Line; 2] {
    let model = Model::settled(&plan.cell, plan.fleet);
    let all = |count: f64| number(count * plan.cells);
    let events = format!(
        "{} events/s, {} copies/s to replicas, {} frames/s",
        all(model.events(|_| true)),
        all(model.copies(|_| true)),
        all(model.frames(|_| 1.0))
    );
    let cell = &plan.cell;
    let work = model.work(Meter::RedisCpu);
    let rechecked = model.rechecks() * Storm::RECHECKED_KEYS;
    let of = |name: &str| work.get(name).copied().unwrap_or(0.0);
    let between = format!(
        "{} keys/s of the denylist read, {} of them by rechecks, {} users/s looked up in the database, {} control messages/s and as many \
         answers, {} presence scripts/s, {} renewals/s, {} missed events/s",
        all(cell.reconnects_per_second * Storm::DENYLIST_KEYS + rechecked),
        all(rechecked),
        all(model.revalidations()),
        all(of("control")),
        all(model.presence_writes()),
        all(model.renewals()),
        all(of("missed"))
    );
    [line("events", events), line("beside them", between)]
}

fn ten_times(units: &Units, deployment: &Deployment, found: &Plan) -> Result<Vec<Line>> {
    let grown = Usage::of(units, &found.cell.times(GROWTH), found.fleet)?;
    let mut broken: Vec<Use> = grown
        .uses
        .into_iter()
        .filter(|used| used.part > 1.0)
        .collect();
    broken.sort_by(|a, b| b.part.total_cmp(&a.part));
    let broken: Vec<String> = { broken.iter() }
        .map(|used| format!("{} {:.1}", used.bound.name(), used.part))
        .collect();
    let again = plan(units, &deployment.times(GROWTH))?;
    Ok(vec![
        line(
            "ten times on the same fleet: so many times the limit",
            broken.join(", "),
        ),
        line("ten times, a new fleet", fleet_of(&again)),
    ])
}

fn storm(units: &Units, plan: &Plan) -> Result<Vec<Line>> {
    let Some(storm) = Storm::of(units, &plan.cell, plan.fleet)? else {
        let why = match plan.cell.zones < 2.0 {
            true => "there is no other zone",
            false => "no replica is in another zone",
        };
        return Ok(vec![line(
            "a zone is lost",
            format!("nothing survives: {why}"),
        )]);
    };
    let all = |count: f64| number(count * plan.cells);
    let given = plan.cell.return_seconds;
    let need = |seconds: Option<f64>| match seconds {
        Some(seconds) => format!("need {seconds:.0} s of their cores"),
        None => "are busy without them".to_owned(),
    };
    let lasts = match storm.lasts(given) {
        Some(seconds) => format!("so that it lasts {seconds:.0} s"),
        None => "so that it does not end".to_owned(),
    };
    let shards = match plan.cell.redis_replicas > 0.0 {
        true => format!(
            "{} subscriptions again after failovers",
            all(storm.resubscribed)
        ),
        false => "its shards and what they hold are gone, since they have no replicas".to_owned(),
    };
    let shown = format!(
        "{} sockets, {} connects/s over {given:.0} s; the other replicas {}, the shards {}, {lasts}; in all {} keys of the denylist, \
         {} presence scripts, {} missed events, {shards}",
        all(storm.sockets),
        all(storm.connects),
        need(storm.replica_seconds),
        need(storm.shard_seconds),
        all(storm.denylist),
        all(storm.presence),
        all(storm.missed),
    );
    Ok(vec![
        line("a zone is lost", shown),
        line("once all are back", tightest(storm.after)),
    ])
}

/// So many of them.
fn of(count: f64, what: &str) -> String {
    let count = number(count);
    match count.as_str() {
        "1" => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// A number with separators, of three digits that count.
fn number(value: f64) -> String {
    // A sum of nothing is -0.
    let value = value + 0.0;
    if value < 10.0 && value.fract() > 1e-9 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
