//! The set of names that a template can make, as a nondeterministic automaton over bytes.

use super::{Template, TemplatePart};
use crate::config::{GroupNames, IdType};
use crate::routes::Converter;

/// The values that may occur in names.
#[derive(Clone, Copy, Debug)]
pub(super) struct AllowedValues {
    /// The allowed names of groups.
    pub(super) names: GroupNames,
    /// The type of `{user.id}`. `None`: any text.
    pub(super) user_id: Option<IdType>,
}

impl AllowedValues {
    fn allows(self, byte: u8) -> bool {
        match self.names {
            GroupNames::Channels => byte.is_ascii_alphanumeric() || b"-_.".contains(&byte),
            GroupNames::Any => true,
        }
    }
}

/// A set of bytes.
#[derive(Clone, Copy)]
pub(super) struct Bytes([u128; 2]);

impl Bytes {
    fn of(allowed: impl Fn(u8) -> bool) -> Self {
        let mut set = [0; 2];
        for byte in (0..=255).filter(|byte| allowed(*byte)) {
            set[usize::from(byte >> 7)] |= 1u128 << (byte & 127);
        }
        Self(set)
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 7)] >> (byte & 127) & 1 == 1
    }

    /// Returns a byte of both sets, preferably one that is readable in an example.
    pub(super) fn common(&self, other: &Self) -> Option<u8> {
        let readable = b"1a0x_-."
            .iter()
            .copied()
            .find(|b| self.has(*b) && other.has(*b));
        readable.or_else(|| (0..=255).find(|b| self.has(*b) && other.has(*b)))
    }
}

/// A step from one state to another.
#[derive(Clone, Copy)]
pub(super) struct Edge {
    /// The bytes that it consumes. `None`: it consumes none.
    pub(super) bytes: Option<Bytes>,
    /// The next state.
    pub(super) to: usize,
    /// The part of the template that makes the byte.
    pub(super) part: usize,
}

/// An automaton. The first state is the start, the last one accepts.
pub(super) struct Automaton {
    pub(super) states: Vec<Vec<Edge>>,
    /// The index of the current part of the template.
    part: usize,
}

impl Automaton {
    pub(super) fn new(template: &Template, values: AllowedValues) -> Self {
        let in_name = |byte: u8| values.allows(byte);
        let mut automaton = Self {
            states: vec![Vec::new()],
            part: 0,
        };
        for (index, part) in template.parts.iter().enumerate() {
            automaton.part = index;
            match part {
                TemplatePart::Literal(text) => automaton.literal(text.as_bytes(), in_name),
                // The template is not bound yet: any tenant's name.
                TemplatePart::Tenant => automaton.many(Bytes::of(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
                })),
                TemplatePart::User(name) if &**name == "id" => match values.user_id {
                    // No user has a negative id. With a sign, `{room}-{user.id}` could be read in two ways.
                    Some(IdType::Int) => automaton.int(),
                    Some(IdType::Uuid) => automaton.uuid(),
                    Some(IdType::Text) | None => automaton.any(Bytes::of(in_name)),
                },
                TemplatePart::User(_) | TemplatePart::Claim(_) => automaton.any(Bytes::of(in_name)),
                TemplatePart::Param(_, Some(Converter::Int)) => automaton.int(),
                TemplatePart::Param(_, Some(Converter::Uuid)) => automaton.uuid(),
                TemplatePart::Param(_, Some(Converter::Slug)) => automaton.many(Bytes::of(|b| {
                    b.is_ascii_alphanumeric() || b == b'-' || b == b'_'
                })),
                TemplatePart::Param(_, Some(Converter::Str)) => {
                    automaton.many(Bytes::of(|b| in_name(b) && b != b'/'));
                }
                TemplatePart::Param(_, Some(Converter::Path)) => {
                    automaton.many(Bytes::of(|b| in_name(b) && b != b'\n'));
                }
                TemplatePart::Param(_, None) => automaton.many(Bytes::of(in_name)),
            }
        }
        automaton
    }

    pub(super) fn end(&self) -> usize {
        self.states.len() - 1
    }

    fn state(&mut self) -> usize {
        self.states.push(Vec::new());
        self.end()
    }

    fn edge(&mut self, from: usize, bytes: Option<Bytes>, to: usize) {
        let part = self.part;
        self.states[from].push(Edge { bytes, to, part });
    }

    fn one(&mut self, set: Bytes) {
        let from = self.end();
        let to = self.state();
        self.edge(from, Some(set), to);
    }

    fn literal(&mut self, bytes: &[u8], in_name: impl Fn(u8) -> bool) {
        for byte in bytes {
            self.one(Bytes::of(|b| b == *byte && in_name(b)));
        }
    }

    /// Adds one or more bytes of the set.
    fn many(&mut self, set: Bytes) {
        self.one(set);
        let again = self.end();
        self.edge(again, Some(set), again);
        // A separate end state keeps the following parts out of the loop.
        let end = self.state();
        self.edge(again, None, end);
    }

    /// Adds any number of bytes of the set, or none.
    fn any(&mut self, set: Bytes) {
        let start = self.end();
        self.many(set);
        let end = self.end();
        self.edge(start, None, end);
    }

    /// Adds `0|[1-9][0-9]*`.
    fn int(&mut self) {
        let start = self.end();
        self.one(Bytes::of(|b| matches!(b, b'1'..=b'9')));
        let digits = self.end();
        self.edge(digits, Some(Bytes::of(|b| b.is_ascii_digit())), digits);
        let end = self.state();
        self.edge(digits, None, end);
        self.edge(start, Some(Bytes::of(|b| b == b'0')), end);
    }

    fn uuid(&mut self) {
        for position in 0..36 {
            match position {
                8 | 13 | 18 | 23 => self.one(Bytes::of(|b| b == b'-')),
                _ => self.one(Bytes::of(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))),
            }
        }
    }
}
