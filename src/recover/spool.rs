//! Found events in a temporary file, and undecoded records in a file for the operator.

use std::fs::{File, OpenOptions};
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

/// The undecoded records, in a file that is created with the first of them.
#[derive(Debug)]
pub struct UndecodedFile {
    path: PathBuf,
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
        Self { path: path.to_owned(), file: None, count: 0, first: Vec::new() }
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
            let opened = options.write(true).create(true).truncate(true).mode(MODE);
            self.file.insert(BufWriter::new(opened.open(&self.path)?))
        };
        writeln!(file, "{line}")
    }

    /// Completes the file.
    ///
    /// # Errors
    /// [`RecoverError::Undecoded`]
    pub fn finish(&mut self) -> Result<(), RecoverError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        synced.map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> RecoverError {
        RecoverError::Undecoded { path: self.path.clone(), cause }
    }
}
