//! The task behind one subscriber link: connects, says what is wished for, hands messages to the tenants' inboxes,
//! proves the path with canaries, and makes the link anew when it is lost.
//!
//! It waits for nobody: inboxes drop when they are full, joins wait in their own tasks.
//!
//! Instead of redis-rs' `PubSub`, which queues without a bound, so that Redis never holds back, and its
//! `ConnectionManager`, which stays dead after its last retry and ignores errors of the resubscription.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::error::{Dependency, ErrorKind};
use crate::metrics::{self, GapCause};
use crate::stores::redis::RedisStore;

use super::super::inbox::Inbox;
use super::super::link::canary::Canary;
use super::super::link::dial::{LinkError, Stream, dial};
use super::super::link::resp::Parser;
use super::super::link::{Publishing, Status, poll_some};
use super::super::target::Target;
use super::pulse::Pulse;
use super::subscriptions::{Route, Subscriptions, Waiter};

/// First and last pause between attempts to connect; each is cut by up to a half at random.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How often the clocks below are looked at.
const TICK: Duration = Duration::from_millis(250);
/// One read of the socket; a burst needs few system calls.
const READ_SIZE: usize = 64 * 1024;

/// What layers tell the task. Unbounded, because leaving cannot wait; bounded by the groups of this replica.
pub(super) enum Order {
    Attach {
        attachment: u64,
        inbox: Arc<Inbox>,
        /// The ACL pattern that this layer needs, for the log.
        pattern: String,
    },
    Detach {
        attachment: u64,
    },
    Subscribe {
        attachment: u64,
        channel: Bytes,
        target: Target,
        waiter: Waiter,
    },
    Unsubscribe {
        attachment: u64,
        channel: Bytes,
    },
}

pub(super) struct Attachment {
    pub(super) inbox: Arc<Inbox>,
    pub(super) pattern: String,
    /// Redis refused it a channel, and the log has it.
    pub(super) denied: bool,
}

/// Why a link ended.
enum End {
    /// Nobody needs it any more.
    Stopped,
    Lost(LinkError),
    /// It took publishes, but did not deliver them.
    Deaf,
}

/// The task of one link.
pub(super) struct Subscriber {
    pub(super) endpoint: String,
    /// The name of the connection, for `CLIENT LIST`.
    pub(super) name: String,
    pub(super) canary_channel: Bytes,
    /// Knows where the server is, and publishes the canaries.
    pub(super) store: Arc<RedisStore>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) status: Arc<Status>,
}

impl Subscriber {
    /// Runs until the last layer and the registry let go of it.
    pub(super) async fn run(self) {
        let mut task = Task {
            wishes: Subscriptions::default(),
            attachments: HashMap::new(),
            pause: BACKOFF[0],
            links: 0,
            said: None,
            gap: None,
            denied: 0,
            parts: self,
        };
        task.wishes.want_own(&task.parts.canary_channel);
        while let Some(stream) = task.connect().await {
            let made = Instant::now();
            let end = task.serve(stream).await;
            if made.elapsed() > BACKOFF[1] {
                task.pause = BACKOFF[0];
            }
            if task.lost(end).is_break() {
                return;
            }
        }
    }
}

/// What the task knows beyond one link.
pub(super) struct Task {
    pub(super) parts: Subscriber,
    pub(super) wishes: Subscriptions,
    pub(super) attachments: HashMap<u64, Attachment>,
    pause: Duration,
    /// Links made so far.
    links: u64,
    /// The failure that the log has; `None` while all is well.
    said: Option<ErrorKind>,
    /// A link was lost, and the tenants will hear of it once its successor is subscribed.
    gap: Option<(GapCause, Instant)>,
    /// Attachments that Redis refuses channels.
    pub(super) denied: usize,
}

impl Task {
    /// Tries until there is a connection; takes orders meanwhile. `None` if nobody needs one any more.
    async fn connect(&mut self) -> Option<Box<dyn Stream>> {
        loop {
            let (store, name) = (self.parts.store.clone(), self.parts.name.clone());
            let attempt = self.meanwhile(async move { dial(&store, &name).await });
            match attempt.await? {
                Ok(stream) => {
                    self.connected();
                    return Some(stream);
                }
                Err(error) => self.failed(&error),
            }
            let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
            self.pause = (self.pause * 2).min(BACKOFF[1]);
            self.meanwhile(sleep(pause)).await?;
        }
    }

    /// Waits for `future` and takes orders; `None` if no more can come.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return Some(done),
                order = self.parts.orders.recv() => self.obey(order?),
            }
        }
    }

    fn connected(&mut self) {
        self.links += 1;
        if self.links > 1 {
            metrics::reconnected(Dependency::Redis);
        }
        metrics::dependency_up(Dependency::Redis, &self.parts.endpoint, true);
        self.said = None;
        *self.parts.status.failure.lock() = None;
        self.wishes.link_made();
    }

    /// Counts a failure, and logs it if it is news.
    fn failed(&mut self, error: &LinkError) {
        metrics::dependency_error(Dependency::Redis, error.kind);
        *self.parts.status.failure.lock() = Some(error.kind);
        if self.said == Some(error.kind) {
            return;
        }
        self.said = Some(error.kind);
        metrics::dependency_up(Dependency::Redis, &self.parts.endpoint, false);
        let advice = match error.kind {
            ErrorKind::Auth => {
                "Redis refuses the subscriber's user or password; correct the URL's credentials"
            }
            _ => "No subscriber link to Redis; events may be missed until it is back",
        };
        warn!(
            redis.endpoint = self.parts.endpoint,
            error.kind = error.kind.label(),
            error = error.text,
            "{advice}"
        );
    }

    fn lost(&mut self, end: End) -> ControlFlow<()> {
        self.parts.status.ready.store(false, Ordering::Release);
        self.wishes.link_lost();
        let cause = match end {
            End::Stopped => return ControlFlow::Break(()),
            End::Lost(error) => {
                self.failed(&error);
                GapCause::Link
            }
            End::Deaf => {
                let text = "canaries did not come back";
                self.failed(&LinkError::new(ErrorKind::Other, text));
                GapCause::Canary
            }
        };
        self.gap.get_or_insert((cause, Instant::now()));
        ControlFlow::Continue(())
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Attach {
                attachment,
                inbox,
                pattern,
            } => {
                let new = Attachment {
                    inbox,
                    pattern,
                    denied: false,
                };
                self.attachments.insert(attachment, new);
            }
            Order::Detach { attachment } => {
                self.wishes.detach(attachment);
                if let Some(gone) = self.attachments.remove(&attachment) {
                    self.denied -= usize::from(gone.denied);
                }
            }
            Order::Subscribe {
                attachment,
                channel,
                target,
                waiter,
            } => {
                if let Some(known) = self.attachments.get(&attachment) {
                    let route = Route {
                        attachment,
                        inbox: known.inbox.clone(),
                        target,
                    };
                    self.wishes.want(&channel, route, waiter);
                }
            }
            Order::Unsubscribe {
                attachment,
                channel,
            } => self.wishes.unwant(&channel, attachment),
        }
    }

    /// One link, from its first command to its end. Inputs: the socket, orders, the canary's publish, the clock.
    async fn serve(&mut self, stream: Box<dyn Stream>) -> End {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
        let mut parser = Parser::default();
        let mut flushed = true;
        let mut pulse = Pulse::new();
        let mut canary = Canary::new();
        let mut publishing: Option<Publishing> = None;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Ok(order) = self.parts.orders.try_recv() {
                self.obey(order);
            }
            self.wishes.flush(&mut out);
            self.recovered();
            make_room(&mut input, &mut out);
            tokio::select! {
                read = reader.read_buf(&mut input) => match read {
                    Ok(0) => {
                        let text = "Redis closed the subscriber's connection";
                        return End::Lost(LinkError::new(ErrorKind::Io, text));
                    }
                    Ok(_) => {
                        pulse.heard = Instant::now();
                        if let Err(error) = self.take(&mut parser, &mut input, &mut canary) {
                            return End::Lost(error);
                        }
                    }
                    Err(error) => return End::Lost(error.into()),
                },
                pushed = push(&mut writer, &mut out), if !out.is_empty() || !flushed => match pushed {
                    Ok(all) => flushed = all,
                    Err(error) => return End::Lost(error.into()),
                },
                order = self.parts.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return End::Stopped,
                },
                published = poll_some(&mut publishing) => {
                    publishing = None;
                    canary.published(published.is_ok());
                }
                now = tick.tick() => {
                    if pulse.beat(now, &mut self.wishes, &mut out).is_break() {
                        let text = "no answer to PING in time";
                        return End::Lost(LinkError::new(ErrorKind::Timeout, text));
                    }
                    if self.wishes.subscribed(&self.parts.canary_channel)
                        && let Some(text) = canary.due(now)
                    {
                        publishing = Some(self.publish_canary(text));
                    }
                    if canary.overdue(now, &self.parts.endpoint).is_break() {
                        return End::Deaf;
                    }
                }
            }
        }
    }

    fn publish_canary(&self, text: String) -> Publishing {
        let (store, channel) = (self.parts.store.clone(), self.parts.canary_channel.clone());
        Box::pin(async move { store.publish(&channel, text.as_bytes()).await })
    }

    /// Tells every tenant of a lost link, once its successor is subscribed.
    fn recovered(&mut self) {
        if self.parts.status.ready.load(Ordering::Relaxed) || !self.wishes.recovered() {
            return;
        }
        self.parts.status.ready.store(true, Ordering::Release);
        let lost = self.gap.take();
        for attachment in self.attachments.values() {
            if let Some((cause, _)) = lost {
                attachment.inbox.push_gap(cause);
            }
        }
        info!(
            redis.endpoint = self.parts.endpoint,
            count = self.wishes.len(),
            duration_ms = lost.map_or(0, |(_, since)| since.elapsed().as_millis() as u64),
            "The subscriber link to Redis is up"
        );
    }
}

/// Room for one read; what a long message or a resubscription needed is given back.
fn make_room(input: &mut BytesMut, out: &mut BytesMut) {
    for buffer in [&mut *input, out] {
        if buffer.is_empty() && buffer.capacity() > 4 * READ_SIZE {
            *buffer = BytesMut::new();
        }
    }
    input.reserve(READ_SIZE);
}

/// One step of writing; true once everything has left. Nothing is lost when it is dropped.
async fn push(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    out: &mut BytesMut,
) -> std::io::Result<bool> {
    if out.is_empty() {
        return writer.flush().await.map(|()| true);
    }
    match writer.write_buf(out).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        _ => Ok(false),
    }
}
