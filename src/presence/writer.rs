//! Writes the presence of a tenant, in batches, and again where Redis may have lost it.
//!
//! Costs: one script for each group that changed, at most ten a second; one renewal for each server every five seconds; and
//! a look at every group in ten minutes, which renews the life of its keys and finds a key that alone was lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;
use redis::Cmd;

use super::books::PresenceBooks;
use super::census::Census;
use super::present::Write;
use super::store::{self, Written};
use crate::error::{ErrorKind, StoreError};
use crate::ids::{GroupName, random_hex};
use crate::stores::redis::RedisStore;

/// Time between two looks at what is due.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Groups of one round.
const GROUPS_PER_ROUND: usize = 64;
/// Time in which every group is looked at.
const WALK: Duration = Duration::from_secs(600);
/// Time after which a user who lingers is looked for, beyond the time that Redis said: its clock has milliseconds.
const SETTLE_LATE: Duration = Duration::from_millis(5);

/// The state of writing.
#[derive(Default)]
pub struct PresenceWriter {
    censuses: Vec<Census>,
    /// The id of this replica where there is no Redis.
    id: String,
    /// The groups in which users linger, by the time of the next one.
    settles: BTreeSet<(Instant, GroupName)>,
    /// The time of each of these groups.
    settles_of: HashMap<GroupName, Instant>,
    /// The dead replicas that left something in a group.
    left_behind: HashMap<GroupName, Vec<String>>,
    /// The groups that the present walk has still to look at.
    walk: Vec<GroupName>,
    /// Groups that the walk may look at now.
    steps: f64,
    /// The entries that the metric shows, and the groups that could not be written.
    shown: usize,
    shown_unwritten: usize,
    /// The last write failed, and that was logged.
    failing: bool,
    /// A refused notice was logged.
    refused: bool,
}

impl PresenceWriter {
    /// Returns the time at which the next user who lingers has left.
    pub(super) fn settles_at(&self) -> Option<Instant> {
        self.settles.first().map(|(at, _)| *at)
    }

    /// Lets the groups be looked at whose users have lingered long enough.
    pub(super) fn settle(&mut self, books: &PresenceBooks) {
        let now = Instant::now();
        while let Some((at, _)) = self.settles.first()
            && *at <= now
        {
            if let Some((_, group)) = self.settles.pop_first() {
                self.settles_of.remove(&group);
                books.present.lock().touch(&group);
            }
        }
    }

    /// Returns what is known of the replicas on a server.
    pub(super) fn census(&mut self, store: &Arc<RedisStore>) -> &mut Census {
        let known = |census: &Census| Arc::ptr_eq(&census.store, store);
        let at = self.censuses.iter().position(known);
        let at = at.unwrap_or_else(|| {
            self.censuses.push(Census::new(store));
            self.censuses.len() - 1
        });
        &mut self.censuses[at]
    }

    /// Renews what has to be renewed, and goes a step on the walk through all groups.
    pub(super) async fn look_after(&mut self, books: &PresenceBooks) {
        for census in &mut self.censuses {
            if census.is_entered() && census.is_due() {
                Self::renew(census, books).await;
            }
        }
        let mut present = books.present.lock();
        self.steps += present.len() as f64 * LOOK_EVERY.as_secs_f64() / WALK.as_secs_f64();
        while self.steps >= 1.0 {
            self.steps -= 1.0;
            if self.walk.is_empty() {
                self.walk = present.names();
            }
            if let Some(group) = self.walk.pop() {
                present.touch(&group);
            }
        }
        drop(present);
        books.board.lock().tidy();
    }

    /// Renews the entry on one server; returns true if Redis confirmed.
    async fn renew(census: &mut Census, books: &PresenceBooks) -> bool {
        let Ok(news) = census.renew(&books.tenant).await else {
            // The store counts and logs it; the next look tries again.
            return false;
        };
        if news.lost || news.ended {
            let store = census.store.clone();
            let is_there = |place: &super::PresencePlace| Arc::ptr_eq(&place.store, &store);
            books.present.lock().each_at(is_there, news.lost);
        }
        if news.lost {
            tracing::info!(
                tenant.id = %books.tenant, redis.endpoint = census.store.endpoint(),
                "Presence is written to Redis again, which may have lost it"
            );
        }
        true
    }

    /// Writes everything that is due. What cannot be written stays due.
    pub(super) async fn write_all(&mut self, books: &PresenceBooks) {
        let (mut failed, mut rounds) = (None, usize::MAX);
        while rounds > 0 {
            let writes = books.present.lock().take(GROUPS_PER_ROUND);
            if writes.is_empty() {
                break;
            }
            let had_failed = failed.is_some();
            let in_memory = |write: &Write| write.place.is_none();
            let (in_memory, mut rest): (Vec<_>, Vec<_>) = writes.into_iter().partition(in_memory);
            self.write_in_memory(in_memory, books);
            while let Some(store) = rest.first().and_then(Write::store) {
                let is_here = |write: &Write| {
                    let there = write.store();
                    there.is_some_and(|there| Arc::ptr_eq(&there, &store))
                };
                let (here, others) = rest.into_iter().partition(is_here);
                rest = others;
                if let Err(error) = self.write_to(&store, here, books).await {
                    failed = Some(error);
                }
            }
            rounds = match (&failed, had_failed) {
                // Groups of other servers may stand behind those that failed.
                (Some(_), false) => books.present.lock().due().div_ceil(GROUPS_PER_ROUND),
                _ => rounds - 1,
            };
        }
        self.report(books, failed);
    }

    /// Shows the number of entries, and logs a failure that begins or ends.
    fn report(&mut self, books: &PresenceBooks, failed: Option<String>) {
        let (entries, due) = {
            let present = books.present.lock();
            (present.entries(), present.due())
        };
        let more = entries as f64 - self.shown as f64;
        books.metrics.presence_entries.increment(more);
        self.shown = entries;
        let unwritten = failed.as_ref().map_or(0, |_| due);
        let more = unwritten as f64 - self.shown_unwritten as f64;
        books.metrics.presence_unwritten.increment(more);
        self.shown_unwritten = unwritten;
        let was_failing = std::mem::replace(&mut self.failing, failed.is_some());
        match failed {
            Some(error) if !was_failing => tracing::warn!(
                tenant.id = %books.tenant, error,
                "Presence cannot be written to Redis; it is tried again every second"
            ),
            None if was_failing => tracing::info!(
                tenant.id = %books.tenant, "Presence is written to Redis again"
            ),
            _ => {}
        }
    }

    fn write_in_memory(&mut self, writes: Vec<Write>, books: &PresenceBooks) {
        if self.id.is_empty() {
            self.id = random_hex();
        }
        for write in writes {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let now = now.as_millis() as u64;
            let updated = books.board.lock().update(&self.id, &write, &[], now);
            self.is_written(books, &write, updated.wait.map(Duration::from_millis));
            if let Some(notice) = updated.notice {
                // Fails only when the relay has ended.
                drop(books.told.send((write.group, notice)));
            }
        }
    }

    /// Writes groups of one server.
    ///
    /// # Errors
    /// The text of the failure. What was not written is due again.
    async fn write_to(
        &mut self,
        store: &Arc<RedisStore>,
        writes: Vec<Write>,
        books: &PresenceBooks,
    ) -> Result<(), String> {
        let census = self.census(store);
        // A replica is entered before its first write, so that others do not take it for a dead one.
        let entered = census.is_entered() || Self::renew(census, books).await;
        let (id, dead) = (census.id.clone(), census.fresh_dead());
        let left_behind = &mut self.left_behind;
        let update = |write: &Write| -> Option<Cmd> {
            let mut dead = dead.clone();
            dead.extend(left_behind.remove(&write.group).unwrap_or_default());
            dead.sort_unstable();
            dead.dedup();
            // Not before the last part of a large group: those of the other parts would seem gone.
            let dead = write.users.map_or(&[][..], |_| &dead);
            Some(store::update(
                &books.tenant,
                write.place.as_ref()?,
                &id,
                write,
                dead,
            ))
        };
        let commands: Vec<Cmd> = writes.iter().filter_map(update).collect();
        let sent = match entered {
            true => store::send_updates(store, &commands).await,
            false => Err(StoreError::new(
                store.dependency(),
                ErrorKind::Io,
                "Redis did not enter this replica",
            )),
        };
        let answers = match sent {
            Ok(answers) => answers,
            Err(error) => {
                let mut present = books.present.lock();
                writes.iter().for_each(|write| present.not_written(write));
                return Err(error.to_string());
            }
        };
        let (mut failed, mut others) = (Ok(()), Vec::new());
        for (write, answer) in writes.into_iter().zip(answers) {
            match answer {
                Ok(written) => {
                    self.take(books, &write, &written);
                    others.push((write.group, written.others));
                }
                Err(error) => {
                    books.present.lock().not_written(&write);
                    failed = Err(error.to_string());
                }
            }
        }
        self.find_dead(store, others, books).await;
        failed
    }

    fn take(&mut self, books: &PresenceBooks, write: &Write, written: &Written) {
        let differs = write.users.is_some_and(|users| users != written.held);
        {
            let mut present = books.present.lock();
            if differs && !write.whole {
                // A key was lost, or someone else wrote into it.
                present.rewrite(&write.group);
            }
            if written.more {
                present.touch(&write.group);
            }
        }
        self.is_written(books, write, written.wait);
        if let Some(error) = &written.refused
            && !std::mem::replace(&mut self.refused, true)
        {
            tracing::error!(
                tenant.id = %books.tenant, error,
                "Redis refuses notices of presence: members of other replicas are not told of joins and leaves"
            );
        }
    }

    fn is_written(&mut self, books: &PresenceBooks, write: &Write, wait: Option<Duration>) {
        let settles_at = wait.map(|wait| Instant::now() + wait + SETTLE_LATE);
        if let Some(at) = settles_at {
            let known = self.settles_of.insert(write.group.clone(), at);
            if let Some(known) = known {
                self.settles.remove(&(known, write.group.clone()));
            }
            self.settles.insert((at, write.group.clone()));
        }
        books.present.lock().written(write, settles_at);
    }

    /// Finds the dead replicas that left something in these groups.
    async fn find_dead(
        &mut self,
        store: &Arc<RedisStore>,
        others: Vec<(GroupName, Vec<String>)>,
        books: &PresenceBooks,
    ) {
        let mut ids: Vec<String> = others.iter().flat_map(|(_, ids)| ids.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let dead = self.census(store).dead_of(&books.tenant, &ids).await;
        let dead = dead.unwrap_or_default();
        if dead.is_empty() {
            return;
        }
        for (group, ids) in others {
            let ids = ids.into_iter().filter(|id| dead.contains(id));
            let ids: Vec<String> = ids.collect();
            if !ids.is_empty() {
                books.present.lock().touch(&group);
                self.left_behind.insert(group, ids);
            }
        }
    }

    /// Tells the other replicas on all servers that this one has ended.
    pub(super) async fn leave(&mut self, books: &PresenceBooks) {
        // The writers that a tenant has during a reload share the gauge.
        let unwritten = std::mem::take(&mut self.shown_unwritten);
        books.metrics.presence_unwritten.decrement(unwritten as f64);
        // Drained, so that no look renews them again.
        for census in self.censuses.drain(..) {
            if census.is_entered() {
                // If it fails, the sign of life expires by itself.
                drop(store::end(&books.tenant, &census.store, &census.id).await);
            }
        }
    }
}
