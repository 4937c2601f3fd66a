//! The table of results, for a terminal and for the page of guarantees.

use std::fmt::Write as _;
use std::path::Path;

use crate::judge::Outcome;
use crate::noise::spread;
use crate::row::{Row, Why};
use crate::rows::absent;

const PAGE: &str = "docs/guarantees.md";
const BEGIN: &str = "<!-- faults: begin -->";
const END: &str = "<!-- faults: end -->";

/// A row with its result; `Err` where it could not be played.
pub(crate) type Played = (Row, Result<Outcome, String>);

/// The breaches of a row.
pub(crate) fn breaches((_, result): &Played) -> Vec<&str> {
    match result {
        Ok(outcome) => outcome.breaches.iter().map(String::as_str).collect(),
        Err(error) => vec![error],
    }
}

/// True for a row that failed, and not by its account of events.
pub(crate) fn may_be_the_machine(played: &Played) -> bool {
    let clean = match &played.1 {
        Ok(outcome) => outcome.hurt.is_clean() && outcome.calm.is_clean(),
        Err(_) => true,
    };
    clean && !breaches(played).is_empty()
}

fn seconds(micros: u64) -> String {
    format!("{:.2}", micros as f64 / 1e6)
}

fn millis(micros: u64) -> String {
    format!("{:.1}", micros as f64 / 1e3)
}

/// The ratio of the calm tenant's p99, with its spread where a row was played several times.
fn ratio(row: &Row, outcome: &Outcome) -> String {
    let mut text = outcome
        .ratio()
        .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
    if outcome.ratios.len() > 1 {
        let mut ratios = outcome.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        let plays = ratios.len();
        text += &format!(" (median of {plays}, {})", spread(&ratios));
    }
    if row.must.calm_too {
        text += ", concerned too";
    }
    text
}

/// Prints the line of a row, and what was wrong.
pub(crate) fn tell(played: &Played) {
    println!("{}", line(played));
    for breach in breaches(played) {
        println!("   FAILED: {breach}");
    }
}

/// One line, while rows are under way.
fn line(played: &Played) -> String {
    let (row, result) = played;
    let name = format!("{:2} {}", row.number, row.name);
    let Ok(outcome) = result else {
        return format!("{name}: could not be played");
    };
    let Outcome { hurt, calm, .. } = outcome;
    format!(
        "{name}: {} of {} events arrived, {} told, {} silent, {} foreign; {} revoked; {} of {} connects refused; \
         recovered p50 {} s, max {} s; calm p99 {} ms, before {} ms, ratio {}, of {} and {} arrivals; {:.0} s",
        hurt.delivered + calm.delivered,
        hurt.expected + calm.expected,
        hurt.announced + calm.announced,
        hurt.silent + calm.silent,
        hurt.foreign + calm.foreign,
        outcome.revoked,
        outcome.connects[1],
        outcome.connects[0],
        seconds(outcome.recovery[0]),
        seconds(outcome.recovery[1]),
        millis(outcome.waits.p99[1]),
        millis(outcome.waits.p99[0]),
        ratio(row, outcome),
        outcome.waits.arrivals[1],
        outcome.waits.arrivals[0],
        outcome.took.as_secs_f64(),
    )
}

/// The table in Markdown, with what has no row below it.
pub(crate) fn markdown(played: &[Played], circumstances: &str) -> String {
    let mut out = format!(
        "{BEGIN}\n{circumstances}\n\n\
         | fault | sockets | events due | lost and told | lost in silence | foreign, twice, out of order | revoked, left | \
         recovery p50, max | calm tenant's p99: before, during | during / before |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for (row, result) in played {
        let Ok(outcome) = result else { continue };
        let both = |of: fn(&crate::checker::Account) -> u64| of(&outcome.hurt) + of(&outcome.calm);
        let left = outcome
            .breaches
            .iter()
            .filter(|b| b.contains("revoked sockets"));
        // Writing into a String cannot fail.
        writeln!(
            out,
            "| {} {} | {} | {} | {} | {} | {}, {}, {} | {}, {} | {} s, {} s | {} ms, {} ms | {} |",
            row.number,
            row.name,
            outcome.sockets,
            both(|account| account.expected),
            both(|account| account.announced),
            both(|account| account.silent),
            both(|account| account.foreign),
            both(|account| account.doubled),
            both(|account| account.swapped),
            outcome.revoked,
            left.count(),
            seconds(outcome.recovery[0]),
            seconds(outcome.recovery[1]),
            millis(outcome.waits.p99[0]),
            millis(outcome.waits.p99[1]),
            ratio(row, outcome),
        )
        .ok();
    }
    out.push_str("\n| fault without a row | held by, or the reason |\n| --- | --- |\n");
    for fault in absent() {
        let why = match fault.why {
            Why::Held(test) => format!("`{test}`"),
            Why::Left(reason) => reason.to_owned(),
        };
        writeln!(out, "| {} {} | {why} |", fault.number, fault.name).ok();
    }
    out.push_str(END);
    out
}

/// Puts the table into the page, in the place of the one before.
pub(crate) fn write(table: &str) -> std::io::Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let text = std::fs::read_to_string(&page)?;
    let found = text.find(BEGIN).zip(text.find(END));
    let (begin, end) = found.ok_or_else(|| std::io::Error::other("the page has no such marks"))?;
    let rest = &text[end + END.len()..];
    std::fs::write(&page, format!("{}{table}{rest}", &text[..begin]))
}
