//! `serve` refuses the same files as `config check`, in the same words, and a gateway can be built of all others.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use lockgate::config::{Config, Environment};
use lockgate::consumer::{Echo, Registry, Scope};
use lockgate::ids::ReplicaId;
use lockgate::tenant::build::{Builder, SharedMemory};
use lockgate::tenant::{Makings, Tenants};
use lockgate::validation::LoadOptions;
use toml::{Table, Value};

use super::{Folder, TENANT, rows, wrong};

/// The files in which the rows of wrong values are set.
pub(super) const GOOD: &str = r#"
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[tenants.acme]
token = { algorithm = "HS256", signing_key = "hunter2-hunter2-hunter2-hunter2-" }
users = { database = "sqlite::memory:" }
layer = { kind = "memory" }
routes = [{ path = "ws/<slug:room>/", groups = ["chat_{room}", "user_{user.id}"] }]
"#;

/// A public key that is too short to be safe.
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDEOvjyAUmFmNMGaBpWLrohV0bO
75qV4ytQ6bPjMcCXmiHQqKXt2pM2/DqT+odyJAMgmdq1Q6TBD2FSxqcj8GRaC0ZO
j5RhdmRoyknBzFqAfu3/Mys6Knc/hcj3+pscvU7HXnD5jv5tJQeLCscfvOvnGvJj
g1utLcDzCiLnPQpmbwIDAQAB
-----END PUBLIC KEY-----";

fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register("chat", |_: &Scope| Echo);
    registry.register_with_options("counter", |options| match options.get("step") {
        None | Some(Value::Integer(_)) => Ok(|_: &Scope| Echo),
        Some(_) => Err("step is a whole number".to_owned()),
    });
    registry
}

fn options() -> LoadOptions {
    LoadOptions {
        consumers: registry(),
        environment: Environment::from_iter([("ACME_DATABASE_URL", "postgres://lockgate@db/acme")]),
    }
}

/// Puts the PEMs of the golden vectors where their names stand.
fn with_keys(value: &str) -> String {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../vectors/simplejwt_tokens.json")).unwrap();
    let pem = |name: &str, half: &str| {
        let pem = vectors["keys"][name][half].as_str().unwrap();
        pem.trim().to_owned()
    };
    let public = |name| pem(name, "public_pem");
    let places = [
        ("{RSA}", public("rsa")),
        ("{RSA1024}", RSA_1024.to_owned()),
        ("{RSA_PRIVATE}", pem("rsa", "private_pem")),
        ("{RSA_ESCAPED}", public("rsa").replace('\n', "\\n")),
        ("{P256}", public("p256")),
        ("{P384}", public("p384")),
        ("{K256}", public("k256")),
        ("{ED25519}", public("ed25519")),
        ("{ED448}", public("ed448")),
    ];
    let value = places.iter().fold(value.to_owned(), |value, (name, pem)| {
        value.replace(&format!("'{name}'"), &format!("'''{pem}'''"))
    });
    // A text over several lines is quoted thrice.
    value.replace(
        "'-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----'",
        "'''-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----'''",
    )
}

/// The good configuration with one key set.
fn with(key: &str, value: &str) -> String {
    let mut root: Table = GOOD.parse().unwrap();
    let value = with_keys(value);
    let parsed: Table = format!("value = {value}")
        .parse()
        .unwrap_or_else(|e| panic!("{e}: {value}"));
    let (parents, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut table = &mut root;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        let entry = table.entry(parent).or_insert_with(|| Table::new().into());
        table = entry.as_table_mut().unwrap();
    }
    table.insert(name.to_owned(), parsed["value"].clone());
    root.to_string()
}

/// Every mistake at once, as lines.
fn load(path: &Path) -> Result<Config, Vec<(String, String)>> {
    match Config::load(Some(path), &options()) {
        Ok(loaded) => Ok(loaded.config),
        Err(errors) => {
            let mistakes = errors.mistakes().iter();
            Err(mistakes.map(|m| (m.key.clone(), m.to_string())).collect())
        }
    }
}

/// Makes every part of a gateway and connects none of them.
async fn build(config: &Config) -> Result<(), String> {
    let mut builder = Builder::new(
        config,
        registry(),
        &ReplicaId::random(),
        SharedMemory::default(),
    );
    builder
        .deployment(config, &[])
        .map_err(|error| format!("{error:#}"))?;
    let built = builder.serving(config, &Tenants::default(), &Makings::default());
    built.map(drop).map_err(|error| format!("{error:#}"))
}

#[test]
fn every_wrong_value_is_refused_at_its_key() {
    let rows = wrong::rows();
    assert!(rows.len() >= 100, "{}", rows.len());
    let mut failures = String::new();
    for (key, value, at, part) in rows {
        let at = if at.is_empty() { key } else { at };
        let lines = match load(&Folder::new(with(key, value)).path()) {
            Ok(_) => Vec::new(),
            Err(lines) => lines,
        };
        let found = lines
            .iter()
            .any(|(key, line)| key == at && line.contains(part));
        let placed = lines
            .iter()
            .all(|(_, line)| line.contains("lockgate.toml:"));
        let shown = lines.iter().any(|(_, line)| line.contains("hunter"));
        if !found || !placed || shown {
            writeln!(
                failures,
                "{key} = {value}: expected {at}: {part}, got {lines:#?}"
            )
            .unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[tokio::test]
async fn what_the_check_lets_pass_can_be_built() {
    let mut built = 0;
    let mut failures = String::new();
    for (key, value) in values() {
        let Ok(config) = load(&Folder::new(with(key, value)).path()) else {
            continue;
        };
        built += 1;
        if let Err(error) = build(&config).await {
            writeln!(failures, "{key} = {value}: {error}").unwrap();
        }
    }
    for (name, text) in files() {
        // Secrets that a deployment mounts are not here.
        match load(&Folder::new(&text).path()) {
            Ok(config) => match build(&config).await {
                Ok(()) => built += 1,
                Err(error) => writeln!(failures, "{name}: {error}").unwrap(),
            },
            Err(lines) => {
                let known = |(_, line): &&(_, String)| !line.contains("No such file");
                let other: Vec<_> = lines.iter().filter(known).collect();
                if !other.is_empty() {
                    writeln!(failures, "{name}: {other:#?}").unwrap();
                }
            }
        }
    }
    for row in rows::rows() {
        let text = row.file.replace("{TENANT}", TENANT);
        if let Ok(config) = load(&Folder::new(&text).path()) {
            built += 1;
            if let Err(error) = build(&config).await {
                writeln!(failures, "{}: {error}", row.id).unwrap();
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(built > 60, "only {built} were built");
}

/// The configurations of the repository, each as one file.
fn files() -> Vec<(&'static str, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let (pods, compose) = ("k8s/base/lockgate.toml", "deploy/compose/lockgate.toml");
    let with = |base, file: &'static str| (file, format!("{}\n{}", read(base), read(file)));
    let alone = |file: &'static str| (file, read(file));
    vec![
        with(pods, "k8s/overlays/dev/tenants/demo.toml"),
        with(pods, "k8s/overlays/production/tenants/acme.toml"),
        with(compose, "deploy/compose/demo.toml"),
        with(compose, "deploy/compose/cluster/acme.toml"),
        alone("tests/parts/configuration/contract.toml"),
    ]
}

/// Values as they may well be right, and those of the wrong table, whose mistakes may be less than they seem.
fn values() -> Vec<(&'static str, &'static str)> {
    let mut values: Vec<_> = wrong::rows().iter().map(|row| (row.0, row.1)).collect();
    for url in [
        "'redis://h'",
        "'redis://h:1/15'",
        "'rediss://u:p%2Fw@h/0'",
        "'redis://:p@w@h'",
        "'redis://[::1]:7/0'",
        "'redis://h/'",
        "'redis+sentinel://a,b:1/m/3'",
        "'rediss+sentinel://u:p@a/m?sentinel_password=q'",
        "'redis://0.0.0.0'",
        "'redis://h/000'",
        "'redis://%68/0'",
        "'redis://u@h'",
        "'redis://:@h'",
        "'REDIS://h'",
        "'redis://h_1/0'",
        "'redis://ü/0'",
    ] {
        values.extend(
            ["redis.url", "denylist.redis", "tenants.acme.redis.url"].map(|key| (key, url)),
        );
    }
    values.extend(
        [
            "'postgres://h'",
            "'postgres://'",
            "'postgresql:///db?host=/run/postgresql'",
            "'mysql://u:p@h:3306/d'",
            "'mariadb://h/d'",
            "'sqlite://x.db'",
            "'sqlite:x.db'",
            "'sqlite::memory:'",
            "'sqlite://x?mode=rwc'",
            "'postgres://u:p@h/d?sslmode=VERIFY-FULL'",
            "'postgres://u:p@h/d?sslmode=require&channel_binding=require'",
            "'postgres://u@h/d?options[search_path]=a'",
            "'postgres://u@h/d?statement-cache-capacity=0'",
            "'mysql://u@h/d?ssl-mode=verify_ca&charset=utf8'",
            "'postgres://[::1]/d'",
            "'postgres://%2Frun%2Fpostgresql/d'",
            "'postgres://h/d?port=5433&user=a@b'",
            "'POSTGRES://h/d'",
            "'mysql://'",
            "'sqlite://'",
        ]
        .map(|url| (DATABASE, url)),
    );
    values.extend(
        [
            "{ algorithm = 'RS256', verifying_key = '{RSA}' }",
            "{ algorithm = 'PS384', verifying_key = '{RSA}' }",
            "{ algorithm = 'ES256', verifying_key = '{P256}' }",
            "{ algorithm = 'ES384', verifying_key = '{P384}' }",
            "{ algorithm = 'EdDSA', verifying_key = '{ED25519}' }",
            "{ algorithm = 'HS512', signing_key = 'short' }",
            "{ algorithm = 'HS256', signing_key = 'x', verifying_key = '' }",
            "{ algorithm = 'RS256', jwk_url = 'https://id.example/' }",
            "{ algorithm = 'RS256', jwk_url = 'http://localhost:1/' }",
            "{ algorithm = 'RS256', jwk_url = 'http://[::1]:1/', verifying_key = '{RSA}' }",
            "{ algorithm = 'RS256', jwk_url = 'HTTPS://id.example' }",
            "{ algorithm = 'HS256', signing_key = 'x', jwk_url = 'https://id.example' }",
            "{ algorithm = 'RS256', jwk_url = 'http://localhost.:1/' }",
            "{ algorithm = 'RS256', jwk_url = 'http://127.1/' }",
        ]
        .map(|token| ("tenants.acme.token", token)),
    );
    values.extend(
        [
            "['*']",
            "['null']",
            "['capacitor://localhost']",
            "['https://*.a.example:8443']",
            "['HTTPS://A.example']",
            "['https://a_b']",
            "['http://[::1]:3000']",
            "['self', 'https://app.example', 'file://', 'capacitor://localhost', 'null']",
            "['https://a..b']",
            "['https://ü.example']",
            "['https://a.example.']",
            "['https://*.b*']",
        ]
        .map(|origins| ("tenants.acme.origins", origins)),
    );
    values.extend(
        [
            "[{ path = '' }]", "[{ path = '<path:p>', groups = ['{tenant}_all'] }]", "[{ path = 'ü/<x>' }]",
            "[{ path = 'a', groups = ['a b'] }]", "[{ path = 'a', groups = ['g'], events = ['**'] }]", "[{ path = 'a', events = ['a***'] }]",
            "[{ path = 'a', groups = ['g'], consumer = { kind = 'broadcast', type = 't', fields = [], stamp = ['user_id'] } }]",
            "[{ path = 'a', consumer = { kind = 'chat', x = 1 } }]", "[{ path = 'a', consumer = { kind = 'counter', step = 2 } }]",
            "[{ path = 'a/<int:n>', anonymous = true, groups = ['g_{n}_{tenant}'], authorize = 'SELECT :n' }]",
            "[{ path = 'a/<int:n>', authorize = \"SELECT ':x', :n -- :y\" }]", "[{ path = 'a', deliver = { field = 'text' } }]",
        ]
        .map(|routes| ("tenants.acme.routes", routes)),
    );
    values.extend([
        ("tenants.acme.layer", "{ hosts = ['redis://h'] }"),
        ("tenants.acme.layer", "{ kind = 'core', hosts = ['redis://h', 'redis://i'], channel_capacity = { 'a*' = 3 } }"),
        ("tenants.acme.layer", "{ hosts = ['redis://h'], symmetric_encryption_keys = ['x', ' '] }"),
        ("tenants.acme.users.query", "'SELECT id, is_active FROM u WHERE id IN (:user_ids);'"),
        ("tenants.acme.users.table", "'public.auth_user'"),
    ]);
    values
}

/// The key of the database.
const DATABASE: &str = "tenants.acme.users.database";

/// Returns a command's standard error for a file, and checks that it fails.
fn said(command: &[&str], file: &Path) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_lockgate"))
        .args(command)
        .arg("--config")
        .arg(file)
        .env_clear()
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(1) => Ok(text),
        code => Err(format!("exit {code:?}: {text}")),
    }
}

#[test]
fn serve_refuses_in_the_words_of_the_check() {
    let mut failures = String::new();
    // One of each key: the words come from one place, and a process costs more than a row.
    let mut seen = BTreeSet::new();
    let rows = wrong::rows().into_iter();
    for (key, value, at, part) in rows {
        let at = if at.is_empty() { key } else { at };
        if !seen.insert((at, part.len() % 4)) {
            continue;
        }
        // The binary has no consumers of its own.
        if value.contains("counter") {
            continue;
        }
        let folder = Folder::new(with(key, value));
        let (check, serve) = (
            said(&["config", "check"], &folder.path()),
            said(&["serve"], &folder.path()),
        );
        let place = format!("{}:", folder.path().display());
        match (check, serve) {
            (Ok(check), Ok(serve)) if check == serve && check.contains(&place) => {}
            other => writeln!(failures, "{key} = {value}: {other:#?}").unwrap(),
        }
    }
    assert!(seen.len() > 30);
    assert!(failures.is_empty(), "{failures}");
}
