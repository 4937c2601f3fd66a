//! The check of tenants that change, beside those alone that they may share something with.
//!
//! [`near`] finds these by comparing texts, so that one change among ten thousand tenants is not judged beside all of them. The
//! rules stay those of [`check_together`]: what is found may be in no other's way, and what is not found cannot be.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::workers::{self, WorkerQueue};
use super::{Checker, check_together, layers, namespaces, report_together};
use crate::config::{
    Config, ConfigErrors, ConfigReport, LayerKind, Places, Secret, TenantConfig, Warning,
    names_meet,
};
use crate::hosts::HostPattern;
use crate::ids::TenantId;

/// Changes above which all tenants are judged at once: each change is compared with every tenant.
const MANY: usize = 32;

/// Checks a tenant of the configuration beside the others, which are right without it. Mistakes and warnings are told of this
/// tenant, also where the rules for all would tell them of the other one.
///
/// # Errors
/// Every mistake at once, with its key.
pub fn check_newcomer(config: &Config, id: &TenantId) -> Result<Vec<Warning>, ConfigErrors> {
    let (_, mut report) = Places::together();
    report_newcomer(config, id, &mut report);
    Ok(own_warnings(report.finish()?, id))
}

/// Adds what [`check_newcomer`] finds to the report, but for keys that have a mistake there already.
pub(super) fn report_newcomer(config: &Config, id: &TenantId, report: &mut ConfigReport) {
    let beside = near(config, &BTreeSet::from([id]));
    let places = Places::together_in(report);
    let mut checker = Checker {
        reading_mistakes: report.count(),
        report,
        places: &places,
        newcomer: Some(id),
    };
    report_together(&beside, &mut checker);
}

/// Returns the warnings of one tenant, each once: both its own check and the one beside others may give it.
pub(super) fn own_warnings(mut warnings: Vec<Warning>, id: &TenantId) -> Vec<Warning> {
    let own = format!("tenants.{id}");
    let is_own = |key: &str| {
        let below = key.strip_prefix(&own);
        below.is_some_and(|below| below.is_empty() || below.starts_with('.'))
    };
    let mut known = HashSet::new();
    warnings.retain(|warning| {
        is_own(&warning.key) && known.insert((warning.key.clone(), warning.text.clone()))
    });
    warnings
}

/// Returns the configuration with this tenant, and with all others whose events could meet its own if the servers of both were
/// one under two names.
pub fn with_namesakes(config: &Config, id: &TenantId) -> Config {
    let leaves_process =
        |tenant: &TenantConfig| config.effective(tenant).layer_kind() != LayerKind::Memory;
    let own = config.tenants.get(id);
    let meets = |other: &TenantConfig| {
        let meets = own.is_some_and(|own| leaves_process(own) && have_meeting_names(own, other));
        meets && leaves_process(other)
    };
    let all = config.tenants.iter();
    let found = all.filter(|(other, tenant)| *other == id || meets(tenant));
    Config {
        tenants: found
            .map(|(id, tenant)| (id.clone(), tenant.clone()))
            .collect(),
        ..config.without_tenants()
    }
}

/// Returns the configuration with these tenants, and with all others that they may share something with.
fn near(config: &Config, ids: &BTreeSet<&TenantId>) -> Config {
    let mut found = BTreeMap::new();
    for id in ids {
        let Some(tenant) = config.tenants.get(*id) else {
            continue;
        };
        let shares = Shares::of(config, tenant);
        let others = { config.tenants.iter() }.filter(|(other, _)| other != id);
        let met = others.filter(|(_, other)| shares.meet(other));
        found.extend(met.map(|(id, tenant)| (id.clone(), tenant.clone())));
        found.insert((*id).clone(), tenant.clone());
        // Of tenants that take its tokens one is enough for the warning; a project may have thousands.
        let takes_its_tokens = namespaces::takes_tokens_of(tenant);
        let alike = { config.tenants.iter() }
            .find(|(other, config)| other != id && takes_its_tokens(config));
        found.extend(alike.map(|(id, tenant)| (id.clone(), tenant.clone())));
    }
    if found.len() == 1 {
        // A tenant that has no hosts may be so alone, and no other.
        let other = { config.tenants.iter() }.find(|(id, _)| !found.contains_key(*id));
        found.extend(other.map(|(id, tenant)| (id.clone(), tenant.clone())));
    }
    Config {
        tenants: found,
        ..config.without_tenants()
    }
}

/// The things of a tenant that no other may have.
struct Shares<'c> {
    config: &'c Config,
    tenant: &'c TenantConfig,
    hosts: HashSet<HostPattern>,
    api_keys: HashSet<&'c str>,
    queues: HashSet<WorkerQueue<'c>>,
    endpoints: BTreeSet<String>,
    needs_its_own: bool,
}

impl<'c> Shares<'c> {
    fn of(config: &'c Config, tenant: &'c TenantConfig) -> Self {
        Self {
            config,
            tenant,
            hosts: patterns(tenant).collect(),
            api_keys: tenant.api_keys.iter().map(Secret::expose).collect(),
            queues: { workers::queues(config, tenant) }
                .map(|(_, queue)| queue)
                .collect(),
            endpoints: layers::endpoints(&config.effective(tenant)),
            needs_its_own: layers::reason_to_be_alone(config, tenant).is_some(),
        }
    }

    /// Returns true if the other tenant may have something of this one.
    fn meet(&self, other: &TenantConfig) -> bool {
        other.hosts.is_empty()
            || patterns(other).any(|host| self.hosts.contains(&host))
            || { other.api_keys.iter() }.any(|key| self.api_keys.contains(key.expose()))
            || self.meet_on_a_server(other)
    }

    /// Returns true if both have one server, where names of theirs meet or one of them must be alone. Texts are compared before
    /// servers: with the default prefix the names of all tenants meet, each on a Redis of its own.
    fn meet_on_a_server(&self, other: &TenantConfig) -> bool {
        let meet = have_meeting_names(self.tenant, other)
            || { workers::queues(self.config, other) }
                .any(|(_, queue)| self.queues.contains(&queue))
            || self.needs_its_own
            || layers::reason_to_be_alone(self.config, other).is_some();
        meet && !self
            .endpoints
            .is_disjoint(&layers::endpoints(&self.config.effective(other)))
    }
}

fn have_meeting_names(one: &TenantConfig, other: &TenantConfig) -> bool {
    let (own, other) = (&one.layer, &other.layer);
    names_meet(
        (&own.prefix, &own.namespace),
        (&other.prefix, &other.namespace),
    )
}

fn patterns(tenant: &TenantConfig) -> impl Iterator<Item = HostPattern> {
    let hosts = tenant.hosts.iter();
    hosts.filter_map(|host| HostPattern::parse(host))
}

/// Judges configurations that follow each other: of each only the tenants that are not the same as in the last one that was
/// right, beside those that they may share something with.
#[derive(Default)]
pub struct Successions {
    right: Option<Config>,
}

impl Successions {
    /// Begins again, as where more than tenants has changed.
    pub fn forget(&mut self) {
        self.right = None;
    }

    /// Checks a configuration for what its tenants may not share.
    ///
    /// # Errors
    /// Every mistake at once, with its key.
    pub fn check(&mut self, config: &Config) -> Result<(), ConfigErrors> {
        let right = self.right.as_ref();
        let changed = right.map(|right| changed_since(right, config));
        match changed.filter(|changed| changed.len() <= MANY) {
            Some(changed) if changed.is_empty() => {}
            Some(changed) => drop(check_together(&near(config, &changed))?),
            None => drop(check_together(config)?),
        }
        self.right = Some(config.clone());
        Ok(())
    }
}

/// Returns the tenants that are new or not the same ones. Those that are gone are in no other's way.
fn changed_since<'c>(before: &Config, now: &'c Config) -> BTreeSet<&'c TenantId> {
    let mut before = before.tenants.iter().peekable();
    let mut changed = BTreeSet::new();
    for (id, tenant) in &now.tenants {
        while before.next_if(|(known, _)| *known < id).is_some() {}
        let known = before.next_if(|(known, _)| *known == id);
        if !known.is_some_and(|(_, known)| Arc::ptr_eq(known, tenant)) {
            changed.insert(id);
        }
    }
    changed
}

#[cfg(test)]
mod tests;
