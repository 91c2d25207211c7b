//! The topic of each event type.

use std::collections::BTreeMap;

use crate::event::{EventType, OTHER};

/// The topics of one livebridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    by_type: BTreeMap<EventType, String>,
    other: String,
    dead_letter: String,
    ledger: String,
}

impl Topics {
    /// `<prefix>.<name of the type>`, except for the types that `overrides` names by code or name.
    ///
    /// # Errors
    /// What is wrong with a name, and what to do.
    pub fn new(prefix: &str, overrides: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut topics = Self {
            by_type: EventType::known()
                .map(|(event_type, name)| (event_type, format!("{prefix}.{name}")))
                .collect(),
            other: format!("{prefix}.{OTHER}"),
            dead_letter: format!("{prefix}.dead-letter"),
            ledger: format!("{prefix}.ledger"),
        };
        for (event_type, topic) in overrides {
            if event_type == OTHER {
                topics.other.clone_from(topic);
            } else {
                let code = EventType::parse(event_type).ok_or_else(|| {
                    format!(
                        "{event_type:?} is no event type; use a number, a name such as \"push\", or \
                         \"other\""
                    )
                })?;
                topics.by_type.insert(code, topic.clone());
            }
        }
        let mut names = topics.all().into_iter().chain([topics.ledger()]);
        if let Some(name) = names.find(|name| !is_legal(name)) {
            return Err(format!(
                "topic name {name:?} is not 1 to 249 letters, digits, '.', '_' or '-'"
            ));
        }
        drop(names);
        if topics.all().contains(&topics.ledger()) {
            return Err(format!(
                "{:?} is the topic of the ledger; kafka.topics must name another one for events",
                topics.ledger
            ));
        }
        Ok(topics)
    }

    /// The topic of an event type; unknown types, and events without one, share a topic.
    #[must_use]
    pub fn of(&self, event_type: Option<EventType>) -> &str {
        event_type.and_then(|code| self.by_type.get(&code)).unwrap_or(&self.other)
    }

    /// The topic of records that Kafka rejects in their own topic.
    #[must_use]
    pub fn dead_letter(&self) -> &str {
        &self.dead_letter
    }

    /// The topic of the ledger.
    #[must_use]
    pub fn ledger(&self) -> &str {
        &self.ledger
    }

    /// Whether events, and only events, are published to `topic`.
    #[must_use]
    pub fn is_of_events(&self, topic: &str) -> bool {
        topic != self.dead_letter && self.all().contains(&topic)
    }

    /// Every topic of events and dead letters, each once.
    #[must_use]
    pub fn all(&self) -> Vec<&str> {
        let names = self.by_type.values().chain([&self.other, &self.dead_letter]);
        let mut names: Vec<&str> = names.map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Kafka's rule for topic names.
fn is_legal(name: &str) -> bool {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name.bytes().all(legal) && name != "." && name != ".."
}
