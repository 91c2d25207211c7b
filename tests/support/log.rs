//! Helpers for the tests of the log: records to append, opening a log, and killing one.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use livebridge::event::{EventId, EventType, Timestamp};
use livebridge::record::{Entry, Lsn, Record};
use livebridge::wal::{self, AppendError, Appender, Log, Next, OpenError, Reader, StoreError};
use proptest::test_runner::Config as ProptestConfig;

/// A record with the unique `number` and a body of `body_len` bytes of text.
pub(crate) fn record(number: u64, body_len: usize) -> Record {
    let mut body = format!("{{\"number\":{number}}}").into_bytes();
    let len = body_len.max(body.len());
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while body.len() < len {
        // Xorshift: text without runs of equal bytes, which could hide errors.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend_from_slice(format!("{state:020}").repeat(20).as_bytes());
    }
    body.truncate(len);
    Record {
        event_type: Some(EventType(1)),
        id: EventId { natural: number, content: !number },
        received_at: Timestamp::from_millis(1_700_000_000_000 + number.cast_signed()),
        occurred_at: Some(Timestamp::from_millis(1_700_000_000_000)),
        key: Some(Bytes::from(format!("stream_{}", number % 7))),
        has_stream: true,
        body: Bytes::from(body),
    }
}

/// The number that [`record`] was given.
pub(crate) fn number_of(record: &Record) -> u64 {
    record.id.natural
}

/// A configuration without limits for the log in `dir`.
pub(crate) fn config(dir: &Path) -> wal::Config {
    wal::Config { dir: dir.to_owned(), limits: wal::Limits::NONE }
}

/// An open log with its append handle and its reader.
#[derive(Debug)]
pub(crate) struct OpenLog {
    pub(crate) appender: Appender,
    pub(crate) reader: Reader,
    pub(crate) log: Log,
}

impl OpenLog {
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(&config(dir))
    }

    pub(crate) fn open_with(config: &wal::Config) -> Result<Self, OpenError> {
        let (appender, reader, log) = wal::open(config)?;
        Ok(Self { appender, reader, log })
    }

    /// Appends all of `records` concurrently, so that they share commits where possible.
    pub(crate) fn append(&self, records: Vec<Record>) -> Vec<Result<Lsn, AppendError>> {
        append(&self.appender, records)
    }

    /// Appends all of `records` and expects every one to be accepted.
    pub(crate) fn append_all(&self, records: Vec<Record>) -> Vec<Lsn> {
        let lsns = self.append(records).into_iter();
        lsns.collect::<Result<_, _>>().expect("the log accepts the records")
    }

    /// All entries that can be read now.
    pub(crate) fn read(&mut self) -> Vec<Entry> {
        read(&mut self.reader)
    }

    /// Stops the log as `livebridge serve` does.
    pub(crate) fn close(self) -> Result<(), StoreError> {
        let Self { appender, reader, mut log } = self;
        drop(appender);
        let ended = block_on(log.ended());
        drop(reader);
        log.close();
        ended
    }
}

/// Reads until there are no further entries.
pub(crate) fn read(reader: &mut Reader) -> Vec<Entry> {
    let mut entries = Vec::new();
    loop {
        match reader.next(1024 * 1024, Duration::ZERO).expect("the log can be read") {
            Next::Entries(more) => entries.extend(more.entries),
            Next::Idle | Next::End => return entries,
        }
    }
}

/// Appends all of `records` concurrently.
pub(crate) fn append(appender: &Appender, records: Vec<Record>) -> Vec<Result<Lsn, AppendError>> {
    block_on(async {
        let line = appender.handle();
        let tasks: Vec<_> = records
            .into_iter()
            .map(|record| {
                let line = line.clone();
                tokio::spawn(async move { line.append(record).await })
            })
            .collect();
        let mut outcomes = Vec::with_capacity(tasks.len());
        for task in tasks {
            outcomes.push(task.await.expect("appending does not panic"));
        }
        outcomes
    })
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(future)
}

/// The entries that `livebridge wal export` prints.
pub(crate) fn visit(dir: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    wal::visit(dir, |entry| {
        entries.push(entry);
        Ok::<_, OpenError>(())
    })
    .expect("the log can be inspected");
    entries
}

/// The bodies in the log, in order.
pub(crate) fn bodies(dir: &Path) -> Vec<String> {
    let bodies = visit(dir).into_iter().map(|entry| entry.record.body.to_vec());
    bodies.map(|body| String::from_utf8(body).expect("a body of text")).collect()
}

/// The segment directories on disk, in order.
pub(crate) fn segment_dirs(dir: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = fs::read_dir(dir.join("segments"))
        .expect("there are segments")
        .map(|entry| entry.expect("the directory can be listed").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().len() == 10))
        .collect();
    dirs.sort_unstable();
    dirs
}

/// Copies a log in its current state, file by file, as a killed process leaves it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries {
        let path = entry.expect("the directory can be listed").path();
        let target = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else if let Err(cause) = copy_file(&path, &target) {
            // The maintenance task may rename and remove files during the copy.
            assert_eq!(cause.kind(), std::io::ErrorKind::NotFound, "{}: {cause}", path.display());
        }
    }
}

/// Copies a file from its end to its start. What is written meanwhile is written front to back, into
/// zeros that are there already: read in that order too, it could lack a part in its middle.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let (source, target) = (File::open(from)?, File::create(to)?);
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut page = [0; 4096];
    for index in (0..len.div_ceil(4096)).rev() {
        let start = index * 4096;
        // The zeros at its end may be cut meanwhile.
        let read = source.read_at(&mut page, start)?;
        if page[..read].iter().any(|byte| *byte != 0) {
            target.write_all_at(&page[..read], start)?;
        }
    }
    Ok(())
}

/// A directory in memory, where syncing takes no time: these tests simulate no power cuts.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory is made")
}

/// `quick` cases of a property test, or `LIVEBRIDGE_TEST_FACTOR` times as many.
pub(crate) fn cases(quick: u32) -> ProptestConfig {
    let factor = std::env::var("LIVEBRIDGE_TEST_FACTOR").ok().and_then(|text| text.parse().ok());
    ProptestConfig::with_cases(quick * factor.unwrap_or(1))
}
