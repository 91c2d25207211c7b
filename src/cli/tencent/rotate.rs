//! `livebridge tencent rotate-key`.
//!
//! Each step is done once, however often the command is interrupted: a journal beside
//! `callback.keys_file` records the names of the two keys and the time of the change; everything
//! else is read from the file, the template and the instances. The journal contains no secrets.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::callback::CallbackKey;
use crate::config::Config;
use crate::event::Timestamp;
use crate::tencent::{CallbackTemplate, Client, TemplateKey};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::keys_file::{self, KeysFile, NewKey};
use super::{Account, Managed};
use crate::cli::{CliError, ConfigFile, ready};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    account: Account,
    #[command(flatten)]
    managed: Managed,
    /// The admin listener of an instance that must accept the new key first; may be given several
    /// times. Without it, admin.listen of the configuration.
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<SocketAddr>,
    /// How long to wait until all instances have loaded the new key.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    load_timeout: Duration,
    /// How long the old key must not have been used before it is removed. A change of the template
    /// takes 10 minutes to take effect, and retries of earlier callbacks come for 16 more.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// Rotate the key. Without it, the command prints what it would change.
    #[arg(long)]
    yes: bool,
}

/// The pause between two requests to the instances: they reload within seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait for an instance's answer, and the largest answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
const ANSWER_MAX: u64 = 4 * 1024 * 1024;
/// The metric of when an instance started.
const STARTED: &str = "process_start_time_seconds";

/// The state of a rotation in progress.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    template: i64,
    old: String,
    new: String,
    /// When the template got the new key.
    #[serde(skip_serializing_if = "Option::is_none")]
    switched_at_ms: Option<i64>,
}

impl Journal {
    fn path(file: &KeysFile) -> PathBuf {
        file.beside(".rotation")
    }

    fn read(file: &KeysFile) -> Result<Option<Self>, CliError> {
        let text = match fs::read_to_string(Self::path(file)) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(CliError::other("read the rotation's journal")(cause)),
        };
        serde_json::from_str(&text).map(Some).map_err(|cause| {
            CliError::Failed(format!("{} is damaged: {cause}", Self::path(file).display()))
        })
    }

    fn write(&self, file: &KeysFile) -> Result<(), CliError> {
        let text = serde_json::to_string(self).map_err(CliError::other("write the journal"))?;
        let partial = file.beside(".rotation.partial");
        let write = || {
            let mut opened = fs::File::create(&partial)?;
            opened.write_all(text.as_bytes())?;
            opened.sync_all()?;
            fs::rename(&partial, Self::path(file))
        };
        write().map_err(CliError::other("write the rotation's journal"))
    }
}

/// The context of the steps.
struct Rotation<'a> {
    options: &'a Options,
    config: Config,
    client: Client,
    file: KeysFile,
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load(options.config.config.as_deref())?;
    let file = KeysFile::of(&config)?;
    let client = options.account.connect()?;
    let rotation = Rotation { options, config, client, file };
    let journal = match Journal::read(&rotation.file)? {
        Some(journal) => {
            print_out!("continuing the rotation of {} to {}", journal.old, journal.new);
            Some(journal)
        }
        None => None,
    };
    if options.yes {
        return rotation.carry_out(journal);
    }
    let (old, new) = match journal {
        Some(journal) => (journal.old, journal.new),
        None => (rotation.old_key()?.0, "a new key".to_owned()),
    };
    print_out!("replace the callback key {old} by {new} in {}", rotation.file.path().display());
    print_out!("Nothing was changed. Run it again with --yes to change it.");
    Ok(())
}

impl Rotation<'_> {
    fn carry_out(&self, journal: Option<Journal>) -> Result<(), CliError> {
        let mut journal = match journal {
            Some(journal) => journal,
            None => self.begin()?,
        };
        let Some(new) = self.new_key(&journal)? else { return Err(CliError::Found) };
        print_out!("3/6 waiting until the instances have loaded {}", journal.new);
        self.wait_until_loaded(&journal.new)?;
        self.switch(&mut journal, &new)?;
        print_out!("5/6 waiting until {} is no longer used", journal.old);
        self.wait_until_unused(&journal)?;
        print_out!("6/6 removing {} from {}", journal.old, self.file.path().display());
        self.file.remove(&journal.old)?;
        fs::remove_file(Journal::path(&self.file))
            .map_err(CliError::other("remove the rotation's journal"))?;
        print_out!("Done: the callback key is {}", journal.new);
        Ok(())
    }

    fn begin(&self) -> Result<Journal, CliError> {
        let (old, template) = self.old_key()?;
        let new = keys_file::new_name();
        print_out!("1/6 replacing the callback key {old} of template {template} by {new}");
        let journal = Journal { template, old, new, switched_at_ms: None };
        journal.write(&self.file)?;
        Ok(journal)
    }

    /// The name of the template's key, which must have a line in the file, and the template's id.
    fn old_key(&self) -> Result<(String, i64), CliError> {
        let templates = self.client.templates()?;
        let template = self.options.managed.find(&templates).ok_or_else(|| {
            CliError::Usage(format!(
                "livebridge created no template {} in this account: run livebridge tencent setup \
                 first",
                self.options.managed.name
            ))
        })?;
        let used = CallbackKey::new(template.callback_key.text());
        let known = used.and_then(|used| {
            self.config.verifier.keys.iter().find(|key| key.has_same_secret(&used))
        });
        let name = known.map(CallbackKey::name).ok_or_else(|| {
            CliError::Usage(
                "the template's key is not configured here: run livebridge tencent setup, \
                 which sets one of them"
                    .to_owned(),
            )
        })?;
        if !self.file.has(name)? {
            return Err(CliError::Usage(format!(
                "the key in use, {name}, has no line \"NAME KEY\" in {}: give it a name there, so \
                 that it can be removed at the end",
                self.file.path().display()
            )));
        }
        Ok((name.to_owned(), template.template_id))
    }

    /// The new key, from the file; it is created if the file does not have it.
    fn new_key(&self, journal: &Journal) -> Result<Option<CallbackKey>, CliError> {
        if !self.file.has(&journal.new)? {
            let new = NewKey::random(journal.new.clone());
            let path = self.file.path().display();
            print_out!("2/6 adding {} to {path}; copy the line to the other instances", new.name);
            self.file.add(&new)?;
        }
        let config = Config::load(self.options.config.config.as_deref())?;
        let found = config.verifier.keys.iter().find(|key| key.name() == journal.new);
        Ok(found.cloned())
    }

    fn wait_until_loaded(&self, name: &str) -> Result<(), CliError> {
        let deadline = Instant::now() + self.options.load_timeout;
        loop {
            let missing = self.instances().into_iter().find_map(|instance| {
                let loaded = self.ask(instance).map(|metrics| accepted(&metrics, name).is_some());
                match loaded {
                    Ok(true) => None,
                    Ok(false) => Some(format!("{instance} has not loaded it")),
                    Err(cause) => Some(format!("an instance does not answer: {cause}")),
                }
            });
            let Some(missing) = missing else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(CliError::Failed(format!(
                    "the new key is not in use yet: {missing}; check the file and the log lines of \
                     that instance, and run this again, which continues here"
                )));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn switch(&self, journal: &mut Journal, new: &CallbackKey) -> Result<(), CliError> {
        let templates = self.client.templates()?;
        let template = templates.iter().find(|one| one.template_id == journal.template);
        let template = template.ok_or_else(|| {
            CliError::Failed(format!(
                "template {} does not exist any more; remove {} to abandon the rotation",
                journal.template,
                Journal::path(&self.file).display()
            ))
        })?;
        if template.callback_key.text() != new.reveal() {
            print_out!("4/6 setting {} in template {}", journal.new, journal.template);
            let mut changed = template.clone();
            changed.callback_key = TemplateKey::new(new.reveal());
            self.client.modify_template(&changed)?;
            journal.switched_at_ms = None;
        }
        if journal.switched_at_ms.is_none() {
            journal.switched_at_ms = Some(Timestamp::now().as_millis());
            journal.write(&self.file)?;
        }
        self.check_other_templates(&templates, journal)
    }

    /// The old key must stay while another template uses it.
    fn check_other_templates(
        &self,
        templates: &[CallbackTemplate],
        journal: &Journal,
    ) -> Result<(), CliError> {
        let old = self.config.verifier.keys.iter().find(|key| key.name() == journal.old);
        let Some(old) = old else { return Ok(()) };
        let uses_it = |one: &&CallbackTemplate| {
            one.template_id != journal.template && one.callback_key.text() == old.reveal()
        };
        match templates.iter().find(uses_it) {
            None => Ok(()),
            Some(other) => Err(CliError::Failed(format!(
                "template {} ({}) has the old key too, so {} stays in the file; give that template \
                 another key, and run this again, which continues here",
                other.template_id, other.template_name, journal.old
            ))),
        }
    }

    fn wait_until_unused(&self, journal: &Journal) -> Result<(), CliError> {
        let switched = Timestamp::from_millis(journal.switched_at_ms.unwrap_or(0));
        let mut last = switched;
        // An instance may restart at any time: while it does not answer, it may use the old key.
        let mut answered = Instant::now();
        loop {
            let answers: io::Result<Vec<String>> =
                self.instances().into_iter().map(|instance| self.ask(instance)).collect();
            let answers = match answers {
                Ok(answers) => answers,
                Err(cause) if answered.elapsed() >= self.options.load_timeout => {
                    return Err(CliError::other("ask an instance when the old key was used")(
                        cause,
                    ));
                }
                Err(_) => {
                    thread::sleep(POLL_INTERVAL);
                    continue;
                }
            };
            answered = Instant::now();
            for metrics in answers {
                for name in [
                    STARTED.to_owned(),
                    series("livebridge_callback_key_last_used_timestamp_seconds", &journal.old),
                ] {
                    last = last.max(moment(value(&metrics, &name)));
                }
            }
            let elapsed = Timestamp::now().since(last);
            let Some(left) = self.options.quiet.checked_sub(elapsed).filter(|left| !left.is_zero())
            else {
                return Ok(());
            };
            thread::sleep(left.min(POLL_INTERVAL * 10));
        }
    }

    fn instances(&self) -> Vec<SocketAddr> {
        if self.options.admin.is_empty() {
            vec![ready::reachable(self.config.admin.listen)]
        } else {
            self.options.admin.clone()
        }
    }

    /// The metrics of an instance.
    fn ask(&self, instance: SocketAddr) -> io::Result<String> {
        self.fetch(instance)
            .map_err(|cause| io::Error::new(cause.kind(), format!("{instance}: {cause}")))
    }

    fn fetch(&self, instance: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&instance, ANSWER_WAIT)?;
        stream.set_read_timeout(Some(ANSWER_WAIT))?;
        stream.set_write_timeout(Some(ANSWER_WAIT))?;
        let token = self.config.admin.token.as_ref().map_or_else(String::new, |token| {
            format!("Authorization: Bearer {}\r\n", token.reveal())
        });
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {instance}\r\n{token}Connection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        if status != "200" {
            return Err(io::Error::other(format!("/metrics was answered with status {status:?}")));
        }
        // An instance does not know whether a key was used before its start.
        if value(&answer, STARTED).is_none() {
            return Err(io::Error::other(format!("/metrics has no {STARTED}")));
        }
        Ok(answer)
    }
}

fn series(metric: &str, key: &str) -> String {
    format!("{metric}{{key=\"{key}\"}}")
}

fn accepted(metrics: &str, key: &str) -> Option<f64> {
    value(metrics, &series("livebridge_callback_key_accepted_total", key))
}

fn value(metrics: &str, series: &str) -> Option<f64> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(series));
    lines.filter_map(|rest| rest.strip_prefix(' ')).find_map(|rest| rest.trim().parse().ok())
}

fn moment(seconds: Option<f64>) -> Timestamp {
    let span = Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default();
    Timestamp::from_millis(0).after(span)
}
