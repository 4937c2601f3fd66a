//! Finds groups that a socket could enter through another template than the one that guards them.
//!
//! A group is guarded by the route's `authorize`, or by a value of the user in its name. The check of a configuration
//! compares every template with every other and with itself.

use std::collections::HashSet;

use super::collide::{common_name, name_of_two};
use super::language::AllowedValues;
use super::{Template, TemplatePart};
use crate::config::{GroupNames, IdType};

/// One group template of a tenant, bound to its route.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// The position of its route.
    pub route: usize,
    /// The template.
    pub template: Template,
    /// True if the route has an `authorize` statement.
    pub authorized: bool,
}

/// A name that two templates can make, or one template in two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// The position of the template through which the group is entered.
    pub by: usize,
    /// The position of the template that owns the group. Equal to `by` if one template makes the name in two ways.
    pub into: usize,
    /// The name.
    pub example: String,
    /// The guard that is evaded. `None`: the group has no guard.
    pub guard: Option<Guard>,
}

/// The guard of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The name holds a value of the user or of the claims.
    User,
    /// The route has `authorize`.
    Authorize,
}

/// Finds every meeting among the templates of one tenant, each pair once. `ids` is the type of `{user.id}`, if that is
/// known to be the user's canonical id.
pub fn meetings(entrances: &[Entrance], names: GroupNames, ids: Option<IdType>) -> Vec<Meeting> {
    let values = AllowedValues {
        names,
        user_id: ids,
    };
    let mut found = Vec::new();
    for (index, entrance) in entrances.iter().enumerate() {
        let seen = entrances[..index].iter().any(|other| {
            other.template == entrance.template && other.authorized == entrance.authorized
        });
        if !seen {
            found.extend(with_itself(index, entrance, values));
        }
        for (before, other) in entrances[..index].iter().enumerate() {
            found.extend(between((before, other), (index, entrance), values));
        }
    }
    // A template may occur on several routes: report each entering template once.
    let text = |at: usize| entrances[at].template.as_str();
    let mut told = HashSet::new();
    found.retain(|meeting: &Meeting| told.insert((meeting.by, text(meeting.into))));
    found
}

fn with_itself(index: usize, entrance: &Entrance, values: AllowedValues) -> Option<Meeting> {
    let template = &entrance.template;
    if template.parts.iter().filter(|part| is_value(part)).count() < 2 {
        return None;
    }
    let meeting = |example, guard| Meeting {
        by: index,
        into: index,
        example,
        guard,
    };
    if let Some(example) = name_of_two(template, values, is_of_user) {
        return Some(meeting(example, Some(Guard::User)));
    }
    let example = name_of_two(template, values, is_value)?;
    Some(meeting(
        example,
        entrance.authorized.then_some(Guard::Authorize),
    ))
}

/// Returns the meeting of two entrances. If both could enter the other's group, the later one counts as entering.
fn between(
    (before, first): (usize, &Entrance),
    (after, second): (usize, &Entrance),
    values: AllowedValues,
) -> Option<Meeting> {
    let (a, b) = (&first.template, &second.template);
    let of_user = a.has_user_values() || b.has_user_values();
    let same_text = a.text == b.text;
    if same_text && (of_user || first.authorized == second.authorized) {
        // Equal templates meet by intention: the same user, or the same parameters under the same guard.
        return None;
    }
    let with_path = a.has_path_values() || b.has_path_values();
    let values = match of_user && with_path {
        // A client can choose a path that looks like any text, and a `users.query` may return any text as `id`.
        true => AllowedValues {
            user_id: None,
            ..values
        },
        false => values,
    };
    if !of_user
        && (first.route == second.route || first.authorized && second.authorized && a.is_like(b))
    {
        return None;
    }
    let example = common_name(a, b, values)?;
    let guard = match (of_user, first.authorized || second.authorized) {
        (true, _) => Some(Guard::User),
        // The same literal on a guarded and on an open route is an evident choice of the operator.
        (false, true) if same_text && !with_path => None,
        (false, true) => Some(Guard::Authorize),
        (false, false) => None,
    };
    // The entering one is the unguarded one, or else the one that leaves more choice to the client.
    let later_enters = match (of_user, first.authorized, second.authorized) {
        (false, true, false) => true,
        (false, false, true) => false,
        _ => b.reach() >= a.reach(),
    };
    let (by, into) = match later_enters {
        true => (after, before),
        false => (before, after),
    };
    Some(Meeting {
        by,
        into,
        example,
        guard,
    })
}

fn is_value(part: &TemplatePart) -> bool {
    !matches!(part, TemplatePart::Literal(_))
}

fn is_of_user(part: &TemplatePart) -> bool {
    matches!(part, TemplatePart::User(_) | TemplatePart::Claim(_))
}

impl Template {
    /// Returns true if the two differ at most in the names of their path parameters.
    fn is_like(&self, other: &Self) -> bool {
        let alike = |pair: (&TemplatePart, &TemplatePart)| match pair {
            (TemplatePart::Param(_, one), TemplatePart::Param(_, other)) => one == other,
            (one, other) => one == other,
        };
        self.parts.len() == other.parts.len() && self.parts.iter().zip(&other.parts).all(alike)
    }

    /// Ranks the client's choice over the name: a path most, then a literal, then values of the user.
    fn reach(&self) -> u8 {
        match (self.has_path_values(), self.has_user_values()) {
            (true, false) => 3,
            (true, true) => 2,
            (false, false) => 1,
            (false, true) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Route;

    /// Takes routes as `(path, authorized, groups)`, and returns meetings as `by into guard`.
    fn found(routes: &[(&str, bool, &[&str])]) -> Vec<String> {
        let tenant = "acme".parse().unwrap();
        let mut entrances = Vec::new();
        for (index, (path, authorized, groups)) in routes.iter().enumerate() {
            let route = Route::parse(path).unwrap();
            entrances.extend(groups.iter().map(|text| Entrance {
                route: index,
                template: Template::of(text, &route, &tenant).unwrap(),
                authorized: *authorized,
            }));
        }
        let text = |at: usize| entrances[at].template.as_str();
        meetings(&entrances, GroupNames::Channels, Some(IdType::Int))
            .iter()
            .map(|meeting| {
                let guard = meeting.guard.map_or("-", |guard| match guard {
                    Guard::User => "user",
                    Guard::Authorize => "authorize",
                });
                format!("{} {} {guard}", text(meeting.by), text(meeting.into))
            })
            .collect()
    }

    #[test]
    fn an_open_route_does_not_lead_into_a_guarded_one() {
        for (routes, expected) in [
            // An open path, a guarded path.
            (
                &[
                    ("o/<slug:name>", false, &["{name}"][..]),
                    ("r/<slug:room>", true, &["room_{room}"]),
                ][..],
                &["{name} room_{room} authorize"][..],
            ),
            (
                &[
                    ("r/<slug:room>", true, &["room_{room}"]),
                    ("o/<int:room>", false, &["room_{room}"]),
                ],
                &["room_{room} room_{room} authorize"],
            ),
            // A literal on either side.
            (
                &[
                    ("o/<slug:name>", false, &["{name}"]),
                    ("s", true, &["staff"]),
                ],
                &["{name} staff authorize"],
            ),
            (
                &[
                    ("lobby", false, &["room_lobby"]),
                    ("r/<slug:room>", true, &["room_{room}"]),
                ],
                &["room_lobby room_{room} authorize"],
            ),
            // Guarded by statements about other parameters.
            (
                &[
                    ("a/<slug:x>", true, &["{x}"]),
                    ("b/<slug:y>/<slug:z>", true, &["{y}_{z}"]),
                ],
                &["{y}_{z} {y}_{z} authorize", "{y}_{z} {x} authorize"],
            ),
        ] {
            assert_eq!(found(routes), expected, "{routes:?}");
        }
    }

    #[test]
    fn a_users_own_group_is_entered_by_its_user_alone() {
        for (groups, expected) in [
            (
                &["room_{room}", "room_{user.id}"][..],
                &["room_{room} room_{user.id} user"][..],
            ),
            (
                &["{room}_{user.username}"],
                &["{room}_{user.username} {room}_{user.username} user"],
            ),
            (
                &["user_{user.username}", "user_all"],
                &["user_all user_{user.username} user"],
            ),
            (
                &["user_{user.id}", "user_{user.username}"],
                &["user_{user.username} user_{user.id} user"],
            ),
            (
                &["{user.a}{user.b}"],
                &["{user.a}{user.b} {user.a}{user.b} user"],
            ),
        ] {
            assert_eq!(
                found(&[("<slug:room>", false, groups)]),
                expected,
                "{groups:?}"
            );
        }
    }

    #[test]
    fn what_nothing_guards_is_found_without_a_guard() {
        for (routes, expected) in [
            (
                &[
                    ("<slug:a>", false, &["room_{a}"][..]),
                    ("x/<int:b>", false, &["room_{b}"]),
                ][..],
                &["room_{b} room_{a} -"][..],
            ),
            (
                &[
                    ("<slug:a>", false, &["room_{a}"]),
                    ("x", false, &["room_lobby"]),
                ],
                &["room_{a} room_lobby -"],
            ),
            (
                &[("<slug:a>/<slug:b>", false, &["{a}_{b}"])],
                &["{a}_{b} {a}_{b} -"],
            ),
            (
                &[("a", true, &["all"]), ("b", false, &["all"])],
                &["all all -"],
            ),
        ] {
            assert_eq!(found(routes), expected, "{routes:?}");
        }
    }

    #[test]
    fn what_cannot_meet_or_is_meant_is_left_alone() {
        for routes in [
            &[
                (
                    "<slug:room>",
                    true,
                    &["chat_{room}", "user_{user.id}", "all"][..],
                ),
                ("x", true, &["all", "user_{user.id}"]),
            ][..],
            &[
                ("<slug:room>", true, &["chat_{room}"]),
                ("b/<slug:name>", true, &["chat_{name}"]),
            ],
            &[
                ("<slug:room>", false, &["chat_{room}"]),
                ("b/<slug:room>", false, &["chat_{room}"]),
            ],
            &[(
                "<slug:room>",
                false,
                &["chat_{room}_{user.id}", "chats_{room}"],
            )],
            &[(
                "<slug:room>",
                false,
                &["chat-{room}-{user.id}", "user_{user.id}", "user_all"],
            )],
            &[(
                "<int:me>/<int:peer>",
                true,
                &["dm_{me}", "dm_{peer}", "dm_{me}_{peer}"],
            )],
            &[(
                "",
                false,
                &["org_{claims.org}", "user_{user.id}", "{tenant}_all"],
            )],
        ] {
            assert_eq!(found(routes), [""; 0], "{routes:?}");
        }
    }
}
