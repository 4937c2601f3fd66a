//! The account in words, and as the table of the page of guarantees.

use std::path::Path;

use super::tally::Tally;
use super::world::{Hosts, Run};
use super::{Account, Size};

const PAGE: &str = "docs/guarantees.md";
const BEGIN: &str = "<!-- accounting: begin -->";
const END: &str = "<!-- accounting: end -->";

/// Tells of a run.
pub(super) fn line(account: &Account) -> String {
    let told = |tally: &Tally| {
        format!(
            "{} clients over {} sockets: {} of {} events, {} missing, {} gaps told, {} double, {} out of order, {} foreign",
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
    let sums = &account.sums;
    let complaints: Vec<String> = { sums.tallies[0].complaints.iter() }
        .map(|complaint| format!("\n  FAILED for {complaint}"))
        .collect();
    let verdict = match account.breaches() {
        breaches if breaches.is_empty() => String::new(),
        breaches => format!("FAILED ({}) ", breaches.join(", ")),
    };
    format!(
        "{verdict}{}: {} events, {} answered and not recorded, {} faults, {} closed as slow, {:.0} s\n  resume:    {}\n  no resume: {}{}",
        words(account.run).join(", "),
        sums.events,
        sums.unrecorded,
        account.faults,
        sums.too_slow,
        account.took.as_secs_f64(),
        told(&sums.tallies[0]),
        told(&sums.tallies[1]),
        complaints.concat()
    )
}

/// Layer, hosts, protection and publishers.
fn words(run: Run) -> [&'static str; 4] {
    let hosts = match run.hosts {
        Hosts::None => "none",
        Hosts::One => "1",
        Hosts::Three => "3",
        Hosts::Sentinel => "1, Sentinels",
        Hosts::Cluster => "3, cluster",
    };
    [
        run.layer,
        hosts,
        if run.encrypted { "encrypted" } else { "plain" },
        if run.django { "API and Django" } else { "API" },
    ]
}

/// Puts the table into the page of guarantees.
pub(super) fn publish(accounts: &[Account], size: Size) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let mut table = format!(
        "{BEGIN}\nCommit {}: {} clients with `resume`, {} of them of `clients/js`, and {} without, in {} groups on two replicas (one for \
         `memory`); a {build} build on {cores} cores that clients, servers and publishers share; load average {}.\n\n\
         | layer | hosts | events are | publishers | sockets | faults | events due | missing | double | out of order, foreign | answered, not recorded | the same without `resume`: missing of |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        crate::options::commit(),
        size.clients + size.javascript,
        size.javascript,
        size.without,
        size.groups,
        load.join(" ")
    );
    for account in accounts {
        let [with, without] = &account.sums.tallies;
        let [layer, hosts, events, publishers] = words(account.run);
        table.push_str(&format!(
            "| `{layer}` | {hosts} | {events} | {publishers} | {} | {} | {} | {} | {} | {} | {} | {} of {} |\n",
            with.sockets,
            account.faults,
            with.due,
            with.missing,
            with.double,
            with.unordered + with.foreign,
            account.sums.unrecorded,
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
