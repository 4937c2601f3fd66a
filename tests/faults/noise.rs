//! The rule for the tenant that no fault concerns: how much longer its events may take while another tenant is hurt.
//!
//! The p99 of its events during the fault is divided by that before. On a machine that programs share, this ratio is not 1
//! without a fault either: the rows without one say how far from it the machine alone brings it. This file knows numbers alone;
//! `series` plays the rows.

use crate::checker::Micros;

/// The promise: a p99 of at most so many times that before.
pub(crate) const ALLOWED: f64 = 1.2;

/// Arrivals that each side of a ratio needs. Below a hundredth of them no p99 is more than a few late events.
pub(crate) const ENOUGH: usize = 1_000;

/// The times from publish to socket of the calm tenant's events, before the fault and from its beginning on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    pub(crate) p99: [Micros; 2],
    pub(crate) arrivals: [usize; 2],
}

impl Waits {
    /// The p99 during the fault, in units of that before; `None` of too few arrivals.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let [before, during] = self.p99;
        let enough = self.arrivals.iter().all(|count| *count >= ENOUGH);
        (enough && before > 0).then(|| during as f64 / before as f64)
    }
}

/// The ratios of rows without a fault, and what follows from them.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    quiet: Vec<f64>,
}

impl Noise {
    /// `None` without any ratio: there is nothing to judge by.
    pub(crate) fn of(mut quiet: Vec<f64>) -> Option<Self> {
        quiet.sort_by(f64::total_cmp);
        (!quiet.is_empty()).then_some(Self { quiet })
    }

    /// The ratio that the machine explains, at least 1. Without a fault either side may be the slower one by chance, so a ratio
    /// of a half counts as two.
    pub(crate) fn explained(&self) -> f64 {
        let either_way = self.quiet.iter().map(|ratio| ratio.max(1.0 / ratio));
        either_way.fold(1.0, f64::max)
    }

    /// The highest ratio that a row with a fault may have.
    pub(crate) fn bound(&self) -> f64 {
        ALLOWED * self.explained()
    }

    /// The rule with its numbers, for the table.
    pub(crate) fn words(&self) -> String {
        format!(
            "{} without a fault had ratios of {}, so {:.2} = {ALLOWED} × {:.2} is the bound of all rows whose fault does not concern \
             the calm tenant.",
            match self.quiet.len() {
                1 => "One row".to_owned(),
                count => format!("{count} rows"),
            },
            spread(&self.quiet),
            self.bound(),
            self.explained(),
        )
    }
}

/// The lowest and the highest of sorted ratios, or the only one.
pub(crate) fn spread(sorted: &[f64]) -> String {
    match sorted {
        [] => "–".to_owned(),
        [only] => format!("{only:.2}"),
        [first, .., last] => format!("{first:.2}–{last:.2}"),
    }
}

#[cfg(test)]
#[allow(dead_code, reason = "the suite itself has no test harness")]
mod tests {
    use super::*;

    fn waits(p99: [Micros; 2]) -> Waits {
        Waits {
            p99,
            arrivals: [ENOUGH; 2],
        }
    }

    #[test]
    fn a_ratio_needs_arrivals_on_both_sides() {
        assert_eq!(waits([2_000, 3_000]).ratio(), Some(1.5));
        for arrivals in [[ENOUGH - 1, ENOUGH], [ENOUGH, ENOUGH - 1]] {
            let few = Waits {
                arrivals,
                ..waits([2_000, 3_000])
            };
            assert_eq!(few.ratio(), None);
        }
        assert_eq!(waits([0, 3_000]).ratio(), None);
    }

    #[test]
    fn the_bound_is_the_promise_times_what_rows_without_a_fault_show() {
        let bound = |quiet: &[f64]| Noise::of(quiet.to_vec()).expect("some").bound();
        let is = |found: f64, wanted: f64| (found - wanted).abs() < 1e-9;
        // A machine that is still explains nothing.
        assert!(is(bound(&[1.0]), 1.2));
        assert!(is(bound(&[1.1, 1.5, 0.9]), 1.8));
        // The first window may be the one that other programs disturbed.
        assert!(is(bound(&[1.1, 0.5]), 2.4));
        assert!(Noise::of(Vec::new()).is_none());
    }

    #[test]
    fn the_table_tells_the_rule() {
        let words = Noise::of(vec![1.5, 0.9, 1.0]).expect("some").words();
        assert!(
            words.contains("3 rows") && words.contains("0.90–1.50"),
            "{words}"
        );
        assert!(words.contains("1.80 = 1.2 × 1.50"), "{words}");
    }
}
