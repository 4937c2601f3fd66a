//! The tasks behind the channels that belong to no tenant: that of answers to this replica's questions, and the
//! deployment's control channel.
//!
//! Both take messages in turns with all other work, so that a flood on them holds nothing up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::answer::Answer;
use super::message::{Command, Op};
use super::{Fleet, MessageTurn, Reply};
use crate::channel_layer::{Control, Heard};
use crate::metrics::{self, ControlDrop};

/// Answers per second of the deployment's channel to one other replica or several.
const ANSWERS_PER_SECOND: u32 = 100;
/// Answers that may wait for one reading.
const MOST_WAITING: usize = 100;
/// The part of the time that reloads may take once their credit is used up, so that a flood of requests takes a fifth of a
/// core.
const SHARE: f64 = 0.2;
/// Seconds of reloads that need no rest between them.
const CREDIT: f64 = 2.0;

/// Takes answers to questions of this replica. Never returns.
pub async fn serve_replies(control: Arc<Control>, fleet: Arc<Fleet>) -> Infallible {
    let mut turn = MessageTurn::default();
    loop {
        if let Heard::Message(bytes) = control.next().await {
            turn.spend(MessageTurn::cost_of(bytes.len())).await;
            if let Some(answer) = Answer::read(&bytes) {
                fleet.answered(answer);
            }
        }
    }
}

/// Carries out the requests of other replicas to all. Never returns. `reload` reads the configuration again; its error names
/// the faults, and otherwise it returns how much is not served as the files say. `look` reads what has changed in the registry.
pub async fn serve_deployment<F, R, G, L>(fleet: Arc<Fleet>, reload: F, look: G) -> Infallible
where
    F: Fn() -> R,
    R: Future<Output = Result<Option<u64>, String>>,
    G: Fn() -> L,
    L: Future<Output = Result<Option<u64>, String>>,
{
    let Wishes { reloads, looks } = &fleet.wishes;
    tokio::select! {
        never = reloads.run(reload) => never,
        never = looks.run(look) => never,
    }
}

/// Takes the messages of a control channel of the deployment. Never returns.
pub async fn hear_deployment(control: Arc<Control>, fleet: Arc<Fleet>) -> Infallible {
    // The link remembers the subscription after a failure and retries it.
    drop(control.open().await);
    let Wishes { reloads, looks } = &fleet.wishes;
    let (mut told, mut turn) = (false, MessageTurn::default());
    loop {
        let Heard::Message(bytes) = control.next().await else {
            continue;
        };
        turn.spend(MessageTurn::cost_of(bytes.len())).await;
        match Command::read(&bytes) {
            Ok(Command {
                op: op @ (Op::Reload | Op::Registry),
                id,
                reply,
            }) => {
                let reply = Reply::new(&fleet, &control, (id, reply), ANSWERS_PER_SECOND);
                if reply.is_own() {
                    // This replica asked, and it applied its files, or the change, before it asked.
                    reply.send(|_| {});
                } else {
                    match op {
                        Op::Registry => looks.want(reply),
                        _ => reloads.want(reply),
                    }
                }
            }
            _ => {
                metrics::deployment_message_not_decoded();
                if !told {
                    told = true;
                    tracing::warn!(
                        "Ignored a message on the deployment's control channel; further ones are only counted"
                    );
                }
            }
        }
    }
}

/// The requests that came on the lines of the deployment: one may come on two, of before and after a reload that moved it.
#[derive(Default)]
pub(super) struct Wishes {
    /// To read the configuration again.
    reloads: Reloads,
    /// To read the registry again.
    looks: Reloads,
}

/// Requests to read the configuration or the registry again. Those that come during a reading share the next one.
#[derive(Default)]
struct Reloads {
    waiting: Mutex<Vec<Reply>>,
    wanted: Notify,
}

impl Reloads {
    fn want(&self, answer: Reply) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MOST_WAITING {
            waiting.push(answer);
        } else {
            metrics::deployment_control_dropped(ControlDrop::Answers);
        }
        drop(waiting);
        self.wanted.notify_one();
    }

    /// Reloads as often as is wanted, with a rest after each. Never returns.
    async fn run<F, R>(&self, reload: F) -> Infallible
    where
        F: Fn() -> R,
        R: Future<Output = Result<Option<u64>, String>>,
    {
        let (mut credit, mut since) = (CREDIT, Instant::now());
        loop {
            self.wanted.notified().await;
            credit = (credit + SHARE * since.elapsed().as_secs_f64()).min(CREDIT);
            since = Instant::now();
            let waiting = std::mem::take(&mut *self.waiting.lock());
            let (degraded, error) = match reload().await {
                Ok(degraded) => (degraded, None),
                Err(error) => (None, Some(error)),
            };
            for answer in waiting {
                let fill = |answer: &mut Answer| {
                    answer.error.clone_from(&error);
                    answer.degraded = degraded;
                };
                if !answer.send(fill) {
                    metrics::deployment_control_dropped(ControlDrop::Answers);
                }
            }
            credit -= since.elapsed().as_secs_f64();
            sleep(Duration::from_secs_f64((-credit / SHARE).max(0.0))).await;
        }
    }
}
