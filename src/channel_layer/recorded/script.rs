//! The Lua source of histories, as scripts of the gateway and as a function of back ends. The two are one text.

use std::sync::LazyLock;

use redis::Script;

/// The functions on a history; they are described there.
const HISTORY: &str = include_str!("history.lua");

/// Records an event and publishes it.
pub(in crate::channel_layer) static RECORD: LazyLock<Script> = LazyLock::new(|| of("record"));
/// Reads events after an offset.
pub(in crate::channel_layer) static READ: LazyLock<Script> = LazyLock::new(|| of("read"));
/// Begins a new epoch if the present one is still a given one.
pub(in crate::channel_layer) static RENEW: LazyLock<Script> = LazyLock::new(|| of("renew"));

fn of(function: &str) -> Script {
    Script::new(&record_text(function))
}

fn record_text(function: &str) -> String {
    format!("{HISTORY}\nreturn {function}(KEYS, ARGV)")
}

/// The text of [`RECORD`], which back ends may run by its digest.
pub(in crate::channel_layer) fn record_source() -> String {
    record_text("record")
}

/// The library with the function `lockgate_record`, which takes keys and arguments as [`RECORD`] does. A back end needs no
/// right to run scripts for it. A function that takes other arguments will have another name, so that replicas of two
/// versions may load their libraries in turn.
pub(in crate::channel_layer) fn library() -> String {
    format!("#!lua name=lockgate\n{HISTORY}\nredis.register_function('lockgate_record', record)")
}
