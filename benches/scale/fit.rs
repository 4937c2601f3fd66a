//! Unit costs out of measured totals: least squares without negative costs.

use anyhow::{Context, Result, ensure};

use crate::units::Work;

/// A measured total and the work that it paid for.
pub(crate) struct Equation {
    pub(crate) work: Work,
    pub(crate) total: f64,
}

/// Returns the costs of all things that the equations name. Each equation weighs by its relative error.
///
/// # Errors
/// A thing occurs in no equation, or two things always occur together.
pub(crate) fn costs(equations: &[Equation]) -> Result<Vec<(&'static str, f64)>> {
    let names: Vec<&'static str> = equations
        .first()
        .context("there are equations")?
        .work
        .keys()
        .copied()
        .collect();
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for equation in equations {
        ensure!(equation.total > 0.0, "a total of {}", equation.total);
        let part = |name: &&str| equation.work.get(name).copied().unwrap_or(0.0) / equation.total;
        rows.push(names.iter().map(part).collect());
    }
    // Columns of length 1: counts differ by many orders of magnitude.
    let length = |column: usize| {
        rows.iter()
            .map(|row| row[column].powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let lengths: Vec<f64> = (0..names.len()).map(length).collect();
    for (name, length) in names.iter().zip(&lengths) {
        ensure!(*length > 0.0, "no deployment has {name}");
    }
    for row in &mut rows {
        for (value, length) in row.iter_mut().zip(&lengths) {
            *value /= length;
        }
    }
    let mut kept: Vec<usize> = (0..names.len()).collect();
    let mut found = vec![0.0; names.len()];
    loop {
        let solution = solve(&rows, &kept).with_context(|| names.join(", "))?;
        let lowest = (0..kept.len()).min_by(|a, b| solution[*a].total_cmp(&solution[*b]));
        match lowest {
            // What would be negative is nothing that was seen.
            Some(at) if solution[at] < 0.0 => {
                kept.remove(at);
            }
            _ => {
                for (column, value) in kept.iter().zip(solution) {
                    found[*column] = value / lengths[*column];
                }
                break;
            }
        }
    }
    Ok(names.into_iter().zip(found).collect())
}

/// Solves the normal equations of `rows` × x = 1 for the columns of `kept`.
fn solve(rows: &[Vec<f64>], kept: &[usize]) -> Result<Vec<f64>> {
    let size = kept.len();
    let mut matrix: Vec<Vec<f64>> = { kept.iter() }
        .map(|a| {
            let product = |b: &usize| rows.iter().map(|row| row[*a] * row[*b]).sum::<f64>();
            let mut line: Vec<f64> = kept.iter().map(product).collect();
            line.push(rows.iter().map(|row| row[*a]).sum());
            line
        })
        .collect();
    for column in 0..size {
        let by_size = |a: &usize, b: &usize| {
            matrix[*a][column]
                .abs()
                .total_cmp(&matrix[*b][column].abs())
        };
        let pivot = (column..size).max_by(by_size).unwrap_or(column);
        matrix.swap(column, pivot);
        ensure!(
            matrix[column][column].abs() > 1e-12,
            "two things always occur together"
        );
        let top = matrix[column].clone();
        for line in matrix.iter_mut().skip(column + 1) {
            let factor = line[column] / top[column];
            for (value, above) in line.iter_mut().zip(&top).skip(column) {
                *value -= factor * above;
            }
        }
    }
    let mut solution = vec![0.0; size];
    for column in (0..size).rev() {
        let rest: f64 = (column + 1..size)
            .map(|k| matrix[column][k] * solution[k])
            .sum();
        solution[column] = (matrix[column][size] - rest) / matrix[column][column];
    }
    Ok(solution)
}
