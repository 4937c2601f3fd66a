//! The forms of a value. Each form reads a value, describes the expected input, and prints a value as TOML.

use std::fmt;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::document::{Node, TomlValue};
use super::read::{Form, Reader};
use super::table::Words;
use super::units;

/// Quotes a text for TOML.
pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Text that is not empty.
pub(super) struct Text;

impl Form for Text {
    type Value = String;

    fn expected(&self) -> String {
        "text".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<String> {
        match (&node.value, &node.raw) {
            (TomlValue::Text(text), _) if !text.is_empty() => Some(text.clone()),
            (TomlValue::Text(_), _) | (_, None) => reader.wrong(node, self, ""),
            // A variable's `123` or `true` was parsed as TOML, but a text key takes it as text.
            (_, Some(raw)) if !raw.is_empty() => Some(raw.to_string()),
            (_, Some(_)) => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &String) -> Option<String> {
        Some(quote(value))
    }
}

/// `true` or `false`.
pub(super) struct Flag;

impl Form for Flag {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<bool> {
        match node.value {
            TomlValue::Flag(flag) => Some(flag),
            TomlValue::Text(_) => reader.wrong(node, self, "write it without quotes"),
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// An integer within bounds.
pub(super) struct Count<T> {
    least: i64,
    most: i64,
    kind: PhantomData<T>,
}

/// An integer from `least` on.
pub(super) fn count<T>(least: i64) -> Count<T> {
    within(least, i64::from(u32::MAX))
}

/// An integer within bounds, both included.
pub(super) fn within<T>(least: i64, most: i64) -> Count<T> {
    Count {
        least,
        most,
        kind: PhantomData,
    }
}

impl<T: TryFrom<i64> + fmt::Display> Form for Count<T> {
    type Value = T;

    fn expected(&self) -> String {
        if self.most == i64::from(u32::MAX) {
            format!("an integer, at least {}", self.least)
        } else {
            format!("an integer from {} to {}", self.least, self.most)
        }
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        match node.value {
            TomlValue::Integer(number) if (self.least..=self.most).contains(&number) => {
                T::try_from(number).ok()
            }
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &T) -> Option<String> {
        Some(value.to_string())
    }
}

/// A duration with its unit, at least the given one.
pub(super) struct Span(pub(super) Duration);

/// A duration that may be zero.
pub(super) const ANY_SPAN: Span = Span(Duration::ZERO);
/// A duration that is not zero.
pub(super) const SOME_SPAN: Span = Span(Duration::from_millis(1));
/// A duration of at least a second: Redis, for example, takes whole seconds.
pub(super) const SECONDS: Span = Span(Duration::from_secs(1));

/// Longest duration: ten years. A longer one is a mistake, and could overflow a clock.
const LONGEST: Duration = Duration::from_secs(3_653 * 86_400);

impl Form for Span {
    type Value = Duration;

    fn expected(&self) -> String {
        match self.0 {
            Duration::ZERO => "a duration such as \"10s\"".to_owned(),
            least => format!(
                "a duration such as \"10s\", at least {}",
                units::print_duration(least)
            ),
        }
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Duration> {
        let read = match &node.value {
            TomlValue::Text(text) => units::parse_duration(text),
            _ => None,
        };
        match read {
            Some(duration) if duration >= self.0 && duration <= LONGEST => Some(duration),
            Some(duration) if duration > LONGEST => reader.wrong(node, self, "at most ten years"),
            Some(_) => reader.wrong(node, self, ""),
            None => reader.wrong(node, self, "write digits and a unit: ms, s, m, h or d"),
        }
    }

    fn print(&self, value: &Duration) -> Option<String> {
        Some(quote(&units::print_duration(*value)))
    }
}

/// A size with its unit, at least the given number of bytes.
pub(super) struct Size(pub(super) u64);

impl Form for Size {
    type Value = u64;

    fn expected(&self) -> String {
        match self.0 {
            0 => "a size such as \"64KiB\"".to_owned(),
            least => format!(
                "a size such as \"64KiB\", at least {}",
                units::print_size(least)
            ),
        }
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<u64> {
        let read = match &node.value {
            TomlValue::Text(text) => units::parse_size(text),
            // 0 needs no unit: it switches a limit off.
            TomlValue::Integer(0) => Some(0),
            _ => None,
        };
        match read {
            Some(bytes) if bytes >= self.0 => Some(bytes),
            Some(_) => reader.wrong(node, self, ""),
            None => reader.wrong(
                node,
                self,
                "write digits and a unit: B, KiB, MiB, GiB, KB, MB or GB",
            ),
        }
    }

    fn print(&self, value: &u64) -> Option<String> {
        Some(quote(&units::print_size(*value)))
    }
}

/// A value in another form, or the word that switches it off: `"off"` or `false`.
pub(super) struct Or<F> {
    word: &'static str,
    form: F,
}

/// Reads `"off"` as `None`.
pub(super) fn or_off<F>(form: F) -> Or<F> {
    Or {
        word: "\"off\"",
        form,
    }
}

/// Reads `false` as `None`.
pub(super) fn or_false<F>(form: F) -> Or<F> {
    Or {
        word: "false",
        form,
    }
}

impl<F: Form> Form for Or<F> {
    type Value = Option<F::Value>;

    fn expected(&self) -> String {
        format!("{}, or {}", self.form.expected(), self.word)
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        let off = match &node.value {
            TomlValue::Text(text) => self.word == quote(text),
            TomlValue::Flag(flag) => self.word == flag.to_string(),
            _ => false,
        };
        if off {
            return Some(None);
        }
        if matches!(node.value, TomlValue::Flag(_)) {
            return reader.wrong(node, self, "");
        }
        self.form.read(node, reader).map(Some)
    }

    fn print(&self, value: &Self::Value) -> Option<String> {
        match value {
            Some(value) => self.form.print(value),
            None => Some(self.word.to_owned()),
        }
    }
}

/// One of a set of words.
pub(super) struct Choice<T>(PhantomData<T>);

/// One of the words of `T`.
pub(super) fn choice<T: Words>() -> Choice<T> {
    Choice(PhantomData)
}

impl<T: Words> Form for Choice<T> {
    type Value = T;

    fn expected(&self) -> String {
        let words: Vec<String> = T::WORDS.iter().map(|(word, _)| quote(word)).collect();
        words.join(" or ")
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        let TomlValue::Text(text) = &node.value else {
            return reader.wrong(node, self, "");
        };
        match T::WORDS.iter().find(|(word, _)| word == text) {
            Some((_, value)) => Some(*value),
            None => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &T) -> Option<String> {
        T::WORDS
            .iter()
            .find(|(_, known)| known == value)
            .map(|(word, _)| quote(word))
    }
}

/// Reads the address of a listener: an IP address or `localhost`, and a port. `localhost` is 127.0.0.1, since a listener
/// has one address.
pub fn parse_address(text: &str) -> Option<SocketAddr> {
    let local = || {
        let port = text.strip_prefix("localhost:")?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?)))
    };
    text.parse().ok().or_else(local)
}

/// The address of a listener.
pub(super) struct Address;

impl Form for Address {
    type Value = SocketAddr;

    fn expected(&self) -> String {
        "an address and a port such as \"127.0.0.1:9000\"".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<SocketAddr> {
        let read = match &node.value {
            TomlValue::Text(text) => parse_address(text),
            _ => None,
        };
        match read {
            Some(address) => Some(address),
            None => reader.wrong(
                node,
                self,
                "an IP address or localhost, no other name; IPv6 as \"[::1]:9000\"",
            ),
        }
    }

    fn print(&self, value: &SocketAddr) -> Option<String> {
        Some(quote(&value.to_string()))
    }
}

/// A text that `T::from_str` reads.
pub(super) struct Parsed<T> {
    expected: &'static str,
    kind: PhantomData<T>,
}

/// Makes the form of a text that `T::from_str` reads.
pub(super) fn parsed<T>(expected: &'static str) -> Parsed<T> {
    Parsed {
        expected,
        kind: PhantomData,
    }
}

impl<T: std::str::FromStr + fmt::Display> Form for Parsed<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        let read = match &node.value {
            TomlValue::Text(text) => text.parse().ok(),
            _ => None,
        };
        read.or_else(|| reader.wrong(node, self, ""))
    }

    fn print(&self, value: &T) -> Option<String> {
        Some(quote(&value.to_string()))
    }
}
