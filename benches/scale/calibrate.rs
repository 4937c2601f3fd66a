//! The calibration: plays the deployments of a file, and finds the unit costs that explain what they took.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::deployment::Deployment;
use crate::fit::{self, Equation};
use crate::model::Model;
use crate::report::{self, Series};
use crate::trial::{self, Lengths, Measured};
use crate::units::{Meter, Unit, Units};

/// Plays all deployments `runs` times.
pub(crate) fn calibrate(
    program: &Path,
    deployments: &[Deployment],
    lengths: Lengths,
    runs: usize,
) -> Result<Units> {
    let load = report::load_average();
    let mut tally = Vec::new();
    for run in 1..=runs {
        let mut measured = Vec::new();
        for deployment in deployments {
            eprintln!("run {run} of {runs}: {}", deployment.name);
            let played = trial::play(program, deployment, lengths);
            measured.push(played.with_context(|| deployment.name.clone())?);
        }
        tally.push(measured);
    }
    let floors = tally.iter().flatten().map(|measured| measured.floor);
    let floor = Series(floors.collect()).median();
    let mut found: Vec<(Meter, &'static str, Series)> = Vec::new();
    for measured in &tally {
        for meter in Meter::ALL {
            let costs = fit::costs(&equations(deployments, measured, meter, floor)?);
            for (name, cost) in costs.with_context(|| meter.name())? {
                let known =
                    |(of, known, _): &&mut (Meter, &str, Series)| *of == meter && *known == name;
                match found.iter_mut().find(known) {
                    Some((.., series)) => series.0.push(cost),
                    None => found.push((meter, name, Series(vec![cost]))),
                }
            }
        }
    }
    let told = format!(
        "{}; commit {}; load average {load} before; runs of each deployment: {runs}, each of {:.0} s",
        report::machine(),
        report::commit(),
        lengths.measured.as_secs_f64()
    );
    let mut units = Units::measured(told, floor);
    for (meter, name, series) in found {
        let unit = Unit {
            median: series.median(),
            lowest: series.0.iter().copied().fold(f64::INFINITY, f64::min),
            highest: series.0.iter().copied().fold(0.0, f64::max),
        };
        units.set(meter, name, unit);
    }
    print!("{}", residuals(&units, deployments, &tally)?);
    Ok(units)
}

fn equations(
    deployments: &[Deployment],
    measured: &[Measured],
    meter: Meter,
    floor: f64,
) -> Result<Vec<Equation>> {
    let pairs = deployments.iter().zip(measured);
    let equations = pairs.map(|(deployment, measured)| {
        Ok(Equation {
            work: model_of(deployment, measured.age)?.work(meter),
            total: measured.of(meter) / measured.at_this_speed(meter, 1.0, floor),
        })
    });
    equations.collect()
}

/// Returns the model of a trial.
pub(crate) fn model_of(deployment: &Deployment, age: f64) -> Result<Model<'_>> {
    Ok(Model {
        deployment,
        fleet: deployment.fleet.context("a trial has a fleet")?,
        age,
    })
}

/// Returns the table of predicted over measured for the deployments of the calibration itself.
fn residuals(units: &Units, deployments: &[Deployment], tally: &[Vec<Measured>]) -> Result<String> {
    let mut lines = Vec::new();
    for (at, deployment) in deployments.iter().enumerate() {
        let mut cells = [const { String::new() }; 6];
        cells[0] = deployment.name.clone();
        for meter in Meter::ALL {
            let ratio = |measured: &Vec<Measured>| {
                let measured = &measured[at];
                let cost = model_of(deployment, measured.age)?.cost(units, meter)?;
                Ok(measured.at_this_speed(meter, cost, units.floor) / measured.of(meter))
            };
            let ratios = Series(tally.iter().map(ratio).collect::<Result<_>>()?);
            cells[meter as usize + 1] = format!("{:.2}", ratios.median());
        }
        lines.push(cells);
    }
    let mut out = String::new();
    let head = ["fitted ÷ measured"]
        .into_iter()
        .chain(Meter::ALL.map(Meter::name));
    let head: Vec<&str> = head.collect();
    let head: &[&str; 6] = head.as_slice().try_into()?;
    report::table(&mut out, head, lines.into_iter(), false);
    Ok(out)
}

/// Fails unless the deployments tell every unit cost from every other: totals made of known costs give these costs again.
pub(crate) fn verify(deployments: &[Deployment]) -> Result<()> {
    const AGE: f64 = 12.0;
    for meter in Meter::ALL {
        let mut equations = Vec::new();
        for deployment in deployments {
            let work = model_of(deployment, AGE)?.work(meter);
            let known = |(name, count): (&&str, &f64)| cost_for_test(name) * count;
            let total = work.iter().map(known).sum();
            equations.push(Equation { work, total });
        }
        for (name, cost) in fit::costs(&equations).with_context(|| meter.name())? {
            let known = cost_for_test(name);
            ensure!(
                (cost / known - 1.0).abs() < 1e-3,
                "{}.{name}: {cost} and not {known}",
                meter.name()
            );
        }
    }
    Ok(())
}

/// A cost that depends on the name and is like no other.
fn cost_for_test(name: &str) -> f64 {
    let mixed = name
        .bytes()
        .fold(7_u64, |mixed, byte| (mixed * 31 + u64::from(byte)) % 1_009);
    1.0 + mixed as f64 / 100.0
}
