//! The fields of each event type: its identity, its stream, its time (protocol.md 3 and 5).
//!
//! A retry has an equal [`EventId`]: the same natural key and the same content. Members of the
//! delivery are not part of the content, except `t` of an event without a time or number of its
//! own.

use std::borrow::Cow;
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
/// Members that are never part of the identity.
const SIGNATURE: &[&str] = &["sign"];

/// Members that date or number an event of an unknown type. Others, such as `sequence`,
/// `create_time` or `end_time`, may be common to several events.
const DATES: [&str; 6] =
    ["data_time", "event_time", "screenshotTime", "seq", "timestamp", "update_time"];

const EPOCH: Timestamp = Timestamp::from_millis(0);
/// The end of the year 9999. A later time is a number in another unit than documented.
const LATEST: Timestamp = Timestamp::from_millis(253_402_300_799_999);

/// `t` is this long after the time of signing (protocol.md section 2).
const SIGNED_AHEAD: Duration = Duration::from_mins(10);

/// The fields of one callback that identify and date its event.
struct Fields<'m, 'a> {
    members: &'m Members<'a>,
    /// The digest of the natural key; `None` when a required field is missing.
    natural: Option<Digest>,
    /// Whether the natural key has a number that no other event of the stream has.
    is_numbered: bool,
    /// The event's time, and the field that it was read from.
    time: Option<(&'static str, Timestamp)>,
}

impl Fields<'_, '_> {
    /// Reads the natural key and the time of a type that this version knows: the table of protocol.md
    /// section 5, with the time fields of section 3, the best first. False for another type.
    #[rustfmt::skip]
    fn read(&mut self, event_type: EventType) -> Result<bool, CallbackError> {
        match event_type.0 {
            // Push interrupted, push started.
            0 | 1 => self
                .optional(&["appid"])?.required(&["app", "appname", "stream_id", "sequence"])?
                .either("event_time", "update_time")?
                .seconds("event_time")?.seconds("update_time")?,
            // Recording file ready.
            100 => self
                .optional(&["appid", "app", "appname"])?.required(&["stream_id"])?.number("file_id")?
                .seconds_and_micros("end_time", "end_time_usec")?
                .seconds_and_micros("start_time", "start_time_usec")?,
            // Screenshot taken.
            200 => self
                .optional(&["app", "appname"])?.required(&["stream_id", "create_time"])?
                .either("pic_full_url", "pic_url")?.optional(&["task_id"])?
                .seconds("create_time")?,
            // Relay.
            314 => self
                .optional(&["appid"])?.required(&["task_id", "callback_event"])?
                .optional(&["event_time", "stream_id"])?.required(&["msg"])?
                .seconds("event_time")?
                .millis_in_text("msg", "task_exit_time").millis_in_text("msg", "task_start_time"),
            // Audio moderation.
            315 => self
                .optional(&["appid"])?.required(&["stream_id", "task_id"])?.number("seq")?
                .optional(&["request_id"])?
                .seconds("data.asr_tmp_full_results.0.create_time")?.expiry("t")?,
            // Image moderation.
            317 => self
                .optional(&["appid", "app", "appname"])?.required(&["streamId", "screenshotTime", "img"])?
                .optional(&["type", "label", "subLabel"])?
                .seconds("screenshotTime")?.seconds("sendTime")?,
            // Push exception.
            321 => self
                .optional(&["appid"])?.required(&["domain", "path", "stream_id", "sequence", "data_time"])?
                .millis("data_time")?.millis("abnormal_event.0.detail.0.occur_time")?,
            // Monitor.
            328 => self
                .optional(&["appid"])?.required(&["stream_id", "event_name", "event_time", "event_msg"])?
                .millis("event_time")?,
            // Recording status.
            332 => self
                .optional(&["appid"])?.required(&["domain", "appname", "stream_id", "session_id"])?
                .required(&["seq", "record_event", "event_time"])?
                .seconds("event_time")?,
            // Subtitles, smart erase.
            338 | 347 => self
                .optional(&["appid"])?.required(&["task_id", "stream_id", "data"])?
                .seconds("data.subtitle_tmp_res.0.end_unix_time")?.expiry("t")?,
            // Recording exception.
            341 => self
                .optional(&["appid"])?.required(&["domain", "path", "stream_id", "session_id"])?
                .required(&["timestamp", "file_format"])?
                .required_at("exception.type")?.required(&["exception_level"])?
                .seconds("timestamp")?,
            // Quality control.
            343 => self
                .optional(&["appid"])?.required(&["domain", "appname", "stream_id", "event_time", "class"])?
                .required(&["transcode_template_id", "watermark_template_id", "score"])?
                .seconds("event_time")?,
            // Quality assessment: threshold, average.
            344 | 345 => self
                .optional(&["appid"])?.required(&["domain", "appname", "stream_id", "event_time", "class"])?
                .required(&["transcode_template_id", "frames"])?
                .seconds("event_time")?.millis("frames.0.time")?,
            // Summary.
            348 => self
                .optional(&["appid"])?.required(&["domain", "path", "stream_id", "begin_time", "end_time"])?
                .seconds("end_time")?.seconds("begin_time")?,
            // Highlights.
            349 => self
                .optional(&["appid"])?.required(&["domain", "path", "stream_id", "items"])?
                .seconds("items.0.end_time")?.seconds("items.0.begin_time")?,
            _ => return Ok(false),
        };
        Ok(true)
    }

    /// Fields of the natural key; without one of them, the content alone is the identity.
    fn required(&mut self, names: &[&str]) -> Result<&mut Self, CallbackError> {
        for name in names {
            self.add(self.members.get(name))?;
        }
        Ok(self)
    }

    /// A required field that is a member of another one.
    fn required_at(&mut self, path: &str) -> Result<&mut Self, CallbackError> {
        self.add(self.members.at(path)?)?;
        Ok(self)
    }

    fn add(&mut self, value: Option<Value<'_>>) -> Result<(), CallbackError> {
        match (&mut self.natural, value) {
            (Some(digest), Some(value)) => value.canonical(0, digest)?,
            _ => self.natural = None,
        }
        Ok(())
    }

    /// Fields of the natural key that may be missing.
    fn optional(&mut self, names: &[&str]) -> Result<&mut Self, CallbackError> {
        let Some(digest) = &mut self.natural else { return Ok(self) };
        for name in names {
            match self.members.get(name) {
                Some(value) => value.canonical(0, digest)?,
                None => digest.append(b"-"),
            }
        }
        Ok(self)
    }

    /// A required field that has two names.
    fn either(&mut self, name: &str, other: &str) -> Result<&mut Self, CallbackError> {
        self.add(self.members.get(name).or_else(|| self.members.get(other)))?;
        Ok(self)
    }

    /// A required field that numbers the events of a stream.
    fn number(&mut self, name: &str) -> Result<&mut Self, CallbackError> {
        self.is_numbered = true;
        self.required(&[name])
    }

    /// A time in seconds.
    fn seconds(&mut self, path: &'static str) -> Result<&mut Self, CallbackError> {
        self.time(path, Timestamp::from_secs)
    }

    /// A time in seconds, and the microseconds after them.
    fn seconds_and_micros(
        &mut self,
        name: &'static str,
        micros: &str,
    ) -> Result<&mut Self, CallbackError> {
        let members = self.members;
        self.time(name, |seconds| {
            let micros = members.get(micros).and_then(Value::integer);
            let micros = micros.and_then(|micros| u64::try_from(micros).ok());
            let micros = micros.filter(|&micros| micros < 1_000_000).unwrap_or(0);
            Some(Timestamp::from_secs(seconds)?.after(Duration::from_micros(micros)))
        })
    }

    /// A time in milliseconds.
    fn millis(&mut self, path: &'static str) -> Result<&mut Self, CallbackError> {
        self.time(path, |millis| Some(Timestamp::from_millis(millis)))
    }

    /// A time in milliseconds: a member of the object that is the text of the field `outer`. Text
    /// that is no object has none.
    fn millis_in_text(&mut self, outer: &'static str, name: &str) -> &mut Self {
        let text = self.members.get(outer).filter(|_| self.time.is_none()).and_then(Value::text);
        let inner = text.as_deref().and_then(|text| Members::parse(text.as_bytes()).ok());
        let millis = inner.and_then(|inner| inner.get(name)?.integer());
        self.set_time(outer, millis, |millis| Some(Timestamp::from_millis(millis)));
        self
    }

    /// The expiry of a signature, in seconds: it is [`SIGNED_AHEAD`] after the signing.
    fn expiry(&mut self, name: &'static str) -> Result<&mut Self, CallbackError> {
        self.time(name, |expiry| Some(Timestamp::from_secs(expiry)?.before(SIGNED_AHEAD)))
    }

    fn time(
        &mut self,
        path: &'static str,
        from: impl FnOnce(i64) -> Option<Timestamp>,
    ) -> Result<&mut Self, CallbackError> {
        if self.time.is_none() {
            let number = self.members.at(path)?.and_then(Value::integer);
            self.set_time(path, number, from);
        }
        Ok(self)
    }

    /// Sets the time unless an earlier field has one.
    fn set_time(
        &mut self,
        path: &'static str,
        number: Option<i64>,
        from: impl FnOnce(i64) -> Option<Timestamp>,
    ) {
        let time = number.filter(|&number| number > 0).and_then(from);
        let time = time.filter(|time| (EPOCH..=LATEST).contains(time));
        self.time = self.time.or(time.map(|time| (path, time)));
    }
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
        let delivery = if event_type == Some(EventType(317)) { DELIVERY_317 } else { DELIVERY };
        // Not part of the identity, but no object may have a key twice.
        for value in delivery.iter().filter_map(|name| members.get(name)) {
            value.canonical(1, &mut Discard)?;
        }
        let natural = Some(Digest::new(event_type));
        let mut fields = Fields { members, natural, is_numbered: false, time: None };
        let is_known = match event_type {
            Some(event_type) => fields.read(event_type)?,
            None => false,
        };
        let Fields { natural, is_numbered, time, .. } = fields;
        let natural = natural.filter(|_| is_known).map(|digest| digest.finish().0);
        let is_numbered = natural.is_some() && is_numbered;
        let is_dated = match time {
            Some((name, _)) => !delivery.contains(&name),
            None if is_known => false,
            None => DATES.iter().any(|name| {
                members.get(name).and_then(Value::integer).is_some_and(|number| number > 0)
            }),
        };
        // Only `t` may distinguish events without a time or number of their own. A retry with a new
        // signature is then published again: a repeat is better than a loss.
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

/// SHA-256 over the version, the type and the written bytes.
struct Digest {
    hasher: Sha256,
    /// Bytes that are not hashed yet: many blocks at once take less time than single ones, and a
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
