//! Group templates such as `chat_{room}` and `user_{user.id}`, rendered for each socket and checked against each other.
//!
//! Values are written like by Python's `str()`, so that a Django back end makes the same names.
//! [`crate::channel_names`] decides whether the result is a valid group name. The admission and the configuration check
//! use this module.

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::ids::TenantId;
use crate::python::scalar::str_of_json;
use crate::routes::{Converter, PathParams, Route};

pub use collide::templates_collide;
pub use meeting::{Entrance, Guard, Meeting, meetings};

mod collide;
mod language;
mod meeting;

/// The reason why a template cannot be parsed or rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum TemplateError {
    #[error("{{ and }} must enclose a value: a path parameter, user.FIELD, claims.NAME or tenant")]
    Braces,
    #[error("{{{0}}} is no value; there are path parameters, user.FIELD, claims.NAME and tenant")]
    UnknownValue(String),
    #[error("the route has no parameter {0:?}")]
    UnknownParameter(String),
    #[error("{{{0}}} has no value")]
    Missing(String),
    #[error("{{{0}}} is a list or an object")]
    NotText(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    Literal(Box<str>),
    /// A path parameter. Its converter is known once the template is bound to its route.
    Param(Box<str>, Option<Converter>),
    User(Box<str>),
    Claim(Box<str>),
    Tenant,
}

/// A group template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    parts: Box<[TemplatePart]>,
}

/// The values for rendering a template.
#[derive(Clone, Copy, Debug)]
pub struct TemplateValues<'a> {
    /// `{tenant}`
    pub tenant: &'a TenantId,
    /// `{NAME}`
    pub params: &'a PathParams,
    /// `{user.FIELD}`: the JSON object of the user's fields.
    pub user: &'a str,
    /// `{claims.NAME}`: the JSON object of the token's claims.
    pub claims: &'a str,
}

impl Template {
    /// Parses a template. Braces cannot be escaped, because no group name has one.
    ///
    /// # Errors
    /// [`TemplateError::Braces`], [`TemplateError::UnknownValue`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (literal, from) = rest.split_at(open);
            let inner = from.strip_prefix('{').and_then(|from| from.split_once('}'));
            let Some((inner, after)) = inner else {
                return Err(TemplateError::Braces);
            };
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(literal.into()));
            }
            parts.push(Self::parse_value(inner)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Literal(rest.into()));
        }
        Ok(Self {
            text: text.into(),
            parts: parts.into(),
        })
    }

    /// Parses a template and binds it to `route`, a route of `tenant`.
    ///
    /// # Errors
    /// As [`Template::parse`] and [`Template::bind`].
    pub fn of(text: &str, route: &Route, tenant: &TenantId) -> Result<Self, TemplateError> {
        Self::parse(text)?.bind(route, tenant)
    }

    fn parse_value(inner: &str) -> Result<TemplatePart, TemplateError> {
        let part = match inner.split_once('.') {
            Some(("user", field)) => TemplatePart::User(field.into()),
            Some(("claims", name)) => TemplatePart::Claim(name.into()),
            Some(_) => return Err(TemplateError::UnknownValue(inner.to_owned())),
            None if inner == "tenant" => TemplatePart::Tenant,
            None => TemplatePart::Param(inner.into(), None),
        };
        let empty = matches!(&part, TemplatePart::User(name) | TemplatePart::Claim(name) | TemplatePart::Param(name, _) if name.is_empty());
        if empty || inner.contains('{') {
            return Err(TemplateError::UnknownValue(inner.to_owned()));
        }
        Ok(part)
    }

    /// Adds the types of `route`'s parameters, which [`templates_collide`] needs, and fills in the tenant's name.
    ///
    /// # Errors
    /// [`TemplateError::UnknownParameter`] names a parameter that the route does not have.
    pub fn bind(mut self, route: &Route, tenant: &TenantId) -> Result<Self, TemplateError> {
        for part in &mut self.parts {
            match part {
                TemplatePart::Param(name, converter) => {
                    let known = route.params().find(|(own, _)| *own == &**name);
                    let (_, found) =
                        known.ok_or_else(|| TemplateError::UnknownParameter(name.to_string()))?;
                    *converter = Some(found);
                }
                TemplatePart::Tenant => *part = TemplatePart::Literal(tenant.as_str().into()),
                TemplatePart::Literal(_) | TemplatePart::User(_) | TemplatePart::Claim(_) => {}
            }
        }
        Ok(self)
    }

    /// Returns the texts around its values, which every name has that it makes.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::Literal(text) => Some(&**text),
            _ => None,
        })
    }

    /// Returns the template as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns true if the name depends on the user or the token: `{user.…}`, `{claims.…}`.
    pub fn has_user_values(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, TemplatePart::User(_) | TemplatePart::Claim(_)))
    }

    /// Returns the fields of the user that stand in the template.
    pub fn user_fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::User(field) => Some(&**field),
            _ => None,
        })
    }

    /// Returns the claims that stand in the template, as names or paths.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::Claim(path) => Some(&**path),
            _ => None,
        })
    }

    /// Returns true if the name depends on the path, which a client chooses.
    pub fn has_path_values(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, TemplatePart::Param(..)))
    }

    /// Returns the literal text at the start of every name of the template.
    fn beginning(&self) -> &str {
        match self.parts.first() {
            Some(TemplatePart::Literal(text)) => text,
            _ => "",
        }
    }

    /// Renders the name for one socket. The result may still be no valid group name.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] and [`TemplateError::NotText`] name the value.
    pub fn render(&self, values: &TemplateValues<'_>) -> Result<String, TemplateError> {
        let mut name = String::with_capacity(self.text.len() + 16);
        for part in &self.parts {
            match part {
                TemplatePart::Literal(text) => name.push_str(text),
                TemplatePart::Tenant => name.push_str(values.tenant.as_str()),
                TemplatePart::Param(param, _) => {
                    let value = values.params.get(param);
                    let value = value.ok_or_else(|| TemplateError::Missing(param.to_string()))?;
                    name.push_str(value.as_str());
                }
                TemplatePart::User(field) => {
                    push_json(&mut name, json_field(values.user, field), "user", field)?;
                }
                TemplatePart::Claim(path) => {
                    push_json(&mut name, json_at(values.claims, path), "claims", path)?;
                }
            }
        }
        Ok(name)
    }
}

fn push_json(
    name: &mut String,
    found: Option<&RawValue>,
    of: &str,
    field: &str,
) -> Result<(), TemplateError> {
    let label = || format!("{of}.{field}");
    let raw = found.ok_or_else(|| TemplateError::Missing(label()))?;
    let text = str_of_json(raw.get()).ok_or_else(|| TemplateError::NotText(label()))?;
    name.push_str(&text);
    Ok(())
}

/// Returns the JSON text at a path of objects with dots between the names. The whole path is looked for as a key first, as
/// the rules for claims do it.
fn json_at<'a>(object: &'a str, path: &str) -> Option<&'a RawValue> {
    json_field(object, path).or_else(|| {
        let mut dots = path.match_indices('.');
        dots.find_map(|(at, _)| json_at(json_field(object, &path[..at])?.get(), &path[at + 1..]))
    })
}

/// Returns the JSON text of one key of an object. Of equal keys the last counts, as in Python.
///
/// The text keeps numbers of any size exact.
fn json_field<'a>(object: &'a str, field: &str) -> Option<&'a RawValue> {
    struct Field<'f>(&'f str);

    impl<'de> Visitor<'de> for Field<'_> {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                if key == self.0 {
                    found = Some(map.next_value::<&'de RawValue>()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    let mut json = serde_json::Deserializer::from_str(object);
    json.deserialize_map(Field(field)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;
    use crate::routes::Routes;

    fn render(template: &str) -> Result<String, TemplateError> {
        let config = RouteConfig {
            path: "<int:n>/<uuid:u>/<slug:room>".into(),
            ..RouteConfig::default()
        };
        let routes = Routes::parse(&[config]).unwrap();
        let (_, params) = routes
            .find("/007/7d444840-9dc0-11d1-b245-5ffdce74fad2/a-b")
            .unwrap();
        let tenant = "acme".parse().unwrap();
        let template = Template::parse(template)?;
        let values = TemplateValues {
            tenant: &tenant,
            params: &params,
            user: r#"{"id":7,"name":"old","name":"\u00e9\n","admin":true,"none":null,"list":[1]}"#,
            claims: r#"{"org":123456789012345678901234567890,"f":1.0,"e":1e22,"z":-0,"o":{"in.ner":{"x":"deep"},"b":7},"o.b":8,"l":[1]}"#,
        };
        let rendered = template.render(&values);
        if let Ok(bound) = template.bind(routes.get(0).unwrap(), &tenant) {
            assert_eq!(bound.render(&values), rendered);
        }
        rendered
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        for (template, expected) in [
            ("plain", "plain"),
            ("chat_{room}", "chat_a-b"),
            ("{n}.{u}", "7.7d444840-9dc0-11d1-b245-5ffdce74fad2"),
            ("{tenant}_{user.id}", "acme_7"),
            ("{user.name}", "é\n"),
            ("{user.admin}{user.none}", "TrueNone"),
            ("{claims.org}", "123456789012345678901234567890"),
            ("{claims.f}_{claims.e}_{claims.z}", "1.0_1e+22_0"),
            ("{claims.o.in.ner.x}", "deep"),
            ("{claims.o.b}", "8"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_has_no_text_is_refused() {
        use TemplateError::{Braces, Missing, NotText, UnknownValue};
        for (template, expected) in [
            ("{user.list}", NotText("user.list".into())),
            ("{claims.o}", NotText("claims.o".into())),
            ("{user.other}", Missing("user.other".into())),
            ("{claims.o.c}", Missing("claims.o.c".into())),
            ("{claims.l.0}", Missing("claims.l.0".into())),
            ("{claims.org.x}", Missing("claims.org.x".into())),
            ("{claims.o.in.ner}", NotText("claims.o.in.ner".into())),
            ("{other}", Missing("other".into())),
            ("{other.x}", UnknownValue("other.x".into())),
            ("{}", UnknownValue(String::new())),
            ("{user.}", UnknownValue("user.".into())),
            ("{{room}}", UnknownValue("{room".into())),
            ("a{room", Braces),
            ("a}", Braces),
        ] {
            assert_eq!(render(template), Err(expected), "{template}");
        }
    }

    #[test]
    fn binding_names_a_parameter_that_the_route_lacks() {
        let route = Route::parse("ws/<slug:room>/").unwrap();
        let tenant = "acme".parse().unwrap();
        let bound = Template::parse("x_{rom}").unwrap().bind(&route, &tenant);
        assert_eq!(bound, Err(TemplateError::UnknownParameter("rom".into())));
    }
}
