//! Histories in the memory of the process, for one tenant. They end with it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::config::HistoryConfig;
use crate::event::Event;
use crate::ids::GroupName;
use crate::position::{Epoch, PastEpochs, Position};

use super::super::Payload;
use super::super::history::{HistoryFrom, HistoryPage, PAGE, RecordedEvent};

/// A history without events is forgotten after this time, or after twice its `ttl` if that is longer.
const IDLE: Duration = Duration::from_secs(3600);
/// The histories are looked through for idle ones after this many events.
const SWEEP_EVERY: usize = 1000;

/// The histories of one tenant's groups.
#[derive(Debug, Default)]
pub(super) struct Histories {
    of_group: HashMap<GroupName, History>,
    until_sweep: usize,
}

#[derive(Debug)]
struct History {
    kept: HistoryConfig,
    end: Position,
    /// The newest events, oldest first; the last one has the offset of `end`.
    events: VecDeque<(Instant, Arc<Event>)>,
    used_at: Instant,
}

impl Histories {
    /// Appends an event, and returns its position.
    pub(super) fn record(
        &mut self,
        group: &GroupName,
        event: Arc<Event>,
        kept: HistoryConfig,
        now: Instant,
    ) -> Position {
        self.sweep(now);
        let history = self.get(group, kept, now);
        history.end.offset += 1;
        history.events.push_back((now, event));
        history.trim(now);
        history.end.clone()
    }

    /// Reads a page.
    pub(super) fn read(
        &mut self,
        group: &GroupName,
        from: &HistoryFrom,
        kept: HistoryConfig,
        now: Instant,
    ) -> HistoryPage {
        let history = self.get(group, kept, now);
        history.trim(now);
        let (end, after) = (
            history.end.clone(),
            from.after_in(&history.end.epoch, &PastEpochs::default()),
        );
        let first = end.offset + 1 - history.events.len() as u64;
        let known = after.saturating_add(1).saturating_sub(first);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut unknown = history.events.iter().zip(first..).skip(known);
        for ((_, event), offset) in unknown.by_ref().take(PAGE.0) {
            bytes += event.memory();
            let payload = Payload::Decoded(event.clone());
            entries.push(RecordedEvent { offset, payload });
            if bytes >= PAGE.1.min(from.most) {
                break;
            }
        }
        HistoryPage {
            end,
            past: PastEpochs::default(),
            entries,
            more: unknown.next().is_some(),
            unreadable: 0,
        }
    }

    /// Begins a new epoch if that of `lost` is the present one; returns the position that holds then.
    pub(super) fn renew(
        &mut self,
        group: &GroupName,
        lost: &Position,
        kept: HistoryConfig,
        now: Instant,
    ) -> Position {
        let history = self.get(group, kept, now);
        if history.end.epoch == lost.epoch {
            history.events.clear();
            history.end = Position {
                epoch: Epoch::random(),
                offset: 0,
            };
        }
        history.end.clone()
    }

    fn get(&mut self, group: &GroupName, kept: HistoryConfig, now: Instant) -> &mut History {
        let history = self.of_group.entry_ref(group).or_insert_with(|| History {
            kept,
            end: Position {
                epoch: Epoch::random(),
                offset: 0,
            },
            events: VecDeque::new(),
            used_at: now,
        });
        (history.kept, history.used_at) = (kept, now);
        history
    }

    fn sweep(&mut self, now: Instant) {
        match self.until_sweep.checked_sub(1) {
            Some(left) => self.until_sweep = left,
            None => {
                self.until_sweep = SWEEP_EVERY;
                self.of_group.retain(|_, history| {
                    history.trim(now);
                    let idle = IDLE.max(2 * history.kept.ttl);
                    now.duration_since(history.used_at) < idle
                });
            }
        }
    }
}

impl History {
    fn trim(&mut self, now: Instant) {
        let HistoryConfig { size, ttl } = self.kept;
        let over = |events: &VecDeque<_>| events.len() > size as usize;
        let old = |(at, _): &(Instant, _)| now.duration_since(*at) >= ttl;
        while over(&self.events) || self.events.front().is_some_and(old) {
            self.events.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: HistoryConfig = HistoryConfig {
        size: 3,
        ttl: Duration::from_secs(10),
    };

    fn offsets(page: &HistoryPage) -> Vec<u64> {
        page.entries.iter().map(|entry| entry.offset).collect()
    }

    #[test]
    fn a_history_keeps_its_size_and_each_event_its_ttl() {
        let (mut histories, group, start) =
            (Histories::default(), GroupName::from("g"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..5 {
            let event = Arc::new(Event::default());
            let position = histories.record(&group, event, KEPT, at(second));
            assert_eq!(position.offset, second + 1);
        }
        let mut read = |after, second| {
            let epoch = histories.of_group[&group].end.epoch.clone();
            let from = HistoryFrom {
                epoch: Some(epoch),
                after,
                ..HistoryFrom::default()
            };
            let page = histories.read(&group, &from, KEPT, at(second));
            assert_eq!((page.end.offset, page.more), (5, false));
            offsets(&page)
        };
        assert_eq!(read(0, 5), [3, 4, 5]);
        assert_eq!(read(3, 5), [4, 5]);
        assert!(read(5, 5).is_empty());
        assert!(read(u64::MAX, 5).is_empty());
        assert_eq!(read(0, 13), [5]);
        assert!(read(0, 14).is_empty());
    }

    #[test]
    fn a_history_of_another_epoch_is_read_from_its_beginning() {
        let (mut histories, group, now) =
            (Histories::default(), GroupName::from("g"), Instant::now());
        let empty = histories.read(&group, &HistoryFrom::default(), KEPT, now);
        assert!(empty.end.offset == 0 && empty.entries.is_empty());
        let position = histories.record(&group, Arc::default(), KEPT, now);
        assert_eq!(position.epoch, empty.end.epoch);
        let from = HistoryFrom {
            epoch: Some(Epoch::random()),
            after: 1,
            ..HistoryFrom::default()
        };
        assert_eq!(offsets(&histories.read(&group, &from, KEPT, now)), [1]);
    }

    #[test]
    fn an_epoch_is_renewed_once() {
        let (mut histories, group, now) =
            (Histories::default(), GroupName::from("g"), Instant::now());
        let old = histories.record(&group, Arc::default(), KEPT, now);
        let new = histories.renew(&group, &old, KEPT, now);
        assert_ne!(new.epoch, old.epoch);
        assert_eq!(new.offset, 0);
        assert_eq!(histories.renew(&group, &old, KEPT, now), new);
        let page = histories.read(&group, &HistoryFrom::default(), KEPT, now);
        assert_eq!((page.end, page.entries.len()), (new, 0));
    }

    #[test]
    fn long_histories_are_read_in_pages() {
        let kept = HistoryConfig { size: 5000, ..KEPT };
        let (mut histories, group, now) =
            (Histories::default(), GroupName::from("g"), Instant::now());
        for _ in 0..2500 {
            histories.record(&group, Arc::default(), kept, now);
        }
        let (mut from, mut pages) = (HistoryFrom::default(), Vec::new());
        loop {
            let page = histories.read(&group, &from, kept, now);
            pages.push(page.entries.len());
            from = HistoryFrom {
                epoch: Some(page.end.epoch),
                after: page.entries.last().unwrap().offset,
                ..from
            };
            if !page.more {
                break;
            }
        }
        assert_eq!(pages, [1000, 1000, 500]);
    }

    #[test]
    fn idle_histories_are_forgotten() {
        let (mut histories, start) = (Histories::default(), Instant::now());
        histories.record(&"old".into(), Arc::default(), KEPT, start);
        for _ in 0..=SWEEP_EVERY {
            histories.record(&"new".into(), Arc::default(), KEPT, start + IDLE);
        }
        assert_eq!(histories.of_group.len(), 1);
    }
}
