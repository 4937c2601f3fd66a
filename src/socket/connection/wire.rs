//! The wire of one connection: its stream, and the state of reading and writing.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use super::ahead::ReadAhead;
use super::input::HeldInput;
use super::slow::SlowWatch;
use super::step::{ConnectionStep, Ending};
use crate::budget::MemoryBudget;
use crate::close_code::{CloseFrame, CloseReason};
use crate::frame::Decoder;
use crate::hub::{BegunFrame, CloseOrder, Outbound, TOO_SLOW_WAIT, Takes};
use crate::rate::Bucket;
use crate::socket::Common;
use crate::socket::registration::Registration;
use crate::socket::unfinished::UnfinishedMessage;

/// Pings and pongs of the client that count as one message: answering one costs a fraction of what a message does.
const CONTROL_FRAMES: u32 = 64;

/// Bytes from the client that are not all decoded yet.
pub(super) struct Backlog {
    pub(super) bytes: Box<[u8]>,
    /// The number of bytes that are decoded.
    pub(super) decoded: usize,
    _held: HeldInput,
}

impl Backlog {
    /// Copies bytes, which count in `held`.
    fn of(bytes: &[u8], mut held: HeldInput) -> Self {
        held.set(bytes.len());
        Self {
            bytes: bytes.into(),
            decoded: 0,
            _held: held,
        }
    }
}

/// The input of a client that waits. No idle socket has any.
#[derive(Default)]
struct WaitingInput {
    /// Bytes that were read and not all decoded.
    backlog: Option<Backlog>,
    /// Messages that came while the consumer was at work.
    ahead: Option<ReadAhead>,
}

/// The state of a socket whose stream takes no more bytes. No other socket pays for it.
#[derive(Default)]
pub(super) struct Stuck {
    /// The frame that fitted into the stream in part only.
    pub(super) partial: Option<BegunFrame>,
    /// The progress of a socket that is behind.
    pub(super) progress: Option<SlowWatch>,
}

/// The state of reading and writing of an open socket, and its place in the hub.
pub struct WireState {
    /// The client's input that waits; `None` for an idle socket.
    input: Option<Box<WaitingInput>>,
    /// The client's message that is not complete.
    pub(super) unfinished: Option<Box<UnfinishedMessage>>,
    /// The frame that the stream took in part, and the socket's progress while it is behind.
    pub(super) stuck: Option<Box<Stuck>>,
    /// The socket's place in the hub. Its drop takes the socket out of the hub.
    pub registration: Registration,
    /// Decodes bytes to messages of at most the current `limits.message_size`.
    pub(super) decoder: Decoder,
    /// The budget of `limits.messages_per_second`.
    messages: Bucket,
    /// The timers of pings, pongs and expiry, and the tenants.
    pub(super) common: Arc<Common>,
}

impl WireState {
    /// Makes the state of a socket that has just opened.
    pub fn new(registration: Registration, decoder: Decoder, common: Arc<Common>) -> Self {
        Self {
            input: None,
            unfinished: None,
            stuck: None,
            registration,
            decoder,
            messages: Bucket::default(),
            common,
        }
    }

    /// Sets the bytes that came behind the request's head.
    pub(super) fn set_early(&mut self, early: &[u8]) {
        self.keep_input(early);
    }

    /// Keeps bytes that are read and not decoded.
    pub(super) fn keep_input(&mut self, input: &[u8]) {
        let backlog = || Backlog::of(input, self.held_input());
        let backlog = (!input.is_empty()).then(backlog);
        self.set_backlog(backlog);
    }

    fn held_input(&self) -> HeldInput {
        HeldInput::none(self.registration.member(), self.budget())
    }

    /// Returns the account of the memory that clients hold.
    pub(super) fn budget(&self) -> &Arc<MemoryBudget> {
        self.common.heartbeat.unfinished().budget()
    }

    /// Frees the client's bytes, which nothing decodes once the socket closes.
    pub(super) fn drop_input(&mut self) {
        self.input = None;
        self.unfinished = None;
        self.decoder = Decoder::new(0);
    }

    /// Stops the clock of the unfinished message, because nothing is read from here on.
    pub(super) fn stop_reading(&self) {
        if let Some(unfinished) = &self.unfinished {
            unfinished.pause(Instant::now());
        }
    }

    /// Lets the clock of the unfinished message run on.
    pub(super) fn resume_reading(&self) {
        if let Some(unfinished) = &self.unfinished {
            unfinished.resume(Instant::now());
        }
    }

    /// Counts the message that is not complete after all input is decoded. Closes the socket if there is no memory for it.
    pub(super) fn keep_unfinished(&mut self) {
        let Self {
            decoder,
            unfinished,
            registration,
            common,
            ..
        } = self;
        let list = common.heartbeat.unfinished();
        let (bytes, member) = (decoder.memory(), registration.member());
        match unfinished {
            _ if bytes == 0 => *unfinished = None,
            Some(unfinished) => unfinished.set(bytes),
            none => {
                let began = list.begin(member, bytes);
                *none = Some(Box::new(began));
            }
        }
        if !list.budget().has_room_for(bytes) {
            let frame = CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT);
            member.outbound().close(frame, CloseOrder::Now);
        }
    }

    pub(super) fn take_backlog(&mut self) -> Option<Backlog> {
        self.input.as_mut()?.backlog.take()
    }

    pub(super) fn set_backlog(&mut self, backlog: Option<Backlog>) {
        match backlog {
            None => {
                self.input.take_if(|input| input.ahead.is_none());
            }
            some => self.input.get_or_insert_default().backlog = some,
        }
    }

    /// Returns the place for input that comes while the consumer is at work.
    pub(super) fn ahead(&mut self) -> &mut ReadAhead {
        let held = self.held_input();
        let input = self.input.get_or_insert_default();
        input.ahead.get_or_insert_with(|| ReadAhead::new(held))
    }

    /// Returns the input that came while the consumer was at work; `None` if none is left.
    pub(super) fn read_ahead(&self) -> Option<&ReadAhead> {
        self.input.as_ref()?.ahead.as_ref()
    }

    /// Takes the next step that came while the consumer was at work.
    fn take_ahead(&mut self) -> Option<ConnectionStep> {
        self.out_of_ahead(ReadAhead::take)
    }

    /// Takes the end of the input that came while the consumer was at work, if nothing is before it.
    pub(super) fn take_end_of_input(&mut self) -> Option<Ending> {
        self.out_of_ahead(ReadAhead::take_end)
    }

    fn out_of_ahead<T>(&mut self, take: fn(&mut ReadAhead) -> Option<T>) -> Option<T> {
        let input = self.input.as_mut()?;
        let taken = take(input.ahead.as_mut()?);
        input.ahead.take_if(|ahead| ahead.is_empty());
        self.input
            .take_if(|input| input.ahead.is_none() && input.backlog.is_none());
        taken
    }

    pub(super) fn outbound(&self) -> &Outbound {
        self.registration.member().outbound()
    }
}

/// Polling. Its other methods stand in the files for reading, writing and the goodbye.
impl WireState {
    /// Polls both directions. Writing goes first, so that a client that only sends does not starve its own frames.
    ///
    /// Nothing is read from a socket that is behind. Otherwise its client could make the gateway queue answers that it
    /// does not take.
    pub(super) fn poll_step(&mut self, cx: &mut TaskContext<'_>) -> Poll<ConnectionStep> {
        if let Poll::Ready(step) = self.poll_write(cx, Takes::All) {
            return Poll::Ready(step);
        }
        if self.is_behind() {
            self.stop_reading();
            return Poll::Pending;
        }
        if let Some(step) = self.take_ahead() {
            return Poll::Ready(step);
        }
        self.resume_reading();
        self.poll_read(cx, Takes::All)
    }

    /// Takes a message from the budget of `limits.messages_per_second`. Over it the socket closes, and the message is
    /// dropped.
    pub(super) fn may_receive(&mut self) -> bool {
        match self.take_rate() {
            Ok(()) => true,
            Err(frame) => {
                let outbound = self.outbound();
                outbound.close(frame, CloseOrder::AfterQueued);
                false
            }
        }
    }

    /// Takes a message from that budget.
    ///
    /// # Errors
    /// The close frame of a client that is over it.
    pub(super) fn take_rate(&mut self) -> Result<(), CloseFrame> {
        self.take_part(1)
    }

    /// Takes a ping or a pong of the client from that budget: a part of a message.
    ///
    /// # Errors
    /// As [`Self::take_rate`].
    pub(super) fn take_rate_of_control(&mut self) -> Result<(), CloseFrame> {
        self.take_part(CONTROL_FRAMES)
    }

    /// Takes one of so many parts of a message.
    fn take_part(&mut self, parts: u32) -> Result<(), CloseFrame> {
        let registration = &self.registration;
        let per_second = registration.relay().limits().messages_per_second;
        let messages = &mut self.messages;
        if messages.take_part(Instant::now(), per_second, parts) {
            return Ok(());
        }
        registration.metrics().rate_limited("messages_per_second");
        Err(CloseReason::RateLimited.frame_with_retry(Duration::from_secs(1)))
    }
}
