//! Found events in a temporary file, and undecoded records in a file for the operator.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::{RecordError, RecoverError};
use crate::event::Timestamp;
use crate::publisher::Exported;
use crate::record::Record;
use crate::tencent::CallbackRecord;

/// Only the owner may read the files: callbacks can contain personal data.
const MODE: u32 = 0o600;

/// Events in an unlinked file, which the system removes when the process ends.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    file: BufWriter<File>,
}

impl Spool {
    /// Creates the file in the directory of `undecoded`: in a container, no other directory may be
    /// writable.
    ///
    /// # Errors
    /// [`RecoverError::Spool`]
    pub fn new(undecoded: &Path) -> Result<Self, RecoverError> {
        let dir = undecoded.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new(".")).to_owned();
        let path = dir.join(format!(".livebridge-recover-{}", Uuid::new_v4()));
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create_new(true).mode(MODE).open(&path);
        let file = opened.and_then(|file| std::fs::remove_file(&path).map(|()| file));
        match file {
            Ok(file) => Ok(Self { dir, file: BufWriter::new(file) }),
            Err(cause) => Err(RecoverError::Spool { dir, cause }),
        }
    }

    /// Adds an event.
    ///
    /// # Errors
    /// [`RecoverError::Spool`]
    pub fn push(&mut self, record: &Record) -> Result<(), RecoverError> {
        let line = serde_json::to_vec(&Exported::of(record)).map_err(io::Error::from);
        let written = line.and_then(|line| {
            self.file.write_all(&line)?;
            self.file.write_all(b"\n")
        });
        written.map_err(|cause| RecoverError::Spool { dir: self.dir.clone(), cause })
    }

    /// Calls `visit` for each event, as a line of an export.
    ///
    /// # Errors
    /// [`RecoverError::Spool`], or what `visit` returned.
    pub fn each<E: From<RecoverError>>(
        &mut self,
        mut visit: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let dir = self.dir.clone();
        let failed = |cause| RecoverError::Spool { dir: dir.clone(), cause };
        self.file.flush().map_err(failed)?;
        let file = self.file.get_mut();
        file.rewind().map_err(failed)?;
        for line in BufReader::new(&*file).lines() {
            visit(&line.map_err(failed)?)?;
        }
        Ok(())
    }
}

/// A record that cannot be decoded, as a line of JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Undecoded {
    /// The stream's name.
    pub stream: String,
    /// The event's type.
    pub event_type: Option<i64>,
    /// When the event happened.
    pub event_time: Option<String>,
    /// Why there is no event.
    pub reason: String,
}

/// The undecoded records, in a file that is created with the first of them. It has another name
/// until it is complete, so that a run never writes into the file of another one, and no one else
/// can read it, whatever the mode of an earlier file is.
#[derive(Debug)]
pub struct UndecodedFile {
    path: PathBuf,
    partial: PathBuf,
    file: Option<BufWriter<File>>,
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Undecoded>,
}

impl UndecodedFile {
    /// Records that are kept to be printed.
    const SHOWN: usize = 20;

    /// Creates no file yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        // A device, such as /dev/null, and a link, such as /dev/stdout, is written to, not replaced.
        let partial = if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            path.to_owned()
        } else {
            path.with_file_name(format!(".livebridge-undecoded-{}", Uuid::new_v4()))
        };
        Self { path: path.to_owned(), partial, file: None, count: 0, first: Vec::new() }
    }

    /// Writes `record` with its request, response and result code.
    ///
    /// # Errors
    /// [`RecoverError::Undecoded`]
    pub fn push(
        &mut self,
        record: &CallbackRecord,
        error: &RecordError,
    ) -> Result<(), RecoverError> {
        let undecoded = Undecoded {
            stream: record.stream_id.clone(),
            event_type: record.event_type,
            event_time: record.event_time.as_ref().map(Timestamp::to_string),
            reason: error.to_string(),
        };
        let mut line = serde_json::json!(undecoded);
        line["request"] = record.request.as_str().into();
        line["response"] = record.response.as_str().into();
        line["result_code"] = record.result_code.into();
        self.write(&line.to_string()).map_err(|cause| self.failed(cause))?;
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(undecoded);
        }
        Ok(())
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let file = if let Some(file) = &mut self.file {
            file
        } else {
            let mut options = OpenOptions::new();
            let is_new = self.partial != self.path;
            options.write(true).create(true).truncate(true).create_new(is_new).mode(MODE);
            let opened = options.open(&self.partial)?;
            self.file.insert(BufWriter::new(opened))
        };
        writeln!(file, "{line}")
    }

    /// Completes the file.
    ///
    /// # Errors
    /// [`RecoverError::Undecoded`]
    pub fn finish(&mut self) -> Result<(), RecoverError> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let mut complete = || {
            file.flush()?;
            if self.partial != self.path {
                file.get_ref().sync_all()?;
                fs::rename(&self.partial, &self.path)?;
            }
            Ok(())
        };
        complete().map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> RecoverError {
        RecoverError::Undecoded { path: self.path.clone(), cause }
    }
}

impl Drop for UndecodedFile {
    /// Removes the file of a run that failed before it was complete.
    fn drop(&mut self) {
        if self.partial != self.path {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::recover::ExtractError;

    fn push(file: &mut UndecodedFile, request: &str) {
        let record = serde_json::json!({ "Request": request, "StreamId": "stream" });
        let record: CallbackRecord = serde_json::from_value(record).unwrap();
        file.push(&record, &RecordError::Decode(ExtractError::NoCallback)).unwrap();
    }

    #[test]
    fn undecoded_records_replace_an_earlier_file_as_a_whole_and_only_the_owner_can_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("undecoded.jsonl");
        fs::write(&path, "of an earlier run\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let text = || fs::read_to_string(&path).unwrap();
        UndecodedFile::new(&path).finish().unwrap();
        let mut failed = UndecodedFile::new(&path);
        push(&mut failed, "of a run that failed");
        drop(failed);
        let (mut one, mut other) = (UndecodedFile::new(&path), UndecodedFile::new(&path));
        push(&mut one, "one");
        push(&mut other, "other");
        assert_eq!(text(), "of an earlier run\n", "until one is complete");
        push(&mut one, "one more");
        one.finish().unwrap();
        assert_eq!((text().lines().count(), text().contains("other")), (2, false));
        other.finish().unwrap();
        assert_eq!((text().lines().count(), text().contains("other")), (1, true));
        drop((one, other));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let mut file = UndecodedFile::new(&path);
        push(&mut file, "x");
        file.finish().unwrap();
        drop(file);
        assert!(!fs::metadata(&path).unwrap().is_file());
    }
}
