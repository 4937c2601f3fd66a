//! The `lockgate` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockgate::cli::run(std::env::args_os())
}
