//! The settings of the file and the environment, and the source of each: not checked yet, and
//! without secrets when shown.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::environment::Effect;
use super::keys::{self, MAPS};
use super::{Config, ConfigError, environment, file, not_toml, rejection};
use crate::event::EventType;
use crate::kafka::settings::{self, is_harmless};
use crate::secret::{self, HIDDEN};

/// Where a value is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// No layer: the default.
    Default,
    /// The file, on this line.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

/// A key with its value in effect.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its table, such as `http` or `kafka.client`.
    pub table: String,
    /// Its name there.
    pub key: String,
    /// Its value, secrets replaced by [`HIDDEN`]; `None` when there is none.
    pub value: Option<Value>,
    /// Where it is set.
    pub source: Source,
}

/// All keys, to be shown.
#[derive(Clone, Default)]
pub struct Settings(pub Vec<Setting>);

/// Two configurations are equal if their values are, wherever these come from.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Settings {
    /// An object of keys, each with its value and its source.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let entry = |setting: &Setting| {
            let value = setting.value.as_ref().map(serde_json::to_value);
            let value = value.and_then(Result::ok).unwrap_or_default();
            let source = setting.source.to_string();
            let name = format!("{}.{}", setting.table, setting.key);
            (name, serde_json::json!({"value": value, "source": source}))
        };
        self.0.iter().map(entry).collect::<serde_json::Map<_, _>>().into()
    }

    /// The files that only livebridge should be able to read, each with the key that names it.
    #[must_use]
    pub fn secret_files(&self) -> BTreeMap<PathBuf, String> {
        let file = |setting: &Setting| {
            let name = format!("{}.{}", setting.table, setting.key);
            let path = match (&setting.value, &setting.source) {
                (Some(Value::String(path)), _) if SECRET_FILES.contains(&&*name) => path.into(),
                (_, Source::File { path, .. }) if is_secret(&setting.table, &setting.key) => {
                    path.clone()
                }
                _ => return None,
            };
            Some((path, name))
        };
        // The first key that names a file is reported.
        self.0.iter().rev().filter_map(file).collect()
    }
}

/// The keys whose value is the name of a file with secrets in it.
const SECRET_FILES: [&str; 4] = [
    "tls.private_key", "callback.keys_file", "kafka.client.ssl.key.location",
    "kafka.client.ssl.keystore.location",
];

/// All settings that were given, by key.
#[derive(Default)]
pub struct ConfigLayers {
    table: Table,
    /// By the path of the key.
    sources: BTreeMap<Vec<String>, Source>,
    /// Effects of variables that an operator may not expect.
    notes: Vec<String>,
    /// Variables with the prefix that set nothing.
    ignored: Vec<String>,
}

/// Prints no values, because some are secrets.
impl fmt::Debug for ConfigLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigLayers").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl ConfigLayers {
    /// Reads `file`, if one is given, and the environment.
    ///
    /// # Errors
    /// [`ConfigError`] when either cannot be read, or names a key that there is not.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut layers = file.map_or_else(|| Ok(Self::default()), Self::read_file)?;
        for (name, value) in env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => layers.add_variable(&name, value)?,
                Err(_) if environment::is_ours(&name) => {
                    let problem = "is not UTF-8, as every setting must be".to_owned();
                    return Err(ConfigError::Environment { name, problem });
                }
                Err(_) => {}
            }
        }
        Ok(layers)
    }

    /// From a table and environment variables.
    ///
    /// # Errors
    /// [`ConfigError`], when either names a key that there is not.
    pub fn from_parts(
        table: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        if let Some(unknown) = keys::unknown(&table) {
            return Err(ConfigError::Key { location: String::new(), problem: unknown.problem });
        }
        let mut layers = Self { table, ..Self::default() };
        layers.flatten_maps()?;
        for (name, value) in environment {
            layers.add_variable(&name, value)?;
        }
        Ok(layers)
    }

    fn read_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        let text = text.trim_start_matches('\u{feff}').to_owned();
        let table: Table = text.parse().map_err(|cause| not_toml(path, &text, &cause))?;
        let spans = DeTable::parse(&text).map_err(|cause| not_toml(path, &text, &cause))?;
        let mut lines = BTreeMap::new();
        number(spans.get_ref(), &mut Vec::new(), &text, &mut lines);
        if let Some(unknown) = keys::unknown(&table) {
            let line = lines.get(&unknown.path).copied().unwrap_or(1);
            let location = format!("{}:{line}: ", path.display());
            return Err(ConfigError::Key { location, problem: unknown.problem });
        }
        let source = |line| Source::File { path: path.to_owned(), line };
        let sources = lines.into_iter().map(|(key, line)| (key, source(line))).collect();
        let mut layers = Self { table, sources, ..Self::default() };
        layers.flatten_maps()?;
        Ok(layers)
    }

    /// Gives every key of the [`MAPS`] a path of three steps: without quotes, the dots in its name
    /// make tables of TOML.
    fn flatten_maps(&mut self) -> Result<(), ConfigError> {
        for map in MAPS {
            let kafka = self.table.get_mut("kafka").and_then(Value::as_table_mut);
            let Some(Value::Table(table)) = kafka.and_then(|kafka| kafka.get_mut(map)) else {
                continue;
            };
            let mut found = Vec::new();
            leaves(&std::mem::take(table), &mut vec!["kafka".into(), map.into()], &mut found);
            for (written, value) in found {
                let key = written[2..].join(".");
                let source = self.sources.remove(&written);
                let other = table.contains_key(&key).then(|| key.clone());
                if let Some(other) = other.or_else(|| same(table, map, &key)) {
                    return Err(ConfigError::Key {
                        location: location(source.as_ref()),
                        problem: format!(
                            "[kafka.{map}] sets {key} twice, the first time as {other}"
                        ),
                    });
                }
                let path = vec!["kafka".to_owned(), map.to_owned(), key.clone()];
                table.insert(key, value);
                self.sources.extend(source.map(|source| (path, source)));
            }
        }
        Ok(())
    }

    pub(super) fn add_variable(&mut self, name: &str, value: String) -> Result<(), ConfigError> {
        if let Some(variable) = environment::default_of(name) {
            return self.add_default(name, &variable, value);
        }
        match environment::put(&mut self.table, name, value)? {
            Effect::None | Effect::ServiceLink => {}
            Effect::Ignored => self.ignored.push(name.to_owned()),
            Effect::Set(path) => {
                let key = path.join(".");
                let over = self.replace_other_name(&path).or_else(|| self.sources.remove(&path));
                match over {
                    Some(over @ Source::File { .. }) => {
                        self.notes.push(format!("{key}: {name} takes precedence over {over}"));
                    }
                    Some(Source::Environment(other))
                        if other != name && environment::default_of(&other).is_none() =>
                    {
                        let problem = format!("sets {key}, which {other} sets too; remove one");
                        return Err(ConfigError::Environment { name: name.to_owned(), problem });
                    }
                    _ => {}
                }
                self.sources.insert(path, Source::Environment(name.to_owned()));
            }
        }
        Ok(())
    }

    /// Removes the setting that has the same meaning as the one at `path` and another name, and
    /// returns its source.
    fn replace_other_name(&mut self, path: &[String]) -> Option<Source> {
        let [section, map, key] = path else { return None };
        let table = self.table.get_mut(section)?.get_mut(map)?.as_table_mut()?;
        let other = same(table, map, key)?;
        table.remove(&other);
        self.sources.remove(&vec![section.clone(), map.clone(), other])
    }

    /// Sets the key of `variable` unless the file or another variable sets it.
    fn add_default(
        &mut self,
        name: &str,
        variable: &str,
        value: String,
    ) -> Result<(), ConfigError> {
        let bad = |problem: String| ConfigError::Environment { name: name.to_owned(), problem };
        let mut defaults = Table::new();
        let effect =
            environment::put(&mut defaults, variable, value).map_err(|error| match error {
                ConfigError::Environment { problem, .. } => bad(problem),
                other => other,
            })?;
        let path = match effect {
            Effect::Set(path) if path.len() == 2 => path,
            Effect::ServiceLink => return Ok(()),
            _ => {
                let problem = "is the default of no key; keys of [kafka.client] and [kafka.topics] \
                               have none";
                return Err(bad(problem.to_owned()));
            }
        };
        let value = |table: &Table| table.get(&path[0])?.get(&path[1]).cloned();
        if let (Some(value), None) = (value(&defaults), value(&self.table))
            && environment::insert(&mut self.table, &path, value).is_some()
        {
            self.sources.insert(path, Source::Environment(name.to_owned()));
        }
        Ok(())
    }

    /// What `check` and the log say about the variables.
    fn notes(&self) -> Vec<String> {
        /// Names in the note; what a shell exports by the dozen is counted.
        const NAMED: usize = 8;
        let mut notes = self.notes.clone();
        if !self.ignored.is_empty() {
            let mut names: Vec<&str> = self.ignored.iter().map(String::as_str).collect();
            names.sort_unstable();
            let more = names.len().saturating_sub(NAMED);
            names.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            notes
                .push(format!("ignored, because they are no settings: {}{more}", names.join(", ")));
        }
        notes
    }

    /// The config that this makes.
    ///
    /// # Errors
    /// [`ConfigError`], when a value is of the wrong kind or makes no sense.
    pub fn check(self) -> Result<Config, ConfigError> {
        // The parser would repeat what stands there, which may be a secret.
        if let Some((section, _)) = self.table.iter().find(|(_, value)| !value.is_table()) {
            return Err(ConfigError::Key {
                location: location(self.sources.get(&vec![section.clone()])),
                problem: format!("[{section}] must be a table, with its keys below it"),
            });
        }
        let settings = self.settings();
        let mut notes = self.notes();
        let raw: file::Raw =
            self.table.try_into().map_err(|cause| rejection::wrong_kind(&cause, &settings))?;
        let config = raw.check().map_err(|error| rejection::locate(error, &settings))?;
        notes.extend(config.notes);
        Ok(Config { notes, settings, ..config })
    }

    /// The text in effect of one key, which is not checked.
    #[must_use]
    pub fn text(&self, table: &str, key: &str) -> Option<String> {
        let Settings(settings) = self.settings();
        let found = settings.into_iter().find(|found| found.table == table && found.key == key);
        Some(found?.value?.as_str()?.to_owned())
    }

    /// Every key with its value in effect and its source, in the order of the documentation.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let mut settings = Vec::new();
        for section in keys::sections() {
            for (key, default) in keys::of(section) {
                let value = self.table.get(section).and_then(|table| table.get(key)).cloned();
                let default = || match default.as_str() {
                    Some("") => unwritten_default(section, key),
                    _ => Some(default.clone()),
                };
                let value = value.or_else(default);
                settings.push(self.setting(&[section, key], value));
            }
            for map in MAPS.into_iter().filter(|_| section == "kafka") {
                let table = self.table.get(section).and_then(|kafka| kafka.get(map)?.as_table());
                let sorted: BTreeMap<_, _> = table.into_iter().flatten().collect();
                let setting = |(key, value): (&String, &Value)| {
                    self.setting(&[section, map, key], Some(value.clone()))
                };
                settings.extend(sorted.into_iter().map(setting));
            }
        }
        Settings(settings)
    }

    fn setting(&self, path: &[&str], value: Option<Value>) -> Setting {
        let (table, key) = (path[..path.len() - 1].join("."), path[path.len() - 1].to_owned());
        let owned: Vec<String> = path.iter().map(|&step| step.to_owned()).collect();
        let source = self.sources.get(&owned).cloned().unwrap_or(Source::Default);
        if let Some(value) = value.as_ref().filter(|_| is_secret(&table, &key)) {
            let unknown = table == "kafka.client" && !settings::is_secret(&key);
            remember(value, if unknown { UNKNOWN_MIN } else { 0 });
        }
        if let Some(value) = value.as_ref().filter(|_| is_brokers(&table, &key)) {
            remember_users(value);
        }
        let value = value.map(|value| hide(&table, &key, value));
        Setting { table, key, value, source }
    }
}

/// The defaults that depend on the machine.
fn unwritten_default(section: &str, key: &str) -> Option<Value> {
    ((section, key) == ("kafka", "instance")).then(|| Value::String(file::host_name()))
}

/// Whether the value must not be shown.
fn is_secret(table: &str, key: &str) -> bool {
    [("access", "secret"), ("admin", "token"), ("callback", "keys")].contains(&(table, key))
        || (table == "kafka.client" && !is_harmless(key))
}

/// Whether the value is a list of brokers.
fn is_brokers(table: &str, key: &str) -> bool {
    (table, key) == ("kafka", "brokers")
        || (table == "kafka.client" && ["bootstrap.servers", "metadata.broker.list"].contains(&key))
}

/// The key of `table`, one of the [`MAPS`], that means the same as `key`: event types and some
/// settings of librdkafka have two names.
fn same(table: &Table, map: &str, key: &str) -> Option<String> {
    let meaning = |key: &str| match map {
        "topics" => EventType::parse(key).map_or(key.to_owned(), |code| code.0.to_string()),
        _ => settings::meant_by(key).to_owned(),
    };
    let of_key = meaning(key);
    table.keys().find(|other| *other != key && meaning(other) == of_key).cloned()
}

/// The beginning of a message about what `source` sets.
fn location(source: Option<&Source>) -> String {
    source.map_or_else(String::new, |source| format!("{source}: "))
}

/// A shorter value of an unknown setting is not masked elsewhere: `kafka`, `all` or `1000` are part
/// of harmless text. The value itself is hidden.
const UNKNOWN_MIN: usize = 8;

/// From now on, the secrets in `value` that have `min` bytes or more are masked in every text that
/// is shown.
fn remember(value: &Value, min: usize) {
    let long = |text: &str| {
        if text.len() >= min {
            secret::remember(text);
        }
    };
    match value {
        // Of "NAME KEY" only the key; a secret with blanks as a whole.
        Value::String(text) => {
            long(text);
            text.split_whitespace().last().into_iter().for_each(long);
        }
        Value::Array(values) => values.iter().for_each(|value| remember(value, min)),
        Value::Table(table) => table.values().for_each(|value| remember(value, min)),
        other => long(&other.to_string()),
    }
}

/// Remembers what is before the hosts of brokers.
fn remember_users(brokers: &Value) {
    match brokers {
        Value::String(text) => {
            let user = text.rsplit_once('@').map_or("", |(user, _)| user);
            let parts = user.split([':', '@', '/', ',']).filter(|part| part.len() >= UNKNOWN_MIN);
            parts.for_each(secret::remember);
        }
        Value::Array(values) => values.iter().for_each(remember_users),
        _ => {}
    }
}

fn hide(table: &str, key: &str, value: Value) -> Value {
    let hidden = || Value::String(HIDDEN.to_owned());
    match value {
        // What follows the first part may be secret.
        Value::String(path) if (table, key) == ("http", "path") => Value::String(shorten(path)),
        // An address with a user before it, which may have a password, is rejected, and shown before.
        Value::String(brokers) if is_brokers(table, key) => Value::String(
            brokers.rsplit_once('@').map(|(_, host)| format!("{HIDDEN}@{host}")).unwrap_or(brokers),
        ),
        // How many there are tells whether a rotation has arrived.
        Value::Array(values) => {
            Value::Array(values.into_iter().map(|value| hide(table, key, value)).collect())
        }
        value if !is_secret(table, key) => value,
        _ => hidden(),
    }
}

/// The first part of a path; what follows it is hidden.
fn shorten(path: String) -> String {
    match path.match_indices('/').find(|(at, _)| *at > 0) {
        Some((at, _)) if at + 1 < path.len() => format!("{}/{HIDDEN}", &path[..at]),
        _ => path,
    }
}

/// The values below `table`, each with its path.
fn leaves(table: &Table, path: &mut Vec<String>, into: &mut Vec<(Vec<String>, Value)>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) => leaves(inner, path, into),
            value => into.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

/// On which line each key stands.
fn number(
    table: &DeTable<'_>,
    path: &mut Vec<String>,
    text: &str,
    into: &mut BTreeMap<Vec<String>, usize>,
) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        let before = text.get(..key.span().start).unwrap_or_default();
        into.insert(path.clone(), before.matches('\n').count() + 1);
        if let DeValue::Table(inner) = value.get_ref() {
            number(inner, path, text, into);
        }
        path.pop();
    }
}
