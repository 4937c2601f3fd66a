//! The channel layer against golden vectors that the real `channels_redis` produced (`tests/vectors/`).
//!
//! Known deviations, each asserted below: nesting beyond 64, lone surrogates in JSON text, messages that are no map,
//! and names with Unicode digits or a trailing newline.

use lockgate::channel_layer::Codec;
use lockgate::channel_names::{valid_channel_name, valid_group_name};
use lockgate::config::{Secret, SerializerFormat};
use lockgate::event::{DecodeError, Event, Key, Value};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

fn load(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(of: &'a Json, key: &str) -> &'a [Json] {
    of[key].as_array().unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tagged notation of the vectors as a value; `None` for what has no form on the wire.
fn untag(tagged: &Json) -> Option<Value> {
    let text = || tagged["v"].as_str().unwrap();
    let items = || tagged["v"].as_array().unwrap().iter();
    Some(match tagged["t"].as_str().unwrap() {
        "nil" => Value::Nil,
        "bool" => Value::Bool(tagged["v"].as_bool().unwrap()),
        "int" => match (text().parse::<i64>(), text().parse::<u64>()) {
            (Ok(int), _) => Value::Int(int),
            (_, Ok(int)) => Value::UInt(int),
            _ => Value::BigInt(text().into()),
        },
        "float" => {
            let bits = u64::from_str_radix(tagged["bits"].as_str().unwrap(), 16);
            Value::Float(f64::from_bits(bits.unwrap()))
        }
        "str" => match tagged["repeat"].as_str() {
            Some(piece) => {
                let count = tagged["count"].as_u64().unwrap() as usize;
                piece.repeat(count).into()
            }
            None => text().into(),
        },
        "bin" | "bytearray" | "memoryview" => {
            Value::Bin(unhex(tagged["hex"].as_str().unwrap()).into())
        }
        // An extension type is shown as the named tuple that Python's msgpack makes of it.
        "tuple" if is_extension(tagged) => {
            let code = tagged["v"][0]["v"].as_str().unwrap().parse().unwrap();
            Value::Ext(code, unhex(tagged["v"][1]["hex"].as_str().unwrap()).into())
        }
        "array" | "tuple" => Value::Array(items().map(untag).collect::<Option<_>>()?),
        "map" => {
            let pair = |pair: &Json| {
                let key = match untag(&pair[0])? {
                    Value::Str(text) => Key::Text(text),
                    Value::Bin(bytes) => Key::Bytes(bytes),
                    _ => return None,
                };
                Some((key, untag(&pair[1])?))
            };
            Value::Map(items().map(pair).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn is_extension(tagged: &Json) -> bool {
    let items = list(tagged, "v");
    items.len() == 2 && items[0]["v"] == "42" && items[1]["t"] == "bin"
}

/// Equal, with NaN equal to itself.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Map(a), Value::Map(b)) => {
            let equal = |((k, a), (l, b)): (&(Key, Value), &(Key, Value))| k == l && same(a, b);
            a.len() == b.len() && a.iter().zip(b).all(equal)
        }
        _ => a == b,
    }
}

fn codec(format: &str) -> Codec {
    let format = match format {
        "msgpack" => SerializerFormat::MsgPack,
        _ => SerializerFormat::Json,
    };
    Codec::new(format, &[])
}

/// Asserts that decoding gives the tagged value, or, where that is no map, says so.
fn assert_decodes(name: &str, decoded: Result<Event, DecodeError>, tagged: &Json) {
    if tagged["t"] != "map" {
        assert_eq!(decoded, Err(DecodeError::NotAMap), "{name}");
        return;
    }
    let expected = untag(tagged).unwrap_or_else(|| panic!("{name}: no value for {tagged}"));
    let decoded = decoded.unwrap_or_else(|error| panic!("{name}: {error}"));
    let decoded = Value::Map(decoded.fields);
    assert!(same(&decoded, &expected), "{name}: {decoded:?}");
}

/// The acceptance table; serde_json cannot hold the one lone surrogate that it has as a value.
fn acceptance() -> Json {
    let text = include_str!("../../vectors/decode_acceptance.json");
    load(&text.replace("\"v\": \"\\ud800\"", "\"v\": \"lone surrogate\""))
}

#[test]
fn pubsub_payloads_match_to_the_byte_both_ways() {
    let file = load(include_str!("../../vectors/pubsub_payloads.json"));
    let (mut encoded, mut decoded) = (0, 0);
    for case in list(&file, "cases") {
        let name = format!("{} {}", case["format"], case["name"]);
        let codec = codec(case["format"].as_str().unwrap());
        // Encoding, where our values can hold the message.
        if let Some(Value::Map(fields)) = untag(&case["message"]) {
            let payload = codec.encode(&Event { fields });
            if case["encode_error"].is_string() {
                assert!(payload.is_err(), "{name}");
            } else {
                let payload = payload.unwrap_or_else(|error| panic!("{name}: {error}"));
                match case["payload_hex"].as_str() {
                    Some(expected) => assert_eq!(hex(&payload), expected, "{name}"),
                    None => {
                        assert_eq!(payload.len() as u64, case["payload_len"], "{name}");
                        let digest = hex(&Sha256::digest(&payload));
                        assert_eq!(digest, case["payload_sha256"].as_str().unwrap(), "{name}");
                        assert_decodes(&name, codec.decode(&payload), &case["message"]);
                    }
                }
            }
            encoded += 1;
        }
        // Decoding, where there is a payload.
        if let Some(payload) = case["payload_hex"].as_str() {
            let event = codec.decode(&unhex(payload));
            if case["decode_error"].is_string() {
                assert!(event.is_err(), "{name}");
            } else if case["decoded"] == "same" {
                assert_decodes(&name, event, &case["message"]);
            } else {
                assert_decodes(&name, event, &case["decoded"]);
            }
            decoded += 1;
        }
    }
    assert!(
        encoded >= 40 && decoded >= 40,
        "{encoded} and {decoded} cases"
    );
}

#[test]
fn foreign_msgpack_is_judged_as_channels_judges_it() {
    let file = acceptance();
    for case in list(&file, "msgpack") {
        let name = case["name"].as_str().unwrap();
        let Some(body) = case["body_hex"].as_str() else {
            // Nested arrays inside the map, by count: Channels takes 1,023, we take 63.
            assert!(name.starts_with("nested_arrays_"), "{name}");
            let count: usize = name.rsplit('_').next().unwrap().parse().unwrap();
            let body = [&b"\x82\xa4type\xa1t\xa1n"[..], &vec![0x91; count], b"\xc0"].concat();
            let decoded = codec("msgpack").decode(&body);
            assert_eq!(decoded, Err(DecodeError::TooDeep), "{name}");
            continue;
        };
        let decoded = codec("msgpack").decode(&unhex(body));
        if case["error"].is_string() {
            assert!(decoded.is_err(), "{name}: {decoded:?}");
        } else if name == "timestamp32" {
            let timestamp = Value::Ext(-1, Box::new([0, 0, 0, 1]));
            assert_eq!(decoded.unwrap().get("e"), Some(&timestamp));
        } else {
            assert_decodes(name, decoded, &case["decoded"]);
        }
    }
}

#[test]
fn foreign_json_is_judged_as_channels_judges_it() {
    let file = acceptance();
    for case in list(&file, "json") {
        let name = case["body_hex"].as_str().unwrap();
        let decoded = codec("json").decode(&unhex(name));
        if case["error"].is_string() {
            assert!(decoded.is_err(), "{name}: {decoded:?}");
        } else if case.to_string().contains("lone surrogate") {
            assert_eq!(decoded, Err(DecodeError::NotUnicode), "{name}");
        } else {
            assert_decodes(name, decoded, &case["decoded"]);
        }
    }
}

#[test]
fn fernet_tokens_open_whatever_their_age() {
    let file = load(include_str!("../../vectors/fernet.json"));
    let opens = |keys: &[Secret], token: &str| {
        Codec::new(SerializerFormat::MsgPack, keys).decode(token.as_bytes())
    };
    for case in list(&file, "live") {
        let keys: Option<Vec<Secret>> = list(case, "keys")
            .iter()
            .map(|key| key.as_str().map(Secret::from))
            .collect();
        // A key given as bytes: the configuration holds text, and this one is ASCII.
        let keys = keys.unwrap_or_else(|| {
            let bytes = unhex(case["keys"][0]["bytes_hex"].as_str().unwrap());
            vec![Secret::from(str::from_utf8(&bytes).unwrap())]
        });
        let token = case["token"].as_str().unwrap();
        assert_decodes(token, opens(&keys, token), &case["decoded"]);
    }
    for case in list(&file, "deterministic") {
        let keys = [Secret::from(case["key"].as_str().unwrap())];
        let opened = opens(&keys, case["token"].as_str().unwrap());
        let plain = unhex(case["plaintext_hex"].as_str().unwrap());
        assert_eq!(
            opened,
            codec("msgpack").decode(&plain),
            "{}",
            case["timestamp"]
        );
    }
    for case in list(&file, "acceptance") {
        if let Some(token) = case["token"].as_str() {
            let opened = opens(&[Secret::from("first-key")], token);
            assert_eq!(opened, Err(DecodeError::NotEncrypted), "{}", case["name"]);
        }
    }
}

#[test]
fn names_are_those_of_channels_in_ascii() {
    let file = load(include_str!("../../vectors/names.json"));
    let narrower = |name: &str| !name.is_ascii() || name.ends_with('\n');
    for (list_name, valid) in [
        ("groups", valid_group_name as fn(&str) -> bool),
        ("channels", valid_channel_name),
    ] {
        for case in list(&file, list_name) {
            let name = case["name"].as_str().unwrap();
            let expected = case["valid"] == true && !narrower(name);
            assert_eq!(valid(name), expected, "{list_name} {name:?}");
        }
    }
}
