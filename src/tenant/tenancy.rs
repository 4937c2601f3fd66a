//! The tasks behind the tenants that are served: started, replaced and ended with them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::build::Builder;
use super::{RouteParts, Serving, Tenant, Tenants, obey, tenant_of, upkeep};
use crate::channel_layer::Control;
use crate::close_code::CloseReason;
use crate::config::Config;
use crate::fleet::{self, Fleet, Registry, reply_channel};
use crate::hosts::HostTable;
use crate::hub::close_paced;
use crate::ids::TenantId;
use crate::relay::Relay;

/// How long a relay whose sockets were all told to close is waited for: the goodbye of a socket, and a little more.
const LAST_SOCKETS: Duration = Duration::from_secs(10);
/// Between two looks at whether they are gone.
const LOOK: Duration = Duration::from_millis(100);

/// A task that ends with its owner. One that ends by itself has failed, and with it the process.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The tasks of one tenant.
struct Tasks {
    relay: Task,
    _control: Task,
    _upkeep: Task,
}

/// Serves the tenants.
pub struct Tenancy {
    tenants: Arc<Tenants>,
    fleet: Arc<Fleet>,
    registry: Arc<Registry>,
    tasks: Mutex<BTreeMap<TenantId, Tasks>>,
    /// One channel of answers for each link that control channels go over.
    replies: Mutex<Vec<(Arc<Control>, Task)>>,
    failed: mpsc::UnboundedSender<anyhow::Error>,
}

impl Tenancy {
    /// Serves nothing yet. What fails later is told to `failed`.
    pub fn new(
        tenants: Arc<Tenants>,
        fleet: Arc<Fleet>,
        registry: Arc<Registry>,
        failed: mpsc::UnboundedSender<anyhow::Error>,
    ) -> Self {
        Self {
            tenants,
            fleet,
            registry,
            tasks: Mutex::default(),
            replies: Mutex::default(),
            failed,
        }
    }

    /// Puts the tenants of a configuration in place: tenants that are new start, those that are gone or moved are seen
    /// off, and sockets of routes that are gone or changed are closed, paced at `rate` a second.
    pub fn serve(
        &self,
        (hosts, tenants): (HostTable, Vec<Arc<Tenant>>),
        builder: &Builder,
        config: &Config,
    ) {
        let before = self.tenants.all();
        for old in before.iter() {
            let new = tenant_of(&tenants, old.id.as_str());
            if new.is_some_and(|new| Arc::ptr_eq(new, old)) {
                continue;
            }
            old.retired.store(true, Ordering::Release);
            if let Some(new) = new.filter(|new| Arc::ptr_eq(&new.relay, &old.relay)) {
                new.relay.reconfigure(new.settings.clone());
            }
        }
        self.take_replies(&tenants, builder);
        let keys = tenants.iter();
        let keys = keys.map(|tenant| (tenant.id.clone(), tenant.keys.clone()));
        self.registry.set_tenants(keys);
        let served = tenants.clone();
        self.tenants.replace(Serving::new(hosts, tenants));
        let rate = f64::from(config.server.drain.rate);
        let mut tasks = self.tasks.lock();
        for new in &served {
            match tenant_of(&before, new.id.as_str()) {
                Some(old) if Arc::ptr_eq(old, new) => {}
                Some(old) if Arc::ptr_eq(&old.relay, &new.relay) => {
                    if let Some(tasks) = tasks.get_mut(&new.id) {
                        tasks._upkeep = self.upkeep(new);
                    }
                    close_changed(old, new, rate);
                }
                old => {
                    let gone = tasks.insert(new.id.clone(), self.start(new));
                    if let (Some(old), Some(gone)) = (old, gone) {
                        self.see_off(&old.relay, gone.relay, rate, CloseReason::Draining);
                    }
                }
            }
        }
        let is_gone = |old: &&Arc<Tenant>| tenant_of(&served, old.id.as_str()).is_none();
        for old in before.iter().filter(is_gone) {
            if let Some(gone) = tasks.remove(&old.id) {
                self.see_off(&old.relay, gone.relay, rate, CloseReason::TenantNotFound);
            }
        }
    }

    fn start(&self, tenant: &Arc<Tenant>) -> Tasks {
        let (relay, control) = (tenant.relay.clone(), tenant.control.clone());
        let serving = obey::run(
            tenant.id.clone(),
            control,
            self.tenants.clone(),
            self.fleet.clone(),
        );
        Tasks {
            relay: self.spawn("a relay", relay.run()),
            _control: self.spawn("a control channel", serving),
            _upkeep: self.upkeep(tenant),
        }
    }

    fn upkeep(&self, tenant: &Arc<Tenant>) -> Task {
        let upkeep = upkeep::run(tenant.clone());
        self.spawn("the upkeep of a tenant", upkeep)
    }

    fn spawn(
        &self,
        what: &'static str,
        task: impl Future<Output = Infallible> + Send + 'static,
    ) -> Task {
        let failed = self.failed.clone();
        let guarded = AssertUnwindSafe(task).catch_unwind();
        let handle = tokio::spawn(async move {
            if guarded.await.is_err() {
                // The process is about to end if nobody hears it.
                drop(failed.send(anyhow::anyhow!("{what} failed")));
            }
        });
        Task(handle.abort_handle())
    }

    /// One channel of answers for each link.
    fn take_replies(&self, tenants: &[Arc<Tenant>], builder: &Builder) {
        let mut replies = self.replies.lock();
        let controls = || tenants.iter().map(|tenant| &tenant.control);
        replies.retain(|(reply, _)| controls().any(|control| control.shares_line_with(reply)));
        for tenant in tenants {
            let known = |(reply, _): &(Arc<Control>, Task)| tenant.control.shares_line_with(reply);
            if !replies.iter().any(known) {
                let channel = reply_channel(self.fleet.replica());
                let reply = Arc::new(builder.control(&tenant.keys, &channel));
                let serving = fleet::serve_replies(reply.clone(), self.fleet.clone());
                let opened = reply.clone();
                // The wish for the channel outlives a failure, so that it is not asked for again.
                let serving = async move {
                    drop(opened.open().await);
                    serving.await
                };
                replies.push((reply, self.spawn("a channel of answers", serving)));
            }
        }
    }

    /// Closes the sockets of a relay that serves no tenant any more, and then ends it.
    fn see_off(&self, relay: &Arc<Relay>, task: Task, rate: f64, reason: CloseReason) {
        self.tenants.see_off(relay.clone());
        let relay = relay.clone();
        tokio::spawn(async move {
            close_paced(relay.hub().members(), rate, reason).await;
            let since = Instant::now();
            while !relay.hub().is_empty() && since.elapsed() < LAST_SOCKETS {
                // Whose handshake was under way is asked too; asking twice changes nothing.
                close_paced(relay.hub().members(), rate, reason).await;
                tokio::time::sleep(LOOK).await;
            }
            // What would outlive it in Redis.
            relay.layer().close().await;
            drop(task);
        });
    }
}

/// Closes the sockets whose routes are gone, or are not what they were.
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
            // Ends when all have been asked.
            tokio::spawn(close_paced(members, rate, reason));
        }
    }
}
