//! JSON events of back ends and of clients. What is read can be written, and is then read again as the same event.

use lockgate::channel_layer::Codec;
use lockgate::config::SerializerFormat;
use lockgate::event::Event;

fn write_and_read(event: &Event, codec: &Codec) {
    let mut json = String::new();
    if event.write_json(&mut json, false).is_ok() {
        let read: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&json);
        assert!(read.is_ok(), "{json}");
        let again = Event::from_json(&json).expect("what clients get can be read");
        let mut twice = String::new();
        again
            .write_json(&mut twice, false)
            .expect("it was written before");
        assert_eq!(json, twice);
    }
    if let Ok(written) = codec.encode(event) {
        let again = codec.decode(&written).expect("what we write can be read");
        assert_eq!(format!("{event:?}"), format!("{again:?}"));
    }
}

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let codec = Codec::new(SerializerFormat::Json, &[]);
    if let Ok(event) = codec.decode(bytes) {
        write_and_read(&event, &codec);
    }
    if let Ok(event) = Event::from_json(bytes) {
        write_and_read(&event, &codec);
    }
}
