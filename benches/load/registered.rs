//! The rows of tenants in a registry on PostgreSQL: start, memory unused and used, a change on two replicas, changes per second.
//!
//! The floor of start and memory is the same process with an empty registry. Rows come straight into the table, with sealed
//! secrets, as the API would store them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockgate::config::Secret;
use lockgate::ids::TenantId;
use lockgate::sealing::SealingKeys;
use serde_json::{Value, json};

use crate::arrivals::Side;
use crate::http::{self, Api};
use crate::postgres::{self, Postgres};
use crate::report::{Row, Target};
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::{Gateway, KEY, SEALING_KEY, Setup, Ticket, World, idle_tenant};

/// Tenants in one statement.
const BATCH: usize = 1_000;
/// Changes of one tenant, one after the other.
const CHANGES: usize = 20;
/// Lookups of a host that no tenant has.
const LOOKUPS: usize = 200;
/// The longest time for a change to be live before the run fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures both sizes of [`Settings::registered`].
pub(crate) fn measure(world: &mut World, settings: Settings) -> Result<Vec<Row>> {
    let (many, most, _) = settings.registered;
    let mut rows = Vec::new();
    for (count, is_judged) in [(many, true), (most, false)] {
        let database = Postgres::start(1)?;
        let setup = Setup {
            api: true,
            registry: Some(postgres::url(database.port)),
            ..Setup::default()
        };
        let stage = Stage {
            world,
            database,
            setup,
            settings,
            count,
        };
        rows.extend(stage.play(is_judged)?);
    }
    Ok(rows)
}

/// A registry of one size.
struct Stage<'w> {
    world: &'w mut World,
    database: Postgres,
    setup: Setup,
    settings: Settings,
    count: usize,
}

impl Stage<'_> {
    fn play(self, is_judged: bool) -> Result<Vec<Row>> {
        let target = |value| match is_judged {
            true => Target::Value(value),
            false => Target::None,
        };
        let count = self.count;
        let mut start = Row::new("start with a registry of tenants", "ms", target(2_000.0));
        let mut unused = Row::new(
            "memory of an unused tenant of a registry",
            "KiB",
            target(4.0),
        );
        let mut lookup = Row::new(
            "answer to a host that no tenant has",
            "µs",
            Target::Ratio(2.0),
        );
        // The first one makes the tables.
        let empty = self.world.start(self.setup.clone())?;
        std::thread::sleep(self.settings.memory.2);
        let bare = empty.process.pss()? as f64;
        drop(empty);
        let (millis, empty) = self.started()?;
        start.floor.0.push(millis);
        lookup.floor.0.push(lookup_micros(&empty)?);
        drop(empty);
        self.fill().context("cannot fill the registry")?;
        for _ in 0..self.settings.long_runs {
            let (millis, gateway) = self.started()?;
            start.gateway.0.push(millis);
            std::thread::sleep(self.settings.memory.2);
            let each = (gateway.process.pss()? as f64 - bare) / count as f64;
            unused.gateway.0.push(each / 1024.0);
            lookup.gateway.0.push(lookup_micros(&gateway)?);
        }
        start.note = format!("{count} tenants on PostgreSQL, until /readyz answers 200");
        unused.note = format!("growth of PSS by {count} tenants that nobody uses, for each");
        lookup.note = format!(
            "median of {LOOKUPS} refused handshakes beside {count} tenants; the floor has none"
        );
        let mut rows = vec![start, unused, lookup];
        if is_judged {
            rows.extend(self.used()?);
        }
        Ok(rows)
    }

    /// Measures a replica whose tenants have sockets, and changes of one tenant on two replicas.
    fn used(&self) -> Result<[Row; 3]> {
        let mut rows = [
            Row::new(
                "memory of a tenant of a registry with one socket",
                "KiB",
                Target::None,
            ),
            Row::new(
                "a change of a tenant live on two replicas",
                "ms",
                Target::Value(1_000.0),
            ),
            Row::new("changes of tenants per second", "1/s", Target::None),
        ];
        let sockets = self.settings.registered.2;
        let [one, two] = [self.started()?.1, self.started()?.1];
        std::thread::sleep(self.settings.memory.2);
        let before = one.process.pss()? as f64;
        let mut swarm = Swarm::new(self.world.redis_port)?;
        let names: Vec<String> = (1..=sockets).map(idle_tenant).collect();
        let requests = { names.iter() }.map(|name| Ok((one.port, ticket(name).request()?)));
        swarm.open_all(Side::Apart, requests)?;
        std::thread::sleep(self.settings.memory.2);
        let each = (one.process.pss()? as f64 - before) / sockets as f64;
        rows[0].gateway.0.push(each / 1024.0);
        rows[0].note = format!("{sockets} of {} tenants, each with one socket", self.count);
        let began = Instant::now();
        for change in 0..CHANGES {
            rows[1].gateway.0.push(self.change(&one, &two, change)?);
        }
        let seconds = began.elapsed().as_secs_f64();
        rows[1].note = format!(
            "from the call on one replica until the other opens a socket under a new host, beside {} tenants",
            self.count
        );
        rows[2].gateway.0.push(CHANGES as f64 / seconds);
        rows[2].note = format!(
            "one after the other, each confirmed by two replicas, beside {} tenants, {sockets} of them in use",
            self.count
        );
        swarm.close_from(0);
        Ok(rows)
    }

    /// Gives a tenant another host on one replica. Returns the milliseconds until the other replica knows it.
    fn change(&self, one: &Gateway, two: &Gateway, number: usize) -> Result<f64> {
        let name = idle_tenant(self.count);
        let host = format!("{name}-{number}");
        let mut document = document(&name, &json!(KEY));
        document["hosts"] = json!([format!("{host}.example.com")]);
        document["origins"] = json!([format!("https://{host}.example.com")]);
        let mut api = Api::connect(one.api.context("no API")?)?;
        let request = ticket(&host).request()?;
        let began = Instant::now();
        let path = format!("/v1/tenants/{name}");
        let (status, answer) = api.call("PUT", &path, &document.to_string())?;
        ensure!(status == 200, "PUT {path}: {status} {answer}");
        while http::status_of(two.port, &request)? != 101 {
            ensure!(began.elapsed() < PATIENCE, "the change does not come");
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Starts a replica. Returns the milliseconds until it is ready.
    fn started(&self) -> Result<(f64, Gateway)> {
        let began = Instant::now();
        let gateway = self.world.start(self.setup.clone())?;
        Ok((began.elapsed().as_secs_f64() * 1e3, gateway))
    }

    /// Stores the tenants.
    fn fill(&self) -> Result<()> {
        let keys = SealingKeys::new(&[Secret::from(SEALING_KEY)]);
        let keys = keys.map_err(|faults| anyhow::anyhow!("{faults}"))?;
        // The statements would fill the server's log.
        let mut sql = "SET log_statement = 'none'".to_owned();
        for first in (1..=self.count).step_by(BATCH) {
            sql += "; INSERT INTO lockgate_tenant (name, config, version, made, created_at, updated_at, serial) VALUES ";
            for n in first..(first + BATCH).min(self.count + 1) {
                let name = idle_tenant(n);
                let id: TenantId = name.parse()?;
                let sealed = keys.seal((&id, "token.signing_key"), KEY);
                let config = document(&name, &json!({"$sealed": sealed}));
                let comma = if n == first { "" } else { ", " };
                write!(sql, "{comma}('{name}', '{config}', 1, {n}, 0, 0, {n})")?;
            }
        }
        write!(
            sql,
            "; UPDATE lockgate_registry SET serial = {}",
            self.count
        )?;
        self.database.execute(sql)
    }
}

fn ticket(tenant: &str) -> Ticket<'_> {
    Ticket {
        tenant,
        route: "ws",
        n: 1,
        user: 1,
        token: 1,
    }
}

fn document(name: &str, key: &Value) -> Value {
    let host = format!("{name}.example.com");
    json!({
        "hosts": [host],
        "origins": [format!("https://{host}")],
        "token": {"algorithm": "HS256", "signing_key": key},
        "users": {"source": "claims"},
        "layer": {"kind": "pubsub", "prefix": name},
        "routes": [{"path": "ws/<int:n>/", "groups": ["bench"]}],
    })
}

/// Returns the median time of the answer to a host that no tenant has.
fn lookup_micros(gateway: &Gateway) -> Result<f64> {
    let request = ticket("nobody").request()?;
    let mut times = Vec::new();
    for _ in 0..LOOKUPS {
        let began = Instant::now();
        let status = http::status_of(gateway.port, &request)?;
        ensure!(status == 404, "a host that no tenant has: {status}");
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[LOOKUPS / 2])
}
