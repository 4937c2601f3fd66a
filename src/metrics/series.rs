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
    book: Arc<Mutex<SeriesBook>>,
}

#[derive(Debug)]
struct SeriesBook {
    most: usize,
    tenants: BTreeMap<TenantId, SeriesEntry>,
    /// The number of tenants that have a place.
    placed: usize,
    /// What tenants that are gone have counted in `_other`.
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
        self.book.lock().look(now);
    }

    /// Returns the values of the scrape: each tenant with a place by its name, and all others as `_other`.
    pub(super) fn shown(&self) -> Vec<CountedSeries> {
        let book = self.book.lock();
        let mut others = book.gone.clone();
        let mut shown = Vec::new();
        for (tenant, entry) in &book.tenants {
            let (own, other) = match entry.placed {
                Some(_) => (Some(entry.ledger.here()), entry.ledger.elsewhere()),
                None => (None, entry.ledger.here()),
            };
            shown.extend(own.map(|own| (Arc::from(tenant.as_str()), own)));
            // A tenant that has always had a place is no part of the others, not even with zeros.
            let counts = |value: &SeriesValue| entry.placed.is_none() || counted(value);
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
        let book = self.book.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = book.tenants.range::<str, _>((from, Bound::Unbounded));
        let page = { rest.by_ref().take(limit) }.map(|(tenant, entry)| entry.all_of(tenant));
        let page = page.collect();
        (page, rest.next().is_some())
    }

    /// Returns all values of one tenant, if it is in the book.
    pub(super) fn of(&self, tenant: &str) -> Option<CountedSeries> {
        let book = self.book.lock();
        let (tenant, entry) = book.tenants.get_key_value(tenant)?;
        Some(entry.all_of(tenant))
    }
}

impl SeriesEntry {
    fn all_of(&self, tenant: &TenantId) -> CountedSeries {
        (tenant.as_str().into(), self.ledger.totals())
    }
}

impl SeriesBook {
    fn look(&mut self, now: Instant) {
        let looked = self.looked.get_or_insert(now);
        if now.saturating_duration_since(*looked) < LOOK {
            return;
        }
        *looked = now;
        let (mut waiting, mut holding) = (Vec::new(), Vec::new());
        for (tenant, entry) in &mut self.tenants {
            let traffic = entry.ledger.traffic();
            entry.recent = entry.recent * FADES_TO + (traffic - entry.seen) as f64;
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
mod tests {
    use super::*;
    use crate::metrics::families::{CONNECTIONS, DELIVERIES, FRAMES_SENT};
    use crate::metrics::{FrameKind, TenantMetrics};

    fn id(number: usize) -> TenantId {
        format!("t{number:05}").parse().unwrap()
    }

    fn made(series: &TenantSeries, numbers: std::ops::Range<usize>) -> Vec<TenantMetrics> {
        numbers
            .map(|number| TenantMetrics::of_gateway(series, &id(number)))
            .collect()
    }

    /// The names that the scrape shows.
    fn names(series: &TenantSeries) -> Vec<String> {
        let shown = series.shown();
        let with_values = shown.iter().filter(|(_, values)| !values.is_empty());
        with_values.map(|(name, _)| name.to_string()).collect()
    }

    /// A value of the scrape: what `sent` frames come to.
    fn sent(series: &TenantSeries, name: &str) -> Option<String> {
        line(&series.shown_text(), FRAMES_SENT.name(), name)
    }

    fn line(text: &str, family: &str, tenant: &str) -> Option<String> {
        let start = format!("{family}{{tenant=\"{tenant}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map(str::to_owned)
    }

    #[test]
    fn a_place_that_is_given_back_is_the_next_tenants() {
        let series = TenantSeries::new(1);
        let first = series.enter(&id(0), Instant::now());
        // A tenant that a reload moves is built twice for a while, and takes one place.
        let again = series.enter(&id(0), Instant::now());
        drop(made(&series, 1..2));
        drop(first);
        let second = made(&series, 1..2);
        assert!(names(&series).contains(&"_other".to_owned()));
        drop((again, second));
        let _second = made(&series, 1..2);
        assert_eq!(names(&series), [id(1).as_str()]);
    }

    /// Tenants that come and go take no places from one that stays.
    #[test]
    fn a_place_that_is_given_back_goes_to_the_busiest_that_waits() {
        let series = TenantSeries::new(1);
        let start = Instant::now();
        let first = made(&series, 0..1);
        let stays = made(&series, 1..2);
        series.upkeep(start);
        drop(first);
        stays[0].frames_sent.increment(50);
        for at in 1..3 {
            let passing = made(&series, 10 + at as usize..11 + at as usize);
            passing[0].frames_sent.increment(1);
            series.upkeep(start + LOOK * at);
        }
        assert_eq!(names(&series), [id(1).as_str(), "_other"]);
    }

    #[test]
    fn a_busy_tenant_takes_the_place_of_an_idle_one_after_an_hour() {
        let series = TenantSeries::new(1);
        let tenants = made(&series, 0..2);
        let [idle, busy] = &tenants[..] else {
            unreachable!()
        };
        let start = Instant::now();
        let minute = |number: u32| start + LOOK * number;
        idle.frames_sent.increment(7);
        busy.connections.increment(3.0);
        for at in 0..59 {
            busy.frames_sent.increment(10);
            series.upkeep(minute(at));
            assert!(sent(&series, id(0).as_str()).is_some(), "minute {at}");
        }
        busy.frames_sent.increment(10);
        series.upkeep(minute(62));
        busy.frames_sent.increment(5);
        assert_eq!(sent(&series, id(0).as_str()), None);
        assert_eq!(sent(&series, id(1).as_str()).unwrap(), "5");
        assert_eq!(sent(&series, "_other").unwrap(), "600");
        let text = series.shown_text();
        let open = |tenant: &str| line(&text, CONNECTIONS.name(), tenant);
        assert_eq!(open(id(1).as_str()).unwrap(), "3");
        assert_eq!(open("_other").unwrap(), "0");
        // The idle one is busy later, and its series goes on.
        for at in 63..140 {
            idle.frames_sent.increment(10);
            series.upkeep(minute(at));
        }
        let own: u64 = sent(&series, id(0).as_str()).unwrap().parse().unwrap();
        let others: u64 = sent(&series, "_other").unwrap().parse().unwrap();
        assert!(own > 7, "{own}");
        // What the busy one had as its own has ended with its series, and nothing else is lost.
        assert_eq!(own + others, 7 + 600 + 770, "{own} and {others}");
    }

    #[test]
    fn tenants_of_equal_traffic_keep_their_places() {
        let series = TenantSeries::new(2);
        let tenants = made(&series, 0..4);
        let start = Instant::now();
        for at in 0..300 {
            for (number, tenant) in tenants.iter().enumerate() {
                tenant.frames_sent.increment(100 + 20 * number as u64);
            }
            series.upkeep(start + LOOK * at);
        }
        assert_eq!(names(&series), [id(0).as_str(), id(1).as_str(), "_other"]);
    }

    #[test]
    fn what_a_tenant_counted_in_other_stays_there_when_it_goes() {
        let series = TenantSeries::new(0);
        for _ in 0..3 {
            let tenants = made(&series, 0..2);
            tenants[0].deliveries.increment(4);
            tenants[1].connections.increment(1.0);
        }
        let text = series.shown_text();
        assert_eq!(line(&text, DELIVERIES.name(), "_other").unwrap(), "12");
        assert_eq!(line(&text, CONNECTIONS.name(), "_other"), None);
    }

    /// 10,000 tenants: the scrape stays as large as its places, no frame is counted twice, and the pages have all.
    #[test]
    fn ten_thousand_tenants_have_a_bounded_scrape_and_pages_with_all() {
        const TENANTS: usize = 10_000;
        const ROUNDS: usize = 8;
        let series = TenantSeries::new(100);
        let few = made(&series, 0..100);
        let bound = series.shown_text().lines().count();
        let more = made(&series, 100..TENANTS);
        let start = Instant::now();
        for round in 0..ROUNDS {
            for (number, tenant) in few.iter().chain(&more).enumerate() {
                // Another hundred is busy each time.
                let is_busy = number / 100 == round * 12;
                tenant.frames_sent.increment(if is_busy { 1000 } else { 1 });
                tenant.frame_received(FrameKind::Text);
            }
            // The traffic of the last hundred has faded before the next one is busy.
            for minute in 0..10 {
                series.upkeep(start + KEPT * round as u32 + LOOK * minute);
            }
        }
        let text = series.shown_text();
        assert!(text.lines().count() <= bound + bound / 100 + 100);
        // The last busy hundred have their places.
        for number in 8400..8500 {
            assert!(sent(&series, id(number).as_str()).is_some(), "{number}");
        }
        assert!(sent(&series, id(0).as_str()).is_none());
        let shown = series.shown();
        assert_eq!(shown.len(), 101);
        // All that was sent is shown, or was in a series that has ended.
        let values = |text: &str| -> u64 {
            let start = format!("{}{{", FRAMES_SENT.name());
            let lines = text.lines().filter(|line| line.starts_with(&start));
            let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
            lines.filter_map(value).sum()
        };
        let counters = |values: &[SeriesValue]| -> u64 {
            let counters = values.iter().filter(|value| !value.is_gauge);
            counters.map(|value| value.bits).sum()
        };
        let in_scrape: u64 = shown.iter().map(|(_, values)| counters(values)).sum();
        let (mut ended, mut counted) = (0, 0);
        for entry in series.book.lock().tenants.values() {
            counted += counters(&entry.ledger.totals());
            if entry.placed.is_none() {
                ended += counters(&entry.ledger.elsewhere());
            }
        }
        assert!(ended > 0);
        assert_eq!(in_scrape + ended, counted);
        let all = (ROUNDS * (100 * 1000 + (TENANTS - 100))) as u64;
        let mut in_pages = 0;
        let (mut after, mut seen) = (None::<String>, 0);
        loop {
            let page = series.scrape_page(after.as_deref(), 1000);
            let start = format!("{}{{", FRAMES_SENT.name());
            in_pages += values(&page.text);
            let own = page.text.lines().filter(|line| line.starts_with(&start));
            for line in own {
                let (of, value) = line.rsplit_once(' ').unwrap();
                assert!(of.contains(id(seen).as_str()), "{line}");
                let was_busy = seen / 100 % 12 == 0 && seen / 100 / 12 < ROUNDS;
                assert_eq!(value, if was_busy { "1007" } else { "8" }, "{line}");
                seen += 1;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, TENANTS);
        assert_eq!(in_pages, all);
    }
}
