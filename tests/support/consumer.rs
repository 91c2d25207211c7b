//! An independent consumer without livebridge's code: `consume.py` with another client library.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{str, thread};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::tools::{self, Unavailable};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/consume.py");
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// Which messages of transactions a consumer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    /// Also those of aborted and open transactions.
    Uncommitted,
}

/// A message as read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Message {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<(String, Option<Bytes>)>,
}

impl Message {
    pub fn key(&self) -> Option<&str> {
        self.key.as_ref().map(Bytes::text)
    }

    /// The value's bytes; empty when there is no value.
    pub fn value(&self) -> &[u8] {
        self.value.as_ref().map_or(&[], |value| &value.0)
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        value.as_ref().map(Bytes::text)
    }

    /// The headers' names, in order.
    pub fn headers(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().map(|(name, _)| name.as_str())
    }
}

/// Reads topics from their beginning to their current end, in order within each partition.
///
/// A name that ends in `*` selects every topic with that prefix.
///
/// # Panics
/// When reading fails: a missing topic or unresponsive brokers.
pub fn read(
    bootstrap: &str,
    topics: &[&str],
    isolation: Isolation,
) -> Result<Vec<Message>, Unavailable> {
    let mut messages = Vec::new();
    each_line(bootstrap, topics, isolation, &[], |line| messages.push(parse(line)))?;
    Ok(messages)
}

/// As [`read`], but only the named fields of each message: fast enough for a million messages.
///
/// A field is `topic`, `partition`, `offset`, `timestamp`, `key`, `value`, or a header's name.
pub fn read_fields<const N: usize>(
    bootstrap: &str,
    topics: &[&str],
    isolation: Isolation,
    fields: [&str; N],
) -> Result<Vec<[String; N]>, Unavailable> {
    let mut messages = Vec::new();
    each_line(bootstrap, topics, isolation, &fields, |line| {
        let values: Vec<Field> = parse(line);
        let values: Vec<_> = values.into_iter().map(|field| field.0).collect();
        messages.push(values.try_into().expect("as many values as fields"));
    })?;
    Ok(messages)
}

/// Each of `bodies` is among the `values` of messages once, and nothing else is.
pub fn assert_each_once<'v>(values: impl IntoIterator<Item = &'v [u8]>, bodies: &[String]) {
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let missing = bodies.iter().filter(|body| !counts.contains_key(body.as_bytes())).count();
    let twice = counts.values().filter(|count| **count > 1).count();
    let all: usize = counts.values().sum();
    assert_eq!((missing, twice, all), (0, 0, bodies.len()), "missing, twice, all");
}

fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> T {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))
}

fn each_line(
    bootstrap: &str,
    topics: &[&str],
    isolation: Isolation,
    fields: &[&str],
    mut line: impl FnMut(&str),
) -> Result<(), Unavailable> {
    let isolation = match isolation {
        Isolation::Committed => "read_committed",
        Isolation::Uncommitted => "read_uncommitted",
    };
    let mut command = Command::new(python()?);
    command.args([SCRIPT, "--bootstrap", bootstrap, "--isolation", isolation]);
    if !fields.is_empty() {
        command.args(["--fields", &fields.join(",")]);
    }
    command.args(topics).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reader = command.spawn().expect("a prepared Python environment");
    let mut stderr = reader.stderr.take().expect("a piped output");
    let complaints = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut stdout = BufReader::new(reader.stdout.take().expect("a piped output"));
    let mut buffer = String::new();
    while stdout.read_line(&mut buffer).expect("a readable pipe") > 0 {
        line(buffer.trim_end());
        buffer.clear();
    }
    let status = reader.wait().expect("a child that is not yet reaped");
    let complaints = complaints.join().expect("no panic").expect("a readable pipe");
    assert!(status.success(), "reading {topics:?} failed: {}", tools::last_lines(&complaints));
    Ok(())
}

/// A Python virtual environment with the client library.
pub fn python() -> Result<&'static Path, Unavailable> {
    static PYTHON: OnceLock<Result<PathBuf, Unavailable>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let made = tools::prepared("python", REQUIREMENTS, |directory| {
            tools::run(Command::new("python3").args(["-m", "venv", "."]).current_dir(directory))?;
            let mut pip = Command::new(directory.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet"]);
            pip.args(REQUIREMENTS.lines().filter(|line| !line.starts_with('#')));
            tools::run(&mut pip).map(drop)
        })?;
        Ok(made.join("bin/python"))
    });
    python.as_deref().map_err(Clone::clone)
}

/// Bytes encoded in JSON as one character each, and their text if they are UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn text(&self) -> &str {
        str::from_utf8(&self.0).expect("keys and headers that are text")
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_ascii() {
            return Ok(Self(text.into_bytes()));
        }
        let bytes: Result<Vec<u8>, _> = text.chars().map(|c| u8::try_from(u32::from(c))).collect();
        bytes.map(Self).map_err(D::Error::custom)
    }
}

/// One field as text; empty when the message has none.
struct Field(String);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Number(i64),
            Text(Bytes),
            None,
        }
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::Number(number) => number.to_string(),
            Value::Text(bytes) => bytes.text().to_owned(),
            Value::None => String::new(),
        }))
    }
}
