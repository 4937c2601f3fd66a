//! The suite of faults: every fault that the gateway is known to meet, under load, with an account of every event and socket.
//!
//! `tests/faults/run [--list] [--rows 1,12,41] [--long] [--jobs N] [--gateway BIN] [--write] [--accounting [--clients N]]
//! [--soak 10m [--seed N]]`
//!
//! Two replicas serve two tenants. One tenant's Redis, database, clients or network fail; the other's do not. Numbered events
//! are published, tokens revoked, and sockets opened all the time. `checker` accounts for the log afterwards. The short form
//! is a step of `tests/run`; the long form has 500 clients and longer faults, and judges how long events of the other tenant take.
//! `--write` puts its table into the page of guarantees. `--accounting [--long]` is the account of clients that come back to groups with history; `--rows` names its runs
//! then. The soak plays faults in random order on the same servers, and looks for leaks at its end.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected has failed"
)]

#[allow(dead_code, reason = "the tests of the gateway use all of it")]
#[path = "../gateway/support/mod.rs"]
mod support;

mod accounting;
mod checker;
mod fault;
mod field;
mod holdings;
mod judge;
mod noise;
mod options;
mod play;
mod publish;
mod report;
mod row;
mod rows;
mod series;
mod soak;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_local};

use crate::field::Size;
use crate::options::Options;
use crate::report::{Played, tell};
use crate::row::{Row, Why};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs this program among all others; it takes minutes and both cores.
    if arguments.is_empty() {
        println!("runs only by tests/faults/run, a step of tests/run");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("tests/faults/run: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(binary) = options.gateway.clone() {
        stage::GATEWAY.set(binary).expect("it is set once");
    }
    every_number_is_there();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    // Rows stay on this thread, which waits more than it works; clients and publishers do not.
    let here = tokio::task::LocalSet::new();
    let good = here.block_on(&runtime, async {
        if let Some(size) = options.accounting {
            return accounting::run(size, &options.rows, options.write).await;
        }
        match (&options.soak, options.list) {
            (_, true) => list(&options),
            (Some(soak), _) => soak::run(soak, &options).await,
            (None, false) => run(&options).await,
        }
    });
    // Servers end with this process.
    drop(runtime);
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// No fault is forgotten: each number has a row, a test that holds it, or a reason.
fn every_number_is_there() {
    let mut numbers: BTreeSet<u8> = rows::rows().iter().map(|row| row.number).collect();
    numbers.extend(rows::absent().iter().map(|fault| fault.number));
    let missing: Vec<_> = (1..=rows::LAST).filter(|n| !numbers.contains(n)).collect();
    assert!(
        missing.is_empty(),
        "faults without a row or a reason: {missing:?}"
    );
}

fn list(options: &Options) -> bool {
    for row in rows_of(options) {
        println!("{:2} {}: {:?}", row.number, row.name, row.must);
    }
    for fault in rows::absent() {
        match fault.why {
            Why::Held(test) => println!("{:2} {}: held by {test}", fault.number, fault.name),
            Why::Left(reason) => println!("{:2} {}: left out, {reason}", fault.number, fault.name),
        }
    }
    true
}

/// The rows that are wanted and can be played here.
fn rows_of(options: &Options) -> Vec<Row> {
    let mut rows = rows::rows();
    rows.retain(|row| options.rows.is_empty() || options.rows.contains(&row.number));
    if stage::faketime().is_none() {
        rows.retain(|row| {
            let needs = row.fault.needs_faketime();
            if needs {
                println!(
                    "{:2} {}: left out, libfaketime is absent",
                    row.number, row.name
                );
            }
            !needs
        });
    }
    rows
}

/// Plays all rows, some at a time, and tells of each as it ends.
///
/// A row that failed by its times or its connects is played once more by itself: other programs, or other rows, may have had
/// the cores. What the account of events says is final.
async fn run(options: &Options) -> bool {
    let started = Instant::now();
    let mut rows = rows_of(options);
    if options.size.long {
        rows = series::interleaved(rows);
    }
    let all = play_all(rows, options).await;
    let (all, noise) = match options.size.long {
        true => series::judged(all, options.size).await,
        false => (all, None),
    };
    let failed = all
        .iter()
        .filter(|played| !report::breaches(played).is_empty());
    let failed = failed.count();
    println!(
        "faults: {} rows played, {failed} failed, {} s",
        all.len(),
        started.elapsed().as_secs()
    );
    if options.write {
        let rule = noise.map_or_else(String::new, |noise| format!(" {}", noise.words()));
        let circumstances = options.circumstances() + &rule;
        let table = report::markdown(&all, &circumstances);
        report::write(&table).expect("the page can be written");
    }
    failed == 0
}

/// The plays of all rows, in their order.
async fn play_all(rows: Vec<Row>, options: &Options) -> Vec<Played> {
    let places = Arc::new(Semaphore::new(options.jobs));
    let mut playing = JoinSet::new();
    for (place, row) in rows.into_iter().enumerate() {
        let (places, size) = (Arc::clone(&places), options.size);
        playing.spawn_local(async move {
            let _place = places.acquire().await.expect("never closed");
            (place, played(row, size).await)
        });
    }
    let mut all: BTreeMap<usize, Played> = BTreeMap::new();
    while let Some(ended) = playing.join_next().await {
        let (place, played) = ended.expect("panics are caught");
        tell(&played);
        all.insert(place, played);
    }
    for again in all.values_mut() {
        if report::may_be_the_machine(again) {
            println!("{:2} {}: once more, alone", again.0.number, again.0.name);
            *again = played(again.0.clone(), options.size).await;
            tell(again);
        }
    }
    all.into_values().collect()
}

/// Plays a row in a task of its own, so that a panic is the failure of this row alone.
async fn played(row: Row, size: Size) -> Played {
    let of_row = row.clone();
    let played = spawn_local(async move { play::play(&of_row, size).await }).await;
    (row, played.map_err(|error| words(error.into_panic())))
}

/// The text of a panic.
fn words(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other
            .downcast_ref::<&str>()
            .map_or_else(|| "a panic".to_owned(), |text| (*text).to_owned()),
    }
}
