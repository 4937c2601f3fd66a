//! The pings that clients send as text, since a page cannot send those of the protocol.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire::WireState;
use crate::consumer::Message;
use crate::frame::{Frame, Opcode};

/// The text of a ping, and the `type` of one that is an object.
const PING: &str = "ping";
/// The answer to [`PING`].
const PONG: &str = "pong";

impl WireState {
    /// Answers a ping of the page, if the socket's route wants that. Returns false for any other message.
    pub(super) fn answer_page_ping(&self, message: &Message) -> bool {
        let Message::Text(text) = message else {
            return false;
        };
        let registration = &self.registration;
        let (member, relay) = (registration.member(), registration.relay());
        // Most routes answer none, and their texts are not searched.
        if !relay.answers_pings(member) || !may_be_ping(text) {
            return false;
        }
        let Some(pong) = pong_of(text) else {
            return false;
        };
        let frame = Frame::encode(Opcode::Text, pong.as_bytes(), relay.accounting());
        member.outbound().push_frame(&frame);
        true
    }
}

/// Returns false if a text is certainly no ping. It costs as much as the search for a refresh: nothing for a text that is no
/// object, else one walk over the text.
fn may_be_ping(text: &str) -> bool {
    let json = text.trim_ascii_start();
    text == PING || (json.starts_with('{') && json.contains("\"ping\""))
}

/// Returns the answer to a ping: `pong`, or the same object with the `type` `pong`. `None` if the text is no ping.
///
/// Of two keys `type` the last counts, as in Python and in browsers; all else comes back to the byte.
fn pong_of(text: &str) -> Option<String> {
    if text == PING {
        return Some(PONG.to_owned());
    }
    let Typed { kind: Some(kind) } = serde_json::from_str(text).ok()? else {
        return None;
    };
    if kind.get() != "\"ping\"" {
        return None;
    }
    // The value is a part of `text`, behind the quotes of the key.
    let at = (kind.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let (before, after) = (text.get(..at)?, text.get(at + kind.get().len()..)?);
    Some(format!("{before}\"{PONG}\"{after}"))
}

/// The key of an object that tells a ping.
struct Typed<'t> {
    kind: Option<&'t RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum PingField {
    Type,
    #[serde(other)]
    Other,
}

impl<'t> Deserialize<'t> for Typed<'t> {
    fn deserialize<D: serde::Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TypedVisitor)
    }
}

/// A derived implementation would refuse a repeated key.
struct TypedVisitor;

impl<'t> serde::de::Visitor<'t> for TypedVisitor {
    type Value = Typed<'t>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'t>>(self, mut map: A) -> Result<Typed<'t>, A::Error> {
        let mut kind = None;
        while let Some(name) = map.next_key()? {
            match name {
                PingField::Type => kind = Some(map.next_value()?),
                PingField::Other => drop(map.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        Ok(Typed { kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Option<String> {
        may_be_ping(text).then(|| pong_of(text)).flatten()
    }

    #[test]
    fn a_ping_comes_back_as_a_pong_with_all_that_it_brought() {
        for (ping, pong) in [
            ("ping", "pong"),
            (r#"{"type":"ping"}"#, r#"{"type":"pong"}"#),
            (r#"{"type":"ping","n":5}"#, r#"{"type":"pong","n":5}"#),
            (
                "  { \"t\" : 1.50, \"type\" :\n\"ping\" , \"ä\": [\"ping\", {\"type\": 1}] } ",
                "  { \"t\" : 1.50, \"type\" :\n\"pong\" , \"ä\": [\"ping\", {\"type\": 1}] } ",
            ),
            (
                r#"{"type":"chat","a":"ping","type":"ping"}"#,
                r#"{"type":"chat","a":"ping","type":"pong"}"#,
            ),
            (
                r#"{"a":{"type":"ping"},"type":"ping"}"#,
                r#"{"a":{"type":"ping"},"type":"pong"}"#,
            ),
        ] {
            assert_eq!(answer(ping).as_deref(), Some(pong), "{ping}");
        }
        let deep = |inner: &str| {
            format!(
                "{{\"type\":\"{inner}\",\"a\":{}{}}}",
                "[".repeat(10_000),
                "]".repeat(10_000)
            )
        };
        assert_eq!(answer(&deep("ping")), Some(deep("pong")));
    }

    #[test]
    fn another_frame_is_the_consumers() {
        for text in [
            "",
            "Ping",
            "ping ",
            "\"ping\"",
            "[\"ping\"]",
            r#"{"type":"pong"}"#,
            r#"{"type":"pinged","a":"ping"}"#,
            r#"{"type":"ping","type":"chat"}"#,
            r#"{"type":["ping"]}"#,
            r#"{"a":{"type":"ping"}}"#,
            r#"{"type":"ping""#,
            r#"{"type":"ping"} {}"#,
        ] {
            assert_eq!(answer(text), None, "{text}");
        }
    }
}
