//! Properties that hold for any input: one function for each parser of external input.
//!
//! `cargo fuzz` runs each with generated inputs, `tests/promise/fuzz.rs` with the corpora and mutations of
//! them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, str};

use bytes::{Bytes, BytesMut};
use livebridge::callback::{
    CallbackError, CallbackKey, UnsignedPolicy, UnverifiedCallback, Verifier,
};
use livebridge::config::Config;
use livebridge::event::Timestamp;
use livebridge::intake::{Intake, IntakePolicy, Listener};
use livebridge::ledger::{self, Commit, Known, Ledger};
use livebridge::record::{Lsn, Record};
use livebridge::reloadable::Reloadable;
use livebridge::wal::{self, Entries, Next, OpenError, OpeningId, Reader};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const KEY: &str = "callbackKey0123456789";
const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);
const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

/// A directory in memory where available, because syncing is irrelevant here.
fn dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(parent).expect("a directory")
}

fn take(body: &Bytes, verifier: &Verifier, omit: &[String]) -> Result<Record, CallbackError> {
    UnverifiedCallback::parse(body)?.verify(verifier, NOW)?.into_record(NOW, omit)
}

/// Any body: a record can be logged, is the same each time, and stays parseable and the same event
/// when members are omitted. A body accepted as signed has a valid signature.
pub fn callback(data: &[u8]) {
    let key = CallbackKey::new(KEY).expect("a key");
    let any = Verifier { keys: vec![key.clone()], leeway: CENTURY, unsigned: UnsignedPolicy::All };
    let body = Bytes::copy_from_slice(data);
    let record = match take(&body, &any, &[]) {
        Ok(record) => record,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(record.body, body);
    assert_eq!(take(&body, &any, &[]).as_ref().ok(), Some(&record));
    round_trip(&record);
    let _ = record.occurred_at.map(|time| time.to_string());

    let omit = ["stream_param", "sign", "t"].map(str::to_owned);
    let shorter = take(&body, &any, &omit).expect("as readable as the whole");
    assert_eq!(Record { body: body.clone(), ..shorter.clone() }, record);
    let kept = take(&shorter.body, &any, &[]).expect("still an object");
    assert_eq!((kept.event_type, &kept.key), (record.event_type, &record.key));

    let strict = Verifier { unsigned: UnsignedPolicy::Rejected, ..any };
    if take(&body, &strict, &[]).is_ok()
        && let Ok(event) = serde_json::from_slice::<Value>(data)
    {
        let t = event["t"].as_str().map_or_else(|| event["t"].to_string(), str::to_owned);
        let sign = event["sign"].as_str().expect("hex digits");
        assert!(sign.eq_ignore_ascii_case(&key.sign_hex(&t)), "{sign} is not of {t}");
    }
}

/// A key, a `t` and a signature, valid or not: only a valid one is accepted, and only before it
/// expires.
pub fn signature(data: &[u8]) {
    /// The suffix of every secret here, because generated secrets without it can occur in a message
    /// by chance.
    const MARK: &str = "-s3cret";
    let Some((flags, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut parts = text.splitn(3, '\0');
    let [t, secret, sign] = [(); 3].map(|()| parts.next().unwrap_or_default());
    assert_eq!(CallbackKey::new(secret).is_none(), secret.trim().is_empty());
    let key = CallbackKey::new(&format!("{secret}{MARK}")).expect("no blank key");
    let right = key.sign_hex(t);
    let sign = match flags & 3 {
        0 => sign.to_owned(),
        1 => right.clone(),
        2 => right.to_uppercase(),
        _ => right.replacen(sign.chars().next().unwrap_or('0'), "0", 1),
    };
    let seconds: Option<i64> = t.parse().ok();
    let is_number = flags & 4 != 0 && seconds.is_some_and(|seconds| seconds.to_string() == t);
    let shown = if is_number { t.to_owned() } else { Value::from(t).to_string() };
    let body = Bytes::from(format!(r#"{{"t":{shown},"sign":{}}}"#, Value::from(&*sign)));
    let leeway = Duration::from_mins(20);
    let verifier = Verifier { keys: vec![key], leeway, unsigned: UnsignedPolicy::Rejected };
    let taken = take(&body, &verifier, &[]);
    let expiry = seconds.and_then(Timestamp::from_secs);
    let in_time = expiry.is_some_and(|expiry| NOW.since(expiry) <= leeway);
    let is_right = sign.eq_ignore_ascii_case(&right);
    assert_eq!(taken.is_ok(), in_time && is_right, "{taken:?}: {body:?}");
    if let Err(error) = taken {
        let output_text = format!("{error} {error:?} {verifier:?}");
        assert!(!output_text.contains(MARK), "{output_text}");
    }
}

fn round_trip(record: &Record) {
    let mut bytes = BytesMut::new();
    record.encode(&mut bytes);
    assert_eq!(bytes.len(), record.encoded_len());
    assert_eq!(Record::decode(bytes.freeze()).as_ref(), Ok(record));
}

/// Any bytes as a record of the log: encoding the decoded record yields the input.
pub fn record(data: &[u8]) {
    if let Ok(record) = Record::decode(Bytes::copy_from_slice(data)) {
        round_trip(&record);
        let _ = (record.received_at.to_string(), record.id.to_string());
    }
}

/// Any bytes in a segment's file, in frames with valid or arbitrary checksums: the records found
/// are in order, and the search ends.
pub fn frame(data: &[u8]) {
    static LOG: LazyLock<(TempDir, PathBuf, [u8; 16])> = LazyLock::new(|| {
        let dir = dir();
        let segment = dir.path().join("segments/0000000001");
        fs::create_dir_all(&segment).expect("a directory");
        let id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let identity = format!("livebridge log, format 2, id {id}\n");
        fs::write(dir.path().join("log"), identity).expect("a file");
        (dir, segment.join("db"), uuid::Uuid::parse_str(id).expect("an id").into_bytes())
    });
    let (dir, file, id) = &*LOG;
    fs::write(file, segment(data, id)).expect("a file");
    let mut before = Lsn::ZERO;
    let visited = wal::visit(dir.path(), |entry| {
        assert!(entry.lsn > before && entry.lsn.segment() == 1, "{} after {before}", entry.lsn);
        before = entry.lsn;
        round_trip(&entry.record);
        Ok::<_, OpenError>(())
    });
    if let Err(error) = visited {
        assert!(error.to_string().contains("db"), "{error} names the file");
    }
}

/// A file made of blocks. Each block of `data` is its kind, its length and its bytes, which are
/// copied unchanged or become a frame: first index, count, payload.
fn segment(mut data: &[u8], id: &[u8; 16]) -> Vec<u8> {
    let mut file = Vec::new();
    while let [kind, high, low, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        data = rest;
        match piece.split_at_checked(8) {
            Some((place, payload)) if kind % 2 == 1 => {
                let mut header = vec![0xAB; 16];
                header.extend_from_slice(&[0, 0, 0, 1]);
                header.extend_from_slice(place);
                let payload_len = u32::try_from(payload.len()).expect("at most 64 KiB");
                header.extend_from_slice(&payload_len.to_be_bytes());
                let mut checksum = crc32fast::Hasher::new();
                checksum.update(id);
                checksum.update(&header);
                checksum.update(payload);
                file.extend_from_slice(b"\xFFLBWAL2\xFE");
                file.extend_from_slice(&header);
                file.extend_from_slice(&checksum.finalize().to_be_bytes());
                file.extend_from_slice(payload);
            }
            _ => file.extend_from_slice(piece),
        }
    }
    file
}

/// Any file and environment: the result is a configuration or an error message, neither of which
/// contains a secret.
pub fn config(data: &[u8]) {
    const SECRET: &str = "s3cret-callback-key";
    let Ok(text) = str::from_utf8(data) else { return };
    // Special files can be endless.
    if ["/dev", "/proc", "/sys", SECRET].iter().any(|odd| text.contains(odd)) {
        return;
    }
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let Ok(table) = file.parse() else { return };
    let environment =
        parts.filter_map(|part| part.split_once('=')).chain([("CALLBACK_KEYS", SECRET)]);
    let environment =
        environment.map(|(name, value)| (format!("LIVEBRIDGE_{name}"), value.to_owned()));
    let shown = match Config::from_parts(table, environment) {
        Ok(config) => format!("{config:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.is_empty() && !shown.contains(SECRET), "{shown}");
}

/// Any bytes as records of the ledger topic: encoding the decoded record yields the input, and its
/// last event is then known.
pub fn ledger(data: &[u8]) {
    let config = ledger::Config { window: Duration::from_hours(1), max_ids: 16 };
    let mut ledger = Ledger::new(&[OpeningId::unique()], config);
    for part in data.split_inclusive(|byte| *byte == b'\n') {
        for bytes in [part, data] {
            let Ok(commit) = Commit::decode(bytes) else { continue };
            // Version 1 is read but not written.
            assert!(bytes[0] == 1 || commit.encode() == bytes);
            assert_eq!(Commit::decode(&commit.encode()).as_ref(), Ok(&commit));
            ledger.apply(&commit, Instant::now());
            if let Some(id) = commit.ids.last() {
                assert_eq!(ledger.known(*id), Known::Retry);
            }
            ledger.expire(commit.newest, Instant::now());
        }
    }
}

/// An intake with a log, for the lifetime of the process.
struct TestBed {
    address: SocketAddr,
    reader: Reader,
    _intake: Intake,
    _log: wal::Log,
    _dir: TempDir,
}

impl TestBed {
    fn new() -> Self {
        let dir = dir();
        let variables = [
            ("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:0"),
            ("LIVEBRIDGE_HTTP_MAX_BODY", "2KiB"),
            ("LIVEBRIDGE_CALLBACK_KEYS", KEY),
            ("LIVEBRIDGE_CALLBACK_UNSIGNED", "all"),
            ("LIVEBRIDGE_WAL_DIR", dir.path().to_str().expect("a plain path")),
            ("LIVEBRIDGE_WAL_MIN_FREE_BYTES", "0"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::from_parts(toml::Table::new(), variables.into_iter());
        let config = config.expect("a configuration");
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let (appender, reader, log) = wal::open(&config.wal).expect("a log");
        let gate = Reloadable::new(IntakePolicy::new(config.verifier, config.access, config.omit));
        let stop = CancellationToken::new();
        let intake = Intake::start(&listener, &config.http, &gate, &appender, log.probe(), &stop);
        Self {
            address: listener.address().expect("an address"),
            reader,
            _intake: intake.expect("threads"),
            _log: log,
            _dir: dir,
        }
    }

    /// The number of records stored since the last call.
    fn stored(&mut self) -> usize {
        let mut count = 0;
        while let Next::Entries(Entries { entries, .. }) =
            self.reader.next(usize::MAX, Duration::ZERO).expect("a readable log")
        {
            count += entries.len();
            if let Some(last) = entries.last() {
                self.reader.release(last.lsn, None);
            }
        }
        count
    }
}

/// Any bytes on a new connection: every response is valid HTTP, none is a server error, and the
/// number of 200s equals the number of stored records.
pub fn intake(data: &[u8]) {
    static BED: LazyLock<Mutex<TestBed>> = LazyLock::new(|| Mutex::new(TestBed::new()));
    let mut bed = BED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stream = TcpStream::connect(bed.address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    let sent = stream.write_all(data).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answers = Vec::new();
    let whole = match stream.read_to_end(&mut answers) {
        Ok(_) => sent.is_ok(),
        // It closed before it had read everything, so its response may be lost.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            false
        }
    };
    let statuses = statuses(&answers, whole);
    let taken = statuses.iter().filter(|status| **status == 200).count();
    let stored = bed.stored();
    assert!(if whole { taken == stored } else { taken <= stored }, "{stored} stored: {statuses:?}");
    assert!(statuses.iter().all(|status| *status < 500), "{statuses:?}");
}

/// The statuses of the responses in `bytes`, of which only the last may be truncated.
fn statuses(mut bytes: &[u8], whole: bool) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else {
            assert!(!whole, "{:?}", String::from_utf8_lossy(bytes));
            break;
        };
        let head = str::from_utf8(&bytes[..end]).expect("a head of text");
        assert!(head.starts_with("HTTP/1.0 ") || head.starts_with("HTTP/1.1 "), "{head}");
        statuses.push(head[9..12].parse().expect("a status"));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
        bytes = &bytes[end + 4..];
        // The response to HEAD has a length and no body.
        if length > 0 && bytes.starts_with(b"{") {
            assert!(bytes.len() >= length || !whole, "a whole body");
            let body = &bytes[..length.min(bytes.len())];
            // A health check: nothing is stored for it.
            if body.starts_with(br#"{"code":200,"#) {
                statuses.pop();
            }
            bytes = &bytes[body.len()..];
            assert!(
                !whole || serde_json::from_slice::<Value>(body).is_ok_and(|body| body.is_object())
            );
        }
    }
    statuses
}
