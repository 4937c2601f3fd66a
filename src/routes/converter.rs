//! The types of path parameters, and their values.

use crate::python::MAX_STR_DIGITS;

/// The type of a path parameter: `django.urls.converters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Converter {
    /// `[^/]+`
    Str,
    /// `[0-9]+`; the value has no leading zeroes.
    Int,
    /// `[-a-zA-Z0-9_]+`
    Slug,
    /// A hyphenated UUID in lower case.
    Uuid,
    /// `.+`: any text without line feeds; slashes are allowed.
    Path,
}

impl Converter {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "str" => Self::Str,
            "int" => Self::Int,
            "slug" => Self::Slug,
            "uuid" => Self::Uuid,
            "path" => Self::Path,
            _ => return None,
        })
    }

    /// Returns true if a value may contain `byte`. For UTF-8 text this is equal to a test by characters, because the
    /// excluded characters are ASCII.
    pub(super) fn takes(self, byte: u8) -> bool {
        match self {
            Self::Str => byte != b'/',
            Self::Int => byte.is_ascii_digit(),
            Self::Slug => byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_',
            Self::Uuid => matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'),
            Self::Path => byte != b'\n',
        }
    }

    /// Returns one of the shortest texts that match; it has characters that every name may have.
    pub(super) fn shortest(self) -> &'static str {
        match self {
            Self::Str | Self::Int | Self::Slug | Self::Path => "0",
            Self::Uuid => "00000000-0000-0000-0000-000000000000",
        }
    }

    pub(super) fn python_regex(self) -> &'static str {
        match self {
            Self::Str => "[^/]+",
            Self::Int => "[0-9]+",
            Self::Slug => "[-a-zA-Z0-9_]+",
            Self::Uuid => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            Self::Path => ".+",
        }
    }

    /// Converts a text, as Django's `to_python`; `None` where that raises `ValueError`.
    pub(super) fn value(self, text: &str) -> Option<PathValue> {
        Some(match self {
            Self::Int if text.len() > MAX_STR_DIGITS => return None,
            Self::Int => PathValue::Int(canonical_int(text).into()),
            Self::Uuid => PathValue::Uuid(text.into()),
            Self::Str | Self::Slug | Self::Path => PathValue::Text(text.into()),
        })
    }
}

/// Removes leading zeroes: `007` becomes `7`, and `000` becomes `0`.
fn canonical_int(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// The converted value of a path parameter, in the form of Python's `str()`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathValue {
    /// A decimal number of any size, without sign and leading zeroes.
    Int(Box<str>),
    /// A hyphenated UUID in lower case.
    Uuid(Box<str>),
    /// Any text.
    Text(Box<str>),
}

impl PathValue {
    /// Returns the value in the form of Python's `str()`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Int(text) | Self::Uuid(text) | Self::Text(text) => text,
        }
    }
}
