//! A model of a disk under a file system with only the guarantees of POSIX.
//!
//! Durable are a file's content and size as of its last `fsync` or `fdatasync`, and a directory's
//! entries as of the directory's last `fsync`. Each later change may be on the disk or not: every
//! 512-byte sector and every entry independently, in any order. `sync_file_range` makes nothing
//! durable. Data of a killed process stays in the page cache: a kill changes nothing here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

use fastrand::Rng;

use super::trace::{Event, Trace};

const SECTOR: u64 = 512;

/// Which of the unsynced changes survive the cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survival {
    pub(crate) name: &'static str,
    /// Per mille of the written blocks that survive.
    data: u32,
    /// Per mille of the directory entries that survive.
    names: u32,
    /// The size of a block; 0 for whole writes.
    piece: u64,
    /// A lost block after the durable end of a file contains the previous data of that disk block,
    /// a part of another file, instead of zeros.
    stale: bool,
}

/// No unsynced change survives.
pub(crate) const STRICT: Survival =
    Survival { name: "nothing unsynced", data: 0, names: 0, piece: SECTOR, stale: false };
/// As if only the process had been killed.
pub(crate) const EVERYTHING: Survival =
    Survival { name: "everything", data: 1000, names: 1000, piece: SECTOR, stale: false };
/// The variants of a cut besides [`STRICT`]: those that tear writes,
#[rustfmt::skip]
pub(crate) const TEARING: [Survival; 5] = [
    Survival { name: "half of the sectors", data: 500, names: 500, piece: SECTOR, stale: false },
    Survival { name: "nearly all sectors", data: 950, names: 500, piece: SECTOR, stale: true },
    Survival { name: "few sectors", data: 100, names: 500, piece: SECTOR, stale: true },
    Survival { name: "half of the pages", data: 500, names: 900, piece: 4096, stale: true },
    Survival { name: "half of the writes", data: 500, names: 500, piece: 0, stale: false },
];
/// and those that separate data from names.
#[rustfmt::skip]
pub(crate) const VARIANTS: [Survival; 8] = [
    TEARING[0], TEARING[1], TEARING[2], TEARING[3], TEARING[4],
    Survival { name: "names without data", data: 0, names: 1000, piece: SECTOR, stale: true },
    Survival { name: "any subset of names", data: 0, names: 500, piece: SECTOR, stale: false },
    Survival { name: "data without names", data: 1000, names: 0, piece: SECTOR, stale: false },
];

type Id = usize;

#[derive(Debug)]
enum Inode {
    Dir { durable: BTreeMap<String, Id>, current: BTreeMap<String, Id>, pending: Vec<NameChange> },
    File { durable: Vec<u8>, pending: Vec<Change> },
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(String, Id),
    Remove(String),
    /// Within one directory a rename is atomic.
    Move {
        from: String,
        to: String,
        id: Id,
    },
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Range<usize> },
    Size(u64),
}

/// The disk after the applied events.
#[derive(Debug)]
pub(crate) struct Disk<'a> {
    trace: &'a Trace,
    /// Index 0 is the traced directory.
    inodes: Vec<Inode>,
    by_number: HashMap<u64, Id>,
}

impl<'a> Disk<'a> {
    /// An empty, durable directory.
    pub(crate) fn new(trace: &'a Trace) -> Self {
        Self { trace, inodes: vec![new_dir()], by_number: HashMap::new() }
    }

    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Start { root } => {
                self.by_number.insert(*root, 0);
            }
            Event::Create { parent, inode, name } => {
                let file = Inode::File { durable: Vec::new(), pending: Vec::new() };
                self.add(*parent, *inode, name, file);
            }
            Event::Mkdir { parent, inode, name } => self.add(*parent, *inode, name, new_dir()),
            Event::Write { inode, offset, data } => {
                let change = Change::Write { offset: *offset, data: data.clone() };
                self.change(*inode, change);
            }
            Event::Size { inode, size } => self.change(*inode, Change::Size(*size)),
            Event::Rename { from, to } => self.rename(from, to),
            Event::Unlink { parent, name } | Event::Rmdir { parent, name } => {
                self.change_names(*parent, NameChange::Remove(name.clone()));
            }
            Event::Sync { inode } => self.sync(*inode),
            Event::FlushRange { .. } | Event::Response { .. } => {}
        }
    }

    fn id(&self, number: u64) -> Id {
        *self.by_number.get(&number).expect("a file that was made under the shim")
    }

    fn add(&mut self, parent: u64, number: u64, name: &str, inode: Inode) {
        let id = self.inodes.len();
        self.inodes.push(inode);
        self.by_number.insert(number, id);
        self.change_names(parent, NameChange::Set(name.to_owned(), id));
    }

    fn change(&mut self, number: u64, change: Change) {
        let id = self.id(number);
        let Inode::File { pending, .. } = &mut self.inodes[id] else { panic!("not a file") };
        pending.push(change);
    }

    fn change_names(&mut self, dir: u64, change: NameChange) {
        let id = self.id(dir);
        let Inode::Dir { current, pending, .. } = &mut self.inodes[id] else {
            panic!("not a directory")
        };
        change.apply(current);
        pending.push(change);
    }

    fn rename(&mut self, (from_dir, from): &(u64, String), (to_dir, to): &(u64, String)) {
        let Inode::Dir { current, .. } = &self.inodes[self.id(*from_dir)] else {
            panic!("not a directory")
        };
        let id = *current.get(from).expect("an entry to rename");
        if from_dir == to_dir {
            let change = NameChange::Move { from: from.clone(), to: to.clone(), id };
            self.change_names(*from_dir, change);
        } else {
            self.change_names(*to_dir, NameChange::Set(to.clone(), id));
            self.change_names(*from_dir, NameChange::Remove(from.clone()));
        }
    }

    fn sync(&mut self, number: u64) {
        let id = self.id(number);
        match &mut self.inodes[id] {
            Inode::Dir { durable, current, pending } => {
                durable.clone_from(current);
                pending.clear();
                self.collect();
            }
            Inode::File { durable, pending } => {
                for change in pending.drain(..) {
                    change.apply(durable, self.trace);
                }
            }
        }
    }

    /// Drops the contents of files that no cut can restore.
    fn collect(&mut self) {
        let mut reachable = HashSet::from([0]);
        let mut todo = vec![0];
        while let Some(id) = todo.pop() {
            if let Inode::Dir { durable, current, pending } = &self.inodes[id] {
                let pending = pending.iter().filter_map(NameChange::target);
                let entries = durable.values().chain(current.values()).copied().chain(pending);
                todo.extend(entries.filter(|id| reachable.insert(*id)));
            }
        }
        for (id, inode) in self.inodes.iter_mut().enumerate() {
            if let (false, Inode::File { durable, pending }) = (reachable.contains(&id), inode) {
                *durable = Vec::new();
                *pending = Vec::new();
            }
        }
    }

    /// Writes the state after a cut to the empty directory `target`.
    pub(crate) fn rebuild(&self, survival: Survival, rng: &mut Rng, target: &Path) {
        let stale = if survival.stale { self.some_content(rng) } else { &[] };
        self.rebuild_dir(0, survival, rng, stale, target);
    }

    fn rebuild_dir(&self, id: Id, survival: Survival, rng: &mut Rng, stale: &[u8], target: &Path) {
        let Inode::Dir { durable, pending, .. } = &self.inodes[id] else {
            panic!("not a directory")
        };
        let mut entries = durable.clone();
        for change in pending {
            if rng.u32(..1000) < survival.names {
                change.apply(&mut entries);
            }
        }
        for (name, id) in entries {
            let path = target.join(name);
            match &self.inodes[id] {
                Inode::Dir { .. } => {
                    fs::create_dir(&path).expect("a directory can be made");
                    self.rebuild_dir(id, survival, rng, stale, &path);
                }
                Inode::File { durable, pending } if pending.is_empty() => {
                    fs::write(&path, durable).expect("a file can be written");
                }
                Inode::File { durable, pending } => {
                    let content = self.survivors(durable, pending, survival, rng, stale);
                    fs::write(&path, content).expect("a file can be written");
                }
            }
        }
    }

    /// The content after a cut of a file whose durable content has `pending` changes.
    fn survivors(
        &self,
        durable: &[u8],
        pending: &[Change],
        survival: Survival,
        rng: &mut Rng,
        stale: &[u8],
    ) -> Vec<u8> {
        if survival.data == 0 && !survival.stale {
            return durable.to_vec();
        }
        // The size is one that the file had since its last sync.
        let mut sizes = vec![durable.len() as u64];
        for change in pending {
            let before = *sizes.last().expect("never empty");
            sizes.push(match change {
                Change::Write { offset, data } => before.max(offset + data.len() as u64),
                Change::Size(size) => *size,
            });
        }
        let last = if survival.data == 1000 { sizes.len() - 1 } else { rng.usize(..sizes.len()) };
        let mut content = durable.to_vec();
        let mut dead = HashSet::new();
        for (index, change) in pending.iter().enumerate() {
            match change {
                Change::Write { offset, data } => {
                    let piece = if survival.piece == 0 { u64::MAX } else { survival.piece };
                    let mut alive = rng.u32(..1000) < survival.data;
                    let mut at = 0;
                    while at < data.len() {
                        let place = offset + at as u64;
                        let sector_end = (place / SECTOR + 1) * SECTOR;
                        let length = usize::try_from(sector_end - place).expect("a sector");
                        let end = data.len().min(at + length);
                        if at > 0 && place.is_multiple_of(piece) {
                            alive = rng.u32(..1000) < survival.data;
                        }
                        // A sector is written atomically: it may lack this change and have later
                        // ones, or the reverse.
                        if alive && !dead.contains(&(place / SECTOR)) {
                            let bytes = &self.trace.data(data)[at..end];
                            overwrite(&mut content, place, bytes);
                        } else if dead.insert(place / SECTOR) && place >= durable.len() as u64 {
                            overwrite(&mut content, place, &stale_sector(stale, place)[..end - at]);
                        }
                        at = end;
                    }
                }
                Change::Size(_) if index < last => change.apply(&mut content, self.trace),
                Change::Size(_) => {}
            }
        }
        content.resize(usize::try_from(sizes[last]).expect("a file in memory"), 0);
        content
    }

    /// A file's content, which appears where data was lost.
    fn some_content(&self, rng: &mut Rng) -> &[u8] {
        let files: Vec<&Vec<u8>> = self
            .inodes
            .iter()
            .filter_map(|inode| match inode {
                Inode::File { durable, .. } if durable.len() >= 4096 => Some(durable),
                _ => None,
            })
            .collect();
        if files.is_empty() { &[] } else { files[rng.usize(..files.len())] }
    }
}

fn new_dir() -> Inode {
    Inode::Dir { durable: BTreeMap::new(), current: BTreeMap::new(), pending: Vec::new() }
}

fn overwrite(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let offset = usize::try_from(offset).expect("a file in memory");
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The sector of `stale` that replaces the one at `place`: shifted by a few, so that consecutive
/// sectors stay consecutive at another position.
fn stale_sector(stale: &[u8], place: u64) -> Vec<u8> {
    const SHIFT: usize = 7;
    let sector = SECTOR.try_into().unwrap_or(usize::MAX);
    let sectors = stale.len() / sector;
    if sectors == 0 {
        return vec![0; sector];
    }
    let index = (usize::try_from(place / SECTOR).unwrap_or(0) + SHIFT) % sectors;
    stale[index * sector..(index + 1) * sector].to_vec()
}

impl NameChange {
    fn apply(&self, entries: &mut BTreeMap<String, Id>) {
        match self {
            Self::Set(name, id) => {
                entries.insert(name.clone(), *id);
            }
            Self::Remove(name) => {
                entries.remove(name);
            }
            Self::Move { from, to, id } => {
                // The old name may refer to something newer, or to something older if an earlier
                // change did not survive.
                if entries.get(from) == Some(id) {
                    entries.remove(from);
                }
                entries.insert(to.clone(), *id);
            }
        }
    }

    fn target(&self) -> Option<Id> {
        match self {
            Self::Set(_, id) | Self::Move { id, .. } => Some(*id),
            Self::Remove(_) => None,
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>, trace: &Trace) {
        match self {
            Self::Write { offset, data } => overwrite(content, *offset, trace.data(data)),
            Self::Size(size) => {
                content.resize(usize::try_from(*size).expect("a file in memory"), 0);
            }
        }
    }
}
