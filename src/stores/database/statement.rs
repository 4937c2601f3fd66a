//! Operators' statements with `:name` parameters, and their form for each database.
//!
//! A `:name` inside a string, a quoted name, a comment or a dollar quote is left alone, and so is one after another
//! `:` (a cast of PostgreSQL). Values are always bound, never written into the text.

use uuid::Uuid;

use crate::config::Fault;

/// The kind of a database. The kinds differ in quoting and in placeholders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
    /// SQLite.
    Sqlite,
}

impl Dialect {
    /// Returns the kind that a URL names by its scheme.
    pub fn of_url(url: &str) -> Option<Self> {
        match url.split_once(':')?.0 {
            "postgres" | "postgresql" => Some(Self::Postgres),
            "mysql" | "mariadb" => Some(Self::MySql),
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }

    /// Returns `name` in quotes; it must not contain a quote.
    pub(super) fn quote(self, name: &str) -> String {
        match self {
            Self::Postgres => format!("\"{name}\""),
            // SQLite reads an unknown name in double quotes as a string; in backticks it is an error.
            Self::MySql | Self::Sqlite => format!("`{name}`"),
        }
    }
}

/// A value of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlParam {
    /// A number.
    Int(i64),
    /// A hyphenated UUID. PostgreSQL gets its own type, the others get the 32 digits that Django stores.
    Uuid(String),
    /// Any text.
    Text(String),
}

/// A value in the form in which it is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Int(i64),
    Uuid(Uuid),
    Text(String),
}

impl SqlParam {
    /// Converts the value for `dialect`; `None` if no column of that database can hold it.
    fn bind(&self, dialect: Dialect) -> Option<Bind> {
        Some(match self {
            Self::Int(number) => Bind::Int(*number),
            Self::Text(text) if dialect == Dialect::Postgres && text.contains('\0') => return None,
            Self::Text(text) => Bind::Text(text.clone()),
            Self::Uuid(text) => {
                let uuid = Uuid::try_parse(text).ok()?;
                match dialect {
                    Dialect::Postgres => Bind::Uuid(uuid),
                    Dialect::MySql | Dialect::Sqlite => Bind::Text(uuid.simple().to_string()),
                }
            }
        })
    }
}

/// The reason why a statement cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum StatementError {
    #[error("there is no value for :{name}; there are {known}")]
    UnknownName { name: String, known: String },
    #[error("it does not use :{0}")]
    Unused(String),
    #[error("it is empty")]
    Empty,
    #[error("there is no database to ask")]
    NoDatabase,
}

impl StatementError {
    /// Converts the error into a fault at `key`; `example` is a statement that would be valid there.
    pub fn fault(&self, key: &str, example: &str) -> Fault {
        let expected = format!("a statement such as {example}");
        match self {
            Self::UnknownName { name, known } => {
                // A longer text is hardly a name that the operator meant, so it is not repeated.
                let found = match name.len() <= 64 {
                    true => format!("a statement with :{name}"),
                    false => "a statement with another :name".to_owned(),
                };
                Fault::new(key, found, format!("no other names than {known}"))
            }
            Self::Unused(name) => Fault::new(key, format!("a statement without :{name}"), expected),
            Self::Empty => Fault::new(key, "an empty statement", expected),
            Self::NoDatabase => Fault::new(
                key,
                "a statement, and no database",
                "a database to ask",
            )
            .advice(
                "set users.database; beside users.source = \"claims\" it serves authorize alone",
            ),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Sql(Box<str>),
    Name(Box<str>),
}

/// A statement, parsed for one kind of database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    dialect: Dialect,
    pieces: Box<[Piece]>,
}

impl Statement {
    /// Parses `sql`, in which only `names` have values.
    ///
    /// # Errors
    /// [`StatementError::UnknownName`] for any other name; [`StatementError::Empty`].
    pub fn parse(sql: &str, dialect: Dialect, names: &[&str]) -> Result<Self, StatementError> {
        let sql = sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        if sql.trim().is_empty() {
            return Err(StatementError::Empty);
        }
        let pieces = Lexer { sql, dialect }.pieces();
        for piece in &pieces {
            if let Piece::Name(name) = piece
                && !names.contains(&&**name)
            {
                let known: Vec<_> = names.iter().map(|name| format!(":{name}")).collect();
                return Err(StatementError::UnknownName {
                    name: name.to_string(),
                    known: known.join(", "),
                });
            }
        }
        Ok(Self {
            dialect,
            pieces: pieces.into(),
        })
    }

    /// Returns true if the statement uses `:name`.
    pub fn uses(&self, name: &str) -> bool {
        let same = |piece: &Piece| matches!(piece, Piece::Name(own) if **own == *name);
        self.pieces.iter().any(same)
    }

    /// Returns the words of the statement that could name a column: words, texts in quotes and `*`, not comments and
    /// parameters.
    pub(super) fn words(&self) -> Vec<String> {
        let sql = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Sql(sql) => Some(&**sql),
            Piece::Name(_) => None,
        });
        let dialect = self.dialect;
        sql.flat_map(|sql| Lexer { sql, dialect }.words()).collect()
    }

    /// Returns the kind of database for which it was parsed.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Returns the text with placeholders, and the values in their order. A name stands for one value or, as in
    /// `IN (:user_ids)`, for several. A name that is repeated uses PostgreSQL's numbered placeholders again.
    pub(super) fn render(&self, values: impl Fn(&str) -> Vec<Bind>) -> (String, Vec<Bind>) {
        let mut sql = String::new();
        let mut binds = Vec::new();
        let mut numbered: Vec<(&str, usize, usize)> = Vec::new();
        for piece in &self.pieces {
            let name = match piece {
                Piece::Sql(text) => {
                    sql.push_str(text);
                    continue;
                }
                Piece::Name(name) => name,
            };
            let known = numbered.iter().find(|(own, ..)| *own == &**name);
            let (first, count) = match (self.dialect, known) {
                (Dialect::Postgres, Some((_, first, count))) => (*first, *count),
                _ => {
                    let more = values(name);
                    let (first, count) = (binds.len() + 1, more.len());
                    binds.extend(more);
                    numbered.push((name, first, count));
                    (first, count)
                }
            };
            for number in first..first + count {
                if number > first {
                    sql.push_str(", ");
                }
                match self.dialect {
                    Dialect::Postgres => sql.push_str(&format!("${number}")),
                    Dialect::MySql | Dialect::Sqlite => sql.push('?'),
                }
            }
        }
        (sql, binds)
    }

    /// Returns the text of `SELECT EXISTS (statement)` and its values; `None` if no row can hold one of the values.
    pub(super) fn render_exists(&self, params: &[(&str, SqlParam)]) -> Option<(String, Vec<Bind>)> {
        let mut binds = Vec::with_capacity(params.len());
        for (name, param) in params.iter().filter(|(name, _)| self.uses(name)) {
            binds.push((*name, param.bind(self.dialect)?));
        }
        let value = |name: &str| {
            let found = binds.iter().find(|(own, _)| *own == name);
            found.map(|(_, bind)| bind.clone()).into_iter().collect()
        };
        let (sql, binds) = self.render(value);
        // The line feed ends a comment on the last line.
        Some((format!("SELECT EXISTS (\n{sql}\n)"), binds))
    }
}

/// Finds names outside strings, quoted names and comments, by the rules of the three databases.
struct Lexer<'a> {
    sql: &'a str,
    dialect: Dialect,
}

impl Lexer<'_> {
    fn pieces(&self) -> Vec<Piece> {
        let bytes = self.sql.as_bytes();
        let mut pieces = Vec::new();
        let (mut from, mut at) = (0, 0);
        while at < bytes.len() {
            if let Some(end) = self.name_at(at) {
                if from < at {
                    pieces.push(Piece::Sql(self.sql[from..at].into()));
                }
                pieces.push(Piece::Name(self.sql[at + 1..end].into()));
                (from, at) = (end, end);
            } else {
                at = self.skip(at);
            }
        }
        if from < bytes.len() {
            pieces.push(Piece::Sql(self.sql[from..].into()));
        }
        pieces
    }

    fn words(&self) -> Vec<String> {
        let (mut words, mut at) = (Vec::new(), 0);
        while at < self.sql.len() {
            let end = self.skip(at).min(self.sql.len()).max(at + 1);
            // A single byte may be a part of a character; no word is.
            let token = self.sql.get(at..end).unwrap_or_default();
            match token.bytes().next() {
                Some(b'\'' | b'"' | b'`' | b'[') => {
                    words.push(token.trim_matches(['\'', '"', '`', '[', ']']).to_owned());
                }
                Some(b'*') => words.push(token.to_owned()),
                Some(byte) if is_word(byte) => words.push(token.to_owned()),
                _ => {}
            }
            at = end;
        }
        words
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.sql.as_bytes().get(at).copied()
    }

    /// Returns the end of a `:name` that begins at `at`.
    fn name_at(&self, at: usize) -> Option<usize> {
        let first = self.byte(at + 1)?;
        let after_colon = at > 0 && self.byte(at - 1) == Some(b':');
        if self.byte(at)? != b':' || after_colon || !(first.is_ascii_alphabetic() || first == b'_')
        {
            return None;
        }
        let rest = &self.sql.as_bytes()[at + 1..];
        let length = rest
            .iter()
            .position(|byte| !is_word(*byte))
            .unwrap_or(rest.len());
        Some(at + 1 + length)
    }

    /// Returns the end of the string, quoted name, comment, word or single byte that begins at `at`.
    fn skip(&self, at: usize) -> usize {
        use Dialect::{MySql, Postgres, Sqlite};
        let rest = &self.sql[at..];
        let next = self.byte(at + 1);
        match (self.sql.as_bytes()[at], self.dialect) {
            (b'\'', dialect) => self.quoted(at, b'\'', dialect == MySql),
            (b'"', dialect) => self.quoted(at, b'"', dialect == MySql),
            (b'`', MySql | Sqlite) => self.quoted(at, b'`', false),
            (b'[', Sqlite) => end_of(rest, "]", at),
            // MySQL needs a blank after `--` for a comment: it reads "5--3" as a difference.
            (b'-', MySql) if rest.starts_with("--") => match self.byte(at + 2) {
                None | Some(b' ' | b'\t' | b'\r' | b'\n') => end_of(rest, "\n", at),
                Some(_) => at + 1,
            },
            (b'-', _) if next == Some(b'-') => end_of(rest, "\n", at),
            (b'#', MySql) => end_of(rest, "\n", at),
            (b'/', Postgres) if next == Some(b'*') => at + nested_comment(rest),
            (b'/', _) if next == Some(b'*') => at + 2 + end_of(&rest[2..], "*/", 0),
            (b'$', Postgres) => self.dollar_quoted(at),
            (b'e' | b'E', Postgres) if next == Some(b'\'') => self.quoted(at + 1, b'\'', true),
            (byte, _) if is_word(byte) => {
                let words = rest
                    .bytes()
                    .take_while(|byte| is_word(*byte) || *byte == b'$');
                at + words.count()
            }
            _ => at + 1,
        }
    }

    /// Returns the end of a text in `quote`s; a doubled quote is a part of the text.
    fn quoted(&self, at: usize, quote: u8, backslashes: bool) -> usize {
        let mut end = at + 1;
        while let Some(byte) = self.byte(end) {
            end += 1;
            if byte == b'\\' && backslashes {
                end += 1;
            } else if byte == quote {
                if self.byte(end) != Some(quote) {
                    return end;
                }
                end += 1;
            }
        }
        self.sql.len()
    }

    fn dollar_quoted(&self, at: usize) -> usize {
        let rest = &self.sql[at..];
        let tag = rest[1..].find('$').map(|length| &rest[..length + 2]);
        let is_tag = |tag: &&str| {
            let name = &tag[1..tag.len() - 1];
            name.bytes().all(is_word) && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        match tag.filter(is_tag) {
            Some(tag) => end_of(&rest[tag.len()..], tag, at + tag.len()),
            None => at + 1,
        }
    }
}

/// Returns true for letters, digits and `_`. Every byte beyond ASCII counts as a letter, as in PostgreSQL.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn end_of(rest: &str, mark: &str, at: usize) -> usize {
    at + rest
        .find(mark)
        .map_or(rest.len(), |found| found + mark.len())
}

/// Returns the length of a comment that may contain comments.
fn nested_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        match &text.as_bytes()[at..text.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::Dialect::{MySql, Postgres, Sqlite};
    use super::*;

    fn names(sql: &str, dialect: Dialect) -> Vec<String> {
        let pieces = Lexer { sql, dialect }.pieces();
        let whole: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Sql(text) => text.to_string(),
                Piece::Name(name) => format!(":{name}"),
            })
            .collect();
        assert_eq!(whole, sql);
        let name = |piece| match piece {
            Piece::Name(name) => Some(name.into()),
            Piece::Sql(_) => None,
        };
        pieces.into_iter().filter_map(name).collect()
    }

    #[test]
    fn names_are_found_where_they_are_names() {
        for (dialect, sql, expected) in [
            (Postgres, "a = :a AND b=:b_1", "a b_1"),
            (Postgres, ":a::int, b::text, :c::uuid", "a c"),
            (Postgres, "':a' || 'it''s :b' || :c", "c"),
            (Postgres, r"'\' || :a || E'\' :b' || :c", "a c"),
            (Postgres, r#"":a" || :b"#, "b"),
            (Postgres, "-- :a\n:b", "b"),
            (Postgres, "/* :a /* :b */ :c */ :d", "d"),
            (Postgres, "$$ :a $$ || $x$ :b $$ :c $x$ || :d", "d"),
            (Postgres, "a$b$ :c $b$", "c"),
            (Postgres, "$1 :a $2", "a"),
            (Postgres, "j #> :a", "a"),
            (Postgres, "x := :a, y[1:2]", "a"),
            (Postgres, "namé':a':b", "b"),
            (Postgres, "'never closed :a", ""),
            (Postgres, "/* never closed :a", ""),
            (MySql, r"'it\'s :a' :b", "b"),
            (MySql, r#""it\"s :a" :b"#, "b"),
            (MySql, "`:a` :b", "b"),
            (MySql, "5--:a -- :b\n:c # :d\n:e", "a c e"),
            (MySql, "/* :a /* */ :b", "b"),
            (MySql, "$$ :a $$", "a"),
            (Sqlite, "[:a] `:b` \":c\" ':d' :e", "e"),
            (Sqlite, "--:a\n:b", "b"),
        ] {
            assert_eq!(names(sql, dialect).join(" "), expected, "{dialect:?} {sql}");
        }
    }

    #[test]
    fn values_are_numbered_or_repeated() {
        let values = |name: &str| match name {
            "ids" => vec![Bind::Int(1), Bind::Int(2)],
            _ => vec![Bind::Text("x".into())],
        };
        let sql = "a IN (:ids) OR b = :t OR c IN (:ids);\n";
        let render = |dialect| {
            let statement = Statement::parse(sql, dialect, &["ids", "t"]).unwrap();
            let (sql, binds) = statement.render(values);
            (sql, binds.len())
        };
        let numbered = "a IN ($1, $2) OR b = $3 OR c IN ($1, $2)".to_owned();
        assert_eq!(render(Postgres), (numbered, 3));
        let marked = "a IN (?, ?) OR b = ? OR c IN (?, ?)".to_owned();
        assert_eq!(render(Sqlite), (marked, 5));
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = Statement::parse("x = :rom", MySql, &["user_id", "room"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no value for :rom; there are :user_id, :room"
        );
        assert_eq!(
            Statement::parse(" ; ", MySql, &[]),
            Err(StatementError::Empty)
        );
    }

    #[test]
    fn what_no_row_can_hold_is_not_asked() {
        let params = [("t", SqlParam::Text("a\0".into()))];
        let exists = |dialect| {
            let statement = Statement::parse("SELECT 1 WHERE 'a' = :t", dialect, &["t"]).unwrap();
            statement.render_exists(&params)
        };
        assert!(exists(Postgres).is_none());
        assert!(exists(Sqlite).is_some());
    }
}
