//! What each event type's fields mean: its identity, its stream, its time (protocol.md 3 and 5).
//!
//! A retry is an equal [`EventId`]: the same natural key and the same content. What belongs to the
//! delivery is not part of the content, except `t` of an event without a time or number of its own.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::CallbackError;
use super::json::{Discard, HEAD_BYTES, Members, Sink, Value};
use crate::event::{EventId, EventType, Timestamp};

/// Goes into every digest; a change of the rules below would change it, and with it every id.
const VERSION: &[u8] = b"livebridge id 1";

/// Members of the delivery, whatever the type.
const DELIVERY: &[&str] = &["sign", "t"];
/// Image moderation also carries the time at which the request was sent.
const DELIVERY_317: &[&str] = &["sendTime", "sign", "t"];
/// Members of the delivery that tell no two events apart even where nothing else does.
const SIGNATURE: &[&str] = &["sign"];

/// Members that date or number an event of a type that this release does not know. Others, such as
/// `sequence`, `create_time` or `end_time`, may belong to what several events are about.
const DATES: [&str; 6] =
    ["data_time", "event_time", "screenshotTime", "seq", "timestamp", "update_time"];
/// Types whose natural key has a number of each event: `file_id`, `seq`.
const NUMBERED: [EventType; 2] = [EventType(100), EventType(315)];

const EPOCH: Timestamp = Timestamp::from_millis(0);
/// The end of the year 9999. What lies beyond is no time, but a number in another unit than the
/// documents say.
const LATEST: Timestamp = Timestamp::from_millis(253_402_300_799_999);

/// How a type's time field counts.
#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    /// Seconds, and another field with the microseconds after them.
    SecondsAnd(&'static str),
    Millis,
    /// Seconds of a signature's expiry, which is [`SIGNED_AHEAD`] after the signing.
    Expiry,
}
use Unit::{Expiry, Millis, Seconds, SecondsAnd};

/// `t` is the time of signing and so much (protocol.md section 2).
const SIGNED_AHEAD: Duration = Duration::from_mins(10);

/// What livebridge knows of an event type, as it is written down.
struct Shape {
    /// Fields of the natural key. One name of several joined by `|` is enough; a name that ends in
    /// `?` may be missing. If another is missing, the content alone is the identity.
    natural: &'static [&'static str],
    /// Where the event's time stands, best first. `text>name` is the member of an object that
    /// stands as JSON text in a string.
    time: &'static [(&'static str, Unit)],
}

/// The table of protocol.md section 5, with the time fields of section 3.
#[rustfmt::skip]
const SHAPES: [(&[i64], Shape); 15] = [
    (&[0, 1], Shape {
        natural: &["appid?", "app", "appname", "stream_id", "sequence", "event_time|update_time"],
        time: &[("event_time", Seconds), ("update_time", Seconds)],
    }),
    (&[100], Shape {
        natural: &["appid?", "app?", "appname?", "stream_id", "file_id"],
        time: &[("end_time", SecondsAnd("end_time_usec")), ("start_time", SecondsAnd("start_time_usec"))],
    }),
    (&[200], Shape {
        natural: &["app?", "appname?", "stream_id", "create_time", "pic_full_url|pic_url", "task_id?"],
        time: &[("create_time", Seconds)],
    }),
    (&[317], Shape {
        natural: &["appid?", "app?", "appname?", "streamId", "screenshotTime", "img", "type?", "label?", "subLabel?"],
        time: &[("screenshotTime", Seconds), ("sendTime", Seconds)],
    }),
    (&[314], Shape {
        natural: &["appid?", "task_id", "callback_event", "event_time?", "stream_id?", "msg"],
        time: &[("event_time", Seconds), ("msg>task_exit_time", Millis), ("msg>task_start_time", Millis)],
    }),
    (&[315], Shape {
        natural: &["appid?", "stream_id", "task_id", "seq", "request_id?"],
        time: &[("data.asr_tmp_full_results.0.create_time", Seconds), ("t", Expiry)],
    }),
    (&[321], Shape {
        natural: &["appid?", "domain", "path", "stream_id", "sequence", "data_time"],
        time: &[("data_time", Millis), ("abnormal_event.0.detail.0.occur_time", Millis)],
    }),
    (&[328], Shape {
        natural: &["appid?", "stream_id", "event_name", "event_time", "event_msg"],
        time: &[("event_time", Millis)],
    }),
    (&[332], Shape {
        natural: &["appid?", "domain", "appname", "stream_id", "session_id", "seq", "record_event", "event_time"],
        time: &[("event_time", Seconds)],
    }),
    (&[341], Shape {
        natural: &["appid?", "domain", "path", "stream_id", "session_id", "timestamp", "file_format",
                   "exception.type", "exception_level"],
        time: &[("timestamp", Seconds)],
    }),
    (&[343], Shape {
        natural: &["appid?", "domain", "appname", "stream_id", "event_time", "class",
                   "transcode_template_id", "watermark_template_id", "score"],
        time: &[("event_time", Seconds)],
    }),
    (&[344, 345], Shape {
        natural: &["appid?", "domain", "appname", "stream_id", "event_time", "class",
                   "transcode_template_id", "frames"],
        time: &[("event_time", Seconds), ("frames.0.time", Millis)],
    }),
    (&[338, 347], Shape {
        natural: &["appid?", "task_id", "stream_id", "data"],
        time: &[("data.subtitle_tmp_res.0.end_unix_time", Seconds), ("t", Expiry)],
    }),
    (&[348], Shape {
        natural: &["appid?", "domain", "path", "stream_id", "begin_time", "end_time"],
        time: &[("end_time", Seconds), ("begin_time", Seconds)],
    }),
    (&[349], Shape {
        natural: &["appid?", "domain", "path", "stream_id", "items"],
        time: &[("items.0.end_time", Seconds), ("items.0.begin_time", Seconds)],
    }),
];

/// A [`Shape`] whose names are split.
struct Fields {
    natural: Vec<Natural>,
    time: Vec<(&'static str, Place, Unit)>,
}

/// One field of the natural key: the first of these places that has a value.
struct Natural {
    places: Vec<Vec<&'static str>>,
    is_optional: bool,
}

/// A path in the callback, and a member of the object whose text is there.
struct Place {
    path: Vec<&'static str>,
    inner: Option<&'static str>,
}

impl Shape {
    fn split(&self) -> Fields {
        let path = |name: &'static str| name.split('.').collect::<Vec<_>>();
        let natural = |field: &&'static str| Natural {
            places: field.trim_end_matches('?').split('|').map(path).collect(),
            is_optional: field.ends_with('?'),
        };
        let place = |name: &'static str| match name.split_once('>') {
            Some((outer, inner)) => Place { path: path(outer), inner: Some(inner) },
            None => Place { path: path(name), inner: None },
        };
        Fields {
            natural: self.natural.iter().map(natural).collect(),
            time: self.time.iter().map(|&(name, unit)| (name, place(name), unit)).collect(),
        }
    }
}

fn fields(event_type: EventType) -> Option<&'static Fields> {
    static FIELDS: LazyLock<Vec<Fields>> =
        LazyLock::new(|| SHAPES.iter().map(|(_, shape)| shape.split()).collect());
    let at = SHAPES.iter().position(|(types, _)| types.contains(&event_type.0))?;
    FIELDS.get(at)
}

/// What a record needs to know of a callback.
pub(super) struct Facts<'a> {
    pub(super) id: EventId,
    pub(super) stream: Option<Cow<'a, str>>,
    pub(super) task: Option<Cow<'a, str>>,
    pub(super) occurred_at: Option<Timestamp>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(
        members: &Members<'a>,
        event_type: Option<EventType>,
    ) -> Result<Self, CallbackError> {
        let fields = event_type.and_then(fields);
        let delivery = if event_type == Some(EventType(317)) { DELIVERY_317 } else { DELIVERY };
        // Not part of the identity, but no object may have a key twice.
        for value in delivery.iter().filter_map(|name| members.get(name)) {
            value.canonical(1, &mut Discard)?;
        }
        let (mut natural, mut time) = (None, None);
        if let Some(fields) = fields {
            natural = natural_key(members, fields, Digest::new(event_type))?;
            time = occurred_at(members, fields)?;
        }
        let is_dated = match time {
            Some((name, _)) => !delivery.contains(&name),
            None if fields.is_some() => false,
            None => DATES.iter().any(|name| {
                members.get(name).and_then(Value::integer).is_some_and(|number| number > 0)
            }),
        };
        let is_numbered =
            natural.is_some() && event_type.is_some_and(|code| NUMBERED.contains(&code));
        // Without a time or number of its own, only `t` may tell an event from the next one. Then a
        // retry that is signed anew is published again: a repeat is cheaper than a loss.
        let excluded = if is_dated || is_numbered { delivery } else { SIGNATURE };
        let mut digest = Digest::new(event_type);
        members.canonical(excluded, 0, &mut digest)?;
        let (content, spare) = digest.finish();
        // Without a natural key its half of the id is more of the content's digest.
        let natural = natural.unwrap_or(spare);
        let text =
            |name: &str| members.get(name).and_then(Value::text).filter(|text| !text.is_empty());
        Ok(Self {
            id: EventId { natural, content },
            stream: text("stream_id").or_else(|| text("streamId")),
            task: text("task_id"),
            occurred_at: time.map(|(_, time)| time),
        })
    }
}

/// The digest of the natural key's fields; `None` when one is missing.
fn natural_key(
    members: &Members<'_>,
    fields: &Fields,
    mut digest: Digest,
) -> Result<Option<u64>, CallbackError> {
    for Natural { places, is_optional } in &fields.natural {
        let mut value = None;
        for place in places {
            value = members.at(place)?;
            if value.is_some() {
                break;
            }
        }
        match value {
            Some(value) => value.canonical(0, &mut digest)?,
            None if *is_optional => digest.append(b"-"),
            None => return Ok(None),
        }
    }
    Ok(Some(digest.finish().0))
}

/// The event's time, and the field that it was read from.
fn occurred_at(
    members: &Members<'_>,
    fields: &Fields,
) -> Result<Option<(&'static str, Timestamp)>, CallbackError> {
    for (name, place, unit) in &fields.time {
        let Some(number) = number(members, place)?.filter(|&number| number > 0) else { continue };
        let time = match *unit {
            Seconds => Timestamp::from_secs(number),
            SecondsAnd(part) => {
                Timestamp::from_secs(number).map(|time| time.after(micros(members, part)))
            }
            Millis => Some(Timestamp::from_millis(number)),
            Expiry => Timestamp::from_secs(number).map(|expiry| expiry.before(SIGNED_AHEAD)),
        };
        let time = time.filter(|&time| (EPOCH..=LATEST).contains(&time));
        if let Some(time) = time {
            return Ok(Some((*name, time)));
        }
    }
    Ok(None)
}

/// The integer at `place`. A text that is to be an object may be anything: what is none holds no
/// integer.
fn number(members: &Members<'_>, place: &Place) -> Result<Option<i64>, CallbackError> {
    let value = members.at(&place.path)?;
    let Some(name) = place.inner else { return Ok(value.and_then(Value::integer)) };
    let text = value.and_then(Value::text);
    let inner = text.as_deref().and_then(|text| Members::parse(text.as_bytes()).ok());
    Ok(inner.and_then(|inner| inner.get(name)?.integer()))
}

/// What is below the second, in the field `name`; none where it is no part of a second.
fn micros(members: &Members<'_>, name: &str) -> Duration {
    let micros = members.get(name).and_then(Value::integer);
    let micros = micros.and_then(|micros| u64::try_from(micros).ok());
    Duration::from_micros(micros.filter(|&micros| micros < 1_000_000).unwrap_or(0))
}

/// SHA-256 over the version, the type and what is written to it.
struct Digest {
    hasher: Sha256,
    /// What is not hashed yet: many blocks at once take less time than one after the other, and a
    /// callback has up to a hundred small parts.
    gathered: [u8; Self::GATHERED_MAX],
    len: usize,
}

impl Digest {
    const GATHERED_MAX: usize = 1024;

    fn new(event_type: Option<EventType>) -> Self {
        let mut digest = Self { hasher: Sha256::new(), gathered: [0; Self::GATHERED_MAX], len: 0 };
        digest.append(VERSION);
        match event_type {
            Some(EventType(code)) => digest.append(&code.to_be_bytes()),
            None => digest.append(b"none"),
        }
        digest
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(room) = self.gathered.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        } else {
            self.hasher.update(&self.gathered[..self.len]);
            self.len = 0;
            self.hasher.update(bytes);
        }
    }

    /// Two halves of the hash.
    fn finish(mut self) -> (u64, u64) {
        self.hasher.update(&self.gathered[..self.len]);
        let hash: [u8; 32] = self.hasher.finalize().into();
        let half = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&hash[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        (half(0), half(8))
    }
}

impl Sink for Digest {
    fn write(&mut self, head: &[u8; HEAD_BYTES], text: &[u8]) {
        // Of a known length, so that no function is called for it.
        match self.gathered.get_mut(self.len..self.len + HEAD_BYTES) {
            Some(room) => {
                room.copy_from_slice(head);
                self.len += HEAD_BYTES;
            }
            None => self.append(head),
        }
        self.append(text);
    }
}
