//! The command line, one file per verb.
//!
//! The exit status is 0 for success, 1 for a failure and 2 for wrong usage.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigErrors};
use crate::validation::{LoadOptions, Loaded};

mod completions;
mod config;
mod connections;
mod dev;
mod doctor;
mod explain;
mod group;
mod healthcheck;
mod history;
mod http_client;
mod lookup;
mod man;
mod presence;
mod registry;
mod reload;
mod remote;
mod revoke;
mod send;
mod serve;
mod tenant;
mod token;

/// A WebSocket gateway for teams whose users already hold a JWT.
#[derive(Debug, Parser)]
#[command(name = "lockgate", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration file
    #[arg(
        short,
        long,
        global = true,
        env = "LOCKGATE_CONFIG",
        value_name = "FILE"
    )]
    config: Option<OsString>,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
    lockgate dev                                  try Lockgate without a server or a file
    lockgate config check --config lockgate.toml  find the mistakes in a configuration
    lockgate serve --config lockgate.toml         run the gateway";

#[derive(Debug, Subcommand)]
enum Verb {
    Dev(dev::DevArguments),
    Serve(serve::ServeArguments),
    #[command(subcommand)]
    Config(config::ConfigVerb),
    #[command(subcommand)]
    Tenant(tenant::TenantVerb),
    #[command(subcommand)]
    Registry(registry::RegistryVerb),
    Reload(reload::ReloadArguments),
    #[command(subcommand)]
    Token(token::TokenVerb),
    Send(send::SendArguments),
    Revoke(revoke::RevokeArguments),
    Connections(connections::ConnectionsArguments),
    #[command(subcommand)]
    Group(group::GroupVerb),
    Presence(presence::PresenceArguments),
    History(history::HistoryArguments),
    Healthcheck(healthcheck::HealthcheckArguments),
    Doctor(doctor::DoctorArguments),
    Explain(explain::HandshakeArguments),
    Completions(completions::CompletionsArguments),
    Man(man::ManArguments),
}

/// Runs a command line, whose first argument is the name of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            print_mistake(&error);
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            };
        }
    };
    // An empty variable counts as unset, like every other variable of the gateway.
    let config = arguments.config.filter(|path| !path.is_empty());
    let config = config.as_deref().map(Path::new);
    match arguments.verb {
        Verb::Dev(arguments) => dev::run(&arguments),
        Verb::Serve(arguments) => serve::run(config, &arguments),
        Verb::Config(verb) => config::run(config, &verb),
        Verb::Tenant(verb) => tenant::run(config, &verb),
        Verb::Registry(verb) => registry::run(config, &verb),
        Verb::Reload(arguments) => reload::run(config, &arguments),
        Verb::Token(verb) => token::run(config, &verb),
        Verb::Send(arguments) => send::run(config, &arguments),
        Verb::Revoke(arguments) => revoke::run(config, &arguments),
        Verb::Connections(arguments) => connections::run(config, &arguments),
        Verb::Group(verb) => group::run(config, &verb),
        Verb::Presence(arguments) => presence::run(config, &arguments),
        Verb::History(arguments) => history::run(config, &arguments),
        Verb::Healthcheck(arguments) => healthcheck::run(config, &arguments),
        Verb::Doctor(arguments) => doctor::run(config, &arguments),
        Verb::Explain(arguments) => explain::run(config, &arguments),
        Verb::Completions(arguments) => completions::run(&arguments),
        Verb::Man(arguments) => man::run(&arguments),
    }
}

/// Prints a mistake in a command line, or the help that it asks for. A token that stands in a mistake is not repeated.
fn print_mistake(error: &clap::Error) {
    let text = error.to_string();
    // The help has tokens of its own, as examples.
    if error.use_stderr() && text.contains(TOKEN_START) {
        complain(without_tokens(&text).trim_end());
    } else {
        // A closed output is no reason for another exit status.
        drop(error.print());
    }
}

/// The first characters of every token: `{"` in base64.
const TOKEN_START: &str = "eyJ";

fn without_tokens(text: &str) -> String {
    let mut parts = text.split(TOKEN_START);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // RFC 7515 section 3.1: three parts in base64url, between periods.
        let rest =
            part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "-_.".contains(c));
        // A second start may follow within the same token.
        if !shown.ends_with(HIDDEN) {
            shown += HIDDEN;
        }
        shown += rest;
    }
    shown
}

const HIDDEN: &str = "[token]";

/// The mistake of a new terminal.
const NO_FILE: &str = "no configuration file: name one with --config or LOCKGATE_CONFIG; `lockgate config default` prints one to \
     begin with, and `lockgate dev` needs none";

/// Reads and checks the configuration; prints mistakes to standard error. Its warnings are for those who write it or run it:
/// [`load_with`] prints them.
///
/// # Errors
/// The exit status. The mistakes are printed already.
fn load(path: Option<&Path>) -> Result<Loaded, ExitCode> {
    read(path, &LoadOptions::default())
}

/// As [`load`], and prints the warnings too.
fn load_with(path: Option<&Path>, options: &LoadOptions) -> Result<Loaded, ExitCode> {
    told_with_warnings(path, Config::load(path, options))
}

fn read(path: Option<&Path>, options: &LoadOptions) -> Result<Loaded, ExitCode> {
    told(path, Config::load(path, options))
}

/// As [`told`], and prints the warnings too.
fn told_with_warnings(
    path: Option<&Path>,
    loaded: Result<Loaded, ConfigErrors>,
) -> Result<Loaded, ExitCode> {
    let loaded = told(path, loaded)?;
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    Ok(loaded)
}

/// Prints the mistakes of a configuration that was read.
fn told(path: Option<&Path>, loaded: Result<Loaded, ConfigErrors>) -> Result<Loaded, ExitCode> {
    match loaded {
        Ok(loaded) => Ok(loaded),
        Err(errors) => {
            if path.is_none() {
                complain(&format!("error: {NO_FILE}"));
            }
            // Only a file has tenants, so that they are missing without one says nothing more.
            let mistakes = errors.mistakes().iter();
            for mistake in mistakes.filter(|mistake| path.is_some() || mistake.key != "tenants") {
                complain(&format!("error: {mistake}"));
            }
            Err(ExitCode::FAILURE)
        }
    }
}

/// Writes to standard output and adds no line end. A reader that went away is not a failure.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

/// Writes text with colours to standard output. They are left out where it is no terminal, and by `NO_COLOR`.
fn print_painted(text: &str) {
    let mut stdout = anstream::stdout().lock();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

/// Writes a line to standard error. Its `error:` or `warning:` has a colour at a terminal.
fn complain(text: &str) {
    let (label, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
    let style = match label {
        "error:" => bold(AnsiColor::Red),
        "warning:" => bold(AnsiColor::Yellow),
        _ => Style::new(),
    };
    drop(writeln!(
        anstream::stderr().lock(),
        "{style}{label}{style:#}{rest}"
    ));
}

/// Returns the style of a word that a person looks for.
fn bold(colour: AnsiColor) -> Style {
    Style::new().bold().fg_color(Some(colour.into()))
}

/// Returns the whole command line, for its completions and manual pages.
fn command() -> clap::Command {
    Arguments::command()
}

/// Prints an error and returns the exit status for it.
fn fail(text: &str) -> ExitCode {
    complain(&format!("error: {text}"));
    ExitCode::FAILURE
}

/// Returns "1 file", "2 files".
fn counted(count: impl Display, noun: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Parses the address of a listener on the command line.
fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    crate::config::parse_address(text)
        .ok_or_else(|| "an address is an IP address or localhost, and a port".to_owned())
}

/// Parses a duration of the command line.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::parse_duration(text)
        .ok_or_else(|| "a duration is digits and a unit: ms, s, m, h or d".to_owned())
}
