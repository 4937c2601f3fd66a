//! The rows of an answer. They are taken one by one, until there are too many or too long ones.
//!
//! The driver holds one row whole before it can be measured here. The statement, or SQLite itself, bounds that one: see
//! [`super::bounded`] and [`super::sqlite`].

use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;

use super::value::{Row, SqlValue};

/// The most bytes of one row. The fields of a user may have 64 KiB as JSON, in which no byte of a column becomes less than one;
/// the rest is for a column `password` and for columns of one name, which are no fields.
pub(super) const MAX_ROW: usize = 256 * 1024;
/// The most bytes of all rows of one statement, which is 32 KiB for each of the most users that it may ask for. A statement with
/// more is cut, and asks for fewer users then.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// The most rows of one statement: eight for each of the most users that it may ask for. A collation without case finds more
/// than one.
pub(super) const MAX_ROWS: usize = 8 * super::MAX_IDS;
/// The most columns of a statement that reads users, which are 64 bytes of its fields for each. A `SELECT *` of a view may have four
/// times as many, and each stands in every row and in the statements around it.
pub(super) const MAX_COLUMNS: usize = 1024;
/// Bytes of rows that are read before the other tasks of the thread have their turn: reading them takes about a millisecond.
const TURN: usize = 64 * 1024;
/// Bytes of a value that stays in a row that is too long: the id of a user.
pub(super) const MAX_ID: usize = 1024;

/// The column that holds the id of a cut row, where the statement does not send it under its own name.
pub(super) const CUT_ROW_ID: &str = "lockgate.id";

/// A row as the driver gives it.
pub(super) enum SqlRow {
    /// Every column.
    Whole(Row),
    /// The columns that the statement sent of a row that is too long, at most the user's id among them.
    Cut(Row),
}

impl SqlRow {
    fn row(&self) -> &Row {
        match self {
            Self::Whole(row) | Self::Cut(row) => row,
        }
    }
}

/// The bytes of rows that were read in the present turn.
#[derive(Debug, Default)]
pub(super) struct ReadTurn(usize);

impl ReadTurn {
    /// Accounts for a row, and gives way to other tasks at the end of a turn.
    pub(super) async fn spend(&mut self, bytes: usize) {
        self.0 += bytes;
        if self.0 >= TURN {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// The rows of a statement.
#[derive(Debug, Default)]
pub(super) struct SqlAnswer {
    /// The rows that are short enough.
    pub(super) rows: Vec<Row>,
    /// The short columns of rows that are too long.
    pub(super) cut: Vec<Row>,
    /// True if reading stopped before the last row. The connection is of no more use then.
    pub(super) is_stopped: bool,
    bytes: usize,
}

impl SqlAnswer {
    /// Takes rows out of `stream` until they are too many, or one cannot be decoded. `columns` are those of the first, and serve to
    /// `read` them all.
    pub(super) async fn read<R: sqlx::Row, C>(
        mut stream: BoxStream<'_, Result<R, sqlx::Error>>,
        columns: impl Fn(&R) -> Vec<C>,
        read: impl Fn(&R, &[C]) -> Result<SqlRow, sqlx::Error>,
    ) -> Result<Self, sqlx::Error> {
        let mut answer = Self::default();
        let (mut known, mut turn) = (None, ReadTurn::default());
        while let Some(row) = stream.try_next().await? {
            let columns = known.get_or_insert_with(|| columns(&row));
            let row = read(&row, columns)?;
            let bytes = size(row.row());
            if !answer.takes(row) {
                answer.is_stopped = true;
                break;
            }
            turn.spend(bytes).await;
        }
        Ok(answer)
    }

    /// Adds a row. Returns false, without it, if the rows are too many.
    fn takes(&mut self, row: SqlRow) -> bool {
        let (mut row, is_cut) = match row {
            SqlRow::Whole(row) => (row, false),
            SqlRow::Cut(row) => (row, true),
        };
        let is_cut = is_cut || size(&row) > MAX_ROW;
        if is_cut {
            let long = row.iter_mut().filter(|(_, value)| value.len() > MAX_ID);
            long.for_each(|(_, value)| *value = SqlValue::Null);
        }
        self.bytes += size(&row);
        if self.rows.len() + self.cut.len() == MAX_ROWS || self.bytes > MAX_ANSWER {
            return false;
        }
        let rows = if is_cut {
            &mut self.cut
        } else {
            &mut self.rows
        };
        rows.push(row);
        true
    }
}

/// Returns the bytes of a row in memory.
pub(super) fn size(row: &Row) -> usize {
    let values = row.iter().map(|(_, value)| value.len());
    size_of_val(row.as_slice()) + values.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[usize]) -> Row {
        let value = |len: &usize| ("c".into(), SqlValue::Text("x".repeat(*len)));
        values.iter().map(value).collect()
    }

    #[test]
    fn a_row_that_is_too_long_keeps_its_short_columns() {
        let mut answer = SqlAnswer::default();
        assert!(answer.takes(SqlRow::Whole(row(&[5, MAX_ROW / 2]))));
        assert!(answer.takes(SqlRow::Whole(row(&[5, MAX_ROW / 2, MAX_ROW / 2]))));
        assert!(answer.takes(SqlRow::Cut(row(&[7]))));
        assert_eq!(answer.rows.len(), 1);
        let lens = |row: &Row| row.iter().map(|(_, value)| value.len()).collect::<Vec<_>>();
        let cut: Vec<_> = answer.cut.iter().map(lens).collect();
        assert_eq!(cut, [vec![5, 0, 0], vec![7]]);
    }

    #[test]
    fn reading_stops_at_a_number_of_rows_and_of_bytes() {
        let mut answer = SqlAnswer::default();
        let taken = (0..2 * MAX_ROWS).take_while(|_| answer.takes(SqlRow::Whole(row(&[1]))));
        assert_eq!(taken.count(), MAX_ROWS);
        let mut answer = SqlAnswer::default();
        let long = || SqlRow::Whole(row(&[MAX_ROW / 2]));
        let taken = (0..2 * MAX_ROWS).take_while(|_| answer.takes(long()));
        assert_eq!(taken.count(), 2 * MAX_ANSWER / MAX_ROW - 1);
    }
}
