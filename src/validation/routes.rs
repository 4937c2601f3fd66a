//! Checks routes: paths, statements, group templates, and the needs of consumers.

use crate::channel_names::foreign_character;
use crate::config::{Deliver, Fault, GroupNames, IdType, RouteConfig, TenantConfig, UsersFrom};
use crate::consumer::Registry;
use crate::group_rules::MOST_RULES;
use crate::ids::TenantId;
use crate::render::Delivery;
use crate::routes::{Route, Routes};
use crate::stores::database::Dialect;
use crate::templates::{Entrance, Guard, Meeting, Template, meetings};
use crate::users::{AUTHORIZE_EXAMPLE, Permissions};

use super::Checker;

pub(super) fn check(
    id: &TenantId,
    tenant: &TenantConfig,
    consumers: &Registry,
    checker: &mut Checker<'_>,
) {
    if tenant.routes.is_empty() {
        let text = "no routes: every path gets 404 route_not_found";
        checker.warn(&format!("tenants.{id}"), text);
    }
    check_paths(id, tenant, checker);
    check_statements(id, tenant, checker);
    let mut entrances = Entrances::default();
    for (index, route) in tenant.routes.iter().enumerate() {
        let key = format!("tenants.{id}.routes[{index}]");
        entrances.read(id, &key, (index, route), checker);
        checker.faults(&key, consumers.consumer(route));
        let delivery = Delivery::new(route.deliver.clone(), &route.events);
        checker.faults(&key, delivery);
        if tenant.layer.group_names == GroupNames::Channels {
            check_characters(&key, route, checker);
        }
        check_subprotocols(&key, route, checker);
        if route.anonymous {
            check_anonymous(&key, route, checker);
        }
        if route.resume {
            check_resume(&key, tenant, route, consumers, checker);
        }
    }
    // If the token names its user by another field, `{user.id}` is a column like any other.
    let ids = (tenant.token.user_id_field == "id").then_some(tenant.users.id_type);
    entrances.compare(tenant, ids, checker);
}

fn check_paths(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    for index in 0..tenant.routes.len() {
        let key = format!("tenants.{id}.routes[{index}].path");
        if !checker.has(&key) {
            let advice = "an empty path is the root: path = \"\"";
            checker.mistake(&key, "no path", "the path of the route", advice);
        }
    }
    for error in Routes::parse(&tenant.routes).err().into_iter().flatten() {
        let key = format!("tenants.{id}.routes[{}].path", error.route);
        if checker.has(&key) {
            checker.fault(&format!("tenants.{id}"), error.into());
        }
    }
}

/// Checks the statements of `authorize`, if it is known which kind of database there is, or that there is none.
fn check_statements(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let dialect = match &tenant.users.database {
        Some(url) => match Dialect::of_url(url.expose()) {
            Some(dialect) => Some(dialect),
            None => return,
        },
        None if tenant.users.source == UsersFrom::Claims => None,
        None => return,
    };
    let table = format!("tenants.{id}");
    check_group_statements(&table, tenant, dialect, checker);
    match Permissions::read(&tenant.routes, dialect) {
        Ok(statements) => {
            for (index, (statement, route)) in statements.iter().zip(&tenant.routes).enumerate() {
                let Some(statement) = statement else {
                    continue;
                };
                let key = format!("{table}.routes[{index}].authorize");
                match (statement.uses("user_id"), route.anonymous) {
                    (true, true) => {
                        let found = "a statement with :user_id on a route with anonymous = true";
                        checker.mistake(&key, found, "a statement about the path", NO_USER);
                    }
                    (false, false) => checker.warn(
                        &key,
                        "a statement without :user_id lets every user in, or none",
                    ),
                    (true, false) | (false, true) => {}
                }
            }
        }
        Err(errors) => {
            for error in errors {
                checker.fault(&table, error.into());
            }
        }
    }
}

/// Checks the statements of the rules for groups. No client asks them yet, so that a tenant without a database may have them.
fn check_group_statements(
    table: &str,
    tenant: &TenantConfig,
    dialect: Option<Dialect>,
    checker: &mut Checker<'_>,
) {
    for (index, rule) in tenant.groups.iter().enumerate().take(MOST_RULES) {
        let (Some(sql), Ok(name), Some(_)) = (&rule.authorize, Route::of_name(&rule.name), dialect)
        else {
            continue;
        };
        if let Err(problem) = Permissions::statement(sql, &name, dialect) {
            let key = format!("groups[{index}].authorize");
            checker.fault(table, problem.fault(&key, AUTHORIZE_EXAMPLE));
        }
    }
}

/// The templates that are valid on their routes, each with its key.
#[derive(Default)]
struct Entrances {
    bound: Vec<Entrance>,
    keys: Vec<String>,
}

impl Entrances {
    fn read(
        &mut self,
        id: &TenantId,
        key: &str,
        (index, config): (usize, &RouteConfig),
        checker: &mut Checker<'_>,
    ) {
        // An invalid path was already reported.
        let route = Route::of(config);
        for (position, text) in config.groups.iter().enumerate() {
            let key = format!("{key}.groups[{position}]");
            let bound = match &route {
                Ok(route) => Template::of(text, route, id),
                Err(_) => match Template::parse(text) {
                    Ok(_) => continue,
                    Err(error) => Err(error),
                },
            };
            match bound {
                Ok(template) => {
                    self.bound.push(Entrance {
                        route: index,
                        template,
                        authorized: config.authorize.is_some(),
                    });
                    self.keys.push(key);
                }
                Err(error) => {
                    let expected = "a template such as \"chat_{room}\" or \"user_{user.id}\"";
                    let fault = Fault::new("", format!("{text:?}"), expected);
                    checker.fault(&key, fault.advice(error.to_string()));
                }
            }
        }
    }

    /// Reports templates through which a socket could enter the group of another user or route.
    fn compare(&self, tenant: &TenantConfig, ids: Option<IdType>, checker: &mut Checker<'_>) {
        for meeting in meetings(&self.bound, tenant.layer.group_names, ids) {
            let key = &self.keys[meeting.by];
            let found = self.found(&meeting, checker);
            match meeting.guard {
                Some(Guard::User) if meeting.by == meeting.into => {
                    let expected = "a name that one user alone can have";
                    let advice = "put a character between the values that neither can hold, such as \".\" beside a slug, or the id for a name";
                    checker.mistake(key, found, expected, advice);
                }
                Some(Guard::User) => {
                    let expected = "names that no path can share with a user";
                    checker.mistake(key, found, expected, "let the two begin differently");
                }
                Some(Guard::Authorize) => {
                    let expected = "no way around the authorize of a route";
                    let advice = "let the two begin differently, or give this route an authorize too; authorize = \"SELECT 1\" lets every user in";
                    checker.mistake(key, found, expected, advice);
                }
                None => checker.warn(key, format!("{found}: the two share that group")),
            }
        }
    }

    fn found(&self, meeting: &Meeting, checker: &Checker<'_>) -> String {
        let text = |at: usize| self.bound[at].template.as_str();
        let by = text(meeting.by);
        let example = &meeting.example;
        if meeting.by == meeting.into {
            return format!("{by:?}, which can make {example:?} of two different sets of values");
        }
        let into = text(meeting.into);
        let place = checker.place_of(&self.keys[meeting.into]);
        format!("{by:?}, which can make {example:?}, as {into:?} at {place} can")
    }
}

/// Refuses a template whose own text has a character that no name may have, so that each socket of its route would be refused.
fn check_characters(key: &str, route: &RouteConfig, checker: &mut Checker<'_>) {
    for (index, text) in route.groups.iter().enumerate() {
        let Ok(template) = Template::parse(text) else {
            continue;
        };
        if let Some(character) = template.literals().find_map(foreign_character) {
            let key = format!("{key}.groups[{index}]");
            let found = format!("{text:?}, whose names would have the character {character:?}");
            let expected =
                "names of ASCII letters, digits, \"-\", \"_\" and \".\", as Channels has them";
            let advice = "on a pubsub layer group_names = \"any\" allows others";
            checker.mistake(&key, found, expected, advice);
        }
    }
}

/// The advice for what needs a user on a route that lets sockets without one in.
const NO_USER: &str =
    "a socket without a token has no user and no claims; give users a route of their own";

/// Checks that nothing of a route needs a user.
fn check_anonymous(key: &str, route: &RouteConfig, checker: &mut Checker<'_>) {
    for (index, text) in route.groups.iter().enumerate() {
        if Template::parse(text).is_ok_and(|template| template.has_user_values()) {
            let key = format!("{key}.groups[{index}]");
            let found = format!("{text:?} on a route with anonymous = true");
            checker.mistake(&key, found, "a name that needs no user", NO_USER);
        }
    }
    if !route.consumer.stamp.is_empty() {
        let key = format!("{key}.consumer.stamp");
        let found = "fields of the user on a route with anonymous = true";
        checker.mistake(&key, found, "no stamp", NO_USER);
    }
}

/// Checks a route whose clients are told positions.
fn check_resume(
    key: &str,
    tenant: &TenantConfig,
    route: &RouteConfig,
    consumers: &Registry,
    checker: &mut Checker<'_>,
) {
    if let Deliver::Field(field) = &route.deliver {
        let found = format!("{{ field = {field:?} }} beside resume = true");
        let advice = "a field alone has no place for the position";
        let expected = "\"body\" or \"event\"";
        checker.mistake(&format!("{key}.deliver"), found, expected, advice);
    }
    let key = format!("{key}.resume");
    if consumers
        .consumer(route)
        .is_ok_and(|consumer| consumer.sees_events)
    {
        let found = format!("true beside the consumer {:?}", route.consumer.kind);
        let advice = "its consumer turns events into frames, and knows no positions";
        checker.mistake(&key, found, "a route with a built-in consumer", advice);
    }
    if !route
        .groups
        .iter()
        .any(|group| may_be_recorded(group, tenant))
    {
        let text = "none of the route's groups has a history, so that no client can resume: an entry of groups with their name and a history is missing";
        checker.warn(&key, text);
    }
}

/// Returns false if no name that a template makes belongs to an entry with a history, as far as their beginnings tell.
fn may_be_recorded(template: &str, tenant: &TenantConfig) -> bool {
    let template = template.split('{').next().unwrap_or_default();
    let recorded = tenant.groups.iter().filter(|group| group.history.is_some());
    let mut beginnings = recorded.map(|group| group.name.split('<').next().unwrap_or_default());
    beginnings.any(|name| name.starts_with(template) || template.starts_with(name))
}

fn check_subprotocols(key: &str, route: &RouteConfig, checker: &mut Checker<'_>) {
    for (index, name) in route.subprotocols.iter().enumerate() {
        // RFC 9110 §5.6.2
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if !name.bytes().all(token) {
            let key = format!("{key}.subprotocols[{index}]");
            checker.mistake(
                &key,
                format!("{name:?}"),
                "a name without spaces and separators",
                "",
            );
        }
    }
}
