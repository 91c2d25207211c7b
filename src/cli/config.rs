//! `livebridge config`: the configuration in effect, and where each value comes from.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::config::{ConfigLayers, Setting};
use clap::Args;

use super::{CliError, ConfigFile};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON: an object of keys, each with its value and its source.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let layers = ConfigLayers::read(options.config.config.as_deref())?;
    let settings = layers.settings();
    let text = if options.json { format!("{:#}\n", settings.to_json()) } else { toml(&settings.0) };
    io::stdout().write_all(text.as_bytes()).map_err(CliError::other("print"))?;
    // Printed before the check, so that an operator sees the values that it rejects.
    layers.check()?;
    Ok(())
}

/// As a configuration file, with the source of each value in a comment.
fn toml(settings: &[Setting]) -> String {
    let line = |setting: &Setting| match &setting.value {
        Some(value) => format!("{} = {value}", key(&setting.key)),
        None => format!("# {} is not set", setting.key),
    };
    let lines: Vec<String> = settings.iter().map(line).collect();
    let width = lines.iter().map(|line| line.chars().count()).filter(|width| *width < 50).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    let mut table = "";
    for (setting, line) in settings.iter().zip(lines) {
        if setting.table != table {
            let gap = if table.is_empty() { "" } else { "\n" };
            table = &setting.table;
            let _ = writeln!(text, "{gap}[{table}]");
        }
        let _ = writeln!(text, "{line:<width$}  # {}", setting.source);
    }
    text
}

/// A key of TOML, which needs quotes if it contains other characters, such as dots.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}
