//! Payloads of foreign writers. None may end a subscription, stop another group, or be taken for another event.

use std::iter::repeat_n;

use lockgate::channel_layer::{ChannelLayer, Codec};
use lockgate::config::{Secret, SerializerFormat};
use lockgate::event::{DecodeError, Event, MAX_PAYLOAD, Value};

use super::support::*;

on_each_server!(
    no_payload_harms_its_subscription_or_its_neighbour,
    json_and_encrypted_layers_refuse_what_is_not_theirs,
    an_event_belongs_to_the_channel_it_was_published_on,
);

/// The result of a payload.
enum Fate {
    /// An event.
    Event,
    /// Dropped by the decoder.
    NotDecoded,
    /// An event that has no form for a client.
    NotRendered,
    /// Either, as long as nothing breaks.
    Any,
    /// Dropped before the inbox.
    Skipped,
}

fn plain() -> Codec {
    Codec::new(SerializerFormat::MsgPack, &[])
}

/// Returns a map of `type` and `n` with this value of `n`.
fn with(value: &[u8]) -> Vec<u8> {
    [&b"\x82\xa4type\xa1t\xa1n"[..], value].concat()
}

/// Returns bytes that look random. The length is the seed, so every run has the same bytes.
fn noise(len: usize) -> Vec<u8> {
    let mut state = len as u64 | 1;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn json(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn rows() -> Vec<(&'static str, Fate, Vec<Vec<u8>>)> {
    use Fate::{Any, NotDecoded, NotRendered, Skipped};
    let good = payload(7);
    let many_keys = (0..100_000).map(|n| (format!("k{n}").as_str().into(), Value::Int(n)));
    let many_keys = Event {
        fields: many_keys.collect(),
    };
    let padded = |len: usize| {
        // One byte for the map, two for the key, five for the header of the text.
        let text = [
            &[0x81, 0xa1, b'p', 0xdb][..],
            &(len as u32 - 8).to_be_bytes(),
        ]
        .concat();
        [text, vec![b'x'; len - 8]].concat()
    };
    let nested = |open: &[u8], depth: usize| with(&[open.repeat(depth), vec![0xc0]].concat());
    let secret = |key: &str| {
        let codec = Codec::new(SerializerFormat::MsgPack, &[Secret::from(key)]);
        codec.encode(&event(1)).unwrap()
    };
    vec![
        ("empty", NotDecoded, vec![vec![]]),
        ("noise", Any, vec![noise(1), noise(1 << 20)]),
        ("one byte", Any, (0..=255).map(|byte| vec![byte]).collect()),
        (
            "truncated",
            NotDecoded,
            (0..good.len()).map(|end| good[..end].to_vec()).collect(),
        ),
        (
            "trailing bytes",
            NotDecoded,
            vec![[&good[..], b"\xc0"].concat(), good.repeat(2)],
        ),
        ("reserved byte", NotDecoded, vec![vec![0xc1], with(b"\xc1")]),
        (
            "claimed length",
            NotDecoded,
            [0xdd_u8, 0xdf, 0xdb, 0xc6, 0xc9]
                .map(|head| with(&[head, 255, 255, 255, 255, 0]))
                .into(),
        ),
        (
            "depth",
            NotDecoded,
            [100, 1000, 100_000]
                .into_iter()
                .flat_map(|depth| [nested(b"\x91", depth), nested(b"\x81\xa1k", depth)])
                .collect(),
        ),
        (
            "depth: at the bound",
            Fate::Event,
            vec![nested(b"\x91", 63), nested(b"\x81\xa1k", 63)],
        ),
        ("size", Skipped, vec![padded(MAX_PAYLOAD + 1)]),
        ("size: at the bound", Fate::Event, vec![padded(MAX_PAYLOAD)]),
        (
            "no map",
            NotDecoded,
            vec![
                b"\xc0".into(),
                b"\x01".into(),
                b"\xa1t".into(),
                b"\x91\x01".into(),
            ],
        ),
        (
            "many keys",
            Fate::Event,
            vec![plain().encode(&many_keys).unwrap()],
        ),
        (
            "key",
            NotDecoded,
            [&b"\x01"[..], b"\xc0", b"\xc3", b"\xcb\x3f\xf8\0\0\0\0\0\0"]
                .map(|key| [b"\x82\xa4type\xa1t", key, b"\x01"].concat())
                .into(),
        ),
        (
            "key: bytes as key",
            NotRendered,
            vec![b"\x82\xa4type\xa1t\xc4\x01k\x01".into()],
        ),
        (
            "key twice",
            Fate::Event,
            vec![b"\x82\xa4type\xa1t\xa4type\xa1u".into()],
        ),
        (
            "not UTF-8",
            NotDecoded,
            vec![with(b"\xa1\xff"), with(b"\xa3\xed\xa0\x80")],
        ),
        (
            "bytes",
            NotRendered,
            vec![with(b"\xc4\x01t"), b"\x81\xa4type\xc4\x01t".into()],
        ),
        (
            "extension",
            NotRendered,
            vec![with(b"\xd6\xff\0\0\0\x01"), with(b"\xd4\x2a\x01")],
        ),
        (
            "extension: bad timestamp",
            NotDecoded,
            vec![with(b"\xd4\xff\x01")],
        ),
        (
            "float",
            NotRendered,
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
                .map(|n| with(&[&b"\xcb"[..], &n.to_be_bytes()].concat()))
                .into(),
        ),
        (
            "large integer",
            Fate::Event,
            vec![
                with(b"\xcf\x00\x20\0\0\0\0\0\x01"),
                with(&[&[0xcf][..], &[255; 8]].concat()),
            ],
        ),
        (
            "type",
            Fate::Event,
            vec![b"\x81\xa4type\xa3a.b".into(), b"\x81\xa4type\xa3a_b".into()],
        ),
        ("JSON", NotDecoded, vec![json(r#"{"type": "t", "n": 1}"#)]),
        ("encrypted", NotDecoded, vec![secret("any")]),
        (
            "prefix",
            NotDecoded,
            vec![[noise(12), good.clone()].concat()],
        ),
    ]
}

fn renders(event: &Event) -> bool {
    event.write_json(&mut String::new(), false).is_ok()
}

async fn no_payload_harms_its_subscription_or_its_neighbour(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let (acme, neighbour) = (replica.tenant("acme"), replica.tenant("neighbour"));
    acme.join("g").await;
    neighbour.join("g").await;
    let mut link = redis.link().await;
    for (row, fate, payloads) in rows() {
        for (number, bytes) in payloads.iter().enumerate() {
            let name = format!("{row} {number}");
            let judged = plain().decode(bytes);
            let as_expected = match fate {
                Fate::Event => judged.as_ref().is_ok_and(renders),
                Fate::NotDecoded => judged.is_err(),
                Fate::NotRendered => judged.as_ref().is_ok_and(|event| !renders(event)),
                Fate::Skipped => judged == Err(DecodeError::TooLong),
                Fate::Any => true,
            };
            assert!(as_expected, "{name}: {:?}", judged.map(|_| "an event"));
            assert_eq!(
                publish(&mut link, &channel("acme", "g"), bytes).await,
                1,
                "{name}"
            );
            if !matches!(fate, Fate::Skipped) {
                let expected_event = judged.is_ok();
                let heard = acme.heard().await;
                assert_eq!(
                    matches!(heard, Heard::Number(..)),
                    expected_event,
                    "{name}: {heard:?}"
                );
            }
        }
        acme.send("g", 1).await;
        assert_eq!(acme.numbers(1).await, [1], "{row}");
        neighbour.send("g", 2).await;
        assert_eq!(neighbour.numbers(1).await, [2], "{row}");
    }
    assert_eq!(
        (acme.heard_so_far(), neighbour.heard_so_far()),
        (vec![], vec![])
    );
}

/// Numbers beyond 2⁵³ keep every digit.
#[test]
fn big_integers_reach_clients_exactly() {
    let event = plain()
        .decode(&with(b"\xcf\x00\x20\0\0\0\0\0\x01"))
        .unwrap();
    let mut out = String::new();
    event.write_json(&mut out, true).unwrap();
    assert_eq!(out, r#"{"n":9007199254740993}"#);
}

/// A JSON layer refuses MessagePack; an encrypted layer refuses plain payloads and wrong keys.
async fn json_and_encrypted_layers_refuse_what_is_not_theirs(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let json_codec = Codec::new(SerializerFormat::Json, &[]);
    let keys = ["new", "first-key"].map(Secret::from);
    let secret_codec = Codec::new(SerializerFormat::MsgPack, &keys);
    let as_json = replica.tenant_with("json", 0, json_codec.clone());
    let secret = replica.tenant_with("secret", 0, secret_codec);
    as_json.join("g").await;
    secret.join("g").await;
    let mut link = redis.link().await;
    let other = Codec::new(SerializerFormat::MsgPack, &[Secret::from("other")]);
    for (tenant, prefix, bytes) in [
        (&as_json, "json", payload(1)),
        (&as_json, "json", repeat_n(b'[', 100_000).collect()),
        (
            &as_json,
            "json",
            json("{\"type\": \"t\", \"s\": \"\\ud800\"}"),
        ),
        (&secret, "secret", payload(1)),
        (&secret, "secret", other.encode(&event(1)).unwrap()),
    ] {
        publish(&mut link, &channel(prefix, "g"), &bytes).await;
        assert_eq!(tenant.heard().await, Heard::NotDecoded);
    }
    // Encrypted in 2023: the pub/sub layer of Channels has no age check.
    let old = "gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD8jNzDVzFtAtMYFsHSKogzK1axNrRPikLqU5LGOp_p7QoZqktJnk9YwT9dqwg7Ai-Zt9vGbULHWi742tEjnDkxVtBXR_ACM-QS8qDQ5mCyJK";
    publish(&mut link, &channel("secret", "g"), old.as_bytes()).await;
    assert_eq!(secret.numbers(1).await, [-1]);
    for tenant in [&as_json, &secret] {
        tenant.send("g", 5).await;
        assert_eq!(tenant.numbers(1).await, [5]);
    }
    assert_eq!(
        json_codec.encode(&event(5)).unwrap(),
        json(r#"{"type": "t", "n": 5}"#)
    );
}

/// The channel alone decides to which tenant and group an event belongs.
async fn an_event_belongs_to_the_channel_it_was_published_on(server: Server) {
    let redis = Redis::of(server).await;
    let replica = replica(&redis.url());
    let (a, b) = (replica.tenant("a"), replica.tenant("b"));
    a.join("g").await;
    b.join("g").await;
    let mut link = redis.link().await;
    // An event that claims to be of tenant a, on b's channel.
    let claim =
        Event::from_json(r#"{"type":"t","tenant":"a","group":"a__group__g","n":1}"#).unwrap();
    let claim = b.layer.codec().encode(&claim).unwrap();
    publish(&mut link, &channel("b", "g"), &claim).await;
    assert_eq!(b.numbers(1).await, [1]);
    for name in [&b"a__group__\xff"[..], b"\xff\xfe", b"a__group__g\n"] {
        let mut command = link.publishing();
        let reached: u64 = command
            .arg(name)
            .arg(payload(2))
            .query_async(&mut link)
            .await
            .unwrap();
        assert_eq!(reached, 0);
    }
    a.send("g", 3).await;
    assert_eq!(a.numbers(1).await, [3]);
    assert_eq!(b.heard_so_far(), []);
}
