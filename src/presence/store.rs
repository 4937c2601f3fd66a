//! The presence of groups in Redis: the scripts, their keys, and what they answer.
//!
//! | key | holds |
//! | --- | --- |
//! | `presence:{CHANNEL}` | hash, the index: `epoch`, `changes` (the number of the last notice), and the sockets of each replica |
//! | `presence:{CHANNEL}:REPLICA` | hash: each user's entry of one replica, `{"sockets","user"}` |
//! | `presence:{CHANNEL}:users` | sorted set: the users that members know of, those who linger included |
//! | `presence:{CHANNEL}:leaving` | sorted set: who lingers, by the milliseconds until when |
//! | `presence-replicas` | sorted set: the replicas, by the milliseconds until which each lives |

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, Pipeline, RedisResult, Script, ServerErrorKind, Value};

use super::PresencePlace;
use super::present::Write;
use crate::error::{ErrorKind, StoreError};
use crate::ids::{TenantId, UserId, random_hex};
use crate::stores::redis::RedisStore;
use crate::stores::redis_keys;
use crate::stores::redis_round::ScriptLoad;

static UPDATE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("script/update.lua")));
static UPDATE_SHARDED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&include_str!("script/update.lua").replace("'PUBLISH'", "'SPUBLISH'"))
});
static PAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("script/page.lua")));
static ANNOUNCED: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("script/announced.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("script/renew.lua")));

/// Life of a group's keys. Each look at a group renews it, and every group is looked at more often.
const KEYS_LIVE: Duration = Duration::from_secs(3600);
/// Time without a renewal after which a replica is dead.
pub(super) const REPLICA_LIVES: Duration = Duration::from_secs(15);
/// The most bytes of an entry; a longer one is not of ours.
const MOST_ENTRY_BYTES: usize = 16 * 1024;
/// Bytes of the longest id: the head of a request, which has the token that names the user, has no more. A longer one is not of
/// ours, and the scripts remove it.
const LONGEST_ID: usize = 32 * 1024;
/// Bytes of entries after which a page ends before its number of users is reached.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// The most users of a group that its members are told of, and the most bytes of their ids. Others can write sets of any size.
const MOST_ANNOUNCED: (usize, usize) = (200_000, 8 * 1024 * 1024);
/// The most dead replicas that one script takes back.
const MOST_DEAD: usize = 32;

/// The users that the members of a group know of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The epoch of the group's notices; empty if there is no presence.
    pub epoch: String,
    /// The number of the last notice.
    pub number: u64,
    /// Those who are there and those who linger.
    pub users: Vec<UserId>,
}

/// A user who is in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentUser {
    /// The id.
    pub id: UserId,
    /// The user's sockets on all replicas.
    pub sockets: u64,
    /// UserFields of the user record, as a JSON object.
    pub fields: String,
}

/// A page of the users of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserPage {
    /// The sockets in the group.
    pub sockets: u64,
    /// The number of ids in the set of users, less those of users who linger. Ids that others wrote are among them.
    pub ids: u64,
    /// In the order of their ids' bytes.
    pub users: Vec<PresentUser>,
    /// The id after which the next page begins; `None` after the last page.
    pub next: Option<String>,
}

/// A page as it was found.
pub(super) struct FoundPage {
    pub(super) page: UserPage,
    /// The ids of the replicas.
    pub(super) replicas: Vec<String>,
    /// Someone else wrote ids that stand out of order. An update puts them right.
    pub(super) disordered: bool,
}

/// The outcome of a write.
pub(super) struct Written {
    /// Time until the next user who lingers has left.
    pub(super) wait: Option<Duration>,
    /// The number of users of this replica that stand there.
    pub(super) held: u64,
    /// There is more to take back from dead replicas.
    pub(super) more: bool,
    /// The ids of the other replicas in the group.
    pub(super) others: Vec<String>,
    /// Redis' refusal to publish the notice.
    pub(super) refused: Option<String>,
}

/// The replicas of a tenant on one server.
pub(super) struct LivingReplicas {
    /// The own id lived until now.
    pub(super) lived: bool,
    pub(super) living: Vec<String>,
    pub(super) dead: Vec<String>,
}

/// The keys of one group.
struct GroupKeys {
    index: String,
    users: String,
    leaving: String,
}

impl GroupKeys {
    fn new(tenant: &TenantId, place: &PresencePlace) -> Self {
        let index = redis_keys::presence(tenant, &place.channel);
        Self {
            users: format!("{index}:users"),
            leaving: format!("{index}:leaving"),
            index,
        }
    }
}

/// Returns the script of [`update`]. A cluster has sharded channels.
fn update_script(store: &RedisStore) -> &'static Script {
    match store.is_cluster() {
        true => &UPDATE_SHARDED,
        false => &UPDATE,
    }
}

fn call(script: &Script, keys: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys.len()).arg(keys);
    command
}

/// Returns the call that writes a group as the replica `id` and takes back what `dead` replicas left.
pub(super) fn update(
    tenant: &TenantId,
    place: &PresencePlace,
    id: &str,
    write: &Write,
    dead: &[String],
) -> Cmd {
    let keys = GroupKeys::new(tenant, place);
    let own = format!("{}:{id}", keys.index);
    let script = update_script(&place.store);
    let mut command = call(script, &[&keys.index, &keys.users, &keys.leaving, &own]);
    let notices = match write.rule.notify {
        true => redis_keys::group_notices(tenant, &place.channel),
        false => String::new(),
    };
    let linger = u64::try_from(write.rule.linger.as_millis()).unwrap_or(u64::MAX);
    let dead = &dead[..dead.len().min(MOST_DEAD)];
    command.arg(id).arg(random_hex()).arg(notices).arg(linger);
    command.arg(KEYS_LIVE.as_secs()).arg(write.sockets);
    command.arg(u8::from(write.whole)).arg(LONGEST_ID);
    command.arg(dead.len()).arg(dead);
    for change in &write.changes {
        command.arg(change.user.as_str());
        command.arg(change.sockets).arg(&*change.fields);
    }
    command
}

/// Sends calls of [`update`] to one server in one round.
pub(super) async fn send_updates(
    store: &RedisStore,
    commands: &[Cmd],
) -> Result<Vec<RedisResult<Written>>, StoreError> {
    let answers = send_each(store, update_script(store), commands).await?;
    let written = |answer: RedisResult<Value>| {
        let (wait, held, more, others, refused): (i64, u64, u8, Vec<String>, String) =
            FromRedisValue::from_redis_value(answer?)?;
        Ok(Written {
            wait: u64::try_from(wait).ok().map(Duration::from_millis),
            held,
            more: more > 0,
            others,
            refused: (!refused.is_empty()).then_some(refused),
        })
    };
    Ok(answers.into_iter().map(written).collect())
}

/// Sends calls of one script in one round. Those that a server does not know the script for have not run; it is loaded, and
/// they are sent again.
async fn send_each(
    store: &RedisStore,
    script: &Script,
    commands: &[Cmd],
) -> Result<Vec<RedisResult<Value>>, StoreError> {
    let send = async |places: &[usize]| {
        let mut pipe = Pipeline::with_capacity(places.len());
        for at in places {
            pipe.add_command(commands[*at].clone());
        }
        store.query_each::<Value>("presence", &mut pipe).await
    };
    let mut places: Vec<usize> = (0..commands.len()).collect();
    let mut answers = send(&places).await?;
    let unknown = redis::ErrorKind::Server(ServerErrorKind::NoScript);
    places.retain(|at| {
        let error = answers.get(*at).and_then(|answer| answer.as_ref().err());
        error.is_some_and(|error| error.kind() == unknown)
    });
    if places.is_empty() {
        return Ok(answers);
    }
    store
        .query_again::<Value>("presence", &ScriptLoad(script))
        .await?;
    for (at, answer) in places.iter().zip(send(&places).await?) {
        answers[*at] = answer;
    }
    Ok(answers)
}

async fn send<T: FromRedisValue>(
    store: &RedisStore,
    script: &Script,
    command: Cmd,
) -> Result<T, StoreError> {
    let failed = |kind, text: String| StoreError::new(store.dependency(), kind, text);
    let mut answers = send_each(store, script, &[command]).await?;
    let answer = answers
        .pop()
        .ok_or_else(|| failed(ErrorKind::Protocol, "no answer to a script".to_owned()))?;
    let read = answer.and_then(|answer| Ok(T::from_redis_value(answer)?));
    read.map_err(|error| failed(crate::stores::redis::error_kind(&error), error.to_string()))
}

/// Reads a page of the users after `after` (empty: from the first), or of the users `of`.
pub(super) async fn page(
    tenant: &TenantId,
    place: &PresencePlace,
    (after, limit): (&str, usize),
    of: &[UserId],
) -> Result<FoundPage, StoreError> {
    let keys = GroupKeys::new(tenant, place);
    let mut command = call(&PAGE, &[&keys.index, &keys.users, &keys.leaving]);
    command.arg(after).arg(limit).arg(MOST_ENTRY_BYTES);
    command.arg(LONGEST_ID).arg(PAGE_BYTES);
    for user in of {
        command.arg(user.as_str());
    }
    type PageAnswer = (u64, i64, Vec<String>, Vec<u8>, Vec<Value>, u8);
    let (sockets, ids, replicas, last, users, disordered): PageAnswer =
        send(&place.store, &PAGE, command).await?;
    let user = |user: Value| {
        // What someone else wrote is no user.
        let (id, entries): (String, Vec<Vec<u8>>) = FromRedisValue::from_redis_value(user).ok()?;
        user_of(id, &entries)
    };
    let page = UserPage {
        sockets,
        ids: u64::try_from(ids).unwrap_or_default(),
        users: users.into_iter().filter_map(user).collect(),
        next: Some(last).filter(|last| !last.is_empty()).and_then(cursor),
    };
    Ok(FoundPage {
        page,
        replicas,
        disordered: disordered > 0,
    })
}

/// Returns the text behind which the page after `id` begins; `None` if no text is behind it.
///
/// An id that someone else wrote need not be a text. The first text behind it stands for it then.
fn cursor(id: Vec<u8>) -> Option<String> {
    let error = match String::from_utf8(id) {
        Ok(id) => return Some(id),
        Err(error) => error,
    };
    let valid = error.utf8_error().valid_up_to();
    let (text, rest) = error.as_bytes().split_at(valid);
    let mut text = String::from_utf8_lossy(text).into_owned();
    // Texts are in the order of their code points.
    let is_behind = |next: &char| next.encode_utf8(&mut [0; 4]).as_bytes() > rest;
    let mut next = ('\0'..=char::MAX).find(is_behind);
    while next.is_none() {
        let before = text.pop()?;
        next = (before..=char::MAX).nth(1);
    }
    text.extend(next);
    Some(text)
}

/// Joins the entries of one user on all replicas. Entries that are none of ours do not count.
fn user_of(id: String, entries: &[Vec<u8>]) -> Option<PresentUser> {
    #[derive(serde::Deserialize)]
    struct UserEntry<'a> {
        sockets: u32,
        #[serde(borrow)]
        user: &'a serde_json::value::RawValue,
    }
    let entries = entries.iter().filter_map(|entry| {
        let entry: UserEntry<'_> = serde_json::from_slice(entry).ok()?;
        entry.user.get().starts_with('{').then_some(entry)
    });
    let entries: Vec<UserEntry<'_>> = entries.collect();
    Some(PresentUser {
        id: id.into(),
        sockets: entries.iter().map(|entry| u64::from(entry.sockets)).sum(),
        fields: entries.first()?.user.get().to_owned(),
    })
}

/// Reads the users that the members of a group know of.
pub(super) async fn announced(
    tenant: &TenantId,
    place: &PresencePlace,
) -> Result<Announced, StoreError> {
    let keys = GroupKeys::new(tenant, place);
    let mut command = call(&ANNOUNCED, &[&keys.index, &keys.users]);
    command.arg(LONGEST_ID);
    command.arg(MOST_ANNOUNCED.0).arg(MOST_ANNOUNCED.1);
    let (epoch, number, users): (String, u64, Vec<Value>) =
        send(&place.store, &ANNOUNCED, command).await?;
    let users = users.into_iter();
    let users = users.filter_map(|user| String::from_redis_value(user).ok());
    Ok(Announced {
        epoch,
        number,
        users: users.map(UserId::from).collect(),
    })
}

/// Shows that the replica `id` lives (empty: only reads), and reads which others do.
pub(super) async fn renew(
    tenant: &TenantId,
    store: &Arc<RedisStore>,
    id: &str,
) -> Result<LivingReplicas, StoreError> {
    sign(tenant, store, id, REPLICA_LIVES).await
}

/// Shows that the replica `id` has ended, so that the others look for users who linger.
pub(super) async fn end(tenant: &TenantId, store: &RedisStore, id: &str) -> Result<(), StoreError> {
    sign(tenant, store, id, Duration::ZERO).await.map(drop)
}

async fn sign(
    tenant: &TenantId,
    store: &RedisStore,
    id: &str,
    life: Duration,
) -> Result<LivingReplicas, StoreError> {
    let key = redis_keys::presence_replicas(tenant);
    let mut command = call(&RENEW, &[&key]);
    command.arg(id).arg(life.as_millis() as u64);
    command.arg(KEYS_LIVE.as_millis() as u64);
    command.arg(REPLICA_LIVES.as_millis() as u64);
    let (lived, living, dead): (u8, Vec<String>, Vec<String>) =
        send(store, &RENEW, command).await?;
    Ok(LivingReplicas {
        lived: lived > 0,
        living,
        dead,
    })
}

/// Takes out the replica `id`, which writes under another id now.
pub(super) async fn take_out(
    tenant: &TenantId,
    store: &RedisStore,
    id: &str,
) -> Result<(), StoreError> {
    let mut command = redis::cmd("ZREM");
    command.arg(redis_keys::presence_replicas(tenant)).arg(id);
    store.query_again::<Value>("presence", &command).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next page began before such an id, and had it again.
    #[test]
    fn the_cursor_behind_an_id_that_is_no_text_is_behind_it() {
        for (id, next) in [
            (&b"alice"[..], Some("alice")),
            (b"9\xc8", Some("9\u{200}")),
            (b"a\x80b", Some("a\u{80}")),
            (b"a\xed\xa0\x80", Some("a\u{e000}")),
            (b"a\xff", Some("b")),
            (b"\xff", None),
            (b"\xf4\x8f\xbf\xbf\xff", None),
        ] {
            assert_eq!(cursor(id.to_vec()).as_deref(), next, "{id:?}");
            assert!(next.is_none_or(|next| next.as_bytes() >= id));
        }
    }

    #[test]
    fn entries_of_all_replicas_are_one_user_and_garbage_is_none() {
        let entries = |texts: &[&str]| -> Vec<Vec<u8>> {
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        };
        let user = user_of(
            "7".to_owned(),
            &entries(&[
                "garbage",
                r#"{"sockets":2,"user":{"a":1}}"#,
                r#"{"sockets":-1,"user":{}}"#,
                r#"{"sockets":1,"user":[]}"#,
                "\u{0}",
                r#"{"sockets":1,"user":{"a":2}}"#,
            ]),
        );
        let user = user.unwrap();
        assert_eq!((user.sockets, &*user.fields), (3, r#"{"a":1}"#));
        assert_eq!(user_of("7".to_owned(), &entries(&["[]"])), None);
    }
}
