//! A channel layer whose messages the test moves, and whose reads fail and take their time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::channel_layer::{
    CallId, ChannelLayer, Codec, HistoryFrom, HistoryPage, Inbox, Incoming, LayerError, Payload,
    RecordedEvent, Signal, SocketChannel, Target,
};
use crate::config::SerializerFormat;
use crate::error::ErrorKind;
use crate::event::Event;
use crate::ids::{ChannelName, GroupName};
use crate::metrics::GapCause;
use crate::position::{Epoch, PastEpochs, Position};

/// Groups lie on hosts in turn, and each host has a link of its own.
const HOSTS: usize = 2;
/// The most events in a page.
const PAGE: usize = 7;
/// The most events, and the bytes after which no further one follows, in a page of the layers on Redis.
const LARGE_PAGE: (usize, usize) = (1000, 1024 * 1024);

/// The history of a group.
struct Book {
    end: Position,
    past: PastEpochs,
    /// True if another server process holds it than the one that wrote it last.
    taken_over: bool,
    entries: VecDeque<(u64, Arc<Event>)>,
    size: usize,
}

impl Book {
    /// As the scripts do before each record and read.
    fn look_at_process(&mut self) {
        if std::mem::take(&mut self.taken_over) {
            self.past.end(self.end.clone());
            self.end.epoch = Epoch::random();
        }
    }

    fn page(&self, from: &HistoryFrom, (most, bytes): (usize, usize)) -> HistoryPage {
        let after = from.after_in(&self.end.epoch, &self.past);
        let mut unknown = self.entries.iter().filter(|(offset, _)| *offset > after);
        let (mut entries, mut size) = (Vec::new(), 0);
        for (offset, event) in unknown.by_ref() {
            size += event.memory();
            entries.push(RecordedEvent {
                offset: *offset,
                payload: Payload::Decoded(event.clone()),
            });
            if entries.len() >= most || size >= bytes {
                break;
            }
        }
        HistoryPage {
            end: self.end.clone(),
            past: self.past.clone(),
            entries,
            more: unknown.next().is_some(),
            unreadable: 0,
        }
    }
}

struct World {
    rng: StdRng,
    books: HashMap<GroupName, Book>,
    subscribed: HashSet<GroupName>,
    links: [VecDeque<Signal>; HOSTS],
    /// No read is answered until then, but with this error.
    down_until: Instant,
    down: ErrorKind,
    /// True if no read fails, and pages are as long as those of Redis.
    steady: bool,
    /// The number of events in all pages.
    entries_read: usize,
    /// The number of pages.
    reads: usize,
}

pub(super) struct ModelLayer {
    world: Mutex<World>,
    inbox: Arc<Inbox>,
    codec: Codec,
}

impl ModelLayer {
    pub(super) fn new(seed: u64, size: usize, groups: &[GroupName], inbox: Arc<Inbox>) -> Self {
        let book = |group: &GroupName| {
            let end = Position {
                epoch: Epoch::random(),
                offset: 0,
            };
            let book = Book {
                end,
                past: PastEpochs::default(),
                taken_over: false,
                entries: VecDeque::new(),
                size,
            };
            (group.clone(), book)
        };
        let world = World {
            rng: StdRng::seed_from_u64(seed),
            books: groups.iter().map(book).collect(),
            subscribed: HashSet::new(),
            links: Default::default(),
            down_until: Instant::now(),
            down: ErrorKind::Io,
            steady: false,
            entries_read: 0,
            reads: 0,
        };
        Self {
            world: world.into(),
            inbox,
            codec: Codec::new(SerializerFormat::MsgPack, &[]),
        }
    }

    fn host(group: &GroupName) -> usize {
        usize::from(group.as_str().as_bytes()[0]) % HOSTS
    }

    /// Records an event, and puts it onto the link of its host.
    pub(super) fn record(&self, group: &GroupName, event: Event) {
        let mut world = self.world.lock();
        let event = Arc::new(event);
        let book = world.books.get_mut(group).unwrap();
        book.look_at_process();
        book.end.offset += 1;
        book.entries.push_back((book.end.offset, event.clone()));
        if book.entries.len() > book.size {
            book.entries.pop_front();
        }
        let at = book.end.clone();
        if world.subscribed.contains(group) {
            let incoming = Incoming {
                target: Target::Group(group.clone()),
                payload: Payload::Decoded(event),
                recorded: Some(at),
                unrecorded: false,
                read_at: std::time::Instant::now(),
            };
            world.links[Self::host(group)].push_back(Signal::Event(incoming));
        }
    }

    /// Moves up to `most` messages of a host's link to the inbox; some come twice.
    pub(super) fn carry(&self, host: usize, most: usize) {
        let mut world = self.world.lock();
        for _ in 0..most {
            let Some(signal) = world.links[host % HOSTS].pop_front() else {
                return;
            };
            if world.rng.random_ratio(1, 10) {
                self.inbox.push_signal(signal.clone());
            }
            self.inbox.push_signal(signal);
        }
    }

    /// Loses messages of a host's link. Where `told` is true the link says so, else only the next event of the group shows it.
    pub(super) fn lose(&self, host: usize, most: usize, told: bool) {
        let mut world = self.world.lock();
        let link = &mut world.links[host % HOSTS];
        link.drain(..most.min(link.len()));
        if told {
            link.push_front(Signal::Gap(GapCause::Link));
        }
    }

    /// Lets only the positions of messages through.
    pub(super) fn mute(&self, host: usize, most: usize) {
        let mut world = self.world.lock();
        for signal in world.links[host % HOSTS].iter_mut().take(most) {
            if let Signal::Event(Incoming {
                target: Target::Group(group),
                recorded: Some(at),
                ..
            }) = signal
            {
                *signal = Signal::Unheard(group.clone(), at.clone());
            }
        }
    }

    /// Begins the history of a group again. Its link is lost with it, so that nothing of the old one comes any more.
    pub(super) fn forget(&self, group: &GroupName) {
        self.expire(group);
        let mut world = self.world.lock();
        world.links[Self::host(group)].push_back(Signal::Gap(GapCause::Link));
    }

    /// Begins the history of a group again, and says nothing.
    pub(super) fn expire(&self, group: &GroupName) {
        let mut world = self.world.lock();
        let book = world.books.get_mut(group).unwrap();
        book.end = Position {
            epoch: Epoch::random(),
            offset: 0,
        };
        book.entries.clear();
        book.past = PastEpochs::default();
    }

    /// Another server process takes over. It has the events of a group up to `last`, and no links.
    pub(super) fn take_over(&self, group: &GroupName, last: u64) {
        let mut world = self.world.lock();
        let book = world.books.get_mut(group).unwrap();
        book.taken_over = true;
        book.end.offset = book.end.offset.min(last);
        let last = book.end.offset;
        book.entries.retain(|(offset, _)| *offset <= last);
        world.links[Self::host(group)].push_back(Signal::Gap(GapCause::Link));
    }

    /// Returns the epoch of a history.
    pub(super) fn epoch(&self, group: &GroupName) -> Epoch {
        self.world.lock().books[group].end.epoch.clone()
    }

    /// Answers each read, with pages as long as those of Redis.
    pub(super) fn steady(&self) {
        self.world.lock().steady = true;
    }

    /// Returns the number of pages that were read, and of the events in them.
    pub(super) fn read_so_far(&self) -> (usize, usize) {
        let world = self.world.lock();
        (world.reads, world.entries_read)
    }

    /// Answers no read for a while.
    pub(super) fn fail_for(&self, time: Duration) {
        self.fail_with(ErrorKind::Io, time);
    }

    /// Answers each read with an error for a while.
    pub(super) fn fail_with(&self, error: ErrorKind, time: Duration) {
        let mut world = self.world.lock();
        (world.down, world.down_until) = (error, Instant::now() + time);
    }

    async fn pause(&self) {
        let (yields, millis) = {
            let mut world = self.world.lock();
            (
                world.rng.random_range(0..4),
                world.rng.random_range(0..8_u64),
            )
        };
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        if millis > 5 {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
}

#[async_trait]
impl ChannelLayer for ModelLayer {
    async fn subscribe(&self, group: &GroupName) -> Result<(), LayerError> {
        self.pause().await;
        self.world.lock().subscribed.insert(group.clone());
        self.pause().await;
        Ok(())
    }

    fn unsubscribe(&self, group: &GroupName) {
        self.world.lock().subscribed.remove(group);
    }

    async fn publish(
        &self,
        group: &GroupName,
        event: &Event,
        _: Option<&CallId>,
    ) -> Result<Option<Position>, LayerError> {
        self.record(group, event.clone());
        Ok(None)
    }

    async fn renew_history(
        &self,
        group: &GroupName,
        lost: &Position,
    ) -> Result<Option<Position>, LayerError> {
        self.pause().await;
        let present = {
            let mut world = self.world.lock();
            let book = world.books.get_mut(group).unwrap();
            book.past.note_given(lost);
            book.end.clone()
        };
        if present.epoch == lost.epoch {
            self.expire(group);
        }
        Ok(Some(present))
    }

    async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        self.pause().await;
        let read = {
            let mut world = self.world.lock();
            let fails = world.rng.random_ratio(1, 12) && !world.steady;
            let most = if world.steady {
                LARGE_PAGE
            } else {
                (PAGE, usize::MAX)
            };
            world.books.get_mut(group).unwrap().look_at_process();
            let page = world.books[group].page(&from, (most.0, most.1.min(from.most)));
            world.reads += 1;
            world.entries_read += page.entries.len();
            match fails || Instant::now() < world.down_until {
                true => Err(LayerError::Unavailable(world.down)),
                false => Ok(Some(page)),
            }
        };
        self.pause().await;
        read
    }

    fn channel_prefix(&self) -> &str {
        "specific."
    }

    async fn open_channel(&self, _: SocketChannel) -> Result<(), LayerError> {
        Ok(())
    }

    fn close_channel(&self, _: SocketChannel) {}

    async fn send(&self, _: &ChannelName, _: &Event) -> Result<(), LayerError> {
        Err(LayerError::NoReceiver)
    }

    async fn ready(&self) -> bool {
        true
    }

    fn codec(&self) -> &Codec {
        &self.codec
    }
}
