//! Forms made of other forms: optional values, lists, tables.

use std::marker::PhantomData;

use super::document::{Node, TomlValue};
use super::form::{Text, quote};
use super::key::Inner;
use super::read::{Form, Reader};
use super::table::Keyed;

/// A key that may be left out.
pub(super) struct Optional<F>(pub(super) F);

impl<F: Form> Form for Optional<F> {
    type Value = Option<F::Value>;

    fn expected(&self) -> String {
        self.0.expected()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        self.0.read(node, reader).map(Some)
    }

    fn print(&self, value: &Self::Value) -> Option<String> {
        value.as_ref().and_then(|value| self.0.print(value))
    }

    fn inner(&self) -> Inner {
        match self.0.inner() {
            Inner::Table(about, keys) => Inner::Optional(about, keys),
            other => other,
        }
    }
}

/// A list.
pub(super) struct List<F>(pub(super) F);

impl<F: Form> Form for List<F> {
    type Value = Vec<F::Value>;

    fn expected(&self) -> String {
        format!("a list, each {}", self.0.expected())
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        let TomlValue::List(items) = &node.value else {
            return reader.wrong_type(node, self, "write [ … ]");
        };
        let mut read: Vec<F::Value> = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                reader.below(format!("[{index}]"), |reader| self.0.read(item, reader))
            })
            .collect();
        // Thousands of tenants are kept, and four routes take a kilobyte more than one.
        read.shrink_to_fit();
        // A wrong item was reported. Without it the list would mean something else, so there is no list.
        (read.len() == items.len()).then_some(read)
    }

    fn print(&self, value: &Self::Value) -> Option<String> {
        let items: Vec<String> = value.iter().filter_map(|item| self.0.print(item)).collect();
        Some(format!("[{}]", items.join(", ")))
    }

    fn inner(&self) -> Inner {
        match self.0.inner() {
            Inner::Table(about, keys) => Inner::List(about, keys),
            other => other,
        }
    }
}

/// A text or a list of texts.
pub(super) struct OneOrMore;

impl Form for OneOrMore {
    type Value = Vec<String>;

    fn expected(&self) -> String {
        "text or a list of text".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        match node.value {
            TomlValue::List(_) => List(Text).read(node, reader),
            TomlValue::Table(_) => reader.wrong_type(node, self, ""),
            _ => Text.read(node, reader).map(|text| vec![text]),
        }
    }

    fn print(&self, value: &Self::Value) -> Option<String> {
        List(Text).print(value)
    }
}

/// A table that a struct reads.
pub(super) struct Nested<T>(PhantomData<T>);

/// The table of `T`.
pub(super) fn nested<T: Keyed>() -> Nested<T> {
    Nested(PhantomData)
}

impl<T: Keyed> Form for Nested<T> {
    type Value = T;

    fn expected(&self) -> String {
        "a table".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        reader.refuse_unknown(table, T::NAMES);
        Some(T::read_keys(table, reader))
    }

    fn print(&self, _: &T) -> Option<String> {
        None
    }

    fn inner(&self) -> Inner {
        Inner::Table(T::ABOUT, T::keys())
    }
}

/// A table from names of the operator's choice to values, as pairs in the order of the file.
pub(super) struct Map<F>(pub(super) F);

impl<F: Form> Form for Map<F> {
    type Value = Vec<(String, F::Value)>;

    fn expected(&self) -> String {
        format!("a table, each value {}", self.0.expected())
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(_, node)| node.place);
        let read = entries.into_iter().filter_map(|(name, node)| {
            let read = |reader: &mut Reader<'_>| self.0.read(node, reader);
            Some((name.clone(), reader.below(name, read)?))
        });
        Some(read.collect())
    }

    fn print(&self, value: &Self::Value) -> Option<String> {
        let entries: Vec<String> = value
            .iter()
            .filter_map(|(name, value)| Some(format!("{} = {}", quote(name), self.0.print(value)?)))
            .collect();
        Some(if entries.is_empty() {
            "{}".to_owned()
        } else {
            format!("{{ {} }}", entries.join(", "))
        })
    }
}
