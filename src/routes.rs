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

use crate::config::RouteConfig;
use regular_expression::{as_path, is_regular_expression};

mod converter;
mod matching;
mod problem;
mod regular_expression;

pub use converter::{Converter, PathValue};
pub use problem::{RouteError, RouteProblem};

/// The most routes of a tenant: each connect tries them in order, and `config check` compares each with all others.
pub const MOST_ROUTES: usize = 1000;

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
        match (text, placeholder(text)) {
            ("", _) => Err(RouteProblem::NoName),
            (_, Some(name)) => Err(RouteProblem::Placeholder(name.to_owned())),
            _ => Self::parse_parts(text),
        }
    }

    /// Returns one of the shortest texts that match, with digits for the parameters.
    pub fn shortest(&self) -> String {
        let parts = self.parts.iter();
        parts
            .map(|part| match part {
                RoutePart::Literal(text) => &**text,
                RoutePart::Param(_, converter) => converter.shortest(),
            })
            .collect()
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

/// Returns the name in the first placeholder such as `{room}`, as the `groups` of a route have it.
fn placeholder(text: &str) -> Option<&str> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
    let mut names = { text.split('{').skip(1) }.filter_map(|part| Some(part.split_once('}')?.0));
    names.find(|name| !name.is_empty() && name.chars().all(letter))
}

#[cfg(test)]
mod tests;
