//! What a message about a rejected value says: the file and line or the variable, the value, and what
//! the key takes.

use toml::Value;
use toml::de::Error;

use super::layers::{Setting, Settings, Source};
use super::{ConfigError, keys};
use crate::secret::{HIDDEN, redact};

/// A value is of the wrong kind: the parser's message, in the terms of the file.
pub(super) fn wrong_kind(cause: &Error, settings: &Settings) -> ConfigError {
    let text = cause.to_string();
    // It ends with the key, as in: in `wal.max_bytes`.
    let key = text.trim_end().strip_suffix('`').and_then(|text| text.rsplit_once("in `"));
    let key = key.map_or("configuration", |(_, key)| key).to_owned();
    let message = cause.message();
    let words = ["invalid type", "invalid value", "data did not match"];
    let problem = match message.strip_prefix("unknown variant ") {
        Some(rest) => rest.split_once("expected ").map(|(_, names)| format!("must be {names}")),
        None if words.iter().any(|word| message.starts_with(word)) => expected(&key),
        None => None,
    };
    let problem = problem.unwrap_or_else(|| redact(message).into_owned());
    let located = ConfigError::Value { location: String::new(), key: key.into(), problem };
    locate(located, settings)
}

/// What `key` takes, by its default.
fn expected(key: &str) -> Option<String> {
    let (section, name) = key.split_once('.')?;
    let (_, default) = keys::of(section).find(|(known, _)| *known == name)?;
    Some(match default {
        Value::String(text) if text.is_empty() => "must be text in quotes".to_owned(),
        Value::String(text) if key == "kafka.brokers" => {
            format!("must be text in quotes, such as {text:?}; join several by commas")
        }
        Value::String(text) => format!("must be text in quotes, such as {text:?}"),
        Value::Boolean(_) => "must be true or false, without quotes".to_owned(),
        Value::Array(_) => "must be a list in brackets, such as [\"one\", \"two\"]".to_owned(),
        number => format!("must be a whole number without quotes, such as {number}"),
    })
}

/// Adds where the value is set, and the value unless it is secret, or shown already.
pub(super) fn locate(error: ConfigError, settings: &Settings) -> ConfigError {
    let ConfigError::Value { key, problem, .. } = error else { return error };
    let is_of_key = |setting: &&Setting| {
        key.strip_prefix(&*setting.table)
            .is_some_and(|name| name.strip_prefix('.') == Some(&setting.key))
    };
    let setting = settings.0.iter().find(is_of_key);
    let Some(setting) = setting.filter(|setting| setting.source != Source::Default) else {
        return ConfigError::Value { location: String::new(), key, problem };
    };
    let value = setting.value.as_ref().map(ToString::to_string).unwrap_or_default();
    // A problem of a file names it.
    let is_shown = problem.contains(&value) || key.ends_with("_file");
    let problem =
        if is_shown || value.contains(HIDDEN) { problem } else { format!("{value} {problem}") };
    ConfigError::Value { location: format!("{}: ", setting.source), key, problem }
}
