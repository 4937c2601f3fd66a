//! JSON as Python's `json` reads and writes it, and as RFC 8259 defines it: one grammar with two sets of rules.
//!
//! Python's reader takes more than the RFC: a byte order mark, UTF-16 and UTF-32, bare `NaN` and `Infinity`, numbers beyond
//! a double, lone surrogates. Integers stay exact at any size and keys keep their order.
//!
//! It replaces serde_json, which refuses all of that. Its feature `arbitrary_precision` would keep the integers, but changes
//! the numbers of serde_json everywhere in the process. The caller builds the values ([`Build`]): a token's claims and an
//! event hold different ones.

use std::hash::Hash;

pub use encoding::{Decoded, decode};
pub use write::{write_finite, write_number, write_text};

mod encoding;
mod reader;
mod write;

/// The reason why bytes are not a document. No text quotes the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// The document nests deeper than [`Bounds::depth`].
    TooDeep,
    /// The document has more values than [`Bounds::values`].
    TooManyValues,
    /// The document ends too early.
    Truncated,
    /// Something follows the value.
    TrailingBytes,
    /// The bytes are in no known encoding, or a text has a lone surrogate that the caller does not take.
    NotUnicode,
    /// A number is beyond the range that is allowed.
    NumberRange,
    /// The document breaks the grammar.
    Syntax,
}

/// The size limits of a document.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The largest depth of nested arrays and objects.
    pub depth: usize,
    /// The largest number of values; each array and object counts as one.
    pub values: usize,
}

/// The rules for a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// `json.loads`.
    Python,
    /// RFC 8259: no `NaN`, no `Infinity`, no number beyond a double.
    Rfc8259,
}

/// A text of a document.
#[derive(Clone, Debug)]
pub struct JsonText {
    /// The text, with U+FFFD in place of each lone surrogate, which only Python's text can hold.
    pub text: Box<str>,
    /// True if it had a lone surrogate.
    pub broken: bool,
}

/// Builds values from a document, the inner ones first.
pub trait Build {
    /// A value.
    type Value;
    /// The key of an object.
    type Key: Eq + Hash + Clone;

    /// `null`.
    fn null(&mut self) -> Self::Value;

    /// `true`, `false`.
    fn bool(&mut self, truth: bool) -> Self::Value;

    /// A number without fraction and exponent: decimal digits with `-` in front of negative ones, never `-0`.
    fn int(&mut self, digits: &str) -> Self::Value;

    /// Any other number; under Python's rules also NaN and the infinities.
    fn float(&mut self, number: f64) -> Self::Value;

    /// A text.
    ///
    /// # Errors
    /// [`JsonError::NotUnicode`] for a text that the value cannot hold.
    fn text(&mut self, text: JsonText) -> Result<Self::Value, JsonError>;

    /// A key.
    ///
    /// # Errors
    /// As for [`Build::text`].
    fn key(&mut self, text: JsonText) -> Result<Self::Key, JsonError>;

    /// An array.
    fn array(&mut self, items: Vec<Self::Value>) -> Self::Value;

    /// An object.
    fn object(&mut self, members: super::Dict<Self::Key, Self::Value>) -> Self::Value;
}

/// Reads one document from decoded text.
///
/// # Errors
/// [`JsonError`]
pub fn read<B: Build>(
    decoded: &Decoded<'_>,
    rules: Rules,
    bounds: Bounds,
    build: &mut B,
) -> Result<B::Value, JsonError> {
    reader::JsonReader::new(decoded, rules, bounds, build).document()
}
