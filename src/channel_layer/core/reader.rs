//! The task behind one reading link of the core layer. It waits for messages of all tenants with one server, login and
//! database, and hands the messages to the tenants' inboxes without decoding them.
//!
//! It blocks on a connection of its own, which skips messages that are too long. The wake-up brings one message; if the
//! link dies then, that message is lost, which is marked as a gap. The messages behind it are taken in one round that can be
//! repeated, and the tenant then goes to the end of the line. The task never waits for a tenant: a full inbox drops events.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::RedisResult;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::error::{Dependency, ErrorKind};
use crate::ids::ReplicaId;
use crate::metrics::{self, GapCause};
use crate::stores::redis::{RedisStore, error_kind};
use crate::stores::redis_keys::{self, CANARY_PATTERN};

use super::super::link::bounded::BoundedLink;
use super::super::link::canary::{Flight, Publishing, TICK};
use super::super::link::dial::{LinkError, dial};
use super::super::link::life::{End, LinkLife, RETRY_REFUSED, Session};
use super::host_times::AskedAt;
use super::mailbox::{MAX_MESSAGE, Mailbox, Reading};
use super::membership;
use super::refusals::{concerns_a_key, remedy};
use super::seen::Seen;

/// Time limit of one wait for a message. The first message of a new tenant waits until the present wait ends.
const BLOCK: Duration = Duration::from_secs(1);
/// Time that an answer may take beyond the wait. With [`BLOCK`], a stopped server is noticed within 3 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The longest wait of a process that runs.
const LONGEST_WAIT: Duration = BLOCK.saturating_add(ANSWER_LIMIT);
/// Life of a canary that is not read.
const CANARY_SECONDS: u64 = 60;

/// An order of a layer to the task. The queue has no bound, because leaving cannot wait; the number of tenants bounds it.
pub(super) enum ReaderOrder {
    Attach(u64, Mailbox),
    Detach(u64),
}

/// The session of one link.
pub(super) struct MailboxReader {
    store: Arc<RedisStore>,
    /// The connection's name in `CLIENT LIST`.
    name: String,
    /// The key of this replica's canaries, the same on every server.
    canary_key: String,
    orders: mpsc::UnboundedReceiver<ReaderOrder>,
    /// The mailboxes in the order in which they are served.
    line: VecDeque<Reading>,
    seen: Seen,
    canary_refused: bool,
    retry_refused_at: Instant,
    asked_at: AskedAt,
}

/// The outcome of a wait: a key, a message unless it is too long, its score.
type Woken = (String, Option<Vec<u8>>, String);

impl MailboxReader {
    pub(super) fn new(
        store: &Arc<RedisStore>,
        replica: &ReplicaId,
        orders: mpsc::UnboundedReceiver<ReaderOrder>,
    ) -> Self {
        Self {
            store: store.clone(),
            name: format!("lockgate-reader-{replica}"),
            canary_key: redis_keys::canary(replica),
            orders,
            line: VecDeque::new(),
            seen: Seen::default(),
            canary_refused: false,
            retry_refused_at: Instant::now(),
            asked_at: AskedAt::now(),
        }
    }

    fn take_orders(&mut self) -> ControlFlow<()> {
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
                Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    /// Serves one connection: waits for a message, reads its mailbox, and checks the clocks in between.
    async fn wait_and_read(
        &mut self,
        link: &mut BoundedLink,
        life: &mut LinkLife,
    ) -> Result<End, LinkError> {
        let mut canary = Flight::new(life.endpoint());
        let (mut in_flight, mut suspected) = (None, false);
        self.ask_again();
        self.try_canary(link).await?;
        loop {
            if self.take_orders().is_break() {
                return Ok(End::Stopped);
            }
            self.recover(link).await?;
            self.tell_restored(life);
            self.tell_absence();
            let Some(wait) = self.wait(in_flight.take()) else {
                // Redis refuses every key; the next round tries again.
                sleep(BLOCK).await;
                continue;
            };
            let Some(answer) = self.answered(&wait, link, &mut canary).await? else {
                return Ok(End::Deaf);
            };
            // Before the message is delivered, which would pass for the newest one of its group.
            self.tell_absence();
            match answer {
                Ok(None) => {}
                Ok(Some((key, message, _))) if key == self.canary_key => {
                    canary.returned(&message.unwrap_or_default());
                }
                Ok(Some(woken)) => in_flight = self.read(link, woken).await?,
                // The error does not name the key. Each key is tried alone first; a second error in a row is about the
                // command itself and ends the connection.
                Err(error) if concerns_a_key(&error) && !suspected => {
                    suspected = true;
                    self.doubt_all_keys();
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            suspected = false;
        }
    }

    /// Returns the command that waits, preceded by the deletion of messages that were delivered; `None` if there is no key
    /// to wait for.
    fn wait(&self, in_flight: Option<String>) -> Option<Commands> {
        let (mut packed, mut answers) = (Vec::new(), 1);
        if let Some(key) = in_flight {
            packed.extend(redis::cmd("DEL").arg(key).get_packed_command());
            answers += 1;
        }
        let granted = self.line.iter().filter(|reading| reading.recovered);
        let keys = granted.map(|reading| &reading.mailbox.key);
        // BZPOPMIN serves the first key that has a message. The canary's key comes first, or busy tenants would delay it.
        let canary = (!self.canary_refused).then_some(&self.canary_key);
        let keys: Vec<_> = canary.into_iter().chain(keys).collect();
        if keys.is_empty() {
            return None;
        }
        let mut pop = redis::cmd("BZPOPMIN");
        pop.arg(keys).arg(BLOCK.as_secs());
        packed.extend(pop.get_packed_command());
        Some(Commands { packed, answers })
    }

    /// Delivers the message of a wake-up and those behind it in its mailbox. Returns the key of the messages in flight.
    async fn read(
        &mut self,
        link: &mut BoundedLink,
        (key, message, score): Woken,
    ) -> RedisResult<Option<String>> {
        let is_it = |reading: &Reading| reading.mailbox.key == key;
        let Some(mut reading) = self
            .line
            .iter()
            .position(is_it)
            .and_then(|at| self.line.remove(at))
        else {
            return Ok(None);
        };
        reading.deliver_first(message, &score, &mut self.seen);
        let outcome = match in_time(reading.take(link)).await {
            Ok(taken) => Ok(reading.deliver_all(taken, &mut self.seen)),
            Err(error) => Err(error),
        };
        self.line.push_back(reading);
        outcome
    }

    /// Prepares every mailbox that is new on this connection: puts back its messages in flight and orders its memberships
    /// to be restored. The tenant is told of the gap after that.
    async fn recover(&mut self, link: &mut BoundedLink) -> RedisResult<()> {
        let retry = Instant::now() >= self.retry_refused_at;
        if retry {
            self.retry_refused_at = Instant::now() + RETRY_REFUSED;
            if self.canary_refused {
                self.try_canary(link).await?;
            }
        }
        let endpoint = self.store.endpoint();
        for reading in &mut self.line {
            if reading.recovered || (reading.refused && !retry) {
                continue;
            }
            match in_time(reading.recover(link)).await {
                Ok(()) => {
                    if std::mem::take(&mut reading.refused) {
                        info!(
                            redis.endpoint = endpoint,
                            "Redis grants {} again", reading.mailbox.pattern
                        );
                    }
                    if let Some(cause) = reading.gap.take()
                        && let Some(keeper) = reading.mailbox.keeper.upgrade()
                    {
                        drop(keeper.send(membership::MembershipOrder::Restore(cause)));
                    }
                }
                Err(error) if concerns_a_key(&error) => {
                    let kind = error_kind(&error);
                    metrics::dependency_error(Dependency::Redis, kind);
                    reading.lose(GapCause::Link, Instant::now());
                    if !std::mem::replace(&mut reading.refused, true) {
                        let rights = "+@sortedset +@scripting +expire +del";
                        warn!(
                            redis.endpoint = endpoint,
                            error.kind = kind.label(),
                            error = %error,
                            "Redis refuses a tenant's messages; {}",
                            remedy(&self.store, &error, rights, &reading.mailbox.pattern)
                        );
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Marks every key to be tried alone, after an error that does not name the key.
    fn doubt_all_keys(&mut self) {
        for reading in &mut self.line {
            reading.recovered = false;
            reading.doubt = true;
        }
        self.retry_refused_at = Instant::now();
        self.canary_refused = true;
    }

    /// Finds out if the canary's key may be read, and removes canaries of an earlier connection.
    async fn try_canary(&mut self, link: &mut BoundedLink) -> RedisResult<()> {
        let mut clear = redis::cmd("ZREMRANGEBYRANK");
        clear.arg(&self.canary_key).arg(0).arg(-1);
        match in_time(link.query::<u64>(&clear)).await {
            Ok(_) => self.canary_refused = false,
            Err(error) if concerns_a_key(&error) => {
                self.canary_refused = true;
                warn!(
                    redis.endpoint = self.store.endpoint(), error = %error,
                    "Redis refuses the canary's key, so a deaf link goes unnoticed; {}",
                    remedy(&self.store, &error, "+@sortedset", CANARY_PATTERN)
                );
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Waits for a message; the canary goes on meanwhile. Returns `None` if the link is deaf.
    async fn answered(
        &self,
        wait: &Commands,
        link: &mut BoundedLink,
        canary: &mut Flight,
    ) -> Result<Option<Answer>, LinkError> {
        let readable = !self.canary_refused;
        let heard = AtomicBool::new(false);
        let mut answer = std::pin::pin!(link.round(&wait.packed, wait.answers, &heard));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Err(error) if error.is_timeout() => {
                        let text = "no answer to BZPOPMIN in time";
                        Err(LinkError::new(ErrorKind::Timeout, text))
                    }
                    answer => Ok(Some(answer)),
                },
                () = canary.published() => {}
                now = tick.tick() => {
                    if heard.swap(false, Ordering::Relaxed) {
                        // A long message is on its way, and the canary waits behind it.
                        canary.behind();
                    }
                    let beat = canary.beat(now, readable, |text| self.publish(text));
                    if beat.is_break() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn publish(&self, canary: String) -> Publishing {
        let (store, key) = (self.store.clone(), self.canary_key.clone());
        Box::pin(async move {
            let mut pipe = redis::pipe();
            pipe.cmd("ZADD")
                .arg(&key)
                .arg(canary.as_str())
                .arg(canary.as_str());
            pipe.cmd("EXPIRE").arg(&key).arg(CANARY_SECONDS).ignore();
            let (added,): (u64,) = store.query("canary", &pipe).await?;
            Ok(added)
        })
    }

    /// Marks a gap for tenants whose messages may have expired while this task did not read, and begins to count again.
    fn tell_absence(&self) {
        let asked_at = self.asked_at.get();
        self.ask_again();
        for reading in &self.line {
            let away = reading.mailbox.times.away_since(asked_at);
            if away >= reading.mailbox.expiry.max(LONGEST_WAIT) {
                reading.mailbox.inbox.push_gap(GapCause::LayerQueue);
            }
        }
    }

    /// Begins to count again. What was sent since the last wait may be missed if that is long ago. That is noted first, because a
    /// move at the same moment believes the later time.
    fn ask_again(&self) {
        let asked_at = self.asked_at.get();
        for reading in &self.line {
            let away = reading.mailbox.times.away_since(asked_at);
            // From three quarters on a mailbox may lack events (`mailbox.lua`).
            if away >= (reading.mailbox.expiry * 3 / 4).min(LONGEST_WAIT) {
                reading.mailbox.missed(asked_at);
            }
        }
        self.asked_at.again();
    }

    /// Notes that every mailbox is recovered or refused. The tasks of the memberships tell the tenants of the gap.
    fn tell_restored(&self, life: &mut LinkLife) {
        if life.is_whole() {
            return;
        }
        let loss = life.restored();
        info!(
            redis.endpoint = life.endpoint(),
            count = self.line.len(),
            duration_ms = loss.map_or(0, |loss| loss.since.elapsed().as_millis() as u64),
            "The reading link to Redis is up"
        );
    }
}

impl Session for MailboxReader {
    type Connection = BoundedLink;
    type Order = ReaderOrder;

    fn connect(&self) -> BoxFuture<'static, Result<BoundedLink, LinkError>> {
        let (store, name) = (self.store.clone(), self.name.clone());
        Box::pin(async move {
            let stream = dial(&store, &name).await?;
            let mut link = BoundedLink::new(stream, MAX_MESSAGE, LONGEST_WAIT);
            let mut select = redis::cmd("SELECT");
            select.arg(store.url().db());
            if store.url().db() != 0 {
                in_time(link.query::<()>(&select)).await?;
            }
            Ok(link)
        })
    }

    fn orders(&mut self) -> &mut mpsc::UnboundedReceiver<ReaderOrder> {
        &mut self.orders
    }

    fn obey(&mut self, order: ReaderOrder) {
        match order {
            ReaderOrder::Attach(id, mailbox) => {
                mailbox.times.read_by(&self.asked_at);
                self.line.push_back(Reading::new(id, mailbox));
            }
            ReaderOrder::Detach(id) => self.line.retain(|reading| reading.id != id),
        }
    }

    async fn serve(&mut self, mut link: BoundedLink, life: &mut LinkLife) -> End {
        let end = self.wait_and_read(&mut link, life).await;
        end.unwrap_or_else(End::Lost)
    }

    fn lost(&mut self, cause: GapCause) {
        for reading in &mut self.line {
            reading.lose(cause, self.asked_at.get());
        }
        self.retry_refused_at = Instant::now();
    }
}

/// Commands in one write.
struct Commands {
    packed: Vec<u8>,
    answers: usize,
}

/// A message, or `None` if none came in time.
type Answer = RedisResult<Option<Woken>>;

/// Gives up an answer that takes too long.
async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let answer = timeout(ANSWER_LIMIT, answer).await;
    answer.unwrap_or_else(|_| Err(late().into()))
}
