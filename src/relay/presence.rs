//! Presence of the tenant's groups: tells the keeper which sockets are where, and members who joined and left.
//!
//! The knowledge of members about each group is a [`View`], which one task holds. Messages of other replicas and reads of Redis meet
//! there, one after another.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::Relay;
use crate::channel_layer::ChannelLayer;
use crate::config::PresenceConfig;
use crate::error::StoreError;
use crate::frame::{Frame, Opcode};
use crate::group_rules::GroupRules;
use crate::hub::{Member, Pace, walk};
use crate::ids::{GroupName, TenantId, UserId};
use crate::metrics::TenantMetrics;
use crate::presence::{
    Notice, PageOf, PresenceKeeper, PresencePlace, PresentNumbers, Shown, UserFields, UserPage,
    View,
};
use crate::users::UserRecord;

/// Bytes of notices that may wait. Beyond them notices are dropped, and every view is compared with Redis.
const WAITING: u64 = 1024 * 1024;
/// Bytes that a notice counts beside its own.
const ENTRY: u64 = 96;
/// Pause after a read that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two comparisons of all views. Overload makes hundreds of gaps, and each may concern all groups.
const DOUBT_EVERY: Duration = Duration::from_secs(5);

/// The presence of a tenant whose rules ask for it.
pub(super) struct RelayPresence {
    rules: Arc<GroupRules>,
    keeper: PresenceKeeper,
    /// The groups with a view.
    viewed: Mutex<HashSet<GroupName>>,
    orders: mpsc::UnboundedSender<ViewOrder>,
    /// The bytes of notices among the orders.
    waiting: AtomicU64,
    /// The parts that the task takes when it starts.
    inputs: Mutex<Option<ViewInputs>>,
}

/// The queues of the task that holds the views.
struct ViewInputs {
    orders: mpsc::UnboundedReceiver<ViewOrder>,
    told: mpsc::UnboundedReceiver<(GroupName, Notice)>,
}

/// An order to the task that holds the views.
enum ViewOrder {
    Begin(GroupName),
    End(GroupName),
    Notice(GroupName, Bytes),
    /// Notices of all groups may have been missed.
    Doubt,
}

/// The group keeps no presence, or Redis did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// No rule asks for it.
    #[error("the group keeps no presence")]
    NotKept,
    /// Redis did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The record of a socket's user, as it was at the connect.
struct RecordFields(Arc<UserRecord>);

impl UserFields for RecordFields {
    fn json_of(&self, names: &[String]) -> Vec<(String, String)> {
        let text = self.0.fields.text();
        let fields: std::collections::HashMap<String, &RawValue> =
            serde_json::from_str(&text).unwrap_or_default();
        // The id stands beside the fields in any case.
        let names = names.iter().filter(|name| *name != "id");
        let field =
            |name: &String| Some((name.clone(), fields.get(name.as_str())?.get().to_owned()));
        names.filter_map(field).collect()
    }
}

impl RelayPresence {
    /// Returns the presence of a tenant; `None` if no rule asks for it.
    pub(super) fn new(
        tenant: &TenantId,
        rules: &Arc<GroupRules>,
        metrics: &Arc<TenantMetrics>,
    ) -> Option<Self> {
        if !rules.keep_presence() {
            return None;
        }
        let (orders, taken) = mpsc::unbounded_channel();
        let (teller, told) = mpsc::unbounded_channel();
        Some(Self {
            rules: rules.clone(),
            keeper: PresenceKeeper::new(tenant, metrics.clone(), teller),
            viewed: Mutex::default(),
            orders,
            waiting: AtomicU64::new(0),
            inputs: Mutex::new(Some(ViewInputs {
                orders: taken,
                told,
            })),
        })
    }

    fn rule(&self, group: &GroupName) -> Option<&PresenceConfig> {
        self.rules.of(group)?.presence.as_ref()
    }

    /// Takes a socket that is open, with its groups. An anonymous one is told of others, and they are not told of it.
    fn open(&self, member: &Member, user: Option<&Arc<UserRecord>>, layer: &dyn ChannelLayer) {
        if let Some(user) = user {
            let record = Arc::new(RecordFields(user.clone()));
            self.keeper.open(member.id(), user.id.clone(), record);
        }
        // After the socket is known: a group that it joins meanwhile is in this list, or comes by `joined`.
        for group in member.groups() {
            self.joined(member, &group, layer);
        }
    }

    /// Takes a socket that has joined a group. One that is not open yet does not count.
    pub(super) fn joined(&self, member: &Member, group: &GroupName, layer: &dyn ChannelLayer) {
        let Some(rule) = self.rule(group) else { return };
        let place = || place_of(layer, group);
        self.keeper.join(member.id(), group, rule, place);
        if rule.notify && self.viewed.lock().insert(group.clone()) {
            self.order(ViewOrder::Begin(group.clone()));
        }
    }

    /// Takes a socket that has left a group.
    pub(super) fn left(&self, member: &Member, group: &GroupName) {
        if self.rule(group).is_some() {
            self.keeper.leave(member.id(), group);
        }
    }

    /// Takes a socket that is gone.
    pub(super) fn closed(&self, member: &Member) {
        self.keeper.close_socket(member.id());
    }

    /// Ends the view of a group that has no members here any more.
    pub(super) fn emptied(&self, group: &GroupName) {
        if self.viewed.lock().remove(group) {
            self.order(ViewOrder::End(group.clone()));
        }
    }

    /// Takes a message of the group's replicas.
    pub(super) fn noticed(&self, group: GroupName, notice: Bytes) {
        let cost = ENTRY + notice.len() as u64;
        let before = self.waiting.fetch_add(cost, Ordering::Relaxed);
        if before > 0 && before + cost > WAITING {
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            self.doubt();
        } else {
            self.order(ViewOrder::Notice(group, notice));
        }
    }

    /// Notes that messages may have been missed.
    pub(super) fn doubt(&self) {
        self.order(ViewOrder::Doubt);
    }

    fn order(&self, order: ViewOrder) {
        // Fails only when the task has ended with the tenant.
        drop(self.orders.send(order));
    }

    /// Writes goodbye to all groups.
    pub(super) async fn close(&self) {
        self.keeper.close().await;
    }
}

fn place_of(layer: &dyn ChannelLayer, group: &GroupName) -> Option<PresencePlace> {
    let (store, channel) = layer.home(group)?;
    Some(PresencePlace {
        store,
        channel: channel.into(),
    })
}

impl Relay {
    /// Counts an open socket among those who are in its groups; `user` is the record of its user, `None` if it is anonymous.
    pub fn enter(&self, member: &Member, user: Option<&Arc<UserRecord>>) {
        if let Some(presence) = &self.presence {
            presence.open(member, user, &*self.parts.layer);
        }
    }

    /// Takes a notice of presence that came in.
    pub(super) fn noticed(&self, group: GroupName, notice: Bytes) {
        if let Some(presence) = &self.presence {
            presence.noticed(group, notice);
        }
    }

    /// Returns a page of the users that are in a group, on all replicas.
    ///
    /// # Errors
    /// [`PresenceError`]
    pub async fn users_in(
        &self,
        group: &GroupName,
        page: PageOf<'_>,
    ) -> Result<UserPage, PresenceError> {
        let presence = self.presence.as_ref().ok_or(PresenceError::NotKept)?;
        let rule = presence.rule(group).ok_or(PresenceError::NotKept)?;
        let place = place_of(&*self.parts.layer, group);
        let page = presence.keeper.page(group, rule, place.as_ref(), page);
        Ok(page.await?)
    }

    /// Counts the users that are in a group, on all replicas.
    ///
    /// # Errors
    /// [`PresenceError`]
    pub async fn count_users_in(&self, group: &GroupName) -> Result<PresentNumbers, PresenceError> {
        let presence = self.presence.as_ref().ok_or(PresenceError::NotKept)?;
        let rule = presence.rule(group).ok_or(PresenceError::NotKept)?;
        let place = place_of(&*self.parts.layer, group);
        let numbers = presence.keeper.count(group, rule, place.as_ref());
        Ok(numbers.await?)
    }

    /// Keeps the presence of the tenant until the task is dropped. Ends at once if no rule asks for it.
    pub async fn keep_presence(self: Arc<Self>) {
        let Some(presence) = &self.presence else {
            return;
        };
        let inputs = presence.inputs.lock().take();
        if let Some(inputs) = inputs {
            let views = Views::new(&self, presence);
            tokio::join!(presence.keeper.run(), views.run(inputs));
        }
    }
}

/// The views of all groups, and the task that holds them.
struct Views<'r> {
    relay: &'r Relay,
    presence: &'r RelayPresence,
    views: HashMap<GroupName, View>,
    /// The groups to read, by the time of each.
    reads: BTreeSet<(Instant, GroupName)>,
    /// The time of each of these groups.
    reads_of: HashMap<GroupName, Instant>,
    /// The time at which all views are compared with Redis.
    doubts_at: Option<Instant>,
    /// The time at which they last were.
    doubted: Option<Instant>,
    pace: Pace,
}

impl<'r> Views<'r> {
    fn new(relay: &'r Relay, presence: &'r RelayPresence) -> Self {
        Self {
            relay,
            presence,
            views: HashMap::new(),
            reads: BTreeSet::new(),
            reads_of: HashMap::new(),
            doubts_at: None,
            doubted: None,
            pace: Pace::default(),
        }
    }

    async fn run(mut self, mut inputs: ViewInputs) -> Infallible {
        loop {
            let next = self.reads.first().map(|(at, _)| *at);
            let next = next.into_iter().chain(self.doubts_at).min();
            let read = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Reads come first, so that a flood of notices cannot keep a view from what they are compared with.
                biased;
                () = read => match self.doubts_at.take_if(|at| *at <= Instant::now()) {
                    Some(_) => self.doubt_all(),
                    None => self.read_next().await,
                },
                Some(order) = inputs.orders.recv() => self.obey(order).await,
                Some((group, notice)) = inputs.told.recv() => self.take(group, notice).await,
            }
        }
    }

    async fn obey(&mut self, order: ViewOrder) {
        match order {
            ViewOrder::Begin(group) => {
                self.views.entry_ref(&group).or_default();
                self.schedule(group, Duration::ZERO);
            }
            ViewOrder::End(group) => drop(self.views.remove(&group)),
            ViewOrder::Notice(group, bytes) => {
                let cost = ENTRY + bytes.len() as u64;
                self.presence.waiting.fetch_sub(cost, Ordering::Relaxed);
                match Notice::read(&bytes) {
                    Ok(notice) => self.take(group, notice).await,
                    Err(_) => self.relay.parts.metrics.unreadable_values.increment(1),
                }
            }
            ViewOrder::Doubt => {
                let now = Instant::now();
                let earliest = self.doubted.map_or(now, |at| now.max(at + DOUBT_EVERY));
                self.doubts_at.get_or_insert(earliest);
            }
        }
    }

    fn doubt_all(&mut self) {
        let now = Instant::now();
        self.doubted = Some(now);
        self.views.values_mut().for_each(|view| view.doubt(now));
        let groups: Vec<GroupName> = self.views.keys().cloned().collect();
        for group in groups {
            self.schedule(group, Duration::ZERO);
        }
    }

    /// Notes when a group is to be read, at the earliest after `pause`.
    fn schedule(&mut self, group: GroupName, pause: Duration) {
        let now = Instant::now();
        let reads_at = self.views.get(&group).and_then(|view| view.reads_at(now));
        let Some(at) = reads_at.map(|at| at.max(now + pause)) else {
            return;
        };
        // One read answers all that were asked for until then.
        let known = self.reads_of.get(&group).copied();
        if known.is_some_and(|known| known <= at) {
            return;
        }
        if let Some(known) = known {
            self.reads.remove(&(known, group.clone()));
        }
        self.reads_of.insert(group.clone(), at);
        self.reads.insert((at, group));
    }

    async fn take(&mut self, group: GroupName, notice: Notice) {
        let Some(view) = self.views.get_mut(&group) else {
            return;
        };
        let shown = view.take(notice, Instant::now());
        self.tell(&group, shown).await;
        self.schedule(group, Duration::ZERO);
    }

    /// Reads the group whose time came first, if it still has to be read.
    async fn read_next(&mut self) {
        let Some((_, group)) = self.reads.pop_first() else {
            return;
        };
        self.reads_of.remove(&group);
        let now = Instant::now();
        let reads_at = self.views.get(&group).and_then(|view| view.reads_at(now));
        if reads_at.is_none_or(|at| at > now) {
            return self.schedule(group, Duration::ZERO);
        }
        let place = place_of(&*self.relay.parts.layer, &group);
        let keeper = &self.presence.keeper;
        let Ok(announced) = keeper.announced(&group, place.as_ref()).await else {
            // The store counts and logs it.
            return self.schedule(group, RETRY);
        };
        if let Some(view) = self.views.get_mut(&group) {
            let shown = view.read(announced, Instant::now());
            self.tell(&group, shown).await;
            self.schedule(group, Duration::ZERO);
        }
    }

    /// Tells the members of a group here.
    async fn tell(&mut self, group: &GroupName, shown: Vec<Shown>) {
        let Some(members) = self.relay.parts.hub.groups().get(group) else {
            return;
        };
        let unknown = shown.iter().filter_map(|shown| match shown {
            Shown::Join(user, None) => Some(user.clone()),
            _ => None,
        });
        let fields = self.fields_of(group, unknown.collect()).await;
        for shown in shown {
            let text = match &shown {
                Shown::Join(user, Some(fields)) => frame_text("join", group, user, fields),
                Shown::Join(user, None) => {
                    let fields = fields.get(user).map_or("{}", String::as_str);
                    frame_text("join", group, user, fields)
                }
                Shown::Leave(user) => frame_text("leave", group, user, "{}"),
            };
            let accounting = self.relay.accounting();
            let frame = Frame::encode(Opcode::Text, text.as_bytes(), accounting);
            let push = |member: &Arc<Member>| {
                member.outbound().push_frame(&frame);
            };
            let written = walk(&members, &mut self.pace, push).await;
            self.relay.count_written(&written);
        }
    }

    /// Reads the fields of users. One whose fields cannot be read is told without them.
    async fn fields_of(&self, group: &GroupName, users: Vec<UserId>) -> HashMap<UserId, String> {
        let place = place_of(&*self.relay.parts.layer, group);
        let mut fields = HashMap::new();
        for users in users.chunks(FIELDS_AT_ONCE) {
            let keeper = &self.presence.keeper;
            let read = keeper.users(group, place.as_ref(), users).await;
            let read = read.unwrap_or_default().into_iter();
            fields.extend(read.map(|user| (user.id, user.fields)));
        }
        fields
    }
}

/// Users whose fields are read in one round.
const FIELDS_AT_ONCE: usize = 500;

/// Returns `{"type":"lockgate.join","group":…,"user":{"id":…, fields}}`.
fn frame_text(kind: &str, group: &GroupName, user: &UserId, fields: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let (group, id) = (quoted(group.as_str()), quoted(user.as_str()));
    let between = if fields == "{}" { "" } else { "," };
    let rest = fields.strip_prefix('{').unwrap_or("}");
    format!(r#"{{"type":"lockgate.{kind}","group":{group},"user":{{"id":{id}{between}{rest}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_name_the_user_and_the_fields() {
        let (group, user) = ("g\"".into(), UserId::from("7"));
        assert_eq!(
            frame_text("join", &group, &user, r#"{"name":"é"}"#),
            r#"{"type":"lockgate.join","group":"g\"","user":{"id":"7","name":"é"}}"#
        );
        assert_eq!(
            frame_text("leave", &group, &user, "{}"),
            r#"{"type":"lockgate.leave","group":"g\"","user":{"id":"7"}}"#
        );
    }

    #[test]
    fn fields_of_a_record_keep_their_text_and_the_id_is_none_of_them() {
        let record = RecordFields(Arc::new(UserRecord {
            id: "7".into(),
            is_active: true,
            fields: r#"{"id":7,"n":1e400,"name":"a\"b","x":{"y":[1]}}"#.into(),
            password_digest: None,
        }));
        let names = ["x", "id", "absent", "n"].map(str::to_owned);
        let fields = [("x", r#"{"y":[1]}"#), ("n", "1e400")];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(record.json_of(&names), fields);
    }
}
