//! livebridge's command line: what was asked for, how it went, and the exit code that says so.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::run()
}
