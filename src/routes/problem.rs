//! The errors of routes, as configurations have them.

use super::MOST_ROUTES;
use crate::config::Fault;

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
    #[error(
        "{{{0}}} is a placeholder as the groups of a route have it; here a parameter stands for any value: <slug:name>"
    )]
    Placeholder(String),
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
