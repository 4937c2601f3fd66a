//! A TOML text as a tree in which every value has its place in the source.
//!
//! Only this file reads TOML. A syntax error has a place and a message, never the line itself, which may hold a secret.
//!
//! It replaces serde's derive, which stops at the first mistake and quotes the line.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The place of a value: a source (file or variable), and for a file line and column, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(super) source: usize,
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value with its place. It has no `Debug`, because it may hold a secret.
pub(crate) struct Node {
    pub(super) place: Place,
    /// The text of the variable behind this value. A text key takes it unchanged.
    pub(super) raw: Option<Box<str>>,
    pub(super) value: TomlValue,
}

/// The types of TOML. A date is kept as a text that no key expects.
pub(crate) enum TomlValue {
    Text(String),
    Integer(i64),
    Float(f64),
    Flag(bool),
    Date(String),
    /// Of JSON only, and only in a list: a member that is null is left out.
    Null,
    List(Vec<Node>),
    Table(Table),
}

/// The entries of a table, by key.
pub(crate) type Table = BTreeMap<String, Node>;

/// A syntax error in TOML.
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) message: String,
}

impl Node {
    /// Makes an empty table at `place`.
    pub(super) fn empty_table(place: Place) -> Self {
        Self {
            place,
            raw: None,
            value: TomlValue::Table(Table::new()),
        }
    }

    /// Returns the type's name for an error message, with its article.
    pub(super) fn type_name(&self) -> &'static str {
        match self.value {
            TomlValue::Text(_) => "text",
            TomlValue::Integer(_) => "an integer",
            TomlValue::Float(_) => "a number with a fraction",
            TomlValue::Flag(_) => "a boolean",
            TomlValue::Date(_) => "a date",
            TomlValue::Null => "null",
            TomlValue::List(_) => "a list",
            TomlValue::Table(_) => "a table",
        }
    }

    /// Describes the value for a message without risk to secrets: scalars that cannot hold a credential are shown, values
    /// from environment variables never.
    pub(super) fn shown(&self) -> String {
        let harmless = |text: &str| {
            text.len() <= 48 && !text.contains('@') && !text.chars().any(char::is_control)
        };
        match &self.value {
            _ if self.raw.is_some() => self.type_name().to_owned(),
            TomlValue::Text(text) if text.is_empty() => "an empty text".to_owned(),
            TomlValue::Text(text) if harmless(text) => format!("{text:?}"),
            TomlValue::Text(text) => format!("text of {} characters", text.chars().count()),
            TomlValue::Integer(number) => number.to_string(),
            TomlValue::Float(number) => number.to_string(),
            TomlValue::Flag(flag) => flag.to_string(),
            TomlValue::Date(_) | TomlValue::Null | TomlValue::List(_) | TomlValue::Table(_) => {
                self.type_name().to_owned()
            }
        }
    }

    /// Returns the entries of a table.
    pub(super) fn as_table(&self) -> Option<&Table> {
        match &self.value {
            TomlValue::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Finds the node at a key path like `tenants.acme.routes[1].path`.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        let mut node = Some(self);
        for segment in path.split(['.', '[']) {
            node = node?.step(segment);
        }
        node
    }

    /// Finds the node at a key path, or else the deepest existing node on the way.
    pub(super) fn deepest(&self, path: &str) -> &Self {
        let mut node = self;
        for segment in path.split(['.', '[']) {
            match node.step(segment) {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    fn step(&self, segment: &str) -> Option<&Self> {
        match &self.value {
            TomlValue::Table(table) => table.get(segment),
            TomlValue::List(list) => list.get(segment.trim_end_matches(']').parse::<usize>().ok()?),
            _ => None,
        }
    }
}

/// Reads a whole document. A byte order mark and CRLF line ends are allowed.
pub(super) fn parse(text: &str, source: usize) -> Result<Node, Vec<SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = LineStarts::new(text, source);
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let table = lines.table(document.into_inner());
        return Ok(Node {
            place: lines.place(0),
            raw: None,
            value: TomlValue::Table(table),
        });
    }
    let mut mistakes: Vec<SyntaxError> = errors
        .iter()
        .map(|error| SyntaxError {
            place: lines.place(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', "; "),
        })
        .collect();
    // Further errors on the same line mostly follow from the first.
    mistakes.dedup_by_key(|mistake| mistake.place.line);
    Err(mistakes)
}

/// Reads the value of a variable as TOML if possible, else as text.
pub(super) fn parse_variable(raw: &str, source: usize) -> Node {
    let place = Place {
        source,
        line: 0,
        column: 0,
    };
    let lines = LineStarts {
        starts: Vec::new(),
        source,
    };
    let value = match DeValue::parse(raw) {
        Ok(value) => lines.value(value.into_inner()),
        Err(_) => TomlValue::Text(raw.to_owned()),
    };
    let mut node = Node {
        place,
        raw: None,
        value,
    };
    mark(&mut node, raw);
    node
}

/// Converts a JSON value. `place` counts the values, since tables keep the order of their source.
pub(super) fn from_json(value: &serde_json::Value, place: &mut Place) -> Node {
    use serde_json::Value;
    place.column += 1;
    let own = *place;
    let value = match value {
        Value::Null => TomlValue::Null,
        Value::Bool(flag) => TomlValue::Flag(*flag),
        Value::String(text) => TomlValue::Text(text.clone()),
        Value::Number(number) => match number.as_i64() {
            Some(number) => TomlValue::Integer(number),
            // As in TOML, an integer beyond 64 bits becomes a float that every integer key refuses.
            None if number.is_u64() => TomlValue::Float(f64::INFINITY),
            None => TomlValue::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::Array(items) => {
            TomlValue::List(items.iter().map(|item| from_json(item, place)).collect())
        }
        Value::Object(members) => {
            let set = members.iter().filter(|(_, value)| !value.is_null());
            let entries = set.map(|(name, value)| (name.clone(), from_json(value, place)));
            TomlValue::Table(entries.collect())
        }
    };
    Node {
        place: own,
        raw: None,
        value,
    }
}

/// Marks every value as read from a variable with the text `raw`.
fn mark(node: &mut Node, raw: &str) {
    node.raw = Some(raw.into());
    match &mut node.value {
        TomlValue::List(list) => list.iter_mut().for_each(|inner| mark(inner, "")),
        TomlValue::Table(table) => table.values_mut().for_each(|inner| mark(inner, "")),
        _ => {}
    }
}

/// Converts byte offsets to lines and columns. Without line starts the source has no lines.
struct LineStarts {
    starts: Vec<usize>,
    source: usize,
}

impl LineStarts {
    fn new(text: &str, source: usize) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { starts, source }
    }

    /// Converts an offset. Columns count bytes, which are characters before an ASCII key.
    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).map_or(offset, |at| self.starts[at]);
        Place {
            source: self.source,
            line,
            column: if line == 0 { 0 } else { offset - start + 1 },
        }
    }

    /// Converts a table. An entry's place is that of its key.
    fn table(&self, table: DeTable<'_>) -> Table {
        table
            .into_iter()
            .map(|(key, value)| {
                let place = self.place(key.span().start);
                let node = Node {
                    place,
                    raw: None,
                    value: self.value(value.into_inner()),
                };
                (key.into_inner().into_owned(), node)
            })
            .collect()
    }

    fn item(&self, value: Spanned<DeValue<'_>>) -> Node {
        Node {
            place: self.place(value.span().start),
            raw: None,
            value: self.value(value.into_inner()),
        }
    }

    fn value(&self, value: DeValue<'_>) -> TomlValue {
        match value {
            DeValue::String(text) => TomlValue::Text(text.into_owned()),
            // An integer beyond 64 bits becomes a float, which every integer key refuses.
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(TomlValue::Float(f64::INFINITY), TomlValue::Integer),
            DeValue::Float(number) => TomlValue::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => TomlValue::Flag(flag),
            DeValue::Datetime(date) => TomlValue::Date(date.to_string()),
            DeValue::Array(items) => {
                TomlValue::List(items.into_iter().map(|item| self.item(item)).collect())
            }
            DeValue::Table(table) => TomlValue::Table(self.table(table)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_places() {
        let Ok(root) = parse(
            "\u{feff}a = 1\r\n[b]\r\nc = [\"x\",\r\n  true]\r\n[[d]]\r\ne = 1\r\n",
            0,
        ) else {
            panic!("parses");
        };
        let at = |path: &str| {
            let place = root.deepest(path).place;
            (place.line, place.column)
        };
        assert_eq!(at("a"), (1, 1));
        assert_eq!(at("b.c"), (3, 1));
        assert_eq!(at("b.c[1]"), (4, 3));
        assert_eq!(at("d[0].e"), (6, 1));
        assert_eq!(at("b.none"), (2, 2));
    }

    #[test]
    fn syntax_errors_do_not_quote_the_text() {
        let secret = "hunter2-hunter2-hunter2";
        for text in [
            format!("a = \"{secret}\nb = 1"),
            format!("a = {secret}"),
            format!("signing_key = '{secret}"),
            format!("a = \"{secret}\\q\""),
            format!("[a]\nb = 1\nb = \"{secret}\""),
        ] {
            let Err(errors) = parse(&text, 0) else {
                panic!("{text} parses");
            };
            assert!(!errors.is_empty());
            for error in errors {
                assert!(!error.message.contains("hunter2"), "{}", error.message);
            }
        }
    }

    #[test]
    fn variables_are_toml_or_text() {
        assert!(matches!(
            parse_variable("12", 0).value,
            TomlValue::Integer(12)
        ));
        assert!(matches!(
            parse_variable("redis://h/0", 0).value,
            TomlValue::Text(_)
        ));
        assert!(matches!(
            parse_variable("[\"a\"]", 0).value,
            TomlValue::List(_)
        ));
        assert!(matches!(
            parse_variable("1\nb = 2", 0).value,
            TomlValue::Text(_)
        ));
    }
}
