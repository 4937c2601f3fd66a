//! The task behind one reading link of the core layer: waits for messages of all tenants that log in to one server as one
//! user and database, and hands them to the tenants' inboxes, unread.
//!
//! It blocks on a connection of its own. One message comes with the wake-up, and is lost if the link dies under it, which is
//! a gap; what lies behind it is taken in one round that can be repeated, and the tenant then goes to the end of the line. It waits for nobody: inboxes drop when they are full.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, RedisResult};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::error::{Dependency, ErrorKind};
use crate::metrics::{self, GapCause};
use crate::stores::redis::{RedisStore, error_kind};

use super::super::link::canary::Canary;
use super::super::link::dial::LinkError;
use super::super::link::{Publishing, Status, poll_some};
use super::mailbox::{Mailbox, Reading, concerns_a_key};
use super::membership;
use super::seen::Seen;

/// First and last pause between attempts to connect; each is cut by up to a half at random.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How long one wait for a message takes at most; a new tenant's first message waits for the end of it.
const BLOCK: Duration = Duration::from_secs(1);
/// How much longer the answer may take: with [`BLOCK`], a stopped server is noticed within 3 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Keys that Redis refuses are tried again this often: an operator may have granted them.
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// A canary that nobody took goes after this.
const CANARY_SECONDS: u64 = 60;

/// What layers tell the task. Unbounded, because leaving cannot wait; bounded by the number of tenants.
pub(super) enum Order {
    Attach(u64, Mailbox),
    Detach(u64),
}

/// Why a link ended.
enum End {
    /// Nobody needs it any more.
    Stopped,
    Lost(LinkError),
    /// It answers, but what is written does not arrive here.
    Deaf,
}

impl From<RedisError> for End {
    fn from(error: RedisError) -> Self {
        Self::Lost(LinkError::new(error_kind(&error), error.to_string()))
    }
}

/// The task of one link.
pub(super) struct Reader {
    pub(super) store: Arc<RedisStore>,
    /// Where this replica's canaries go on every server.
    pub(super) canary_key: String,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) status: Arc<Status>,
}

impl Reader {
    /// Runs until the last layer and the registry let go of it.
    pub(super) async fn run(self) {
        let mut task = Task {
            parts: self,
            line: VecDeque::new(),
            seen: Seen::default(),
            links: 0,
            said: None,
            canary_refused: false,
            retry_refused_at: Instant::now(),
        };
        let mut pause = BACKOFF[0];
        loop {
            let end = match task.parts.store.own_connection().await {
                Ok(link) => {
                    let made = Instant::now();
                    let end = task.serve(link).await;
                    if made.elapsed() > BACKOFF[1] {
                        pause = BACKOFF[0];
                    }
                    end
                }
                Err(error) => End::Lost(error.into()),
            };
            if task.lost(end).is_break() || task.take_orders().is_break() {
                return;
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(BACKOFF[1]);
        }
    }
}

struct Task {
    parts: Reader,
    /// In the order in which they are served.
    line: VecDeque<Reading>,
    seen: Seen,
    /// Links made so far.
    links: u64,
    /// The failure that the log has; `None` while all is well.
    said: Option<ErrorKind>,
    canary_refused: bool,
    retry_refused_at: Instant,
}

/// What a wait ended with.
struct Woken {
    key: String,
    message: Vec<u8>,
    score: String,
}

impl Task {
    fn take_orders(&mut self) -> ControlFlow<()> {
        loop {
            match self.parts.orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
                Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Attach(id, mailbox) => self.line.push_back(Reading::new(id, mailbox)),
            Order::Detach(id) => self.line.retain(|reading| reading.id != id),
        }
    }

    /// One link, from its first command to its end.
    async fn serve(&mut self, mut link: MultiplexedConnection) -> End {
        let mut canary = Canary::new();
        let mut publishing: Option<Publishing> = None;
        let (mut asked_at, mut in_flight) = (Instant::now(), None);
        let mut suspected = false;
        self.links += 1;
        if let Err(end) = self.try_canary(&mut link).await {
            return end;
        }
        loop {
            if self.take_orders().is_break() {
                return End::Stopped;
            }
            if let Err(end) = self.recover(&mut link).await {
                return end;
            }
            self.up();
            self.tell_absence(asked_at.elapsed());
            asked_at = Instant::now();
            if !self.canary_refused
                && let Some(text) = canary.due(asked_at)
            {
                publishing = Some(self.publish_canary(text));
            }
            if canary
                .overdue(asked_at, self.parts.store.endpoint())
                .is_break()
            {
                return End::Deaf;
            }
            let Some(wait) = self.wait(in_flight.take()) else {
                // Nothing may be read: time passes until something is granted.
                sleep(BLOCK).await;
                continue;
            };
            let answer = match answered(&wait, &mut link, &mut canary, &mut publishing).await {
                Ok(answer) => answer,
                Err(end) => return end,
            };
            match answer {
                Ok((None,)) => {}
                Ok((Some((key, message, _)),)) if key == self.parts.canary_key => {
                    canary.returned(&message, self.parts.store.endpoint());
                }
                Ok((Some((key, message, score)),)) => {
                    let woken = Woken {
                        key,
                        message,
                        score,
                    };
                    match self.read(&mut link, woken).await {
                        Ok(inflight) => in_flight = inflight,
                        Err(end) => return end,
                    }
                }
                // If no key alone is refused then, it is the command.
                Err(error) if concerns_a_key(&error) && !suspected => {
                    suspected = true;
                    self.doubt_all_keys();
                    continue;
                }
                Err(error) => return error.into(),
            }
            suspected = false;
        }
    }

    /// The command that waits, after what was read is out of flight; `None` where there is nothing to wait for.
    fn wait(&self, in_flight: Option<String>) -> Option<Pipeline> {
        let mut pipe = Pipeline::with_capacity(2);
        if let Some(key) = in_flight {
            pipe.cmd("DEL").arg(key).ignore();
        }
        let granted = self.line.iter().filter(|reading| reading.recovered);
        let keys = granted.map(|reading| &reading.mailbox.key);
        // The canary's is the first, or busy tenants would hold it up.
        let canary = (!self.canary_refused).then_some(&self.parts.canary_key);
        let keys: Vec<_> = canary.into_iter().chain(keys).collect();
        if keys.is_empty() {
            return None;
        }
        pipe.cmd("BZPOPMIN").arg(keys).arg(BLOCK.as_secs());
        Some(pipe)
    }

    /// Takes what the wake-up brought and what lies behind it. Returns the key of what is in flight now.
    async fn read(
        &mut self,
        link: &mut MultiplexedConnection,
        woken: Woken,
    ) -> Result<Option<String>, End> {
        let is_it = |reading: &Reading| reading.mailbox.key == woken.key;
        let Some(mut reading) = self
            .line
            .iter()
            .position(is_it)
            .and_then(|at| self.line.remove(at))
        else {
            return Ok(None);
        };
        reading.deliver(woken.message, &woken.score, &mut self.seen);
        let outcome = match in_time(reading.take(link)).await {
            Ok(taken) => Ok(reading.deliver_all(taken, &mut self.seen)),
            Err(error) => Err(error.into()),
        };
        self.line.push_back(reading);
        outcome
    }

    /// For every mailbox that is new on this link: what was in flight goes back, the tenant hears of what it missed, and its
    /// memberships are restored.
    async fn recover(&mut self, link: &mut MultiplexedConnection) -> Result<(), End> {
        let retry = Instant::now() >= self.retry_refused_at;
        if retry {
            self.retry_refused_at = Instant::now() + RETRY_REFUSED;
            if self.canary_refused {
                self.try_canary(link).await?;
            }
        }
        let endpoint = self.parts.store.endpoint();
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
                        drop(keeper.send(membership::Order::Restore(cause)));
                    }
                }
                Err(error) if concerns_a_key(&error) => {
                    let kind = error_kind(&error);
                    metrics::dependency_error(Dependency::Redis, kind);
                    reading.lose(GapCause::Link);
                    if !std::mem::replace(&mut reading.refused, true) {
                        let user = self.parts.store.url().username().unwrap_or("default");
                        warn!(
                            redis.endpoint = endpoint,
                            error.kind = kind.label(),
                            error = %error,
                            "Redis refuses a tenant's messages; grant them: ACL SETUSER {user} +@sortedset +@scripting +expire +del ~{}",
                            reading.mailbox.pattern
                        );
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Some key was refused, and the error does not say which.
    fn doubt_all_keys(&mut self) {
        for reading in &mut self.line {
            reading.recovered = false;
            reading.doubt = true;
        }
        self.retry_refused_at = Instant::now();
        self.canary_refused = true;
    }

    /// Whether the canary's key may be read; what an earlier link left there goes.
    async fn try_canary(&mut self, link: &mut MultiplexedConnection) -> Result<(), End> {
        let mut clear = redis::cmd("ZREMRANGEBYRANK");
        clear.arg(&self.parts.canary_key).arg(0).arg(-1);
        match in_time(clear.query_async::<u64>(link)).await {
            Ok(_) => self.canary_refused = false,
            Err(error) if concerns_a_key(&error) => {
                self.canary_refused = true;
                let user = self.parts.store.url().username().unwrap_or("default");
                warn!(
                    redis.endpoint = self.parts.store.endpoint(), error = %error,
                    "Redis refuses the canary's key, so a deaf link goes unnoticed; grant it: ACL SETUSER {user} ~{}",
                    crate::stores::redis_keys::CANARY_PATTERN
                );
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn publish_canary(&self, text: String) -> Publishing {
        let (store, key) = (self.parts.store.clone(), self.parts.canary_key.clone());
        Box::pin(async move {
            let mut pipe = Pipeline::with_capacity(2);
            pipe.cmd("ZADD")
                .arg(&key)
                .arg(text.as_str())
                .arg(text.as_str());
            pipe.cmd("EXPIRE").arg(&key).arg(CANARY_SECONDS).ignore();
            let (added,): (u64,) = store.query_all("canary", &pipe).await?;
            Ok(added)
        })
    }

    /// Tells tenants whose messages may have expired while this task did not read.
    fn tell_absence(&self, since_asked: Duration) {
        let away = since_asked.saturating_sub(BLOCK + ANSWER_LIMIT);
        for reading in &self.line {
            if away >= reading.mailbox.expiry {
                reading.mailbox.inbox.push_gap(GapCause::LayerQueue);
            }
        }
    }

    /// The link is made, and all that was lost with the last one is seen to.
    fn up(&mut self) {
        let status = &self.parts.status;
        if status.ready.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.links > 1 {
            metrics::reconnected(Dependency::Redis);
        }
        let endpoint = self.parts.store.endpoint();
        metrics::dependency_up(Dependency::Redis, endpoint, true);
        self.said = None;
        *status.failure.lock() = None;
        info!(
            redis.endpoint = endpoint,
            count = self.line.len(),
            "The reading link to Redis is up"
        );
    }

    fn lost(&mut self, end: End) -> ControlFlow<()> {
        let (cause, error) = match end {
            End::Stopped => return ControlFlow::Break(()),
            End::Lost(error) => (GapCause::Link, error),
            End::Deaf => {
                let text = "canaries did not come back";
                (GapCause::Canary, LinkError::new(ErrorKind::Other, text))
            }
        };
        for reading in &mut self.line {
            reading.lose(cause);
        }
        self.parts.status.ready.store(false, Ordering::Release);
        self.retry_refused_at = Instant::now();
        self.failed(&error);
        ControlFlow::Continue(())
    }

    /// Counts a failure, and logs it if it is news.
    fn failed(&mut self, error: &LinkError) {
        metrics::dependency_error(Dependency::Redis, error.kind);
        *self.parts.status.failure.lock() = Some(error.kind);
        if self.said == Some(error.kind) {
            return;
        }
        self.said = Some(error.kind);
        let endpoint = self.parts.store.endpoint();
        metrics::dependency_up(Dependency::Redis, endpoint, false);
        warn!(
            redis.endpoint = endpoint,
            error.kind = error.kind.label(),
            error = error.text,
            "No reading link to Redis; events may be missed until it is back"
        );
    }
}

/// What a wait brings: a key, a message, its score; or nothing in time.
type Answer = RedisResult<(Option<(String, Vec<u8>, String)>,)>;

/// Waits for a message, while the canary is on its way.
async fn answered(
    wait: &Pipeline,
    link: &mut MultiplexedConnection,
    canary: &mut Canary,
    publishing: &mut Option<Publishing>,
) -> Result<Answer, End> {
    let mut answer = std::pin::pin!(timeout(BLOCK + ANSWER_LIMIT, wait.query_async(link)));
    loop {
        tokio::select! {
            answer = &mut answer => return answer.map_err(|_| {
                let text = "no answer to BZPOPMIN in time";
                End::Lost(LinkError::new(ErrorKind::Timeout, text))
            }),
            published = poll_some(publishing) => {
                *publishing = None;
                canary.published(published.is_ok());
            }
        }
    }
}

/// Gives up an answer that takes too long.
async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let answer = timeout(ANSWER_LIMIT, answer).await;
    answer.unwrap_or_else(|_| Err(late().into()))
}
