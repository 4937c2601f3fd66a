//! Rows without a fault between the others, and the judgement on the calm tenant that they make possible.
//!
//! `noise` has the rule. It is the long form's alone: the short form is a step of `tests/run`, which may not depend on a machine
//! that does nothing else.

use crate::field::Size;
use crate::judge::Outcome;
use crate::noise::Noise;
use crate::report::{Played, tell};
use crate::row::Row;
use crate::rows::rows;

/// Rows with a fault between two without one.
const STRIDE: usize = 20;
/// Plays of a row that waited too long. The median counts, so that one disturbance from outside convicts no row.
const PLAYS: usize = 3;

/// Puts rows without a fault before, between and behind the others.
pub(crate) fn interleaved(wanted: Vec<Row>) -> Vec<Row> {
    let quiet = rows().into_iter().find(Row::is_quiet);
    let quiet = quiet.expect("there is a row without a fault");
    let hurting: Vec<Row> = wanted.into_iter().filter(|row| !row.is_quiet()).collect();
    let mut rows = vec![quiet.clone()];
    for some in hurting.chunks(STRIDE) {
        rows.extend(some.iter().cloned());
        rows.push(quiet.clone());
    }
    rows
}

/// Judges the calm tenant of each row, and plays the rows once more that seem to fail. Returns one entry for each row, with the
/// rule that was applied; `None` if no row without a fault could be played.
pub(crate) async fn judged(all: Vec<Played>, size: Size) -> (Vec<Played>, Option<Noise>) {
    let (quiet, mut rows): (Vec<_>, Vec<_>) = all.into_iter().partition(|(row, _)| row.is_quiet());
    let quiet = merged(quiet);
    let ratios = quiet.iter().filter_map(|(_, result)| result.as_ref().ok());
    let ratios = ratios.flat_map(|outcome| outcome.ratios.clone()).collect();
    let noise = Noise::of(ratios);
    if let Some(noise) = &noise {
        println!("{}", noise.words());
        for played in &mut rows {
            once_more(played, noise, size).await;
        }
    }
    (quiet.into_iter().chain(rows).collect(), noise)
}

/// Plays a row again whose calm tenant waited beyond the bound, and says so of the median.
async fn once_more((row, result): &mut Played, noise: &Noise, size: Size) {
    let waited = |outcome: &Outcome| outcome.ratio().is_none_or(|ratio| ratio > noise.bound());
    let Ok(first) = result else { return };
    if row.must.calm_too || !waited(first) {
        return;
    }
    let mut plays = vec![first.clone()];
    while plays.len() < PLAYS {
        println!("{:2} {}: the calm tenant once more", row.number, row.name);
        let again = crate::played(row.clone(), size).await;
        tell(&again);
        match again.1 {
            Ok(outcome) => plays.push(outcome),
            Err(error) => {
                *result = Err(error);
                return;
            }
        }
    }
    let mut outcome = median(plays);
    if waited(&outcome) {
        let text = match outcome.ratio() {
            None => "too few events of the calm tenant for a judgement".to_owned(),
            Some(ratio) => format!(
                "the calm tenant waited: its p99 is {ratio:.2} of that before, at most {:.2} may be",
                noise.bound()
            ),
        };
        println!("   FAILED: {text}");
        outcome.breaches.push(text);
    }
    *result = Ok(outcome);
}

/// The plays of the row without a fault as one entry.
fn merged(quiet: Vec<Played>) -> Option<Played> {
    let (row, _) = quiet.first()?.clone();
    let results: Result<Vec<Outcome>, String> =
        quiet.into_iter().map(|(_, result)| result).collect();
    Some((row, results.map(median)))
}

/// The play with the median ratio, with the ratios and the breaches of all.
fn median(mut plays: Vec<Outcome>) -> Outcome {
    let ratio = |outcome: &Outcome| outcome.ratio().unwrap_or(f64::INFINITY);
    plays.sort_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    let ratios = plays.iter().flat_map(|play| play.ratios.clone()).collect();
    let breaches = plays.iter().flat_map(|play| play.breaches.clone());
    let breaches = breaches.collect();
    let middle = plays.len() / 2;
    Outcome {
        ratios,
        breaches,
        ..plays.swap_remove(middle)
    }
}
