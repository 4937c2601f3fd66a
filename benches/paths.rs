//! Benchmarks of the steps of the hot paths, without sockets, Redis or a runtime that switches tasks.
//!
//! `cargo bench --bench paths [-- FILTER]` measures encoding and decoding a frame, decoding and rendering an event,
//! finding a token in a request, verifying it by algorithm and by rules for its claims, naming a group with and without a
//! namespace, and queueing an event for a group. It does not measure system calls and wake-ups, which cost more than all of
//! these together; `cargo bench --bench load` measures those.

use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use lockgate::auth::{MintRequest, RawToken, TokenPresence, TokenVerifier, find_token, mint};
use lockgate::channel_layer::Codec;
use lockgate::channel_names::{
    channel_from_beginning, group_channel_beginning, valid_in_namespace,
};
use lockgate::clock::UnixTime;
use lockgate::config::{
    ClaimRule, ClaimValue, Deliver, ExpectedClaim, IdType, KeyConfig, SerializerFormat,
    TokenConfig, TokenSource,
};
use lockgate::event::Event;
use lockgate::frame::{Accounting, ClientMessage, Decoder, Frame};
use lockgate::hub::{Budget, Hub, Member, Pace, Profile, Takes, walk};
use lockgate::ids::GroupName;
use lockgate::render::{Delivery, Rendered};
use serde_json::Map;

/// The allocator of the gateway.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The key pairs of the golden tokens, which protect nothing.
const VECTORS: &str = include_str!("../tests/vectors/simplejwt_tokens.json");

/// Bytes of the event's JSON body on all paths, as in `benches/load`.
const BODY_BYTES: usize = 200;
const MAX_MESSAGE: u64 = 64 * 1024;

fn event() -> Event {
    let message = "m".repeat(BODY_BYTES - r#"{"message":""}"#.len());
    let json = format!(r#"{{"type":"bench.event","message":"{message}"}}"#);
    Event::from_json(json).expect("it is a JSON object")
}

/// A client's text frame: masked, with a 16-bit length.
fn masked_text(payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let length = u16::try_from(payload.len()).expect("it is short");
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend(length.to_be_bytes());
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

fn frames(criterion: &mut Criterion) {
    let text = "x".repeat(BODY_BYTES);
    criterion.bench_function("frame_encode/200_bytes", |bencher| {
        bencher.iter(|| Frame::text(black_box(&text)));
    });
    for size in [200, 4_096] {
        let frame = masked_text(&vec![b'x'; size]);
        criterion.bench_function(&format!("frame_decode/{size}_bytes"), |bencher| {
            let mut decoder = Decoder::new(MAX_MESSAGE);
            bencher.iter(|| {
                let mut input = black_box(&frame[..]);
                let message = decoder.push(&mut input);
                assert!(
                    matches!(message, Ok(Some(ClientMessage::Text(text))) if text.len() == size)
                );
            });
        });
    }
}

fn events(criterion: &mut Criterion) {
    let codec = Codec::new(SerializerFormat::MsgPack, &[]);
    let payload = codec.encode(&event()).expect("it is an event");
    criterion.bench_function("event_decode/msgpack_200_bytes", |bencher| {
        bencher.iter(|| codec.decode(black_box(&payload)).expect("it is an event"));
    });
    let delivery = Delivery::new(Deliver::Body, &[]).expect("there is no glob");
    let (decoded, accounting) = (event(), Accounting::default());
    criterion.bench_function("event_render/body_200_bytes", |bencher| {
        bencher.iter(|| {
            let rendered = delivery.render(black_box(&decoded), None, &accounting);
            assert!(
                matches!(rendered, Ok(Rendered::Frame(frame)) if frame.len() == BODY_BYTES + 4)
            );
        });
    });
}

fn tokens(criterion: &mut Criterion) {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).expect("it is JSON");
    let pem = |name: &str, half: &str| vectors["keys"][name][half].as_str().map(Into::into);
    for (algorithm, name) in [
        ("HS256", None),
        ("RS256", Some("rsa")),
        ("ES256", Some("p256")),
        ("EdDSA", Some("ed25519")),
    ] {
        let config = TokenConfig {
            keys: vec![KeyConfig {
                algorithm: algorithm.into(),
                kid: None,
                signing_key: match name {
                    Some(name) => pem(name, "private_pem"),
                    None => Some("0123456789abcdef0123456789abcdef".into()),
                },
                verifying_key: name.and_then(|name| pem(name, "public_pem")),
            }],
            ..TokenConfig::default()
        };
        let now = UnixTime::now();
        let request = MintRequest {
            user_id: "4711",
            lifetime: Duration::from_secs(300),
            claims: Map::new(),
        };
        let token = RawToken::new(mint(&config, &request, now).expect("the key signs"));
        let verifier = TokenVerifier::new(&config, IdType::Int).expect("the key is good");
        let label = format!("verify_token/{}", algorithm.to_lowercase());
        criterion.bench_function(&label, |bencher| {
            bencher.iter(|| {
                // The verifier fetches nothing, so the first poll returns the verdict.
                let verified = verifier.verify(black_box(&token), now).now_or_never();
                assert!(matches!(verified, Some(Ok(token)) if token.user_id.as_str() == "4711"));
            });
        });
    }
}

fn text(text: &str) -> ClaimValue {
    ClaimValue::Text(text.to_owned())
}

/// Measures the same token with and without rules for its claims.
fn claim_rules(criterion: &mut Criterion) {
    let rules = [
        ("azp", ClaimRule::Equals(text("web"))),
        ("client_id", ClaimRule::OneOf(vec![text("a"), text("b")])),
        ("scope", ClaimRule::Contains(text("chat"))),
        ("realm_access.roles", ClaimRule::Contains(text("user"))),
    ];
    let expected = rules.map(|(name, rule)| ExpectedClaim {
        name: name.to_owned(),
        rule,
    });
    let claims = serde_json::json!({
        "azp": "web", "client_id": "b", "scope": "openid profile chat",
        "realm_access": {"roles": ["offline_access", "uma_authorization", "user"]},
    });
    let mut config = TokenConfig {
        keys: vec![KeyConfig {
            algorithm: "HS256".into(),
            signing_key: Some("0123456789abcdef0123456789abcdef".into()),
            ..KeyConfig::default()
        }],
        ..TokenConfig::default()
    };
    let now = UnixTime::now();
    let request = MintRequest {
        user_id: "4711",
        lifetime: Duration::from_secs(300),
        claims: claims.as_object().expect("it is one").clone(),
    };
    let token = RawToken::new(mint(&config, &request, now).expect("the key signs"));
    for (label, rules) in [
        ("no_rule", &[][..]),
        ("one_rule", &expected[..1]),
        ("four_rules", &expected[..]),
    ] {
        config.claims = rules.to_vec();
        let verifier = TokenVerifier::new(&config, IdType::Int).expect("the key is good");
        criterion.bench_function(&format!("verify_token/hs256_{label}"), |bencher| {
            bencher.iter(|| {
                let verified = verifier.verify(black_box(&token), now).now_or_never();
                assert!(matches!(verified, Some(Ok(_))));
            });
        });
    }
}

/// Measures finding a token of 300 bytes in the query, and in the last of four cookies.
fn token_places(criterion: &mut Criterion) {
    let token = "t".repeat(300);
    let query = format!("token={token}");
    let cookies =
        format!("sessionid=0123456789; csrftoken=0123456789; theme=dark; access_token={token}");
    let mut headers = HeaderMap::new();
    headers.insert(
        COOKIE,
        HeaderValue::from_str(&cookies).expect("it is a header"),
    );
    for (label, source) in [
        ("query", TokenSource::Query),
        ("cookie", TokenSource::Cookie),
    ] {
        let config = TokenConfig {
            sources: vec![source],
            ..TokenConfig::default()
        };
        criterion.bench_function(&format!("find_token/{label}"), |bencher| {
            bencher.iter(|| {
                let found = find_token(Some(black_box(&query)), black_box(&headers), &config);
                assert!(matches!(found, TokenPresence::Found { .. }));
            });
        });
    }
}

/// Measures the name of a group at a connect, without and with a namespace: the rule for names, and the channel on the wire.
fn group_names(criterion: &mut Criterion) {
    let name = "chat_0123456789abcdef";
    for (label, namespace) in [("plain", ""), ("namespace", "acme.")] {
        let beginning = group_channel_beginning("shop", namespace);
        criterion.bench_function(&format!("group_name/{label}"), |bencher| {
            bencher.iter(|| {
                assert!(valid_in_namespace(black_box(name), black_box(namespace)));
                let group = GroupName::from(black_box(name));
                let channel = channel_from_beginning(black_box(&beginning), &group);
                assert_eq!(channel.len(), beginning.len() + name.len());
            });
        });
    }
}

/// Measures putting a frame into the queues of a group, with the walk of the relay. Emptying the queues is not
/// measured.
fn fan_out(criterion: &mut Criterion) {
    for size in [1_000, 10_000] {
        let hub = Hub::default();
        let name = GroupName::from("bench");
        let members: Vec<Arc<Member>> = (0..size)
            .map(|user: u32| {
                Member::new(Profile {
                    user: Some(user.to_string().into()),
                    ..Profile::default()
                })
            })
            .collect();
        for member in &members {
            let admitted = hub.admit(member, None, &Budget::default());
            admitted.expect("there are no limits");
            hub.join(member, &name);
        }
        let group = hub.groups().get(&name).expect("it was joined");
        let frame = Frame::text(&"x".repeat(BODY_BYTES));
        criterion.bench_function(&format!("fan_out/{size}_connections"), |bencher| {
            bencher.iter_batched(
                || empty(&members),
                |()| {
                    let (mut pace, mut served) = (Pace::default(), 0);
                    let walk = walk(&group, &mut pace, |member| {
                        member.outbound().push_frame(&frame);
                        served += 1;
                    });
                    let written = finish(walk);
                    assert_eq!((served, written.frames), (members.len(), 0));
                },
                BatchSize::PerIteration,
            );
        });
    }
}

/// Empties the members' queues.
fn empty(members: &[Arc<Member>]) {
    let mut context = Context::from_waker(Waker::noop());
    let (ping, mut batch) = (Frame::ping(b""), Vec::new());
    for member in members {
        while member
            .outbound()
            .poll_next(&mut context, Takes::All, &ping, &mut batch)
            .is_ready()
        {
            batch.clear();
        }
    }
}

/// Polls a future that only yields until it is done.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

criterion_group!(
    benches,
    frames,
    events,
    tokens,
    claim_rules,
    token_places,
    group_names,
    fan_out
);
criterion_main!(benches);
