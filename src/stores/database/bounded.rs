//! The frame in which a tenant's statement stands on MySQL and MariaDB, so that the server sends no row over [`MAX_ROW`].
//!
//! The driver holds a row whole, so the server must measure it. It has no function for the length of a row, so the frame names
//! each column, and the server describes the statement first. PostgreSQL has such a function, and SQLite a limit of its own.

use std::collections::HashSet;

use super::answer::MAX_ROW;

/// The column of a frame that is true for a row that is too long.
pub(super) const CUT: &str = "lockgate.cut";
/// The column of a frame with the length of the row. Each long column is compared with it, so that a frame has each column a fixed
/// number of times.
const SIZE: &str = "lockgate.size";
/// The name of the tenant's statement in a frame.
const ROWS: &str = "lockgate_rows";
/// The most long columns of a statement whose rows the server need not write to a table first. It computes the length of a row for
/// each of them then: for 1,000 columns that is a million lengths.
const MAX_MEASURED: usize = 16;
/// The most lengths in one sum. A sum of more has sums, since a server ends a statement that is nested too deep.
const MAX_ADDED: usize = 32;
/// The most bytes of the columns of short types, which one table cannot have: its rows end at 64 KiB without long columns. Over
/// it a row is left out. A column whose type has become a long one since it was described is bounded by this.
const MAX_SHORT: usize = 4 * MAX_ROW;

/// A column that a statement returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DescribedColumn {
    pub(super) name: String,
    /// The statement alone does not bound its values.
    pub(super) is_long: bool,
    /// The server computes its values on MySQL. It does so each time that a frame names the column, unless the rows are made first.
    pub(super) is_computed: bool,
}

/// The text around a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StatementFrame {
    before: String,
    after: String,
}

impl StatementFrame {
    /// Makes the frame of a statement with these columns. Of a row that is too long it passes on the short columns, and `field`
    /// if it is short itself.
    ///
    /// A value of a long type is replaced by NULL then. One of a short type is not touched, since an expression around it would
    /// change its type: a TIMESTAMP into a DATETIME, a BOOLEAN into a number.
    pub(super) fn new(columns: &[DescribedColumn], field: Option<&str>) -> Self {
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        // A subquery may not have two columns of one name. MySQL 8.0 and MariaDB 10.2 can give them others.
        let numbers: Option<Vec<String>> =
            (!are_distinct(&names)).then(|| (0..names.len()).map(|at| format!("c{at}")).collect());
        let inner: Vec<String> = match &numbers {
            Some(numbers) => numbers
                .iter()
                .map(|name| format!("{ROWS}.{name}"))
                .collect(),
            None => { names.iter() }
                .map(|name| format!("{ROWS}.{}", quoted(name)))
                .collect(),
        };
        let size = format!("{ROWS}.{}", quoted(SIZE));
        let columns = || columns.iter().zip(&inner);
        let mut selected = Vec::with_capacity(inner.len() + 1);
        for (column, inner) in columns() {
            let value = match column.is_long {
                true if Some(&*column.name) == field => masked(&length(inner), inner),
                true => masked(&size, inner),
                false => inner.clone(),
            };
            selected.push(format!("{value} AS {}", quoted(&column.name)));
        }
        let long = columns().filter(|(column, _)| column.is_long).count();
        if long > 0 {
            selected.push(format!("{size} > {MAX_ROW} AS {}", quoted(CUT)));
        }
        let selected = selected.join(", ");
        let is_computed = columns().any(|(column, _)| column.is_computed);
        let (open, close) = levels(is_computed, long, &inner);
        let short = columns().filter(|(column, _)| !column.is_long);
        let short: Vec<String> = short.map(|(_, inner)| inner.clone()).collect();
        let rest = format!("{ROWS}{close} WHERE {} <= {MAX_SHORT}", sum(&short));
        // The line feed ends a comment on the last line of the statement.
        match numbers {
            Some(numbers) => Self {
                before: format!("WITH {ROWS} ({}) AS (\n", numbers.join(", ")),
                after: format!("\n) SELECT {selected} FROM {open}{rest}"),
            },
            None => Self {
                before: format!("SELECT {selected} FROM {open}(\n"),
                after: format!("\n) AS {rest}"),
            },
        }
    }

    /// Puts a statement into the frame.
    pub(super) fn around(&self, sql: &str) -> String {
        [&*self.before, sql, &*self.after].concat()
    }
}

/// Returns the text around the rows that computes them once, and that measures them if some columns are long.
///
/// A LIMIT makes the server write the rows to a table first, so that a subquery in a column runs once. It has a price: a value of
/// 100 MB takes the server 300 MB instead of 100 MB then (MariaDB 10.11).
fn levels(is_computed: bool, long: usize, columns: &[String]) -> (String, String) {
    let once = format!(" LIMIT {}", u64::MAX);
    let (mut open, mut close) = (String::new(), String::new());
    if is_computed {
        open.push_str("(SELECT * FROM ");
        close = format!("{once}) AS {ROWS}");
    }
    if long > 0 {
        let (size, name) = (sum(columns), quoted(SIZE));
        let once = if long > MAX_MEASURED { &*once } else { "" };
        open.insert_str(0, &format!("(SELECT {ROWS}.*, {size} AS {name} FROM "));
        close.push_str(&format!("{once}) AS {ROWS}"));
    }
    (open, close)
}

/// Returns the sum of the lengths of columns.
fn sum(columns: &[String]) -> String {
    if columns.is_empty() {
        return "0".to_owned();
    }
    let terms: Vec<String> = match columns.len() {
        ..=MAX_ADDED => columns.iter().map(|column| length(column)).collect(),
        many => { columns.chunks(many.div_ceil(MAX_ADDED)) }
            .map(|part| format!("({})", sum(part)))
            .collect(),
    };
    terms.join(" + ")
}

fn length(column: &str) -> String {
    format!("COALESCE(OCTET_LENGTH({column}), 0)")
}

fn masked(measured: &str, column: &str) -> String {
    format!("IF({measured} > {MAX_ROW}, NULL, {column})")
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Returns true if a subquery can have columns of these names, which MySQL compares without case, beside [`SIZE`].
fn are_distinct(names: &[&str]) -> bool {
    let mut seen = HashSet::from([SIZE.to_owned()]);
    let mut names = names.iter().map(|name| name.trim_end().to_lowercase());
    names.all(|name| !name.is_empty() && seen.insert(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(columns: &[(&str, bool)]) -> String {
        let columns = columns.iter().map(|(name, is_long)| DescribedColumn {
            name: (*name).to_owned(),
            is_long: *is_long,
            is_computed: *is_long,
        });
        let frame = StatementFrame::new(&columns.collect::<Vec<_>>(), Some("id"));
        frame.around("SELECT 1 -- one")
    }

    #[test]
    fn a_column_of_a_short_type_is_measured_and_not_touched() {
        assert_eq!(
            frame(&[("id", false), ("a`b", false)]),
            "SELECT lockgate_rows.`id` AS `id`, lockgate_rows.`a``b` AS `a``b` FROM (\nSELECT 1 -- one\n) AS lockgate_rows \
             WHERE COALESCE(OCTET_LENGTH(lockgate_rows.`id`), 0) + COALESCE(OCTET_LENGTH(lockgate_rows.`a``b`), 0) <= 1048576"
        );
    }

    #[test]
    fn a_long_row_is_sent_without_its_long_columns_and_two_columns_may_have_one_name() {
        let framed = frame(&[("id", true), ("ID", true)]);
        let both = "COALESCE(OCTET_LENGTH(lockgate_rows.c0), 0) + COALESCE(OCTET_LENGTH(lockgate_rows.c1), 0)";
        assert_eq!(
            framed,
            format!(
                "WITH lockgate_rows (c0, c1) AS (\nSELECT 1 -- one\n) SELECT \
                 IF(COALESCE(OCTET_LENGTH(lockgate_rows.c0), 0) > 262144, NULL, lockgate_rows.c0) AS `id`, \
                 IF(lockgate_rows.`lockgate.size` > 262144, NULL, lockgate_rows.c1) AS `ID`, \
                 lockgate_rows.`lockgate.size` > 262144 AS `lockgate.cut` \
                 FROM (SELECT lockgate_rows.*, {both} AS `lockgate.size` \
                 FROM (SELECT * FROM lockgate_rows LIMIT 18446744073709551615) AS lockgate_rows) AS lockgate_rows WHERE 0 <= 1048576"
            )
        );
    }

    /// Before: each long column was compared with the lengths of all, so that 1,000 made a statement of 56 MB.
    #[test]
    fn a_frame_grows_with_the_columns_and_not_with_their_square() {
        let framed = |count: usize| {
            let column = |at: usize| DescribedColumn {
                name: format!("column{at:04}"),
                is_long: true,
                is_computed: false,
            };
            let columns: Vec<_> = (0..count).map(column).collect();
            StatementFrame::new(&columns, None).around("SELECT 1").len()
        };
        assert!(framed(1000) < 5 * framed(250));
    }
}
