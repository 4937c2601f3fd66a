//! MessagePack events of back ends. What is read can be written, and is then read again as the same event.

use lockgate::channel_layer::Codec;
use lockgate::config::SerializerFormat;

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let codec = Codec::new(SerializerFormat::MsgPack, &[]);
    let Ok(event) = codec.decode(bytes) else {
        return;
    };
    let mut json = String::new();
    if event.write_json(&mut json, false).is_ok() {
        let read: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&json);
        assert!(read.is_ok(), "{json}");
    }
    if let Ok(written) = codec.encode(&event) {
        let again = codec.decode(&written).expect("what we write can be read");
        assert_eq!(format!("{event:?}"), format!("{again:?}"));
    }
}
