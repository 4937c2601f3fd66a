//! The book of the tenants' series on this replica, and the places in its scrape: at most `metrics.tenant_series` tenants
//! have series of their own, the others add up in `_other`.
//!
//! A free place goes to the next tenant that is made if all others have one, else to the busiest at the next look. Where all are taken, a tenant with much more traffic takes the place of one that has
//! had it for an hour; what either has counted stays where it stands. [`super::scrape`] writes what the book says.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ledger::{Ledger, OTHER_TENANTS, SeriesValue};
use crate::ids::TenantId;

/// Interval of the looks at the traffic.
const LOOK: Duration = Duration::from_secs(60);
/// The part of the traffic before a look that still counts after it: of what passed ten minutes ago, a third.
const FADES_TO: f64 = 0.9;
/// A place is kept for this long. Prometheus' usual ranges (5 min to 1 h) then see a whole series.
const KEPT: Duration = Duration::from_secs(3600);
/// A tenant takes the place of another only with so many times its traffic. Two of equal traffic would swap every hour.
const MUCH_MORE: f64 = 2.0;

/// The book of one gateway.
#[derive(Debug)]
pub struct TenantSeries {
    /// Held for moments: tenants wait for it when they are made and when they go.
    book: Arc<Mutex<SeriesBook>>,
    /// Held while places change, and while all values are read. In this order, then the book.
    places: Mutex<()>,
}

#[derive(Debug)]
struct SeriesBook {
    most: usize,
    tenants: BTreeMap<TenantId, SeriesEntry>,
    /// The number of tenants that have a place.
    placed: usize,
    /// The counts in `_other` of tenants that are gone.
    gone: Sums,
    looked: Option<Instant>,
}

/// A tenant that is made, or that still has sockets.
#[derive(Debug)]
struct SeriesEntry {
    ledger: Arc<Ledger>,
    /// The number of its [`SeriesStay`]s.
    stays: usize,
    /// The time at which it got its place, if it has one.
    placed: Option<Instant>,
    /// The traffic at the last look.
    seen: u64,
    /// The traffic of the last minutes.
    recent: f64,
}

/// A tenant's entry in the book, from its making to the end of its last socket; then its series end.
#[derive(Debug)]
pub struct SeriesStay {
    tenant: TenantId,
    ledger: Arc<Ledger>,
    book: Arc<Mutex<SeriesBook>>,
}

/// The values of one label.
pub(super) type CountedSeries = (Arc<str>, Vec<SeriesValue>);

impl TenantSeries {
    /// Opens a book with places for at most `most` tenants (`metrics.tenant_series`).
    pub fn new(most: usize) -> Self {
        let book = SeriesBook {
            most,
            tenants: BTreeMap::new(),
            placed: 0,
            gone: Sums::default(),
            looked: None,
        };
        Self {
            book: Arc::new(Mutex::new(book)),
            places: Mutex::default(),
        }
    }

    /// Enters a tenant, which gets a place if one is free and no other tenant waits for it.
    pub fn enter(&self, tenant: &TenantId, now: Instant) -> SeriesStay {
        let mut book = self.book.lock();
        let is_free = book.placed < book.most && book.placed == book.tenants.len();
        let known = book.tenants.contains_key(tenant);
        if is_free && !known {
            book.placed += 1;
        }
        let entry = book.tenants.entry(tenant.clone());
        let entry = entry.or_insert_with(|| SeriesEntry {
            ledger: Arc::default(),
            stays: 0,
            placed: is_free.then_some(now),
            seen: 0,
            recent: 0.0,
        });
        entry.stays += 1;
        SeriesStay {
            tenant: tenant.clone(),
            ledger: entry.ledger.clone(),
            book: self.book.clone(),
        }
    }

    /// Gives the places to the busiest tenants, once a minute; called more often.
    pub fn upkeep(&self, now: Instant) {
        let _places = self.places.lock();
        if !self.book.lock().is_due(now) {
            return;
        }
        let entered = self.book.lock().entered();
        let traffic = entered.into_iter();
        let traffic = traffic.map(|entered| (entered.tenant, entered.ledger.traffic()));
        let traffic: BTreeMap<_, _> = traffic.collect();
        self.book.lock().look(&traffic, now);
    }

    /// Returns the values of the scrape: each tenant with a place by its name, and all others as `_other`.
    pub(super) fn shown(&self) -> Vec<CountedSeries> {
        let _places = self.places.lock();
        let (entered, mut others) = {
            let book = self.book.lock();
            (book.entered(), book.gone.clone())
        };
        let mut shown = Vec::new();
        for BookedTenant {
            tenant,
            ledger,
            is_placed,
        } in entered
        {
            let (own, other) = match is_placed {
                true => (Some(ledger.here()), ledger.elsewhere()),
                false => (None, ledger.here()),
            };
            shown.extend(own.map(|own| (Arc::from(tenant.as_str()), own)));
            // A tenant that has always had a place is no part of the others, not even with zeros.
            let counts = |value: &SeriesValue| !is_placed || counted(value);
            others.add(other.into_iter().filter(counts));
        }
        shown.push((
            OTHER_TENANTS.into(),
            others.0.into_iter().flatten().collect(),
        ));
        shown
    }

    /// Returns all values of up to `limit` tenants behind `after` in the order of their names, with a place or without. The
    /// flag says that there are more.
    pub(super) fn page(&self, after: Option<&str>, limit: usize) -> (Vec<CountedSeries>, bool) {
        let (page, has_more) = {
            let book = self.book.lock();
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = book.tenants.range::<str, _>((from, Bound::Unbounded));
            let page: Vec<_> = { rest.by_ref().take(limit) }
                .map(BookedTenant::of)
                .collect();
            (page, rest.next().is_some())
        };
        (page.iter().map(BookedTenant::all).collect(), has_more)
    }

    /// Returns all values of one tenant, if it is in the book.
    pub(super) fn of(&self, tenant: &str) -> Option<CountedSeries> {
        let entered = BookedTenant::of(self.book.lock().tenants.get_key_value(tenant)?);
        Some(entered.all())
    }
}

/// A tenant that was in the book a moment ago. Its values are read without the book.
struct BookedTenant {
    tenant: TenantId,
    ledger: Arc<Ledger>,
    is_placed: bool,
}

impl BookedTenant {
    fn of((tenant, entry): (&TenantId, &SeriesEntry)) -> Self {
        Self {
            tenant: tenant.clone(),
            ledger: entry.ledger.clone(),
            is_placed: entry.placed.is_some(),
        }
    }

    fn all(&self) -> CountedSeries {
        (self.tenant.as_str().into(), self.ledger.totals())
    }
}

impl SeriesBook {
    fn entered(&self) -> Vec<BookedTenant> {
        self.tenants.iter().map(BookedTenant::of).collect()
    }

    /// Returns true, once a minute, if it is time for a look.
    fn is_due(&mut self, now: Instant) -> bool {
        let looked = self.looked.get_or_insert(now);
        let is_due = now.saturating_duration_since(*looked) >= LOOK;
        if is_due {
            *looked = now;
        }
        is_due
    }

    /// Gives the places to the busiest. `traffic` is that of each tenant so far.
    fn look(&mut self, traffic: &BTreeMap<TenantId, u64>, now: Instant) {
        let (mut waiting, mut holding) = (Vec::new(), Vec::new());
        for (tenant, entry) in &mut self.tenants {
            // One that was made a moment ago has its turn at the next look.
            let Some(&traffic) = traffic.get(tenant) else {
                continue;
            };
            // It may have gone and come again since, with less traffic than before.
            entry.recent = entry.recent * FADES_TO + traffic.saturating_sub(entry.seen) as f64;
            entry.seen = traffic;
            let busy = (entry.recent, tenant.clone());
            match entry.placed {
                None => waiting.push(busy),
                Some(since) if now.saturating_duration_since(since) >= KEPT => holding.push(busy),
                Some(_) => {}
            }
        }
        waiting.sort_by(|a, b| b.0.total_cmp(&a.0));
        holding.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut holding = holding.into_iter();
        for (recent, tenant) in waiting {
            if self.placed == self.most {
                match holding.next() {
                    Some((least, holder)) if recent > MUCH_MORE * least => self.turn(&holder, now),
                    _ => return,
                }
            }
            self.turn(&tenant, now);
        }
    }

    /// Gives a tenant without a place one, and takes it from one that has it.
    fn turn(&mut self, tenant: &TenantId, now: Instant) {
        let Some(entry) = self.tenants.get_mut(tenant) else {
            return;
        };
        entry.ledger.change_sides();
        match entry.placed.take() {
            Some(_) => self.placed -= 1,
            None => {
                entry.placed = Some(now);
                self.placed += 1;
            }
        }
    }
}

impl SeriesStay {
    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for SeriesStay {
    fn drop(&mut self) {
        let mut book = self.book.lock();
        let Some(entry) = book.tenants.get_mut(&self.tenant) else {
            return;
        };
        entry.stays -= 1;
        if entry.stays > 0 {
            return;
        }
        let others = match entry.placed {
            Some(_) => self.ledger.elsewhere(),
            None => self.ledger.here(),
        };
        if entry.placed.is_some() {
            book.placed -= 1;
        }
        book.tenants.remove(&self.tenant);
        book.gone.add(others.into_iter().filter(counted));
    }
}

/// Returns true for a counter above zero. The gauges of a tenant that is gone, or that has a place, are no part of the others'.
fn counted(value: &SeriesValue) -> bool {
    !value.is_gauge && value.bits > 0
}

/// Sums of tenants, by the numbers of their series.
#[derive(Clone, Debug, Default)]
struct Sums(Vec<Option<SeriesValue>>);

impl Sums {
    fn add(&mut self, values: impl Iterator<Item = SeriesValue>) {
        for value in values {
            let at = usize::from(value.series);
            if self.0.len() <= at {
                self.0.resize(at + 1, None);
            }
            match &mut self.0[at] {
                Some(sum) => sum.add(value),
                sum => *sum = Some(value),
            }
        }
    }
}

#[cfg(test)]
mod tests;
