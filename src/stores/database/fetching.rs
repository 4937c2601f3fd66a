//! Reads users by their ids. A user whose rows are too long or too many costs a part of a statement, and no other user.

use std::collections::{HashMap, HashSet};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::answer::{MAX_ROWS, ReadTurn, SqlAnswer, size};
use super::columns::missing_column;
use super::link::{AskError, USERS, ValueFault};
use super::statement::Bind;
use super::user_query::UserPlan;
use super::{
    ColumnProblem, Database, Dialect, MAX_IDS, Pools, UserQuery, UserRow, postgres, refused,
};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::UserId;
use crate::metrics;

/// The time from the start of a slow statement in which the statements for its users alone begin. A statement that begins then
/// ends within the 5 s that a handshake waits.
const BEGIN_ALONE: Duration = Duration::from_secs(3);
/// The most statements for users of one slow statement at once.
const MOST_BESIDE: u32 = 8;

/// The result of [`Database::fetch_users`].
#[derive(Debug, Default)]
pub struct FetchedUsers {
    /// The rows of the users that the database has.
    pub rows: Vec<UserRow>,
    /// The users whose row the database may have and that cannot be read, for example text that is not valid in its encoding.
    pub unreadable: Vec<(UserId, StoreError)>,
    /// The users for whom the database had no answer in time, without a sign that their rows are the reason.
    pub unanswered: Vec<(UserId, StoreError)>,
}

impl FetchedUsers {
    /// Adds the only user of a statement that failed for a value.
    fn blame(&mut self, ids: &[UserId], fault: ValueFault, error: StoreError) {
        let error = match fault {
            // No row can hold the id.
            ValueFault::Parameter => return,
            ValueFault::Unknown | ValueFault::TooSlow => error,
            ValueFault::TooLong => too_long(),
        };
        self.unreadable.extend(alone(ids, || error));
    }
}

impl Database {
    /// Returns the rows of the users `ids`, in no particular order. An id without a row is not a user. Two rows with
    /// one id are both returned, and neither is the user (see [`by_id`]).
    ///
    /// Of what the database holds, a bounded part comes into memory: a row over 256 KiB is not sent, and an answer ends after
    /// 2,048 rows or 8 MiB. The users for whom that leaves a doubt are asked for again.
    ///
    /// # Errors
    /// Fails if the database does not answer for any of them, or `query` does not fit it.
    pub async fn fetch_users(
        &self,
        query: &UserQuery,
        ids: &[UserId],
    ) -> Result<FetchedUsers, StoreError> {
        let mut fetched = FetchedUsers::default();
        let mut parts: Vec<Vec<UserId>> = ids.chunks(MAX_IDS).map(<[_]>::to_vec).collect();
        while let Some(part) = parts.pop() {
            let until = Instant::now() + BEGIN_ALONE;
            let failed = match self.fetch_part(query, &part).await {
                Ok(found) => {
                    parts.extend(found.settle(&part, &mut fetched));
                    continue;
                }
                Err(failed) => failed,
            };
            match failed.value {
                Some(ValueFault::TooSlow) if self.is_fast(query).await => {
                    self.fetch_each(query, part, until, &mut fetched).await;
                }
                // A database that is slow for everyone would be asked the more, the slower it is.
                None | Some(ValueFault::TooSlow) => {
                    if failed.value.is_some() {
                        self.health.failed(&failed.error);
                    }
                    parts.push(part);
                    let rest = parts.concat();
                    if rest.len() == ids.len() {
                        return Err(failed.error);
                    }
                    let unanswered = rest.into_iter();
                    let unanswered = unanswered.map(|id| (id, failed.error.for_another()));
                    fetched.unanswered.extend(unanswered);
                    break;
                }
                // One value that the database cannot read must not hide the other users, so halves are asked
                // for until it stands alone.
                Some(_) if part.len() > 1 => parts.extend(halves(&part)),
                Some(fault) => fetched.blame(&part, fault, failed.error),
            }
        }
        Ok(fetched)
    }

    /// Asks for each of the users of a slow statement alone, for some of them beside each other. A user who is slow
    /// alone, while the database is fast for others before and after, is unusable: a lock that the first statement waited for is
    /// gone by then.
    async fn fetch_each(
        &self,
        query: &UserQuery,
        ids: Vec<UserId>,
        until: Instant,
        fetched: &mut FetchedUsers,
    ) {
        let beside = self.beside();
        let mut ids = ids.into_iter();
        let (mut asked, mut begun, mut slow) = (FuturesUnordered::new(), 0, Vec::new());
        loop {
            while asked.len() < beside
                && (begun < beside || Instant::now() < until)
                && let Some(id) = ids.next()
            {
                begun += 1;
                asked.push(self.fetch_one(query, id));
            }
            let Some((id, answer)) = asked.next().await else {
                break;
            };
            match answer {
                Ok(found) => drop(found.settle(&[id], fetched)),
                Err(failed) => match failed.value {
                    Some(ValueFault::TooSlow) => slow.push((id, failed.error)),
                    Some(fault) => fetched.blame(&[id], fault, failed.error),
                    None => fetched.unanswered.push((id, failed.error)),
                },
            }
        }
        let late = || StoreError::timeout(Dependency::Database, BEGIN_ALONE);
        fetched.unanswered.extend(ids.map(|id| (id, late())));
        match slow.first() {
            Some((_, error)) if !self.is_fast(query).await => {
                self.health.failed(error);
                fetched.unanswered.extend(slow);
            }
            _ => fetched.unreadable.extend(slow),
        }
    }

    async fn fetch_one(
        &self,
        query: &UserQuery,
        id: UserId,
    ) -> (UserId, Result<FoundRows, AskError>) {
        let answer = self.fetch_part(query, slice::from_ref(&id)).await;
        (id, answer)
    }

    /// Returns the most statements for users of one slow statement at once. A connection is left for others, if there are two.
    fn beside(&self) -> usize {
        let most = match &self.pools {
            Pools::Postgres(pool) => pool.pool.options().get_max_connections(),
            Pools::MySql(pool) => pool.options().get_max_connections(),
            Pools::Sqlite(pool) => pool.options().get_max_connections(),
        };
        most.saturating_sub(1).clamp(1, MOST_BESIDE) as usize
    }

    /// Returns true if the statement ends in time for an id that no user need have, so that the values of others made it slow.
    async fn is_fast(&self, query: &UserQuery) -> bool {
        let Ok(plan) = self.plan(query).await else {
            return false;
        };
        match self.ask_users(&plan, &query.binds(&query.probe())).await {
            Ok(_) => true,
            Err(failed) => failed.value == Some(ValueFault::Parameter),
        }
    }

    async fn fetch_part(&self, query: &UserQuery, ids: &[UserId]) -> Result<FoundRows, AskError> {
        let mut binds: Vec<_> = ids.iter().flat_map(|id| query.binds(id)).collect();
        let Some(last) = binds.last().cloned() else {
            return Ok(FoundRows::default());
        };
        // The last id is repeated up to a power of two (see `MAX_IDS`).
        binds.resize(binds.len().next_power_of_two(), last);
        let plan = self.plan(query).await?;
        let answer = match self.ask_users(&plan, &binds).await {
            // A migration has changed the table: its columns are read again, once.
            Err(failed) if failed.schema_changed && query.forget_plan(&plan) => {
                let plan = self.plan(query).await?;
                self.ask_users(&plan, &binds).await?
            }
            answer => answer?,
        };
        let mut found = FoundRows {
            is_stopped: answer.is_stopped,
            ..FoundRows::default()
        };
        let asked: HashSet<&UserId> = ids.iter().collect();
        let (mut reader, mut turn) = (query.row_reader(), ReadTurn::default());
        for row in &answer.rows {
            match reader.read(row) {
                // A collation that ignores case also finds users that were not asked for.
                Ok(user) => found
                    .rows
                    .extend(user.filter(|user| asked.contains(&user.id))),
                Err(column) => {
                    let problem = ColumnProblem::NotReturned {
                        column: column.to_owned(),
                    };
                    return Err(refused(problem));
                }
            }
            turn.spend(size(row)).await;
        }
        for row in &answer.cut {
            match query.id_of_cut(row) {
                Some(id) if asked.contains(&id) => found.too_long.push(id),
                Some(_) => {}
                None => found.has_nameless = true,
            }
        }
        Ok(found)
    }

    pub(super) async fn ask_users(
        &self,
        plan: &UserPlan,
        binds: &[Bind],
    ) -> Result<SqlAnswer, AskError> {
        let (sql, binds) = plan.statement.render(|_| binds.to_vec());
        let sql = match (&plan.frame, self.dialect()) {
            (Some(frame), _) => frame.around(&sql),
            (None, Dialect::Postgres) => {
                postgres::bounded_rows(&sql, plan.field.as_deref(), &plan.names)
            }
            (None, Dialect::MySql | Dialect::Sqlite) => sql,
        };
        metrics::user_query();
        self.ask(USERS, sql, binds).await
    }

    /// Returns the plan for reading users. If none is known, the database describes the columns.
    async fn plan(&self, query: &UserQuery) -> Result<Arc<UserPlan>, AskError> {
        if let Some(plan) = query.plan() {
            return Ok(plan);
        }
        let columns = self.columns(query).await?;
        if let Some(problem) = columns.too_many() {
            return Err(refused(problem));
        }
        if query.table().is_some()
            && let Some(column) = query.missing(&columns.readable)
        {
            return Err(refused(missing_column(query, &columns, column)));
        }
        self.plan_of(query, &columns).await
    }
}

/// The rows of one statement.
#[derive(Debug, Default)]
struct FoundRows {
    rows: Vec<UserRow>,
    /// The users of rows that are too long.
    too_long: Vec<UserId>,
    /// There are rows that are too long and do not say of which user.
    has_nameless: bool,
    /// There may be more rows.
    is_stopped: bool,
}

impl FoundRows {
    /// Adds what is certain to `fetched`. Returns the users that must be asked for again, in fewer at once.
    fn settle(self, ids: &[UserId], fetched: &mut FetchedUsers) -> Vec<Vec<UserId>> {
        let mut settled: HashSet<UserId> = self.too_long.iter().cloned().collect();
        fetched
            .unreadable
            .extend(self.too_long.into_iter().map(|id| (id, too_long())));
        if !self.is_stopped && !self.has_nameless {
            fetched.rows.extend(self.rows);
            return Vec::new();
        }
        // A user who has two rows already is unusable, whatever else there is.
        let mut seen = HashSet::new();
        let twice = self.rows.iter().filter(|row| !seen.insert(&row.id));
        settled.extend(twice.map(|row| row.id.clone()));
        let kept = self
            .rows
            .into_iter()
            .filter(|row| settled.contains(&row.id));
        fetched.rows.extend(kept);
        let rest = ids.iter().filter(|id| !settled.contains(*id));
        let rest: Vec<UserId> = rest.cloned().collect();
        match rest.len() {
            0 => Vec::new(),
            fewer if fewer < ids.len() => vec![rest],
            1 => {
                let why = if self.has_nameless {
                    too_long
                } else {
                    too_many
                };
                fetched.unreadable.extend(alone(&rest, why));
                Vec::new()
            }
            _ => halves(&rest).into(),
        }
    }
}

fn halves(ids: &[UserId]) -> [Vec<UserId>; 2] {
    let (left, right) = ids.split_at(ids.len() / 2);
    [left.to_vec(), right.to_vec()]
}

fn alone(ids: &[UserId], why: impl FnOnce() -> StoreError) -> Option<(UserId, StoreError)> {
    Some((ids.first()?.clone(), why()))
}

fn too_long() -> StoreError {
    unusable("the user's columns have more than 64 KiB; select fewer".to_owned())
}

fn too_many() -> StoreError {
    unusable(format!(
        "the statement for this user alone returns more than {MAX_ROWS} rows or 8 MiB of other users"
    ))
}

fn unusable(why: String) -> StoreError {
    StoreError::new(Dependency::Database, ErrorKind::Other, why)
}

/// Returns the rows by id; `None` for an id with several rows, because none of them can be trusted.
pub fn by_id(rows: Vec<UserRow>) -> HashMap<UserId, Option<UserRow>> {
    let mut users = HashMap::with_capacity(rows.len());
    for row in rows {
        users
            .entry(row.id.clone())
            .and_modify(|known| *known = None)
            .or_insert(Some(row));
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<UserId> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn row(id: &str) -> UserRow {
        UserRow {
            id: id.into(),
            is_active: Some(true),
            fields: "{}".into(),
            password_digest: None,
        }
    }

    #[test]
    fn two_rows_for_one_id_are_no_user() {
        let users = by_id(vec![row("1"), row("2"), row("1"), row("1")]);
        assert!(users["1"].is_none());
        assert!(users["2"].is_some());
    }

    #[test]
    fn after_an_answer_that_was_stopped_only_what_is_certain_is_kept() {
        let stopped = |rows: &[&str]| FoundRows {
            rows: rows.iter().map(|id| row(id)).collect(),
            is_stopped: true,
            ..FoundRows::default()
        };
        let all = ids(&["1", "2", "3", "4"]);
        let mut fetched = FetchedUsers::default();
        // The rows of 2 may be more, and 3 may have some.
        let again = stopped(&["1", "2", "1"]).settle(&all, &mut fetched);
        assert_eq!(again, [ids(&["2", "3", "4"])]);
        assert!(by_id(fetched.rows)["1"].is_none());
        let mut fetched = FetchedUsers::default();
        let again = stopped(&["1", "2"]).settle(&all, &mut fetched);
        assert_eq!(again, [ids(&["1", "2"]), ids(&["3", "4"])]);
        assert!(fetched.rows.is_empty());
        let again = stopped(&[]).settle(&all[..1], &mut fetched);
        assert!(again.is_empty());
        assert_eq!(fetched.unreadable[0].0, all[0]);
    }

    #[test]
    fn a_row_that_is_too_long_settles_its_user_alone() {
        let all = ids(&["1", "2", "3"]);
        let mut fetched = FetchedUsers::default();
        let found = FoundRows {
            rows: vec![row("1")],
            too_long: ids(&["2"]),
            ..FoundRows::default()
        };
        assert!(found.settle(&all, &mut fetched).is_empty());
        assert_eq!(fetched.rows.len(), 1);
        assert_eq!(fetched.unreadable[0].0, all[1]);
        let nameless = || FoundRows {
            has_nameless: true,
            ..FoundRows::default()
        };
        let again = nameless().settle(&all, &mut fetched);
        assert_eq!(again, [ids(&["1"]), ids(&["2", "3"])]);
        assert!(nameless().settle(&all[..1], &mut fetched).is_empty());
        assert_eq!(fetched.unreadable[1].0, all[0]);
    }
}
