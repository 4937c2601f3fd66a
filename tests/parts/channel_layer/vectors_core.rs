//! The core layer's messages and the pick of hosts against golden vectors of the real `channels_redis` (`tests/vectors/`).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use fernet::Fernet;
use lockgate::channel_layer::Codec;
use lockgate::channel_layer::core::{Envelope, Named};
use lockgate::channel_layer::shards::shard_of;
use lockgate::config::{Secret, SerializerFormat};
use lockgate::event::{DecodeError, Event};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

/// The vectors are older than any `expiry`; the age check has a test of its own.
const ANY_AGE: Duration = Duration::from_secs(100 * 365 * 86_400);

fn load(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(of: &'a Json, key: &str) -> &'a [Json] {
    of[key].as_array().unwrap()
}

fn unhex(of: &Json) -> Vec<u8> {
    let digits = of.as_str().unwrap().as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The tagged notation of the vectors as JSON: the messages here have nothing that JSON has not.
fn plain(tagged: &Json) -> Json {
    let text = || tagged["v"].as_str().unwrap();
    let items = || list(tagged, "v").iter();
    match tagged["t"].as_str().unwrap() {
        "nil" => Json::Null,
        "bool" => tagged["v"].clone(),
        "int" | "float" => serde_json::from_str(text()).unwrap(),
        "str" => text().into(),
        "array" => items().map(plain).collect(),
        "map" => items()
            .map(|pair| {
                (
                    plain(&pair[0]).as_str().unwrap().to_owned(),
                    plain(&pair[1]),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => panic!("{other}"),
    }
}

fn event(tagged: &Json) -> Event {
    Event::from_json(plain(tagged).to_string()).unwrap()
}

/// A configuration of the vectors, and its first key.
fn layer(options: &Json) -> (Envelope, Option<Fernet>) {
    let format = match options["serializer_format"].as_str() {
        Some("json") => SerializerFormat::Json,
        _ => SerializerFormat::MsgPack,
    };
    let keys = options["symmetric_encryption_keys"].as_array();
    let keys: Vec<Secret> = keys
        .into_iter()
        .flatten()
        .map(|key| Secret::from(key.as_str().unwrap()))
        .collect();
    let first = keys.first().map(|key| {
        let digest = Sha256::digest(key.expose().as_bytes());
        Fernet::new(&URL_SAFE.encode(digest)).unwrap()
    });
    let random = options["random_prefix_length"].as_u64().unwrap_or(12);
    let codec = Codec::new(format, &keys);
    let random = u8::try_from(random).unwrap();
    (Envelope::new(codec, random, ANY_AGE), first)
}

/// A stored message is read, and written again to the byte.
fn check(case: &Json, message: &Json, stored: &Json, named: &Named) {
    let name = format!("{} {} {named:?}", case["config"], case["op"]);
    let (envelope, key) = layer(&case["options"]);
    let expected = event(message);
    let opened = envelope.open(&unhex(&stored["member_hex"]));
    assert_eq!(opened, Ok((named.clone(), expected.clone())), "{name}");

    let ours = envelope.seal(&mut expected.clone(), named).unwrap();
    let random = stored["prefix_len"].as_u64().unwrap() as usize;
    let body = &ours[random..];
    match key {
        None => assert_eq!(body, unhex(&stored["body_hex"]), "{name}"),
        Some(key) => {
            let clear = key.decrypt(str::from_utf8(body).unwrap()).unwrap();
            let theirs = String::from_utf8(unhex(&stored["body_hex"])).unwrap();
            assert_eq!(clear, key.decrypt(&theirs).unwrap(), "{name}");
        }
    }
}

#[test]
fn stored_messages_match_to_the_byte_both_ways() {
    let file = load(include_str!("../../vectors/core_members.json"));
    let mut checked = 0;
    for case in list(&file, "cases") {
        if case["op"] == "send" {
            let channel = case["channel"].as_str().unwrap();
            let named = if channel.contains('!') {
                Named::One(channel.into())
            } else {
                Named::Nobody
            };
            check(case, &case["message"], case, &named);
            checked += 1;
            continue;
        }
        for stored in list(case, "stored") {
            let body = plain(&stored["decoded_body"]);
            let names = list(&body, "__asgi_channel__").iter();
            let names = names.map(|name| name.as_str().unwrap().into()).collect();
            check(case, &case["message"], stored, &Named::Members(names));
            checked += 1;
        }
    }
    assert!(checked >= 40, "{checked} messages");
}

#[test]
fn the_age_check_is_that_of_channels() {
    let file = load(include_str!("../../vectors/fernet.json"));
    let key = Fernet::new(&URL_SAFE.encode(Sha256::digest(b"first-key"))).unwrap();
    let codec = Codec::new(SerializerFormat::MsgPack, &[Secret::from("first-key")]);
    let core = Envelope::new(codec.clone(), 0, Duration::from_secs(60));
    let body = Codec::new(SerializerFormat::MsgPack, &[])
        .encode(&Event::new("t", [("n", 1i64.into())]))
        .unwrap();
    let mut checked = 0;
    for case in list(&file, "acceptance") {
        let name = case["name"].as_str().unwrap();
        let age: i64 = match name {
            "age_60" => 60,
            "age_69" => 69,
            "age_75" => 75,
            "age_1day_pubsub" => 86_400,
            "future_30" => -30,
            "future_90" | "future_90_pubsub" => -90,
            _ => continue,
        };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let token = key.encrypt_at_time(&body, now.checked_add_signed(-age).unwrap());
        let opened = if name.ends_with("_pubsub") {
            codec.decode(token.as_bytes()).map(drop)
        } else {
            core.open(token.as_bytes()).map(drop)
        };
        let expected = match case["result"]["ok"].is_object() {
            true => Ok(()),
            false => Err(DecodeError::NotEncrypted),
        };
        assert_eq!(opened, expected, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 7);
}

#[test]
fn names_belong_to_the_hosts_that_channels_redis_picks() {
    let file = load(include_str!("../../vectors/sharding.json"));
    let mut picks = 0;
    for case in list(&file, "picks") {
        let name = case["name"].as_str().unwrap();
        for (hosts, index) in case["index"].as_object().unwrap() {
            let picked = shard_of(name.as_bytes(), hosts.parse().unwrap());
            assert_eq!(picked as u64, *index, "{name} on {hosts} hosts");
            picks += 1;
        }
    }
    for case in list(&file, "observed_on_three_live_servers") {
        let hashed = case["hashed_string"].as_str().unwrap();
        let observed: Vec<u64> = list(case, "observed_index")
            .iter()
            .filter_map(Json::as_u64)
            .collect();
        assert_eq!(observed, [shard_of(hashed.as_bytes(), 3) as u64], "{case}");
        picks += 1;
    }
    assert!(picks >= 100, "{picks} picks");
}
