//! A log that cannot be read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::event::EventId;
use crate::kafka::Delivery;
use crate::ledger;
use crate::publisher::Topics;
use crate::record::Record;
use crate::wal::{self, Log, Reader};

/// A log with one record in a segment that this process did not write.
fn log_with_a_record(dir: &Path) -> (Reader, Log) {
    let config = wal::Config { dir: dir.to_owned(), limits: wal::Limits::NONE };
    let (appender, reader, mut log) = wal::open(&config).unwrap();
    let record = Record {
        id: EventId { natural: 1, content: 1 },
        event_type: None,
        received_at: Timestamp::now(),
        occurred_at: None,
        key: None,
        has_stream: false,
        body: Bytes::from_static(b"{}"),
    };
    Runtime::new().unwrap().block_on(async {
        appender.handle().append(record).await.unwrap();
        drop(appender);
        log.ended().await.unwrap();
    });
    drop(reader);
    log.close();
    let (_, reader, log) = wal::open(&config).unwrap();
    (reader, log)
}

/// Lets the files of all segments be opened no more: each becomes a link to itself.
fn make_unreadable(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            make_unreadable(&path);
        } else {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&path, &path).unwrap();
        }
    }
}

fn publisher(reader: Reader, dir: &Path) -> Publisher {
    let kafka = kafka::Config {
        brokers: "127.0.0.1:1".into(),
        instance: "test".into(),
        delivery: Delivery::ExactlyOnce,
        create_topics: false,
        partitions: 1,
        replication: 1,
        client: BTreeMap::new(),
    };
    let topics = Topics::new("live", &BTreeMap::new()).unwrap();
    let dedup = ledger::Config { window: Duration::from_hours(1), max_ids: 1000 };
    Publisher::new(reader, kafka, topics, dedup, dir.to_owned(), CancellationToken::new())
}

#[test]
fn records_that_cannot_be_read_may_be_of_any_age() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, _log) = log_with_a_record(dir.path());
    let mut publisher = publisher(reader, dir.path());
    make_unreadable(&dir.path().join("segments"));
    // Ids expire while there is nothing to publish, not while it is unknown what there is.
    assert!(publisher.next_input().is_err());
    // The ledger is read from its beginning: retries of its oldest events may be in the log.
    assert_eq!(publisher.read_oldest(), Timestamp::from_millis(0));
}
