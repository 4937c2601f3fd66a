//! A gateway and its surroundings: Redis, a user database as Django makes it, tokens as simplejwt makes them, and a
//! configuration file. All files are in one temporary directory, and all ports are on loopback.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::configuration;
use crate::floor;
use crate::http;
use crate::ports::free_port;
use crate::process::{CpuReading, LOAD_CORE, Process, SERVER_CORE};
use crate::redis::Link;
use crate::swarm::Swarm;

/// Users in the database, numbered from 1.
pub(crate) const USERS: u64 = 12_000;
/// The lifetime of a user record in the gateway's in-process cache; the connect row waits for it to pass.
pub(crate) const LOCAL_TTL: Duration = Duration::from_secs(1);
/// Groups that a socket of the routes for the table of costs joins, beside `bench`.
pub(crate) const EXTRA_GROUPS: u64 = 20;
/// Groups of the latency row.
pub(crate) const SMALL_GROUPS: u64 = 1_000;

/// An operator's key to the management API.
pub(crate) const API_KEY: &str = "an-operator-key-for-benches-that-protects-nothing";
/// The lifetime of a token, longer than any run.
pub(crate) const TOKEN_SECONDS: u64 = 3600;

/// The key that seals the registry of tenants: 32 bytes.
pub(crate) const SEALING_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(crate) const KEY: &str = "a-signing-key-for-benches-that-protects-nothing-0123456789";
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The Redis channel of the group that most sockets are in.
pub(crate) const SHARED_CHANNEL: &str = "bench__group__bench";

/// The Redis channel of small group `n`.
pub(crate) fn small_channel(n: u64) -> String {
    format!("bench__group__small_{n}")
}

/// The Redis channel of group `n` with history.
pub(crate) fn kept_channel(n: u64) -> String {
    format!("bench__group__kept_{n}")
}

/// The name of idle tenant `n`, from 1.
pub(crate) fn idle_tenant(n: usize) -> String {
    format!("t{n:04}")
}

/// Returns all channels that the rows publish to.
pub(crate) fn all_channels() -> Vec<String> {
    let small = (1..=SMALL_GROUPS).map(small_channel);
    small.chain([SHARED_CHANNEL.to_owned()]).collect()
}

/// Returns the channel that reaches a socket with this path, for the stand-in.
pub(crate) fn channel_of_path(path: &str) -> String {
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next().map(str::parse)) {
        (Some("small"), Some(Ok(n))) => small_channel(n),
        _ => SHARED_CHANNEL.to_owned(),
    }
}

/// The id of the one token of user `user`.
pub(crate) fn jti(user: u64) -> String {
    format!(
        "{:032x}",
        u128::from(user) * 0x9e37_79b9_7f4a_7c15_f39c_0c2d
    )
}

/// Redis, database and configuration, in which gateways are started.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) redis_port: u16,
    redis: Process,
    /// The link for commands that are not measured.
    pub(crate) link: Link,
    /// The Redis that gateways use instead, with [`World::use_shards`].
    pub(crate) cluster: Option<Cluster>,
    program: PathBuf,
    stand_in: bool,
}

/// The options of a gateway. It always has the tenant `bench`.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// The number of idle tenants, named by [`idle_tenant`].
    pub(crate) more: usize,
    /// True if it has a management API.
    pub(crate) api: bool,
    /// The database of the users, instead of SQLite.
    pub(crate) database: Option<String>,
    pub(crate) limit: Option<Limit>,
    /// The database of a registry of tenants.
    pub(crate) registry: Option<String>,
    /// The number of included files with a tenant in each, named by [`idle_tenant`]; with them `watch` is on.
    pub(crate) files: usize,
    /// True if the groups `kept_N` of tenant `bench` have a history, with the route `resume/N/`, and the groups `present_N`
    /// presence, with the route `present/N/`. The routes `held-groups/N/` and `held-members/N/` are `groups/N/` and `members/N/` with
    /// histories.
    pub(crate) history: bool,
    /// True if the layer of all tenants is `core`, with Channels' defaults.
    pub(crate) core: bool,
    /// More lines of `[tenants.NAME.users]`, for each tenant.
    pub(crate) more_users: String,
    /// More tables of the configuration, among them routes of tenant `bench`.
    pub(crate) more_tables: String,
}

/// `[tenants.NAME.limits]` of one tenant.
#[derive(Clone)]
pub(crate) struct Limit {
    pub(crate) tenant: String,
    /// `connections = 1`, for example.
    pub(crate) line: String,
}

/// A token and the route of its socket.
#[derive(Clone, Copy)]
pub(crate) struct Ticket<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) route: &'a str,
    /// The number in the path.
    pub(crate) n: u64,
    pub(crate) user: u64,
    /// The number of the token, from which [`jti`] makes its id; as a rule that of the user.
    pub(crate) token: u64,
}

impl Ticket<'_> {
    /// Returns the upgrade request as a browser sends it.
    pub(crate) fn request(&self) -> Result<Vec<u8>> {
        let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let claims = json!({
            "token_type": "access", "exp": now + TOKEN_SECONDS, "iat": now - 1, "jti": jti(self.token),
            "user_id": self.user.to_string(),
        });
        let key = EncodingKey::from_secret(KEY.as_bytes());
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?;
        let (host, route, n) = (format!("{}.example.com", self.tenant), self.route, self.n);
        let request = format!(
            "GET /{route}/{n}/?token={token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n\
             Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
             Upgrade: websocket\r\nOrigin: https://{host}\r\nSec-WebSocket-Version: 13\r\n\
             Accept-Encoding: gzip, deflate\r\nAccept-Language: en\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        Ok(request.into_bytes())
    }
}

/// A running gateway, or its stand-in.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) port: u16,
    admin: Option<u16>,
    /// The port of the management API, with [`Setup::api`].
    pub(crate) api: Option<u16>,
    file: PathBuf,
    setup: Setup,
}

impl World {
    /// Starts Redis and makes the database. With `stand_in` the gateways started later are [`floor::relay`].
    pub(crate) fn create(program: &Path, stand_in: bool) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lockgate-load").tempdir()?;
        let redis_port = free_port();
        let log = File::create(dir.path().join("redis.log"))?;
        let mut redis = Process::spawn(LOAD_CORE, Path::new("redis-server"), |command| {
            command
                .args(["--port", &redis_port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--dir"])
                .arg(dir.path())
                .stdout(log)
        })?;
        let link = wait_for("Redis", &mut redis, || Link::connect(redis_port))?;
        make_users(&dir.path().join("users.sqlite3"))?;
        Ok(Self {
            dir,
            redis_port,
            redis,
            link,
            cluster: None,
            program: program.to_owned(),
            stand_in,
        })
    }

    /// Lets later gateways use a new cluster of so many masters instead of the one Redis; 0: the one Redis again. What
    /// either held is gone.
    pub(crate) fn use_shards(&mut self, shards: usize) -> Result<()> {
        self.link.call(&[b"FLUSHALL"])?;
        self.cluster = match shards {
            0 => None,
            shards => Some(Cluster::start(shards, self.dir.path())?),
        };
        Ok(())
    }

    /// Returns an empty swarm that publishes to the Redis in use.
    pub(crate) fn swarm(&self) -> Result<Swarm> {
        match &self.cluster {
            Some(cluster) => Swarm::publishing(cluster.publisher()?),
            None => Swarm::new(self.redis_port),
        }
    }

    /// Returns the CPU time of each server of the Redis in use.
    pub(crate) fn redis_cpu(&self) -> Result<Vec<CpuReading>> {
        match &self.cluster {
            Some(cluster) => cluster.cpu(),
            None => Ok(vec![self.redis.cpu()?]),
        }
    }

    /// Returns the commands that the Redis in use has run so far.
    pub(crate) fn command_counts(&mut self) -> Result<BTreeMap<String, u64>> {
        match &mut self.cluster {
            Some(cluster) => cluster.command_counts(),
            None => self.link.command_counts(),
        }
    }

    /// Deletes the cached records of `users` from Redis.
    pub(crate) fn forget_users(&mut self, users: impl Iterator<Item = u64>) -> Result<()> {
        let keys: Vec<String> = users
            .map(|user| format!("lockgate:bench:user:{user}"))
            .collect();
        let mut arguments: Vec<&[u8]> = vec![b"DEL"];
        arguments.extend(keys.iter().map(|key| key.as_bytes()));
        self.link.call(&arguments)?;
        Ok(())
    }

    /// Returns the URL of the users' database.
    pub(crate) fn users_database(&self) -> String {
        format!("sqlite://{}/users.sqlite3", self.dir.path().display())
    }

    /// Returns the CPU time of all that shares the load core: Redis and this program.
    pub(crate) fn load_cpu(&self) -> Result<[CpuReading; 2]> {
        Ok([self.redis.cpu()?, CpuReading::of(std::process::id())?])
    }

    /// Starts a gateway with tenant `bench` and `more` idle tenants, and waits until it is ready.
    pub(crate) fn start_gateway(&self, more: usize) -> Result<Gateway> {
        self.start(Setup {
            more,
            ..Setup::default()
        })
    }

    /// Starts a gateway and waits until it is ready.
    pub(crate) fn start(&self, setup: Setup) -> Result<Gateway> {
        if self.stand_in {
            let (process, port) = floor::start_relay(self.redis_port)?;
            return Ok(Gateway {
                process,
                port,
                admin: None,
                api: None,
                file: PathBuf::new(),
                setup,
            });
        }
        let (port, admin) = (free_port(), free_port());
        let api = setup.api.then(free_port);
        let file = self.dir.path().join(format!("gateway-{port}.toml"));
        let log_file = self.dir.path().join("gateway.log");
        let log = File::options().create(true).append(true).open(&log_file)?;
        let errors = log.try_clone()?;
        let ports = [Some(port), Some(admin), api];
        fs::write(&file, self.configuration(ports, &setup))?;
        if setup.files > 0 {
            configuration::write_files(&file.with_extension("d"), setup.files)?;
        }
        let mut process = Process::spawn(SERVER_CORE, &self.program, |command| {
            command
                .args(["serve", "--config"])
                .arg(&file)
                .env("TOKIO_WORKER_THREADS", "1")
                .stdout(log)
                .stderr(errors)
        })?;
        wait_for("the gateway", &mut process, || {
            let (status, body) = http::get(admin, "/readyz")?;
            ensure!(status == 200, "/readyz answers {status}: {body}");
            Ok(())
        })
        .with_context(|| fs::read_to_string(&log_file).unwrap_or_default())?;
        Ok(Gateway {
            process,
            port,
            admin: Some(admin),
            api,
            file,
            setup,
        })
    }

    /// Runs `config check` on the gateway's configuration, on the server's core. Returns its time.
    pub(crate) fn check(&self, gateway: &Gateway) -> Result<Duration> {
        let began = Instant::now();
        let mut check = Process::spawn(SERVER_CORE, &self.program, |command| {
            command
                .arg("--config")
                .arg(&gateway.file)
                .args(["config", "check"])
                .stdout(Stdio::null())
        })?;
        let status = check.child().wait()?;
        ensure!(status.success(), "config check: {status}");
        Ok(began.elapsed())
    }

    /// Writes the gateway's configuration again, with another limit for one tenant.
    pub(crate) fn limit(&self, gateway: &mut Gateway, limit: Limit) -> Result<()> {
        gateway.setup.limit = Some(limit);
        let ports = [Some(gateway.port), gateway.admin, gateway.api];
        let text = self.configuration(ports, &gateway.setup);
        Ok(fs::write(&gateway.file, text)?)
    }

    /// Returns an upgrade request with the token of user `user` for `/ROUTE/USER/`.
    pub(crate) fn request(&self, route: &str, user: u64) -> Result<Vec<u8>> {
        self.request_for(route, user, user)
    }

    /// Returns an upgrade request with the token of user `user` for `/ROUTE/N/`.
    pub(crate) fn request_for(&self, route: &str, n: u64, user: u64) -> Result<Vec<u8>> {
        Ticket {
            tenant: "bench",
            route,
            n,
            user,
            token: user,
        }
        .request()
    }
}

impl Gateway {
    /// Returns the folder of its included files.
    pub(crate) fn folder(&self) -> PathBuf {
        self.file.with_extension("d")
    }

    /// Returns the sum of the series of a metric whose labels contain `label`; 0 if there is none, and for the stand-in.
    pub(crate) fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let Some(admin) = self.admin else {
            return Ok(0.0);
        };
        let (_, text) = http::get(admin, "/metrics")?;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            let whole_name = rest.is_empty() || rest.starts_with('{');
            (whole_name && rest.contains(label)).then(|| value.parse::<f64>().unwrap_or(0.0))
        });
        Ok(values.sum())
    }
}

/// Calls `try_once` until it succeeds; fails if the process ends, or after [`START_PATIENCE`].
pub(crate) fn wait_for<T>(
    what: &str,
    process: &mut Process,
    mut try_once: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        process.check_alive().with_context(|| what.to_owned())?;
        match try_once() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what} does not come up")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Makes `auth_user` as Django's migrations make it on SQLite, with realistic rows.
fn make_users(file: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let fill = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {USERS})
         INSERT INTO auth_user SELECT i,
           'pbkdf2_sha256$1000000$Zk3vYt0wXq7LbRe5uHs1Na$' || printf('%043d', i) || '=',
           '2026-11-20 08:15:42.123456', 0, printf('user%05d', i), 'Lovelace',
           printf('user%05d@example.com', i), 0, 1, '2024-02-29 10:00:00.654321', 'Augusta' FROM n"
    );
    runtime.block_on(async {
        let mut database = SqliteConnection::connect(&url).await?;
        sqlx::raw_sql(
            "CREATE TABLE \"auth_user\" (\"id\" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
             \"password\" varchar(128) NOT NULL, \"last_login\" datetime NULL, \"is_superuser\" bool NOT NULL,
             \"username\" varchar(150) NOT NULL UNIQUE, \"last_name\" varchar(150) NOT NULL,
             \"email\" varchar(254) NOT NULL, \"is_staff\" bool NOT NULL, \"is_active\" bool NOT NULL,
             \"date_joined\" datetime NOT NULL, \"first_name\" varchar(150) NOT NULL)",
        )
        .execute(&mut database)
        .await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(fill))
            .execute(&mut database)
            .await?;
        database.close().await?;
        Ok(())
    })
}
