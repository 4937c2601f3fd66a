//! The rows of tenants in a registry on PostgreSQL, at two sizes: start, memory unused and used, the lookup of a host, a change
//! until two replicas serve it, and calls of `PUT` per second, one after the other and several at a time.
//!
//! The floor of start and lookup is the same process with an empty registry. The tenants come straight into the table, with
//! sealed secrets, as the API would store them.

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
/// Changes that are watched until the other replica serves them, one after the other.
const CHANGES: usize = 20;
/// Calls of `PUT` that are counted per second, each for another tenant, and the number of them that are under way at once.
const PUTS: usize = 200;
const AT_ONCE: usize = 8;
/// Lookups of a host that no tenant has.
const LOOKUPS: usize = 200;
/// Pause between two looks for an answer.
const POLL: Duration = Duration::from_micros(200);
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
        let mut start = self.row("start with a registry", "ms", target(2_000.0));
        let mut unused = self.row("memory of an unused tenant", "KiB", target(4.0));
        let mut lookup = self.row("answer to an unknown host", "µs", Target::Ratio(2.0));
        // The first one makes the tables.
        let empty = self.world.start(self.setup.clone())?;
        std::thread::sleep(self.settings.memory.2);
        let bare = empty.process.pss()? as f64;
        drop(empty);
        let (millis, empty) = self.started()?;
        let lookup_of_none = lookup_micros(&empty)?;
        drop(empty);
        self.fill().context("cannot fill the registry")?;
        for _ in 0..self.settings.long_runs {
            let (with_many, gateway) = self.started()?;
            start.push(with_many, millis);
            std::thread::sleep(self.settings.memory.2);
            let each = (gateway.process.pss()? as f64 - bare) / count as f64;
            unused.gateway.0.push(each / 1024.0);
            lookup.push(lookup_micros(&gateway)?, lookup_of_none);
        }
        start.note = "until /readyz answers 200; the floor is an empty registry".to_owned();
        unused.note = "growth of PSS by tenants that nobody uses, for each".to_owned();
        lookup.note =
            format!("median of {LOOKUPS} refused handshakes; the floor is an empty registry");
        let mut rows = vec![start, unused, lookup];
        // The signs of life of the replicas before, which were killed: a call waits for their answers.
        self.world.link.call(&[b"FLUSHALL"])?;
        rows.extend(self.used(target(1_000.0), is_judged)?);
        Ok(rows)
    }

    fn row(&self, what: &str, unit: &'static str, target: Target) -> Row {
        Row::new(format!("{what}, {} tenants", self.count), unit, target)
    }

    /// Measures a replica whose tenants have sockets, and changes on two replicas. Of the larger registry no calls are counted: a
    /// change is linear in the tenants, and takes longer there than a call waits for the other replica.
    fn used(&self, target: Target, counts_calls: bool) -> Result<Vec<Row>> {
        let mut memory = self.row("memory of a tenant with one socket", "KiB", Target::None);
        let mut live = self.row("a change live on two replicas", "ms", target);
        let mut single = self.row("PUT per second, one by one", "1/s", Target::None);
        let mut several = self.row("PUT per second, eight at once", "1/s", Target::None);
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
        memory.gateway.0.push(each / 1024.0);
        memory.note =
            format!("{sockets} of the tenants, each with one socket; growth of PSS for each");
        self.until_acquainted(&one)?;
        for change in 0..CHANGES {
            live.gateway.0.push(self.change(&one, &two, change)?);
        }
        live.note = "from the call on one replica until the other opens a socket under a new host"
            .to_owned();
        if !counts_calls {
            swarm.close_from(0);
            return Ok(vec![memory, live]);
        }
        let puts = PUTS.min(self.count);
        let note = |how: &str| {
            format!(
                "{puts} changes of as many tenants, {how}, {sockets} tenants in use; each call answers once both replicas serve it"
            )
        };
        for run in 0..self.settings.long_runs {
            single.gateway.0.push(self.puts(&one, (run, 1), puts)?);
            several
                .gateway
                .0
                .push(self.puts(&one, (run, AT_ONCE), puts)?);
        }
        single.note = note("one after the other");
        several.note = note("eight calls under way at a time");
        swarm.close_from(0);
        Ok(vec![memory, live, single, several])
    }

    /// Waits until the replica knows of the other: then its answers to changes tell of both.
    fn until_acquainted(&self, one: &Gateway) -> Result<()> {
        let mut api = Api::connect(one.api.context("no API")?)?;
        let began = Instant::now();
        loop {
            let (status, answer) = api.call("POST", "/v1/reload", "")?;
            ensure!(status == 200, "reload: {status} {answer}");
            if answer["replicas"]["confirmed"] == 2 {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "the replicas stay strangers");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Gives a tenant another host on one replica. Returns the milliseconds until the other replica serves it.
    fn change(&self, one: &Gateway, two: &Gateway, number: usize) -> Result<f64> {
        let name = idle_tenant(self.count);
        let host = format!("{name}-{number}");
        let mut document = document(&name, &json!(KEY));
        document["hosts"] = json!([format!("{host}.example.com")]);
        document["origins"] = json!([format!("https://{host}.example.com")]);
        let mut api = Api::connect(one.api.context("no API")?)?;
        let request = ticket(&host).request()?;
        let began = Instant::now();
        let (status, answer) = api.call("PUT", &path(&name), &document.to_string())?;
        ensure!(status == 200, "PUT: {status} {answer}");
        while http::status_of(two.port, &request)? != 101 {
            ensure!(began.elapsed() < PATIENCE, "the change does not come");
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Changes as many tenants, `at_once` of them at a time. Returns the number of changes per second.
    fn puts(&self, one: &Gateway, (run, at_once): (usize, usize), puts: usize) -> Result<f64> {
        let port = one.api.context("no API")?;
        let apis = (0..at_once).map(|_| Api::connect(port));
        let mut apis = apis.collect::<Result<Vec<_>>>()?;
        let mut left = (1..=puts).map(|n| {
            let name = idle_tenant(n);
            let mut document = document(&name, &json!(KEY));
            // Another value than that of any run before.
            let connections = 1_000 + run * 10 + at_once;
            document["limits"] = json!({"connections": connections});
            (path(&name), document.to_string())
        });
        let began = Instant::now();
        let mut answered = 0;
        for (api, (path, document)) in apis.iter_mut().zip(left.by_ref()) {
            api.begin("PUT", &path, &document)?;
        }
        while answered < puts {
            ensure!(
                began.elapsed() < 4 * PATIENCE,
                "{answered} of {puts} PUTs are answered"
            );
            let before = answered;
            for api in &mut apis {
                let Some(answer) = api.poll()? else { continue };
                confirmed(&answer)?;
                answered += 1;
                if let Some((path, document)) = left.next() {
                    api.begin("PUT", &path, &document)?;
                }
            }
            if answered == before {
                std::thread::sleep(POLL);
            }
        }
        Ok(puts as f64 / began.elapsed().as_secs_f64())
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

fn path(tenant: &str) -> String {
    format!("/v1/tenants/{tenant}")
}

/// Fails unless a change was stored and both replicas serve it.
fn confirmed((status, answer): &(u16, Value)) -> Result<()> {
    ensure!(*status == 200, "PUT: {status} {answer}");
    let confirmed = &answer["replicas"]["confirmed"];
    ensure!(
        *confirmed == 2,
        "not both replicas serve the change: {answer}"
    );
    Ok(())
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
        // With an end mark no prefix begins with another.
        "layer": {"kind": "pubsub", "prefix": format!("{name}:")},
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
