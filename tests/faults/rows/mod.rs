//! All faults that the suite knows, as data. Their numbers run from 1 to 65; a number may have several rows.

mod absent;
mod cluster;
mod others;
mod redis;

pub(crate) use absent::absent;

use crate::row::Row;

/// Every row that is run, by number.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = redis::rows();
    rows.extend(others::rows());
    rows.extend(cluster::rows());
    rows.sort_by_key(|row| row.number);
    rows
}

/// The highest number.
pub(crate) const LAST: u8 = 65;
