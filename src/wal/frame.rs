//! A frame: the records of one chunk, checksummed, and how it is found in a file.
//!
//! A frame is what the writer hands to sled as one value. sled stores a value as one run of bytes,
//! so a frame can be found again in the segment's file by its magic and its checksum, without
//! opening the database: reading takes no lock, changes nothing, and cannot fail in sled's
//! recovery. The price is that this file and the pinned sled version belong together;
//! `tests/log/segments.rs` would fail if a value were ever split or transformed.
//!
//! Layout, big-endian: magic 8, opening 16, first LSN 8, records 4, payload length 4, CRC-32 4,
//! payload. The payload is a run of `length 4, record`. The checksum covers the log's id, so that a
//! stale block of another log is never taken for a frame of this one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memmem::Finder;

use super::{LogId, OpeningId};
use crate::event::Timestamp;
use crate::record::{BODY_MAX, DecodeError, Entry, KEY_MAX, Lsn, Record};

/// Starts every frame. 0xFF and 0xFE occur in no UTF-8 text, so no body can contain it.
const MAGIC: [u8; 8] = *b"\xFFLBWAL2\xFE";
const HEADER_BYTES: usize = 8 + 16 + 8 + 4 + 4 + 4;
/// Where the header's fields begin.
const OPENING: usize = 8;
const FIRST: usize = 24;
const COUNT: usize = 32;
const PAYLOAD: usize = 36;
const CHECKSUM: usize = 40;

/// A frame is closed when it has grown to this size: larger ones halve sled's rate (engine.md C).
pub(super) const FRAME_BYTES: usize = 250 * 1024;
/// No frame is larger: one below [`FRAME_BYTES`] plus one largest record. sled would move a value
/// of 1 MiB to a file that it never syncs (engine.md A).
const FRAME_BYTES_MAX: usize = FRAME_BYTES + BODY_MAX + KEY_MAX + 1024;
const _: () = assert!(FRAME_BYTES_MAX < 1024 * 1024 - 1024, "a frame would become a blob");

/// The records of one chunk.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    writer: OpeningId,
    first: Lsn,
    count: u32,
    payload: Bytes,
}

impl Frame {
    /// The opening that wrote it.
    pub(super) fn writer(&self) -> OpeningId {
        self.writer
    }

    pub(super) fn first(&self) -> Lsn {
        self.first
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The last record's LSN.
    pub(super) fn last(&self) -> Lsn {
        Lsn::new(self.first.segment(), self.first.index() + self.count - 1)
    }

    /// Bytes that the frame keeps in memory.
    pub(super) fn len(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// The frame's entries from `from` on; their keys and bodies share the frame's memory.
    pub(super) fn entries(&self, from: Lsn, into: &mut Vec<Entry>) -> Result<(), DecodeError> {
        let mut payload = self.payload.clone();
        for offset in 0..self.count {
            let lsn = Lsn::new(self.first.segment(), self.first.index() + offset);
            let length = u32_at(&split(&mut payload, 4)?, 0) as usize;
            let record = split(&mut payload, length)?;
            if lsn >= from {
                into.push(Entry { lsn, record: Record::decode(record)? });
            }
        }
        if payload.is_empty() { Ok(()) } else { Err(DecodeError::Length) }
    }
}

/// As `Bytes::split_to`, without a panic: the length comes from a file.
fn split(payload: &mut Bytes, at: usize) -> Result<Bytes, DecodeError> {
    if at <= payload.len() { Ok(payload.split_to(at)) } else { Err(DecodeError::Length) }
}

/// Builds frames in one reused buffer.
#[derive(Debug)]
pub(super) struct Builder {
    log: LogId,
    writer: OpeningId,
    buffer: BytesMut,
    count: u32,
}

impl Builder {
    /// Of frames that the opening `writer` writes to `log`.
    pub(super) fn new(log: LogId, writer: OpeningId) -> Self {
        let buffer = BytesMut::with_capacity(FRAME_BYTES_MAX);
        let mut builder = Self { log, writer, buffer, count: 0 };
        builder.clear();
        builder
    }

    pub(super) fn writer(&self) -> OpeningId {
        self.writer
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.buffer.put_bytes(0, HEADER_BYTES);
        self.count = 0;
    }

    pub(super) fn push(&mut self, record: &Record) {
        // A record is at most BODY_MAX and a little: its length fits.
        self.buffer.put_u32(u32::try_from(record.encoded_len()).unwrap_or(u32::MAX));
        record.encode(&mut self.buffer);
        self.count += 1;
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= FRAME_BYTES
    }

    /// Closes the frame whose first record is at `first`. `keep` stores its bytes and returns the
    /// stored copy, which the frame then shares.
    pub(super) fn finish<E>(
        &mut self,
        first: Lsn,
        keep: impl FnOnce(&[u8]) -> Result<Bytes, E>,
    ) -> Result<Frame, E> {
        let Self { log, writer, count, .. } = *self;
        let payload_len = self.buffer.len() - HEADER_BYTES;
        self.buffer[..OPENING].copy_from_slice(&MAGIC);
        self.buffer[OPENING..FIRST].copy_from_slice(writer.as_bytes());
        self.buffer[FIRST..COUNT].copy_from_slice(&first.as_u64().to_be_bytes());
        self.buffer[COUNT..PAYLOAD].copy_from_slice(&count.to_be_bytes());
        let length = u32::try_from(payload_len).unwrap_or(u32::MAX);
        self.buffer[PAYLOAD..CHECKSUM].copy_from_slice(&length.to_be_bytes());
        let crc = checksum(log, &self.buffer[OPENING..CHECKSUM], &self.buffer[HEADER_BYTES..]);
        self.buffer[CHECKSUM..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        let kept = keep(&self.buffer);
        self.clear();
        Ok(Frame { writer, first, count, payload: kept?.slice(HEADER_BYTES..) })
    }
}

fn checksum(log: LogId, header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(log.as_bytes());
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What a scan reads: a file, and in tests one on a disk that fails.
pub(super) trait ReadAt {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The length in bytes; 0 if it is unknown.
    fn size(&self) -> u64;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn size(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }
}

/// When the first record of segment `number` was received, by the file at `path`; `None` when it has
/// none.
pub(super) fn first_received(
    path: &Path,
    log: LogId,
    number: u32,
) -> io::Result<Option<Timestamp>> {
    let Some(frame) = first_frame(path, log, number)? else { return Ok(None) };
    let mut entries = Vec::new();
    let decoded = frame.entries(frame.first(), &mut entries);
    decoded.map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))?;
    Ok(entries.first().map(|entry| entry.record.received_at))
}

/// The first frame of segment `number` in the file at `path`.
pub(super) fn first_frame(path: &Path, log: LogId, number: u32) -> io::Result<Option<Frame>> {
    let mut scanner = Scanner::new(File::open(path)?, log);
    loop {
        match scanner.next()? {
            Some(frame) if frame.first().segment() != number => {}
            frame => return Ok(frame),
        }
    }
}

/// Finds a file's frames, front to back.
#[derive(Debug)]
pub(super) struct Scanner<S = File> {
    file: S,
    log: LogId,
    finder: Finder<'static>,
    /// What was read and not yet looked at.
    window: BytesMut,
    /// The file's offset just behind `window`.
    end: u64,
    /// No byte from this offset on is read.
    limit: u64,
    passed_over_damage: bool,
    /// Bytes that the disk did not return since the last [`Self::seek`].
    unreadable: u64,
}

/// Bytes read at once: a few frames.
const READ_BYTES: usize = 1024 * 1024;
/// What is skipped at a time where the disk returns an error: a page, which is what the kernel
/// reads at least.
const BLOCK_BYTES: u64 = 4096;

/// Whether `error` says that what was stored is lost or broken, rather than that the system lacks
/// memory, descriptors or permission for now.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    /// I/O error; checksums of the file system or of the device; an uncorrectable medium error.
    const UNREADABLE: [Errno; 6] =
        [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::ILSEQ, Errno::NODATA, Errno::REMOTEIO];
    Errno::from_io_error(error).is_some_and(|errno| UNREADABLE.contains(&errno))
}

impl<S: ReadAt> Scanner<S> {
    pub(super) fn new(file: S, log: LogId) -> Self {
        let finder = Finder::new(&MAGIC).into_owned();
        Self {
            file,
            log,
            finder,
            window: BytesMut::new(),
            end: 0,
            limit: u64::MAX,
            passed_over_damage: false,
            unreadable: 0,
        }
    }

    /// The next whole frame, or `None` at what is now the file's end; a later call goes on there.
    ///
    /// Frames come in the order in which they were written. What is between them, or fails its
    /// checksum, is skipped; so is what another thread was still writing when it was read, and what
    /// the disk cannot read, a block at a time.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(at) = self.finder.find(&self.window) {
                let _ = self.window.split_to(at);
                if let Some(frame) = self.take_frame()? {
                    return Ok(Some(frame));
                }
                self.passed_over_damage = true;
                let _ = self.window.split_to(1);
            } else {
                // A magic may begin in the last bytes.
                let keep = self.window.len().min(MAGIC.len());
                let _ = self.window.split_to(self.window.len() - keep);
                if self.fill(keep + READ_BYTES)? == 0 {
                    return Ok(None);
                }
            }
        }
    }

    /// Whether something began like a frame and was none.
    pub(super) fn passed_over_damage(&self) -> bool {
        self.passed_over_damage
    }

    /// Right after a frame was returned: the file's offset behind it.
    pub(super) fn position(&self) -> u64 {
        self.end - self.window.len() as u64
    }

    /// Goes on at `position`, reading the file afresh.
    pub(super) fn seek(&mut self, position: u64) {
        self.window = BytesMut::new();
        self.end = position;
        self.unreadable = 0;
    }

    /// Has the file end at this offset, though it may be longer.
    pub(super) fn limit(&mut self, offset: u64) {
        self.limit = offset;
    }

    /// Bytes that the disk did not return since the last [`Self::seek`].
    pub(super) fn unreadable_bytes(&self) -> u64 {
        self.unreadable
    }

    /// The frame at the window's start; `None` when there is none, or not yet.
    fn take_frame(&mut self) -> io::Result<Option<Frame>> {
        self.fill(HEADER_BYTES)?;
        let Some(length) = self.frame_len() else { return Ok(None) };
        self.fill(length)?;
        if self.window.len() < length {
            return Ok(None);
        }
        let (header, payload) = self.window[..length].split_at(HEADER_BYTES);
        if checksum(self.log, &header[OPENING..CHECKSUM], payload) != u32_at(header, CHECKSUM) {
            return Ok(None);
        }
        let frame = self.window.split_to(length).freeze();
        let mut writer = [0; 16];
        writer.copy_from_slice(&frame[OPENING..FIRST]);
        Ok(Some(Frame {
            writer: OpeningId::from_bytes(writer),
            first: Lsn::new(u32_at(&frame, FIRST), u32_at(&frame, FIRST + 4)),
            count: u32_at(&frame, COUNT),
            payload: frame.slice(HEADER_BYTES..),
        }))
    }

    /// The length that the header at the window's start claims, if it can be one.
    fn frame_len(&self) -> Option<usize> {
        if self.window.len() < HEADER_BYTES {
            return None;
        }
        let (index, count) = (u32_at(&self.window, FIRST + 4), u32_at(&self.window, COUNT));
        let payload = u32_at(&self.window, PAYLOAD) as usize;
        // The checksum protects against corruption and not forgery, so the header is validated:
        // indexes fit in a segment, and each record takes at least four bytes of the payload.
        let counts = index > 0 && index.checked_add(count).is_some();
        let fits = count > 0 && count as usize <= payload / 4;
        let length = HEADER_BYTES + payload;
        (length <= FRAME_BYTES_MAX && counts && fits).then_some(length)
    }

    /// Reads until the window has `wanted` bytes or the file ends; returns the bytes read.
    fn fill(&mut self, wanted: usize) -> io::Result<usize> {
        let before = self.window.len();
        if before >= wanted {
            return Ok(0);
        }
        // Frames already taken share the old buffer: leave it to them.
        let mut window = BytesMut::with_capacity(wanted.max(before + READ_BYTES));
        window.extend_from_slice(&self.window);
        window.resize(window.capacity(), 0);
        let mut filled = before;
        while filled < wanted {
            let left = usize::try_from(self.limit.saturating_sub(self.end)).unwrap_or(usize::MAX);
            let until = window.len().min(filled.saturating_add(left));
            match self.file.read_at(&mut window[filled..until], self.end) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.end += read as u64;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if is_unreadable(&cause) => {
                    // Zeros in its place: a frame that it belongs to fails its checksum.
                    let block = BLOCK_BYTES - self.end % BLOCK_BYTES;
                    let block = block.min(self.file.size().saturating_sub(self.end));
                    let skipped = (window.len() - filled).min(usize::try_from(block).unwrap_or(0));
                    if skipped == 0 {
                        break;
                    }
                    window[filled..filled + skipped].fill(0);
                    filled += skipped;
                    self.end += skipped as u64;
                    self.unreadable += skipped as u64;
                }
                Err(cause) => return Err(cause),
            }
        }
        window.truncate(filled);
        self.window = window;
        Ok(filled - before)
    }
}

#[cfg(test)]
mod tests;
