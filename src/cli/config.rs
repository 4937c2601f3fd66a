//! `config check`, `config default`, `config reference`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::{self, Config, ConfigErrors, ServerConfig, Warning, print_duration};
use crate::consumer::{Echo, Registry};
use crate::validation::{self, LoadOptions};

/// Time after the window until sockets are cut that did not answer their close frame.
const CUT_AFTER: Duration = Duration::from_secs(5);

/// Check a configuration, and print defaults and the reference
#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    Check(CheckArguments),
    /// Print a configuration file with every default
    #[command(after_help = "Example:\n  lockgate config default > lockgate.toml")]
    Default,
    /// Print every key with its type, default and meaning
    #[command(after_help = "Example:\n  lockgate config reference | less")]
    Reference,
}

/// Report every mistake of a configuration; uses no network
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate config check --config lockgate.toml
  lockgate config check --config lockgate.toml --grace 90s   as terminationGracePeriodSeconds")]
pub(super) struct CheckArguments {
    /// Check also that a full replica drains within this grace period, and print the rate
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    grace: Option<Duration>,
    /// Take NAME as the kind of a consumer that a program registers; its options are not checked. May be repeated
    #[arg(long, value_name = "NAME")]
    consumer: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl CheckArguments {
    /// Returns the inputs of the check: kinds of a program's own are known by their names alone.
    fn load_options(&self) -> LoadOptions {
        let mut consumers = Registry::default();
        for kind in &self.consumer {
            consumers.register(kind, |_| Echo);
        }
        LoadOptions {
            consumers,
            ..LoadOptions::default()
        }
    }
}

pub(super) fn run(path: Option<&Path>, verb: &ConfigVerb) -> ExitCode {
    match verb {
        ConfigVerb::Check(arguments) => check(path, arguments),
        ConfigVerb::Default => {
            super::print(&config::defaults_toml());
            ExitCode::SUCCESS
        }
        ConfigVerb::Reference => {
            super::print(&config::reference());
            ExitCode::SUCCESS
        }
    }
}

fn check(path: Option<&Path>, arguments: &CheckArguments) -> ExitCode {
    if arguments.json {
        return check_json(path, arguments);
    }
    let loaded = match super::load_with(path, &arguments.load_options()) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    if let Some(hint) = window_hint(&loaded.config.server) {
        super::complain(&format!("warning: {hint}"));
    }
    if let Some(problem) = grace_problem(&loaded.config.server, arguments.grace) {
        return super::fail(&problem);
    }
    if let Some((key, problem)) = validation::expired_authority(&loaded.config) {
        return super::fail(&format!("{key}: {problem}"));
    }
    if let Some(grace) = arguments.grace {
        super::print(&format!(
            "{}\n",
            Goodbye::of(&loaded.config.server).proof(grace)
        ));
    }
    let tenants = loaded.config.tenants.len();
    super::print(&format!(
        "The configuration is valid: {}, {}\n",
        super::counted(tenants, "tenant"),
        super::counted(loaded.files.len(), "file")
    ));
    ExitCode::SUCCESS
}

fn check_json(path: Option<&Path>, arguments: &CheckArguments) -> ExitCode {
    let mut answer = match Config::load(path, &arguments.load_options()) {
        Ok(loaded) => {
            let mut mistakes = Vec::new();
            if let Some(problem) = grace_problem(&loaded.config.server, arguments.grace) {
                mistakes
                    .push(json!({ "place": "--grace", "key": "server.drain", "detail": problem }));
            }
            if let Some((key, problem)) = validation::expired_authority(&loaded.config) {
                mistakes.push(json!({ "place": "", "key": key, "detail": problem }));
            }
            let goodbye = Goodbye::of(&loaded.config.server);
            json!({
                "mistakes": mistakes, "warnings": warnings_json(&loaded.warnings),
                "drain": {
                    "connections": goodbye.connections, "per_second": goodbye.per_second,
                    "seconds": goodbye.longest.as_secs_f64(),
                },
            })
        }
        Err(errors) => json!({ "mistakes": mistakes_json(&errors), "warnings": [] }),
    };
    let valid = answer["mistakes"].as_array().is_some_and(Vec::is_empty);
    answer["valid"] = valid.into();
    super::print(&format!("{answer}\n"));
    if valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn mistakes_json(errors: &ConfigErrors) -> Vec<serde_json::Value> {
    let mistakes = errors.mistakes().iter();
    mistakes
        .map(|m| {
            json!({
                "place": m.place, "key": m.key, "found": m.found,
                "expected": m.expected, "advice": m.advice,
            })
        })
        .collect()
}

fn warnings_json(warnings: &[Warning]) -> Vec<serde_json::Value> {
    warnings
        .iter()
        .map(|w| json!({ "place": w.place, "key": w.key, "text": w.text }))
        .collect()
}

/// The longest drain that a configuration allows, for a full replica.
struct Goodbye {
    delay: Duration,
    window: Duration,
    /// Delay, window, and the time for the last close frames.
    longest: Duration,
    /// Sockets of a full replica: `server.max_connections`, or the number that this machine's descriptor limit allows.
    connections: u64,
    /// True if [`Goodbye::connections`] comes from this machine instead of the configuration.
    by_descriptors: bool,
    /// Sockets that it closes per second: `drain.rate`, or more if the window would be too short.
    per_second: u64,
}

impl Goodbye {
    fn of(server: &ServerConfig) -> Self {
        let (drain, by_descriptors) = (server.drain, server.max_connections == 0);
        let connections = match server.max_connections {
            0 => crate::server::max_connections_here(),
            most => most,
        };
        let needed = (connections as f64 / drain.window.as_secs_f64()).ceil() as u64;
        Self {
            delay: drain.delay,
            window: drain.window,
            longest: drain.delay + drain.window + CUT_AFTER,
            connections,
            by_descriptors,
            per_second: needed.max(u64::from(drain.rate)),
        }
    }

    /// Explains that the drain of a full replica fits.
    fn proof(&self, grace: Duration) -> String {
        let Self {
            connections,
            per_second,
            ..
        } = self;
        let source = if self.by_descriptors {
            " (by this machine's descriptor limit)"
        } else {
            ""
        };
        let closing = Duration::from_secs(connections.div_ceil(*per_second)).min(self.window);
        format!(
            "The drain fits: {connections} sockets{source} close at {per_second} per second within {}; delay {} + window {} + {} = {} \
             of the grace period {}",
            print_duration(closing),
            print_duration(self.delay),
            print_duration(self.window),
            print_duration(CUT_AFTER),
            print_duration(self.longest),
            print_duration(grace),
        )
    }
}

/// Explains why a drain does not fit into the grace period.
fn grace_problem(server: &ServerConfig, grace: Option<Duration>) -> Option<String> {
    let needed = Goodbye::of(server).longest;
    let grace = grace.filter(|grace| needed > *grace)?;
    Some(format!(
        "server.drain: found delay {} + window {} + {} = {}, expected at most the grace period {}; \
         shorten the drain or lengthen the grace period",
        print_duration(server.drain.delay),
        print_duration(server.drain.window),
        print_duration(CUT_AFTER),
        print_duration(needed),
        print_duration(grace),
    ))
}

/// Returns a hint if a full replica has to close sockets faster than the configured rate.
fn window_hint(server: &ServerConfig) -> Option<String> {
    let paced = (f64::from(server.drain.rate) * server.drain.window.as_secs_f64()) as u64;
    (server.max_connections > paced).then(|| {
        format!(
            "server.drain: {} per second close {paced} sockets in {}, and server.max_connections allows {}; \
             a full replica closes {} per second",
            server.drain.rate,
            print_duration(server.drain.window),
            server.max_connections,
            Goodbye::of(server).per_second,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_must_fit_into_the_grace_period() {
        let server = ServerConfig::default();
        assert_eq!(grace_problem(&server, None), None);
        assert_eq!(grace_problem(&server, Some(Duration::from_secs(70))), None);
        let problem = grace_problem(&server, Some(Duration::from_secs(69))).unwrap();
        assert!(
            problem.contains("= 70s, expected at most the grace period 69s"),
            "{problem}"
        );
    }

    #[test]
    fn a_full_replica_closes_as_fast_as_its_window_demands() {
        let mut server = ServerConfig::default();
        for (connections, per_second, within) in [
            (9000, 300, "30s"),
            (18_000, 300, "60s"),
            (30_000, 500, "60s"),
        ] {
            server.max_connections = connections;
            let proof = Goodbye::of(&server).proof(Duration::from_secs(90));
            let expected = format!(
                "{connections} sockets close at {per_second} per second within {within}; delay 5s + window 60s + 5s = 70s of the grace period 90s"
            );
            assert!(proof.ends_with(&expected), "{proof}");
        }
        server.max_connections = 0;
        assert!(
            Goodbye::of(&server)
                .proof(Duration::from_secs(90))
                .contains("descriptor limit")
        );
    }

    #[test]
    fn a_full_replica_that_outruns_the_rate_is_a_hint() {
        let mut server = ServerConfig::default();
        assert_eq!(window_hint(&server), None);
        server.max_connections = 18_000;
        assert_eq!(window_hint(&server), None);
        server.max_connections = 18_001;
        assert!(
            window_hint(&server)
                .unwrap()
                .contains("18000 sockets in 60s")
        );
    }
}
