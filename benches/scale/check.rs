//! The check: other deployments than those of the calibration, predicted and then played.

use std::path::Path;

use anyhow::{Context, Result};

use crate::calibrate::model_of;
use crate::deployment::Deployment;
use crate::model::Model;
use crate::report::{self, Series};
use crate::trial::{self, Lengths};
use crate::units::{Meter, Units};

/// The most that a prediction may be wrong by.
const TOLERANCE: f64 = 0.25;

/// The outcome of all trials.
pub(crate) struct Outcome {
    pub(crate) table: String,
    /// The predictions that were wrong by more than [`TOLERANCE`].
    pub(crate) wrong: Vec<String>,
}

/// Plays each deployment `runs` times and compares it with its prediction.
pub(crate) fn check(
    program: &Path,
    units: &Units,
    deployments: &[Deployment],
    lengths: Lengths,
    runs: usize,
) -> Result<Outcome> {
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for deployment in deployments {
        let mut values = Meter::ALL.map(|_| [Series::default(), Series::default()]);
        let mut speeds = Series::default();
        for run in 1..=runs {
            eprintln!("run {run} of {runs}: {}", deployment.name);
            let played = trial::play(program, deployment, lengths);
            let measured = played.with_context(|| deployment.name.clone())?;
            speeds.0.push(measured.floor / units.floor);
            let model = model_of(deployment, measured.age)?;
            for (meter, [predicted, seen]) in Meter::ALL.into_iter().zip(&mut values) {
                let cost = model.cost(units, meter)?;
                predicted
                    .0
                    .push(measured.at_this_speed(meter, cost, units.floor));
                seen.0.push(measured.of(meter));
            }
        }
        let mut cells = [const { String::new() }; 8];
        cells[0] = deployment.name.clone();
        cells[1] = described(&model_of(deployment, 0.0)?);
        cells[7] = format!("{:.2}", speeds.median());
        for (meter, [predicted, seen]) in Meter::ALL.into_iter().zip(&values) {
            let ratio = predicted.over(seen).median();
            let (predicted, seen) = (shown(meter, predicted), shown(meter, seen));
            cells[meter as usize + 2] = format!("{predicted} / {seen} = {ratio:.2}");
            if (ratio - 1.0).abs() > TOLERANCE {
                wrong.push(format!("{}, {}: {ratio:.2}", deployment.name, meter.name()));
            }
        }
        eprintln!("  {}", cells[2..].join(", "));
        lines.push(cells);
    }
    let mut table = String::new();
    let head = [
        "deployment",
        "of",
        "gateway CPU",
        "Redis CPU",
        "gateway memory, MiB",
        "Redis memory, MiB",
        "Redis clients",
        "floor",
    ];
    report::table(&mut table, &head, lines.into_iter(), true);
    Ok(Outcome { table, wrong })
}

fn shown(meter: Meter, series: &Series) -> String {
    let value = series.median();
    match meter {
        // Of one core, which all replicas share here.
        Meter::GatewayCpu | Meter::RedisCpu => format!("{:.1} %", value / 1e4),
        Meter::GatewayMemory | Meter::RedisMemory => format!("{:.1}", value / 1_048_576.0),
        Meter::RedisClients => format!("{value:.0}"),
    }
}

/// Returns the size of a trial in words.
fn described(model: &Model<'_>) -> String {
    let deployment = model.deployment;
    let replicas = match model.fleet.replicas as u64 {
        1 => "1 replica".to_owned(),
        several => format!("{several} replicas"),
    };
    let mut parts = vec![replicas];
    if model.fleet.shards > 1.0 {
        parts.push(format!("{} shards", model.fleet.shards));
    }
    parts.push(format!("{} sockets", deployment.sockets));
    let groups: Vec<String> = { deployment.kinds.iter() }
        .map(|kind| format!("{}", kind.groups))
        .collect();
    parts.push(format!("{} groups", groups.join(" + ")));
    if deployment.tenants > 1.0 {
        parts.push(format!("{} tenants", deployment.tenants));
    }
    for (count, what) in [
        (model.events(|_| true), "events/s"),
        (model.frames(|_| 1.0), "frames/s"),
        (deployment.reconnects_per_second, "reconnects/s"),
        (deployment.revocations_per_second, "revocations/s"),
    ] {
        if count > 0.0 {
            parts.push(format!("{count:.0} {what}"));
        }
    }
    let has = |what: &str, any: bool| any.then(|| what.to_owned());
    let kinds = || deployment.kinds.iter();
    parts.extend(has("bursts", kinds().any(|kind| kind.burst > 1.0)));
    parts.extend(has("history", kinds().any(|kind| kind.history > 0.0)));
    parts.extend(has("presence", kinds().any(|kind| kind.presence)));
    parts.join(", ")
}
