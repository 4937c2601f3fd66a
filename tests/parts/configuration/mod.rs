//! Wrong and right configurations, one row each: what is reported, where, and that no secret is shown.
//!
//! Other tests cover certificates (no test here uses the network), reloads, descriptors and listeners, which belong to the
//! running server. More wrong values, one key each, are in `wrong`.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockgate::config::{Config, Environment, TenantFiles};
use lockgate::consumer::{Echo, Registry, Scope};
use lockgate::validation::{LoadOptions, Loaded};
use rustix::time::{ClockId, clock_gettime};

mod built;
mod certificates;
mod groups;
mod namespaces;
mod resume;
mod rows;
mod tokens;
mod wrong;

/// A tenant that can be served, from line 1 to 10.
const TENANT: &str = "\
[tenants.acme.token]
algorithm = \"HS256\"
signing_key = \"hunter2-hunter2-hunter2-hunter2-\"
[tenants.acme.users]
database = \"sqlite://hunter2.db\"
[tenants.acme.layer]
kind = \"memory\"
[[tenants.acme.routes]]
path = \"ws/\"
groups = [\"all\"]
";

/// A folder with the file of one row.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("lockgate.toml"), text).expect("writes");
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("lockgate.toml")
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("makes the folder");
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    }

    fn load(&self, environment: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
        load(Some(&self.path()), environment)
    }
}

/// Loads, with mistakes as lines whose file names have no folder.
fn load(path: Option<&Path>, environment: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
    let mut consumers = Registry::default();
    consumers.register("chat", |_: &Scope| Echo);
    let options = LoadOptions {
        consumers,
        environment: Environment::from_iter(environment.iter().copied()),
    };
    Config::load(path, &options).map_err(|errors| {
        let folder = path.and_then(Path::parent);
        let folder = folder.map_or(String::new(), |folder| format!("{}/", folder.display()));
        let text = errors.to_string().replace(&folder, "");
        text.lines().map(str::to_owned).collect()
    })
}

fn warnings(loaded: &Loaded) -> String {
    loaded
        .warnings
        .iter()
        .fold(String::new(), |mut text, warning| {
            writeln!(text, "{warning}").expect("writes into a text");
            text
        })
}

#[test]
fn every_row_is_reported_at_its_place_and_shows_no_secret() {
    let mut failures = String::new();
    for row in rows::rows() {
        let text = row.file.replace("{TENANT}", TENANT);
        let lines = match Folder::new(&text).load(row.environment) {
            Ok(_) => Vec::new(),
            Err(lines) => lines,
        };
        let expected = |line: &String| {
            row.expected
                .iter()
                .any(|parts| parts.iter().all(|part| line.contains(part)))
        };
        let found = |parts: &&[&str]| {
            lines
                .iter()
                .any(|line| parts.iter().all(|part| line.contains(part)))
        };
        let all = lines.iter().all(expected) && row.expected.iter().all(found);
        if !all || lines.iter().any(|line| line.contains("hunter2")) {
            writeln!(
                failures,
                "{}: expected {:?}, got {lines:#?}",
                row.id, row.expected
            )
            .expect("writes into a text");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = Folder::new("");
    let missing = folder.0.path().join("missing.toml");
    let lines = load(Some(&missing), &[]).expect_err("is missing");
    assert!(
        lines[0].starts_with("missing.toml: found No such file"),
        "{lines:?}"
    );
    let lines = load(Some(folder.0.path()), &[]).expect_err("is a folder");
    assert!(lines[0].contains("directory"), "{lines:?}");
    // Root reads everything; for others the mode counts.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o000)).expect("sets the mode");
    if fs::read(folder.path()).is_err() {
        let lines = folder.load(&[]).expect_err("cannot be read");
        assert!(lines[0].contains("ermission denied"), "{lines:?}");
    }
    let lines = load(None, &[]).expect_err("has no tenant");
    assert!(
        lines[0].starts_with("configuration: tenants: found no tenant"),
        "{lines:?}"
    );
}

#[test]
fn byte_order_mark_and_crlf_are_accepted() {
    let text = format!("\u{feff}{}", TENANT.replace('\n', "\r\n"));
    let loaded = Folder::new(text).load(&[]).expect("is valid");
    assert_eq!(loaded.config.tenants.len(), 1);
}

#[test]
fn variables_override_and_empty_ones_are_unset() {
    let folder = Folder::new(format!(
        "[server]\nmax_connections = 5\n[tenants.acme]\n{TENANT}"
    ));
    let loaded = folder
        .load(&[
            ("LOCKGATE_SERVER__MAX_CONNECTIONS", "7"),
            ("LOCKGATE_SERVER__LISTEN", ""),
            ("LOCKGATE_SERVER__HEARTBEAT__INTERVAL", "30s"),
            ("LOCKGATE_SERVER__TRUSTED_PROXIES", "[\"10.0.0.0/8\"]"),
            ("LOCKGATE_REDIS__URL", "redis://:hunter2@h/0"),
            ("LOCKGATE_TENANTS__ACME__LIMITS__GROUPS_PER_SOCKET", "3"),
            (
                "LOCKGATE_TENANTS__ACME__TOKEN__SIGNING_KEY",
                "12345678901234567890123456789012",
            ),
            ("LOCKGATE_CONFIG", "ignored"),
            ("LOCKGATE_ANYTHING", "ignored"),
            ("REDIS__URL", "ignored"),
        ])
        .expect("is valid");
    let config = loaded.config;
    assert_eq!(config.server.max_connections, 7);
    assert_eq!(config.server.listen.port(), 8000);
    assert_eq!(config.server.heartbeat.interval, Duration::from_secs(30));
    assert_eq!(config.server.trusted_proxies.len(), 1);
    assert_eq!(
        config.redis.url.as_ref().map(|url| url.expose()),
        Some("redis://:hunter2@h/0")
    );
    let acme = &config.tenants["acme"];
    assert_eq!(acme.limits.groups_per_socket, 3);
    let key = acme.token.keys[0].signing_key.as_ref().expect("has a key");
    assert_eq!(key.expose(), "12345678901234567890123456789012");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn variables_name_tenants_with_hyphens() {
    let text = format!(
        "{}{}[tenants.a-b]\nhosts = [\"b\"]\n[tenants.acme]\nhosts = [\"a\"]\n",
        TENANT,
        TENANT.replace("acme", "a-b")
    );
    let loaded = Folder::new(text)
        .load(&[("LOCKGATE_TENANTS__A_B__LIMITS__MESSAGE_SIZE", "1KiB")])
        .expect("is valid");
    assert_eq!(loaded.config.tenants["a-b"].limits.message_size, 1024);
}

#[test]
fn secret_files_lose_one_newline_and_warn_when_all_can_read_them() {
    let text = TENANT.replace(
        "\"hunter2-hunter2-hunter2-hunter2-\"",
        "{ file = \"keys/acme\" }",
    );
    let folder = Folder::new(text);
    folder.write("keys/acme", "hunter2-hunter2-hunter2-hunter2-\n\n", 0o600);
    let loaded = folder.load(&[]).expect("is valid");
    let key = |loaded: &Loaded| {
        let key = &loaded.config.tenants["acme"].token.keys[0].signing_key;
        key.as_ref().expect("has a key").expose().to_owned()
    };
    assert_eq!(key(&loaded), "hunter2-hunter2-hunter2-hunter2-\n");
    assert_eq!(warnings(&loaded), "");
    folder.write("keys/acme", "hunter2-hunter2-hunter2-hunter2-", 0o644);
    let loaded = folder.load(&[]).expect("is valid");
    assert_eq!(key(&loaded), "hunter2-hunter2-hunter2-hunter2-");
    let told = warnings(&loaded);
    assert!(
        told.contains("lockgate.toml:3:1: tenants.acme.token.signing_key: every user"),
        "{told}"
    );
}

#[test]
fn secrets_come_from_the_environment() {
    let text = TENANT.replace(
        "\"hunter2-hunter2-hunter2-hunter2-\"",
        "{ env = \"ACME_KEY\" }",
    );
    let folder = Folder::new(text);
    let loaded = folder
        .load(&[("ACME_KEY", "hunter2-hunter2-hunter2-hunter2-")])
        .expect("is valid");
    assert_eq!(loaded.config.tenants["acme"].token.keys.len(), 1);
    let lines = folder.load(&[("ACME_KEY", "")]).expect_err("is unset");
    assert!(
        lines[0].contains("the variable ACME_KEY, which is not set or empty"),
        "{lines:?}"
    );
}

/// Strangers could take every place that the tenant's users have.
#[test]
fn sockets_for_anyone_warn_unless_strangers_are_bounded() {
    let open = format!("{TENANT}anonymous = true\n");
    let loaded = Folder::new(&open).load(&[]).expect("is valid");
    let told = warnings(&loaded);
    let key = "lockgate.toml:11:1: tenants.acme.routes[0].anonymous";
    assert!(
        told.contains(key) && told.contains("one client can take every place"),
        "{told}"
    );
    for bound in [
        "[server]\nper_address = { connections = 20 }\n",
        "[tenants.acme.limits]\nanonymous_connections = 20\n",
        "[tenants.acme.limits]\nanonymous_connections = 20\nconnections = 21\n",
        // Half of them is left for users by itself.
        "[tenants.acme.limits]\nconnections = 20\nconnects_per_second = 2\npublishes_per_second = 2\n",
    ] {
        let loaded = Folder::new(format!("{open}{bound}")).load(&[]);
        assert_eq!(warnings(&loaded.expect("is valid")), "", "{bound}");
    }
    for (name, what) in [
        ("connections", "place"),
        ("connects_per_second", "connect"),
        ("publishes_per_second", "event"),
    ] {
        for share in [
            format!("anonymous_{name} = 20\n{name} = 20"),
            format!("{name} = 1"),
        ] {
            let limits = "[server]\nper_address = { connections = 20 }\n[tenants.acme.limits]\n";
            let loaded = Folder::new(format!("{open}{limits}{share}\n")).load(&[]);
            let told = warnings(&loaded.expect("is valid"));
            assert!(
                told.contains(&format!("tenants.acme.limits.anonymous_{name}: "))
                    && told.contains(&format!("is not below {name} = "))
                    && told.contains(&format!("leaves no {what} for users")),
                "{told}"
            );
        }
    }
}

#[test]
fn weak_keys_warn() {
    for (key, told) in [
        ("short", "5 bytes: a key under 32 bytes"),
        (
            "django-insecure-0123456789abcdef0123456789abcdef",
            "startproject",
        ),
    ] {
        let text = TENANT.replace("hunter2-hunter2-hunter2-hunter2-", key);
        let loaded = Folder::new(text).load(&[]).expect("is valid");
        let warnings = warnings(&loaded);
        assert!(
            warnings.contains(told) && !warnings.contains(key),
            "{warnings}"
        );
    }
}

#[test]
fn included_files_hold_tenants() {
    let include = "include = [\"tenants.d/*.toml\", \"lockgate.toml\"]\n";
    let folder = Folder::new(format!(
        "{include}{TENANT}[tenants.acme]\nhosts = [\"a\"]\n"
    ));
    let other = format!(
        "{}[tenants.other]\nhosts = [\"b\"]\n",
        TENANT.replace("acme", "other")
    );
    folder.write("tenants.d/other.toml", &other, 0o600);
    let loaded = folder.load(&[]).expect("is valid");
    assert_eq!((loaded.config.tenants.len(), loaded.files.len()), (2, 2));
    // The error for a tenant that occurs twice names both places.
    folder.write(
        "tenants.d/third.toml",
        "[tenants.other]\nhosts = [\"c\"]\n[server]\n",
        0o600,
    );
    let lines = folder.load(&[]).expect_err("has a tenant twice");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with("tenants.d/third.toml:1:10: tenants.other: found the tenant a second")
    );
    assert!(
        lines[0].contains("first at tenants.d/other.toml:11:10"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("tenants.d/third.toml:3:2: server: found another key"),
        "{lines:?}"
    );
}

/// Reads it as `serve` without `--strict`: the right tenants, the wrong ones, the wrong files.
fn load_each(folder: &Folder) -> Result<Vec<String>, Vec<String>> {
    let options = LoadOptions {
        environment: Environment::default(),
        ..LoadOptions::default()
    };
    let loaded = Config::load_each(Some(&folder.path()), &options, &TenantFiles::new());
    let loaded = loaded.map_err(|errors| {
        let mistakes = errors.mistakes().iter();
        mistakes.map(ToString::to_string).collect::<Vec<_>>()
    })?;
    let wrong = loaded.included.wrong.iter();
    let wrong = wrong.map(|(id, wrong)| format!("{id}: {}", wrong.why));
    let files = loaded.included.wrong_files.values();
    let files = files.map(|wrong| format!("file: {}", wrong.why));
    let right = loaded.config.tenants.keys().map(ToString::to_string);
    Ok(right.chain(wrong).chain(files).collect())
}

/// One wrong file refused the whole.
#[test]
fn the_mistake_of_an_included_file_is_its_tenants_alone() {
    let tenant = |name: &str| {
        let hosts = format!("[tenants.{name}]\nhosts = [\"{name}.test\"]\n");
        format!("{}{hosts}", TENANT.replace("acme", name))
    };
    let main = "include = [\"tenants.d/*.toml\"]\n";
    let folder = Folder::new(main);
    let write = |name: &str, text: &str| folder.write(&format!("tenants.d/{name}"), text, 0o600);
    write("a.toml", &tenant("good"));
    let reading = format!("{}hots = 1\n{}", tenant("unread"), tenant("beside"));
    write("b.toml", &reading);
    write(
        "c.toml",
        &tenant("checked").replace("checked.test", "no host"),
    );
    write("d.toml", &format!("[server]\n{}", tenant("other")));
    write("e.toml", "[tenants.");
    write("f.toml", &tenant("good"));
    // It is no mistake of the others: their checks go on.
    write("g.toml", "tenants = 5\n");
    let found = load_each(&folder).expect("others are right");
    let begins = |index: usize, text: &str| {
        assert!(found[index].starts_with(text), "{text}: {found:?}");
    };
    assert_eq!(found.len(), 9, "{found:?}");
    begins(0, "beside");
    begins(1, "good");
    begins(2, "checked: ");
    begins(3, "other: ");
    assert!(found[3].contains("server: found another key"), "{found:?}");
    begins(4, "unread: ");
    assert!(found[4].contains("hots"), "{found:?}");
    let files = found[5..].join("\n");
    for why in [
        "server: found another key",
        "valid TOML",
        "the tenant a second time",
        "tenants: found another key",
    ] {
        assert!(files.contains(why), "{why}: {found:?}");
    }
    assert!(!found.join("\n").contains("hunter2"), "{found:?}");
    // The check of a file before it is rolled out names them all.
    assert!(folder.load(&[]).is_err());

    // The main file's mistakes are the deployment's, and so is a start without one right tenant.
    let broken = Folder::new(format!("{main}watch = 1\n"));
    broken.write("tenants.d/a.toml", tenant("good"), 0o600);
    broken.write("tenants.d/b.toml", "[tenants.", 0o600);
    assert_eq!(load_each(&broken).expect_err("watch is wrong").len(), 2);
    let nothing = Folder::new(main);
    nothing.write("tenants.d/a.toml", "[tenants.", 0o600);
    assert_eq!(
        load_each(&nothing).expect_err("no tenant is right").len(),
        1
    );
    // A variable may be for a tenant of the file that cannot be read.
    let told = nothing.load(&[("LOCKGATE_TENANTS__ACME__HOSTS", "[\"a.test\"]")]);
    let Err(told) = told else {
        panic!("the file is no TOML");
    };
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn registered_consumers_get_the_rest_of_the_table() {
    let text = format!(
        "{TENANT}consumer = {{ kind = \"chat\", rooms = 3, nested = {{ a = [1.5, true] }} }}\n"
    );
    let loaded = Folder::new(text).load(&[]).expect("is valid");
    let consumer = &loaded.config.tenants["acme"].routes[0].consumer;
    assert_eq!(consumer.kind, "chat");
    assert_eq!(consumer.options["rooms"].as_integer(), Some(3));
    assert_eq!(consumer.options["nested"]["a"][0].as_float(), Some(1.5));
}

#[test]
fn a_hundred_thousand_tenants_load_in_five_seconds() {
    // Without optimization the load takes about ten times as long, so a tenth of the tenants is enough.
    let tenants = if cfg!(debug_assertions) {
        10_000
    } else {
        100_000
    };
    let mut text = String::from("[redis]\nurl = \"redis://h/0\"\n");
    for n in 0..tenants {
        write!(
            text,
            "[tenants.t{n}]\nhosts = [\"t{n}.example\"]\n\
             token = {{ algorithm = \"HS256\", signing_key = \"0123456789abcdef0123456789abcdef\" }}\n\
             users = {{ database = \"sqlite://x\" }}\nlayer = {{ prefix = \"t{n}.\" }}\n\
             routes = [{{ path = \"ws/\", groups = [\"a_{{user.id}}\"] }}]\n"
        )
        .expect("writes into a text");
    }
    let folder = Folder::new(text);
    // The processor time of the thread, so that other work on the machine does not count.
    let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("is positive");
    let before = used();
    let loaded = folder.load(&[]).expect("is valid");
    assert_eq!(loaded.config.tenants.len(), tenants);
    let taken = used() - before;
    assert!(taken < Duration::from_secs(5), "{taken:?}");
}

#[test]
fn no_slip_of_the_hand_shows_a_secret() {
    let folder = Folder::new("");
    for at in 0..TENANT.len() {
        for slip in [
            "", "\"", "'", "\n", "=", "[", "]", "{", "\\", "#", "\0", ".", ",",
        ] {
            for text in [
                format!("{}{slip}{}", &TENANT[..at], &TENANT[at..]),
                format!("{}{slip}{}", &TENANT[..at], &TENANT[at + 1..]),
                format!("{}{slip}", &TENANT[..at]),
            ] {
                fs::write(folder.path(), &text).expect("writes");
                if let Err(lines) = folder.load(&[]) {
                    assert!(!lines.is_empty(), "{text}");
                    let shown = lines.iter().find(|line| line.contains("hunter2"));
                    assert_eq!(shown, None, "{text}");
                }
            }
        }
    }
}

/// The sample of the contract, with its secrets in `folder`.
fn contract(folder: &Folder) -> Config {
    for name in ["lockgate-operator", "acme-api", "acme-signing-key"] {
        let key = format!("{name:->32}\n");
        folder.write(&format!("secrets/{name}"), key, 0o600);
    }
    let sample = include_str!("contract.toml").replace("/run/secrets/", "secrets/");
    fs::write(folder.path(), sample).expect("writes");
    let loaded = folder
        .load(&[("ACME_DATABASE_URL", "postgres://h/acme")])
        .expect("is valid");
    loaded.config
}

#[test]
fn the_sample_of_the_contract_is_valid_and_its_values_are_the_defaults() {
    let sample = contract(&Folder::new(""));
    let defaults = Config::default();
    let same = |sample: &dyn std::fmt::Debug, default: &dyn std::fmt::Debug| {
        assert_eq!(format!("{sample:#?}"), format!("{default:#?}"));
    };
    same(&sample.include, &defaults.include);
    same(&sample.watch, &defaults.watch);
    same(&sample.server, &defaults.server);
    same(&sample.admin, &defaults.admin);
    same(&sample.api.timeout, &defaults.api.timeout);
    same(&sample.log, &defaults.log);
    same(&sample.metrics, &defaults.metrics);
    let mut denylist = sample.denylist.clone();
    denylist.redis = None;
    same(&denylist, &defaults.denylist);
    let acme = &sample.tenants["acme"];
    let tenant = lockgate::config::TenantConfig::default();
    same(&acme.refusal, &tenant.refusal);
    same(&acme.on_gap, &tenant.on_gap);
    same(&acme.limits, &tenant.limits);
    same(&acme.users.pool, &tenant.users.pool);
}

#[test]
fn defaults_are_those_of_the_contract() {
    let text = lockgate::config::defaults_toml();
    // Sections 3 to 7 and the comments of section 8.
    for line in [
        "user_id_claim = \"user_id\"",
        "jti_claim = \"jti\"",
        "token_types = [\"access\"]",
        "max_size = \"8KiB\"",
        "sources = [\"query\", \"header\", \"subprotocol\"]",
        "query_parameter = \"token\"",
        "on_expiry = \"close\"",
        "check_user_is_active = true",
        "check_revoke_token = false",
        "leeway = \"0s\"",
        "table = \"auth_user\"",
        "id_type = \"int\"",
        "max = 4",
        "idle = \"30s\"",
        "cache_ttl = \"5m\"",
        "stale_ttl = \"1h\"",
        "negative_ttl = \"10s\"",
        "local_ttl = \"5s\"",
        "authorize_ttl = \"10s\"",
        "prefix = \"asgi\"",
        "serializer_format = \"msgpack\"",
        "group_names = \"channels\"",
        "expiry = \"60s\"",
        "group_expiry = \"24h\"",
        "capacity = 100",
        "random_prefix_length = 12",
        "connections = 0",
        "anonymous_connections = 0",
        "connects_per_second = 0",
        "anonymous_connects_per_second = 0",
        "connections_per_user = 0",
        "on_excess = \"refuse\"",
        "messages_per_second = 50",
        "message_size = \"64KiB\"",
        "groups_per_socket = 100",
        "send_queue = \"1MiB\"",
        "publishes_per_second = 0",
        "anonymous_publishes_per_second = 0",
        "layer_queue = \"8MiB\"",
        "deliver = \"body\"",
        "kind = \"listen\"",
        "on_frame = \"drop\"",
        "on_invalid = \"drop\"",
        "require_origin = false",
        "refusal = \"http\"",
        "on_gap = \"count\"",
    ] {
        assert!(
            text.contains(&format!("\n# {line}\n")),
            "{line} is not in {text}"
        );
    }
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let text = lockgate::config::defaults_toml();
    let folder = Folder::new(&text);
    let lines = folder.load(&[]).expect_err("has no tenant");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let loaded = Folder::new(format!("{text}{TENANT}"))
        .load(&[])
        .expect("is valid");
    let mut config = loaded.config;
    config.tenants.clear();
    assert_eq!(format!("{config:#?}"), format!("{:#?}", Config::default()));
    // The commented part is a tenant of defaults: it reads too, and lacks only what has no default.
    let tenant = text.split_once("# [tenants.NAME]").expect("has a tenant").1;
    let tenant: String = format!("# [tenants.NAME]{tenant}")
        .lines()
        .filter(|line| !line.contains(" is not set: "))
        .map(|line| {
            format!(
                "{}\n",
                line.strip_prefix("# ")
                    .unwrap_or(line)
                    .replace("NAME", "acme")
            )
        })
        .filter(|line| !line.starts_with("algorithm = ") && !line.starts_with("path = "))
        .collect();
    let lines = Folder::new(&tenant)
        .load(&[])
        .expect_err("lacks what has no default");
    for line in &lines {
        let missing = [
            "no key",
            "no database",
            "no path",
            "no algorithm",
            "an unknown key",
            "no groups",
            "empty text",
        ];
        assert!(
            missing.iter().any(|what| line.contains(what)),
            "{line}\n{tenant}"
        );
    }
}

#[test]
fn the_documentation_is_the_printed_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let reference = lockgate::config::reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &reference).expect("writes");
    }
    let written = fs::read_to_string(&path).expect("docs/configuration.md is there");
    assert!(
        written == reference,
        "run UPDATE_DOCS=1 cargo test --test parts configuration"
    );
}

#[test]
fn the_reference_lists_every_key_of_the_contract() {
    let reference = lockgate::config::reference();
    let sample: toml::Table = include_str!("contract.toml").parse().expect("is TOML");
    fn walk(path: &str, table: &toml::Table, reference: &str) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner)
                    if !inner.contains_key("env") && !inner.contains_key("file") =>
                {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    let path = path.replace("acme", "NAME");
                    let header = format!("## `[{path}]`");
                    assert!(path == "tenants" || reference.contains(&header), "{header}");
                    walk(&path, inner, reference);
                }
                _ => assert!(reference.contains(&format!("| `{key}` |")), "{path}.{key}"),
            }
        }
    }
    walk("", &sample, &reference);
}
