//! The calibration: finds the unit costs that explain what played deployments took.

use anyhow::{Context, Result, ensure};

use crate::deployment::Deployment;
use crate::fit::{self, Equation};
use crate::model::Model;
use crate::report::{self, Series};
use crate::trial::{Lengths, Measured};
use crate::units::{Meter, Unit, Units};

/// Finds the unit costs. `tally` has the results of each run, and `load` the load average before them.
pub(crate) fn calibrate(
    deployments: &[Deployment],
    tally: &[Vec<Measured>],
    (lengths, load): (Lengths, &str),
) -> Result<Units> {
    let runs = tally.len();
    let floors = tally.iter().flatten().map(|measured| measured.floor);
    let floor = Series(floors.collect()).median();
    let told = format!(
        "{}; commit {}; load average {load} before; runs of each deployment: {runs}, each of {:.0} s",
        report::machine(),
        report::commit(),
        lengths.measured.as_secs_f64()
    );
    let mut units = Units::measured(told, floor);
    for meter in Meter::ALL {
        let fitted = |runs: &[Vec<Measured>]| {
            let equations = equations(deployments, runs, meter)?;
            fit::costs(&equations).with_context(|| meter.name())
        };
        let each = tally.chunks(1).map(fitted).collect::<Result<Vec<_>>>()?;
        for (at, found) in fitted(tally)?.into_iter().enumerate() {
            let runs = || each.iter().map(|costs| costs[at].cost);
            let unit = Unit {
                cost: found.cost,
                lowest: runs().fold(f64::INFINITY, f64::min),
                highest: runs().fold(0.0, f64::max),
                blur: found.blur,
            };
            units.set(meter, found.name, unit);
        }
    }
    print!("{}", residuals(&units, deployments, tally)?);
    for meter in [Meter::GatewayCpu, Meter::RedisCpu] {
        let error = error(&equations(deployments, tally, meter)?)?;
        println!(
            "{}: the costs explain the totals within {:.1} %",
            meter.name(),
            100.0 * error
        );
    }
    Ok(units)
}

/// Returns the root mean square of the relative errors of fitted totals.
fn error(equations: &[Equation]) -> Result<f64> {
    let costs = fit::costs(equations)?;
    let square = |equation: &Equation| {
        let parts = { costs.iter() }
            .map(|found| found.cost * equation.work.get(found.name).copied().unwrap_or(0.0));
        (parts.sum::<f64>() / equation.total - 1.0).powi(2)
    };
    let squares: f64 = equations.iter().map(square).sum();
    Ok((squares / equations.len() as f64).sqrt())
}

/// Returns one equation for each deployment, with the median of the runs.
fn equations(
    deployments: &[Deployment],
    runs: &[Vec<Measured>],
    meter: Meter,
) -> Result<Vec<Equation>> {
    let equations = deployments.iter().enumerate().map(|(at, deployment)| {
        let runs = || runs.iter().map(|measured| &measured[at]);
        let age = Series(runs().map(|run| run.age).collect()).median();
        Ok(Equation {
            work: model_of(deployment, age)?.work(meter),
            total: Series(runs().map(|run| run.of(meter)).collect()).median(),
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
                Ok(cost / measured.of(meter))
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

/// Fails unless the deployments tell every unit cost from every other: totals made of known costs give these costs again,
/// and an error of 1 % in each total leaves each cost within a quarter that is a tenth of any total.
pub(crate) fn verify(deployments: &[Deployment], units: &Units) -> Result<()> {
    const AGE: f64 = 8.0;
    const MOST: f64 = 0.25;
    const MATTERS: f64 = 0.1;
    for meter in Meter::ALL {
        let mut equations = Vec::new();
        for deployment in deployments {
            let work = model_of(deployment, AGE)?.work(meter);
            let total = units.cost(meter, &work)?;
            equations.push(Equation { work, total });
        }
        for found in fit::costs(&equations).with_context(|| meter.name())? {
            let (name, known) = (found.name, units.get(meter, found.name)?.cost);
            ensure!(
                (found.cost - known).abs() <= 1e-3 * known.max(found.blur),
                "{}.{name}: {} and not {known}",
                meter.name(),
                found.cost
            );
            let part = |equation: &Equation| {
                equation.work.get(name).copied().unwrap_or(0.0) * known / equation.total
            };
            let matters = equations.iter().any(|equation| part(equation) >= MATTERS);
            ensure!(
                !matters || found.blur <= MOST * known,
                "{}.{name}: {known} ± {} for 1 % in each total: the calibration cannot tell it from the others",
                meter.name(),
                found.blur
            );
        }
    }
    Ok(())
}
