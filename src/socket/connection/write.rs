//! Writes the outbound queue of a connection to its stream.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::task::{Context as TaskContext, Poll, ready};

use super::slow::SlowWatch;
use super::step::{ConnectionStep, Ending};
use super::wire::WireState;
use crate::close_code::CloseReason;
use crate::frame::Frame;
use crate::hub::{BATCH, BegunFrame, Blocked, CloseOrder, Next, TOO_SLOW_WAIT, Takes};

thread_local! {
    static WRITE: RefCell<Vec<Frame>> = RefCell::new(Vec::with_capacity(BATCH));
}

impl WireState {
    /// Returns true if more than `limits.send_queue` waits for a stream that takes no bytes.
    pub(super) fn is_behind(&self) -> bool {
        let stuck = self.stuck.as_ref();
        stuck.is_some_and(|stuck| stuck.progress.is_some())
    }

    /// Sends the queued frames. It is pending when the queue is empty or the stream takes no more bytes.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut TaskContext<'_>,
        takes: Takes,
    ) -> Poll<ConnectionStep> {
        let gone = Poll::Ready(ConnectionStep::End(Ending::Gone));
        loop {
            match self.poll_partial(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return gone,
                Poll::Pending => return self.poll_blocked(cx, takes).map(ConnectionStep::End),
            }
            let next = WRITE.with_borrow_mut(|batch| {
                // A panic may have left frames of another socket of this thread.
                batch.clear();
                let ping = self.common.heartbeat.ping();
                let next = self.outbound().poll_next(cx, takes, ping, batch);
                let written = if batch.is_empty() {
                    Ok(())
                } else {
                    self.write_batch(batch)
                };
                batch.clear();
                next.map(|next| (next, written))
            });
            match next {
                Poll::Ready((Next::Frames, Ok(()))) => {}
                Poll::Ready((Next::Frames, Err(_))) => return gone,
                Poll::Ready((Next::Rest(begun), _)) => self.go_on_with(begun),
                Poll::Ready((Next::Event(event), _)) => {
                    return Poll::Ready(ConnectionStep::Event(event));
                }
                Poll::Ready((Next::Close(frame), _)) => {
                    return Poll::Ready(ConnectionStep::End(Ending::Close(*frame)));
                }
                Poll::Pending => {
                    self.stuck = None;
                    return Poll::Pending;
                }
            }
        }
    }

    /// The stream is full. Until it takes bytes, only a close or a queue over its bound wakes this task.
    fn poll_blocked(&mut self, cx: &mut TaskContext<'_>, takes: Takes) -> Poll<Ending> {
        let blocked = self.outbound().blocked(cx, takes);
        let stuck = self.stuck.get_or_insert_default();
        match blocked {
            Blocked::Closing(frame) => Poll::Ready(Ending::CloseBlocked(frame)),
            Blocked::Waits => {
                stuck.progress = None;
                Poll::Pending
            }
            Blocked::Behind => {
                let progress = stuck.progress.get_or_insert_with(SlowWatch::new);
                ready!(progress.poll_too_slow(cx));
                let frame = CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT);
                let registration = &self.registration;
                let outbound = registration.member().outbound();
                if outbound.close(frame.clone(), CloseOrder::Now) {
                    registration.metrics().rate_limited("send_queue");
                }
                Poll::Ready(Ending::CloseBlocked(frame))
            }
        }
    }

    /// Sends the rest of a frame that did not fit; ready when no rest is left.
    pub(super) fn poll_partial(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        while let Some(stuck) = &mut self.stuck
            && let Some(BegunFrame { frame, sent }) = &mut stuck.partial
        {
            let rest = &frame.as_bytes()[*sent..];
            let outbound = self.registration.member().outbound();
            match outbound.on_stream(|stream| stream.try_write(rest)) {
                Ok(count) => {
                    *sent += count;
                    let whole = (*sent == frame.len()).then(|| frame.clone());
                    if let Some(progress) = &mut stuck.progress {
                        progress.took(count);
                    }
                    match whole {
                        Some(frame) => {
                            stuck.partial = None;
                            self.outbound().set_in_hand(0);
                            self.sent(&frame);
                        }
                        None => self.outbound().set_moved(),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(outbound.poll_writable(cx))?
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the batch in one call. The first frame that does not fit is kept as `partial`, and the frames behind it go
    /// back to the queue.
    fn write_batch(&mut self, batch: &mut Vec<Frame>) -> io::Result<()> {
        let outbound = self.outbound();
        let result = match batch.as_slice() {
            [only] => outbound.on_stream(|stream| stream.try_write(only.as_bytes())),
            frames => {
                let mut slices = [IoSlice::new(&[]); BATCH];
                for (slice, frame) in slices.iter_mut().zip(frames) {
                    *slice = IoSlice::new(frame.as_bytes());
                }
                let slices = &slices[..frames.len()];
                outbound.on_stream(|stream| stream.try_write_vectored(slices))
            }
        };
        let mut count = match result {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if let Some(stuck) = &mut self.stuck
            && let Some(progress) = &mut stuck.progress
        {
            progress.took(count);
        }
        let whole = batch.iter().take_while(|frame| {
            let fits = frame.len() <= count;
            count -= if fits { frame.len() } else { 0 };
            fits
        });
        let whole = whole.count();
        for frame in &batch[..whole] {
            self.sent(frame);
        }
        if whole < batch.len() {
            // Also if none of its bytes were sent: `poll_partial` is what waits until the stream is writable.
            self.go_on_with(BegunFrame {
                frame: batch[whole].clone(),
                sent: count,
            });
            let outbound = self.outbound();
            outbound.set_in_hand(batch[whole].len());
            outbound.give_back(batch.drain(whole + 1..));
        }
        Ok(())
    }

    /// Keeps a frame whose rest is to be sent before anything else.
    pub(super) fn go_on_with(&mut self, begun: BegunFrame) {
        self.stuck.get_or_insert_default().partial = Some(begun);
    }

    /// Counts a frame that was sent, and for a frame of an event the time since the event was read.
    fn sent(&self, frame: &Frame) {
        let registration = &self.registration;
        let metrics = registration.metrics();
        metrics.frames_sent.increment(1);
        metrics.sent_bytes.increment(frame.len() as u64);
        if frame.is_ping() {
            self.common.heartbeat.ping_left(registration.member());
        }
        if let Some(read_at) = frame.read_at() {
            let metrics = registration.relay().fan_out_metrics();
            metrics.lag.record(read_at.elapsed().as_secs_f64());
        }
    }
}
