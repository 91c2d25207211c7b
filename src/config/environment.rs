//! Environment variables as keys of the configuration.
//!
//! The rule for a variable `LIVEBRIDGE_…` that is no setting: one that begins with a section's
//! name, is a key without its section, or has a mistyped section before a key, is rejected. Those
//! that Kubernetes sets for services are ignored, and all others too, with a note.
//!
//! `LIVEBRIDGE_DEFAULT_<SECTION>_<KEY>` sets a default below the file, for container images.

use toml::{Table, Value};

use super::ConfigError;
use super::keys;

const PREFIX: &str = "LIVEBRIDGE_";
/// Of variables with defaults for keys that neither the file nor another variable sets.
const DEFAULT_PREFIX: &str = "LIVEBRIDGE_DEFAULT_";
/// Variables that are no keys: the file, the key of `livebridge send`, settings of the tests.
const OTHERS: [&str; 3] = ["LIVEBRIDGE_CONFIG", "LIVEBRIDGE_SEND_KEY", "LIVEBRIDGE_REQUIRE_KAFKA"];

/// What a variable does.
pub(super) enum Effect {
    /// It has nothing to do with livebridge's settings.
    None,
    /// It sets the key with this path.
    Set(Vec<String>),
    /// It looks like one of livebridge's and is none.
    Ignored,
    /// Kubernetes sets it because of a service.
    ServiceLink,
}

/// Splits `LIVEBRIDGE_DEFAULT_WAL_DIR` into the variable whose value it is the default of.
pub(super) fn default_of(name: &str) -> Option<String> {
    name.strip_prefix(DEFAULT_PREFIX).map(|rest| format!("{PREFIX}{rest}"))
}

/// Whether this variable could be one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Puts the variable `name` into `table`, if it is one of ours.
pub(super) fn put(table: &mut Table, name: &str, text: String) -> Result<Effect, ConfigError> {
    let Some(rest) = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else {
        return Ok(Effect::None);
    };
    if OTHERS.contains(&name) {
        return Ok(Effect::None);
    }
    let bad = |problem: String| ConfigError::Environment { name: name.to_owned(), problem };
    let (section, key) = rest.split_once('_').unwrap_or((&rest, ""));
    let variable = |section: &str, key: &str| format!("{PREFIX}{section}_{key}").to_uppercase();
    if keys::sections().all(|known| known != section) {
        if is_service_link(&rest, &text) {
            return Ok(Effect::ServiceLink);
        }
        // Another program's, unless it is a key without its section, or one whose section is
        // mistyped.
        let meant = keys::all().find(|(of, key)| {
            rest.strip_suffix(key).is_some_and(|rest| {
                let section = rest.strip_suffix('_');
                rest.is_empty()
                    || section
                        .is_some_and(|typed| keys::nearest(typed, [*of].into_iter()).is_some())
            })
        });
        return meant.map_or(Ok(Effect::Ignored), |(section, key)| {
            Err(bad(format!("is not a setting; did you mean {}?", variable(section, key))))
        });
    }
    if is_service_link(key, &text) {
        return Ok(Effect::ServiceLink);
    }
    let known = keys::of(section).find(|(known, _)| *known == key);
    let map = |map: &str| key.strip_prefix(map).filter(|_| section == "kafka");
    let (path, value) = if let Some((_, default)) = known {
        let value = parse(text, default).map_err(|problem| bad(problem.to_owned()))?;
        // A variable whose value got lost must not open the intake.
        if (section, key) == ("access", "allow") && value.as_array().is_some_and(Vec::is_empty) {
            let problem = "is empty; to accept callbacks from everywhere, leave the variable out";
            return Err(bad(problem.to_owned()));
        }
        (vec![section.to_owned(), key.to_owned()], value)
    } else if let Some(setting) = map("client_") {
        let path = vec![section.to_owned(), "client".to_owned(), setting.replace('_', ".")];
        (path, Value::String(text))
    } else if let Some(event_type) = map("topics_") {
        let path = vec![section.to_owned(), "topics".to_owned(), event_type.replace('_', "-")];
        (path, Value::String(text))
    } else {
        return Err(bad(keys::unknown_key(section, key, |other, key| {
            variable(if other.is_empty() { section } else { other }, key)
        })));
    };
    insert(table, &path, value).ok_or_else(|| bad("stands where the file has no table".into()))?;
    Ok(Effect::Set(path))
}

/// Whether Kubernetes set the variable, because of a service named livebridge-http or the like. Its
/// names end in `SERVICE_HOST`, `SERVICE_PORT`, `SERVICE_PORT_<NAME>`, `PORT` (with a URL) and
/// `PORT_<NUMBER>_<PROTOCOL>`, the last also with `_PROTO`, `_PORT` or `_ADDR` behind it.
fn is_service_link(key: &str, text: &str) -> bool {
    let steps: Vec<&str> = key.split('_').collect();
    let numbered = |port: &[&str]| match port {
        ["port", number, protocol, rest @ ..] => {
            number.bytes().all(|b| b.is_ascii_digit())
                && ["tcp", "udp", "sctp"].contains(protocol)
                && matches!(rest, [] | ["proto" | "port" | "addr"])
        }
        _ => false,
    };
    steps.ends_with(&["service", "host"])
        || steps.windows(2).any(|pair| pair == ["service", "port"])
        || (steps.ends_with(&["port"]) && text.contains("://"))
        || (0..steps.len()).any(|at| numbered(&steps[at..]))
}

/// The value that `text` spells, of the kind of the key's default.
fn parse(text: String, default: &Value) -> Result<Value, &'static str> {
    Ok(match default {
        Value::Array(_) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
        }
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| "is not a whole number")?),
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| "is neither true nor false")?),
        _ => Value::String(text),
    })
}

/// Inserts a value and the tables above it; `None` when a value stands where a table is needed.
pub(super) fn insert(table: &mut Table, path: &[String], value: Value) -> Option<()> {
    let (last, above) = path.split_last()?;
    let mut table = table;
    for step in above {
        let below = table.entry(step.as_str()).or_insert_with(|| Value::Table(Table::new()));
        table = below.as_table_mut()?;
    }
    table.insert(last.clone(), value);
    Some(())
}
