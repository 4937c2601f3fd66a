//! Checks the tenants of included files one by one: a mistake of one leaves the others as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Checker, LoadOptions, Loaded, check_tenants, deployment, tenants};
use crate::config::{Concerned, Config, ConfigErrors, Draft, IncludedFiles, Mistake, TenantFiles};
use crate::consumer::Registry;
use crate::ids::TenantId;

/// The tenants of included files, and what is wrong with them.
#[derive(Clone, Debug, Default)]
pub struct Included {
    /// The file of each tenant, right or wrong.
    pub files: TenantFiles,
    /// The tenants with mistakes. The configuration does not have them.
    pub wrong: BTreeMap<TenantId, WrongTenant>,
    /// The files with mistakes that are not those of one tenant.
    pub wrong_files: BTreeMap<PathBuf, WrongFile>,
}

/// A tenant with mistakes.
#[derive(Clone, Debug)]
pub struct WrongTenant {
    /// Its mistakes.
    pub why: String,
    /// The hosts that it names.
    pub hosts: Vec<String>,
}

/// A file with mistakes.
#[derive(Clone, Debug)]
pub struct WrongFile {
    /// Its mistakes.
    pub why: String,
    /// True if it could not be read or parsed, so that its tenants are not known.
    pub is_unread: bool,
}

impl Included {
    pub(super) fn all_right(files: &IncludedFiles) -> Self {
        Self {
            files: files.tenant_files(),
            ..Self::default()
        }
    }
}

impl Config {
    /// Reads and checks a configuration as [`Config::load`], but leaves out tenants of included files that have mistakes.
    /// `before` says which file had each tenant until now: another file does not take its name.
    ///
    /// Two tenants of the result may still be in each other's way: by one host, for example. [`check_together`] tells.
    ///
    /// # Errors
    /// Every mistake at once, if one is of the main file, if no tenant is right at a start, where `before` is empty, or if no
    /// tenant is left at all.
    ///
    /// [`check_together`]: super::check_together
    pub fn load_each(
        path: Option<&Path>,
        options: &LoadOptions,
        before: &TenantFiles,
    ) -> Result<Loaded, ConfigErrors> {
        let mut draft = Draft::of(path, options, before);
        let reading = draft.report.count();
        if draft.included.has_main() {
            draft.check(&options.consumers);
        }
        let included = match draft.report.count() {
            0 => Included::all_right(&draft.included),
            _ => Sorting::new(&mut draft, reading).sort(&options.consumers, before)?,
        };
        Ok(Loaded {
            config: draft.config,
            warnings: draft.report.into_warnings(),
            files: draft.files,
            secret_files: draft.secret_files,
            marks: draft.marks,
            included,
        })
    }
}

/// The mistakes of a configuration, by what they concern.
struct Sorting<'d> {
    draft: &'d mut Draft,
    /// The number of the mistakes of reading, which come first.
    reading: usize,
    of_deployment: bool,
    /// The mistakes of the main file's check.
    of_main: Vec<Mistake>,
    tenants: BTreeMap<TenantId, Vec<Mistake>>,
    files: BTreeMap<PathBuf, Vec<Mistake>>,
}

impl<'d> Sorting<'d> {
    fn new(draft: &'d mut Draft, reading: usize) -> Self {
        Self {
            draft,
            reading,
            of_deployment: false,
            of_main: Vec::new(),
            tenants: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// Takes the tenants with mistakes out of the configuration.
    fn sort(
        mut self,
        consumers: &Registry,
        before: &TenantFiles,
    ) -> Result<Included, ConfigErrors> {
        let checked = self.draft.report.take_after(self.reading);
        let warned = self.draft.report.warned();
        // What only appears beside others is left to the one who decides between them.
        let named = checked.iter().filter_map(Mistake::tenant);
        let suspects: BTreeSet<TenantId> = named.filter(|id| self.draft.included.has(id)).collect();
        self.sort_reading();
        self.check_main(consumers);
        if !self.of_deployment {
            suspects
                .into_iter()
                .for_each(|id| self.check_alone(id, consumers));
        }
        self.draft.report.keep_warnings(warned);
        let wrong = self.take_wrong();
        let tenants = &self.draft.config.tenants;
        let is_empty_start = before.is_empty()
            && tenants.is_empty()
            && self.draft.config.registry.database.is_none();
        // A folder that is not mounted is no wish to serve no tenant.
        let mut known = before.values();
        let is_lost = wrong.files.is_empty()
            && !known.any(|path| self.draft.included.is_unread(path))
            && tenants.is_empty()
            && self.draft.config.registry.database.is_none();
        if self.of_deployment || is_empty_start || is_lost {
            let mut all = self.draft.report.take_after(0);
            // A file that could not be read may hold the keys that seem to be missing.
            let is_complete = self.draft.included.is_complete();
            all.extend(if is_complete { checked } else { self.of_main });
            return Err(all.into());
        }
        Ok(wrong)
    }

    fn sort_reading(&mut self) {
        let Draft {
            report, included, ..
        } = &*self.draft;
        let mut by_file: BTreeMap<PathBuf, Vec<TenantId>> = BTreeMap::new();
        for (id, file) in included.tenant_files() {
            by_file.entry(file).or_default().push(id);
        }
        for mistake in report.mistakes() {
            match included.concerned(mistake) {
                Concerned::Deployment => self.of_deployment = true,
                Concerned::Tenant(id) => {
                    self.tenants.entry(id).or_default().push(mistake.clone());
                }
                Concerned::Newcomer(path) => {
                    let of_file = self.files.entry(path.to_owned()).or_default();
                    of_file.push(mistake.clone());
                }
                Concerned::File(path) => {
                    let of_file = self.files.entry(path.to_owned()).or_default();
                    of_file.push(mistake.clone());
                    for id in by_file.get(path).into_iter().flatten() {
                        let of_tenant = self.tenants.entry(id.clone()).or_default();
                        of_tenant.push(mistake.clone());
                    }
                }
            }
        }
    }

    /// Checks the deployment with the tenants of the main file.
    fn check_main(&mut self, consumers: &Registry) {
        let Draft {
            config,
            report,
            places,
            included,
            ..
        } = &mut *self.draft;
        if !included.has_main() {
            return;
        }
        let all = std::mem::take(&mut config.tenants);
        let (of_files, of_main) = { all.into_iter() }.partition(|(id, _)| included.has(id));
        config.tenants = of_main;
        let mut checker = Checker {
            report: &mut *report,
            places,
            reading_mistakes: self.reading,
            newcomer: None,
        };
        deployment::check(config, &mut checker);
        tenants::check(config, true, &mut checker);
        check_tenants(config, consumers, &mut checker);
        config.tenants.extend::<BTreeMap<_, _>>(of_files);
        self.of_main = report.take_after(self.reading);
        self.of_deployment |= !self.of_main.is_empty();
    }

    /// Checks a tenant as if there were no other.
    fn check_alone(&mut self, id: TenantId, consumers: &Registry) {
        let Draft {
            config,
            report,
            places,
            ..
        } = &mut *self.draft;
        let all = std::mem::take(&mut config.tenants);
        let own = all.get_key_value(&id).into_iter();
        config.tenants = own.map(|(id, own)| (id.clone(), own.clone())).collect();
        let mut checker = Checker {
            report: &mut *report,
            places,
            reading_mistakes: self.reading,
            newcomer: None,
        };
        let has_others = all.len() > 1 || config.registry.database.is_some();
        tenants::check(config, has_others, &mut checker);
        deployment::api_keys(config, &mut checker);
        check_tenants(config, consumers, &mut checker);
        config.tenants = all;
        // A mistake of the deployment's own tables was found beside the main file's tenants.
        let found = report.take_after(self.reading).into_iter();
        let own = found.filter(|mistake| mistake.tenant().as_ref() == Some(&id));
        let own: Vec<_> = own.collect();
        if !own.is_empty() {
            self.tenants.entry(id).or_default().extend(own);
        }
    }

    /// Takes the tenants with mistakes out of the configuration.
    fn take_wrong(&mut self) -> Included {
        let mut included = Included::all_right(&self.draft.included);
        for (id, mistakes) in std::mem::take(&mut self.tenants) {
            let config = self.draft.config.tenants.remove(&id);
            let wrong = WrongTenant {
                why: ConfigErrors::from(mistakes).in_one_line(),
                hosts: config.map_or_else(Vec::new, |config| config.hosts.clone()),
            };
            included.wrong.insert(id, wrong);
        }
        for (path, mistakes) in std::mem::take(&mut self.files) {
            let wrong = WrongFile {
                why: ConfigErrors::from(mistakes).in_one_line(),
                is_unread: self.draft.included.is_unread(&path),
            };
            included.wrong_files.insert(path, wrong);
        }
        included
    }
}
