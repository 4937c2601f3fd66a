//! The account of groups with history: clients that come back through every fault, and each event at each of them.
//!
//! Clients with `resume` keep the position of the last event that they have, and name it when they come back. Beside them the
//! same clients do without, which shows what the faults cost. At the end each group's whole history is the truth: a client
//! must have all of it from its first position on, each event once, in order.

mod client;
mod scene;

use std::path::Path;
use std::time::{Duration, Instant};

use client::Tally;
use scene::{Fault, Scene};

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Clients that come back with a position; as many come back without.
    pub(crate) clients: usize,
    pub(crate) groups: usize,
    /// The time between two events of a group.
    pub(crate) pace: Duration,
    /// The time between two faults.
    pub(crate) calm: Duration,
    /// How often all faults are played.
    pub(crate) rounds: usize,
}

impl Size {
    pub(crate) const SHORT: Self = Self {
        clients: 40,
        groups: 4,
        pace: Duration::from_millis(50),
        calm: Duration::from_millis(1500),
        rounds: 1,
    };
    pub(crate) const LONG: Self = Self {
        clients: 500,
        groups: 10,
        pace: Duration::from_millis(100),
        calm: Duration::from_secs(4),
        rounds: 3,
    };
}

const PAGE: &str = "docs/guarantees.md";
const BEGIN: &str = "<!-- accounting: begin -->";
const END: &str = "<!-- accounting: end -->";

/// A run with its tallies: of clients with `resume` and without.
struct Account {
    layer: &'static str,
    events: usize,
    faults: usize,
    tallies: [Tally; 2],
    took: Duration,
}

/// Plays all runs. Returns true if no client with `resume` has lost anything.
pub(crate) async fn run(size: Size, write: bool) -> bool {
    let mut accounts = Vec::new();
    for (layer, faults) in [
        ("pubsub", &Fault::ALL[..]),
        ("memory", &Fault::OF_ONE_PROCESS[..]),
    ] {
        let account = play(layer, faults, size).await;
        println!("{}", line(&account));
        accounts.push(account);
    }
    if write {
        publish(&accounts);
    }
    accounts.iter().all(|account| account.tallies[0].is_clean())
}

async fn play(layer: &'static str, faults: &[Fault], size: Size) -> Account {
    let started = Instant::now();
    let mut scene = Scene::set(layer, size).await;
    scene.begin();
    for _ in 0..size.rounds {
        for fault in faults {
            tokio::time::sleep(size.calm).await;
            scene.play(*fault).await;
        }
    }
    tokio::time::sleep(size.calm).await;
    let (events, tallies) = scene.end().await;
    Account {
        layer,
        events,
        faults: faults.len() * size.rounds,
        tallies,
        took: started.elapsed(),
    }
}

fn line(account: &Account) -> String {
    let told = |tally: &Tally| {
        format!(
            "{} clients over {} sockets: {} of {} events, {} missing ({} told), {} double, {} out of order, {} foreign",
            tally.clients,
            tally.sockets,
            tally.got,
            tally.due,
            tally.missing,
            tally.gaps,
            tally.double,
            tally.unordered,
            tally.foreign
        )
    };
    format!(
        "{}: {} events, {} faults, {:.0} s\n  resume:    {}\n  no resume: {}",
        account.layer,
        account.events,
        account.faults,
        account.took.as_secs_f64(),
        told(&account.tallies[0]),
        told(&account.tallies[1])
    )
}

/// Puts the table into the page of guarantees.
fn publish(accounts: &[Account]) {
    let mut table = format!(
        "{BEGIN}\n| layer | clients | sockets | faults | events due | missing | double | out of order, foreign | the same without `resume`: missing of |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for account in accounts {
        let [with, without] = &account.tallies;
        table.push_str(&format!(
            "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} of {} |\n",
            account.layer,
            with.clients,
            with.sockets,
            account.faults,
            with.due,
            with.missing,
            with.double,
            with.unordered + with.foreign,
            without.missing,
            without.due,
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let begin = page
        .find(BEGIN)
        .expect("the page has a place for the table");
    let end = page.find(END).expect("the place has an end");
    let page = format!("{}{table}{}", &page[..begin], &page[end..]);
    std::fs::write(&path, page).expect("the page can be written");
}
