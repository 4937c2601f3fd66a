//! The check: what other deployments than those of the calibration took, beside their predictions.

use anyhow::Result;

use crate::calibrate::model_of;
use crate::deployment::Deployment;
use crate::model::Model;
use crate::report::{self, Series};
use crate::trial::Measured;
use crate::units::{Meter, Units};

/// The most that a prediction may be wrong by.
const TOLERANCE: f64 = 0.25;

/// The outcome of all trials.
pub(crate) struct Outcome {
    pub(crate) table: String,
    /// The bare `write()` of the check over that of the calibration. Predicted CPU is that for this speed.
    pub(crate) speed: f64,
    /// The predictions that were wrong by more than [`TOLERANCE`].
    pub(crate) wrong: Vec<String>,
}

/// Compares each deployment with its prediction. `tally` has the results of each run.
pub(crate) fn check(
    units: &Units,
    deployments: &[Deployment],
    tally: &[Vec<Measured>],
) -> Result<Outcome> {
    let floors = tally.iter().flatten().map(|measured| measured.floor);
    let speed = Series(floors.collect()).median() / units.floor;
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for (at, deployment) in deployments.iter().enumerate() {
        let mut values = Meter::ALL.map(|_| [Series::default(), Series::default()]);
        for measured in tally.iter().map(|run| &run[at]) {
            let model = model_of(deployment, measured.age)?;
            for (meter, [predicted, seen]) in Meter::ALL.into_iter().zip(&mut values) {
                let (cost, had) = match meter {
                    // A process takes more than some thousand sockets, and would hide them.
                    Meter::GatewayMemory | Meter::RedisMemory => {
                        (model.growth(units, meter)?, measured.growth(meter))
                    }
                    Meter::GatewayCpu | Meter::RedisCpu => {
                        (model.cost(units, meter)? * speed, measured.of(meter))
                    }
                    Meter::RedisClients => (model.cost(units, meter)?, measured.of(meter)),
                };
                predicted.0.push(cost);
                seen.0.push(had);
            }
        }
        let mut cells = [const { String::new() }; 7];
        cells[0] = deployment.name.clone();
        cells[1] = described(&model_of(deployment, 0.0)?);
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
        "sockets' memory, MiB",
        "their memory in Redis, MiB",
        "Redis clients",
    ];
    report::table(&mut table, &head, lines.into_iter(), true);
    Ok(Outcome {
        table,
        speed,
        wrong,
    })
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
        (model.rechecks(), "rechecks/s"),
        (model.revalidations(), "lookups/s"),
    ] {
        if count >= 0.5 {
            parts.push(format!("{count:.0} {what}"));
        }
    }
    match deployment.redis_replicas as u64 {
        0 => {}
        1 => parts.push("1 replica of Redis".to_owned()),
        several => parts.push(format!("{several} replicas of Redis")),
    }
    let has = |what: &str, any: bool| any.then(|| what.to_owned());
    let kinds = || deployment.kinds.iter();
    parts.extend(has("bursts", kinds().any(|kind| kind.burst > 1.0)));
    parts.extend(has("history", kinds().any(|kind| kind.history > 0.0)));
    parts.extend(has("resume", kinds().any(|kind| kind.resume)));
    parts.extend(has("presence", kinds().any(|kind| kind.presence)));
    parts.join(", ")
}
