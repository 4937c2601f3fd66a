//! Routes: paths, group templates, and what consumers need of them.

use crate::config::{ConsumerConfig, Deliver, RouteConfig, TenantConfig};
use crate::ids::TenantId;
use crate::routes::{Route, Routes};
use crate::templates::{Template, collisions};

use super::Checker;

pub(super) fn check(id: &TenantId, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    if tenant.routes.is_empty() {
        let text = "no routes: every path gets 404 route_not_found";
        checker.warn(&format!("tenants.{id}"), text);
    }
    if let Err(errors) = Routes::parse(&tenant.routes) {
        for error in errors {
            let key = format!("tenants.{id}.routes[{}].path", error.route);
            let expected = "a path such as \"ws/chat/<slug:room>/\"";
            checker.mistake(
                &key,
                format!("{:?}", error.path),
                expected,
                error.problem.to_string(),
            );
        }
    }
    let mut templates = Templates::default();
    for (index, route) in tenant.routes.iter().enumerate() {
        let key = format!("tenants.{id}.routes[{index}]");
        check_path(&key, index, tenant, checker);
        templates.read(id, &key, route, checker);
        check_words(&key, route, checker);
        if route.consumer.kind == "broadcast" {
            check_broadcast(&key, route, checker);
        }
    }
    for collision in collisions(&templates.bound, tenant.layer.group_names) {
        let (chosen, fixed) = (
            &templates.keys[collision.path],
            &templates.keys[collision.user],
        );
        let found = format!(
            "{:?}, which can make {:?}, as {:?} at {} can",
            templates.bound[collision.path].as_str(),
            collision.example,
            templates.bound[collision.user].as_str(),
            checker.place_of(fixed),
        );
        let expected = "names that no path can share with a user";
        checker.mistake(chosen, found, expected, "let the two begin differently");
    }
}

/// Templates that could be bound to their routes, each with its key.
#[derive(Default)]
struct Templates {
    bound: Vec<Template>,
    keys: Vec<String>,
}

impl Templates {
    fn read(&mut self, id: &TenantId, key: &str, config: &RouteConfig, checker: &mut Checker<'_>) {
        // A path that cannot be read was reported.
        let route = Route::parse(&config.path).ok();
        for (index, text) in config.groups.iter().enumerate() {
            let key = format!("{key}.groups[{index}]");
            let bound = match (Template::parse(text), &route) {
                (Ok(template), Some(route)) => template.bind(route, id),
                (Ok(_), None) => continue,
                (Err(error), _) => Err(error),
            };
            match bound {
                Ok(template) => {
                    self.bound.push(template);
                    self.keys.push(key);
                }
                Err(error) => {
                    let expected = "a template such as \"chat_{room}\" or \"user_{user.id}\"";
                    checker.mistake(&key, format!("{text:?}"), expected, error.to_string());
                }
            }
        }
    }
}

/// The first route that matches wins: the same path again is never reached.
fn check_path(key: &str, index: usize, tenant: &TenantConfig, checker: &mut Checker<'_>) {
    let path = &tenant.routes[index].path;
    if !checker.has(&format!("{key}.path")) {
        let advice = "an empty path is the root: path = \"\"";
        checker.mistake(
            &format!("{key}.path"),
            "no path",
            "the path of the route",
            advice,
        );
    } else if tenant.routes[..index]
        .iter()
        .any(|other| other.path == *path)
    {
        let found = format!("{path:?} a second time");
        checker.mistake(
            &format!("{key}.path"),
            found,
            "every path once",
            "the first that matches wins",
        );
    }
}

fn check_words(key: &str, route: &RouteConfig, checker: &mut Checker<'_>) {
    for (index, pattern) in route.events.iter().enumerate() {
        if let Err(error) = glob::Pattern::new(pattern) {
            let key = format!("{key}.events[{index}]");
            checker.mistake(
                &key,
                format!("{pattern:?}"),
                "a shell glob such as \"chat.*\"",
                error.msg,
            );
        }
    }
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
    if let Deliver::Field(name) = &route.deliver
        && name == "type"
    {
        let expected = "a field of the event's body";
        checker.mistake(&format!("{key}.deliver"), "the type itself", expected, "");
    }
}

fn check_broadcast(key: &str, route: &RouteConfig, checker: &mut Checker<'_>) {
    let consumer = &route.consumer;
    let at = |name: &str| format!("{key}.consumer.{name}");
    match (&consumer.to, route.groups.len()) {
        (_, 0) => {
            let expected = "at least one group for a broadcast to go to";
            checker.mistake(&format!("{key}.groups"), "no groups", expected, "");
        }
        (None, 1) => {}
        (None, several) => {
            let found = format!("no \"to\" on a route with {several} groups");
            let expected = format!("one of {}", quoted(&route.groups));
            checker.mistake(&at("to"), found, expected, "");
        }
        (Some(to), _) if !route.groups.contains(to) => {
            let expected = format!("one of the route's groups: {}", quoted(&route.groups));
            checker.mistake(&at("to"), format!("{to:?}"), expected, "");
        }
        (Some(_), _) => {}
    }
    match consumer.event_type.as_deref() {
        None => {
            let advice = "such as type = \"chat.message\"";
            checker.mistake(&at("type"), "no type", "the type of the event", advice);
        }
        Some(reserved @ ("websocket.send" | "websocket.close")) => {
            let expected = "a type of the application";
            let advice = "it acts as an ASGI message on every route, and clients would fill it";
            checker.mistake(&at("type"), format!("{reserved:?}"), expected, advice);
        }
        Some(hidden) if hidden.starts_with(['_', '.']) => {
            let expected = "a type that begins with neither _ nor .";
            let advice = "Channels' consumers refuse it";
            checker.mistake(&at("type"), format!("{hidden:?}"), expected, advice);
        }
        Some(_) => {}
    }
    check_fields(key, consumer, checker);
}

fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    texts.join(", ")
}

/// What the gateway sets never comes from a client.
fn check_fields(key: &str, consumer: &ConsumerConfig, checker: &mut Checker<'_>) {
    let fields = consumer.fields.iter().flatten().enumerate();
    for (index, field) in fields {
        let found = match field.as_str() {
            "type" => "\"type\"".to_owned(),
            own if own.starts_with("__") => format!("{own:?}"),
            own if consumer.stamp.iter().any(|stamp| stamp == own) => {
                format!("{own:?}, which is stamped too")
            }
            _ => continue,
        };
        let key = format!("{key}.consumer.fields[{index}]");
        checker.mistake(&key, found, "keys that a client may set", "remove it");
    }
    for (index, stamp) in consumer.stamp.iter().enumerate() {
        if stamp == "type" || stamp.starts_with("__") {
            let key = format!("{key}.consumer.stamp[{index}]");
            checker.mistake(
                &key,
                format!("{stamp:?}"),
                "user_id or a field of the user",
                "",
            );
        }
    }
}
