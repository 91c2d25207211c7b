//! The effect of each step of a process on the state.

use super::decisions;
use super::state::{
    Coordinator, Entry, LedgerStep, Outcome, Phase, Place, Process, Segment, State, Written,
};
use super::steps::{Fault, Protocol, Step};

impl Protocol {
    /// A step of a process.
    pub(crate) fn advance(&self, state: &mut State, step: Step) -> Option<()> {
        match step {
            Step::Append(at) => self.append(state, at),
            Step::Start(at) => self.start(state, at),
            Step::Init(at) => self.init(state, at),
            Step::Read(at) => self.read_ledger(state, at),
            Step::Batch { process, ledger_arrived } => self.batch(state, process, ledger_arrived),
            Step::RequestCommit(at) => self.request_commit(state, at),
            Step::TakeAnswer(at) => self.take_answer(state, at),
            Step::Abort(at) => {
                if self.abort(state, at) {
                    let end = state.topic.len() as u8;
                    let process = &mut state.processes[at];
                    process.phase = Phase::Settle { end };
                    process.mine = None;
                    process.taken = 0;
                    if state.stable() >= end {
                        self.settle(state, at);
                    }
                }
            }
            Step::Settle(at) => {
                self.settle(state, at);
            }
            Step::Resend(at) => {
                let mine = usize::from(state.processes[at].mine?);
                let written = Written { outcome: Outcome::Open, ..state.topic[mine].clone() };
                self.hand_over(state, at, written);
            }
            Step::ExpireIdle(at) => {
                let step = self.idle_expiry(state, at)?;
                state.processes[at].ledger.push(step);
            }
            _ => return None,
        }
        Some(())
    }

    fn read_ledger(&self, state: &mut State, at: usize) {
        match state.processes[at].phase {
            Phase::Connect if self.fault == Some(Fault::SettledLedgerReadBeforeInit) => {
                self.open_reader(state, at);
                let end = state.topic.len() as u8;
                state.processes[at].phase = Phase::Read { end };
            }
            Phase::Connect => {
                self.open_reader(state, at);
                self.read(state, at, state.stable());
                state.processes[at].phase = Phase::ReadEarly;
            }
            Phase::Read { end } if self.reads_first() => {
                self.read(state, at, end);
                state.processes[at].phase = Phase::ReadEarly;
            }
            _ => self.read_and_resume(state, at),
        }
    }

    fn request_commit(&self, state: &mut State, at: usize) {
        if !self.is_own(state, at) {
            state.processes[at].phase = Phase::Connect;
            return;
        }
        state.coordinators[self.name(at)].commit_requested = true;
        state.processes[at].phase = Phase::Committing;
        if self.fault == Some(Fault::ReleasedBeforeAnswer)
            && let Some(mine) = state.processes[at].mine
        {
            let last = state.topic[usize::from(mine)].last;
            release(state, at, last);
        }
    }

    pub(crate) fn lose_answer(&self, state: &mut State, at: usize) {
        state.left.lost_answers -= 1;
        let is_decided = state.outcome(&state.processes[at]) != Some(Outcome::Open);
        let resends = self.fault == Some(Fault::LostAnswerIsAbort) && is_decided;
        state.processes[at].phase = if resends { Phase::Resend } else { Phase::Connect };
    }

    fn name(&self, process: usize) -> usize {
        self.processes[process].0.into()
    }

    /// Reads the ledger topic up to `end`.
    fn read(&self, state: &mut State, at: usize, end: u8) {
        let now = self.monotonic(state);
        let process = &mut state.processes[at];
        let next = process.next.unwrap_or(end);
        for offset in next..end.max(next) {
            let is_committed = state.topic[usize::from(offset)].outcome == Outcome::Committed;
            let step = LedgerStep::Apply { offset, at: now };
            let is_known = process.has_applied(offset);
            if is_committed && !is_known {
                process.ledger.push(step);
            }
        }
        process.next = Some(end.max(next));
        self.normalise(process);
    }

    /// Without a window the order of commits is irrelevant.
    fn normalise(&self, process: &mut Process) {
        if self.window.is_none() {
            process.ledger.sort_unstable_by_key(|step| match step {
                LedgerStep::Apply { offset, .. } => *offset,
                LedgerStep::Expire { .. } => 0,
            });
        }
    }

    /// The clock that determines the age of IDs.
    pub(crate) fn monotonic(&self, state: &State) -> u8 {
        let skew = if self.fault == Some(Fault::WallClockWindow) { state.skew } else { 0 };
        state.now + skew
    }

    /// The ledger is read: the process continues after its position.
    fn resume(&self, state: &mut State, at: usize) {
        let done = decisions::resume(self, state, at);
        release(state, at, done);
        let process = &mut state.processes[at];
        process.phase = Phase::Ready;
        process.taken = 0;
    }

    fn init(&self, state: &mut State, at: usize) {
        let coordinator = &mut state.coordinators[self.name(at)];
        if let Some(open) = coordinator.open {
            state.topic[usize::from(open)].outcome = Outcome::Aborted;
        }
        *coordinator = Coordinator { owner: Some(at as u8), open: None, commit_requested: false };
        if state.processes[at].phase == Phase::ReadEarly {
            return self.resume(state, at);
        }
        let end = state.topic.len() as u8;
        self.open_reader(state, at);
        state.processes[at].phase = Phase::Read { end };
        // No wait is needed: steps of others before the end of the read do not change the result.
        if state.stable() >= end {
            self.read_and_resume(state, at);
        }
    }

    fn read_and_resume(&self, state: &mut State, at: usize) {
        let Phase::Read { end } = state.processes[at].phase else { return };
        self.read(state, at, end);
        self.resume(state, at);
    }

    fn settle(&self, state: &mut State, at: usize) {
        let Phase::Settle { end } = state.processes[at].phase else { return };
        self.read(state, at, end);
        state.processes[at].phase = Phase::Ready;
    }

    fn open_reader(&self, state: &mut State, at: usize) {
        if state.processes[at].next.is_none() {
            state.processes[at].next = Some(decisions::start(self, state, at));
        }
    }

    fn batch(&self, state: &mut State, at: usize, ledger_arrived: bool) {
        if ledger_arrived {
            self.read(state, at, state.stable());
        }
        if self.fault == Some(Fault::ExpiryIgnoresBacklog) {
            let step =
                LedgerStep::Expire { oldest: state.now + state.skew, at: self.monotonic(state) };
            state.processes[at].ledger.push(step);
        }
        state.processes[at].mine = None;
        let process = &state.processes[at];
        let unreleased = state.directories[at].unreleased(process.released);
        let mut taken: Vec<_> = unreleased.take(self.batch).collect();
        // As in the log's reader, a batch has one writer.
        let writer = taken[0].0.writer;
        taken.retain(|(segment, _)| segment.writer == writer);
        let (count, last) = (taken.len() as u8, taken[taken.len() - 1].1);
        let written = decisions::batch(self, state, at, &taken);
        let Some(written) = written else {
            return self.finish(state, at, last);
        };
        state.processes[at].taken = count;
        self.hand_over(state, at, written);
    }

    /// Writes the transaction, and looks for conflicting ones before it.
    fn hand_over(&self, state: &mut State, at: usize, written: Written) {
        let mine = state.topic.len() as u8;
        let coordinator = &mut state.coordinators[self.name(at)];
        let process = &mut state.processes[at];
        if coordinator.owner != Some(at as u8) {
            // Fenced.
            process.phase = Phase::Connect;
            return;
        }
        coordinator.open = Some(mine);
        process.mine = Some(mine);
        state.topic.push(written);
        let process = &state.processes[at];
        let contended = self.fault != Some(Fault::NoContentionCheck)
            && decisions::is_contended(self, state, process);
        state.processes[at].phase = if contended { Phase::Aborting } else { Phase::Committable };
    }

    /// Everything up to `last` is published.
    fn finish(&self, state: &mut State, at: usize, last: Place) {
        let now = self.monotonic(state);
        let segment = |segment: &&Segment| segment.number == last.0;
        let received = state.directories[at].segments.iter().find(segment);
        let received = received.map_or(0, |segment| segment.entry(last).received);
        release(state, at, last);
        let process = &mut state.processes[at];
        if let Some(offset) = process.mine.take() {
            process.ledger.push(LedgerStep::Apply { offset, at: now });
        }
        if self.window.is_some() {
            process.ledger.push(LedgerStep::Expire { oldest: received, at: now });
        }
        self.normalise(process);
        process.taken = 0;
        process.phase = Phase::Ready;
    }

    fn take_answer(&self, state: &mut State, at: usize) {
        let process = &state.processes[at];
        if state.outcome(process) == Some(Outcome::Committed) {
            let taken = usize::from(process.taken);
            let mut unreleased = state.directories[at].unreleased(process.released);
            if let Some((_, last)) = unreleased.nth(taken.saturating_sub(1)) {
                drop(unreleased);
                self.finish(state, at, last);
            }
        } else {
            state.processes[at].phase = Phase::Connect;
        }
    }

    /// Whether the process can still end its transaction.
    fn is_own(&self, state: &State, at: usize) -> bool {
        let coordinator = &state.coordinators[self.name(at)];
        coordinator.owner == Some(at as u8)
            && coordinator.open.is_some()
            && coordinator.open == state.processes[at].mine
    }

    /// Aborts the open transaction of a process; returns whether it could.
    pub(crate) fn abort(&self, state: &mut State, at: usize) -> bool {
        let is_own = self.is_own(state, at);
        if is_own {
            let coordinator = &mut state.coordinators[self.name(at)];
            if let Some(open) = coordinator.open.take() {
                state.topic[usize::from(open)].outcome = Outcome::Aborted;
            }
        } else {
            state.processes[at].phase = Phase::Connect;
        }
        is_own
    }

    pub(crate) fn kill(&self, state: &mut State, at: usize) {
        let name = self.name(at);
        let process = &mut state.processes[at];
        *process = Process { phase: Phase::Down, starts: process.starts, ..Process::new() };
        let coordinator = &mut state.coordinators[name];
        if coordinator.owner == Some(at as u8) {
            // Only a request in flight can still arrive from it.
            coordinator.owner = None;
        }
    }

    pub(crate) fn start(&self, state: &mut State, at: usize) {
        let process = &mut state.processes[at];
        process.starts += 1;
        process.opening = at as u8 * 16 + process.starts;
        process.phase = Phase::Connect;
        let directory = &mut state.directories[at];
        let released = decisions::reopen(self, directory);
        directory
            .segments
            .retain(|segment| !segment.entries.is_empty() && segment.last() > released);
        if directory.segments.is_empty() {
            directory.lineage.clear();
        }
        directory.lineage.push(process.opening);
        directory.next_number += 1;
        directory.segments.push(Segment {
            number: directory.next_number,
            writer: process.opening,
            entries: Vec::new(),
        });
        process.released = released;
    }

    fn append(&self, state: &mut State, at: usize) {
        let event = self.processes[at].1[usize::from(state.delivered[at])];
        state.delivered[at] += 1;
        let directory = &mut state.directories[at];
        let entry = Entry {
            event,
            ordinal: directory.appended,
            received: state.now + state.skew,
            at: state.now,
        };
        directory.appended += 1;
        if let Some(segment) = directory.segments.last_mut() {
            segment.entries.push(entry);
        }
        state.forfeited &= !(1 << event);
    }

    pub(crate) fn put_copy_back(state: &mut State) {
        let Some(mut copy) = state.copy.take() else { return };
        let original = &state.directories[0];
        let lost = original.segments.iter().flat_map(|segment| &segment.entries);
        let lost = lost.filter(|entry| {
            let elsewhere = state.directories[1..].iter().any(|other| other.holds(entry.event));
            !state.is_visible(entry.event) && !copy.holds(entry.event) && !elsewhere
        });
        state.forfeited |= lost.fold(0, |all, entry| all | 1 << entry.event);
        copy.replaced = original.replaced + 1;
        state.directories[0] = copy;
    }
}

/// Everything up to `through` is published: the log may remove it.
fn release(state: &mut State, at: usize, through: Place) {
    let released = state.processes[at].released;
    if through <= released {
        return;
    }
    let newly = state.directories[at].unreleased(released).filter(|(_, place)| *place <= through);
    let newly: Vec<_> =
        newly.map(|(segment, place)| (segment.writer, place, segment.entry(place).event)).collect();
    state.covered_unpublished |= newly.iter().any(|(_, _, event)| !state.is_visible(*event));
    state.processes[at].released = through;
    let directory = &mut state.directories[at];
    if let Some((writer, place, _)) = newly.last() {
        directory.position = Some((*writer, *place));
    }
    let active = directory.next_number;
    directory.segments.retain(|segment| segment.number == active || segment.last() > through);
}

impl Process {
    pub(crate) fn has_applied(&self, wanted: u8) -> bool {
        let mut steps = self.ledger.iter();
        steps.any(|step| matches!(step, LedgerStep::Apply { offset, .. } if *offset == wanted))
    }

    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Down,
            starts: 0,
            opening: 0,
            next: None,
            ledger: Vec::new(),
            released: (0, 0),
            taken: 0,
            mine: None,
        }
    }
}

impl Segment {
    fn last(&self) -> Place {
        (self.number, self.entries.len() as u8)
    }
}
