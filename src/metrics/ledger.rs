//! The series of one tenant on this replica: the cells that its handles count in.
//!
//! These are not in the registry of `metrics-exporter-prometheus`: that one forgets no series, renders all of them for each
//! scrape, and cannot move what a tenant counts from one label to another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use metrics::{Counter, Gauge};
use parking_lot::{Mutex, RwLock};

use super::families::{FRAMES_RECEIVED, FRAMES_SENT, HANDSHAKES, WORKER_LAG};
use super::family::{Family, FamilyKind};

/// The label of tenants beyond `metrics.tenant_series`.
pub(super) const OTHER_TENANTS: &str = "_other";
/// The label of what is counted before a tenant is known.
pub(super) const NO_TENANT: &str = "_none";

/// The counts from before a tenant is known.
pub(super) static WITHOUT_TENANT: LazyLock<Ledger> = LazyLock::new(Ledger::default);

/// The most labels of a family beside `tenant`.
const WORDS: usize = 2;

/// A series that any tenant can have: a family, and the values of its labels beside `tenant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SeriesKey {
    /// The name of the family.
    pub family: &'static str,
    /// The values, in the order of the declaration.
    words: [Option<&'static str>; WORDS],
    /// True for a gauge, false for a counter.
    pub is_gauge: bool,
}

impl SeriesKey {
    /// Returns the values of the labels beside `tenant`.
    pub(super) fn words(&self) -> impl Iterator<Item = &'static str> {
        self.words.into_iter().flatten()
    }

    /// Returns true if the series is the age of the oldest of something.
    fn is_age(&self) -> bool {
        self.family == WORKER_LAG.name()
    }

    /// Returns true if the series says how busy a tenant is.
    fn is_traffic(&self) -> bool {
        let name = self.family;
        name == HANDSHAKES.name() || name == FRAMES_RECEIVED.name() || name == FRAMES_SENT.name()
    }
}

/// The number of a series in the [`Catalogue`].
pub(super) type SeriesNumber = u16;

/// Every series that a tenant of this process had, in the order of their first use. The words are those of closed sets, which
/// bounds it.
#[derive(Default)]
pub(super) struct Catalogue {
    numbers: HashMap<SeriesKey, SeriesNumber>,
    keys: Vec<SeriesKey>,
}

static CATALOGUE: LazyLock<RwLock<Catalogue>> = LazyLock::new(RwLock::default);

impl Catalogue {
    /// Returns all series by their numbers.
    pub(super) fn keys() -> Vec<SeriesKey> {
        CATALOGUE.read().keys.clone()
    }

    fn number_of(key: SeriesKey) -> SeriesNumber {
        if let Some(number) = CATALOGUE.read().numbers.get(&key) {
            return *number;
        }
        let mut catalogue = CATALOGUE.write();
        let Catalogue { numbers, keys } = &mut *catalogue;
        *numbers.entry(key).or_insert_with(|| {
            keys.push(key);
            SeriesNumber::try_from(keys.len() - 1).expect("the labels' closed sets are small")
        })
    }
}

/// The types that a series of a tenant may have.
pub(super) trait CellKind: FamilyKind {
    const IS_GAUGE: bool;

    /// Returns a handle that counts in `cell`.
    fn of_cell(cell: Arc<AtomicU64>) -> Self;
}

impl CellKind for Counter {
    const IS_GAUGE: bool = false;

    fn of_cell(cell: Arc<AtomicU64>) -> Self {
        Self::from_arc(cell)
    }
}

impl CellKind for Gauge {
    const IS_GAUGE: bool = true;

    fn of_cell(cell: Arc<AtomicU64>) -> Self {
        Self::from_arc(cell)
    }
}

/// One value of a tenant.
#[derive(Debug)]
struct Cell {
    series: SeriesNumber,
    is_gauge: bool,
    is_age: bool,
    is_traffic: bool,
    /// A counter's total, or the bits of a gauge.
    value: Arc<AtomicU64>,
    /// The part of a counter's total that stands where the tenant is not counted now: in `_other` while it has a place, else in
    /// the series of its own that it had.
    elsewhere: u64,
}

/// A value of a series: a counter's count, or the bits of a gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeriesValue {
    pub series: SeriesNumber,
    pub is_gauge: bool,
    /// Of several tenants the greatest counts, not the sum.
    pub is_age: bool,
    pub bits: u64,
}

impl SeriesValue {
    /// Adds the same series of another tenant.
    pub(super) fn add(&mut self, other: Self) {
        let (one, two) = (f64::from_bits(self.bits), f64::from_bits(other.bits));
        self.bits = match (self.is_gauge, self.is_age) {
            (true, true) => one.max(two).to_bits(),
            (true, false) => (one + two).to_bits(),
            (false, _) => self.bits + other.bits,
        };
    }
}

/// The series of one tenant.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    cells: Mutex<Vec<Cell>>,
}

impl Ledger {
    /// Keeps its readers waiting.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop + '_ {
        self.cells.lock()
    }

    /// Returns the handle of a series, for these values of the labels beside `tenant`.
    pub(super) fn handle<K: CellKind, const N: usize, const W: usize>(
        &self,
        family: &Family<K, N>,
        words: [&'static str; W],
    ) -> K {
        const { assert!(N == W + 1 && W <= WORDS, "one word for each other label") };
        let key = SeriesKey {
            family: family.name(),
            words: std::array::from_fn(|at| words.get(at).copied()),
            is_gauge: K::IS_GAUGE,
        };
        let series = Catalogue::number_of(key);
        let mut cells = self.cells.lock();
        if let Some(cell) = cells.iter().find(|cell| cell.series == series) {
            return K::of_cell(cell.value.clone());
        }
        let value = Arc::<AtomicU64>::default();
        cells.push(Cell {
            series,
            is_gauge: key.is_gauge,
            is_age: key.is_age(),
            is_traffic: key.is_traffic(),
            value: value.clone(),
            elsewhere: 0,
        });
        K::of_cell(value)
    }

    /// Returns what stands where the tenant is counted now.
    pub(super) fn here(&self) -> Vec<SeriesValue> {
        self.values(|total, cell| total - cell.elsewhere)
    }

    /// Returns all that the tenant has counted since it was made.
    pub(super) fn totals(&self) -> Vec<SeriesValue> {
        self.values(|total, _| total)
    }

    /// Returns the part of the counters that stands where the tenant is not counted now.
    pub(super) fn elsewhere(&self) -> Vec<SeriesValue> {
        self.values(|_, cell| cell.elsewhere)
    }

    /// Counts from now on under the other label: in series of its own instead of `_other`, or the other way round. Both
    /// continue from where they stopped.
    pub(super) fn change_sides(&self) {
        for cell in self.cells.lock().iter_mut().filter(|cell| !cell.is_gauge) {
            cell.elsewhere = cell.value.load(Ordering::Relaxed) - cell.elsewhere;
        }
    }

    /// Returns the handshakes and frames since the tenant was made.
    pub(super) fn traffic(&self) -> u64 {
        let cells = self.cells.lock();
        let busy = cells.iter().filter(|cell| cell.is_traffic);
        busy.map(|cell| cell.value.load(Ordering::Relaxed)).sum()
    }

    /// Returns each value; a gauge stands as it is, and `counted` says the part of a counter's total.
    fn values(&self, counted: impl Fn(u64, &Cell) -> u64) -> Vec<SeriesValue> {
        let cells = self.cells.lock();
        let value = |cell: &Cell| {
            let value = cell.value.load(Ordering::Relaxed);
            SeriesValue {
                series: cell.series,
                is_gauge: cell.is_gauge,
                is_age: cell.is_age,
                bits: if cell.is_gauge {
                    value
                } else {
                    counted(value, cell)
                },
            }
        };
        cells.iter().map(value).collect()
    }
}
