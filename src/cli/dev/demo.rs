//! The files of the demo: its configuration, its keys and its users, in a folder that goes with it.
//!
//! The configuration is a file as a user writes one, read by the code of `serve`. So the page can show it, and other
//! commands can be tried with it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::{API, DevArguments, leftover};
use crate::auth::{MintRequest, mint};
use crate::clock::UnixTime;
use crate::config::{Config, Environment, Secret, TokenConfig};
use crate::ids::random_hex;
use crate::server::Addresses;
use crate::validation::LoadOptions;

/// The demo users of `users.sql`: id and name.
pub(super) const USERS: [(&str, &str); 2] = [("1", "alice"), ("2", "bob")];
/// The name of the tenant in `demo.toml`.
const TENANT: &str = "demo";
/// The lifetime of the tokens, enough for a working day.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// The folder of the demo. Dropping this removes it.
pub(super) struct DemoFolder {
    path: PathBuf,
    /// Held while the demo runs.
    _lock: File,
}

impl DemoFolder {
    /// Makes the folder with new keys and the demo users. Only the user who runs the demo can read it. Removes the folders of
    /// demos that were killed.
    ///
    /// # Errors
    /// If the system's folder of temporary files cannot be written.
    pub(super) async fn create() -> anyhow::Result<Self> {
        let temporary = std::env::temp_dir();
        leftover::remove_from(&temporary);
        let path = temporary.join(format!("{}{}", leftover::PREFIX, &random_hex()[..8]));
        let made = DirBuilder::new().mode(0o700).create(&path);
        let made = made.and_then(|()| leftover::lock(&path));
        let lock = made.with_context(|| format!("cannot make {}", path.display()))?;
        let folder = Self { path, _lock: lock };
        for name in ["signing-key", "api-key"] {
            let key = random_hex() + &random_hex();
            folder.write(name, &key)?;
        }
        let users = folder.create_users().await;
        users.context("cannot create the demo users")?;
        Ok(folder)
    }

    /// Returns the path of the configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.path.join("lockgate.toml")
    }

    /// Returns the path of the API's key.
    pub(super) fn api_key_file(&self) -> PathBuf {
        self.path.join("api-key")
    }

    /// Returns the API's key.
    pub(super) fn api_key(&self) -> io::Result<Secret> {
        Ok(Secret::new(fs::read_to_string(self.api_key_file())?))
    }

    /// Writes the configuration, and reads it as `serve` would. The environment does not change the demo.
    ///
    /// # Errors
    /// If the file cannot be written, or the demo cannot be served with these arguments.
    pub(super) fn load(&self, arguments: &DevArguments) -> anyhow::Result<Config> {
        let path = self.config();
        let addresses = Addresses {
            server: arguments.listen,
            admin: arguments.admin,
            api: arguments.api,
        };
        self.write("lockgate.toml", &self.text(arguments, &addresses))?;
        let options = LoadOptions {
            environment: Environment::default(),
            ..LoadOptions::default()
        };
        let loaded = Config::load(Some(&path), &options);
        let loaded = loaded.map_err(|errors| anyhow::anyhow!("{errors}"))?;
        Ok(loaded.config)
    }

    /// Writes the configuration again, with the ports that the system chose, so that other commands find the demo by it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn tell(
        &self,
        arguments: &DevArguments,
        addresses: &Addresses,
    ) -> io::Result<String> {
        let text = self.text(arguments, addresses);
        self.write("lockgate.toml", &text)?;
        Ok(text)
    }

    fn text(&self, arguments: &DevArguments, addresses: &Addresses) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let hosts = demo_hosts(arguments);
        let hosts: Vec<_> = hosts.iter().map(|host| quoted(host)).collect();
        let users = self.path.join("users.sqlite3");
        let database = format!("sqlite://{}?mode=ro", users.display());
        let api = addresses.api.unwrap_or(API);
        include_str!("demo.toml")
            .replace("{listen}", &addresses.server.to_string())
            .replace("{admin}", &addresses.admin.to_string())
            .replace("{api}", &api.to_string())
            .replace("{hosts}", &format!("[{}]", hosts.join(", ")))
            .replace("{database}", &quoted(&database))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(self.path.join(name))?
            .write_all(text.as_bytes())
    }

    async fn create_users(&self) -> anyhow::Result<()> {
        let path = self.path.join("users.sqlite3");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true);
        let mut connection = options.connect().await?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        sqlx::raw_sql(include_str!("../../../deploy/dev/users.sql"))
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        // A folder that cannot be removed stays among the temporary files, which the system cleans.
        leftover::remove(&self.path).ok();
    }
}

/// Signs tokens for the demo users, as the views of a Django project would.
pub(super) struct DemoLogin(TokenConfig);

impl DemoLogin {
    /// Takes the key of the demo tenant.
    ///
    /// # Errors
    /// If the configuration has no such tenant.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let tenant = config.tenants.iter().find(|(id, _)| id.as_str() == TENANT);
        let (_, tenant) = tenant.context("the demo tenant is there")?;
        Ok(Self(tenant.token.clone()))
    }

    /// Returns a new token; `None` for a name that is none of [`USERS`].
    ///
    /// # Errors
    /// If the key cannot sign.
    pub(super) fn token(&self, name: &str) -> anyhow::Result<Option<String>> {
        let Some((id, _)) = USERS.into_iter().find(|(_, user)| *user == name) else {
            return Ok(None);
        };
        let request = MintRequest {
            user_id: id,
            lifetime: TOKEN_LIFETIME,
            claims: serde_json::Map::new(),
        };
        Ok(Some(mint(&self.0, &request, UnixTime::now())?))
    }
}

/// Returns the hosts of the demo tenant: those for which the page answers, or every host.
fn demo_hosts(arguments: &DevArguments) -> Vec<String> {
    if arguments.allow_remote {
        return vec!["*".to_owned()];
    }
    let listen = match arguments.listen.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let mut hosts = ["localhost", "127.0.0.1", "[::1]"]
        .map(str::to_owned)
        .to_vec();
    if !hosts.contains(&listen) {
        hosts.push(listen);
    }
    hosts
}
