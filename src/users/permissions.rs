//! Permissions: a route's `authorize` statement decides which users may join its groups.
//!
//! Its verdicts are cached for `users.authorize_ttl`. A verdict is found by a digest of what it is about, because a client
//! chooses its path: 6,000 refused paths of 15 KiB took 105 MB as keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use sha2::{Digest, Sha256};

use crate::config::{Fault, IdType, RouteConfig, TokenConfig, UsersConfig};
use crate::error::StoreError;
use crate::ids::UserId;
use crate::routes::{Converter, PathParams, PathValue, Route};
use crate::stores::database::{Database, Dialect, SqlParam, Statement, StatementError};
use crate::user_id;

/// The most cached verdicts of one tenant: 4 MB, since each takes about 200 bytes.
const MAX_VERDICTS: u64 = 20_000;

/// An `authorize` statement that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authorize: {problem}")]
pub struct PermissionError {
    /// The position of the route.
    pub route: usize,
    /// The error in the statement.
    pub problem: StatementError,
}

impl From<PermissionError> for Fault {
    fn from(PermissionError { route, problem }: PermissionError) -> Self {
        problem.fault(&format!("routes[{route}].authorize"), AUTHORIZE_EXAMPLE)
    }
}

/// A statement of `authorize` that is right.
pub const AUTHORIZE_EXAMPLE: &str =
    "SELECT 1 FROM members WHERE user_id = :user_id AND room = :room";

/// The `authorize` statements of one tenant's routes.
pub struct Permissions {
    statements: Vec<Option<Statement>>,
    id_type: IdType,
    /// `None`: no route has a statement.
    database: Option<Arc<Database>>,
    verdicts: Cache<VerdictKey, bool>,
    /// The number of calls of [`Permissions::forget`]. It is part of each cache key, so that a verdict read before a
    /// call is not found after it.
    epoch: AtomicU64,
}

/// The SHA-256 digest of what a verdict is about.
type VerdictKey = [u8; 32];

/// Returns the key of a verdict. Each part begins with its length, so that no two questions make one text.
fn verdict_key(epoch: u64, route: usize, user: Option<&UserId>, params: &PathParams) -> VerdictKey {
    let mut digest = Sha256::new();
    digest.update(epoch.to_be_bytes());
    digest.update(route.to_be_bytes());
    let mut part = |text: &str| {
        digest.update(text.len().to_be_bytes());
        digest.update(text);
    };
    // An anonymous socket has fewer parts than any user.
    if let Some(user) = user {
        part("user");
        part(user.as_str());
    }
    for (name, value) in params.iter() {
        part(name);
        part(value.as_str());
    }
    digest.finalize().into()
}

impl Permissions {
    /// Parses the statements, without a query to the database.
    ///
    /// # Errors
    /// All errors of all statements.
    pub fn new(
        routes: &[RouteConfig],
        users: &UsersConfig,
        token: &TokenConfig,
        database: Option<Arc<Database>>,
    ) -> Result<Self, Vec<PermissionError>> {
        let dialect = database.as_ref().map(|database| database.dialect());
        Ok(Self {
            statements: Self::read(routes, dialect)?,
            id_type: user_id::bound_type_of(token, users.id_type),
            database,
            verdicts: Cache::builder()
                .max_capacity(if users.authorize_ttl.is_zero() {
                    0
                } else {
                    MAX_VERDICTS
                })
                .time_to_live(users.authorize_ttl.max(Duration::from_millis(1)))
                .build(),
            epoch: AtomicU64::new(0),
        })
    }

    /// Parses the statement of each route, also for `config check`.
    ///
    /// A route whose path cannot be parsed gets none; the routes report that error. Without a `dialect` there is no database,
    /// and every statement is an error.
    ///
    /// # Errors
    /// All errors of all statements.
    pub fn read(
        routes: &[RouteConfig],
        dialect: Option<Dialect>,
    ) -> Result<Vec<Option<Statement>>, Vec<PermissionError>> {
        let mut errors = Vec::new();
        let mut statements = Vec::with_capacity(routes.len());
        for (route, config) in routes.iter().enumerate() {
            let (Some(sql), Ok(path)) = (&config.authorize, Route::parse(&config.path)) else {
                statements.push(None);
                continue;
            };
            match Self::statement(sql, &path, dialect) {
                Ok(statement) => statements.push(Some(statement)),
                Err(problem) => errors.push(PermissionError { route, problem }),
            }
        }
        if errors.is_empty() {
            Ok(statements)
        } else {
            Err(errors)
        }
    }

    /// Parses the statement beside a path or the name of groups, whose parameters it may use.
    ///
    /// # Errors
    /// The error in the statement; without a `dialect` every one is an error.
    pub fn statement(
        sql: &str,
        path: &Route,
        dialect: Option<Dialect>,
    ) -> Result<Statement, StatementError> {
        let mut names = vec!["user_id"];
        names.extend(path.params().map(|(name, _)| name));
        let dialect = dialect.ok_or(StatementError::NoDatabase)?;
        Statement::parse(sql, dialect, &names)
    }

    /// Returns true if `user` may join the groups of `route` with these path parameters, or if the route has no
    /// `authorize`. Without a user a statement with `:user_id` has no row.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn may_join(
        &self,
        route: usize,
        user: Option<&UserId>,
        params: &PathParams,
    ) -> Result<bool, StoreError> {
        let statement = self.statements.get(route).and_then(Option::as_ref);
        // A statement without a database was refused at the start.
        let (Some(statement), Some(database)) = (statement, &self.database) else {
            return Ok(true);
        };
        let epoch = self.epoch.load(Ordering::Acquire);
        let key = verdict_key(epoch, route, user, params);
        if let Some(verdict) = self.verdicts.get(&key) {
            return Ok(verdict);
        }
        // Boxed, because a statement in flight takes 6 KB, and each handshake would hold that room.
        let verdict = Box::pin(self.ask(database, statement, user, params)).await?;
        self.verdicts.insert(key, verdict);
        Ok(verdict)
    }

    async fn ask(
        &self,
        database: &Database,
        statement: &Statement,
        user: Option<&UserId>,
        params: &PathParams,
    ) -> Result<bool, StoreError> {
        let mut binds = Vec::new();
        let user_id = user.and_then(|user| match self.id_type {
            IdType::Int => int(user.as_str()),
            IdType::Uuid => Some(SqlParam::Uuid(user.to_string())),
            IdType::Text => Some(SqlParam::Text(user.to_string())),
        });
        let values = params.iter().map(|(name, value)| {
            let param = match value {
                PathValue::Int(digits) => int(digits),
                PathValue::Uuid(text) => Some(SqlParam::Uuid(text.to_string())),
                PathValue::Text(text) => Some(SqlParam::Text(text.to_string())),
            };
            (name, param)
        });
        for (name, param) in std::iter::once(("user_id", user_id)).chain(values) {
            match param {
                Some(param) => binds.push((name, param)),
                // No column can hold this number, so no row can contain it.
                None if statement.uses(name) => return Ok(false),
                None => {}
            }
        }
        database.exists(statement, &binds).await
    }

    /// Has the database read each statement without running it. Returns the routes whose statement it refuses, with the
    /// reason; a database that does not answer refuses nothing.
    pub async fn refused(&self, routes: &[RouteConfig]) -> Vec<(usize, StoreError)> {
        let mut refused = Vec::new();
        let Some(database) = &self.database else {
            return refused;
        };
        for (route, (statement, config)) in self.statements.iter().zip(routes).enumerate() {
            let (Some(statement), Ok(path)) = (statement, Route::of(config)) else {
                continue;
            };
            let mut probe = vec![(
                "user_id",
                match self.id_type {
                    IdType::Int => SqlParam::Int(0),
                    IdType::Uuid => SqlParam::Uuid(uuid::Uuid::nil().to_string()),
                    IdType::Text => SqlParam::Text(String::new()),
                },
            )];
            probe.extend(path.params().map(|(name, converter)| {
                let value = match converter {
                    Converter::Int => SqlParam::Int(0),
                    Converter::Uuid => SqlParam::Uuid(uuid::Uuid::nil().to_string()),
                    Converter::Str | Converter::Slug | Converter::Path => {
                        SqlParam::Text(String::new())
                    }
                };
                (name, value)
            }));
            match database.check_exists(statement, &probe).await {
                Err(error) if error.kind.is_outage() => {}
                Err(error) => refused.push((route, error)),
                Ok(()) => {}
            }
        }
        refused
    }

    /// Returns true if any route has `authorize`.
    pub fn are_asked(&self) -> bool {
        self.statements.iter().any(Option::is_some)
    }

    /// Frees the memory of verdicts that are too old.
    pub fn upkeep(&self) {
        if self.are_asked() {
            self.verdicts.run_pending_tasks();
        }
    }

    /// Drops every verdict, because a user was invalidated or the permissions of open sockets are checked again.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.verdicts.invalidate_all();
    }
}

fn int(digits: &str) -> Option<SqlParam> {
    digits.parse().ok().map(SqlParam::Int)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Routes;

    fn params(path: &str) -> PathParams {
        let routes = Routes::parse(&[route("<str:a>/<path:b>", None)]).unwrap();
        routes.find(&format!("/{path}")).unwrap().1
    }

    #[test]
    fn a_verdict_is_about_one_question() {
        let key = |epoch, route, user: &str, path| {
            verdict_key(epoch, route, Some(&user.into()), &params(path))
        };
        let keys = [
            key(0, 0, "7", "a/bc"),
            key(0, 0, "7", "ab/c"),
            key(0, 0, "7a", "a/bc"),
            key(0, 1, "7", "a/bc"),
            key(1, 0, "7", "a/bc"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], key(0, 0, "7", "a/bc"));
    }

    fn route(path: &str, authorize: Option<&str>) -> RouteConfig {
        RouteConfig {
            path: path.into(),
            authorize: authorize.map(Into::into),
            ..RouteConfig::default()
        }
    }

    #[test]
    fn statements_know_the_parameters_of_their_route() {
        let routes = [
            route("a/", None),
            route(
                "b/<int:room>/",
                Some("SELECT 1 FROM m WHERE r = :room AND u = :user_id"),
            ),
        ];
        let read = Permissions::read(&routes, Some(Dialect::Postgres)).unwrap();
        assert!(read[0].is_none() && read[1].is_some());
        let wrong = [
            route("b/<int:room>/", Some("SELECT :rom")),
            route("c", Some("")),
        ];
        let errors = Permissions::read(&wrong, Some(Dialect::Postgres)).unwrap_err();
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "authorize: there is no value for :rom; there are :user_id, :room",
                "authorize: it is empty"
            ]
        );
    }
}
