//! One JSON object, read as far as identity needs it: members in order, values as their text.
//!
//! Values stay raw: numbers keep every digit, and members that are not needed are validated but not
//! built.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::CallbackError;

/// Levels of nesting that are read. Tencent's deepest sample has six.
pub(super) const DEPTH_MAX: usize = 32;

/// One member's value, as its JSON text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a>(&'a str);

/// What a value's text shows at its first byte.
enum Kind {
    Object,
    Array,
    String,
    /// A number, `true` or `false`.
    Scalar,
}

impl<'a> Value<'a> {
    fn kind(self) -> Kind {
        match self.0.as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            _ => Kind::Scalar,
        }
    }

    /// A string's content or a number's digits; `None` for what is neither.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self.kind() {
            Kind::String => string(self.0).ok(),
            Kind::Scalar if self.0 != "true" && self.0 != "false" => Some(Cow::Borrowed(self.0)),
            Kind::Scalar | Kind::Object | Kind::Array => None,
        }
    }

    /// An integer, whether written as number or as string: Tencent's documents disagree.
    pub(super) fn integer(self) -> Option<i64> {
        self.text()?.parse().ok()
    }

    /// The member of an object, or the item of an array, that `step` names.
    fn step(self, step: &str) -> Result<Option<Self>, CallbackError> {
        Ok(match self.kind() {
            Kind::Object => Members::of(self.0)?.get(step),
            Kind::Array => match step.parse::<usize>() {
                Ok(index) => items(self.0)?.get(index).copied(),
                Err(_) => None,
            },
            Kind::String | Kind::Scalar => None,
        })
    }

    /// Writes a form that is equal for equal values: keys sorted, escapes and white space
    /// resolved, every part preceded by its kind and length so that no two values share one.
    pub(super) fn canonical(self, depth: usize, out: &mut impl Sink) -> Result<(), CallbackError> {
        if depth >= DEPTH_MAX {
            return Err(CallbackError::TooDeep);
        }
        match self.kind() {
            Kind::Object => Members::of(self.0)?.canonical(&[], depth, out),
            Kind::Array => {
                let items = items(self.0)?;
                part(b'[', items.len(), "", out);
                items.into_iter().try_for_each(|item| item.canonical(depth + 1, out))
            }
            Kind::String => {
                match string(self.0) {
                    Ok(content) => text_part(b'"', &content, out),
                    // Half a surrogate pair, as cutting text leaves it: valid JSON, though no text.
                    Err(_) => text_part(b'\\', self.0, out),
                }
                Ok(())
            }
            Kind::Scalar => {
                text_part(b'#', self.0, out);
                Ok(())
            }
        }
    }
}

/// Takes the canonical form part by part.
pub(super) trait Sink {
    fn write(&mut self, head: &[u8; HEAD_BYTES], text: &[u8]);
}

/// Bytes before the text of a part: its kind and its length.
pub(super) const HEAD_BYTES: usize = 9;

/// Only checks that there is a canonical form.
pub(super) struct Discard;

impl Sink for Discard {
    fn write(&mut self, _: &[u8; HEAD_BYTES], _: &[u8]) {}
}

/// A part whose length is that of `text`, or for arrays and objects how many items follow.
fn part(kind: u8, len: usize, text: &str, out: &mut impl Sink) {
    let mut head = [kind; HEAD_BYTES];
    head[1..].copy_from_slice(&(len as u64).to_be_bytes());
    out.write(&head, text.as_bytes());
}

fn text_part(kind: u8, text: &str, out: &mut impl Sink) {
    part(kind, text.len(), text, out);
}

/// The content of a string literal.
fn string(literal: &str) -> Result<Cow<'_, str>, CallbackError> {
    let inner = literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default();
    if memchr::memchr(b'\\', inner.as_bytes()).is_some() {
        serde_json::from_str(literal).map(Cow::Owned).map_err(CallbackError::Malformed)
    } else {
        Ok(Cow::Borrowed(inner))
    }
}

fn items(text: &str) -> Result<Vec<Value<'_>>, CallbackError> {
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(CallbackError::Malformed)?;
    Ok(items.into_iter().map(|raw| Value(raw.get())).collect())
}

/// An object's members, sorted by key, no key twice. Members whose value is `null` are kept for
/// the digest but are not found by [`Members::get`]: to the protocol, null is absent.
#[derive(Debug)]
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Members<'a> {
    /// Reads a whole body.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, CallbackError> {
        let text = std::str::from_utf8(body).map_err(|cause| {
            CallbackError::Malformed(serde::de::Error::custom(format_args!("{cause}")))
        })?;
        let members = Self::of(text);
        if matches!(members, Err(CallbackError::Malformed(_)))
            && serde_json::from_str::<&RawValue>(text).is_ok()
        {
            return Err(CallbackError::NotAnObject);
        }
        members
    }

    fn of(text: &'a str) -> Result<Self, CallbackError> {
        let Raw(mut members) = serde_json::from_str(text).map_err(CallbackError::Malformed)?;
        members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(twice) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(CallbackError::DuplicateKey(twice[0].0.chars().take(64).collect()));
        }
        Ok(Self(members))
    }

    /// The value of `key`, if it is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        // Of some twenty keys few have the same length, so that this compares less text than a
        // binary search does.
        let (_, value) = self.0.iter().find(|(name, _)| name.as_ref() == key)?;
        Some(*value).filter(|value| value.0 != "null")
    }

    /// The value at `path`, such as `frames.0.time`: names of members and indexes of items.
    pub(super) fn at(&self, path: &str) -> Result<Option<Value<'a>>, CallbackError> {
        let mut steps = path.split('.');
        let mut value = steps.next().and_then(|name| self.get(name));
        for step in steps {
            let Some(above) = value else { break };
            value = above.step(step)?;
        }
        Ok(value)
    }

    /// `body`, which these members were read from, without those named in `except` and otherwise
    /// byte for byte; `None` when it has none of them.
    pub(super) fn without(&self, body: &[u8], except: &[String]) -> Option<Vec<u8>> {
        if except.is_empty() {
            return None;
        }
        let start = body.as_ptr().addr();
        let is_out = |key: &str| except.iter().any(|name| name == key);
        let mut ends: Vec<(usize, bool)> = self
            .0
            .iter()
            .map(|(key, Value(text))| (text.as_ptr().addr() - start + text.len(), is_out(key)))
            .collect();
        if ends.iter().all(|&(_, out)| !out) {
            return None;
        }
        // Sorted by key until here; now as they stand.
        ends.sort_unstable();
        let mut from = body.iter().position(|&byte| byte == b'{')? + 1;
        let mut text = Vec::with_capacity(body.len());
        text.extend_from_slice(&body[..from]);
        let mut is_first = true;
        for (end, is_out) in ends {
            // From the end of the member before it, so with the comma between them.
            let member = &body[from..end];
            from = end;
            if is_out {
                continue;
            }
            let bare = member.trim_ascii_start().strip_prefix(b",").filter(|_| is_first);
            text.extend_from_slice(bare.unwrap_or(member));
            is_first = false;
        }
        text.extend_from_slice(&body[from..]);
        Some(text)
    }

    /// [`Value::canonical`] of the object without the members in `except`.
    pub(super) fn canonical(
        &self,
        except: &[&str],
        depth: usize,
        out: &mut impl Sink,
    ) -> Result<(), CallbackError> {
        let kept = || self.0.iter().filter(|(key, _)| !except.contains(&key.as_ref()));
        part(b'{', kept().count(), "", out);
        kept().try_for_each(|(key, value)| {
            text_part(b'"', key, out);
            value.canonical(depth + 1, out)
        })
    }
}

/// Members as they stand in the text.
struct Raw<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Raw<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
                /// Most callbacks have about twenty members.
                const USUAL: usize = 24;
                let mut members = Vec::with_capacity(USUAL);
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key, Value(value.get())));
                }
                Ok(Raw(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A key, borrowed unless it has escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
