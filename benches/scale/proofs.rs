//! The counts and edges of the model, checked without a machine. The brief run begins with them; `cargo test` runs no tests of a
//! program without the harness.

use anyhow::{Context, Result, ensure};

use crate::answer;
use crate::deployment::{self, Deployment, Fleet};
use crate::fit::{self, Equation};
use crate::model::Model;
use crate::plan::{Bound, Reason, Usage, plan, survivors};
use crate::storm::Storm;
use crate::units::{Meter, Unit, Units, Work};

type Proof = (&'static str, fn() -> Result<()>);

const PROOFS: [Proof; 10] = [
    ("groups are heard where sockets are", groups_are_heard),
    ("connects subscribe to what is new", connects_subscribe),
    ("a burst is one write and many events", bursts_are_one_write),
    ("periodic rounds have their rates", rounds_have_rates),
    ("no more is missed than is kept", missed_is_kept),
    ("a fleet survives the loss of a zone", fleets_survive),
    ("a storm may not end, or leave nothing", storms_have_edges),
    ("cells have the reason that made them", cells_have_reasons),
    ("bad input is told by its key", bad_input_is_told),
    ("costs are found, and none below 0", costs_are_found),
];

/// Fails with the name of the first proof that does.
pub(crate) fn run() -> Result<()> {
    for (name, proof) in PROOFS {
        proof().with_context(|| name)?;
    }
    Ok(())
}

fn described(text: &str) -> Result<Deployment> {
    let text = format!("[[deployments]]\nname = \"proof\"\n{text}");
    let mut found = deployment::parse(&text)?;
    found.pop().context("there is one")
}

/// Returns units with one cost for all things of a meter.
fn units(cpu: f64) -> Result<Units> {
    let any =
        described("sockets = 1\nkinds = [{ name = \"k\", groups = 1, events_per_second = 0 }]")?;
    let model = Model::settled(&any, fleet(1.0, 1.0));
    let mut units = Units::measured(String::new(), 1.0);
    for meter in Meter::ALL {
        let cost = match meter {
            Meter::GatewayCpu | Meter::RedisCpu => cpu,
            Meter::GatewayMemory | Meter::RedisMemory => 5_000.0,
            Meter::RedisClients => 2.0,
        };
        for name in model.work(meter).into_keys() {
            let unit = Unit {
                cost,
                ..Unit::default()
            };
            units.set(meter, name, unit);
        }
    }
    Ok(units)
}

fn fleet(replicas: f64, shards: f64) -> Fleet {
    Fleet { replicas, shards }
}

fn count(deployment: &Deployment, fleet: Fleet, meter: Meter, name: &str) -> Result<f64> {
    let work = Model::settled(deployment, fleet).work(meter);
    work.get(name).copied().with_context(|| name.to_owned())
}

fn near(what: &str, found: f64, wanted: f64) -> Result<()> {
    let error = (found - wanted).abs();
    ensure!(
        error <= 1e-6 * wanted.abs().max(1.0),
        "{what}: {found} and not {wanted}"
    );
    Ok(())
}

fn groups_are_heard() -> Result<()> {
    let own =
        described("sockets = 30\nkinds = [{ name = \"k\", groups = 30, events_per_second = 1 }]")?;
    near("groups of one", own.kinds[0].heard(30.0, 3.0), 30.0)?;
    let hall =
        described("sockets = 3000\nkinds = [{ name = \"k\", groups = 1, events_per_second = 1 }]")?;
    near("a large group", hall.kinds[0].heard(3_000.0, 3.0), 3.0)
}

fn connects_subscribe() -> Result<()> {
    let own = described(
        "sockets = 100\nreconnects_per_second = 40\nkinds = [{ name = \"k\", groups = 1000, per_socket = 10, events_per_second = 0 }]",
    )?;
    let of = |replicas, name| count(&own, fleet(replicas, 1.0), Meter::RedisCpu, name);
    near("on one replica", of(1.0, "subscription")?, 0.0)?;
    near("on four", of(4.0, "subscription")?, 40.0 * 10.0 * 0.75)?;
    near("connects on four", of(4.0, "subscribing")?, 40.0 * 0.75)?;
    near("connects on one", of(1.0, "subscribing")?, 0.0)
}

fn bursts_are_one_write() -> Result<()> {
    let bursts = described(
        "sockets = 10\nkinds = [{ name = \"k\", groups = 10, events_per_second = 10, burst = 5 }]",
    )?;
    let of = |name| count(&bursts, fleet(1.0, 1.0), Meter::RedisCpu, name);
    near("events", of("publish")?, 100.0)?;
    near("their writes", of("arrival")?, 20.0)?;
    near("copies", of("copy")?, 100.0)?;
    near("writes of copies", of("sending")?, 20.0)?;
    let of = |name| count(&bursts, fleet(1.0, 1.0), Meter::GatewayCpu, name);
    near("frames", of("frame")?, 100.0)?;
    near("writes of frames", of("write")?, 20.0)
}

fn rounds_have_rates() -> Result<()> {
    let million = described(
        "sockets = 1000000\ntenants = 100\nkinds = [{ name = \"k\", groups = 1, events_per_second = 0 }]",
    )?;
    let of = |name| count(&million, fleet(3.0, 1.0), Meter::RedisCpu, name);
    near("rechecks", of("recheck")?, 1e6 / 60.0)?;
    near("states", of("state")?, 5.0)?;
    near("lookups", of("revalidation")?, 1e6 / 240.0)
}

fn missed_is_kept() -> Result<()> {
    let rooms = described(
        "sockets = 100\nreconnects_per_second = 10\nkinds = [{ name = \"k\", groups = 10, events_per_second = 2, history = 20, resume = true }]",
    )?;
    let model = Model::settled(&rooms, fleet(1.0, 1.0));
    near("away for a while", model.missed(10.0, 3.0), 60.0)?;
    near("away for long", model.missed(10.0, 1_000.0), 200.0)
}

fn chat(more: &str) -> Result<Deployment> {
    described(&format!(
        "sockets = 100000\nreconnects_per_second = 100\n{more}\nkinds = [{{ name = \"k\", groups = 10000, events_per_second = 0.001 }}]"
    ))
}

fn fleets_survive() -> Result<()> {
    let units = units(50.0)?;
    let (safe, bare) = (chat("")?, chat("survive_zone = false")?);
    let (found, less) = (plan(&units, &safe)?, plan(&units, &bare)?);
    let left = survivors(&found.cell, found.fleet).context("some survive")?;
    let after = Usage::of(&units, &found.cell, left)?.tightest();
    ensure!(
        after.part <= 1.0,
        "{} is used {}",
        after.bound.name(),
        after.part
    );
    ensure!(
        less.fleet.replicas < found.fleet.replicas,
        "a fleet that survives has more replicas"
    );
    let left = survivors(&less.cell, less.fleet).context("some survive")?;
    let after = Usage::of(&units, &less.cell, left)?.tightest();
    ensure!(
        after.part > 1.0,
        "without the wish the limits are not kept after a loss"
    );
    Ok(())
}

fn storms_have_edges() -> Result<()> {
    let deployment = chat("")?;
    let cheap = units(50.0)?;
    let alone = Storm::of(&cheap, &deployment, fleet(1.0, 1.0))?;
    ensure!(alone.is_none(), "one replica has no survivors");
    let told = answer::answers(&cheap, &[chat("zones = 1")?])?;
    ensure!(told.contains("nothing survives"), "one zone: {told}");
    let storm = |units| Storm::of(units, &deployment, fleet(3.0, 1.0));
    let ends = storm(&cheap)?.context("two replicas survive")?;
    ensure!(
        ends.lasts(30.0).is_some_and(|lasts| lasts >= 30.0),
        "a storm lasts at least the given time"
    );
    let full = storm(&units(1e5)?)?.context("two replicas survive")?;
    ensure!(
        full.replica_seconds.is_none() && full.lasts(30.0).is_none(),
        "where survivors are full a storm does not end"
    );
    Ok(())
}

fn cells_have_reasons() -> Result<()> {
    let units = units(50.0)?;
    let reason = |more: &str| {
        let described = chat(&format!("survive_zone = false\n{more}"))?;
        Ok::<_, anyhow::Error>(plan(&units, &described)?.reason)
    };
    ensure!(reason("")?.is_none(), "one cell needs no reason");
    let links = reason("limits = { redis_clients = 12 }")?;
    ensure!(
        links == Some(Reason::Bound(Bound::RedisClients)),
        "too many links: {links:?}"
    );
    let shards = reason("limits = { shards = 1, redis_core = 0.05 }")?;
    ensure!(
        shards == Some(Reason::Bound(Bound::Shards)),
        "too many shards: {shards:?}"
    );
    Ok(())
}

fn bad_input_is_told() -> Result<()> {
    let kind = "groups = 1, events_per_second = 0";
    for (more, kind, key) in [
        ("zones = 1\nsurvive_zone = true", kind, "survive_zone"),
        ("zones = 0", kind, "zones"),
        ("denylist_replicas = 1", kind, "denylist_replicas"),
        ("recheck_seconds = 0", kind, "recheck_seconds"),
        (
            "",
            "groups = 1, events_per_second = 0, resume = true",
            "resume",
        ),
    ] {
        let text = format!("sockets = 10\n{more}\nkinds = [{{ name = \"k\", {kind} }}]");
        let told = match described(&text) {
            Ok(_) => anyhow::bail!("{text:?} is taken"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(told.contains(key), "{told:?} does not name {key}");
    }
    Ok(())
}

fn costs_are_found() -> Result<()> {
    let equation = |a: f64, b: f64, total: f64| Equation {
        work: Work::from([("a", a), ("b", b)]),
        total,
    };
    let found = fit::costs(&[equation(1.0, 0.0, 3.0), equation(1.0, 2.0, 13.0)])?;
    near("a", found[0].cost, 3.0)?;
    near("b", found[1].cost, 5.0)?;
    let found = fit::costs(&[equation(1.0, 0.0, 3.0), equation(1.0, 2.0, 2.0)])?;
    ensure!(found[1].cost == 0.0, "b is below 0: {}", found[1].cost);
    ensure!(
        (2.0..3.0).contains(&found[0].cost),
        "a is between both totals: {}",
        found[0].cost
    );
    let together = fit::costs(&[equation(1.0, 2.0, 3.0), equation(2.0, 4.0, 6.0)]);
    ensure!(together.is_err(), "two things that always occur together");
    Ok(())
}
