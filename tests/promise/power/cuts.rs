//! Power cuts: where they happen, and what must survive each.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::thread;

use fastrand::Rng;
use livebridge::record::Lsn;
use serde::Deserialize;

use super::disk::{Disk, EVERYTHING, STRICT, Survival, TEARING, VARIANTS};
use super::kafka::{Kafka, Seen};
use super::load::{Callback, Client};
use super::site::{self, Bridge, LOG, Site};
use super::trace::{Event, Trace};
use crate::support::kafka::UNREACHABLE;

/// The mock cluster may drop records beyond this size before they are read.
const PUBLISHED_BYTES_MAX: u64 = 3_000_000;

/// The activity of the bridge at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The first process, until its first response.
    Start,
    /// A group of callbacks is being written.
    Commit,
    /// A large group was written and not yet synced; the cut leaves a part of it.
    Torn,
    /// A segment was created or closed.
    Rotation,
    /// A segment was removed.
    Removal,
    /// A later process, until its first response.
    Recovery,
}

const STAGES: [Stage; 6] =
    [Stage::Start, Stage::Commit, Stage::Torn, Stage::Rotation, Stage::Removal, Stage::Recovery];
/// Writes of this size contain many frames, or a frame of many sectors.
const TORN_BYTES: usize = 16 * 1024;

/// The checks on a directory after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Then {
    /// It is exported.
    Read,
    /// In addition, a bridge is started on it and accepts a callback.
    Start,
    /// In addition, a bridge is started that publishes to an empty Kafka.
    Publish,
}

/// A power cut before the event `index`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PowerCut {
    index: usize,
    stage: Stage,
    survival: Survival,
    then: Then,
}

impl fmt::Display for PowerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut at event {} ({:?}), {}", self.index, self.stage, self.survival.name)
    }
}

impl PowerCut {
    /// At `index`, with no unsynced change surviving.
    pub(crate) fn strict(index: usize) -> Self {
        Self { index, stage: Stage::Commit, survival: STRICT, then: Then::Read }
    }

    /// With a bridge started on the result.
    pub(crate) fn and_start(self) -> Self {
        Self { then: Then::Start, ..self }
    }
}

/// The stage of each event.
fn stages(trace: &Trace) -> Vec<Stage> {
    let mut processes = 0;
    let mut answered = false;
    let mut written = HashSet::new();
    let mut stages = Vec::with_capacity(trace.events.len());
    for traced in &trace.events {
        match &traced.event {
            Event::Start { .. } => {
                processes += 1;
                answered = false;
            }
            Event::Create { inode, .. } => {
                written.remove(inode);
            }
            // sled does this only with data files.
            Event::FlushRange { inode } => {
                written.insert(*inode);
            }
            _ => {}
        }
        let starting = if processes == 1 { Stage::Start } else { Stage::Recovery };
        stages.push(match &traced.event {
            _ if !answered && !matches!(traced.event, Event::Response { .. }) => starting,
            Event::Response { .. } => {
                answered = true;
                Stage::Commit
            }
            Event::Unlink { .. } | Event::Rmdir { .. } => Stage::Removal,
            event if event.is_removal() => Stage::Removal,
            Event::Write { inode, .. } | Event::Sync { inode } if written.contains(inode) => {
                Stage::Commit
            }
            Event::FlushRange { .. } => Stage::Commit,
            _ => Stage::Rotation,
        });
    }
    stages
}

/// About `count` cuts, spread over the stages, most of them just before or after an event that
/// makes data durable, changes a name or sends a response.
pub(crate) fn choose(trace: &Trace, count: usize, rng: &mut Rng) -> Vec<PowerCut> {
    let mut edges: BTreeMap<Stage, Vec<usize>> = BTreeMap::new();
    let mut large = None;
    for (index, stage) in stages(trace).into_iter().enumerate() {
        match &trace.events[index].event {
            Event::Write { inode, data, .. } if data.len() >= TORN_BYTES => large = Some(*inode),
            Event::Sync { inode } if large == Some(*inode) => {
                edges.entry(Stage::Torn).or_default().push(index);
                large = None;
            }
            _ => {}
        }
        let between = matches!(
            trace.events[index].event,
            Event::Write { .. } | Event::FlushRange { .. } | Event::Size { .. }
        );
        let places = edges.entry(stage).or_default();
        // Points between two writes are the most numerous kind; take only some of them.
        if !between || rng.u32(..1000) < 250 {
            places.extend([index, index + 1]);
        }
    }
    let mut cuts = Vec::new();
    let share = count.div_ceil(edges.len());
    for stage in STAGES {
        let Some(places) = edges.get_mut(&stage) else { continue };
        places.dedup();
        let mut left = Vec::new();
        for _ in 0..share {
            if left.is_empty() {
                left.clone_from(places);
            }
            let index = left.swap_remove(rng.usize(..left.len()));
            let survival = match stage {
                Stage::Torn => TEARING[rng.usize(..TEARING.len())],
                _ if rng.u32(..1000) < 333 => STRICT,
                _ => VARIANTS[rng.usize(..VARIANTS.len())],
            };
            let then = match rng.usize(..15) {
                0 => Then::Publish,
                1 | 2 => Then::Start,
                _ => Then::Read,
            };
            cuts.push(PowerCut { index, stage, survival, then });
        }
    }
    cuts.push(PowerCut::strict(trace.events.len()).and_start());
    cuts.sort_unstable_by_key(|cut| cut.index);
    cuts
}

/// The results of the cuts.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    cuts: BTreeMap<Stage, usize>,
    starts: usize,
    records: usize,
    pub(crate) failures: Vec<String>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        for (stage, cuts) in other.cuts {
            *self.cuts.entry(stage).or_default() += cuts;
        }
        self.starts += other.starts;
        self.records += other.records;
        self.failures.extend(other.failures);
    }

    pub(crate) fn cuts(&self) -> usize {
        self.cuts.values().sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, starts, records, failures } = self;
        let failed = failures.len();
        write!(f, "{} cuts {cuts:?}, {starts} starts, {records} records read", self.cuts())?;
        write!(f, ", {failed} failed")
    }
}

/// The history that is cut, and its acknowledged callbacks.
#[derive(Debug)]
pub(crate) struct History<'a> {
    pub(crate) trace: &'a Trace,
    /// The event at which each callback was acknowledged, in order.
    pub(crate) acknowledged: &'a [(usize, Callback)],
    /// The contents of Kafka, if there was one.
    pub(crate) kafka: Option<&'a Seen>,
}

impl History<'_> {
    /// Checks each of `cuts`, on all processors.
    pub(crate) fn cut(&self, cuts: &[PowerCut], seed: u64) -> Outcome {
        let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let mut outcome = Outcome::default();
        thread::scope(|scope| {
            let work =
                |worker| move || self.cut_some(cuts.iter().skip(worker).step_by(workers), seed);
            let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(work(worker))).collect();
            for worker in workers {
                outcome.add(worker.join().expect("a worker that does not panic"));
            }
        });
        outcome
    }

    fn cut_some<'c>(&self, cuts: impl Iterator<Item = &'c PowerCut>, seed: u64) -> Outcome {
        let mut disk = Disk::new(self.trace);
        let mut applied = 0;
        let mut outcome = Outcome::default();
        for cut in cuts {
            for traced in &self.trace.events[applied..cut.index] {
                disk.apply(&traced.event);
            }
            applied = cut.index;
            // The seed depends on the cut, not on the thread that checks it.
            let mut rng = Rng::with_seed(seed.rotate_left(32) ^ cut.index as u64);
            let left = site::temporary();
            let left = left.path().join("disk");
            fs::create_dir(&left).expect("a directory");
            disk.rebuild(cut.survival, &mut rng, &left);
            *outcome.cuts.entry(cut.stage).or_default() += 1;
            outcome.starts += usize::from(cut.then >= Then::Start);
            match self.judge(cut, &left.join(LOG)) {
                Ok(records) => outcome.records += records,
                Err(failure) => outcome.failures.push(format!("{cut}: {failure}")),
            }
        }
        outcome
    }

    /// Whether every callback acknowledged before the cut is in the log in `dir`, or was published.
    /// Returns the number of records read.
    fn judge(&self, cut: &PowerCut, dir: &Path) -> Result<usize, String> {
        let stored = read(&site::export(dir)?)?;
        let end = self.acknowledged.partition_point(|(index, _)| *index < cut.index);
        let place = self.trace.events.get(cut.index).map_or(usize::MAX, |traced| traced.place);
        let snapshot = self.kafka.and_then(|seen| Some((seen, seen.snapshot_before(place)?)));
        for (_, callback) in &self.acknowledged[..end] {
            let published =
                || snapshot.is_some_and(|(seen, snapshot)| seen.had(snapshot, *callback));
            if !stored.contains_key(callback) && !published() {
                let ever = self.kafka.is_some_and(|seen| seen.has(*callback));
                let later = if ever { "; Kafka has it later" } else { "" };
                return Err(format!("acknowledged callback {callback} is lost{later}"));
            }
        }
        // Records that Kafka and the log's own progress name as published are skipped.
        let ledger = snapshot.map_or(Lsn::ZERO, |(_, snapshot)| snapshot.progress);
        let noted = noted_progress(dir);
        let skipped = stored.iter().find(|(callback, number)| {
            let in_ledger = snapshot.is_some_and(|(seen, snapshot)| seen.had(snapshot, **callback));
            let in_kafka = self.kafka.is_some_and(|seen| seen.has(**callback));
            **number <= ledger && !in_ledger || **number <= noted && !in_kafka
        });
        if let Some((callback, number)) = skipped {
            return Err(format!("{callback} at {number} would count as published"));
        }
        if cut.then >= Then::Start {
            let mut left = stored.clone();
            left.retain(|_, number| *number > noted);
            start_on(dir, &left, ledger.max(noted))?;
            let bytes: u64 = left.keys().map(|callback| u64::from(callback.bytes)).sum();
            if cut.then == Then::Publish && bytes < PUBLISHED_BYTES_MAX {
                publish_from(dir, &left)?;
            }
        }
        Ok(stored.len())
    }
}

/// The position that the log in `dir` has stored as published, in its progress or its audit totals;
/// none if both are torn.
fn noted_progress(dir: &Path) -> Lsn {
    let text = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let identity = text("log");
    let Some((_, id)) = identity.trim().split_once(", id ") else { return Lsn::ZERO };
    let sums_up = |text: &str, checksum: &str| {
        checksum == format!("{:08x}", crc32fast::hash(format!("{id} {text}").as_bytes()))
    };
    let progress = || {
        let note = text("progress");
        let (position, checksum) = note.trim().rsplit_once(' ')?;
        let (_writer, lsn) = position.split_once(' ')?;
        sums_up(position, checksum).then(|| Lsn::parse(lsn)).flatten()
    };
    let self_audit = || {
        let note = text("self-audit");
        let (figures, checksum) = note.trim().split_once("checksum ")?;
        let done = figures.lines().find_map(|line| line.strip_prefix("done "))?;
        let (lsn, _writer) = done.split_once(' ')?;
        sums_up(figures, checksum).then(|| Lsn::parse(lsn)).flatten()
    };
    progress().max(self_audit()).unwrap_or(Lsn::ZERO)
}

/// Starts a bridge after the cut, which must lose nothing and accept a callback under an LSN that
/// was never `used`.
fn start_on(dir: &Path, before: &HashMap<Callback, Lsn>, used: Lsn) -> Result<(), String> {
    let bridge = Bridge::start(dir, UNREACHABLE)?;
    let mut client = Client::connect(bridge.process(), bridge.address());
    let callback = Callback { connection: u32::MAX, number: 0, bytes: 100 };
    client.send(callback).map_err(|cause| format!("a callback after the restart: {cause}"))?;
    bridge.kill();
    let mut after = read(&site::export(dir)?)?;
    let number = after.remove(&callback).ok_or("the callback after the restart is lost")?;
    if number <= used || before.values().any(|earlier| number <= *earlier) {
        return Err(format!("number {number} was given before"));
    }
    // Published records may have been removed by then.
    after.retain(|callback, _| before.contains_key(callback));
    if after != *before {
        return Err("the restart changed what was stored".to_owned());
    }
    Ok(())
}

/// A bridge publishes the stored records to an empty Kafka.
fn publish_from(dir: &Path, stored: &HashMap<Callback, Lsn>) -> Result<(), String> {
    let kafka = Kafka::start();
    let bridge = Bridge::start(dir, kafka.brokers())?;
    let complete = kafka.comes_to(|seen| stored.keys().all(|callback| seen.has(*callback)));
    bridge.kill();
    if complete { Ok(()) } else { Err("what is stored does not reach Kafka".to_owned()) }
}

/// A line of the export.
#[derive(Deserialize)]
struct Line<'a> {
    lsn: &'a str,
    #[serde(borrow)]
    body: Cow<'a, str>,
}

/// The exported callbacks: each unchanged, once, with ascending LSNs, and those of one connection
/// in the order of sending.
fn read(export: &str) -> Result<HashMap<Callback, Lsn>, String> {
    let mut found = HashMap::new();
    let mut last = Lsn::ZERO;
    let mut connections: HashMap<u32, u32> = HashMap::new();
    for line in export.lines() {
        let line: Line<'_> = serde_json::from_str(line).map_err(|cause| cause.to_string())?;
        let lsn = Lsn::parse(line.lsn).ok_or_else(|| format!("{} is no number", line.lsn))?;
        let callback = Callback::of(&line.body)
            .ok_or_else(|| format!("the body at {lsn} is none that was sent"))?;
        if lsn <= last {
            return Err(format!("{lsn} comes after {last}"));
        }
        last = lsn;
        if connections
            .insert(callback.connection, callback.number)
            .is_some_and(|before| before >= callback.number)
        {
            return Err(format!("{callback} is stored twice, or out of order"));
        }
        found.insert(callback, lsn);
    }
    Ok(found)
}

/// Whether the trace explains every change in the directory.
pub(crate) fn assert_complete(site: &Site, trace: &Trace) {
    let mut disk = Disk::new(trace);
    let mut applied = 0;
    for (length, image) in site.images() {
        while let Some(traced) = trace.events.get(applied).filter(|next| next.place < *length) {
            disk.apply(&traced.event);
            applied += 1;
        }
        let rebuilt = site::temporary();
        disk.rebuild(EVERYTHING, &mut Rng::with_seed(0), rebuilt.path());
        let rebuilt = site::image(rebuilt.path());
        for (path, content) in image {
            let traced = rebuilt.get(path);
            assert_eq!(
                traced,
                Some(content),
                "the shim did not record a change of {}",
                path.display()
            );
        }
        assert_eq!(rebuilt.len(), image.len(), "the shim did not record a removal");
    }
}
