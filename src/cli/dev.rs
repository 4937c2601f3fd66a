//! `dev`: the whole gateway in one process, without any server.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;

/// Try Lockgate: two demo users, a page, no server and no file needed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate dev
  lockgate dev --listen 127.0.0.1:0 --admin 127.0.0.1:0 --json")]
pub(super) struct DevArguments {
    /// Where sockets are accepted
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    pub(super) listen: SocketAddr,
    /// Where probes and metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
    pub(super) admin: SocketAddr,
    /// Print one line of JSON once it is ready
    #[arg(long)]
    pub(super) json: bool,
    /// Allow an address that other machines can reach
    #[arg(long)]
    pub(super) allow_remote: bool,
}

pub(super) fn run(arguments: &DevArguments) -> ExitCode {
    let remote = [arguments.listen, arguments.admin]
        .into_iter()
        .find(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (remote, arguments.allow_remote) {
        return super::fail(&format!(
            "{address} can be reached by other machines, and the tokens are printed; --allow-remote allows it"
        ));
    }
    super::fail("this build has no server")
}
