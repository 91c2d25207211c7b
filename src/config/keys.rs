//! Every key of the configuration, and which of them a wrong one was meant to be.

use std::sync::LazyLock;

use toml::{Table, Value};

use super::file::Raw;

/// Every key with its default, by section, in the order of the documentation. A key without a
/// default has an empty text. The structs of [`super::file`] are where keys are declared.
static DEFAULTS: LazyLock<Table> =
    LazyLock::new(|| Table::try_from(Raw::default()).unwrap_or_default());

/// The tables of `kafka` whose keys are not ours.
pub(super) const MAPS: [&str; 2] = ["client", "topics"];

/// The sections, in the order in which they are written.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    DEFAULTS.keys().map(String::as_str)
}

/// The keys of a section, but for the [`MAPS`], each with its default.
pub(super) fn of(section: &str) -> impl Iterator<Item = (&'static str, &'static Value)> {
    let keys = DEFAULTS.get(section).and_then(Value::as_table).into_iter().flatten();
    keys.filter(|(_, default)| !default.is_table()).map(|(key, default)| (key.as_str(), default))
}

/// Every section and key.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    sections().flat_map(|section| of(section).map(move |(key, _)| (section, key)))
}

/// A key of the file that there is not: where it stands, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// The tables above it, and itself.
    pub(super) path: Vec<String>,
    pub(super) problem: String,
}

/// The first key of `table` that there is not.
pub(super) fn unknown(table: &Table) -> Option<Unknown> {
    table.iter().find_map(|(section, value)| {
        if sections().all(|known| known != section) {
            let problem = unknown_section(section);
            return Some(Unknown { path: vec![section.clone()], problem });
        }
        // Anything but a table is a wrong value, not an unknown key.
        let Value::Table(inner) = value else { return None };
        let known = |key: &str| {
            of(section).any(|(known, _)| known == key)
                || (section == "kafka" && MAPS.contains(&key))
        };
        let key = inner.keys().find(|key| !known(key))?;
        Some(Unknown {
            path: vec![section.clone(), key.clone()],
            problem: unknown_key(section, key, |section, key| {
                if section.is_empty() { key.to_owned() } else { format!("{key} in [{section}]") }
            }),
        })
    })
}

fn unknown_section(name: &str) -> String {
    if let Some((section, _)) = all().find(|(_, key)| *key == name) {
        return format!("{name} stands in no section; did you mean {name} in [{section}]?");
    }
    match nearest(name, sections()) {
        Some(meant) => format!("there is no section [{name}]; did you mean [{meant}]?"),
        None => format!("there is no section [{name}]; there are {}", join(sections())),
    }
}

/// What to say about `key`, which `section` does not have. `spell` writes a key with its section,
/// which is empty when it is the same one.
pub(super) fn unknown_key(
    section: &str,
    key: &str,
    spell: impl Fn(&str, &str) -> String,
) -> String {
    let maps = MAPS.into_iter().filter(|_| section == "kafka");
    let names = || of(section).map(|(name, _)| name);
    if let Some(meant) = nearest(key, names().chain(maps)) {
        format!("[{section}] has no key {key}; did you mean {}?", spell("", meant))
    } else if let Some((other, meant)) = all().find(|(_, name)| *name == key) {
        format!("[{section}] has no key {key}; did you mean {}?", spell(other, meant))
    } else {
        format!("[{section}] has no key {key}; it has {}", join(names()))
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Which of `names` is so near to `name` that it was probably meant.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Of four letters one may be wrong, of eight three.
    const ALIKE: f64 = 0.6;
    names
        .map(|known| (strsim::normalized_damerau_levenshtein(&name.to_lowercase(), known), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_hand_is_understood_and_a_wild_guess_is_not() {
        let near = |name| nearest(name, all().map(|(_, key)| key));
        for (wrong, meant) in [
            ("lisetn", "listen"),
            ("max-ids", "max_ids"),
            ("maxbytes", "max_bytes"),
            ("key", "keys"),
            ("replicas", "replication"),
            ("Topic_Prefix", "topic_prefix"),
        ] {
            assert_eq!(near(wrong), Some(meant), "{wrong}");
        }
        for wild in ["", "port", "timeout", "x"] {
            assert_eq!(near(wild), None, "{wild}");
        }
    }
}
