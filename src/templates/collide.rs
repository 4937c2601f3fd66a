//! Whether two templates can make the same group name, decided by intersecting their languages.
//!
//! Each template becomes a small nondeterministic automaton over bytes; a breadth-first walk over the pairs of
//! their states finds the shortest name that both make, or that there is none.

use std::collections::{HashMap, VecDeque};

use super::{Template, TemplatePart};
use crate::config::GroupNames;
use crate::routes::Converter;

/// Channels' longest group name, in characters.
const MAX_NAME: usize = 99;

/// A template with path parameters and one with user values that can make the same name: a client could choose a
/// path that puts it into another user's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collision {
    /// The position of the template with path parameters.
    pub path: usize,
    /// The position of the template with `{user.…}` or `{claims.…}`.
    pub user: usize,
    /// A name that both make.
    pub example: String,
}

/// Every collision among the bound templates of one tenant. The same template in several routes is one template.
pub fn collisions(templates: &[Template], names: GroupNames) -> Vec<Collision> {
    let mut found = Vec::new();
    for (path, chosen) in templates.iter().enumerate() {
        for (user, fixed) in templates.iter().enumerate() {
            if !chosen.has_path_values() || !fixed.has_user_values() || chosen.text == fixed.text {
                continue;
            }
            if let Some(example) = templates_collide(chosen, fixed, names) {
                found.push(Collision {
                    path,
                    user,
                    example,
                });
            }
        }
    }
    found
}

/// A state of one template's automaton and a state of the other's.
type Pair = (usize, usize);

/// A valid group name that both templates can make, if there is one. Values of users and claims count as any text,
/// path parameters as what their converter lets through (any text before [`Template::bind`]).
pub fn templates_collide(a: &Template, b: &Template, names: GroupNames) -> Option<String> {
    let (a, b) = (Automaton::new(a, names), Automaton::new(b, names));
    let start = (0, 0);
    let mut origin: HashMap<Pair, (Pair, Option<u8>)> = HashMap::new();
    let mut queue = VecDeque::from([(start, 0usize)]);
    let mut done = std::collections::HashSet::new();
    while let Some((pair, length)) = queue.pop_front() {
        if !done.insert(pair) {
            continue;
        }
        if pair == (a.end(), b.end()) && length > 0 {
            return Some(spell(&origin, pair));
        }
        if names == GroupNames::Channels && length > MAX_NAME {
            return None;
        }
        // Steps without a byte come first, so that the walk meets states in the order of their distance.
        for (next, byte) in steps(&a, &b, pair) {
            if done.contains(&next) {
                continue;
            }
            match byte {
                None => {
                    origin.insert(next, (pair, None));
                    queue.push_front((next, length));
                }
                Some(_) => {
                    origin.entry(next).or_insert((pair, byte));
                    queue.push_back((next, length + 1));
                }
            }
        }
    }
    None
}

fn steps(a: &Automaton, b: &Automaton, (x, y): Pair) -> Vec<(Pair, Option<u8>)> {
    let mut steps = Vec::new();
    for (left, to_x) in &a.states[x] {
        for (right, to_y) in &b.states[y] {
            if let (Some(left), Some(right)) = (left, right)
                && let Some(byte) = left.common(right)
            {
                steps.push(((*to_x, *to_y), Some(byte)));
            }
        }
    }
    let free = |edge: &&Edge| edge.0.is_none();
    steps.extend(a.states[x].iter().filter(free).map(|e| ((e.1, y), None)));
    steps.extend(b.states[y].iter().filter(free).map(|e| ((x, e.1), None)));
    steps
}

fn spell(origin: &HashMap<Pair, (Pair, Option<u8>)>, mut pair: Pair) -> String {
    let mut bytes = Vec::new();
    while let Some((from, byte)) = origin.get(&pair) {
        bytes.extend(byte);
        pair = *from;
    }
    bytes.reverse();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A set of bytes.
#[derive(Clone, Copy)]
struct Bytes([u128; 2]);

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

    /// A byte of both sets, one that reads well in an example if there is one.
    fn common(&self, other: &Self) -> Option<u8> {
        let readable = b"1a0x_-."
            .iter()
            .copied()
            .find(|b| self.has(*b) && other.has(*b));
        readable.or_else(|| (0..=255).find(|b| self.has(*b) && other.has(*b)))
    }
}

/// A step on a byte of the set, or without any, to a state.
type Edge = (Option<Bytes>, usize);

/// States in the order in which they were made: the first one starts, the last one accepts.
struct Automaton {
    states: Vec<Vec<Edge>>,
}

impl Automaton {
    fn new(template: &Template, names: GroupNames) -> Self {
        let in_name = |byte: u8| match names {
            GroupNames::Channels => byte.is_ascii_alphanumeric() || b"-_.".contains(&byte),
            GroupNames::Any => true,
        };
        let mut automaton = Self {
            states: vec![Vec::new()],
        };
        for part in &template.parts {
            match part {
                TemplatePart::Literal(text) => automaton.literal(text.as_bytes(), in_name),
                // A tenant's name, where the template is not bound yet.
                TemplatePart::Tenant => automaton.many(Bytes::of(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
                })),
                TemplatePart::User(_) | TemplatePart::Claim(_) => {
                    let start = automaton.end();
                    automaton.many(Bytes::of(in_name));
                    // The text may be empty.
                    let end = automaton.end();
                    automaton.states[start].push((None, end));
                }
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

    fn end(&self) -> usize {
        self.states.len() - 1
    }

    fn state(&mut self) -> usize {
        self.states.push(Vec::new());
        self.end()
    }

    fn one(&mut self, set: Bytes) {
        let from = self.end();
        let to = self.state();
        self.states[from].push((Some(set), to));
    }

    fn literal(&mut self, bytes: &[u8], in_name: impl Fn(u8) -> bool) {
        for byte in bytes {
            self.one(Bytes::of(|b| b == *byte && in_name(b)));
        }
    }

    /// One or more bytes of the set.
    fn many(&mut self, set: Bytes) {
        self.one(set);
        let again = self.end();
        self.states[again].push((Some(set), again));
        // A state of its own at the end: what follows must not be entered from within the loop alone.
        let end = self.state();
        self.states[again].push((None, end));
    }

    /// `0|[1-9][0-9]*`
    fn int(&mut self) {
        let start = self.end();
        self.one(Bytes::of(|b| matches!(b, b'1'..=b'9')));
        let digits = self.end();
        self.states[digits].push((Some(Bytes::of(|b| b.is_ascii_digit())), digits));
        let end = self.state();
        self.states[digits].push((None, end));
        self.states[start].push((Some(Bytes::of(|b| b == b'0')), end));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Route;

    fn bound(template: &str) -> Template {
        let route =
            Route::parse("<int:int>/<slug:slug>/<uuid:uuid>/<str:str>/<path:path>").unwrap();
        let tenant = "acme".parse().unwrap();
        Template::parse(template)
            .unwrap()
            .bind(&route, &tenant)
            .unwrap()
    }

    fn collide(a: &str, b: &str) -> Option<String> {
        let (a, b) = (bound(a), bound(b));
        let found = templates_collide(&a, &b, GroupNames::Channels);
        let mirrored = templates_collide(&b, &a, GroupNames::Channels);
        assert_eq!(found.is_some(), mirrored.is_some());
        found
    }

    #[test]
    fn templates_that_can_meet_are_found_with_an_example() {
        for (a, b, example) in [
            ("room_{slug}", "room_{user.id}", "room_1"),
            ("room_{slug}", "r{user.id}", "room_1"),
            ("{slug}", "user_{user.id}", "user_"),
            ("{str}.x", "user_{user.id}", "user_.x"),
            ("a_{slug}_b", "a_{user.id}", "a_1_b"),
            ("room_{int}", "room_{claims.org}", "room_1"),
            ("room_{int}", "room_0{claims.org}", "room_0"),
            ("room_{int}", "room_10{claims.org}", "room_10"),
            ("{tenant}_{slug}", "acme{user.id}", "acme_1"),
            ("{slug}{int}", "x_{user.id}y7", "x_y7"),
            ("{slug}", "{user.id}", "1"),
            ("{user.id}_{slug}", "{user.name}", "_1"),
            (
                "{uuid}",
                "1111{user.id}",
                "11111111-1111-1111-1111-111111111111",
            ),
        ] {
            assert_eq!(collide(a, b).as_deref(), Some(example), "{a} {b}");
        }
    }

    #[test]
    fn templates_that_cannot_meet_are_left_alone() {
        let long = format!("{}{{slug}}", "x".repeat(99));
        for (a, b) in [
            ("chat_{slug}", "user_{user.id}"),
            ("room_{slug}", "room.{user.id}"),
            // A slug has no dot.
            ("{slug}", "user.{user.id}"),
            // A number has neither a zero in front nor a letter.
            ("room_{int}", "room_00{user.id}"),
            ("room_{int}", "room_x{user.id}"),
            ("n{int}", "n{user.id}x"),
            ("{uuid}", "x{user.id}"),
            ("{uuid}", "{user.id}A"),
            ("{uuid}x", "{user.id}-"),
            // Valid group names have no space and at most 99 characters.
            ("a b{slug}", "a{user.id}"),
            ("a b{slug}", "a b{user.id}"),
            (&long, "{user.id}"),
        ] {
            assert_eq!(collide(a, b), None, "{a} {b}");
        }
    }

    #[test]
    fn any_names_know_no_bounds() {
        let long = format!("{} {{path}}", "x".repeat(99));
        let (a, b) = (bound(&long), bound("x{user.id}"));
        let found = templates_collide(&a, &b, GroupNames::Any).unwrap();
        assert_eq!(found.len(), 101);
        let slashed = bound("a/{user.id}");
        assert_eq!(
            templates_collide(&bound("{str}"), &slashed, GroupNames::Any),
            None
        );
        assert!(templates_collide(&bound("{path}"), &slashed, GroupNames::Any).is_some());
    }

    #[test]
    fn only_path_beside_user_templates_are_compared() {
        let templates: Vec<_> = [
            "room_{slug}",
            "room_{int}",
            "room_1",
            "user_{user.id}",
            "room_{user.id}",
            "room_{slug}",
        ]
        .map(bound)
        .into();
        let pairs: Vec<_> = collisions(&templates, GroupNames::Channels)
            .into_iter()
            .map(|c| (c.path, c.user, c.example))
            .collect();
        assert_eq!(
            pairs,
            [
                (0, 4, "room_1".to_owned()),
                (1, 4, "room_1".to_owned()),
                (5, 4, "room_1".to_owned())
            ]
        );
    }
}
