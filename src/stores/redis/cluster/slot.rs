//! Hash slots: the part of a cluster that a key or a sharded channel belongs to, and the key of a command.
//!
//! The crate `redis` computes them as well, but only beside its own cluster client; [`super`] says why that one is not used.

use redis::{Arg, Cmd};

/// The number of slots of every cluster.
pub(super) const SLOTS: u16 = 16_384;

/// Returns the slot of a key, or of a sharded channel: that of its hash tag if it has one.
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(tag_of(key)) % SLOTS
}

/// Returns the text between the first `{` and the next `}`; the whole key if there is none, or nothing between them.
fn tag_of(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(close) => &rest[..close],
    }
}

/// Computes the CRC-16 of XMODEM, four bits at a time: keys are short, so a table of 16 entries is enough.
fn crc16(bytes: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    const TABLE: [u16; 16] = {
        let mut table = [0; 16];
        let mut at = 0;
        while at < 16 {
            let mut value = (at as u16) << 12;
            let mut bit = 0;
            while bit < 4 {
                value = (value << 1) ^ if value & 0x8000 == 0 { 0 } else { POLYNOMIAL };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    let step = |crc: u16, bits: u8| (crc << 4) ^ TABLE[usize::from((crc >> 12) ^ u16::from(bits))];
    bytes
        .iter()
        .fold(0, |crc, byte| step(step(crc, byte >> 4), byte & 0xf))
}

/// The nodes that a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandRoute {
    /// The master that serves a slot.
    Slot(u16),
    /// Any node.
    Anywhere,
    /// Every node that another command of the same round goes to; all nodes if there is no other.
    Along,
}

/// Returns the nodes that a command is for. Its keys are in one slot.
pub(super) fn route_of(command: &Cmd) -> CommandRoute {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => word,
        _ => &[],
    });
    let name = words.next().unwrap_or_default().to_ascii_uppercase();
    let key = match name.as_slice() {
        b"SCRIPT" | b"FUNCTION" => return CommandRoute::Along,
        b"PING" | b"INFO" | b"ROLE" | b"TIME" | b"CONFIG" | b"CLUSTER" | b"ACL" | b"CLIENT"
        | b"PUBSUB" => return CommandRoute::Anywhere,
        b"EVAL" | b"EVALSHA" | b"FCALL" => words.nth(2),
        _ => words.next(),
    };
    key.map_or(CommandRoute::Anywhere, |key| {
        CommandRoute::Slot(slot_of(key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of `CLUSTER KEYSLOT` of Redis 7.0.
    #[test]
    fn slots_are_those_of_redis() {
        for (key, slot) in [
            ("", 0),
            ("123456789", 12739),
            ("foo", 12182),
            ("{foo}bar", 12182),
            ("a{foo}{b}", 12182),
            ("lockgate:acme:history:{foo}", 12182),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
        // Nothing between the braces, or no end: the whole key counts.
        for key in ["{}foo", "{foo"] {
            assert_eq!(slot_of(key.as_bytes()), crc16(key.as_bytes()) % SLOTS);
        }
    }

    #[test]
    fn a_command_goes_where_its_first_key_is() {
        let command = |text: &str| {
            let mut words = text.split(' ');
            let mut command = redis::cmd(words.next().unwrap());
            for word in words {
                command.arg(word);
            }
            command
        };
        let foo = CommandRoute::Slot(12182);
        for (text, route) in [
            ("SET foo 1", foo),
            ("EVALSHA abc 2 {foo}1 {foo}2 x", foo),
            ("SPUBLISH foo x", foo),
            ("SCRIPT LOAD x", CommandRoute::Along),
            ("INFO server", CommandRoute::Anywhere),
            ("EVAL x 0", CommandRoute::Anywhere),
        ] {
            assert_eq!(route_of(&command(text)), route, "{text}");
        }
    }
}
