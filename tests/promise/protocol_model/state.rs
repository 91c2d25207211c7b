//! The model's state: Kafka's ledger topic and coordinator, the processes, their log directories.
//! All values are small numbers, because the checker stores millions of states.

/// One of a few events, by number.
pub(crate) type Event = u8;
/// One process's use of a log directory. Every use has a new number, even of a copied directory.
pub(crate) type Opening = u8;
/// Segment and index.
pub(crate) type Place = (u8, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) topic: Vec<Written>,
    /// Ledger records before this offset are deleted: a process that starts now does not read them.
    pub(crate) low: u8,
    /// The coordinator's state for each `kafka.instance`.
    pub(crate) coordinators: Vec<Coordinator>,
    pub(crate) processes: Vec<Process>,
    /// Each process's directory.
    pub(crate) directories: Vec<Directory>,
    /// Events that each process's clients have delivered.
    pub(crate) delivered: Vec<u8>,
    pub(crate) copy: Option<Directory>,
    /// True time, and how far the system clock is ahead of it.
    pub(crate) now: u8,
    pub(crate) skew: u8,
    /// Events whose only durable copy was in a directory that was replaced by an older copy.
    pub(crate) forfeited: u16,
    pub(crate) left: Budget,
    /// The log received a release for an event that is not published.
    pub(crate) covered_unpublished: bool,
}

/// A transaction in the ledger topic: its ledger record, with its events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Written {
    pub(crate) outcome: Outcome,
    pub(crate) log: u8,
    pub(crate) publisher: Opening,
    pub(crate) writer: Opening,
    pub(crate) first: Place,
    pub(crate) last: Place,
    pub(crate) newest: u8,
    /// The directory and the number of times it had been replaced, which identify the order of the
    /// events.
    pub(crate) directory: (u8, u8),
    pub(crate) events: Vec<Published>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    pub(crate) event: Event,
    /// Its number among all entries appended to the directory.
    pub(crate) ordinal: u8,
    /// The true time at which it was received.
    pub(crate) at: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Open,
    Committed,
    Aborted,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Coordinator {
    /// The process that last initialised the name's transactions; none after a time-out.
    pub(crate) owner: Option<u8>,
    /// The offset of the open transaction's ledger record.
    pub(crate) open: Option<u8>,
    /// A commit request is in flight, whether or not its sender still exists.
    pub(crate) commit_requested: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) phase: Phase,
    pub(crate) starts: u8,
    pub(crate) opening: Opening,
    /// The position of the reader of the ledger topic, once it exists.
    pub(crate) next: Option<u8>,
    /// The contents of the ledger in memory.
    pub(crate) ledger: Vec<LedgerStep>,
    /// The last published record of its directory, as far as the process knows.
    pub(crate) released: Place,
    /// The batch: its number of entries, in the transaction at this offset.
    pub(crate) taken: u8,
    pub(crate) mine: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LedgerStep {
    /// The commit at this offset, at this time by the monotonic clock.
    Apply { offset: u8, at: u8 },
    /// No unpublished record was received before this time.
    Expire { oldest: u8, at: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not yet started: a clone that does not exist yet.
    Absent,
    Down,
    /// Without a producer: callbacks are stored and not published.
    Connect,
    /// Waits until every transaction before `end` has ended, and then reads the topic.
    Read {
        end: u8,
    },
    /// Has read the ledger before its producer is initialised (only with a fault).
    ReadEarly,
    Ready,
    /// Its transaction is written, and no conflicting one precedes it.
    Committable,
    /// Has sent the commit request.
    Committing,
    /// A transaction with a common event precedes its own.
    Aborting,
    /// Aborted because of another: waits until every transaction before `end` has ended.
    Settle {
        end: u8,
    },
    /// Aborted because of an error after which the same batch may be sent again.
    Resend,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Directory {
    pub(crate) log: u8,
    pub(crate) segments: Vec<Segment>,
    pub(crate) next_number: u8,
    pub(crate) lineage: Vec<Opening>,
    /// The copy of the progress: a writer and the last of its published records.
    pub(crate) position: Option<(Opening, Place)>,
    /// Records appended so far.
    pub(crate) appended: u8,
    /// The number of times it was replaced by an older copy.
    pub(crate) replaced: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    pub(crate) number: u8,
    pub(crate) writer: Opening,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) event: Event,
    pub(crate) ordinal: u8,
    /// By the system clock, and in true time.
    pub(crate) received: u8,
    pub(crate) at: u8,
}

/// How often each fault may still occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) kills: u8,
    /// Kills that lose the copy of the progress.
    pub(crate) power_cuts: u8,
    pub(crate) lost_answers: u8,
    pub(crate) failed_sends: u8,
    pub(crate) time_outs: u8,
    pub(crate) copies: u8,
    pub(crate) ticks: u8,
    pub(crate) clock_jumps: u8,
    pub(crate) expired_records: u8,
}

impl Budget {
    pub(crate) const NONE: Self = Self {
        kills: 0,
        power_cuts: 0,
        lost_answers: 0,
        failed_sends: 0,
        time_outs: 0,
        copies: 0,
        ticks: 0,
        clock_jumps: 0,
        expired_records: 0,
    };

    /// One more kill, and one more of every fault that occurs at all, except copies.
    pub(crate) fn enlarge(self) -> Self {
        let more = |count: u8| if count == 0 { 0 } else { count + 1 };
        Self {
            kills: self.kills + 1,
            power_cuts: more(self.power_cuts),
            lost_answers: more(self.lost_answers),
            failed_sends: more(self.failed_sends),
            time_outs: more(self.time_outs),
            ticks: more(self.ticks),
            ..self
        }
    }
}

impl State {
    /// The first offset that is not stable.
    pub(crate) fn stable(&self) -> u8 {
        let open = |written: &Written| written.outcome == Outcome::Open;
        self.topic.iter().position(open).unwrap_or(self.topic.len()) as u8
    }

    pub(crate) fn committed(&self) -> impl Iterator<Item = &Written> {
        self.topic.iter().filter(|written| written.outcome == Outcome::Committed)
    }

    pub(crate) fn published(&self) -> impl Iterator<Item = &Published> {
        self.committed().flat_map(|written| &written.events)
    }

    pub(crate) fn is_visible(&self, event: Event) -> bool {
        self.published().any(|published| published.event == event)
    }

    /// The outcome of the last transaction of `process`, if the process does not know it yet.
    pub(crate) fn outcome(&self, process: &Process) -> Option<Outcome> {
        process.mine.map(|mine| self.topic[usize::from(mine)].outcome)
    }
}

impl Directory {
    /// All entries after `released`, in order.
    pub(crate) fn unreleased(&self, released: Place) -> impl Iterator<Item = (&Segment, Place)> {
        let places = |segment: &'_ Segment| {
            let number = segment.number;
            (1..=segment.entries.len() as u8).map(move |index| (number, index))
        };
        self.segments
            .iter()
            .flat_map(move |segment| places(segment).map(move |place| (segment, place)))
            .filter(move |(_, place)| *place > released)
    }

    pub(crate) fn holds(&self, event: Event) -> bool {
        self.segments.iter().flat_map(|segment| &segment.entries).any(|entry| entry.event == event)
    }
}

impl Segment {
    pub(crate) fn entry(&self, place: Place) -> &Entry {
        &self.entries[usize::from(place.1) - 1]
    }
}
