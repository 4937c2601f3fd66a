//! The tenants of the files, and which of them can be served together.
//!
//! A mistake in the main file refuses the whole. One in an included file degrades the tenants that it concerns: each keeps its
//! last good configuration as long as the process lives. Of two that are in each other's way the one that is served stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Config, TenantConfig, TenantFiles};
use crate::hosts::HostTable;
use crate::ids::TenantId;
use crate::registry::{StoredState, TenantPages};
use crate::tenant::build::NotBuilt;
use crate::tenant::{FileTrouble, Making};
use crate::validation::{Included, WrongFile, WrongTenant, check_together};

/// The state of a tenant of a file: files have no versions.
const UNVERSIONED: StoredState = StoredState {
    version: 0,
    making: Making {
        serial: 0,
        created_at: 0,
    },
};

/// The tenants of the files.
#[derive(Clone, Default)]
pub(super) struct FileTenants {
    /// The configuration of the main file.
    main: Config,
    /// The tenants of included files.
    pages: TenantPages,
    /// The file of each of these.
    files: TenantFiles,
    /// The files with mistakes that are not those of one tenant.
    wrong_files: BTreeMap<PathBuf, WrongFile>,
    /// The configuration that can be served; `None` until it is put together.
    served: Option<Config>,
}

impl FileTenants {
    /// Takes what was read after this: what is wrong there goes on as it was.
    pub(super) fn followed_by(&self, config: &Config, included: Included) -> Self {
        let Included {
            mut files,
            wrong,
            wrong_files,
        } = included;
        let (of_files, of_main) =
            { config.tenants.clone().into_iter() }.partition(|(id, _)| files.contains_key(id));
        let of_files: BTreeMap<TenantId, Arc<TenantConfig>> = of_files;
        let main = Config {
            tenants: of_main,
            ..config.clone()
        };
        let mut pages = self.pages.clone();
        // A tenant that moves out of the main file was served.
        for (id, served) in { self.main.tenants.iter() }.filter(|(id, _)| files.contains_key(*id)) {
            pages.begin(id.clone(), UNVERSIONED, served.clone());
        }
        for (id, config) in of_files {
            pages.record(id, UNVERSIONED, Ok(config));
        }
        for (id, wrong) in wrong {
            pages.record(id, UNVERSIONED, Err(wrong));
        }
        // The tenants that a file has lost by becoming unreadable.
        for (id, path) in &self.files {
            let unread = wrong_files.get(path).filter(|wrong| wrong.is_unread);
            let is_elsewhere = files.contains_key(id) || main.tenants.contains_key(id);
            if let (Some(unread), false) = (unread, is_elsewhere) {
                let hosts = pages.get(id).map(|page| page.hosts().to_vec());
                let hosts = hosts.unwrap_or_default();
                let wrong = WrongTenant {
                    why: unread.why.clone(),
                    hosts,
                };
                pages.record(id.clone(), UNVERSIONED, Err(wrong));
                files.insert(id.clone(), path.clone());
            }
        }
        pages.keep(|id| files.contains_key(id));
        Self {
            main,
            pages,
            files,
            wrong_files,
            served: None,
        }
    }

    /// Returns the tenants that can be served together.
    pub(super) fn together(&mut self) -> Config {
        let judge = |config: &Config| {
            let checked = check_together(config).map(drop);
            checked.map_err(|errors| errors.in_one_line())
        };
        let (pages, main) = (&mut self.pages, &self.main);
        let served = &mut self.served;
        served
            .get_or_insert_with(|| pages.together(main, &judge))
            .clone()
    }

    /// Returns a tenant that was served before, whose file is still there, and which the main file leaves no place now.
    pub(super) fn lost_since(&self, before: &Self) -> Option<NotBuilt> {
        let was_served = |id: &TenantId| {
            let page = before.pages.get(id);
            before.main.tenants.contains_key(id) || page.is_some_and(|page| page.good.is_some())
        };
        let mut unserved = self.pages.iter().filter(|(_, page)| page.good.is_none());
        let (id, page) = unserved.find(|(id, _)| was_served(id))?;
        let why = page.trouble.as_deref().unwrap_or_default();
        Some(NotBuilt {
            tenant: Some(id.clone()),
            why: anyhow::anyhow!("nor can its last good configuration be served now: {why}"),
        })
    }

    /// Reserves the hosts of those that cannot be served.
    pub(super) fn reserve(&self, hosts: &mut HostTable) {
        let served = { self.served.iter() }.flat_map(|config| config.tenants.values());
        // A tenant without hosts takes each host, and no newcomer takes one from it.
        let has_all = served.into_iter().any(|tenant| tenant.hosts.is_empty());
        let unserved = self.pages.iter().filter(|(_, page)| page.good.is_none());
        for (id, page) in unserved.filter(|_| !has_all) {
            hosts.reserve(id, page.hosts());
        }
        // The hosts of a file that never could be read are not known: each unknown one may be its.
        let known: BTreeSet<_> = self.files.values().collect();
        let mut unread = { self.wrong_files.iter() }.filter(|(_, wrong)| wrong.is_unread);
        if unread.any(|(path, _)| !known.contains(path)) {
            hosts.set_incomplete();
        }
    }

    /// Records that the parts of a tenant's configuration could not be made. Returns false if no included file has it.
    pub(super) fn cannot_be_built(
        &mut self,
        id: &TenantId,
        config: &Arc<TenantConfig>,
        why: &str,
    ) -> bool {
        let is_known = self.pages.cannot_be_built(id, config, why);
        if is_known {
            self.served = None;
        }
        is_known
    }

    /// Returns the file of each tenant of an included one.
    pub(super) fn files(&self) -> TenantFiles {
        self.files.clone()
    }

    /// Returns what is not served as the files say, tenants by name and then files.
    pub(super) fn troubles(&self) -> Vec<FileTrouble> {
        let tenants = self.pages.iter().filter_map(|(id, page)| {
            Some(FileTrouble {
                tenant: Some(id.clone()),
                file: self.files.get(id)?.clone(),
                why: page.trouble.clone()?,
                is_served: page.good.is_some(),
            })
        });
        let files = self.wrong_files.iter().map(|(file, wrong)| FileTrouble {
            tenant: None,
            file: file.clone(),
            why: wrong.why.clone(),
            is_served: false,
        });
        tenants.chain(files).collect()
    }
}

fn by_subject(troubles: &[FileTrouble]) -> BTreeMap<String, &FileTrouble> {
    let troubles = troubles.iter();
    troubles.map(|one| (one.subject(), one)).collect()
}

/// Logs the troubles that begin and end.
pub(super) fn tell_troubles(before: &[FileTrouble], after: &[FileTrouble]) {
    let (before, after) = (by_subject(before), by_subject(after));
    for (subject, trouble) in &after {
        if before.get(subject) == Some(trouble) {
            continue;
        }
        tracing::error!(
            subject,
            error = trouble.why,
            last_good = trouble.is_served,
            "An included file is not served as it stands"
        );
    }
    for subject in before
        .keys()
        .filter(|subject| !after.contains_key(*subject))
    {
        tracing::info!(subject, "It is served as its file stands");
    }
}
