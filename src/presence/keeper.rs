//! The presence of one tenant on this replica: takes sockets, writes them in batches, and reads groups.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::PresencePlace;
use super::books::PresenceBooks;
use super::notice::Notice;
use super::present::{UserFields, Write};
use super::store::{self, Announced, PresentUser, UserPage};
use super::writer::{self, PresenceWriter};
use crate::config::PresenceConfig;
use crate::error::StoreError;
use crate::ids::{ConnectionId, GroupName, TenantId, UserId, random_hex};
use crate::metrics::TenantMetrics;

/// Time for which changes are gathered, so that a storm of joins is a few writes.
const GATHER: Duration = Duration::from_millis(100);
/// Longest time for the last write of a replica that ends.
const GOODBYE: Duration = Duration::from_secs(3);
/// The most scripts that take back what dead replicas left, for one read.
const MOST_TAKEN_BACK: usize = 20;

/// The most ids that one count looks at, and those of one step.
const MOST_COUNTED: usize = 10_000;
const COUNTED_AT_ONCE: usize = 1000;

/// The presence of one tenant.
pub struct PresenceKeeper {
    books: PresenceBooks,
    changed: Notify,
    writer: tokio::sync::Mutex<PresenceWriter>,
}

/// The numbers of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresentNumbers {
    /// The sockets on all replicas.
    pub sockets: u64,
    /// The users.
    pub users: u64,
}

/// A page to read.
#[derive(Clone, Copy, Debug)]
pub struct PageOf<'a> {
    /// The id after which it begins; empty: from the first.
    pub after: &'a str,
    /// The most users.
    pub limit: usize,
}

impl PresenceKeeper {
    /// Keeps the presence of a tenant. Notices of groups without a Redis go to `told`.
    pub fn new(
        tenant: &TenantId,
        metrics: Arc<TenantMetrics>,
        told: mpsc::UnboundedSender<(GroupName, Notice)>,
    ) -> Self {
        let books = PresenceBooks {
            tenant: tenant.clone(),
            metrics,
            present: Mutex::default(),
            board: Mutex::default(),
            told,
        };
        Self {
            books,
            changed: Notify::new(),
            writer: tokio::sync::Mutex::default(),
        }
    }

    /// Notes that a socket is open; [`PresenceKeeper::join`] puts it into groups.
    pub fn open(&self, id: ConnectionId, user: UserId, record: Arc<dyn UserFields>) {
        self.books.present.lock().open(id, user, record);
    }

    /// Puts an open socket into a group.
    pub fn join(
        &self,
        id: ConnectionId,
        group: &GroupName,
        rule: &PresenceConfig,
        place: impl FnOnce() -> Option<PresencePlace>,
    ) {
        self.books.present.lock().join(id, group, rule, place);
        self.changed.notify_one();
    }

    /// Takes a socket out of a group.
    pub fn leave(&self, id: ConnectionId, group: &GroupName) {
        self.books.present.lock().leave(id, group);
        self.changed.notify_one();
    }

    /// Takes a socket out of all groups.
    pub fn close_socket(&self, id: ConnectionId) {
        self.books.present.lock().close(id);
        self.changed.notify_one();
    }

    /// Writes changes until the task is dropped.
    pub async fn run(&self) -> Infallible {
        let mut tick = Instant::now();
        loop {
            let settles_at = self.writer.lock().await.settles_at();
            let next = settles_at.map_or(tick, |at| tick.min(at.into()));
            tokio::select! {
                () = self.changed.notified() => sleep(GATHER).await,
                () = tokio::time::sleep_until(next) => {}
            }
            let mut writer = self.writer.lock().await;
            if Instant::now() >= tick {
                tick = Instant::now() + writer::LOOK_EVERY;
                writer.look_after(&self.books).await;
            }
            writer.settle(&self.books);
            writer.write_all(&self.books).await;
        }
    }

    /// Takes every socket out of all groups, and this replica out of the others' sight.
    pub async fn close(&self) {
        let goodbye = async {
            let mut writer = self.writer.lock().await;
            self.books.present.lock().close_all();
            writer.write_all(&self.books).await;
            writer.leave(&self.books).await;
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::warn!(
                tenant.id = %self.books.tenant,
                "Presence could not be taken out of Redis in time; other replicas take it back within 30 s"
            );
        }
    }

    /// Returns the users that the members of a group know of.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn announced(
        &self,
        group: &GroupName,
        place: Option<&PresencePlace>,
    ) -> Result<Announced, StoreError> {
        match place {
            Some(place) => store::announced(&self.books.tenant, place).await,
            None => Ok(self.books.board.lock().announced(group)),
        }
    }

    /// Returns those of these users that are in a group.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn users(
        &self,
        group: &GroupName,
        place: Option<&PresencePlace>,
        users: &[UserId],
    ) -> Result<Vec<PresentUser>, StoreError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let Some(place) = place else {
            let mut page = self.books.board.lock().page(group, "", usize::MAX);
            page.users.retain(|user| users.contains(&user.id));
            return Ok(page.users);
        };
        let found = store::page(&self.books.tenant, place, ("", users.len()), users).await?;
        Ok(found.page.users)
    }

    /// Returns a page of the users of a group. What dead replicas left is taken back first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn page(
        &self,
        group: &GroupName,
        rule: &PresenceConfig,
        place: Option<&PresencePlace>,
        PageOf { after, limit }: PageOf<'_>,
    ) -> Result<UserPage, StoreError> {
        let Some(place) = place else {
            return Ok(self.books.board.lock().page(group, after, limit));
        };
        for _ in 0..MOST_TAKEN_BACK {
            let found = store::page(&self.books.tenant, place, (after, limit), &[]).await?;
            let dead = self.dead_of(place, &found.replicas).await?;
            if dead.is_empty() && !found.disordered {
                return Ok(found.page);
            }
            let write = Write::look(group, Some(place), rule);
            let (tenant, stranger) = (&self.books.tenant, random_hex());
            let update = store::update(tenant, place, &stranger, &write, &dead);
            drop(store::send_updates(&place.store, &[update]).await?);
            // Those who read by themselves learn of users who linger now.
            self.books.present.lock().touch(group);
            self.changed.notify_one();
        }
        let found = store::page(&self.books.tenant, place, (after, limit), &[]).await?;
        Ok(found.page)
    }

    /// Counts the users that the pages of a group list.
    ///
    /// At most 10,000 ids are looked at, because others can write sets of any size. The rest count as users, up to the number
    /// of sockets: each user has one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn count(
        &self,
        group: &GroupName,
        rule: &PresenceConfig,
        place: Option<&PresencePlace>,
    ) -> Result<PresentNumbers, StoreError> {
        let (mut counted, mut looked_at, mut after) = (0, 0, String::new());
        loop {
            let of = PageOf {
                after: &after,
                limit: COUNTED_AT_ONCE,
            };
            let page = self.page(group, rule, place, of).await?;
            counted += page.users.len() as u64;
            looked_at += COUNTED_AT_ONCE;
            let numbers = |users| PresentNumbers {
                sockets: page.sockets,
                users,
            };
            match page.next {
                None => return Ok(numbers(counted)),
                Some(_) if looked_at >= MOST_COUNTED => {
                    return Ok(numbers(page.ids.min(page.sockets).max(counted)));
                }
                Some(next) => after = next,
            }
        }
    }

    async fn dead_of(
        &self,
        place: &PresencePlace,
        ids: &[String],
    ) -> Result<Vec<String>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut writer = self.writer.lock().await;
        writer
            .census(&place.store)
            .dead_of(&self.books.tenant, ids)
            .await
    }
}
