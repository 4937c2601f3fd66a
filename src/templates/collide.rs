//! Decides whether two templates can make the same group name, or one template can make a name in two ways.
//!
//! A breadth-first walk over pairs of states of two automata finds the shortest common name, if there is one. With the
//! same automaton on both sides it finds a name whose bytes can come from different parts.

use std::collections::{HashMap, HashSet, VecDeque};

use super::language::{AllowedValues, Automaton, Edge};
use super::{Template, TemplatePart};
use crate::channel_names::MAX_NAME;
use crate::config::GroupNames;

/// Finds a valid group name that both templates can make. Values of users and claims may be any text, path parameters
/// any text of their converter (before [`Template::bind`]: any text).
pub fn templates_collide(a: &Template, b: &Template, names: GroupNames) -> Option<String> {
    let values = AllowedValues {
        names,
        user_id: None,
    };
    common_name(a, b, values)
}

/// Finds a name that both templates can make.
pub(super) fn common_name(a: &Template, b: &Template, values: AllowedValues) -> Option<String> {
    // A shortcut: most pairs of templates begin differently.
    let (first, second) = (a.beginning(), b.beginning());
    if !first.starts_with(second) && !second.starts_with(first) {
        return None;
    }
    let (a, b) = (Automaton::new(a, values), Automaton::new(b, values));
    shortest(&a, &b, values.names, true, |_, _| false)
}

/// Finds a name that the template can make in two ways, which differ in the bytes of a part that `counts`.
pub(super) fn name_of_two(
    template: &Template,
    values: AllowedValues,
    counts: impl Fn(&TemplatePart) -> bool,
) -> Option<String> {
    let automaton = Automaton::new(template, values);
    let differs = |left: &Edge, right: &Edge| {
        let either = [left, right]
            .iter()
            .any(|edge| counts(&template.parts[edge.part]));
        left.part != right.part && either
    };
    shortest(&automaton, &automaton, values.names, false, differs)
}

/// A state of each automaton, and true if the two ways have already differed.
type Pair = (usize, usize, bool);

/// Finds the shortest name that both can make. Unless `equal` is set, the two ways must differ somewhere.
fn shortest(
    a: &Automaton,
    b: &Automaton,
    names: GroupNames,
    equal: bool,
    differs: impl Fn(&Edge, &Edge) -> bool,
) -> Option<String> {
    let start = (0, 0, equal);
    let mut origin: HashMap<Pair, (Pair, Option<u8>)> = HashMap::new();
    let mut queue = VecDeque::from([(start, 0usize)]);
    let mut done = HashSet::new();
    while let Some((pair, length)) = queue.pop_front() {
        if !done.insert(pair) {
            continue;
        }
        if pair == (a.end(), b.end(), true) && length > 0 {
            return Some(spell(&origin, pair));
        }
        if names == GroupNames::Channels && length > MAX_NAME {
            return None;
        }
        // Steps without a byte come first, so that the walk visits states in the order of their distance.
        for (next, byte) in steps(a, b, pair, &differs) {
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

fn steps(
    a: &Automaton,
    b: &Automaton,
    (x, y, differed): Pair,
    differs: &impl Fn(&Edge, &Edge) -> bool,
) -> Vec<(Pair, Option<u8>)> {
    let mut steps = Vec::new();
    for left in &a.states[x] {
        for right in &b.states[y] {
            if let (Some(these), Some(those)) = (left.bytes, right.bytes)
                && let Some(byte) = these.common(&those)
            {
                let differed = differed || differs(left, right);
                steps.push(((left.to, right.to, differed), Some(byte)));
            }
        }
    }
    let free = |edge: &&Edge| edge.bytes.is_none();
    steps.extend(
        a.states[x]
            .iter()
            .filter(free)
            .map(|e| ((e.to, y, differed), None)),
    );
    steps.extend(
        b.states[y]
            .iter()
            .filter(free)
            .map(|e| ((x, e.to, differed), None)),
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IdType;
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
            // A number has neither a leading zero nor a letter.
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

    fn two_ways(
        template: &str,
        user_id: Option<IdType>,
        counts: fn(&TemplatePart) -> bool,
    ) -> Option<String> {
        let values = AllowedValues {
            names: GroupNames::Channels,
            user_id,
        };
        name_of_two(&bound(template), values, counts)
    }

    #[test]
    fn a_template_that_makes_a_name_in_two_ways_is_found() {
        let of_user: fn(&TemplatePart) -> bool =
            |part| matches!(part, TemplatePart::User(_) | TemplatePart::Claim(_));
        let int = Some(IdType::Int);
        for (template, user_id, ambiguous) in [
            ("{slug}_{user.username}", None, true),
            ("{slug}_{user.id}", Some(IdType::Text), true),
            ("{user.first}_{user.last}", None, true),
            ("{slug}{user.id}", int, true),
            // A number has no _, so the last _ separates the two.
            ("{slug}_{user.id}", int, false),
            ("{slug}_{user.id}", Some(IdType::Uuid), false),
            ("{int}_{user.username}", None, false),
            ("{uuid}{user.username}", None, false),
            ("{slug}.{user.username}", None, false),
            ("user_{user.id}", None, false),
            // The two ways differ only in the path, so the name belongs to the same user.
            ("{slug}_{slug}_{user.id}", int, false),
        ] {
            let found = two_ways(template, user_id, of_user);
            assert_eq!(found.is_some(), ambiguous, "{template} {found:?}");
        }
        let any: fn(&TemplatePart) -> bool = |_| true;
        assert!(two_ways("{slug}_{slug}_{user.id}", int, any).is_some());
        assert!(two_ways("{slug}_{int}", None, any).is_none());
        assert!(two_ways("{slug}_{slug}", None, any).is_some());
        assert!(two_ways("{int}_{int}", None, any).is_none());
    }
}
