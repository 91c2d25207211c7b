//! The recording of the shim: every change to a directory, every sync and every response, in order.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

/// A recorded call. Files are identified by inode numbers, which the file system reuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A process began; `root` is the traced directory.
    Start { root: u64 },
    /// A file was created.
    Create { parent: u64, inode: u64, name: String },
    /// A directory was created.
    Mkdir { parent: u64, inode: u64, name: String },
    /// Data was written: the bytes of the trace at `data`.
    Write { inode: u64, offset: u64, data: Range<usize> },
    /// A file was truncated or extended to a size.
    Size { inode: u64, size: u64 },
    /// An entry was renamed, possibly replacing another.
    Rename { from: (u64, String), to: (u64, String) },
    /// A file's entry was removed.
    Unlink { parent: u64, name: String },
    /// A directory was removed.
    Rmdir { parent: u64, name: String },
    /// `fsync` or `fdatasync` of a file or directory returned.
    Sync { inode: u64 },
    /// `sync_file_range`, which makes nothing durable.
    FlushRange { inode: u64 },
    /// A 200 is about to be sent to the client at this port.
    Response { port: u16 },
}

impl Event {
    /// Whether the event changes a directory's entries.
    pub(crate) fn changes_names(&self) -> bool {
        matches!(
            self,
            Self::Create { .. }
                | Self::Mkdir { .. }
                | Self::Rename { .. }
                | Self::Unlink { .. }
                | Self::Rmdir { .. }
        )
    }

    /// Whether the event begins the removal of a segment.
    pub(crate) fn is_removal(&self) -> bool {
        let Self::Rename { to: (_, name), .. } = self else { return false };
        Path::new(name).extension().is_some_and(|extension| extension == "gone")
    }
}

/// An event and its position.
#[derive(Clone, Debug)]
pub(crate) struct Traced {
    pub(crate) event: Event,
    pub(crate) process: u32,
    /// Offset in the trace file.
    pub(crate) place: usize,
}

/// The whole trace.
#[derive(Debug)]
pub(crate) struct Trace {
    bytes: Vec<u8>,
    pub(crate) events: Vec<Traced>,
}

/// `struct header` of shim.c.
const HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x5257_5045;

impl Trace {
    /// Reads the trace in the file at `path`.
    ///
    /// # Panics
    /// If the shim recorded a call that the model does not support.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the shim wrote a trace");
        let mut events = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = Header(&bytes[at..at + HEADER_BYTES]);
            assert_eq!(header.word(0), MAGIC, "a record starts at {at}");
            let end = at + HEADER_BYTES + header.word(12) as usize;
            let event = header.event(at + HEADER_BYTES..end, &bytes);
            events.push(Traced { event, process: header.word(8), place: at });
            at = end;
        }
        Self { bytes, events }
    }

    /// The bytes that an [`Event::Write`] wrote.
    pub(crate) fn data(&self, data: &Range<usize>) -> &[u8] {
        &self.bytes[data.clone()]
    }

    /// Segments that received callbacks: data files that sled wrote to.
    pub(crate) fn segments_written(&self) -> usize {
        let mut made = HashSet::new();
        let mut written = 0;
        for traced in &self.events {
            match &traced.event {
                Event::Create { inode, name, .. } if name == "db" => {
                    made.insert(*inode);
                }
                Event::Write { inode, .. } if made.remove(inode) => written += 1,
                _ => {}
            }
        }
        written
    }

    /// Segments that were renamed for removal.
    pub(crate) fn segments_removed(&self) -> usize {
        self.events.iter().filter(|traced| traced.event.is_removal()).count()
    }

    /// For each process and client port, the positions of its responses among the events.
    pub(crate) fn responses(&self) -> BTreeMap<(u32, u16), Vec<usize>> {
        let mut responses: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, traced) in self.events.iter().enumerate() {
            if let Event::Response { port } = traced.event {
                responses.entry((traced.process, port)).or_default().push(index);
            }
        }
        responses
    }
}

struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    fn event(&self, data: Range<usize>, bytes: &[u8]) -> Event {
        let (a, b) = (self.number(16), self.number(24));
        let text = || String::from_utf8(bytes[data.clone()].to_vec()).expect("names are UTF-8");
        match self.word(4) {
            1 => Event::Start { root: a },
            2 => Event::Create { parent: a, inode: b, name: text() },
            3 => Event::Mkdir { parent: a, inode: b, name: text() },
            4 => Event::Write { inode: a, offset: b, data },
            5 => Event::Size { inode: a, size: b },
            6 => {
                let names = text();
                let (from, to) = names.split_once('\0').expect("two names");
                Event::Rename { from: (a, from.to_owned()), to: (b, to.to_owned()) }
            }
            7 => Event::Unlink { parent: a, name: text() },
            8 => Event::Rmdir { parent: a, name: text() },
            9 => Event::Sync { inode: a },
            10 => Event::FlushRange { inode: a },
            11 => Event::Response { port: u16::try_from(a).expect("a port") },
            12 => panic!("the model does not support {} on a file of the log", text()),
            kind => panic!("record kind {kind}"),
        }
    }
}
