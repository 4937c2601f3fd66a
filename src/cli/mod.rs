//! The command line: one file per verb. Exit status 0, 1 for what failed, 2 for wrong usage.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, LoadOptions};
use crate::validation::Loaded;

mod config;
mod connections;
mod dev;
mod doctor;
mod healthcheck;
mod http_client;
mod remote;
mod revoke;
mod send;
mod serve;
mod token;

/// A WebSocket gateway for teams whose users already hold a JWT.
#[derive(Debug, Parser)]
#[command(name = "lockgate", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration file
    #[arg(long, global = true, env = "LOCKGATE_CONFIG", value_name = "FILE")]
    config: Option<OsString>,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  lockgate dev                                  try it: no server, no file needed
  lockgate config check --config lockgate.toml  what is wrong with a configuration
  lockgate serve --config lockgate.toml         the gateway";

#[derive(Debug, Subcommand)]
enum Verb {
    Dev(dev::DevArguments),
    Serve(serve::ServeArguments),
    #[command(subcommand)]
    Config(config::ConfigVerb),
    #[command(subcommand)]
    Token(token::TokenVerb),
    Send(send::SendArguments),
    Revoke(revoke::RevokeArguments),
    Connections(connections::ConnectionsArguments),
    Healthcheck(healthcheck::HealthcheckArguments),
    Doctor(doctor::DoctorArguments),
}

/// Runs one command line, the name of the program first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help that cannot be written is nobody's mistake.
            drop(error.print());
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    // An empty variable counts as unset, as for every other of ours.
    let config = arguments.config.filter(|path| !path.is_empty());
    let config = config.as_deref().map(Path::new);
    match arguments.verb {
        Verb::Dev(arguments) => dev::run(&arguments),
        Verb::Serve(arguments) => serve::run(config, &arguments),
        Verb::Config(verb) => config::run(config, &verb),
        Verb::Token(verb) => token::run(config, &verb),
        Verb::Send(arguments) => send::run(config, &arguments),
        Verb::Revoke(arguments) => revoke::run(config, &arguments),
        Verb::Connections(arguments) => connections::run(config, &arguments),
        Verb::Healthcheck(arguments) => healthcheck::run(config, &arguments),
        Verb::Doctor(arguments) => doctor::run(config, &arguments),
    }
}

/// Reads and checks the configuration; tells warnings and mistakes on standard error.
///
/// # Errors
/// The exit status, after the mistakes were told.
fn load(path: Option<&Path>) -> Result<Loaded, ExitCode> {
    match Config::load(path, &LoadOptions::default()) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                complain(&format!("warning: {warning}"));
            }
            Ok(loaded)
        }
        Err(errors) => {
            for mistake in errors.mistakes() {
                complain(&format!("error: {mistake}"));
            }
            if path.is_none() {
                complain("no configuration file: name one with --config or LOCKGATE_CONFIG");
            }
            Err(ExitCode::FAILURE)
        }
    }
}

/// Writes to standard output, without a line end of its own. A reader that went away is no failure.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

/// Writes a line to standard error.
fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Tells what failed, and answers the exit status for it.
fn fail(text: &str) -> ExitCode {
    complain(&format!("error: {text}"));
    ExitCode::FAILURE
}

/// Reads a duration of the command line.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::parse_duration(text)
        .ok_or_else(|| "a duration is digits and a unit: ms, s, m, h or d".to_owned())
}
