//! The unit costs: one file, written by the calibration and read by the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::report;

/// A quantity that is measured and predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meter {
    /// Microseconds of all replicas in a second.
    GatewayCpu,
    /// Microseconds of all Redis servers in a second.
    RedisCpu,
    /// Resident bytes of all replicas.
    GatewayMemory,
    /// `used_memory` of all Redis servers.
    RedisMemory,
    /// Links from replicas to all Redis servers.
    RedisClients,
}

impl Meter {
    pub(crate) const ALL: [Self; 5] = [
        Self::GatewayCpu,
        Self::RedisCpu,
        Self::GatewayMemory,
        Self::RedisMemory,
        Self::RedisClients,
    ];

    fn described(self) -> &'static str {
        match self {
            Self::GatewayCpu => "CPU of replicas, µs",
            Self::RedisCpu => "CPU of Redis, µs",
            Self::GatewayMemory => "memory of replicas, bytes",
            Self::RedisMemory => "memory of Redis, bytes",
            Self::RedisClients => "links to a shard",
        }
    }

    /// Its table in the file of units.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GatewayCpu => "gateway_cpu_us",
            Self::RedisCpu => "redis_cpu_us",
            Self::GatewayMemory => "gateway_bytes",
            Self::RedisMemory => "redis_bytes",
            Self::RedisClients => "redis_clients",
        }
    }
}

/// The number of things of each name: in a second, or at a time.
pub(crate) type Work = BTreeMap<&'static str, f64>;

/// The cost of one thing.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// That of the runs' median, and the range of those of each run alone.
    pub(crate) cost: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// Its error if each total of the calibration is wrong by 1 %.
    pub(crate) blur: f64,
}

/// All unit costs.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Units {
    /// Machine, commit and runs of the calibration.
    measured: String,
    /// Microseconds of a bare `write()` of a frame at the time of the calibration.
    pub(crate) floor: f64,
    meters: BTreeMap<String, BTreeMap<String, Unit>>,
}

impl Units {
    /// Returns no units, of a calibration on this machine at this commit.
    pub(crate) fn measured(measured: String, floor: f64) -> Self {
        Self {
            measured,
            floor,
            meters: BTreeMap::new(),
        }
    }

    /// # Errors
    /// There is no such file, or it is none of units.
    pub(crate) fn load(file: &Path) -> Result<Self> {
        let told = || format!("{}: write it with --calibrate", file.display());
        let text = fs::read_to_string(file).with_context(told)?;
        toml::from_str(&text).with_context(told)
    }

    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let text = format!(
            "# Written by `cargo bench --bench scale -- --calibrate`. Microseconds and bytes.\n{}",
            toml::to_string(self)?
        );
        fs::write(file, text).with_context(|| file.display().to_string())
    }

    pub(crate) fn set(&mut self, meter: Meter, name: &str, unit: Unit) {
        let units = self.meters.entry(meter.name().to_owned()).or_default();
        units.insert(name.to_owned(), unit);
    }

    /// Returns the cost of one thing.
    ///
    /// # Errors
    /// The file does not have it: it is of an older program.
    pub(crate) fn get(&self, meter: Meter, name: &str) -> Result<Unit> {
        let units = self.meters.get(meter.name());
        let unit = units.and_then(|units| units.get(name)).copied();
        unit.with_context(|| {
            format!(
                "the units lack {}.{name}: write them again with --calibrate",
                meter.name()
            )
        })
    }

    /// Returns all units as a table.
    pub(crate) fn table(&self) -> Result<String> {
        let mut lines = Vec::new();
        for meter in Meter::ALL {
            let units = self.meters.get(meter.name()).context(meter.name())?;
            lines.extend(units.iter().map(|(name, unit)| {
                let values = [unit.cost, unit.lowest, unit.highest, unit.blur];
                let [cost, lowest, highest, blur] = values.map(|value| format!("{value:.1}"));
                [
                    meter.described().to_owned(),
                    name.replace('_', " "),
                    cost,
                    format!("{lowest}–{highest}"),
                    format!("± {blur}"),
                ]
            }));
        }
        let mut out = format!(
            "{}. A bare `write()` of a frame took {:.2} µs.\n\n",
            self.measured, self.floor
        );
        let head = ["", "one more", "cost", "range", "for 1 %"];
        report::table(&mut out, &head, lines.into_iter(), true);
        Ok(out)
    }

    /// Returns the cost of some work.
    pub(crate) fn cost(&self, meter: Meter, work: &Work) -> Result<f64> {
        let costs = work
            .iter()
            .map(|(name, count)| Ok(self.get(meter, name)?.cost * count));
        costs.sum()
    }
}
