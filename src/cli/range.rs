//! The options by which several commands select records.

use std::sync::LazyLock;

use crate::event::{EventType, OTHER, Timestamp, type_name};
use clap::Args;

/// Selects records; without options, all of them.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Range {
    /// Only records received at this time or later: 2026-11-24T20:00:00Z, or 2h for two hours ago.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only records received before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Only events of this type, by number or name, such as 1 or push; may be given several times.
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    event_type: Vec<TypeName>,
}

/// The name of an event type, `other` included.
type TypeName = &'static str;

impl Range {
    /// Whether the options select a record of this type and receipt time.
    pub(super) fn contains(&self, received_at: Timestamp, event_type: TypeName) -> bool {
        self.since.is_none_or(|since| received_at >= since)
            && self.until.is_none_or(|until| received_at < until)
            && (self.event_type.is_empty() || self.event_type.contains(&event_type))
    }
}

/// The time of the command: one for all its options and checks, so that `14d` is not more than 14
/// days ago when it is checked.
pub(super) fn now() -> Timestamp {
    static NOW: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
    *NOW
}

pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now().before(ago));
    }
    Timestamp::parse(text).ok_or_else(|| {
        "is neither a time such as 2026-11-24T20:00:00Z nor a duration such as 2h".to_owned()
    })
}

fn parse_type(text: &str) -> Result<TypeName, String> {
    if text == OTHER {
        return Ok(OTHER);
    }
    EventType::parse(text).map(|code| type_name(Some(code))).ok_or_else(|| {
        let names: Vec<&str> = EventType::known().map(|(_, name)| name).chain([OTHER]).collect();
        format!("is no event type; the known ones are {}", names.join(", "))
    })
}
