//! The `lockgate` binary.

use std::process::ExitCode;

/// Less time per event and less memory after bursts than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lockgate::cli::run(std::env::args_os())
}
