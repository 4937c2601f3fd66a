//! Routes: find the route of a request path and its typed parameters by the rules of Django's `path()`.
//!
//! The whole path must match, the first route that matches wins, and a converter takes as much as the rest allows
//! (Django compiles its routes to greedy regular expressions). Matching takes time linear in the path, because it
//! comes before any authentication. The admission and the configuration check use it.
//!
//! Instead of matchit, which prefers the most specific route; Django takes the first one.

use std::collections::HashSet;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use self::regular_expression::{as_path, is_regular_expression};
use crate::config::{Fault, RouteConfig};
use crate::python::MAX_STR_DIGITS;

mod regular_expression;

/// The most routes of a tenant: each connect tries them in order, and `config check` compares each with all others.
pub const MOST_ROUTES: usize = 1000;

/// The type of a path parameter: `django.urls.converters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Converter {
    /// `[^/]+`
    Str,
    /// `[0-9]+`; the value has no leading zeroes.
    Int,
    /// `[-a-zA-Z0-9_]+`
    Slug,
    /// A hyphenated UUID in lower case.
    Uuid,
    /// `.+`: any text without line feeds; slashes are allowed.
    Path,
}

impl Converter {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "str" => Self::Str,
            "int" => Self::Int,
            "slug" => Self::Slug,
            "uuid" => Self::Uuid,
            "path" => Self::Path,
            _ => return None,
        })
    }

    /// Returns true if a value may contain `byte`. For UTF-8 text this is equal to a test by characters, because the
    /// excluded characters are ASCII.
    fn takes(self, byte: u8) -> bool {
        match self {
            Self::Str => byte != b'/',
            Self::Int => byte.is_ascii_digit(),
            Self::Slug => byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_',
            Self::Uuid => matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'),
            Self::Path => byte != b'\n',
        }
    }

    fn python_regex(self) -> &'static str {
        match self {
            Self::Str => "[^/]+",
            Self::Int => "[0-9]+",
            Self::Slug => "[-a-zA-Z0-9_]+",
            Self::Uuid => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            Self::Path => ".+",
        }
    }

    /// Converts a text, as Django's `to_python`; `None` where that raises `ValueError`.
    fn value(self, text: &str) -> Option<PathValue> {
        Some(match self {
            Self::Int if text.len() > MAX_STR_DIGITS => return None,
            Self::Int => PathValue::Int(canonical_int(text).into()),
            Self::Uuid => PathValue::Uuid(text.into()),
            Self::Str | Self::Slug | Self::Path => PathValue::Text(text.into()),
        })
    }
}

/// Removes leading zeroes: `007` becomes `7`, and `000` becomes `0`.
fn canonical_int(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// The converted value of a path parameter, in the form of Python's `str()`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathValue {
    /// A decimal number of any size, without sign and leading zeroes.
    Int(Box<str>),
    /// A hyphenated UUID in lower case.
    Uuid(Box<str>),
    /// Any text.
    Text(Box<str>),
}

impl PathValue {
    /// Returns the value in the form of Python's `str()`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Int(text) | Self::Uuid(text) | Self::Text(text) => text,
        }
    }
}

/// The parameters of one path by name, in the order of the route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathParams(Box<[(Arc<str>, PathValue)]>);

impl PathParams {
    /// Returns the value of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&PathValue> {
        self.iter()
            .find(|(own, _)| *own == name)
            .map(|(_, value)| value)
    }

    /// Returns names and values in the order of the route.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PathValue)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// Returns true if the route has no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A route that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {path:?}: {problem}")]
pub struct RouteError {
    /// The position of the route in the tenant's list.
    pub route: usize,
    /// The route as configured.
    pub path: String,
    /// The error in the route.
    pub problem: RouteProblem,
}

/// An error in a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum RouteProblem {
    #[error("it must not begin with / (routes are relative to the host, as in Django)")]
    LeadingSlash,
    #[error("it is a regular expression of re_path(){}", said(.0))]
    RegularExpression(Option<String>),
    #[error("a group has a name")]
    NoName,
    #[error("< and > must enclose a parameter: <converter:name>")]
    Brackets,
    #[error("{0:?} is not a converter; the converters are str, int, slug, uuid and path")]
    UnknownConverter(String),
    #[error("{0:?} is not a valid parameter name; use letters, digits and _, and no digit first")]
    ParameterName(String),
    #[error("the parameter {0:?} is there twice")]
    DuplicateParameter(String),
    #[error("the parameter user_id would hide the :user_id of authorize; give it another name")]
    HidesUserId,
    #[error("it stands there a second time; the first route that matches wins")]
    Again,
    #[error("each connect tries the routes in order; let one path with parameters stand for many")]
    TooMany,
}

/// Says which path stands for a regular expression, if one does.
fn said(path: &Option<String>) -> String {
    match path {
        Some(path) => format!("; written for path() it is {path:?}"),
        None => "; a path has literal text and parameters such as <slug:room>".to_owned(),
    }
}

impl From<RouteError> for Fault {
    fn from(error: RouteError) -> Self {
        let RouteError {
            route,
            path,
            problem,
        } = error;
        let (found, expected) = match problem {
            RouteProblem::Again => (
                format!("{path:?} a second time"),
                "every path once".to_owned(),
            ),
            RouteProblem::TooMany => (
                format!("a route after the first {MOST_ROUTES}"),
                format!("at most {MOST_ROUTES} routes"),
            ),
            _ => (
                format!("{path:?}"),
                "a path such as \"ws/chat/<slug:room>/\"".to_owned(),
            ),
        };
        Fault::new(format!("routes[{route}].path"), found, expected).advice(problem.to_string())
    }
}

#[derive(Clone, Debug)]
enum RoutePart {
    Literal(Box<str>),
    Param(Arc<str>, Converter),
}

/// One route: literal text and parameters.
#[derive(Clone, Debug)]
pub struct Route {
    parts: Box<[RoutePart]>,
}

impl Route {
    /// Parses `text` by the rules of Django's `path()`; `<name>` means `<str:name>`.
    ///
    /// # Errors
    /// The first [`RouteProblem`] of the text.
    pub fn parse(text: &str) -> Result<Self, RouteProblem> {
        match text.starts_with('/') {
            true => Err(RouteProblem::LeadingSlash),
            false => Self::parse_parts(text),
        }
    }

    /// Parses the names of groups, in which the same parameters stand. A name may begin with a slash.
    ///
    /// # Errors
    /// The first [`RouteProblem`] of the text.
    pub fn of_name(text: &str) -> Result<Self, RouteProblem> {
        match text {
            "" => Err(RouteProblem::NoName),
            text => Self::parse_parts(text),
        }
    }

    fn parse_parts(text: &str) -> Result<Self, RouteProblem> {
        if is_regular_expression(text) {
            return Err(RouteProblem::RegularExpression(as_path(text)));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['<', '>']) {
            let (literal, from) = rest.split_at(open);
            let inner = from.strip_prefix('<').and_then(|from| from.split_once('>'));
            let Some((inner, after)) = inner else {
                return Err(RouteProblem::Brackets);
            };
            if !literal.is_empty() {
                parts.push(RoutePart::Literal(literal.into()));
            }
            parts.push(Self::parse_param(inner, &parts)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(RoutePart::Literal(rest.into()));
        }
        Ok(Self {
            parts: parts.into(),
        })
    }

    /// Reads the path of a configured route.
    ///
    /// # Errors
    /// Every [`RouteProblem`] that a route alone can have, the first one found.
    pub fn of(config: &RouteConfig) -> Result<Self, RouteProblem> {
        let route = Self::parse(&config.path)?;
        let hides = |(name, _)| name == "user_id";
        match config.authorize.is_some() && route.params().any(hides) {
            true => Err(RouteProblem::HidesUserId),
            false => Ok(route),
        }
    }

    fn parse_param(inner: &str, before: &[RoutePart]) -> Result<RoutePart, RouteProblem> {
        let (converter, name) = inner.split_once(':').unwrap_or(("str", inner));
        let converter = Converter::from_name(converter)
            .ok_or_else(|| RouteProblem::UnknownConverter(converter.to_owned()))?;
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(letter)
        {
            return Err(RouteProblem::ParameterName(name.to_owned()));
        }
        let same =
            |part: &RoutePart| matches!(part, RoutePart::Param(other, _) if **other == *name);
        if before.iter().any(same) {
            return Err(RouteProblem::DuplicateParameter(name.to_owned()));
        }
        Ok(RoutePart::Param(name.into(), converter))
    }

    /// Returns the route as a regular expression of Python, for a match of the whole text (`re.fullmatch`).
    pub fn python_regex(&self) -> String {
        let mut regex = String::new();
        for part in &self.parts {
            match part {
                RoutePart::Param(_, converter) => regex.push_str(converter.python_regex()),
                RoutePart::Literal(text) => {
                    for char in text.chars() {
                        if char.is_ascii_punctuation() {
                            regex.push('\\');
                        }
                        regex.push(char);
                    }
                }
            }
        }
        regex
    }

    /// Returns names and converters of the parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = (&str, Converter)> {
        self.parts.iter().filter_map(|part| match part {
            RoutePart::Param(name, converter) => Some((&**name, *converter)),
            RoutePart::Literal(_) => None,
        })
    }

    /// Returns true if all of a name matches.
    pub fn takes(&self, name: &str) -> bool {
        self.matches(name).is_some()
    }

    /// Returns the parameters of `path` (decoded, without its first slash) if all of it matches.
    fn matches(&self, path: &str) -> Option<PathParams> {
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

/// The routes of one tenant, in the order of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Parses the path of every route.
    ///
    /// # Errors
    /// All errors of all routes.
    pub fn parse(configs: &[RouteConfig]) -> Result<Self, Vec<RouteError>> {
        let mut errors = Vec::new();
        let mut routes = Vec::with_capacity(configs.len());
        let mut seen = HashSet::new();
        for (index, config) in configs.iter().enumerate().take(MOST_ROUTES + 1) {
            let is_again = !seen.insert(&config.path);
            let route = match index {
                MOST_ROUTES => Err(RouteProblem::TooMany),
                _ => Route::of(config),
            };
            match route.and_then(|route| match is_again {
                true => Err(RouteProblem::Again),
                false => Ok(route),
            }) {
                Ok(route) => routes.push(route),
                Err(problem) => errors.push(RouteError {
                    route: index,
                    path: config.path.clone(),
                    problem,
                }),
            }
        }
        if errors.is_empty() {
            Ok(Self(routes))
        } else {
            Err(errors)
        }
    }

    /// Finds the first route that matches `raw_path`, which is percent-encoded and without a query. Returns its index
    /// and parameters.
    ///
    /// One leading slash is not part of the path. A path that does not decode to UTF-8 has no route.
    pub fn find(&self, raw_path: &str) -> Option<(usize, PathParams)> {
        let path = raw_path.strip_prefix('/').unwrap_or(raw_path);
        let path = percent_decode_str(path).decode_utf8().ok()?;
        self.0
            .iter()
            .enumerate()
            .find_map(|(index, route)| Some((index, route.matches(&path)?)))
    }

    /// Returns the route at `index`.
    pub fn get(&self, index: usize) -> Option<&Route> {
        self.0.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(paths: &[&str]) -> Result<Routes, Vec<RouteError>> {
        let configs: Vec<_> = paths
            .iter()
            .map(|path| RouteConfig {
                path: (*path).to_owned(),
                ..RouteConfig::default()
            })
            .collect();
        Routes::parse(&configs)
    }

    fn found(path: &str, raw: &str) -> Option<Vec<String>> {
        let (_, params) = routes(&[path]).unwrap().find(raw)?;
        Some(params.iter().map(|(_, v)| v.as_str().to_owned()).collect())
    }

    /// Before: `config check` accepted any number, and the start failed at the 65,537th route.
    #[test]
    fn a_tenant_has_a_bounded_number_of_routes() {
        let paths: Vec<_> = (0..MOST_ROUTES + 5).map(|n| n.to_string()).collect();
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        assert!(routes(&paths[..MOST_ROUTES]).is_ok());
        let errors = routes(&paths).unwrap_err();
        assert_eq!((errors.len(), errors[0].route), (1, MOST_ROUTES));
        let told = Fault::from(errors[0].clone());
        assert_eq!(told.key, "routes[1000].path");
        assert_eq!(told.expected, "at most 1000 routes");
    }

    #[test]
    fn paths_match_as_in_django() {
        // Each outcome is what Django 5.2's RoutePattern(route, is_endpoint=True).match() says of the decoded path.
        let uuid = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
        let huge = "9".repeat(40);
        let cases: &[(&str, &str, Option<&[&str]>)] = &[
            ("", "/", Some(&[])),
            ("", "/x", None),
            ("ws/", "/ws/", Some(&[])),
            ("ws/", "/ws", None),
            ("ws/", "//ws/", None),
            ("ws/<slug:room>/", "/ws/a-b_9/", Some(&["a-b_9"])),
            ("ws/<slug:room>/", "/ws/a.b/", None),
            ("ws/<slug:room>/", "/ws//", None),
            ("ws/<slug:room>/", "/ws/a/x", None),
            ("ws/<room>", "/ws/%C3%A9 x", Some(&["é x"])),
            ("ws/<str:room>", "/ws/a/b", None),
            ("ws/<str:room>", "/ws/a%2Fb", None),
            ("ws/<str:room>", "/ws/a%0A", Some(&["a\n"])),
            ("ws/<path:room>", "/ws/a%0A", None),
            ("ws/<str:room>", "/ws/%zz", Some(&["%zz"])),
            ("ws/<str:room>", "/ws/%FF", None),
            ("ws/<int:n>", "/ws/007", Some(&["7"])),
            ("ws/<int:n>", "/ws/000", Some(&["0"])),
            ("ws/<int:n>", "/ws/-1", None),
            ("ws/<int:n>", "/ws/%EF%BC%91", None),
            ("ws/<path:p>/end", "/ws/a/b/end", Some(&["a/b"])),
            ("<path:a>/<path:b>", "/1/2/3", Some(&["1/2", "3"])),
            ("<str:a><str:b>", "/x%C3%A9", Some(&["x", "é"])),
            ("<str:a><str:b>", "/%C3%A9", None),
            ("<int:a><int:b>", "/1234", Some(&["123", "4"])),
            ("<slug:a>-<slug:b>", "/x-y-z", Some(&["x-y", "z"])),
            ("<slug:a>-<int:b>x", "/q-1-2x", Some(&["q-1", "2"])),
            ("a b/<x>", "/a%20b/c", Some(&["c"])),
            ("é/<x>", "/%C3%A9/c", Some(&["c"])),
        ];
        for (route, raw, expected) in cases {
            let expected = expected.map(|v| v.iter().map(|s| (*s).to_owned()).collect());
            assert_eq!(found(route, raw), expected, "{route} {raw}");
        }
        assert_eq!(
            found("<uuid:u>", &format!("/{uuid}")),
            Some(vec![uuid.into()])
        );
        assert_eq!(
            found("<uuid:u>", &format!("/{}", uuid.to_uppercase())),
            None
        );
        assert_eq!(
            found("<uuid:u>", &format!("/{}", uuid.replace('-', ""))),
            None
        );
        assert_eq!(
            found("<uuid:u><str:x>", &format!("/{uuid}y")),
            Some(vec![uuid.into(), "y".into()])
        );
        assert_eq!(found("<int:n>", &format!("/{huge}")), Some(vec![huge]));
        assert_eq!(found("<int:n>", &format!("/{}", "1".repeat(4301))), None);
    }

    #[test]
    fn the_first_route_wins() {
        let routes = routes(&["ws/<int:n>/", "ws/<slug:s>/", "ws/1/"]).unwrap();
        assert_eq!(routes.find("/ws/1/").unwrap().0, 0);
        assert_eq!(routes.find("/ws/one/").unwrap().0, 1);
        assert!(routes.find("/").is_none());
    }

    #[test]
    fn hostile_paths_cost_linear_time() {
        let routes = routes(&["<path:a>/<path:b>/<path:c>/<path:d>/end"]).unwrap();
        let began = std::time::Instant::now();
        assert!(routes.find(&format!("/{}", "a/".repeat(8000))).is_none());
        assert!(began.elapsed().as_millis() < 200, "{:?}", began.elapsed());
    }

    #[test]
    fn what_is_wrong_is_named_all_at_once() {
        let problems: Vec<_> = routes(&[
            "/ws/",
            "ok/<int:a>",
            "<float:x>",
            "<int:1x>",
            "<int:>",
            "<a>/<int:a>",
            "<a",
            "a>",
            "<int: a>",
        ])
        .unwrap_err()
        .into_iter()
        .map(|error| (error.route, error.problem))
        .collect();
        let name = |text: &str| RouteProblem::ParameterName(text.into());
        assert_eq!(
            problems,
            [
                (0, RouteProblem::LeadingSlash),
                (2, RouteProblem::UnknownConverter("float".into())),
                (3, name("1x")),
                (4, name("")),
                (5, RouteProblem::DuplicateParameter("a".into())),
                (6, RouteProblem::Brackets),
                (7, RouteProblem::Brackets),
                (8, name(" a")),
            ]
        );
    }

    #[test]
    fn a_parameter_cannot_hide_the_user_id_of_authorize() {
        let config = RouteConfig {
            path: "<int:user_id>/".into(),
            authorize: Some("SELECT 1 WHERE :user_id = 1".into()),
            ..RouteConfig::default()
        };
        let errors = Routes::parse(&[config]).unwrap_err();
        assert_eq!(errors[0].problem, RouteProblem::HidesUserId);
    }
}
