//! Which events are to be sent, without those that are in their topics already.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::super::message::id_of;
use super::ReplayError;
use super::event::Event;
use crate::event::{EventId, Timestamp};
use crate::kafka;
use crate::kafka::topic_reader::{read_to_end, wait_until_decided};

/// Topics are searched from this long before the events' own times: clocks differ, and two
/// instances can have received the same event at different times.
const SLACK: Duration = Duration::from_hours(1);

/// The events to send to each topic. It is made in a first pass over the events, for a second one that
/// sends them.
#[derive(Debug, Default)]
pub struct Plan {
    topics: BTreeMap<String, Wanted>,
}

/// The events for one topic.
#[derive(Debug)]
struct Wanted {
    /// Whether an event is still to be sent.
    ids: HashMap<EventId, bool>,
    /// The earliest timestamp that one of them can have in its topic.
    oldest: Timestamp,
}

impl Plan {
    /// Adds an event to send.
    pub fn add(&mut self, event: &Event) {
        let fresh = || Wanted { ids: HashMap::new(), oldest: event.earliest };
        let wanted = self.topics.entry(event.topic.clone()).or_insert_with(fresh);
        wanted.ids.insert(event.id, true);
        wanted.oldest = wanted.oldest.min(event.earliest);
    }

    /// For each topic: its name, how many events are to be sent, and how many are skipped.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.topics.iter().map(|(topic, wanted)| {
            let to_send = wanted.ids.values().filter(|to_send| **to_send).count();
            (topic.as_str(), to_send, wanted.ids.len() - to_send)
        })
    }

    /// The ids of all its events.
    #[must_use]
    pub fn ids(&self) -> HashSet<EventId> {
        self.topics.values().flat_map(|wanted| wanted.ids.keys().copied()).collect()
    }

    /// Skips the events that are in their topics already. To be called after [`super::Replay::connect`],
    /// which notes the end of the ledger: so an event that another process publishes at the same time is
    /// found in its topic or, later, in the ledger. Waits for open transactions first: that of a host that
    /// crashed hides what others committed after it.
    ///
    /// # Errors
    /// [`ReplayError::Read`]
    pub fn skip_published(&mut self, kafka: &kafka::Config) -> Result<(), ReplayError> {
        let topics: Vec<&str> = self.topics.keys().map(String::as_str).collect();
        wait_until_decided(kafka, &topics)?;
        for (topic, wanted) in &mut self.topics {
            read_to_end(kafka, topic, wanted.oldest.before(SLACK), |consumed| {
                if let Some(to_send) =
                    id_of(&consumed.headers).and_then(|id| wanted.ids.get_mut(&id))
                {
                    *to_send = false;
                }
                Ok::<_, ReplayError>(())
            })?;
        }
        Ok(())
    }

    /// Skips all events of `topic`; returns how many were to be sent.
    pub fn skip_topic(&mut self, topic: &str) -> usize {
        let dropped = self.topics.remove(topic);
        dropped.map_or(0, |wanted| wanted.ids.values().filter(|to_send| **to_send).count())
    }

    /// Whether `event` is to be sent; it is then counted as sent.
    pub fn take(&mut self, event: &Event) -> bool {
        let wanted = self.topics.get_mut(&event.topic).and_then(|w| w.ids.get_mut(&event.id));
        wanted.is_some_and(std::mem::take)
    }
}
