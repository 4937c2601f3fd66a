//! `gateway().replicas(2).tenant("acme").start().await`: a configuration, written and served.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use toml::Table;

use super::database::ALICE;
use super::http::{Response, request};
use super::replica::Replica;
use super::socket::Socket;
use super::{Database, PATIENCE, RedisServer, Tenant, eventually, scratch, unique};

/// The route of a tenant for which a test names none.
const ROUTE: &str = r#"
    path   = "ws/chat/<slug:room>/"
    groups = ["chat_{room}"]
"#;

/// Begins a deployment.
pub(crate) fn gateway() -> Builder {
    Builder {
        replicas: 1,
        redis: None,
        without_redis: false,
        in_registry: false,
        settings: Table::new(),
        tenants: Vec::new(),
    }
}

/// A deployment in the making. Settings have their names of the configuration file, with dots.
pub(crate) struct Builder {
    replicas: usize,
    redis: Option<String>,
    without_redis: bool,
    in_registry: bool,
    settings: Table,
    tenants: Vec<TenantBuilder>,
}

struct TenantBuilder {
    word: String,
    settings: Table,
    /// The kind of layer that is written unless a setting says another.
    kind: Option<&'static str>,
    routes: Vec<Table>,
    database: Option<Database>,
}

impl Builder {
    /// Sets the number of processes; the default is 1.
    pub(crate) fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// Uses this Redis instead of the shared one.
    pub(crate) fn redis(mut self, url: &str) -> Self {
        self.redis = Some(url.to_owned());
        self
    }

    /// Configures no Redis for the deployment.
    pub(crate) fn without_redis(mut self) -> Self {
        self.without_redis = true;
        self
    }

    /// Sets a setting of the deployment.
    pub(crate) fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        set(&mut self.settings, key, value.into());
        self
    }

    /// Sets the registry of tenants: its database, which gets its tables, and the key that seals.
    pub(crate) fn registry(self, url: &str, key: &str) -> Self {
        self.set("registry.database", url)
            .set("registry.key", key)
            .set("registry.migrate", true)
    }

    /// Puts the tenants into the registry instead of the file; [`Builder::start`] does so.
    pub(crate) fn in_registry(mut self) -> Self {
        self.in_registry = true;
        self
    }

    /// Adds a tenant, whose name, host, prefix and key differ from those of every other test.
    pub(crate) fn tenant(mut self, word: &str) -> Self {
        self.tenants.push(TenantBuilder {
            word: word.to_owned(),
            settings: Table::new(),
            kind: Some("pubsub"),
            routes: Vec::new(),
            database: None,
        });
        self
    }

    /// Sets a setting of the tenant named last.
    pub(crate) fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        set(&mut self.last().settings, key, value.into());
        self
    }

    /// Goes back to a tenant that was named before.
    pub(crate) fn of(mut self, word: &str) -> Self {
        let at = self.tenants.iter().position(|tenant| tenant.word == word);
        let tenant = self.tenants.remove(at.expect("it was named"));
        self.tenants.push(tenant);
        self
    }

    /// Writes no kind of layer for the tenant named last.
    pub(crate) fn without_layer_kind(mut self) -> Self {
        self.last().kind = None;
        self
    }

    /// Sets settings of the tenant named last, as TOML.
    pub(crate) fn with_toml(mut self, text: &str) -> Self {
        let settings: Table = text.parse().unwrap_or_else(|e| panic!("{e}: {text}"));
        merge(&mut self.last().settings, settings);
        self
    }

    /// Adds a route, the keys of its table as TOML.
    pub(crate) fn route(mut self, text: &str) -> Self {
        let route = text.parse().unwrap_or_else(|e| panic!("{e}: {text}"));
        self.last().routes.push(route);
        self
    }

    /// Sets the database of the tenant named last. The default is a PostgreSQL database made by Django, and none where the claims
    /// are the user.
    pub(crate) fn users(mut self, database: &Database) -> Self {
        self.last().database = Some(database.clone());
        self
    }

    fn last(&mut self) -> &mut TenantBuilder {
        self.tenants.last_mut().expect("name a tenant first")
    }

    /// Starts the replicas and waits until all are ready.
    pub(crate) async fn start(self) -> Gateway {
        let mut gateway = self.spawn().await;
        for replica in &gateway.replicas {
            replica.ready().await;
        }
        gateway.register().await;
        gateway
    }

    /// Starts the replicas and waits only until they listen.
    pub(crate) async fn spawn(self) -> Gateway {
        let count = self.replicas;
        let mut gateway = self.write().await;
        for _ in 0..count {
            gateway.add_replica().await;
        }
        gateway
    }

    /// Writes the configuration and starts nothing.
    pub(crate) async fn write(self) -> Gateway {
        let dir = scratch("gateway");
        let redis = match self.redis {
            Some(url) => url,
            None => RedisServer::shared().await.url(),
        };
        let api_key = format!("an-operators-key-for-tests-only-{}", unique());
        let key_file = dir.path().join("operator-key");
        std::fs::write(&key_file, &api_key).expect("a file can be written");
        std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).expect("ours");

        let mut config = Table::new();
        for section in ["server", "admin", "api"] {
            set(
                &mut config,
                &format!("{section}.listen"),
                "127.0.0.1:0".into(),
            );
        }
        let mut key = Table::new();
        key.insert("file".into(), key_file.display().to_string().into());
        set(&mut config, "api.api_keys", vec![key].into());
        // A replica that shares two processors with other tests does not answer within the 250 ms of the default.
        set(&mut config, "api.timeout", "2s".into());
        if !self.without_redis {
            set(&mut config, "redis.url", redis.clone().into());
        }
        merge(&mut config, self.settings);
        let (mut tenants, mut unregistered) = (Vec::new(), Vec::new());
        for builder in self.tenants {
            let (tenant, table) = builder.build(&redis).await;
            match self.in_registry {
                true => unregistered.push((tenant.name.clone(), table)),
                false => set(
                    &mut config,
                    &format!("tenants.{}", tenant.name),
                    table.into(),
                ),
            }
            tenants.push(tenant);
        }
        let path = dir.path().join("lockgate.toml");
        std::fs::write(&path, config.to_string()).expect("a file can be written");
        Gateway {
            replicas: Vec::new(),
            tenants,
            unregistered,
            api_key,
            key_file,
            config: path,
            _dir: dir,
        }
    }
}

impl TenantBuilder {
    async fn build(self, redis: &str) -> (Tenant, Table) {
        let name = format!("{}-{}", self.word, unique());
        let users = self
            .settings
            .get("users")
            .and_then(|users| users.get("source"));
        let (database, is_asked) = match self.database {
            Some(database) => (database, true),
            None if users.is_some_and(|source| source.as_str() == Some("claims")) => {
                (Database::at(String::new()), false)
            }
            None => (Database::postgres().await, true),
        };
        let mut tenant = Tenant {
            host: format!("{name}.test"),
            prefix: name.clone(),
            key: format!("the signing key of {name}, only for tests"),
            redis: redis.to_owned(),
            database,
            name,
        };
        let mut table = Table::new();
        let mut put = |key: &str, value: &str| set(&mut table, key, value.into());
        put("token.algorithm", "HS256");
        put("token.signing_key", &tenant.key);
        if is_asked {
            put("users.database", tenant.database.url());
        }
        if let Some(kind) = self.kind {
            put("layer.kind", kind);
        }
        put("layer.prefix", &tenant.prefix);
        set(&mut table, "hosts", vec![tenant.host.clone()].into());
        let own = self
            .settings
            .get("token")
            .and_then(|token| token.get("signing_key"));
        let has_own_key = own.is_some();
        merge(&mut table, self.settings);
        let token = table["token"].as_table_mut().expect("put above");
        if token.contains_key("jwk_url") {
            // Its keys are there and nowhere else.
            token.remove("signing_key");
        } else if token.contains_key("issuers") && !has_own_key {
            token.remove("signing_key");
            token.remove("algorithm");
        }
        let mut routes = self.routes;
        if routes.is_empty() {
            routes.push(ROUTE.parse().expect("valid TOML"));
        }
        set(&mut table, "routes", routes.into());
        // Clients use the values that the test has set.
        let text = |key: &str, field: &str| {
            Some(table.get(key)?.as_table()?.get(field)?.as_str()?.to_owned())
        };
        if let Some([host]) = table["hosts"].as_array().map(Vec::as_slice) {
            tenant.host = host.as_str().expect("a name").to_owned();
        }
        if let Some(prefix) = text("layer", "prefix") {
            tenant.prefix = prefix;
        }
        if let Some(url) = text("redis", "url") {
            tenant.redis = url;
        }
        if let Some(key) = text("token", "signing_key") {
            tenant.key = key;
        }
        (tenant, table)
    }
}

/// A deployment: replicas of one configuration.
pub(crate) struct Gateway {
    /// The processes.
    pub(crate) replicas: Vec<Replica>,
    tenants: Vec<Tenant>,
    /// The documents of the tenants that are to be put into the registry.
    unregistered: Vec<(String, Table)>,
    /// An operator's key.
    pub(crate) api_key: String,
    /// The file that holds it.
    pub(crate) key_file: PathBuf,
    /// The configuration file.
    pub(crate) config: PathBuf,
    _dir: TempDir,
}

impl Gateway {
    /// Starts one more replica; it may not be ready yet.
    pub(crate) async fn add_replica(&mut self) {
        self.replicas.push(Replica::start(&self.config).await);
    }

    /// Waits until the first replica knows of the others, which it learns from their signs of life.
    pub(crate) async fn know_each_other(&self) {
        let count = self.replicas.len();
        let all = json!({"expected": count, "confirmed": count, "missing": []});
        eventually(PATIENCE, "the replicas know each other", async || {
            let answer = self.replica().api(&self.api_key, "POST", "/v1/reload", "");
            let answer = answer.await.json();
            match answer["replicas"] == all {
                true => Ok(()),
                false => Err(answer),
            }
        })
        .await;
    }

    /// Puts the tenants into the registry that are to be there.
    async fn register(&mut self) {
        let unregistered = std::mem::take(&mut self.unregistered);
        if !unregistered.is_empty() {
            self.know_each_other().await;
        }
        for (name, table) in unregistered {
            let document = serde_json::to_string(&table).expect("JSON has all of TOML but dates");
            let path = format!("/v1/tenants/{name}");
            let put = self.replica().api(&self.api_key, "PUT", &path, &document);
            let put = put.await;
            assert_eq!(put.status, 201, "{put:?}");
            let confirmed = &put.json()["replicas"]["confirmed"];
            assert_eq!(confirmed, self.replicas.len(), "{put:?}");
        }
    }

    /// The first replica.
    pub(crate) fn replica(&self) -> &Replica {
        &self.replicas[0]
    }

    /// The first tenant.
    pub(crate) fn tenant(&self) -> &Tenant {
        &self.tenants[0]
    }

    /// The tenant that the builder was given this word for.
    pub(crate) fn named(&self, word: &str) -> &Tenant {
        self.tenants
            .iter()
            .find(|tenant| tenant.name.starts_with(&format!("{word}-")))
            .unwrap_or_else(|| panic!("no tenant {word}"))
    }

    /// Opens a socket of `alice` on the first replica and tenant.
    pub(crate) async fn open(&self, path: &str) -> Socket {
        let token = self.tenant().token(ALICE);
        self.replica()
            .dial(self.tenant(), path)
            .token(&token)
            .open()
            .await
    }

    /// Returns the whole output of the replicas.
    pub(crate) fn output(&self) -> String {
        self.replicas
            .iter()
            .map(|replica| replica.process.output.text())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// `/readyz` of the first replica, as an operator sees it.
    pub(crate) async fn readyz(&self) -> Response {
        let bearer = format!("Bearer {}", self.api_key);
        let headers = [("Authorization", bearer.as_str())];
        request(self.replica().admin, "GET", "/readyz", &headers, "").await
    }

    /// `POST …/groups/{group}/send` on the first replica, for the first tenant.
    pub(crate) async fn send(&self, group: &str, event: &Value) {
        let path = format!("/v1/tenants/{}/groups/{group}/send", self.tenant().name);
        let answer = self
            .replica()
            .api(&self.api_key, "POST", &path, &event.to_string())
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Sets `a.b.c`, and makes the tables on the way.
fn set(table: &mut Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((first, rest)) => {
            let inner = table
                .entry(first)
                .or_insert_with(|| Table::new().into())
                .as_table_mut()
                .unwrap_or_else(|| panic!("{first} is not a table"));
            set(inner, rest, value);
        }
    }
}

/// Lays `over` over `table`.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}
