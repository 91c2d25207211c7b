//! `livebridge tencent`: callback templates and rules in Tencent Cloud.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use crate::tencent::{
    CallbackTemplate, Client, ClientError, Credentials, CredentialsError, Endpoint,
    Options as ClientOptions,
};
use clap::{Args, Subcommand};

use super::CliError;

mod keys_file;
mod remove;
mod rotate;
mod setup;
pub(super) mod status;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make Tencent Cloud send the callbacks of push domains here.
    ///
    /// Creates or updates one callback template, with a separate URL for each kind of event and a
    /// callback key, and binds it to the domains by rules. Prints what it would change, and changes
    /// it with --yes. Run again, it changes only what differs. Templates and rules that it did not
    /// create stay unchanged, unless --take-over is given.
    #[command(after_long_help = SETUP_EXAMPLES)]
    Setup(setup::Options),
    /// Compare Tencent Cloud's templates, rules and domains with the configuration; changes
    /// nothing.
    ///
    /// Exits 0 if the callbacks of all enabled push domains (or of those given) are sent here and
    /// would be accepted, 1 if not or if Tencent Cloud does not answer, 64 if the configuration or
    /// the credentials are wrong.
    #[command(after_long_help = STATUS_EXAMPLES)]
    Status(status::Options),
    /// Delete the rules and the template that `setup` created.
    ///
    /// Prints what it would delete, and deletes it with --yes.
    Remove(remove::Options),
    /// Replace the callback key of the template that `setup` created, without losing a callback.
    ///
    /// Adds a new key to `callback.keys_file`, waits until the instances accept it, sets it in the
    /// template, waits until the old key is no longer used, and removes that from the file.
    /// Interrupted at any point, it continues there when it is run again. Changes something only
    /// with --yes.
    #[command(after_long_help = ROTATE_EXAMPLES)]
    RotateKey(rotate::Options),
}

pub(super) const EXAMPLES: &str = "\
Examples:
  livebridge tencent setup --url https://events.example.com/callback --domain push.example.com --yes
  livebridge tencent status --config livebridge.toml";
const SETUP_EXAMPLES: &str = "\
Examples:
  Show what would be changed, then change it:
    livebridge tencent setup --config livebridge.toml \\
      --url https://events.example.com/callback --domain push.example.com
    livebridge tencent setup --config livebridge.toml \\
      --url https://events.example.com/callback --domain push.example.com --yes
  Only some kinds of events, of one app:
    livebridge tencent setup --url https://events.example.com/callback \\
      --domain push.example.com --app live --events push,interrupt,record --yes

Credentials come from TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY, or --credentials.
A change takes 5 to 10 minutes to take effect.";
const STATUS_EXAMPLES: &str = "\
Examples:
  livebridge tencent status --config livebridge.toml
  In CI, of one domain:
    livebridge tencent status --domain push.example.com --json | jq .problems";
const ROTATE_EXAMPLES: &str = "\
Examples:
  livebridge tencent rotate-key --config livebridge.toml --yes
  Two instances; copy the new line to the other one's file when the command says so:
    livebridge tencent rotate-key --admin 10.0.0.1:9464 --admin 10.0.0.2:9464 --yes";

/// How to reach the account.
#[derive(Debug, Args)]
pub(super) struct Account {
    /// A file with the credentials, in the form of tccli or of Tencent Cloud's SDKs. Without it,
    /// the file that `TENCENTCLOUD_CREDENTIALS_FILE` names, or else `TENCENTCLOUD_SECRET_ID`,
    /// `TENCENTCLOUD_SECRET_KEY` and `TENCENTCLOUD_TOKEN` in the environment are used. No option takes the keys, because other users of the machine can see
    /// arguments.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// The address of Tencent Cloud's API; accounts of tencentcloud.com use
    /// `https://live.intl.tencentcloudapi.com`.
    #[arg(long, value_name = "URL", default_value = "https://live.tencentcloudapi.com")]
    endpoint: String,
    /// The longest time for one request.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Account {
    /// A client of the account.
    pub(super) fn connect(&self) -> Result<Client, CliError> {
        let usage = |problem: String| CliError::Usage(problem);
        let endpoint = Endpoint::parse(&self.endpoint).map_err(|error| usage(error.to_string()))?;
        let file = self.credentials.as_deref();
        let credentials = Credentials::find(file, |name| env::var(name).ok())
            .map_err(|error| usage(error.to_string()))?;
        let options = ClientOptions { endpoint, timeout: self.timeout, ..ClientOptions::default() };
        Client::new(credentials, options).map_err(|error: ClientError| usage(error.to_string()))
    }

    /// The file with the credentials, if one is named.
    pub(super) fn file(&self) -> Option<PathBuf> {
        Credentials::file(self.credentials.as_deref(), |name| env::var(name).ok())
    }

    /// A client of the account, or `None` if there are no credentials.
    pub(super) fn connect_if_given(&self) -> Option<Result<Client, CliError>> {
        let found = Credentials::find(self.credentials.as_deref(), |name| env::var(name).ok());
        let is_missing = matches!(found, Err(CredentialsError::Missing));
        (!is_missing).then(|| self.connect())
    }
}

/// The description that marks the templates that `setup` created.
const MARK: &str = "managed-by-livebridge";

/// Selects the managed template.
#[derive(Debug, Args)]
struct Managed {
    /// The template's name: letters, digits, `_` and `-`. Each of several installations
    /// that share an account needs its own name.
    #[arg(long = "template", value_name = "NAME", default_value = status::DEFAULT_NAME, value_parser = parse_name)]
    name: String,
}

fn parse_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=255).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 255 letters, digits, _ and -".to_owned())
    }
}

impl Managed {
    /// Whether `setup` created the template under this name.
    fn created(&self, template: &CallbackTemplate) -> bool {
        template.template_name == self.name && template.description == MARK
    }

    /// The template; the oldest, if an interrupted run left two.
    fn find<'a>(&self, templates: &'a [CallbackTemplate]) -> Option<&'a CallbackTemplate> {
        templates.iter().filter(|one| self.created(one)).min_by_key(|one| one.template_id)
    }
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    match &options.command {
        Command::Setup(options) => setup::run(options),
        Command::Status(options) => status::run(options),
        Command::Remove(options) => remove::run(options),
        Command::RotateKey(options) => rotate::run(options),
    }
}
