//! Starts, replaces and ends the tenants of one configuration after another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;

use super::build::Builder;
use super::directory::{Serving, tenant_of};
use super::life::Happening;
use super::{Making, Makings, RouteParts, Tenant, Tenants, look, obey, upkeep, workers};
use crate::channel_layer::Control;
use crate::close_code::CloseReason;
use crate::config::Config;
use crate::fleet::{self, DeploymentLine, Fleet, ReplicaList, reply_channel};
use crate::hosts::HostTable;
use crate::hub::{Hub, close_paced};
use crate::ids::TenantId;
use crate::metrics;
use crate::stores::key_store::KeyStore;
use crate::tasks::{self, Task};

/// Longest wait for the sockets of a leaving tenant once all were told to close: a socket's own closing time and a margin.
const LAST_SOCKETS: Duration = Duration::from_secs(10);
/// The time for which a replica takes part in the line of the deployment that a reload has replaced; the time limit of a
/// question is added. The others may reload later, and the reload is announced on the line that they hear.
const LAST_QUESTIONS: Duration = Duration::from_secs(30);
/// Pause between checks whether the sockets are gone.
const LOOK: Duration = Duration::from_millis(100);

/// The tasks behind a relay.
struct RelayTasks {
    _relay: Task,
    _presence: Task,
}

/// A tenant with its tasks.
struct Running {
    tenant: Arc<Tenant>,
    relay: Arc<RelayTasks>,
    /// Shared with the tenant that it replaces if the channel is the same.
    control: Arc<Task>,
    _upkeep: Task,
    _look: Task,
    _workers: Option<Task>,
}

/// Serves the tenants.
pub struct Tenancy {
    tenants: Arc<Tenants>,
    fleet: Arc<Fleet>,
    replicas: Arc<ReplicaList>,
    running: Mutex<BTreeMap<TenantId, Running>>,
    /// The task behind each control channel.
    hearing: Mutex<Vec<(Weak<Control>, Weak<Task>)>>,
    /// One channel of answers for each link that carries control channels.
    replies: Mutex<Vec<(Arc<Control>, Task)>>,
    /// The lines of the deployment, each with the task that hears it: the present one, and those that it replaced a moment ago.
    deployment: Mutex<Vec<(Arc<DeploymentLine>, Task)>>,
}

impl Tenancy {
    /// Serves nothing yet.
    pub fn new(tenants: Arc<Tenants>, fleet: Arc<Fleet>, replicas: Arc<ReplicaList>) -> Arc<Self> {
        Arc::new(Self {
            tenants,
            fleet,
            replicas,
            running: Mutex::default(),
            hearing: Mutex::default(),
            replies: Mutex::default(),
            deployment: Mutex::default(),
        })
    }

    /// Returns the lines of the deployment in which this replica takes part.
    pub fn deployment(&self) -> Vec<Arc<DeploymentLine>> {
        let lines = self.deployment.lock();
        lines.iter().map(|(line, _)| line.clone()).collect()
    }

    /// Takes part in what is asked on this line of the deployment, also while no tenant is made. The line before is heard for a
    /// while longer.
    pub fn take_part(self: &Arc<Self>, line: Option<Arc<DeploymentLine>>, builder: &Builder) {
        let before = self.fleet.deployment();
        if same_line(before.as_ref(), line.as_ref()) {
            return;
        }
        if let Some(line) = &line {
            let mut lines = self.deployment.lock();
            if !lines.iter().any(|(known, _)| Arc::ptr_eq(known, line)) {
                let hearing = fleet::hear_deployment(line.control.clone(), self.fleet.clone());
                let task = tasks::lasting("the deployment's control channel", hearing);
                lines.push((line.clone(), task));
            }
        }
        self.fleet.set_deployment(line);
        self.enter_deployment();
        self.take_replies(builder);
        if let Some(before) = before {
            let tenancy = self.clone();
            tasks::brief(async move {
                tokio::time::sleep(LAST_QUESTIONS + tenancy.fleet.timeout()).await;
                tenancy.leave_line(&before);
            });
        }
    }

    /// Enters the lists of the lines in which this replica takes part, the present one first.
    fn enter_deployment(&self) {
        let present = self.fleet.deployment();
        let mut lines = self.deployment();
        lines.sort_by_key(|line| !same_line(Some(line), present.as_ref()));
        let stores = lines.iter().map(|line| line.key_store.clone());
        self.replicas.set_deployment(stores.collect());
    }

    /// Leaves a line of the deployment, unless another reload has come back to it.
    fn leave_line(&self, left: &Arc<DeploymentLine>) {
        if same_line(Some(left), self.fleet.deployment().as_ref()) {
            return;
        }
        let mut lines = self.deployment.lock();
        lines.retain(|(line, _)| !Arc::ptr_eq(line, left));
        drop(lines);
        self.enter_deployment();
        self.let_replies_go(&self.controls());
    }

    /// Serves the tenants of a configuration. New tenants start, removed and moved ones leave, and sockets of removed or
    /// changed routes close, paced at `server.drain.rate`.
    pub fn serve(
        self: &Arc<Self>,
        (hosts, served, makings): (HostTable, Vec<Arc<Tenant>>, Makings),
        builder: &Builder,
        config: &Arc<Config>,
    ) {
        let rate = f64::from(config.server.drain.rate);
        let mut running = self.running.lock();
        let before = std::mem::take(&mut *running);
        let serving = Serving::new(hosts, served.clone(), config.clone(), makings);
        self.put_in_place(serving, &served, &before);
        self.take_replies(builder);
        self.register();
        let mut before = before;
        for new in &served {
            let old = before.remove(&new.id);
            let (now, moved) = self.take_over(new, old, rate);
            running.insert(new.id.clone(), now);
            if let Some(moved) = moved {
                let reason = match Making::differs(new.making, moved.tenant.making) {
                    true => CloseReason::TenantNotFound,
                    false => CloseReason::Draining,
                };
                self.see_off(moved, rate, reason);
            }
        }
        for gone in before.into_values() {
            self.see_off(gone, rate, CloseReason::TenantNotFound);
        }
        metrics::tenants_made(running.len());
    }

    /// Serves tenants of the present configuration that were made on demand, beside those that are served.
    pub fn add(self: &Arc<Self>, made: Vec<Arc<Tenant>>, builder: &Builder) {
        let mut running = self.running.lock();
        {
            let _turn = self.tenants.turn();
            let serving = self.tenants.serving();
            let mut all = self.tenants.all().to_vec();
            all.extend(made.iter().cloned());
            all.sort_by(|one, other| one.id.cmp(&other.id));
            self.tenants.replace(serving.with(all), []);
        }
        self.take_replies(builder);
        self.register();
        for tenant in &made {
            running.insert(tenant.id.clone(), self.start(tenant));
        }
        metrics::tenants_made(running.len());
    }

    /// Lets go of tenants that are not in use. They stay configured, and are made again when they are asked for.
    pub fn let_go(self: &Arc<Self>, idle: &BTreeSet<TenantId>, config: &Config) {
        let rate = f64::from(config.server.drain.rate);
        let mut running = self.running.lock();
        let gone: Vec<Running> = idle.iter().filter_map(|id| running.remove(id)).collect();
        {
            let _turn = self.tenants.turn();
            let serving = self.tenants.serving();
            let mut all = self.tenants.all().to_vec();
            all.retain(|tenant| !idle.contains(&tenant.id));
            let leaving = gone.iter().map(|gone| gone.tenant.clone());
            self.tenants.replace(serving.with(all), leaving);
            for Running { tenant, .. } in &gone {
                // From here on no handshake opens a socket of it; one that is under way finds its successor.
                tenant.take(Happening::Replaced);
                // After that, so that a look that is under way records nothing more.
                self.tenants.neighbours.forget(&tenant.id);
            }
        }
        metrics::tenants_made(running.len());
        drop(running);
        let (empty, used) = gone
            .into_iter()
            .partition(|gone| gone.tenant.relay.hub().is_quiet());
        self.end_empty(empty);
        for gone in used {
            self.see_off(gone, rate, CloseReason::Draining);
        }
    }

    /// Ends the tasks of tenants without sockets. It enters the list of replicas once for all of them.
    fn end_empty(self: &Arc<Self>, gone: Vec<Running>) {
        let tenancy = self.clone();
        tasks::brief(async move {
            for Running { tenant, .. } in &gone {
                tenant.take(Happening::Emptied);
                tenancy.tenants.forget(tenant);
            }
            tenancy.register();
            for leaving in gone {
                leaving.tenant.relay.close().await;
            }
        });
    }

    /// Lets handshakes find the new tenants, then moves every old one to its next stage. In this order a handshake whose
    /// tenant has left finds its successor.
    fn put_in_place(
        &self,
        serving: Serving,
        served: &[Arc<Tenant>],
        before: &BTreeMap<TenantId, Running>,
    ) {
        // An operator's announcement must not fall between the old life and the new one.
        let _turn = self.tenants.turn();
        let (mut replaced, mut leaving) = (Vec::new(), Vec::new());
        for Running { tenant: old, .. } in before.values() {
            let new = tenant_of(served, old.id.as_str());
            if new.is_some_and(|new| Arc::ptr_eq(new, old)) {
                continue;
            }
            if let Some(new) = new.filter(|new| Arc::ptr_eq(&new.control, &old.control)) {
                new.inherit(old);
            }
            replaced.push(old);
            match new.filter(|new| Arc::ptr_eq(&new.relay, &old.relay)) {
                // Its sockets stay and belong to the new tenant.
                Some(new) => new.relay.reconfigure(new.settings.clone()),
                None => leaving.push(old.clone()),
            }
        }
        let moved: Vec<_> = leaving.iter().map(|old| old.id.clone()).collect();
        self.tenants.replace(serving, leaving);
        for old in replaced {
            old.take(Happening::Replaced);
        }
        // After that, so that a look that is under way records nothing more. A successor records its own servers.
        for id in &moved {
            self.tenants.neighbours.forget(id);
        }
    }

    /// Starts the tasks that the new tenant does not take over from the old one. Returns the old one if it has to leave.
    fn take_over(
        &self,
        new: &Arc<Tenant>,
        old: Option<Running>,
        rate: f64,
    ) -> (Running, Option<Running>) {
        match old {
            None => (self.start(new), None),
            Some(old) if Arc::ptr_eq(&old.tenant, new) => (old, None),
            Some(old) if Arc::ptr_eq(&old.tenant.relay, &new.relay) => {
                close_changed(&old.tenant, new, rate);
                let now = self.look_after(new, old.relay, old.control);
                (now, None)
            }
            Some(old) => (self.start(new), Some(old)),
        }
    }

    fn start(&self, tenant: &Arc<Tenant>) -> Running {
        let control = self.hear(tenant);
        let relay = RelayTasks {
            _relay: tasks::lasting("a relay", tenant.relay.clone().run()),
            _presence: tasks::lasting("presence", tenant.relay.clone().keep_presence()),
        };
        self.look_after(tenant, Arc::new(relay), control)
    }

    /// Returns the task behind the tenant's control channel. The tenant that it replaces may have started it already.
    fn hear(&self, tenant: &Arc<Tenant>) -> Arc<Task> {
        let mut hearing = self.hearing.lock();
        hearing.retain(|(_, task)| task.strong_count() > 0);
        let own = Arc::as_ptr(&tenant.control);
        let same = |(control, _): &&(Weak<Control>, Weak<Task>)| control.as_ptr() == own;
        if let Some(known) = hearing
            .iter()
            .find(same)
            .and_then(|(_, task)| task.upgrade())
        {
            return known;
        }
        let (id, control) = (tenant.id.clone(), tenant.control.clone());
        let obeying = obey::run(id, control, self.tenants.clone(), self.fleet.clone());
        let task = Arc::new(tasks::lasting("a control channel", obeying));
        hearing.push((Arc::downgrade(&tenant.control), Arc::downgrade(&task)));
        task
    }

    fn look_after(
        &self,
        tenant: &Arc<Tenant>,
        relay: Arc<RelayTasks>,
        control: Arc<Task>,
    ) -> Running {
        let upkeep = upkeep::run(tenant.clone(), self.tenants.clone());
        let look = look::run(tenant.clone(), self.tenants.clone());
        Running {
            tenant: tenant.clone(),
            relay,
            control,
            _upkeep: tasks::lasting("the upkeep of a tenant", upkeep),
            _look: tasks::lasting("the look at a tenant's dependencies", look),
            _workers: workers::watch(tenant),
        }
    }

    /// Returns the control channels on which this replica may ask, with the stores of their servers.
    fn controls(&self) -> Vec<(Arc<Control>, KeyStore)> {
        let tenants = self.tenants.with_sockets();
        let of_tenants = tenants.iter();
        let of_tenants =
            of_tenants.map(|tenant| (tenant.control.clone(), tenant.key_store.clone()));
        let lines = self.deployment();
        let of_deployment = lines.iter();
        let of_deployment =
            of_deployment.map(|line| (line.control.clone(), line.key_store.clone()));
        of_tenants.chain(of_deployment).collect()
    }

    /// Ends the channels of answers of links that carry none of these control channels.
    fn let_replies_go(&self, controls: &[(Arc<Control>, KeyStore)]) {
        let is_used = |reply: &Control| {
            { controls.iter() }.any(|(control, _)| control.shares_line_with(reply))
        };
        self.replies.lock().retain(|(reply, _)| is_used(reply));
    }

    /// One channel of answers for each link.
    fn take_replies(&self, builder: &Builder) {
        let controls = self.controls();
        self.let_replies_go(&controls);
        let mut replies = self.replies.lock();
        for (control, key_store) in &controls {
            let known = |(reply, _): &(Arc<Control>, Task)| control.shares_line_with(reply);
            if !replies.iter().any(known) {
                let channel = reply_channel(self.fleet.replica());
                let reply = Arc::new(builder.control(key_store, &channel));
                let serving = fleet::serve_replies(reply.clone(), self.fleet.clone());
                let opened = reply.clone();
                // The link remembers the subscription after a failure and retries it, so one call is enough.
                let serving = async move {
                    drop(opened.open().await);
                    serving.await
                };
                replies.push((reply, tasks::lasting("a channel of answers", serving)));
            }
        }
    }

    /// Registers this replica in every Redis with the tenants that have sockets here.
    fn register(&self) {
        let tenants = self.tenants.with_sockets();
        let stores = tenants.iter();
        self.replicas
            .set_tenants(stores.map(|tenant| (tenant.id.clone(), tenant.key_store.clone())));
    }

    /// Closes the sockets of a tenant that is no longer served, and ends its tasks after the last one.
    fn see_off(self: &Arc<Self>, leaving: Running, rate: f64, reason: CloseReason) {
        let tenancy = self.clone();
        tasks::brief(async move {
            let tenant = leaving.tenant.clone();
            let hub = tenant.relay.hub();
            tokio::select! {
                () = close_paced(hub.members(), rate, reason) => {}
                // A revocation or a suspension can close the last socket sooner.
                () = emptied(hub) => {}
            }
            let rest = async {
                // Catches sockets whose handshakes were under way. A second close order changes nothing.
                while !hub.is_quiet() {
                    close_paced(hub.members(), rate, reason).await;
                    tokio::time::sleep(LOOK).await;
                }
            };
            drop(timeout(LAST_SOCKETS, rest).await);
            tenant.take(Happening::Emptied);
            tenancy.tenants.forget(&tenant);
            tenancy.register();
            // Removes the layer's entries that would stay in Redis.
            tenant.relay.close().await;
            drop(leaving);
        });
    }
}

fn same_line(one: Option<&Arc<DeploymentLine>>, other: Option<&Arc<DeploymentLine>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}

async fn emptied(hub: &Hub) {
    while !hub.is_quiet() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Closes the sockets whose routes were removed or changed.
fn close_changed(old: &Tenant, new: &Tenant, rate: f64) {
    let still: BTreeSet<u16> = new.parts.iter().map(|part| part.delivery).collect();
    let (mut gone, mut changed) = (Vec::new(), Vec::new());
    let members = new.relay.hub().members().into_iter();
    for member in members.filter(|member| !still.contains(&member.delivery())) {
        let at = |part: &RouteParts| part.delivery == member.delivery();
        let route = old.parts.iter().position(at);
        let path = route.map(|at| &old.config.routes[at].path);
        let has_path = |path: &String| new.config.routes.iter().any(|route| route.path == *path);
        match path.is_some_and(has_path) {
            true => changed.push(member),
            false => gone.push(member),
        }
    }
    for (members, reason) in [
        (gone, CloseReason::RouteNotFound),
        (changed, CloseReason::Draining),
    ] {
        if !members.is_empty() {
            tasks::brief(close_paced(members, rate, reason));
        }
    }
}
