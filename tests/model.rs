//! The log against a model: whatever happens in whatever order, nothing acknowledged is lost.

mod log_support;

use log_support::{OpenLog, record, temp_dir};

/// LSNs restarted at 1.1 when every segment with records had been removed, and the ledger then
/// took new records for published ones: they were never sent.
#[test]
fn lsns_go_on_when_everything_before_them_is_published_and_removed() {
    let dir = temp_dir();
    let log = OpenLog::open(dir.path()).unwrap();
    let last = *log.append_all((0..3).map(|n| record(n, 100)).collect()).last().unwrap();
    log.close().unwrap();
    // What was published is removed; nothing arrives; the process ends. And again.
    for _ in 0..3 {
        let mut log = OpenLog::open(dir.path()).unwrap();
        log.reader.resume(last);
        log.close().unwrap();
    }
    let mut log = OpenLog::open(dir.path()).unwrap();
    log.reader.resume(last);
    let lsns = log.append_all(vec![record(7, 100)]);
    assert!(lsns[0] > last, "{} follows {last}", lsns[0]);
    assert_eq!(log.read().len(), 1, "the new record is read");
    log.close().unwrap();
}
