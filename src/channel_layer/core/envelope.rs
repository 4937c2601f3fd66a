//! A message as the core layer stores it: random bytes, then the event with the channels that it is for.

use std::time::Duration;

use crate::event::{DecodeError, EncodeError, Event, Value};

use super::super::Codec;

/// Where a message says which channels it is for; the layer's own key.
const CHANNEL_FIELD: &str = "__asgi_channel__";
/// What an encrypted message may be older than `expiry`, as Channels allows it.
const LATE: Duration = Duration::from_secs(10);

/// The channels that a message names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// None: it was sent to a plain channel.
    Nobody,
    /// One, directly.
    One(Box<str>),
    /// Members of a group.
    Members(Vec<Box<str>>),
}

/// How one layer stores its messages.
#[derive(Clone, Debug)]
pub struct Envelope {
    codec: Codec,
    /// Bytes before the body, which make equal messages distinct.
    random: usize,
}

impl Envelope {
    /// Bodies as `codec` has them, behind `random_prefix_length` bytes; encrypted ones are read up to ten seconds after
    /// `expiry`.
    pub fn new(codec: Codec, random_prefix_length: u8, expiry: Duration) -> Self {
        Self {
            codec: codec.with_max_age(expiry + LATE),
            random: usize::from(random_prefix_length),
        }
    }

    /// How bodies are written.
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// The message for an event that names `channels`; its own word on that is overwritten, as Channels does.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn seal(&self, event: &mut Event, channels: &Named) -> Result<Vec<u8>, EncodeError> {
        let text = |name: &str| Value::Str(name.into());
        match channels {
            Named::Nobody => {}
            Named::One(name) => event.set(CHANNEL_FIELD, text(name)),
            Named::Members(names) => {
                let names = names.iter().map(|name| text(name)).collect();
                event.set(CHANNEL_FIELD, Value::Array(names));
            }
        }
        let body = self.codec.encode(event)?;
        let mut message = vec![0; self.random];
        rand::fill(&mut message[..]);
        message.extend_from_slice(&body);
        Ok(message)
    }

    /// The event of a message, and the channels that it names.
    ///
    /// # Errors
    /// [`DecodeError`], also where the message is shorter than its random part.
    pub fn open(&self, message: &[u8]) -> Result<(Named, Event), DecodeError> {
        let body = message.get(self.random..).ok_or(DecodeError::Truncated)?;
        let mut event = self.codec.decode(body)?;
        let named = match event.remove(CHANNEL_FIELD) {
            None => Named::Nobody,
            Some(Value::Str(name)) => Named::One(name),
            Some(Value::Array(names)) => {
                let text = |name| match name {
                    Value::Str(name) => Some(name),
                    _ => None,
                };
                Named::Members(names.into_iter().filter_map(text).collect())
            }
            Some(_) => Named::Members(Vec::new()),
        };
        Ok((named, event))
    }
}

/// Whether an event says itself which channels it is for; only the layer may.
pub(super) fn is_reserved(event: &Event) -> bool {
    event.get(CHANNEL_FIELD).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Secret, SerializerFormat};

    fn event() -> Event {
        Event::from_json(r#"{"type":"chat.message","n":1}"#).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_without_the_layers_key() {
        for (format, random) in [(SerializerFormat::MsgPack, 12), (SerializerFormat::Json, 0)] {
            let codec = Codec::new(format, &[Secret::from("key")]);
            let envelope = Envelope::new(codec, random, Duration::from_secs(60));
            for named in [
                Named::Nobody,
                Named::One("specific.a!b".into()),
                Named::Members(vec!["specific.a!b".into(), "specific.a!b".into()]),
            ] {
                let message = envelope.seal(&mut event(), &named).unwrap();
                assert_eq!(envelope.open(&message), Ok((named, event())));
            }
        }
    }

    #[test]
    fn equal_events_make_distinct_messages_unless_nothing_is_random() {
        let codec = Codec::new(SerializerFormat::MsgPack, &[]);
        for (random, distinct) in [(12, true), (0, false)] {
            let envelope = Envelope::new(codec.clone(), random, Duration::from_secs(60));
            let seal = || envelope.seal(&mut event(), &Named::Nobody).unwrap();
            assert_eq!(seal() != seal(), distinct);
        }
    }

    #[test]
    fn a_message_shorter_than_its_random_part_is_cut_off() {
        let codec = Codec::new(SerializerFormat::MsgPack, &[]);
        let envelope = Envelope::new(codec, 12, Duration::from_secs(60));
        assert_eq!(envelope.open(&[0; 11]), Err(DecodeError::Truncated));
    }
}
