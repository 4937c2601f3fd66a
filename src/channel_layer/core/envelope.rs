//! The form of a message in the core layer: random bytes, then the event with the names of its channels.

use std::time::Duration;

use crate::event::{DecodeError, EncodeError, Event, Value};

use super::super::Codec;

/// The layer's own key in an event, under which a message names its channels.
const CHANNEL_FIELD: &str = "__asgi_channel__";
/// Time that an encrypted message may be older than `expiry`; Channels allows the same.
const LATE: Duration = Duration::from_secs(10);

/// The channels that a message names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// No channel: the message was sent to a plain channel.
    Nobody,
    /// The channel of a direct send.
    One(Box<str>),
    /// Members of a group.
    Members(Vec<Box<str>>),
}

/// The storage format of one layer's messages.
#[derive(Clone, Debug)]
pub struct Envelope {
    codec: Codec,
    /// The codec of recorded events, which may have any age.
    recorded: Codec,
    /// The number of random bytes before the body. They make equal messages distinct, since a sorted set keeps equal
    /// members once.
    random: usize,
}

impl Envelope {
    /// Builds the format: bodies of `codec` behind `random_prefix_length` random bytes. Encrypted messages are accepted
    /// until ten seconds after `expiry`.
    pub fn new(codec: Codec, random_prefix_length: u8, expiry: Duration) -> Self {
        Self {
            recorded: codec.clone(),
            codec: codec.with_max_age(expiry + LATE),
            random: usize::from(random_prefix_length),
        }
    }

    /// The format of the bodies.
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// The number of random bytes before the body of a message.
    pub fn random_bytes(&self) -> usize {
        self.random
    }

    /// Reads an event of a history: a body alone, of any age.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn open_recorded(&self, body: &[u8]) -> Result<Event, DecodeError> {
        let mut event = self.recorded.decode(body)?;
        event.remove(CHANNEL_FIELD);
        Ok(event)
    }

    /// Builds the message that carries `event` and names `channels`. A channel field that `event` already has is
    /// overwritten, as in Channels.
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

    /// Reads a message: the channels that it names, and its event.
    ///
    /// # Errors
    /// [`DecodeError`], also if the message is shorter than its random part.
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

/// Returns true if an event has the field that only the layer may write.
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
