//! `livebridge completions` and `livebridge man`: completion scripts and manual pages.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliError};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write a page for each command into this directory, such as /usr/local/share/man/man1;
    /// without it, the page of livebridge itself is printed.
    directory: Option<PathBuf>,
}

pub(super) fn completions(options: &Completions) -> Result<(), CliError> {
    // Into memory first: the generator panics if a write fails.
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "livebridge", &mut script);
    io::stdout().write_all(&script).map_err(CliError::other("print"))
}

pub(super) fn man(options: &Man) -> Result<(), CliError> {
    match &options.directory {
        Some(directory) => clap_mangen::generate_to(Cli::command(), directory).map_err(|cause| {
            let cause = io::Error::new(cause.kind(), format!("{}: {cause}", directory.display()));
            CliError::other("write the manual pages")(cause)
        }),
        None => clap_mangen::Man::new(Cli::command())
            .render(&mut io::stdout())
            .map_err(CliError::other("print")),
    }
}
