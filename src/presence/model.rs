//! Random joins, leaves, kills of replicas, lost data and lost notices, without IO: after quiet the board is the truth, and
//! for every observer joins and leaves of a user take turns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::notice::Notice;
use super::present::{PresentSockets, UserFields};
use super::{Board, Shown, View};
use crate::config::PresenceConfig;
use crate::ids::{ConnectionId, GroupName, UserId, random_hex};

const LINGER: u64 = 5000;
/// Milliseconds after which others take back what a killed replica left, and after which lost data is found.
const FOUND: u64 = 10_000;

struct Nothing;

impl UserFields for Nothing {
    fn json_of(&self, _: &[String]) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// One replica with the sockets on it; each socket is a user and an observer.
struct Replica {
    id: String,
    present: PresentSockets,
    view: Option<View>,
    sockets: BTreeMap<u64, (UserId, Observer)>,
    notices: VecDeque<Notice>,
    /// Notices are lost on the way; the replica learns of it when the link is back.
    deaf: bool,
    /// The time at which it finds that the data was lost.
    finds_loss_at: Option<u64>,
}

/// The last word that one socket was told of each user: true is a join.
#[derive(Default)]
struct Observer(BTreeMap<UserId, bool>);

struct World {
    now: u64,
    epoch: Instant,
    rng: StdRng,
    board: Board,
    replicas: Vec<Replica>,
    /// The ids that killed replicas left, by the time at which they are found.
    killed: Vec<(u64, String)>,
    next_socket: u64,
    rule: PresenceConfig,
    group: GroupName,
}

impl Replica {
    fn new() -> Self {
        Self {
            id: random_hex(),
            present: PresentSockets::default(),
            view: None,
            sockets: BTreeMap::new(),
            notices: VecDeque::new(),
            deaf: false,
            finds_loss_at: None,
        }
    }

    fn tell(&mut self, shown: Vec<Shown>) {
        for shown in shown {
            let (user, joins) = match shown {
                Shown::Join(user, _) => (user, true),
                Shown::Leave(user) => (user, false),
            };
            for (socket, (_, observer)) in &mut self.sockets {
                let before = observer.0.insert(user.clone(), joins);
                assert_ne!(before, Some(joins), "{user} twice {joins} for {socket}");
            }
        }
    }
}

impl World {
    fn new(seed: u64, linger: u64) -> Self {
        Self {
            now: 1_000_000,
            epoch: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            board: Board::default(),
            replicas: (0..3).map(|_| Replica::new()).collect(),
            killed: Vec::new(),
            next_socket: 0,
            rule: PresenceConfig {
                notify: true,
                linger: Duration::from_millis(linger),
                ..PresenceConfig::default()
            },
            group: "g".into(),
        }
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_millis(self.now)
    }

    fn any(&mut self, below: usize) -> usize {
        self.rng.random_range(0..below)
    }

    fn join(&mut self) {
        let (at, user) = (self.any(3), self.any(6));
        let user = UserId::from(user.to_string());
        self.next_socket += 1;
        let id = ConnectionId(self.next_socket);
        let replica = &mut self.replicas[at];
        replica.present.open(id, user.clone(), Arc::new(Nothing));
        replica.present.join(id, &self.group, &self.rule, || None);
        replica.sockets.insert(id.0, (user, Observer::default()));
        replica.view.get_or_insert_default();
    }

    fn leave(&mut self) {
        let at = self.any(3);
        let many = self.replicas[at].sockets.len();
        if many == 0 {
            return;
        }
        let nth = self.any(many);
        let replica = &mut self.replicas[at];
        let socket = *replica.sockets.keys().nth(nth).unwrap();
        replica.sockets.remove(&socket);
        replica.present.close(ConnectionId(socket));
        if replica.sockets.is_empty() {
            (replica.view, replica.deaf) = (None, false);
            replica.notices.clear();
        }
    }

    fn kill(&mut self) {
        let at = self.any(3);
        let gone = std::mem::replace(&mut self.replicas[at], Replica::new());
        self.killed.push((self.now + FOUND, gone.id));
    }

    fn lose(&mut self) {
        self.board.lose();
        for at in 0..3 {
            let finds = self.now + self.rng.random_range(0..FOUND);
            self.replicas[at].finds_loss_at = Some(finds);
        }
    }

    /// Writes what one replica has to write, as its writer does.
    fn write(&mut self, at: usize) {
        let mut dead: Vec<String> = Vec::new();
        for (found, id) in &self.killed {
            if *found <= self.now {
                dead.push(id.clone());
            }
        }
        if self.replicas[at]
            .finds_loss_at
            .is_some_and(|finds| finds <= self.now)
        {
            let replica = &mut self.replicas[at];
            replica.finds_loss_at = None;
            dead.push(std::mem::replace(&mut replica.id, random_hex()));
            replica.present.rewrite(&self.group);
        }
        self.replicas[at].present.touch(&self.group);
        for write in self.replicas[at].present.take(9) {
            let id = self.replicas[at].id.clone();
            let updated = self.board.update(&id, &write, &dead, self.now);
            let settles_at = updated
                .wait
                .map(|wait| self.instant() + Duration::from_millis(wait));
            self.replicas[at].present.written(&write, settles_at);
            let Some(notice) = updated.notice else {
                continue;
            };
            for replica in &mut self.replicas {
                if replica.view.is_some() && !replica.deaf {
                    replica.notices.push_back(notice.clone());
                }
            }
        }
    }

    /// Lets one replica hear a notice, or read.
    fn hear(&mut self, at: usize) {
        let now = self.instant();
        let announced = self.board.announced(&self.group);
        let replica = &mut self.replicas[at];
        let Some(view) = &mut replica.view else {
            return;
        };
        let shown = match replica.notices.pop_front() {
            Some(notice) => view.take(notice, now),
            None => Vec::new(),
        };
        let reads = view.reads_at(now).is_some_and(|at| at <= now);
        let more = match reads {
            true => view.read(announced, now),
            false => Vec::new(),
        };
        replica.tell(shown);
        replica.tell(more);
    }

    /// The link of a replica is lost, or comes back.
    fn link(&mut self) {
        let (at, now) = (self.any(3), self.instant());
        let replica = &mut self.replicas[at];
        let Some(view) = &mut replica.view else {
            return;
        };
        replica.deaf = !replica.deaf;
        if !replica.deaf {
            view.doubt(now);
        }
    }

    fn step(&mut self) {
        let at = self.any(3);
        match self.any(100) {
            0..25 => self.join(),
            25..50 => self.leave(),
            50..70 => self.write(at),
            70..90 => self.hear(at),
            90..93 => self.link(),
            93 => self.kill(),
            94 => self.lose(),
            _ => self.now += self.rng.random_range(0..2 * LINGER),
        }
    }

    /// Lets everything settle, and compares board and views with the truth.
    fn settle(&mut self) {
        for at in 0..3 {
            let now = self.instant();
            let replica = &mut self.replicas[at];
            if std::mem::take(&mut replica.deaf)
                && let Some(view) = &mut replica.view
            {
                view.doubt(now);
            }
        }
        for _ in 0..8 {
            self.now += FOUND;
            for at in 0..3 {
                self.write(at);
            }
            for at in 0..3 {
                while !self.replicas[at].notices.is_empty() {
                    self.hear(at);
                }
                self.hear(at);
            }
        }
        let mut truth: BTreeMap<UserId, u64> = BTreeMap::new();
        for (user, _) in self
            .replicas
            .iter()
            .flat_map(|replica| replica.sockets.values())
        {
            *truth.entry(user.clone()).or_default() += 1;
        }
        let page = self.board.page(&self.group, "", 1000);
        let found: BTreeMap<UserId, u64> = page
            .users
            .into_iter()
            .map(|user| (user.id, user.sockets))
            .collect();
        assert_eq!(found, truth);
        assert_eq!(
            (page.sockets, page.ids),
            (truth.values().sum(), truth.len() as u64)
        );
        for (_, observer) in self
            .replicas
            .iter()
            .flat_map(|replica| replica.sockets.values())
        {
            for (user, is_there) in &observer.0 {
                assert_eq!(*is_there, truth.contains_key(user), "{user}");
            }
        }
    }
}

#[test]
fn joins_and_leaves_pair_up_for_every_observer_and_the_board_becomes_the_truth() {
    for seed in 0..400 {
        let mut world = World::new(seed, if seed % 4 == 0 { 0 } else { LINGER });
        for _ in 0..4 {
            for _ in 0..150 {
                world.step();
            }
            world.settle();
        }
    }
}

#[test]
fn a_page_that_reloads_neither_leaves_nor_joins() {
    let mut world = World::new(0, LINGER);
    let (id, user) = (ConnectionId(1), UserId::from("7"));
    let reload = |world: &mut World, from: usize, to: usize| {
        let group = world.group.clone();
        world.replicas[from].present.close(id);
        world.write(from);
        world.now += LINGER - 1;
        world.write(from);
        let present = &mut world.replicas[to].present;
        present.open(id, user.clone(), Arc::new(Nothing));
        present.join(id, &group, &world.rule, || None);
        world.write(to);
        world.board.announced(&group)
    };
    let first = reload(&mut world, 0, 0);
    assert_eq!((first.number, first.users.len()), (1, 1));
    for (from, to) in [(0, 0), (0, 1), (1, 2)] {
        assert_eq!(reload(&mut world, from, to), first);
    }
    world.replicas[2].present.close(id);
    world.write(2);
    world.now += LINGER;
    world.write(2);
    let last = world.board.announced(&world.group);
    assert_eq!((last.number, last.users.len()), (2, 0));
}
