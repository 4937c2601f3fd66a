//! Unit costs out of measured totals: least squares without negative costs, by the method of Lawson and Hanson ("Solving Least
//! Squares Problems", chapter 23).

use anyhow::{Context, Result, ensure};

use crate::units::Work;

/// The most steps; each thing is taken in and left out a few times at most.
const MOST_STEPS: usize = 1_000;

/// A measured total and the work that it paid for.
pub(crate) struct Equation {
    pub(crate) work: Work,
    pub(crate) total: f64,
}

/// The cost of one thing.
pub(crate) struct Cost {
    pub(crate) name: &'static str,
    pub(crate) cost: f64,
    /// The standard error of the cost if each total has an error of 1 %: what the other things cannot be told from.
    pub(crate) blur: f64,
}

/// Equations with totals of 1 and columns of length 1: counts differ by many orders of magnitude.
struct Scaled {
    names: Vec<&'static str>,
    rows: Vec<Vec<f64>>,
    lengths: Vec<f64>,
}

/// Returns the costs of all things that the equations name. Each equation weighs by its relative error.
///
/// # Errors
/// A thing occurs in no equation, or two things always occur together.
pub(crate) fn costs(equations: &[Equation]) -> Result<Vec<Cost>> {
    let scaled = Scaled::of(equations)?;
    let all: Vec<usize> = (0..scaled.names.len()).collect();
    let inverse = scaled
        .inverse(&all)
        .with_context(|| scaled.names.join(", "))?;
    let found = scaled.without_negative()?;
    let cost = |at: usize| Cost {
        name: scaled.names[at],
        cost: found[at] / scaled.lengths[at],
        blur: 0.01 * inverse[at][at].max(0.0).sqrt() / scaled.lengths[at],
    };
    Ok(all.into_iter().map(cost).collect())
}

impl Scaled {
    fn of(equations: &[Equation]) -> Result<Self> {
        let first = equations.first().context("there are equations")?;
        let names: Vec<&'static str> = first.work.keys().copied().collect();
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for equation in equations {
            ensure!(equation.total > 0.0, "a total of {}", equation.total);
            let part =
                |name: &&str| equation.work.get(name).copied().unwrap_or(0.0) / equation.total;
            rows.push(names.iter().map(part).collect());
        }
        let square = |column: usize| rows.iter().map(|row| row[column].powi(2)).sum::<f64>();
        let lengths: Vec<f64> = (0..names.len()).map(|at| square(at).sqrt()).collect();
        for (name, length) in names.iter().zip(&lengths) {
            ensure!(*length > 0.0, "no deployment has {name}");
        }
        for row in &mut rows {
            for (value, length) in row.iter_mut().zip(&lengths) {
                *value /= length;
            }
        }
        Ok(Self {
            names,
            rows,
            lengths,
        })
    }

    /// Solves the equations for costs of 0 or more.
    fn without_negative(&self) -> Result<Vec<f64>> {
        let mut found = vec![0.0; self.names.len()];
        let mut free: Vec<usize> = Vec::new();
        for _ in 0..MOST_STEPS {
            let gain = |column: usize| {
                let missing = |row: &Vec<f64>| 1.0 - dot(row, &found);
                { self.rows.iter() }
                    .map(|row| row[column] * missing(row))
                    .sum::<f64>()
            };
            let bound = (0..found.len()).filter(|column| !free.contains(column));
            let best = bound
                .map(|column| (column, gain(column)))
                .max_by(|a, b| a.1.total_cmp(&b.1));
            match best {
                Some((column, gain)) if gain > 1e-9 => free.push(column),
                _ => return Ok(found),
            }
            self.settle(&mut free, &mut found)?;
        }
        // What is left differs by rounding.
        Ok(found)
    }

    /// Solves for the things that are `free`; those that would become negative are bound to 0 again.
    fn settle(&self, free: &mut Vec<usize>, found: &mut [f64]) -> Result<()> {
        loop {
            let inverse = self.inverse(free)?;
            let sums: Vec<f64> = { free.iter() }
                .map(|column| self.rows.iter().map(|row| row[*column]).sum())
                .collect();
            let solution: Vec<f64> = inverse.iter().map(|line| dot(line, &sums)).collect();
            // The way to the solution, up to where the first one becomes 0.
            let mut part = 1.0_f64;
            for (column, value) in free.iter().zip(&solution) {
                if *value <= 0.0 {
                    part = part.min(found[*column] / (found[*column] - value));
                }
            }
            for (column, value) in free.iter().zip(&solution) {
                found[*column] += part * (value - found[*column]);
            }
            if part >= 1.0 {
                return Ok(());
            }
            free.retain(|column| {
                let stays = found[*column] > 1e-12;
                if !stays {
                    found[*column] = 0.0;
                }
                stays
            });
        }
    }

    /// Returns the inverse of the normal equations' matrix of these columns.
    fn inverse(&self, columns: &[usize]) -> Result<Vec<Vec<f64>>> {
        let size = columns.len();
        let mut matrix: Vec<Vec<f64>> = Vec::new();
        for (at, a) in columns.iter().enumerate() {
            let product = |b: &usize| self.rows.iter().map(|row| row[*a] * row[*b]).sum::<f64>();
            let mut line: Vec<f64> = columns.iter().map(product).collect();
            line.extend((0..size).map(|column| f64::from(u8::from(column == at))));
            matrix.push(line);
        }
        for column in 0..size {
            let by_size = |a: &usize, b: &usize| {
                let [a, b] = [a, b].map(|row| matrix[*row][column].abs());
                a.total_cmp(&b)
            };
            let pivot = (column..size).max_by(by_size).unwrap_or(column);
            matrix.swap(column, pivot);
            let top = matrix[column][column];
            ensure!(
                top.abs() > 1e-12,
                "two things always occur together; one is {}",
                self.names[columns[column]]
            );
            matrix[column].iter_mut().for_each(|value| *value /= top);
            let line = matrix[column].clone();
            for (at, other) in matrix.iter_mut().enumerate() {
                let factor = other[column];
                if at != column {
                    for (value, above) in other.iter_mut().zip(&line) {
                        *value -= factor * above;
                    }
                }
            }
        }
        Ok(matrix
            .into_iter()
            .map(|line| line[size..].to_vec())
            .collect())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
