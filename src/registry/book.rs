//! The tenants of the registry that this replica knows, and which of them can be served beside the others: a state
//! machine without IO.
//!
//! Each tenant is judged by itself. One that is wrong keeps its last good configuration, and the others go on. Between two
//! that cannot be served together the one that is served stays, and at a start the one that was made first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, TenantConfig, TenantFiles};
use crate::ids::TenantId;
use crate::tenant::Making;
use crate::validation::WrongTenant;

/// A tenant as it was read: its configuration, or what is wrong with it.
pub type ReadTenant = Result<Arc<TenantConfig>, WrongTenant>;

/// The state of a tenant's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// The version of its document.
    pub version: i64,
    /// Its making. Another one is another tenant of its name.
    pub making: Making,
}

/// One tenant of the registry.
#[derive(Clone)]
pub struct BookPage {
    /// The state of its row.
    pub stored: StoredState,
    /// The configuration of this version.
    pub read: ReadTenant,
    /// The last configuration that could be served.
    pub good: Option<Arc<TenantConfig>>,
    /// The one before it, until the parts of `good` were made: they may turn out not to be.
    before: Option<Arc<TenantConfig>>,
    /// The reason why the configuration of this version is not served.
    pub trouble: Option<String>,
}

impl BookPage {
    /// Returns the hosts that this version names, right or wrong.
    pub fn hosts(&self) -> &[String] {
        match &self.read {
            Ok(config) => &config.hosts,
            Err(wrong) => &wrong.hosts,
        }
    }

    fn why_wrong(&self) -> Option<String> {
        let wrong = self.read.as_ref().err();
        wrong.map(|wrong| wrong.why.clone())
    }
}

/// The tenants by name.
#[derive(Clone, Default)]
pub struct TenantPages {
    pages: BTreeMap<TenantId, BookPage>,
}

/// The reason why a tenant whose name stands in a file is not served.
pub(super) const IN_FILES: &str = "a file has a tenant of this name, which is served in its place";

/// Judges a configuration whose tenants would be served together. `Err` says what is wrong.
pub type Judge<'j> = &'j dyn Fn(&Config) -> Result<(), String>;

impl TenantPages {
    /// Returns a tenant.
    pub fn get(&self, id: &TenantId) -> Option<&BookPage> {
        self.pages.get(id)
    }

    /// Returns all tenants by name.
    pub fn iter(&self) -> impl Iterator<Item = (&TenantId, &BookPage)> {
        self.pages.iter()
    }

    /// Records a tenant that was served until now, from another source.
    pub fn begin(&mut self, id: TenantId, stored: StoredState, good: Arc<TenantConfig>) {
        let page = BookPage {
            stored,
            read: Ok(good.clone()),
            good: Some(good),
            before: None,
            trouble: None,
        };
        self.pages.insert(id, page);
    }

    /// Records a tenant as it is stored now.
    pub fn record(&mut self, id: TenantId, stored: StoredState, read: ReadTenant) {
        // The last good configuration of a tenant that was deleted is not one of another that has its name now.
        let page = self.pages.remove(&id);
        let page = page.filter(|page| page.stored.making == stored.making);
        let (good, before) = page.map_or((None, None), |page| (page.good, page.before));
        // An equal configuration stays the same one, so that it is seen at once that nothing has changed.
        let read = read.map(|config| match &good {
            Some(good) if **good == *config => good.clone(),
            _ => config,
        });
        let mut page = BookPage {
            stored,
            trouble: None,
            read,
            good,
            before,
        };
        page.trouble = page.why_wrong();
        self.pages.insert(id, page);
    }

    /// Forgets the tenants that are not there any more. Returns true if there were any.
    pub fn keep(&mut self, is_there: impl Fn(&TenantId) -> bool) -> bool {
        let before = self.pages.len();
        self.pages.retain(|id, _| is_there(id));
        self.pages.len() < before
    }

    /// Forgets a tenant that was deleted.
    pub fn forget(&mut self, id: &TenantId) {
        self.pages.remove(id);
    }

    /// Records that the parts of a configuration could not be made. Returns false if it is not one of the registry's.
    pub fn cannot_be_built(
        &mut self,
        id: &TenantId,
        config: &Arc<TenantConfig>,
        why: &str,
    ) -> bool {
        let Some(page) = self.pages.get_mut(id) else {
            return false;
        };
        let is_it = |known: &Arc<TenantConfig>| Arc::ptr_eq(known, config);
        let was_good = page.good.as_ref().is_some_and(is_it);
        if was_good {
            page.good = page.before.take();
        }
        let was_read = page.read.as_ref().is_ok_and(is_it);
        if was_read {
            page.read = Err(WrongTenant {
                why: why.to_owned(),
                hosts: config.hosts.clone(),
            });
        }
        was_good || was_read
    }

    /// Takes over the choice that was made on `judged`, an older state of these pages.
    pub fn adopt(&mut self, judged: &Self) {
        for (id, judged) in &judged.pages {
            let page = self.pages.get_mut(id);
            let Some(page) = page.filter(|page| page.stored.making == judged.stored.making) else {
                continue;
            };
            page.good.clone_from(&judged.good);
            page.before.clone_from(&judged.before);
            // What was read meanwhile has its own trouble.
            if page.stored == judged.stored {
                page.trouble.clone_from(&judged.trouble);
            }
        }
    }

    /// Returns the tenants of the files with those of the registry that can be served beside them.
    pub fn together(&mut self, files: &Config, judge: Judge<'_>) -> Config {
        self.together_without(&TenantFiles::new(), files, judge)
    }

    /// Returns the same without those whose names are `taken`: a file has them, and they cannot be served.
    pub fn together_without(
        &mut self,
        taken: &TenantFiles,
        files: &Config,
        judge: Judge<'_>,
    ) -> Config {
        let mut config = files.clone();
        let Candidates {
            unchanged,
            changed,
            mut new,
        } = self.candidates(|id| files.tenants.contains_key(id) || taken.contains_key(id));
        let mut refused = NotAdmitted::new();
        admit(&mut config, unchanged, judge, &mut refused);
        let mut with = config.clone();
        let is_more = !new.is_empty() || !changed.is_empty();
        with.tenants
            .extend(new.iter().map(|(_, id, read)| (id.clone(), read.clone())));
        with.tenants.extend(
            changed
                .iter()
                .map(|(id, read, _)| (id.clone(), read.clone())),
        );
        if !is_more || judge(&with).is_ok() {
            // Also where two of them have exchanged something.
            config = with;
        } else {
            // What is served now comes first, so that no other can take what a wrong change has left.
            let good = changed
                .iter()
                .map(|(id, _, good)| (id.clone(), good.clone()));
            admit(&mut config, good.collect(), judge, &mut refused);
            let changed = changed.into_iter().map(|(id, read, _)| (id, read));
            admit(&mut config, changed.collect(), judge, &mut refused);
            new.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
            let new = new.into_iter().map(|(_, id, read)| (id, read));
            admit(&mut config, new.collect(), judge, &mut refused);
        }
        for (id, page) in &mut self.pages {
            let served = config
                .tenants
                .get(id)
                .filter(|_| !files.tenants.contains_key(id));
            let is_same = match (&page.good, served) {
                (Some(good), Some(served)) => Arc::ptr_eq(good, served),
                _ => false,
            };
            if !is_same {
                page.before = std::mem::replace(&mut page.good, served.cloned());
            }
            let is_read = |served| {
                page.read
                    .as_ref()
                    .is_ok_and(|read| Arc::ptr_eq(read, served))
            };
            let refused = refused.remove(id).filter(|_| !served.is_some_and(is_read));
            page.trouble = page.trouble.take().or(refused);
        }
        config
    }

    /// Sorts the tenants by what is to be judged, and notes the troubles that need no judgement.
    fn candidates(&mut self, is_of_files: impl Fn(&TenantId) -> bool) -> Candidates {
        let mut candidates = Candidates::default();
        for (id, page) in &mut self.pages {
            page.trouble = page.why_wrong();
            if is_of_files(id) {
                page.trouble = Some(IN_FILES.to_owned());
                continue;
            }
            match (&page.read, &page.good) {
                (Ok(read), Some(good)) if !Arc::ptr_eq(read, good) => {
                    let changed = (id.clone(), read.clone(), good.clone());
                    candidates.changed.push(changed);
                }
                // A wrong tenant goes on with its last good configuration: nothing of that has changed.
                (_, Some(good)) => candidates.unchanged.push((id.clone(), good.clone())),
                (Ok(read), None) => {
                    let new = (page.stored.making, id.clone(), read.clone());
                    candidates.new.push(new);
                }
                (Err(_), None) => {}
            }
        }
        candidates
    }
}

/// The reasons of the tenants that cannot be served beside the others.
type NotAdmitted = BTreeMap<TenantId, String>;

/// The tenants of the registry that may be served.
#[derive(Default)]
struct Candidates {
    /// Those that go on as they are.
    unchanged: Vec<(TenantId, Arc<TenantConfig>)>,
    /// Those with a new configuration beside the one that is served.
    changed: Vec<(TenantId, Arc<TenantConfig>, Arc<TenantConfig>)>,
    /// Those that are not served yet, with their makings.
    new: Vec<(Making, TenantId, Arc<TenantConfig>)>,
}

/// Adds the tenants to `config`, or changes them there, that can be served beside those before them. Halves are tried until a tenant that cannot
/// stands alone, so that one judgement is enough where all is well.
fn admit(
    config: &mut Config,
    tenants: Vec<(TenantId, Arc<TenantConfig>)>,
    judge: Judge<'_>,
    refused: &mut NotAdmitted,
) {
    let mut batches = vec![tenants];
    while let Some(mut batch) = batches.pop() {
        if batch.is_empty() {
            continue;
        }
        let mut with = config.clone();
        with.tenants.extend(batch.iter().cloned());
        match judge(&with) {
            Ok(()) => *config = with,
            Err(why) if batch.len() == 1 => {
                refused.extend(batch.pop().map(|(id, _)| (id, why)));
            }
            Err(_) => {
                let later = batch.split_off(batch.len() / 2);
                batches.extend([later, batch]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
