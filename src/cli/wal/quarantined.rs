//! `livebridge wal quarantine` and `release`: records that the dead-letter topic rejected too.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::{Exported, ProgressBar, count, print};
use crate::cli::{CliError, block_on};
use crate::publisher::quarantine::{self, DamagedFile};
use crate::wal;

pub(super) fn list(dir: &Path, out: &mut impl Write) -> Result<(), CliError> {
    let quarantine::Contents { records, damaged } = quarantine::list(&quarantine::dir_of(dir))?;
    for held in records {
        let mut line = json!(Exported::of(&held.record));
        line["reason"] = held.reason.into();
        line["file"] = held.path.display().to_string().into();
        print(out, &line)?;
    }
    report_damaged(&damaged)
}

pub(super) fn release(dir: &Path, out: &mut impl Write) -> Result<(), CliError> {
    let quarantine::Contents { records, damaged } = quarantine::list(&quarantine::dir_of(dir))?;
    if records.is_empty() {
        if damaged.is_empty() {
            return print(out, &"nothing is in quarantine");
        }
        return report_damaged(&damaged);
    }
    let (owner, uid) = (wal::owner(dir)?, rustix::process::geteuid().as_raw());
    if owner != uid {
        // The service could neither remove nor read the files that this process would create.
        return Err(CliError::Usage(format!(
            "the log in {dir} belongs to uid {owner}, and this command runs as uid {uid}; run it as \
             the user that runs livebridge: setpriv --reuid={owner} --clear-groups \
             livebridge wal release --dir {dir}",
            dir = dir.display()
        )));
    }
    // No limits: the records in quarantine take their disk space already.
    let config = wal::Config { dir: dir.to_owned(), limits: wal::Limits::NONE };
    let (appender, reader, mut log) = wal::open(&config).map_err(|error| match error {
        wal::OpenError::Locked(dir) => {
            CliError::Failed(format!("stop livebridge first: it uses the log in {}", dir.display()))
        }
        other => other.into(),
    })?;
    let bar = ProgressBar::count("releasing", records.len() as u64);
    let released = block_on(async {
        let appends = appender.handle();
        drop(appender);
        for held in &records {
            let append = appends.append(held.record.clone()).await;
            append.map_err(CliError::other("append to the log"))?;
            quarantine::remove(held)?;
            bar.add(1);
        }
        drop(appends);
        log.ended().await.map_err(CliError::other("close the log"))
    });
    drop(reader);
    log.close();
    released?;
    print(out, &format_args!("{} put back into the log", count(records.len(), "record")))?;
    report_damaged(&damaged)
}

/// Prints the files that cannot be read; any of them makes the command fail.
fn report_damaged(damaged: &[DamagedFile]) -> Result<(), CliError> {
    for file in damaged {
        print_err!("{file}");
    }
    if damaged.is_empty() { Ok(()) } else { Err(CliError::Found) }
}
