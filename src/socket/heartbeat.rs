//! Times pings, pong deadlines, token expiry, unfinished messages and `server.max_age` of all sockets with one coarse timer
//! wheel.
//!
//! A tokio timer for each socket would take 144 bytes and a wake-up; the wheel takes eight bytes for each.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::unfinished::UnfinishedMessages;
use crate::budget::MemoryBudget;
use crate::clock::UnixTime;
use crate::close_code::CloseReason;
use crate::config::ServerConfig;
use crate::frame::Frame;
use crate::hub::{CloseOrder, Member, PingState, close_in_turns};
use crate::metrics;

/// The step of the wheel. A socket is closed at most this long after its token expires.
const TICK: Duration = Duration::from_millis(100);
/// The slots of the wheel: 51.2 seconds. A socket that is due later goes round again.
const SLOTS: usize = 512;
/// A wheel that is later than this was stopped itself. It then closes no socket for a missing pong, which may lie unread.
const STALL: Duration = Duration::from_secs(2);
/// The part of `server.max_age` that is added at random, so that sockets that came together after a rollout do not leave
/// together.
const AGE_JITTER: f64 = 0.1;
/// The time after their close within which clients reconnect, each at a random moment, as in a drain.
const RECONNECT_SPREAD_MS: u64 = 1000;
/// The ticks in which a socket may refresh its token once: a second. Clients refresh once in a token's lifetime, and each
/// refresh may cost a round to Redis and a database lookup.
const REFRESH_INTERVAL: u32 = 10;
/// The most refreshes of a socket that has sent none for a while.
const REFRESH_BURST: u32 = 5;

/// The timers of all sockets of this process.
pub struct HeartbeatWheel {
    /// `heartbeat.interval` in ticks.
    interval: u32,
    /// `heartbeat.timeout` in ticks.
    timeout: u32,
    /// `max_age` in ticks.
    max_age: Option<u32>,
    /// The old sockets that the wheel may close now; the fraction is carried over to the next turn.
    retiring: Mutex<f32>,
    /// The payload of all pings, random for each process. Only a pong that repeats it counts.
    payload: [u8; 8],
    ping: Frame,
    started: Instant,
    /// The number of the current tick.
    tick: AtomicU32,
    /// The sockets that are due, by tick modulo [`SLOTS`].
    slots: Mutex<Vec<Vec<Weak<Member>>>>,
    /// The sockets whose token a refresh has replaced by one that expires before their next check, by tick.
    early: Mutex<BTreeMap<u32, Vec<Weak<Member>>>>,
    /// The messages that have to be complete in time.
    unfinished: Arc<UnfinishedMessages>,
    /// Cancelled once no socket may wait for its client or its consumer any longer.
    stop: CancellationToken,
}

impl HeartbeatWheel {
    /// Creates a wheel for `server.heartbeat`, `server.max_age` and `server.message_timeout`; [`HeartbeatWheel::run`] turns
    /// it. The bytes of unfinished messages count in `budget`.
    pub fn new(config: &ServerConfig, budget: Arc<MemoryBudget>) -> Arc<Self> {
        let ticks = |time: Duration| {
            u32::try_from(time.as_millis() / TICK.as_millis())
                .unwrap_or(u32::MAX / 2)
                .max(1)
        };
        let payload = rand::random::<u64>().to_be_bytes();
        Arc::new(Self {
            interval: ticks(config.heartbeat.interval),
            timeout: ticks(config.heartbeat.timeout),
            max_age: config.max_age.map(ticks),
            retiring: Mutex::new(0.0),
            payload,
            ping: Frame::ping(&payload),
            started: Instant::now(),
            tick: AtomicU32::new(1),
            slots: Mutex::new(vec![Vec::new(); SLOTS]),
            early: Mutex::default(),
            unfinished: UnfinishedMessages::new(config.message_timeout, budget),
            stop: CancellationToken::new(),
        })
    }

    /// Returns the list of unfinished messages.
    pub fn unfinished(&self) -> &Arc<UnfinishedMessages> {
        &self.unfinished
    }

    /// Lets no closing socket wait any longer, because the replica ends: consumers are told of the end now.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns once [`HeartbeatWheel::stop`] is called.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Watches the socket until it is dropped. The first ping comes at a random moment of the first interval, so that
    /// sockets that came together are not pinged together.
    pub fn watch(&self, member: &Arc<Member>) {
        let first = 1 + rand::random::<u32>() % self.interval;
        let (now, pulse) = (self.tick.load(Ordering::Relaxed), member.pulse());
        pulse.set_ping_due(now + first);
        let age = self.max_age.map_or(u32::MAX, |age| {
            let most = (f64::from(age) * AGE_JITTER) as u32;
            let age = age + rand::random::<u32>() % (most + 1);
            pulse.set_retires_at(now + age);
            age
        });
        let left = ticks_left(pulse.seconds_left(UnixTime::now()));
        self.put(Arc::downgrade(member), first.min(left).min(age));
    }

    /// Takes one refresh of its token from the socket's budget: one a second, and five after a while without. Returns false
    /// if there is none left.
    pub fn may_refresh(&self, member: &Member) -> bool {
        let now = self.tick.load(Ordering::Relaxed);
        member.take_refresh(now, REFRESH_INTERVAL, REFRESH_BURST)
    }

    /// Notes that the socket has another token. One that expires before the next check gets a check of its own.
    pub fn token_replaced(&self, member: &Arc<Member>) {
        let left = ticks_left(member.pulse().seconds_left(UnixTime::now()));
        if left <= self.longest_wait() {
            self.put_early(Arc::downgrade(member), left);
        }
    }

    /// Returns the most ticks between two checks of a socket.
    fn longest_wait(&self) -> u32 {
        self.interval.max(self.timeout).min(SLOTS as u32 - 1)
    }

    fn put_early(&self, member: Weak<Member>, wait: u32) {
        let at = self.tick.load(Ordering::Relaxed) + wait.max(1);
        self.early.lock().entry(at).or_default().push(member);
    }

    /// Closes the sockets of early checks whose tokens have expired.
    fn turn_early(&self, tick: u32, now: UnixTime) {
        let due = {
            let mut early = self.early.lock();
            let later = early.split_off(&(tick + 1));
            std::mem::replace(&mut *early, later)
        };
        for weak in due.into_values().flatten() {
            let Some(member) = weak.upgrade() else {
                continue;
            };
            match ticks_left(member.pulse().seconds_left(now)) {
                0 => close_expired(&member),
                // Rounding, or a clock that was set.
                left if left <= self.longest_wait() => self.put_early(weak, left),
                // A later refresh has brought a token that lasts; the usual checks see its end.
                _ => {}
            }
        }
    }

    /// Returns the frame of all pings.
    pub fn ping(&self) -> &Frame {
        &self.ping
    }

    /// Notes that the kernel took a ping: its deadline runs from here, not from the time at which the ping had to wait
    /// behind a frame that a slow client takes.
    pub fn ping_left(&self, member: &Member) {
        member.pulse().pinged(self.tick.load(Ordering::Relaxed));
    }

    /// Records a pong. A pong without our payload answers no ping of ours and is ignored.
    pub fn ponged(&self, member: &Member, payload: &[u8]) {
        if payload == self.payload {
            member.pulse().ponged(self.tick.load(Ordering::Relaxed));
        }
    }

    /// Turns the wheel until the process ends. `drain_rate` tells the old sockets that may close in a second
    /// (`server.drain.rate`); it is asked at every turn, since a reload changes it.
    pub async fn run(self: Arc<Self>, drain_rate: impl Fn() -> u32) -> Infallible {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let due = interval.tick().await;
            metrics::loop_lag(due.elapsed());
            metrics::runtime_tasks(Handle::current().metrics().num_alive_tasks());
            let last = self.tick.load(Ordering::Relaxed);
            let now = u32::try_from(self.started.elapsed().as_millis() / TICK.as_millis())
                .unwrap_or(u32::MAX)
                .max(last);
            let stalled = (now - last) * 100 > STALL.as_millis() as u32;
            for tick in (last + 1)..=now {
                self.tick.store(tick, Ordering::Relaxed);
                self.turn(tick, drain_rate(), stalled);
            }
            if !stalled {
                self.unfinished.close_overdue(Instant::now());
            }
        }
    }

    /// Checks the sockets of one slot. At most `per_second` close in a second for their age.
    fn turn(&self, tick: u32, per_second: u32, stalled: bool) {
        let due = std::mem::take(&mut self.slots.lock()[tick as usize % SLOTS]);
        {
            // At most one socket is carried over, so that a quiet hour gives no credit for a burst.
            let mut retiring = self.retiring.lock();
            *retiring = (*retiring).min(1.0) + per_second as f32 * TICK.as_secs_f32();
        }
        let now = UnixTime::now();
        // Any number of tokens may expire together.
        close_in_turns(|| {
            self.turn_early(tick, now);
            for weak in due {
                let Some(member) = weak.upgrade() else {
                    continue;
                };
                if let Some(wait) = self.check(&member, tick, now, stalled) {
                    self.put(weak, wait);
                }
            }
        });
    }

    /// Checks one socket. Returns the ticks until its next check, or `None` if it is being closed.
    fn check(&self, member: &Member, tick: u32, now: UnixTime, stalled: bool) -> Option<u32> {
        let left = ticks_left(member.pulse().seconds_left(now));
        if left == 0 {
            close_expired(member);
            return None;
        }
        let Some(wait) = self.check_pong(member, tick, stalled) else {
            let frame = CloseReason::PongTimeout.frame();
            member.outbound().close(frame, CloseOrder::Now);
            return None;
        };
        let age = match member.pulse().retires_at() {
            Some(at) if tick >= at && self.may_retire() => {
                let wait = Duration::from_millis(rand::random::<u64>() % RECONNECT_SPREAD_MS);
                let frame = CloseReason::MaxAge.frame_with_retry(wait);
                member.outbound().close(frame, CloseOrder::AfterQueued);
                return None;
            }
            // A socket that is over its age but over the rate too is checked again at the next tick.
            Some(at) => at.saturating_sub(tick).max(1),
            None => u32::MAX,
        };
        Some(wait.min(left).min(age))
    }

    /// Checks the last ping of a socket, and asks for the next one if it is due. Returns the ticks until the next check, or
    /// `None` if the socket missed its deadline.
    fn check_pong(&self, member: &Member, tick: u32, stalled: bool) -> Option<u32> {
        let (pulse, outbound) = (member.pulse(), member.outbound());
        let state = pulse.ping_state();
        let since = match state {
            PingState::Idle => return Some(self.wait_or_ping(member, tick)),
            PingState::LeftAt(since) => since,
            PingState::Waits => pulse.ping_due().saturating_sub(self.interval),
        };
        let left = (since + self.timeout).saturating_sub(tick);
        if left > 0 {
            return Some(left);
        }
        // The pong may lie unread: the process stood still, or the task may read nothing, which has a deadline of its own.
        // A ping that waits does so behind the rest of a frame, and the client may take a part of it.
        let excused = stalled
            || outbound.reads_nothing()
            || (state == PingState::Waits && outbound.take_moved());
        if excused {
            match state {
                PingState::Waits => pulse.set_ping_due(tick + self.interval),
                _ => pulse.pinged(tick),
            }
            return Some(self.timeout);
        }
        // On a busy machine the task may not have run yet, although the pong is there.
        (!outbound.has_looked()).then_some(1)
    }

    /// Returns true if this turn may close one more socket for its age, by `drain.rate` per second.
    fn may_retire(&self) -> bool {
        let mut retiring = self.retiring.lock();
        let may = *retiring >= 1.0;
        *retiring -= if may { 1.0 } else { 0.0 };
        may
    }

    /// Asks for a ping if it is due. Returns the ticks to wait; a check that came early for the token's expiry sends none.
    fn wait_or_ping(&self, member: &Member, tick: u32) -> u32 {
        let due = member.pulse().ping_due();
        if tick < due {
            return due - tick;
        }
        member.pulse().ask_ping();
        member.pulse().set_ping_due(tick + self.interval);
        member.outbound().ask_ping();
        self.timeout
    }

    /// Puts a socket into the slot that comes after `wait` ticks, or into the last slot if that is later.
    fn put(&self, member: Weak<Member>, wait: u32) {
        let wait = (wait as usize).clamp(1, SLOTS - 1);
        let tick = self.tick.load(Ordering::Relaxed) as usize;
        self.slots.lock()[(tick + wait) % SLOTS].push(member);
    }
}

fn close_expired(member: &Member) {
    let frame = CloseReason::TokenExpired.frame();
    member.outbound().close(frame, CloseOrder::Now);
}

/// Returns the ticks until `seconds` have passed, rounded up; 0 if they have passed.
fn ticks_left(seconds: f64) -> u32 {
    if seconds <= 0.0 {
        0
    } else {
        (seconds * 10.0).ceil().min(f64::from(u32::MAX / 2)) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::hub::{Budget, Hub, NextToken, Pending, Profile, Renewed, Takes};

    /// A wheel whose socket gets a ping at tick 1; `interval` and `timeout` are 250 and 100 ticks.
    fn pinged() -> (Arc<HeartbeatWheel>, Arc<Member>) {
        let wheel = HeartbeatWheel::new(&ServerConfig::default(), Arc::default());
        let member = Member::new(Profile::default());
        assert_eq!(check(&wheel, &member, 1), Some(wheel.timeout));
        (wheel, member)
    }

    fn check(wheel: &HeartbeatWheel, member: &Member, tick: u32) -> Option<u32> {
        wheel.tick.store(tick, Ordering::Relaxed);
        wheel.check(member, tick, UnixTime::now(), false)
    }

    /// Lets the task of the socket run; returns true if it takes a ping.
    fn run(wheel: &HeartbeatWheel, member: &Member, takes: Takes) -> bool {
        let mut batch = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        let outbound = member.outbound();
        while outbound
            .poll_next(&mut context, takes, wheel.ping(), &mut batch)
            .is_ready()
        {
            if batch.drain(..).any(|frame| frame.is_ping()) {
                wheel.ping_left(member);
                return true;
            }
        }
        false
    }

    /// Before: closed at tick 101, ten seconds after the ping was queued, whenever it left.
    #[test]
    fn the_deadline_of_a_pong_runs_from_the_time_at_which_the_ping_left() {
        let (wheel, member) = pinged();
        wheel.tick.store(81, Ordering::Relaxed);
        assert!(run(&wheel, &member, Takes::All));
        assert_eq!(check(&wheel, &member, 101), Some(80));
        assert_eq!(check(&wheel, &member, 181), Some(1));
        assert!(!run(&wheel, &member, Takes::All));
        assert_eq!(check(&wheel, &member, 182), None);
        let cause = member.outbound().closing_cause();
        assert_eq!(cause, Some(CloseReason::PongTimeout));
    }

    /// Before: closed, although the pong lay in the kernel.
    #[test]
    fn a_socket_whose_task_could_not_run_is_not_closed() {
        let (wheel, member) = pinged();
        assert!(run(&wheel, &member, Takes::All));
        for tick in 101..300 {
            assert_eq!(check(&wheel, &member, tick), Some(1), "{tick}");
        }
        wheel.ponged(&member, &wheel.payload);
        assert!(check(&wheel, &member, 300).is_some());
        assert!(!member.outbound().is_closing());
    }

    /// The regular check of such a socket can be an interval away.
    #[test]
    fn a_token_that_ends_before_the_next_check_closes_its_socket_in_time() {
        let (wheel, member) = pinged();
        let (hub, start) = (Hub::default(), UnixTime::now());
        hub.admit(&member, None, &Budget::default()).unwrap();
        let ends_in = |seconds: f64| {
            let expires_at = Some(UnixTime(start.0 + seconds));
            let next = NextToken {
                jti: None,
                issued_at: None,
                expires_at,
                password: None,
            };
            let pending = Pending::new("".into(), None, None);
            let renewed = hub.renew(&member, next, &pending);
            assert_eq!(renewed, Renewed::Done { stale: false });
            wheel.token_replaced(&member);
        };
        let turn = |tick: u32, seconds: f64| {
            wheel.tick.store(tick, Ordering::Relaxed);
            wheel.turn_early(tick, UnixTime(start.0 + seconds));
        };
        ends_in(5.0);
        turn(40, 4.0);
        assert!(!member.outbound().is_closing());
        // Replaced before its end by one that lasts: nothing closes, and nothing is left to check.
        ends_in(3600.0);
        turn(60, 6.0);
        assert!(!member.outbound().is_closing());
        assert!(wheel.early.lock().is_empty());
        ends_in(8.0);
        turn(140, 7.9);
        assert!(!member.outbound().is_closing());
        turn(141, 8.1);
        let cause = member.outbound().closing_cause();
        assert_eq!(cause, Some(CloseReason::TokenExpired));
        assert!(wheel.early.lock().is_empty());
    }

    #[test]
    fn a_socket_refreshes_five_times_at_once_and_then_once_a_second() {
        let (wheel, member) = pinged();
        let at = |tick: u32| {
            wheel.tick.store(tick, Ordering::Relaxed);
            (0..20).filter(|_| wheel.may_refresh(&member)).count()
        };
        assert_eq!([at(1000), at(1009), at(1010), at(1030)], [5, 0, 1, 2]);
        assert_eq!(at(5000), 5);
    }

    #[test]
    fn a_ping_waits_as_long_as_the_client_takes_bytes_of_the_frame_before_it() {
        let (wheel, member) = pinged();
        for tick in [101, 201, 301] {
            member.outbound().set_moved();
            assert_eq!(check(&wheel, &member, tick), Some(100), "{tick}");
        }
        assert_eq!(check(&wheel, &member, 350), Some(51));
        assert_eq!(check(&wheel, &member, 401), Some(1));
        let waker = Waker::noop();
        let context = &mut Context::from_waker(waker);
        member.outbound().blocked(context, Takes::All);
        assert_eq!(check(&wheel, &member, 402), None);
    }

    /// Before: closed while the consumer held the loop, since the pong behind its message was not read.
    #[test]
    fn a_consumer_at_work_stops_the_deadline() {
        let (wheel, member) = pinged();
        assert!(run(&wheel, &member, Takes::Frames));
        for tick in [101, 201, 301] {
            assert!(!run(&wheel, &member, Takes::Frames));
            assert_eq!(check(&wheel, &member, tick), Some(100), "{tick}");
        }
        assert!(!run(&wheel, &member, Takes::All));
        assert_eq!(check(&wheel, &member, 401), Some(1));
        assert!(!run(&wheel, &member, Takes::All));
        assert_eq!(check(&wheel, &member, 402), None);
    }
}
