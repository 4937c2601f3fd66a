//! Tests of the book of series.

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

/// A scrape held the book while it read all tenants, and every tenant that was made or that went waited for it.
#[test]
fn a_scrape_holds_up_no_tenant_that_comes_or_goes() {
    let series = TenantSeries::new(1);
    let slow = series.enter(&id(0), Instant::now());
    let reading = slow.ledger().hold();
    std::thread::scope(|scope| {
        let scrapes: [fn(&TenantSeries); 3] = [
            |series| drop(series.shown()),
            |series| drop(series.page(None, 10)),
            |series| drop(series.of("t00000")),
        ];
        let started = Arc::new(std::sync::Barrier::new(scrapes.len() + 1));
        for scrape in scrapes {
            let (series, started) = (&series, started.clone());
            scope.spawn(move || {
                started.wait();
                scrape(series);
            });
        }
        started.wait();
        for number in 1..1000 {
            let book = series.book.try_lock_for(Duration::from_secs(10));
            let is_free = book.is_some();
            drop(book);
            if !is_free {
                // The threads end before the test fails.
                drop(reading);
                panic!("a scrape keeps the book");
            }
            drop(series.enter(&id(number), Instant::now()));
            std::thread::yield_now();
        }
        drop(reading);
    });
}
