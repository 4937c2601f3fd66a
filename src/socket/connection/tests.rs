//! A connection over a real stream, with a consumer whose calls end when the test says so.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::auth::VerifiedToken;
use crate::channel_layer::Inbox;
use crate::channel_layer::memory::MemoryLayer;
use crate::config::{GroupNames, LimitsConfig, OnGap, ServerConfig};
use crate::consumer::{Message, SocketHandle, TenantScope};
use crate::error::Refusal;
use crate::event::Event;
use crate::frame::{Decoder, Frame};
use crate::hub::{Hub, Profile, WaitingEvent};
use crate::ids::TenantId;
use crate::metrics::TenantMetrics;
use crate::packed_json::PackedObject;
use crate::relay::{Parts, Relay, Settings};
use crate::routes::Routes;
use crate::socket::Common;
use crate::socket::heartbeat::HeartbeatWheel;
use crate::socket::refresh::RefreshOutcome;
use crate::socket::registration::{Occupancy, Registration};
use crate::socket::unfinished::UnfinishedMessages;
use crate::users::UserRecord;

mod ahead;
mod direct;
mod place;

/// The longest wait for a fact that holds almost at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// The events that a consumer has seen, and the end of its call.
struct Desk {
    /// The places of one socket.
    occupancy: Arc<Occupancy>,
    began: AtomicUsize,
    /// The first byte of each binary message.
    seen: Mutex<Vec<u8>>,
    ends: Notify,
    disconnected: AtomicBool,
}

struct Waits(Arc<Desk>);

#[async_trait]
impl Consumer for Waits {
    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        if let Message::Binary(bytes) = &message {
            self.0.seen.lock().push(bytes[0]);
        }
        self.0.began.fetch_add(1, Ordering::SeqCst);
        self.0.ends.notified().await;
        if let Message::Text(text) = message {
            context.send_text(&text);
        }
    }

    async fn event(&mut self, _context: &mut Context<'_>, _event: Arc<Event>) {
        self.0.began.fetch_add(1, Ordering::SeqCst);
        self.0.ends.notified().await;
    }

    async fn disconnect(&mut self, _context: &mut Context<'_>, _close: &CloseFrame) {
        self.0.disconnected.store(true, Ordering::SeqCst);
    }
}

/// An open socket with both of its ends.
struct Pair {
    member: Arc<Member>,
    unfinished: Arc<UnfinishedMessages>,
    desk: Arc<Desk>,
    /// The gateway's ping.
    ping: Box<[u8]>,
    socket: SocketHandle,
    client: TcpStream,
    serving: JoinHandle<()>,
}

fn relay() -> Arc<Relay> {
    let tenant: TenantId = "acme".parse().unwrap();
    let metrics = Arc::new(TenantMetrics::new(&tenant));
    let inbox = Inbox::new(0, metrics.clone());
    let parts = Parts {
        tenant,
        hub: Arc::new(Hub::default()),
        layer: Arc::new(MemoryLayer::new(
            Arc::default(),
            "acme",
            Arc::default(),
            inbox.clone(),
        )),
        inbox,
        rules: Arc::default(),
        group_names: GroupNames::Channels,
        budget: Arc::default(),
        metrics,
    };
    let settings = Settings {
        deliveries: Vec::new(),
        on_gap: OnGap::Count,
        limits: LimitsConfig::default(),
        refreshes_tokens: false,
    };
    Relay::new(parts, settings)
}

fn socket(desk: &Arc<Desk>) -> Box<ReadySocket> {
    let place = desk.occupancy.enter().unwrap().take_place().unwrap();
    let member = Member::new(Profile::default());
    let admitted = Registration::admit(member.clone(), relay(), place, (None, false));
    let Ok((registration, _)) = admitted else {
        panic!("there are no limits");
    };
    let common = Common {
        heartbeat: HeartbeatWheel::new(&ServerConfig::default(), Arc::default()),
        tenants: Arc::default(),
    };
    let user = UserRecord {
        id: "1".into(),
        is_active: true,
        fields: PackedObject::new("{}"),
        password_digest: None,
    };
    Box::new(ReadySocket {
        wire: WireState::new(registration, Decoder::new(0), Arc::new(common)),
        consumer: Box::new(Waits(desk.clone())),
        scope: Scope {
            of_tenant: Arc::new(TenantScope {
                tenant: "acme".parse().unwrap(),
                routes: Arc::new(Routes::parse(&[]).unwrap()),
                channel_prefix: "".into(),
            }),
            user: Some(Arc::new(user)),
            claims: Some(Box::new(PackedObject::new("{}"))),
            client: Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
            member,
        },
    })
}

impl Pair {
    async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (stream, _) = listener.accept().await.unwrap();
        let desk = Arc::new(Desk::default());
        let ready = socket(&desk);
        let member = ready.wire.registration.member().clone();
        let handle = ready.wire.registration.socket().clone();
        let unfinished = ready.wire.common.heartbeat.unfinished().clone();
        let ping = ready.wire.common.heartbeat.ping().as_bytes().into();
        let connection = Connection::new(stream, b"", ready);
        Self {
            ping,
            member,
            unfinished,
            desk,
            socket: handle,
            client: client.unwrap(),
            serving: tokio::spawn(connection.run()),
        }
    }

    /// Sends a text of one letter.
    async fn say(&mut self, letter: u8) {
        let frame = [0x81, 0x81, 0, 0, 0, 0, letter];
        self.client.write_all(&frame).await.unwrap();
    }

    async fn began(&self, calls: usize) {
        let began = async {
            while self.desk.began.load(Ordering::SeqCst) < calls {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, began)
            .await
            .expect("the consumer is called");
    }

    async fn reads(&mut self, expected: &[u8]) {
        let mut came = vec![0; expected.len()];
        tokio::time::timeout(PATIENCE, self.client.read_exact(&mut came))
            .await
            .expect("it does not wait for the consumer")
            .unwrap();
        assert_eq!(came, expected, "{}", came.escape_ascii());
    }

    async fn left_hub(&self) {
        let left = async {
            while !self.socket.relay.hub().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, left)
            .await
            .expect("it leaves the hub");
    }

    /// Closes the client's side; the consumer is told of the end only after its call.
    async fn gone_after_the_call(self) {
        drop(self.client);
        assert!(!self.desk.disconnected.load(Ordering::SeqCst));
        self.desk.ends.notify_one();
        tokio::time::timeout(PATIENCE, self.serving)
            .await
            .expect("the connection ends")
            .unwrap();
        assert!(self.desk.disconnected.load(Ordering::SeqCst));
    }
}

/// Before: the close frame left when the call had ended, here never.
#[tokio::test]
async fn a_revocation_closes_while_the_consumer_is_at_work() {
    let mut pair = Pair::open().await;
    pair.say(b'a').await;
    pair.began(1).await;
    let frame = CloseReason::TokenRevoked.frame();
    assert!(pair.member.outbound().close(frame, CloseOrder::Now));
    pair.reads(b"\x88\x0f\x11\x95token_revoked").await;
    pair.gone_after_the_call().await;
}

/// Before: nothing left while the consumer was at work.
#[tokio::test]
async fn frames_pings_and_a_drain_leave_while_the_consumer_is_at_work() {
    let mut pair = Pair::open().await;
    pair.say(b'a').await;
    pair.began(1).await;
    let outbound = pair.member.outbound();
    outbound.push_frame(&Frame::text("one"));
    pair.reads(b"\x81\x03one").await;
    pair.member.outbound().ask_ping();
    let mut ping = [0; 10];
    tokio::time::timeout(PATIENCE, pair.client.read_exact(&mut ping))
        .await
        .expect("it does not wait for the consumer")
        .unwrap();
    assert_eq!(ping[..2], [0x89, 8]);
    let outbound = pair.member.outbound();
    outbound.push_frame(&Frame::text("two"));
    outbound.push_event(&WaitingEvent::new(Arc::default(), &Arc::default()));
    outbound.push_frame(&Frame::text("three"));
    outbound.close(CloseReason::Draining.frame(), CloseOrder::AfterQueued);
    pair.reads(b"\x81\x03two\x81\x05three").await;
    pair.reads(b"\x88\x0a\x03\xf4draining").await;
    pair.gone_after_the_call().await;
}

/// Before: a client that did not answer the close frame stayed in counts, lists and presence for seconds.
#[tokio::test]
async fn a_closed_socket_leaves_the_hub_before_its_client_answers() {
    let mut pair = Pair::open().await;
    let frame = CloseReason::TokenRevoked.frame();
    assert!(pair.member.outbound().close(frame, CloseOrder::Now));
    pair.reads(b"\x88\x0f\x11\x95token_revoked").await;
    pair.left_hub().await;
    assert!(!pair.serving.is_finished(), "it waits for the client");
    assert!(!pair.desk.disconnected.load(Ordering::SeqCst));
    let socket = pair.socket.clone();
    assert!(!socket.relay.hub().is_quiet(), "its tenant is still needed");
    pair.gone_after_the_call().await;
    assert!(socket.relay.hub().is_quiet());
}

/// Its frames still leave: the client gets all that was queued, and then the close frame.
#[tokio::test]
async fn a_closed_socket_that_takes_no_bytes_leaves_the_hub_and_flushes_its_queue() {
    const MIB: usize = 1 << 20;
    const FRAMES: usize = 16;
    let mut pair = Pair::open().await;
    let frame = Frame::text(&"x".repeat(MIB));
    let outbound = pair.member.outbound();
    for _ in 0..FRAMES {
        outbound.push_frame(&frame);
    }
    outbound.close(CloseReason::Draining.frame(), CloseOrder::AfterQueued);
    pair.left_hub().await;
    let holders = pair.socket.relay.hub().holders();
    let held: Vec<_> = holders.iter().map(|member| member.id()).collect();
    assert_eq!(held, [pair.member.id()], "its bytes are still known");
    let mut came = vec![0; FRAMES * frame.len()];
    tokio::time::timeout(PATIENCE, pair.client.read_exact(&mut came))
        .await
        .expect("the frames come")
        .unwrap();
    pair.reads(b"\x88\x0a\x03\xf4draining").await;
    let socket = pair.socket.clone();
    pair.gone_after_the_call().await;
    assert!(socket.relay.hub().is_quiet());
}

#[tokio::test]
async fn frames_reach_the_consumer_one_at_a_time_and_in_order() {
    let mut pair = Pair::open().await;
    for letter in *b"abc" {
        pair.say(letter).await;
    }
    for calls in 1..=3 {
        pair.began(calls).await;
        // Messages wait while a call is under way, so no other call begins however long it takes.
        pair.member.outbound().push_frame(&Frame::text("x"));
        pair.reads(b"\x81\x01x").await;
        assert_eq!(pair.desk.began.load(Ordering::SeqCst), calls);
        pair.desk.ends.notify_one();
        pair.reads(&[0x81, 1, b"abc"[calls - 1]]).await;
    }
    assert!(!pair.member.outbound().reads_nothing());
}

/// Before: the socket was closed, although the rest of the message could not be read.
#[tokio::test]
async fn the_deadline_of_a_message_waits_while_the_consumer_is_at_work() {
    let mut pair = Pair::open().await;
    // The beginning of a longer text: so much is read while the consumer is at work, and no more.
    let begins = [
        &[0x81, 0xfe, 0x80, 0, 0, 0, 0, 0][..],
        &[b'x'; super::beside::MOST],
    ]
    .concat();
    pair.client.write_all(&begins).await.unwrap();
    let held = |pair: &Pair| pair.unfinished.holders().first().map(|(_, bytes)| *bytes);
    let begun = async {
        while held(&pair).is_none_or(|bytes| bytes < super::beside::MOST as u64) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, begun)
        .await
        .expect("it counts");
    let event = WaitingEvent::new(Arc::default(), &Arc::default());
    let outbound = pair.member.outbound();
    outbound.push_event(&event);
    pair.began(1).await;
    // A frame that leaves shows that the connection's task has run beside the call.
    pair.member.outbound().push_frame(&Frame::text("x"));
    pair.reads(b"\x81\x01x").await;
    let far = Duration::from_secs(3600);
    pair.unfinished.close_overdue(Instant::now() + far);
    assert!(!pair.member.outbound().is_closing());
    pair.desk.ends.notify_one();
    let overdue = async {
        while !pair.member.outbound().is_closing() {
            pair.unfinished.close_overdue(Instant::now() + far);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, overdue)
        .await
        .expect("the clock runs again");
}

/// Before: a call had no deadline.
#[tokio::test]
async fn a_call_that_does_not_end_is_dropped_and_its_socket_closes() {
    let member = Member::new(Profile::default());
    let deadline = Duration::from_millis(20);
    bounded(&member, deadline, async {}).await;
    assert!(!member.outbound().is_closing());
    bounded(&member, deadline, std::future::pending()).await;
    let cause = member.outbound().closing_cause();
    assert_eq!(cause, Some(CloseReason::InternalError));
}

/// A task ends with its socket: what it owns is dropped, although it would wait without an end.
#[tokio::test]
async fn a_task_of_a_consumer_ends_with_its_socket() {
    let mut pair = Pair::open().await;
    let (socket, held) = (pair.socket.clone(), Arc::new(()));
    let (owned, sends) = (held.clone(), socket.clone());
    socket.spawn(async move {
        sends.send_text("later");
        let () = std::future::pending().await;
        drop(owned);
    });
    pair.reads(b"\x81\x05later").await;
    assert_eq!(Arc::strong_count(&held), 2, "it waits");
    drop(pair.client);
    tokio::time::timeout(PATIENCE, pair.serving)
        .await
        .expect("the connection ends")
        .unwrap();
    tokio::time::timeout(PATIENCE, socket.closed())
        .await
        .expect("the handle is told");
    let dropped = async {
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped)
        .await
        .expect("the task is dropped");
    // Too late: the socket is closed already.
    let (ran, late) = (Arc::new(AtomicBool::new(false)), held.clone());
    let runs = ran.clone();
    socket.spawn(async move {
        runs.store(true, Ordering::SeqCst);
        drop(late);
    });
    let gone = async {
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the task is dropped");
    assert!(!ran.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_panic_of_a_consumers_task_closes_its_socket_alone() {
    let (mut pair, mut other) = (Pair::open().await, Pair::open().await);
    pair.socket.spawn(async { panic!("as a bug would") });
    pair.reads(b"\x88\x10\x03\xf3internal_error").await;
    assert!(!other.member.outbound().is_closing());
    other.socket.send_text("x");
    other.reads(b"\x81\x01x").await;
}

#[test]
fn a_panic_of_a_step_closes_the_socket_and_not_the_process() {
    assert_eq!(caught(|| 1), Ok(1));
    let internal = CloseReason::InternalError.frame();
    assert_eq!(caught(|| panic!("as a bug would")), Err::<(), _>(internal));
}

#[test]
fn a_refresh_shows_the_consumer_the_new_claims_and_a_refusal_shows_it_nothing() {
    let mut ready = socket(&Arc::default());
    let registration = &ready.wire.registration;
    let (member, relay) = (registration.member().clone(), registration.relay().clone());
    let user = ready.scope.user.clone().unwrap();
    let token = Arc::new(VerifiedToken {
        user_id: "1".into(),
        jti: None,
        issued_at: None,
        expires_at: None,
        claims: r#"{"role":"admin"}"#.into(),
        revoke_digest: None,
    });
    for refused in [Refusal::TokenExpired, Refusal::Unavailable] {
        RefreshOutcome::Refused(refused).tell(&mut ready.scope, &member, &relay);
        assert_eq!(ready.scope.claim("role"), None);
    }
    let done = || RefreshOutcome::Done {
        user: user.clone(),
        token: token.clone(),
    };
    done().tell(&mut ready.scope, &member, &relay);
    assert_eq!(ready.scope.claim("role"), Some("admin".into()));
    // A consumer that reads no claims keeps none.
    ready.scope.claims = None;
    done().tell(&mut ready.scope, &member, &relay);
    assert_eq!(ready.scope.claim("role"), None);
    assert!(!member.outbound().is_closing());
    RefreshOutcome::Closes(Refusal::TokenRevoked).tell(&mut ready.scope, &member, &relay);
    let cause = member.outbound().closing_cause();
    assert_eq!(cause, Some(CloseReason::TokenRevoked));
}

fn future_size<F: Future>(_: fn(Connection) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_connection_is_small() {
    assert!(
        future_size(Connection::run) <= 56,
        "{}",
        future_size(Connection::run)
    );
    assert!(
        size_of::<ReadySocket>() <= 160,
        "{}",
        size_of::<ReadySocket>()
    );
    // With the counts of its `Arc` it fits into 256 bytes of the allocator.
    assert!(size_of::<Member>() <= 240, "{}", size_of::<Member>());
}
