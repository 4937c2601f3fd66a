//! JSON as Python's `json` reads and writes it, and as RFC 8259 defines it: one grammar with two sets of rules.
//!
//! Python's reader takes more than the RFC: a byte order mark, UTF-16 and UTF-32, bare `NaN` and `Infinity`, numbers beyond a
//! double, lone surrogates. Integers stay exact at any size and keys keep their order.
//!
//! Not serde_json, which refuses all of that; its `arbitrary_precision` would keep the integers, but changes its numbers
//! everywhere in the process. What is made of a document is the caller's ([`Build`]): a token's claims and an event differ in
//! what they can hold.

use std::hash::Hash;

pub use encoding::{Decoded, decode};
pub use write::{write_finite, write_number, write_text};

mod encoding;
mod reader;
mod write;

/// Why bytes are no document. None of these quotes the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// Deeper than [`Bounds::depth`].
    TooDeep,
    /// More than [`Bounds::values`].
    TooManyValues,
    /// It ends too early.
    Truncated,
    /// Something follows the value.
    TrailingBytes,
    /// Text that is in no encoding, or has a lone surrogate where none can be held.
    NotUnicode,
    /// A number that cannot be held.
    NumberRange,
    /// Anything else that the grammar does not know.
    Syntax,
}

/// How much a document may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Arrays and objects inside each other.
    pub depth: usize,
    /// Values, each array and object among them.
    pub values: usize,
}

/// The rules that a document is held to.
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
    /// The text; a lone surrogate, which Python's text can hold, is U+FFFD here.
    pub text: Box<str>,
    /// Whether it has a lone surrogate.
    pub broken: bool,
}

/// Makes values out of a document, from the inside out.
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
    /// [`JsonError::NotUnicode`] for one that cannot be held.
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

/// Reads one document of text that [`decode`] made of its bytes.
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
