//! Stores JSON objects that have the same names: the names are stored once, and each object stores its values.
//!
//! Each open socket holds its token's claims and its user's columns. The names are most of the text and are the same for
//! all sockets of a tenant. Packed, a user of Django's `auth_user` takes 125 bytes instead of 240.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use parking_lot::Mutex;

/// The separator of names and of values. JSON escapes it, so no name or value holds it.
const BETWEEN: char = '\0';
/// The most shapes at a time. Objects of other shapes are stored unpacked.
const MAX_SHAPES: usize = 1024;
/// The most bytes of a shape's names. Objects with more are rarely alike, and are stored unpacked.
const MAX_NAMES: usize = 4096;

thread_local! {
    /// The names and values of the object that is being packed.
    static SCRATCH: RefCell<(String, String)> = RefCell::default();
}

/// A JSON object as compact text.
#[derive(Clone, PartialEq, Eq)]
pub struct PackedObject {
    /// The names as JSON text, with quotes. `None` if `rest` is the whole text.
    names: Option<Shape>,
    /// The values as JSON text.
    rest: Box<str>,
}

/// The names that objects with the same names in the same order share. `Arc<Box<str>>` takes 8 bytes in each object;
/// `Arc<str>` would take 16.
type Shape = Arc<Box<str>>;

impl PackedObject {
    /// Packs the text of an object. [`PackedObject::text`] returns the same text, also if it is no object.
    pub fn new(text: &str) -> Self {
        // Each handshake packs two objects, so the parts are collected in buffers of the thread.
        SCRATCH.with_borrow_mut(|(names, values)| {
            let packed = split(text, names, values).and_then(|()| shape_of(names));
            let rest = if packed.is_some() { values } else { text };
            Self {
                names: packed,
                rest: rest.into(),
            }
        })
    }

    /// Returns the text of the object.
    pub fn text(&self) -> Cow<'_, str> {
        let Some(names) = &self.names else {
            return Cow::Borrowed(&self.rest);
        };
        let mut text = String::with_capacity(names.len() + self.rest.len() + 8);
        self.write(&mut text);
        Cow::Owned(text)
    }

    /// Appends the text of the object.
    pub fn write(&self, out: &mut String) {
        let Some(names) = &self.names else {
            return out.push_str(&self.rest);
        };
        let mut before = '{';
        for (name, value) in names.split(BETWEEN).zip(self.rest.split(BETWEEN)) {
            out.push(before);
            out.push_str(name);
            out.push(':');
            out.push_str(value);
            before = ',';
        }
        out.push('}');
    }

    /// Returns the bytes of the object without its shared names.
    pub fn own_bytes(&self) -> usize {
        self.rest.len()
    }
}

impl From<&str> for PackedObject {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for PackedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// Splits an object without white space between its parts into `names` and `values`, each joined by [`BETWEEN`]. Returns
/// `None` for any other text. It finds only the ends of the parts and does not check that they are valid JSON.
fn split(text: &str, names: &mut String, values: &mut String) -> Option<()> {
    names.clear();
    values.clear();
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    if inner.is_empty() || inner.contains(BETWEEN) {
        return None;
    }
    let mut rest = inner;
    loop {
        let name = rest.get(..string_end(rest)?)?;
        rest = rest[name.len()..].strip_prefix(':')?;
        let value = rest.get(..value_end(rest)?)?;
        names.push_str(name);
        values.push_str(value);
        rest = &rest[value.len()..];
        if rest.is_empty() {
            return (names.len() <= MAX_NAMES).then_some(());
        }
        rest = rest.strip_prefix(',')?;
        names.push(BETWEEN);
        values.push(BETWEEN);
    }
}

/// Returns the length of the string at the start of `text`.
fn string_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = usize::from(*bytes.first()? == b'"');
    if at == 0 {
        return None;
    }
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the length of the value at the start of `text`, which ends before a comma of its object or with the text.
fn value_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at += string_end(&text[at..])? - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => break,
            b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return None,
            _ => {}
        }
        at += 1;
    }
    (at > 0 && depth == 0).then_some(at)
}

/// The shapes in use, found by their text.
#[derive(Default)]
struct Shapes {
    table: HashTable<Shape>,
    hasher: RandomState,
}

/// Returns the shared copy of these names; `None` if there are [`MAX_SHAPES`] others in use.
fn shape_of(names: &str) -> Option<Shape> {
    static SHAPES: OnceLock<Mutex<Shapes>> = OnceLock::new();
    let Shapes { table, hasher } = &mut *SHAPES.get_or_init(Mutex::default).lock();
    let hash = hasher.hash_one(names);
    if let Some(known) = table.find(hash, |shape| ***shape == *names) {
        return Some(known.clone());
    }
    if table.len() >= MAX_SHAPES {
        table.retain(|shape| Arc::strong_count(shape) > 1);
        if table.len() >= MAX_SHAPES {
            return None;
        }
    }
    let shape = Shape::new(names.into());
    table.insert_unique(hash, shape.clone(), |shape| hasher.hash_one(&***shape));
    Some(shape)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_comes_back_as_it_was() {
        for (text, packed) in [
            (
                r#"{"id":7,"name":"a\"b\\","more":{"x":[1,{"y":"}"}]}}"#,
                true,
            ),
            (r#"{"a":"é,:{}[]\u0000","b":null}"#, true),
            (r#"{"a":1,"a":2}"#, true),
            (r#"{"":""}"#, true),
            ("{}", false),
            (r#"{ "a": 1 }"#, false),
            (r#"{"a": 1}"#, false),
            ("{\"a\":1\n}", false),
            ("[1]", false),
            ("", false),
            (r#"{"a"}"#, false),
            (r#"{"a":}"#, false),
            (r#"{"a":1,}"#, false),
            (r#"{"a":"x}"#, false),
            (r#"{"a\"}"#, false),
        ] {
            let object = PackedObject::new(text);
            assert_eq!(object.text(), text);
            assert_eq!(object.names.is_some(), packed, "{text}");
        }
    }

    #[test]
    fn objects_of_one_shape_share_their_names() {
        let [a, b] = [r#"{"id":1,"n":"a"}"#, r#"{"id":2,"n":"b"}"#].map(PackedObject::new);
        assert!(Arc::ptr_eq(
            a.names.as_ref().unwrap(),
            b.names.as_ref().unwrap()
        ));
        assert_eq!(a.own_bytes(), 5);
        assert_eq!(size_of::<PackedObject>(), 24);
    }

    #[test]
    fn shapes_that_no_object_has_are_forgotten() {
        let kept = PackedObject::new(r#"{"kept":1}"#);
        for n in 0..2 * MAX_SHAPES {
            let text = format!(r#"{{"name{n}":1}}"#);
            assert_eq!(PackedObject::new(&text).text(), text);
        }
        let again = PackedObject::new(r#"{"kept":2}"#);
        assert!(Arc::ptr_eq(
            kept.names.as_ref().unwrap(),
            again.names.as_ref().unwrap()
        ));
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in r#"\{?("[a-z"\\,:]{0,4}"?:?["0-9\[\]{}, ]{0,6},?){0,4}\}?"#) {
            let object = PackedObject::new(&text);
            prop_assert_eq!(object.text(), text);
        }

        #[test]
        fn any_object_comes_back(members in prop::collection::btree_map(".{0,8}", ".{0,12}", 0..8)) {
            let text = serde_json::to_string(&members).unwrap();
            let object = PackedObject::new(&text);
            prop_assert_eq!(object.text(), text);
        }
    }
}
