//! Macros that declare a table of the file once, and derive the struct, the reader, the defaults and the reference.

use super::document::Table;
use super::key::ReferenceKey;
use super::read::Reader;

/// A struct that is one table of the file.
pub(crate) trait Keyed: Default {
    /// The documentation of the struct, one line each.
    const ABOUT: &'static [&'static str];
    /// Every key that the table allows.
    const NAMES: &'static [&'static str];

    /// Reads every key. Missing and wrong ones get their defaults. The caller reports unknown keys.
    fn read_keys(table: &Table, reader: &mut Reader<'_>) -> Self;

    /// Returns the entries of the reference.
    fn keys() -> Vec<ReferenceKey>;
}

/// A set of words that a key may have.
pub(crate) trait Words: Copy + PartialEq + 'static {
    /// Every word with its value.
    const WORDS: &'static [(&'static str, Self)];
}

/// Declares a table: `pub FIELD: TYPE as FORM => DEFAULT,`, with `= "key"` after the field where the key has another
/// name; fields that are no key follow in `unkeyed { … }`.
macro_rules! table {
    (
        $(#[doc = $doc:literal])*
        #[derive($($derive:ident),*)]
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $field_doc:literal])*
                pub $field:ident $(= $key:literal)? : $ty:ty as $form:expr => $default:expr,
            )*
        }
        $(unkeyed {
            $(
                $(#[doc = $plain_doc:literal])*
                pub $plain:ident : $plain_ty:ty => $plain_default:expr,
            )*
        })?
    ) => {
        $(#[doc = $doc])*
        #[derive($($derive),*)]
        $vis struct $name {
            $($(#[doc = $field_doc])* pub $field: $ty,)*
            $($($(#[doc = $plain_doc])* pub $plain: $plain_ty,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($($plain: $plain_default,)*)?
                }
            }
        }

        impl $crate::config::table::Keyed for $name {
            const ABOUT: &'static [&'static str] = &[$($doc),*];
            const NAMES: &'static [&'static str] =
                &[$($crate::config::table::key_name!($field $($key)?)),*];

            fn read_keys(
                table: &$crate::config::document::Table,
                reader: &mut $crate::config::read::Reader<'_>,
            ) -> Self {
                Self {
                    $($field: reader
                        .key(table, $crate::config::table::key_name!($field $($key)?), &$form)
                        .unwrap_or_else(|| $default),)*
                    $($($plain: $plain_default,)*)?
                }
            }

            fn keys() -> Vec<$crate::config::key::ReferenceKey> {
                let defaults = Self::default();
                vec![$({
                    let form = $form;
                    $crate::config::key::ReferenceKey {
                        name: $crate::config::table::key_name!($field $($key)?),
                        meaning: &[$($field_doc),*],
                        expected: $crate::config::read::Form::expected(&form),
                        default: $crate::config::read::Form::print(&form, &defaults.$field),
                        inner: $crate::config::read::Form::inner(&form),
                    }
                }),*]
            }
        }
    };
}

/// Returns the name of a key: its own, or else that of the field.
macro_rules! key_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// Declares an enum whose variants are words in the file.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)*
        }
    ) => {
        $(#[$meta])*
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl $crate::config::table::Words for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),*];
        }
    };
}

pub(crate) use {key_name, table, words};
