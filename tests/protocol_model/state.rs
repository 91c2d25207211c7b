//! What the model's state is made of: Kafka's ledger topic and coordinator, the processes, their
//! log directories. Everything is small numbers, because the checker keeps millions of states.

/// One of a few events, by number.
pub(crate) type Event = u8;
/// One process's use of a log directory. No two are equal, whatever happens to directories.
pub(crate) type Opening = u8;
/// Segment and index.
pub(crate) type Place = (u8, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) topic: Vec<Written>,
    /// Ledger records before this offset are deleted: nobody who starts now reads them.
    pub(crate) low: u8,
    /// What the coordinator knows of each `kafka.instance`.
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
    /// The log was told that an event is published which is not.
    pub(crate) covered_unpublished: bool,
}

/// A transaction as it stands in the ledger topic: its ledger record, with the events beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Written {
    pub(crate) outcome: Outcome,
    pub(crate) log: u8,
    pub(crate) publisher: Opening,
    pub(crate) writer: Opening,
    pub(crate) first: Place,
    pub(crate) last: Place,
    pub(crate) newest: u8,
    /// Directory, and how often it had been replaced: whose order the events are in.
    pub(crate) directory: (u8, u8),
    pub(crate) events: Vec<Published>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    pub(crate) event: Event,
    /// Its number among all that was appended to the directory.
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
    /// The process that initialised the name's transactions last; nobody after a time-out.
    pub(crate) owner: Option<u8>,
    /// The offset of the open transaction's ledger record.
    pub(crate) open: Option<u8>,
    /// A request to commit it is on its way, whether or not its sender still lives.
    pub(crate) commit_requested: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) phase: Phase,
    pub(crate) starts: u8,
    pub(crate) opening: Opening,
    /// Where the reader of the ledger topic stands, once it has one.
    pub(crate) next: Option<u8>,
    /// What made up the ledger in memory.
    pub(crate) ledger: Vec<LedgerStep>,
    /// The last record of its directory that is published, as far as it knows.
    pub(crate) released: Place,
    /// The batch: so many entries, in the transaction at this offset.
    pub(crate) taken: u8,
    pub(crate) mine: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LedgerStep {
    /// The commit at this offset, at this time by the monotonic clock.
    Apply { offset: u8, at: u8 },
    /// No record is left that was received earlier.
    Expire { oldest: u8, at: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not started for the first time: a clone that is yet to be made.
    Absent,
    Down,
    /// No producer: callbacks are stored, nothing is published.
    Connect,
    /// Waits until everything before `end` is decided, to read it.
    Read {
        end: u8,
    },
    /// Has read the ledger before its producer is initialised (only with a fault).
    ReadEarly,
    Ready,
    /// Its transaction is written and no other stands before it.
    Committable,
    /// Has asked for the commit.
    Committing,
    /// Another transaction with an event of its own stands before it.
    Aborting,
    /// Aborted because of another: waits until everything before `end` is decided.
    Settle {
        end: u8,
    },
    /// Aborted because of an error that allows to send the same again.
    Resend,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Directory {
    pub(crate) log: u8,
    pub(crate) segments: Vec<Segment>,
    pub(crate) next_number: u8,
    pub(crate) lineage: Vec<Opening>,
    /// The copy of the progress: a writer and the last of its records that is published.
    pub(crate) position: Option<(Opening, Place)>,
    /// Records appended so far.
    pub(crate) appended: u8,
    /// How often it was replaced by an older copy.
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
    /// By the system clock, and in truth.
    pub(crate) received: u8,
    pub(crate) at: u8,
}

/// How often each disturbance may still happen.
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

    /// One more kill, and one more of everything else that there is but copies and the like.
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

    /// The outcome of the transaction that `process` began last, if it does not know it yet.
    pub(crate) fn outcome(&self, process: &Process) -> Option<Outcome> {
        process.mine.map(|mine| self.topic[usize::from(mine)].outcome)
    }
}

impl Directory {
    /// Everything behind `released`, in order.
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
