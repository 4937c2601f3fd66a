//! The clients of the account, and what each of them got.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

use super::scene::Ground;
use crate::support::socket::{Dial, Socket};

/// The longest wait for the answer to a connect.
const ANSWER: Duration = Duration::from_secs(12);
/// The wait before a client comes back.
const AGAIN: Duration = Duration::from_millis(100);

/// The life of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    Running,
    /// No new events; all are delivered.
    Over,
}

/// The log of one client.
pub(crate) struct Log {
    pub(crate) group: usize,
    pub(crate) resumes: bool,
    pub(crate) sockets: usize,
    pub(crate) gaps: usize,
    /// The numbers of its events, in the order in which they came; `None` for what is no event of its group.
    pub(crate) seen: Vec<Option<u64>>,
    /// The offset of its first position.
    pub(crate) first: Option<u64>,
    position: Option<String>,
}

/// A client that takes no bytes for this time after so many events.
#[derive(Clone, Copy)]
pub(crate) struct Pause {
    pub(crate) after: usize,
    pub(crate) time: Duration,
}

impl Log {
    pub(crate) fn new(group: usize, resumes: bool) -> Self {
        Self {
            group,
            resumes,
            sockets: 0,
            gaps: 0,
            seen: Vec::new(),
            first: None,
            position: None,
        }
    }

    fn take(&mut self, text: &str) {
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let position = frame.get("lockgate.position").or(frame.get("position"));
        if let Some(position) = position.and_then(Value::as_str) {
            let offset = position.rsplit_once('~').and_then(|(_, n)| n.parse().ok());
            self.first = self.first.or(offset);
            self.position = Some(position.to_owned());
        }
        match frame["type"].as_str() {
            Some("lockgate.position") => {}
            Some("lockgate.gap") => self.gaps += 1,
            _ => {
                let ours = frame["group"] == self.group;
                let number = frame["number"].as_u64();
                self.seen.push(number.filter(|_| ours));
            }
        }
    }

    /// Opens one socket after another until the end.
    pub(crate) async fn live(
        mut self,
        ground: Arc<Ground>,
        place: usize,
        mut pause: Option<Pause>,
        mut phase: watch::Receiver<Phase>,
    ) -> Self {
        let mut replica = place;
        loop {
            if let Some(socket) = self.dial(&ground, replica).await {
                self.sockets += 1;
                if self.read(socket, &mut pause, &mut phase).await {
                    return self;
                }
            }
            if *phase.borrow() == Phase::Over && !self.resumes {
                return self;
            }
            replica += 1;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn dial(&self, ground: &Ground, replica: usize) -> Option<Socket> {
        let fronts = ground.fronts.lock().clone();
        let kind = if self.resumes { "back" } else { "plain" };
        let path = format!("/{kind}/{}/", self.group);
        let mut query = format!("token={}", ground.token());
        if let Some(position) = &self.position {
            query.push_str(&format!("&since={position}"));
        }
        let dial = Dial::new(fronts[replica % fronts.len()], &ground.host, &path).query(&query);
        let answer = tokio::time::timeout(ANSWER, dial.attempt_or_cut()).await;
        answer.ok()??.ok()
    }

    /// Reads to the end of the socket; true if the client has all and the run is over.
    async fn read(
        &mut self,
        mut socket: Socket,
        pause: &mut Option<Pause>,
        phase: &mut watch::Receiver<Phase>,
    ) -> bool {
        loop {
            if let Some(Pause { time, .. }) = pause.take_if(|pause| self.seen.len() >= pause.after)
            {
                tokio::time::sleep(time).await;
            }
            let message = tokio::select! {
                message = socket.read() => message,
                _ = phase.wait_for(|phase| *phase == Phase::Over) => return true,
            };
            match message {
                Some(Ok(Message::Text(text))) => self.take(&text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(_) | Err(_)) | None => return false,
            }
        }
    }
}

/// The sums over some clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) clients: usize,
    pub(crate) sockets: usize,
    pub(crate) due: usize,
    pub(crate) got: usize,
    pub(crate) missing: usize,
    pub(crate) gaps: usize,
    pub(crate) double: usize,
    pub(crate) unordered: usize,
    pub(crate) foreign: usize,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.due > 0 && self.missing + self.gaps + self.double + self.unordered + self.foreign == 0
    }

    /// Adds a client; `truth` has the numbers of its group's events in the order of their offsets.
    pub(crate) fn add(&mut self, log: &Log, truth: &[u64]) {
        self.clients += 1;
        self.sockets += log.sockets;
        self.gaps += log.gaps;
        let place: HashMap<u64, usize> = truth.iter().copied().zip(0..).collect();
        // A client without positions is owed all from its first event on.
        let from_first = || {
            log.seen
                .iter()
                .flatten()
                .next()
                .and_then(|n| place.get(n).copied())
        };
        let first = match log.first {
            Some(offset) if log.resumes => usize::try_from(offset).ok(),
            _ => from_first(),
        };
        let due = &truth[first.unwrap_or(truth.len()).min(truth.len())..];
        let mut times: HashMap<usize, usize> = HashMap::new();
        let mut last = None;
        for number in &log.seen {
            let Some(at) = number.and_then(|number| place.get(&number).copied()) else {
                self.foreign += 1;
                continue;
            };
            let again = times.entry(at).or_default();
            *again += 1;
            match *again {
                1 => {
                    self.unordered += usize::from(last.is_some_and(|last| at < last));
                    last = Some(at);
                }
                _ => self.double += 1,
            }
        }
        self.due += due.len();
        let begin = truth.len() - due.len();
        let got = (begin..truth.len())
            .filter(|at| times.contains_key(at))
            .count();
        self.got += got;
        self.missing += due.len() - got;
    }
}
