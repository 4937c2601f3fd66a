//! The configuration of a measured gateway, and its included files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::world::{API_KEY, EXTRA_GROUPS, KEY, LOCAL_TTL, SEALING_KEY, Setup, World, idle_tenant};

impl World {
    /// Writes the configuration; `ports` are those of sockets, admin and API.
    pub(crate) fn configuration(&self, ports: [Option<u16>; 3], setup: &Setup) -> String {
        let database = setup.database.clone();
        let database = database.unwrap_or_else(|| self.users_database());
        let extra = |prefix: &str, suffix: &str| {
            let groups = (0..EXTRA_GROUPS).map(|i| format!(", \"{prefix}{i:02}{suffix}\""));
            groups.collect::<String>()
        };
        let (redis, kind) = match &self.cluster {
            Some(cluster) => (cluster.url(), "sharded"),
            None => {
                let kind = if setup.core { "core" } else { "pubsub" };
                (format!("redis://127.0.0.1:{}/0", self.redis_port), kind)
            }
        };
        let mut text = String::new();
        if let (1.., Some(port)) = (setup.files, ports[0]) {
            // Writing into a String cannot fail.
            writeln!(
                text,
                "watch = true\ninclude = [\"gateway-{port}.d/*.toml\"]"
            )
            .ok();
        }
        write!(
            text,
            "[redis]\nurl = \"{redis}\"\n\n[log]\nlevel = \"warn\"\n"
        )
        .ok();
        if let Some(url) = &setup.registry {
            write!(
                text,
                "\n[registry]\ndatabase = \"{url}\"\nkey = \"{SEALING_KEY}\"\nmigrate = true\n"
            )
            .ok();
        }
        for (table, port) in ["server", "admin", "api"].into_iter().zip(ports) {
            if let Some(port) = port {
                write!(text, "\n[{table}]\nlisten = \"127.0.0.1:{port}\"\n").ok();
            }
        }
        if setup.api {
            // The table of the API is the last one.
            writeln!(text, "api_keys = [\"{API_KEY}\"]").ok();
        }
        if setup.api && setup.registry.is_some() {
            // A change is measured until both replicas have it, however long that takes.
            text += "timeout = \"5s\"\n";
        }
        let names = (1..=setup.more).map(idle_tenant);
        for name in names.chain(["bench".to_owned()]) {
            // Writing into a String cannot fail.
            write!(
                text,
                "\n[tenants.{name}]\nhosts = [\"{name}.example.com\"]\norigins = [\"https://{name}.example.com\"]\n\
                 [tenants.{name}.token]\nalgorithm = \"HS256\"\nsigning_key = \"{KEY}\"\n\
                 [tenants.{name}.users]\ndatabase = \"{database}\"\nlocal_ttl = \"{}s\"\n{}\
                 [tenants.{name}.layer]\nkind = \"{kind}\"\nprefix = \"{name}\"\n\
                 [[tenants.{name}.routes]]\npath = \"ws/<int:n>/\"\ngroups = [\"bench\"]\n",
                LOCAL_TTL.as_secs(),
                setup.more_users,
            )
            .ok();
            if let Some(limit) = &setup.limit
                && limit.tenant == name
            {
                write!(text, "[tenants.{name}.limits]\n{}\n", limit.line).ok();
            }
        }
        for (route, groups) in [
            ("small", "\"small_{n}\"".to_owned()),
            ("groups", format!("\"bench\"{}", extra("g", "_{n}"))),
            ("members", format!("\"bench\"{}", extra("s", ""))),
        ] {
            write!(
                text,
                "[[tenants.bench.routes]]\npath = \"{route}/<int:n>/\"\ngroups = [{groups}]\n"
            )
            .ok();
        }
        if setup.history {
            for (route, suffix) in [("held-groups", "_{n}"), ("held-members", "")] {
                let held = extra("held_", suffix);
                write!(
                    text,
                    "[[tenants.bench.routes]]\npath = \"{route}/<int:n>/\"\ngroups = [\"bench\"{held}]\nresume = true\n"
                )
                .ok();
            }
            text += "[[tenants.bench.groups]]\nname = \"held_<slug:name>\"\nhistory = { size = 100, ttl = \"10m\" }\n";
            text += "[[tenants.bench.routes]]\npath = \"resume/<int:n>/\"\ngroups = [\"kept_{n}\"]\nresume = true\n\
                     [[tenants.bench.groups]]\nname = \"kept_<int:n>\"\nhistory = { size = 100, ttl = \"10m\" }\n\
                     [[tenants.bench.routes]]\npath = \"present/<int:n>/\"\ngroups = [\"present_{n}\"]\n\
                     [[tenants.bench.groups]]\nname = \"present_<int:n>\"\npresence = { fields = [\"username\"], notify = true }\n";
        }
        text += &setup.more_tables;
        text
    }
}

/// Writes so many files with a tenant in each.
pub(crate) fn write_files(folder: &Path, count: usize) -> Result<()> {
    fs::create_dir(folder)?;
    for name in (1..=count).map(idle_tenant) {
        fs::write(
            folder.join(format!("{name}.toml")),
            file_tenant(&name, &name),
        )?;
    }
    Ok(())
}

/// Returns the file of a tenant whose users are the claims of their tokens.
pub(crate) fn file_tenant(name: &str, host: &str) -> String {
    format!(
        "[tenants.{name}]\nhosts = [\"{host}.example.com\"]\norigins = [\"https://{host}.example.com\"]\n\
         [tenants.{name}.token]\nalgorithm = \"HS256\"\nsigning_key = \"{KEY}\"\n\
         [tenants.{name}.users]\nsource = \"claims\"\n\
         [tenants.{name}.layer]\nkind = \"pubsub\"\nprefix = \"{name}\"\n\
         [[tenants.{name}.routes]]\npath = \"ws/<int:n>/\"\ngroups = [\"bench\"]\n"
    )
}
