//! `completions`: prints a script that completes commands and options in a shell.

use std::process::ExitCode;

use clap::Args;
use clap_complete::{Shell, generate};

/// Print a script that completes commands and options in a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate completions bash > /usr/share/bash-completion/completions/lockgate
  lockgate completions zsh > ~/.zfunc/_lockgate
  lockgate completions fish > ~/.config/fish/completions/lockgate.fish")]
pub(super) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(arguments: &CompletionsArguments) -> ExitCode {
    let mut script = Vec::new();
    generate(
        arguments.shell,
        &mut super::command(),
        "lockgate",
        &mut script,
    );
    super::print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
