//! Events to bytes on Redis and back: the format, and encryption where a layer has keys.
//!
//! The bytes are those that `channels_redis` writes with the same `serializer_format` and `symmetric_encryption_keys`.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use fernet::Fernet;
use sha2::{Digest as _, Sha256};

use crate::clock::UnixTime;
use crate::config::{Secret, SerializerFormat};

use super::msgpack;
use crate::event::json;
use crate::event::{DecodeError, EncodeError, Event, MAX_PAYLOAD};
use crate::heavy::{HEAVY_BYTES, heavy};

/// The format and the encryption of one layer's events.
#[derive(Clone)]
pub struct Codec {
    format: SerializerFormat,
    /// The first key encrypts, every key decrypts. Empty: clear text.
    keys: Vec<Fernet>,
    /// The largest age of an encrypted payload; `None`: any age.
    max_age: Option<Duration>,
}

impl Codec {
    /// Builds a codec with the given `symmetric_encryption_keys`; each is hashed (SHA-256) into a Fernet key.
    pub fn new(format: SerializerFormat, keys: &[Secret]) -> Self {
        let key = |key: &Secret| {
            let digest = URL_SAFE.encode(Sha256::digest(key.expose().as_bytes()));
            Fernet::new(&digest).expect("32 bytes in URL-safe base64 are a Fernet key")
        };
        Self {
            format,
            keys: keys.iter().map(key).collect(),
            max_age: None,
        }
    }

    /// Refuses encrypted payloads that are older than `max_age` or dated more than a minute ahead, as the core layer of
    /// Channels does. The age is counted in whole seconds, from the sender's clock to ours.
    pub fn with_max_age(self, max_age: Duration) -> Self {
        Self {
            max_age: Some(max_age),
            ..self
        }
    }

    /// Encodes `event`.
    ///
    /// # Errors
    /// [`EncodeError`] if the format cannot carry a value, or if no reader would take the payload.
    pub fn encode(&self, event: &Event) -> Result<Vec<u8>, EncodeError> {
        heavy(event.is_heavy(), || self.encode_here(event))
    }

    fn encode_here(&self, event: &Event) -> Result<Vec<u8>, EncodeError> {
        let mut body = Vec::with_capacity(256);
        match self.format {
            SerializerFormat::MsgPack => msgpack::write_event(&event.fields, &mut body)?,
            SerializerFormat::Json => {
                let mut text = String::with_capacity(256);
                json::write_event(&event.fields, &mut text)?;
                body = text.into_bytes();
            }
        }
        let payload = match self.keys.first() {
            Some(key) => key.encrypt(&body).into_bytes(),
            None => body,
        };
        event.check_size(payload.len())?;
        Ok(payload)
    }

    /// Decodes `payload`. Without [`Codec::with_max_age`] encrypted payloads may have any age, as in the pub/sub layer of
    /// Channels.
    ///
    /// # Errors
    /// [`DecodeError`], which never quotes the payload.
    pub fn decode(&self, payload: &[u8]) -> Result<Event, DecodeError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(DecodeError::TooLong);
        }
        heavy(payload.len() >= HEAVY_BYTES, || {
            match self.keys.is_empty() {
                true => self.decode_body(payload),
                false => self.decode_body(&self.decrypt(payload)?),
            }
        })
    }

    fn decode_body(&self, body: &[u8]) -> Result<Event, DecodeError> {
        match self.format {
            SerializerFormat::MsgPack => msgpack::read(body)?.try_into(),
            SerializerFormat::Json => json::read_python(body)?.try_into(),
        }
    }

    fn decrypt(&self, token: &[u8]) -> Result<Vec<u8>, DecodeError> {
        // The crate refuses tokens dated more than a minute after "now". Channels' pub/sub layer does not check the date,
        // so "now" is set far ahead.
        const NO_AGE_CHECK: u64 = u64::MAX / 2;
        // The crate also opens tokens without their padding; Channels does not.
        let token = str::from_utf8(token).ok();
        let token = token.filter(|token| token.len().is_multiple_of(4));
        let token = token.ok_or(DecodeError::NotEncrypted)?;
        let (ttl, now) = match self.max_age {
            Some(max_age) => (Some(max_age.as_secs()), UnixTime::now().0 as u64),
            None => (None, NO_AGE_CHECK),
        };
        let mut opened = self
            .keys
            .iter()
            .filter_map(|key| key.decrypt_at_time(token, ttl, now).ok());
        opened.next().ok_or(DecodeError::NotEncrypted)
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = format_args!("{} keys", self.keys.len());
        f.debug_struct("Codec")
            .field("format", &self.format)
            .field("keys", &keys)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{MAX_VALUES, Value};

    fn event() -> Event {
        Event::from_json(r#"{"type":"chat.message","text":"ä","n":[1,-1,1.5,null,true]}"#).unwrap()
    }

    #[test]
    fn each_format_reads_what_it_writes_with_and_without_keys() {
        for format in [SerializerFormat::MsgPack, SerializerFormat::Json] {
            for keys in [vec![], vec![Secret::from("new"), Secret::from("old")]] {
                let codec = Codec::new(format, &keys);
                let payload = codec.encode(&event()).unwrap();
                assert_eq!(codec.decode(&payload), Ok(event()));
                let other = Codec::new(format, &[Secret::from("other")]);
                assert_eq!(other.decode(&payload), Err(DecodeError::NotEncrypted));
            }
        }
    }

    #[test]
    fn any_key_opens() {
        let old = Codec::new(SerializerFormat::MsgPack, &[Secret::from("old")]);
        let both = [Secret::from("new"), Secret::from("old")];
        let both = Codec::new(SerializerFormat::MsgPack, &both);
        assert_eq!(both.decode(&old.encode(&event()).unwrap()), Ok(event()));
        assert!(old.decode(&both.encode(&event()).unwrap()).is_err());
    }

    #[test]
    fn eight_mebibytes_are_the_bound() {
        let codec = Codec::new(SerializerFormat::MsgPack, &[]);
        let text = |len: usize| Event {
            fields: vec![("t".into(), Value::Str("x".repeat(len).into()))],
        };
        // One byte for the map, two for the key, five for the header of the text.
        let longest = codec.encode(&text(MAX_PAYLOAD - 8)).unwrap();
        assert!(codec.decode(&longest).is_ok());
        assert_eq!(
            codec.encode(&text(MAX_PAYLOAD - 7)),
            Err(EncodeError::TooLong)
        );
        let longer = [longest, vec![0]].concat();
        assert_eq!(codec.decode(&longer), Err(DecodeError::TooLong));
    }

    /// More values than a reader takes used to be written all the same.
    #[test]
    fn what_no_reader_takes_is_not_written() {
        for format in [SerializerFormat::MsgPack, SerializerFormat::Json] {
            let codec = Codec::new(format, &[]);
            let values = |count: usize| Event {
                fields: vec![("n".into(), Value::Array(vec![Value::Nil; count]))],
            };
            let most = codec.encode(&values(MAX_VALUES - 3)).unwrap();
            assert!(codec.decode(&most).is_ok());
            let more = codec.encode(&values(MAX_VALUES));
            assert_eq!(more, Err(EncodeError::TooManyValues));
        }
    }

    #[test]
    fn a_codec_prints_no_key() {
        let codec = Codec::new(SerializerFormat::Json, &[Secret::from("hunter2")]);
        assert_eq!(format!("{codec:?}"), "Codec { format: Json, keys: 1 keys }");
    }
}
