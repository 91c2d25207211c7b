//! The options by which several commands select records.

use std::sync::LazyLock;

use crate::event::{EventType, OTHER, Timestamp, type_name};
use clap::Args;

/// Selects records; without options, all of them.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Range {
    /// Only records received at this time or later: 2026-11-24T20:00:00+08:00,
    /// 2026-11-24T12:00:00Z, or 2h for two hours ago.
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
    if let Some((local, east)) = split_zone(text)
        && let Some(local) = Timestamp::parse(&format!("{local}Z"))
    {
        return Ok(Timestamp::from_millis(local.as_millis() - east * 60_000));
    }
    Err(match Timestamp::parse(text) {
        Some(_) => format!("has no time zone: write {text}+08:00 for China, or {text}Z for UTC"),
        None => {
            "is neither a time such as 2026-11-24T20:00:00+08:00 or 2026-11-24T12:00:00Z nor a \
                 duration such as 2h"
                .to_owned()
        }
    })
}

/// The local time in `text`, and how many minutes it is ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return Some((local, 0));
    }
    let (local, zone) = text.split_at_checked(text.len().checked_sub("+08:00".len())?)?;
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let number = |text: &str| text.parse::<i64>().ok().filter(|_| text.len() == 2);
    let east = number(hours).filter(|hours| *hours < 24)? * 60
        + number(minutes).filter(|minutes| *minutes < 60)?;
    match zone.as_bytes()[0] {
        b'+' => Some((local, east)),
        b'-' => Some((local, -east)),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_zone_or_are_rejected() {
        let utc = Timestamp::parse("2026-11-24T12:00:00Z");
        for text in [
            "2026-11-24T12:00:00Z", "2026-11-24T20:00:00+08:00", "2026-11-24 20:00:00.000+08:00",
            "2026-11-24T06:30:00-05:30",
        ] {
            assert_eq!(parse_time(text).ok(), utc, "{text}");
        }
        let problem = parse_time("2026-11-24 20:00:00").unwrap_err();
        assert!(problem.contains(" 20:00:00+08:00 "), "{problem}");
        assert!(problem.contains(" 20:00:00Z "), "{problem}");
        for text in ["2026-11-24T20:00:00+8:00", "2026-11-24T20:00:00+08:60", "2026-11-24", "北京"]
        {
            assert!(parse_time(text).unwrap_err().contains("nor a duration"), "{text}");
        }
    }
}
