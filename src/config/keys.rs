//! Every key of the configuration, and which of them a wrong one was meant to be.

use toml::{Table, Value};

/// How the text of an environment variable is read.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// Parts joined by commas.
    List,
    Number,
    Flag,
}

/// Every key but those in the two [`MAPS`].
pub(super) const KEYS: [(&str, &str, Kind); 35] = [
    ("http", "listen", Kind::Text),
    ("http", "path", Kind::Text),
    ("http", "max_body", Kind::Text),
    ("http", "max_connections", Kind::Number),
    ("http", "max_connections_per_address", Kind::Number),
    ("http", "keep_alive", Kind::Text),
    ("http", "deadline", Kind::Text),
    ("http", "drain", Kind::Text),
    ("tls", "certificate", Kind::Text),
    ("tls", "private_key", Kind::Text),
    ("access", "allow", Kind::List),
    ("access", "trusted_proxies", Kind::List),
    ("access", "proxy_protocol", Kind::Flag),
    ("access", "secret", Kind::Text),
    ("admin", "listen", Kind::Text),
    ("admin", "token", Kind::Text),
    ("callback", "keys", Kind::List),
    ("callback", "keys_file", Kind::Text),
    ("callback", "expiry_leeway", Kind::Text),
    ("callback", "unsigned", Kind::List),
    ("callback", "omit", Kind::List),
    ("wal", "dir", Kind::Text),
    ("wal", "max_bytes", Kind::Text),
    ("wal", "min_free_bytes", Kind::Text),
    ("kafka", "brokers", Kind::Text),
    ("kafka", "instance", Kind::Text),
    ("kafka", "topic_prefix", Kind::Text),
    ("kafka", "delivery", Kind::Text),
    ("kafka", "create_topics", Kind::Flag),
    ("kafka", "partitions", Kind::Number),
    ("kafka", "replication", Kind::Number),
    ("dedup", "window", Kind::Text),
    ("dedup", "max_ids", Kind::Number),
    ("log", "level", Kind::Text),
    ("log", "format", Kind::Text),
];

/// The sections, in the order in which they are written.
pub(super) const SECTIONS: [&str; 9] =
    ["http", "tls", "access", "admin", "callback", "wal", "kafka", "dedup", "log"];

/// The tables of `kafka` whose keys are not ours.
pub(super) const MAPS: [&str; 2] = ["client", "topics"];

/// The keys of a section.
pub(super) fn of(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(move |(s, ..)| *s == section).map(|(_, key, _)| *key)
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
        if !SECTIONS.contains(&&**section) {
            let problem = unknown_section(section);
            return Some(Unknown { path: vec![section.clone()], problem });
        }
        // Anything but a table is a wrong value, not an unknown key.
        let Value::Table(inner) = value else { return None };
        let known = |key: &str| {
            of(section).any(|known| known == key) || (section == "kafka" && MAPS.contains(&key))
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
    if let Some((section, ..)) = KEYS.iter().find(|(_, key, _)| *key == name) {
        return format!("{name} stands in no section; did you mean {name} in [{section}]?");
    }
    match nearest(name, SECTIONS.into_iter()) {
        Some(meant) => format!("there is no section [{name}]; did you mean [{meant}]?"),
        None => format!("there is no section [{name}]; there are {}", SECTIONS.join(", ")),
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
    let elsewhere = || KEYS.iter().find(|(_, k, _)| *k == key);
    if let Some(meant) = nearest(key, of(section).chain(maps)) {
        format!("[{section}] has no key {key}; did you mean {}?", spell("", meant))
    } else if let Some((other, meant, _)) = elsewhere() {
        format!("[{section}] has no key {key}; did you mean {}?", spell(other, meant))
    } else {
        let keys: Vec<&str> = of(section).collect();
        format!("[{section}] has no key {key}; it has {}", keys.join(", "))
    }
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
        let near = |name| nearest(name, KEYS.iter().map(|(_, key, _)| *key));
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

    #[test]
    fn keys_stand_section_by_section_in_their_order() {
        let mut sections: Vec<&str> = KEYS.iter().map(|(section, ..)| *section).collect();
        sections.dedup();
        assert_eq!(sections, SECTIONS);
    }
}
