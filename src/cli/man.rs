//! `man`: prints the manual page, or writes one for each command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap_mangen::{Man, generate_to};

/// Print the manual page, or write the pages of all commands into a folder
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate man | man -l -
  lockgate man /usr/local/share/man/man1")]
pub(super) struct ManArguments {
    /// The folder, which must exist
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(super) fn run(arguments: &ManArguments) -> ExitCode {
    let command = super::command().disable_help_subcommand(true);
    match &arguments.folder {
        Some(folder) => match generate_to(command, folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => super::fail(&format!("{}: {error}", folder.display())),
        },
        None => {
            let mut page = Vec::new();
            if let Err(error) = Man::new(command).render(&mut page) {
                return super::fail(&error.to_string());
            }
            super::print(&String::from_utf8_lossy(&page));
            ExitCode::SUCCESS
        }
    }
}
