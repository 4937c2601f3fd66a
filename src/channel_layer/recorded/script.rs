//! The Lua source of histories, as scripts of the gateway and as a function of back ends. The two are one text.

use std::sync::LazyLock;

use redis::Script;

/// The functions on a history; they are described there.
const HISTORY: &str = include_str!("history.lua");
/// The functions that read. A call makes all functions of its text, so those that record go without.
const READS: &str = include_str!("reads.lua");
/// The functions of the layer `core`.
const MAILBOX: &str = include_str!("mailbox.lua");

/// Records an event and publishes it.
static RECORD: LazyLock<Script> = LazyLock::new(|| Script::new(&record_source(false)));
/// Records an event and publishes it to sharded channels.
static RECORD_SHARDED: LazyLock<Script> = LazyLock::new(|| Script::new(&record_source(true)));

/// Returns the script that records an event and publishes it; with `sharded`, on a cluster.
pub(in crate::channel_layer) fn record(sharded: bool) -> &'static Script {
    match sharded {
        true => &RECORD_SHARDED,
        false => &RECORD,
    }
}

/// Returns the functions on a history. Those for a cluster publish to sharded channels.
fn history(sharded: bool) -> String {
    match sharded {
        true => HISTORY.replace("'PUBLISH'", "'SPUBLISH'"),
        false => HISTORY.to_owned(),
    }
}

/// Reads events after an offset.
pub(in crate::channel_layer) static READ: LazyLock<Script> = LazyLock::new(|| of_reads("read"));
/// Begins a new epoch if the present one is still a given one.
pub(in crate::channel_layer) static RENEW: LazyLock<Script> = LazyLock::new(|| of_reads("renew"));

/// Moves events from a group's mailbox to its history.
pub(in crate::channel_layer) static MOVE: LazyLock<Script> =
    LazyLock::new(|| Script::new(&move_source()));
/// Moves, records an event and publishes it.
pub(in crate::channel_layer) static RECORD_HERE: LazyLock<Script> =
    LazyLock::new(|| Script::new(&mailbox_text("record_here")));
/// Moves and reads.
pub(in crate::channel_layer) static READ_HERE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{HISTORY}\n{READS}\n{MAILBOX}\nreturn read_here(KEYS, ARGV)"
    ))
});

fn mailbox_text(function: &str) -> String {
    format!("{HISTORY}\n{MAILBOX}\nreturn {function}(KEYS, ARGV)")
}

/// The text of [`MOVE`], for a round that loads it.
pub(in crate::channel_layer) fn move_source() -> String {
    mailbox_text("move")
}

fn of_reads(function: &str) -> Script {
    Script::new(&format!(
        "{HISTORY}\n{READS}\nreturn {function}(KEYS, ARGV)"
    ))
}

/// The text of [`record`], which back ends may run by its digest.
pub(in crate::channel_layer) fn record_source(sharded: bool) -> String {
    format!("{}\nreturn record(KEYS, ARGV)", history(sharded))
}

/// The library with the function `lockgate_record`, which takes keys and arguments as [`record`] does. A back end needs no
/// right to run scripts for it. A function that takes other arguments will have another name, so that replicas of two
/// versions may load their libraries in turn.
pub(in crate::channel_layer) fn library(sharded: bool) -> String {
    let history = history(sharded);
    format!("#!lua name=lockgate\n{history}\nredis.register_function('lockgate_record', record)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MAX_PAYLOAD;

    #[test]
    fn the_scripts_and_the_gateway_agree_on_the_longest_event() {
        let line = format!("\nlocal LONGEST_EVENT = {MAX_PAYLOAD}\n");
        assert!(HISTORY.contains(&line));
    }
}
