//! Matches a path against one route, in time linear in the path.

use std::sync::Arc;

use super::converter::Converter;
use super::{PathParams, Route, RoutePart};

impl Route {
    /// Returns true if all of a name matches.
    pub fn takes(&self, name: &str) -> bool {
        self.matches(name).is_some()
    }

    /// Returns the parameters of `path` (decoded, without its first slash) if all of it matches.
    pub(super) fn matches(&self, path: &str) -> Option<PathParams> {
        if let Some(RoutePart::Literal(first)) = self.parts.first()
            && !path.starts_with(&**first)
        {
            return None;
        }
        let reach = Reach::new(&self.parts, path);
        let mut at = 0;
        let mut params = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                RoutePart::Literal(text) => at += text.len(),
                RoutePart::Param(name, converter) => {
                    let end = reach.longest(index, *converter, at)?;
                    params.push((Arc::clone(name), converter.value(&path[at..end])?));
                    at = end;
                }
            }
        }
        reach
            .can(self.parts.len(), at)
            .then(|| PathParams(params.into()))
    }
}

/// The positions of a path from which the parts from index `i` on match the whole rest.
///
/// The table is filled from the end of the path. A match therefore takes time in proportion to parts times path length,
/// even for a route with several parameters, for which backtracking could take far longer.
struct Reach<'a> {
    path: &'a str,
    /// `(parts + 1) * (path.len() + 1)` entries, one row for each part.
    table: Vec<bool>,
}

impl<'a> Reach<'a> {
    fn new(parts: &[RoutePart], path: &'a str) -> Self {
        let width = path.len() + 1;
        let mut reach = Self {
            path,
            table: vec![false; (parts.len() + 1) * width],
        };
        reach.table[parts.len() * width + path.len()] = true;
        for (index, part) in parts.iter().enumerate().rev() {
            match part {
                RoutePart::Literal(text) => {
                    for at in 0..=path.len().saturating_sub(text.len()) {
                        reach.table[index * width + at] = path.as_bytes()[at..]
                            .starts_with(text.as_bytes())
                            && reach.can(index + 1, at + text.len());
                    }
                }
                RoutePart::Param(_, Converter::Uuid) => {
                    for at in 0..path.len() {
                        reach.table[index * width + at] =
                            uuid_at(path, at) && reach.can(index + 1, at + UUID_LENGTH);
                    }
                }
                RoutePart::Param(_, converter) => {
                    for at in (0..path.len()).rev() {
                        // A value has at least one byte. It ends here, or goes on with the next byte.
                        reach.table[index * width + at] = converter.takes(path.as_bytes()[at])
                            && (reach.can(index + 1, at + 1) && path.is_char_boundary(at + 1)
                                || reach.can(index, at + 1));
                    }
                }
            }
        }
        reach
    }

    fn can(&self, part: usize, at: usize) -> bool {
        at <= self.path.len() && self.table[part * (self.path.len() + 1) + at]
    }

    /// Returns the end of the longest value at `at` after which the rest still matches.
    fn longest(&self, part: usize, converter: Converter, at: usize) -> Option<usize> {
        if !self.can(part, at) {
            return None;
        }
        if converter == Converter::Uuid {
            return Some(at + UUID_LENGTH);
        }
        let run = self.path.as_bytes()[at..]
            .iter()
            .take_while(|byte| converter.takes(**byte))
            .count();
        (at + 1..=at + run)
            .rev()
            .find(|end| self.path.is_char_boundary(*end) && self.can(part + 1, *end))
    }
}

const UUID_LENGTH: usize = 36;

fn uuid_at(path: &str, at: usize) -> bool {
    path.as_bytes()
        .get(at..at + UUID_LENGTH)
        .is_some_and(|bytes| {
            bytes.iter().enumerate().all(|(i, byte)| match i {
                8 | 13 | 18 | 23 => *byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            })
        })
}
