//! One Redis with denylists, its mark, and the risks that are known of it.

use std::sync::Arc;

use super::super::denylist_risk::Risk;
use super::{DenylistServer, KnownMarks};
use crate::clock::UnixTime;
use crate::error::{ErrorKind, StoreError};
use crate::stores::inspection::{self, DataMark, Facts};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys::LOST;

/// One server and its last known state.
pub(super) struct WatchedServer {
    server: DenylistServer,
    known: KnownMarks,
    risks: Vec<Risk>,
    /// The mark cannot be read or written, and the log says so.
    blind: bool,
    /// The login may not read eviction and role. They are read again only after a reconnect, since Redis counts each
    /// refusal as an error.
    uninformed: bool,
    /// The login may not read the time. It is read again only after a reconnect.
    timeless: bool,
}

/// The meaning of a mark.
#[derive(Debug, PartialEq, Eq)]
enum MarkStep {
    /// There is no mark and none is known: set one.
    Begin,
    /// Nothing was lost. Remember this mark.
    Fine,
    /// Another replica has recorded a loss. Remember this mark.
    KnownLost,
    /// The known mark is gone or replaced: the data was lost.
    Lost,
}

fn step(found: Option<&str>, known: Option<&str>) -> MarkStep {
    match (DataMark::of(found), known) {
        (DataMark::Lost(_), _) => MarkStep::KnownLost,
        (DataMark::Acknowledged, _) | (DataMark::Whole, None) => MarkStep::Fine,
        (DataMark::Absent, None) => MarkStep::Begin,
        (DataMark::Whole, known) if found == known => MarkStep::Fine,
        (DataMark::Absent | DataMark::Whole, Some(_)) => MarkStep::Lost,
    }
}

impl WatchedServer {
    pub(super) fn new(server: DenylistServer, known: KnownMarks) -> Self {
        Self {
            server,
            known,
            risks: Vec::new(),
            blind: false,
            uninformed: false,
            timeless: false,
        }
    }

    /// Returns the Redis that is watched.
    pub(super) fn store(&self) -> &Arc<RedisStore> {
        &self.server.store
    }

    /// Returns the texts of the known risks.
    pub(super) fn told(&self) -> Vec<String> {
        let mark = &self.server.place.1;
        self.risks.iter().map(|risk| risk.text(mark)).collect()
    }

    /// Forgets what the login may not read: a new link may be another login's.
    pub(super) fn ask_all_again(&mut self) {
        self.uninformed = false;
        self.timeless = false;
    }

    /// Remembers the mark.
    fn know(&self, mark: Option<String>) {
        let mut known = self.known.lock();
        match mark {
            Some(mark) => known.insert(self.server.place.clone(), mark),
            None => known.remove(&self.server.place),
        };
    }

    pub(super) fn is_at_risk(&self) -> bool {
        self.risks.iter().any(Risk::may_forget)
    }

    /// Checks the server once.
    ///
    /// # Errors
    /// [`StoreError`] if the check is incomplete: check again soon. A known loss stays known.
    pub(super) async fn look(&mut self) -> Result<(), StoreError> {
        let mut risks = match self.server.mark_alone {
            true => Vec::new(),
            false => self.server_risks().await?,
        };
        let is_replica = risks.contains(&Risk::Replica);
        let lost = self.is_lost(is_replica).await;
        let known_lost = self.risks.contains(&Risk::Lost);
        let seen = match lost {
            Ok(lost) => {
                risks.extend(lost.then_some(Risk::Lost));
                self.see(None);
                Ok(())
            }
            Err(error) if error.kind.is_outage() => return Err(error),
            // An unreadable mark does not clear a known loss.
            Err(error) => {
                risks.extend(known_lost.then_some(Risk::Lost));
                if error.kind == ErrorKind::Permission {
                    self.see(Some(&error));
                    Ok(())
                } else {
                    // The server loads its data, or refuses writes for the moment.
                    Err(error)
                }
            }
        };
        self.tell(risks);
        seen
    }

    /// Returns the risks that do not come from the mark.
    async fn server_risks(&mut self) -> Result<Vec<Risk>, StoreError> {
        let facts = match self.uninformed {
            true => Facts::default(),
            false => Facts::ask(&self.server.store).await?,
        };
        self.uninformed = facts == Facts::default();
        let mut risks = Risk::of(&facts, self.server.acknowledged);
        if !self.timeless {
            let offset = inspection::clock_offset(&self.server.store).await?;
            self.timeless = offset.is_none();
            risks.extend(offset.and_then(Risk::of_clock));
        }
        Ok(risks)
    }

    /// Notes that the server is a replica, so that the gateway has no link to it. A known loss stays known.
    pub(super) fn see_replica(&mut self) {
        let mut risks = self.risks.clone();
        risks.retain(|risk| *risk == Risk::Lost);
        risks.push(Risk::Replica);
        self.tell(risks);
    }

    /// Returns true if the data was lost. Sets a first mark where none is, and records a loss in the mark.
    async fn is_lost(&mut self, is_replica: bool) -> Result<bool, StoreError> {
        let key = &self.server.place.1;
        let mut found = inspection::epoch(&self.server.store, key).await?;
        let known = self.known.lock().get(&self.server.place).cloned();
        let mut step_now = step(found.as_deref(), known.as_deref());
        if step_now == MarkStep::Begin && !is_replica {
            self.begin().await?;
            // `SET NX` of one replica wins; read back whose mark it is.
            found = inspection::epoch(&self.server.store, key).await?;
            step_now = step(found.as_deref(), None);
        }
        match step_now {
            MarkStep::Begin => Ok(false),
            MarkStep::Fine => {
                self.know(found);
                Ok(false)
            }
            MarkStep::KnownLost => {
                self.know(found);
                Ok(true)
            }
            MarkStep::Lost => {
                let mark = format!("{LOST}{:.0}:{}", UnixTime::now().0.floor(), random());
                let mut set = redis::cmd("SET");
                set.arg(key).arg(&mark);
                if !is_replica {
                    let told: Result<(), StoreError> = self.server.store.query("epoch", &set).await;
                    // The loss holds even if this write fails; the next check writes it again.
                    if told.is_ok() {
                        self.know(Some(mark));
                    }
                }
                Ok(true)
            }
        }
    }

    async fn begin(&self) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(&self.server.place.1).arg(random()).arg("NX");
        let _set: Option<String> = self.server.store.query("epoch", &set).await?;
        Ok(())
    }

    /// Logs each change once.
    fn tell(&mut self, risks: Vec<Risk>) {
        let endpoint = self.server.store.endpoint();
        for risk in risks.iter().filter(|risk| !self.risks.contains(risk)) {
            let text = risk.text(&self.server.place.1);
            match risk.may_forget() {
                true => tracing::error!(redis.endpoint = endpoint, "{text}"),
                false => tracing::warn!(redis.endpoint = endpoint, "{text}"),
            }
        }
        if risks.is_empty() && !self.risks.is_empty() {
            tracing::info!(
                redis.endpoint = endpoint,
                "Nothing is wrong with the denylist's Redis any more"
            );
        }
        self.risks = risks;
    }

    /// Records an error of the mark, and logs the first of a series.
    fn see(&mut self, error: Option<&StoreError>) {
        match error {
            Some(error) if !self.blind => tracing::warn!(
                redis.key = self.server.place.1,
                redis.endpoint = self.server.store.endpoint(),
                error.kind = error.kind.label(),
                error = %error.source,
                "The mark of the denylist's Redis cannot be read or written: a Redis that loses its data will not be noticed; grant the key"
            ),
            _ => {}
        }
        self.blind = error.is_some();
    }
}

/// 16 hexadecimal digits.
fn random() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_gone_or_another_is_lost_data() {
        for (found, known, expected) in [
            (None, None, MarkStep::Begin),
            (Some("a"), None, MarkStep::Fine),
            (Some("a"), Some("a"), MarkStep::Fine),
            (None, Some("a"), MarkStep::Lost),
            (Some("b"), Some("a"), MarkStep::Lost),
            (Some("lost:1:b"), Some("a"), MarkStep::KnownLost),
            (Some("lost:1:b"), None, MarkStep::KnownLost),
            (Some("lost:1:b"), Some("lost:1:b"), MarkStep::KnownLost),
            (None, Some("lost:1:b"), MarkStep::Lost),
            (Some("a"), Some("lost:1:b"), MarkStep::Lost),
            (Some("ack:2"), Some("lost:1:b"), MarkStep::Fine),
            (Some("ack:2"), Some("a"), MarkStep::Fine),
            (Some("ack:2"), Some("ack:2"), MarkStep::Fine),
            (None, Some("ack:2"), MarkStep::Lost),
        ] {
            assert_eq!(step(found, known), expected, "{found:?} {known:?}");
        }
    }
}
