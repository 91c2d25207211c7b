//! The model: the steps that can follow a state, and their effects.
//!
//! A step is atomic: between two steps, another process, the broker or a kill can act. The checker
//! therefore tries them in every order.

use stateright::{Model, Property};

use super::properties;
use super::state::{
    Budget, Coordinator, Directory, Event, LedgerStep, Outcome, Phase, Process, State,
};

/// The explored scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    /// Each process's `kafka.instance`, by number, and the events that its clients deliver.
    pub(crate) processes: &'static [(u8, &'static [Event])],
    /// The maximum number of entries in a batch.
    pub(crate) batch: usize,
    pub(crate) budget: Budget,
    /// The use of the copy of the first process's directory.
    pub(crate) copy: CopyUse,
    /// The dedup window, in units of the model's time.
    pub(crate) window: Option<u8>,
    /// From this number of transactions on, no faults occur and processes take turns, so that every
    /// run ends.
    pub(crate) transactions: usize,
    /// Situations that must be reached.
    pub(crate) reaches: &'static [&'static str],
    pub(crate) fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyUse {
    /// It replaces the original.
    Restored,
    /// It is the second process's directory.
    Cloned,
}

/// A protocol error, to show that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Progress is identified by the log's ID and the LSN, not by the opening that wrote.
    ProgressByLog,
    /// The ledger is read up to the last stable offset, and the producer initialised then.
    LedgerReadBeforeInit,
    /// As before, but the process waits for transactions that are open when the read begins.
    SettledLedgerReadBeforeInit,
    /// IDs expire by the system clock, not by the oldest unpublished record.
    ExpiryIgnoresBacklog,
    /// The age of IDs is determined by the system clock.
    WallClockWindow,
    /// Open transactions of other instances are ignored.
    NoContentionCheck,
    /// A commit whose response is lost counts as aborted.
    LostAnswerIsAbort,
    /// The log is released when the commit is requested.
    ReleasedBeforeAnswer,
    /// A transaction's events are sent in reverse order.
    ReversedBatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    // The processes.
    Append(usize),
    Start(usize),
    Init(usize),
    Read(usize),
    /// Takes the next entries; the stable part of the ledger topic may or may not have arrived
    /// before.
    Batch {
        process: usize,
        ledger_arrived: bool,
    },
    RequestCommit(usize),
    TakeAnswer(usize),
    Abort(usize),
    Settle(usize),
    Resend(usize),
    ExpireIdle(usize),
    // The broker.
    Commit(usize),
    TimeOut(usize),
    ExpireRecord,
    // Faults.
    Kill(usize),
    CutPower(usize),
    LoseAnswer(usize),
    FailSend(usize),
    TakeCopy,
    PutCopyBack,
    StartClone,
    Tick,
    ClockJump,
}

impl Protocol {
    /// The same with one more of every fault that it has, and one more transaction.
    pub(crate) fn enlarge(self) -> Self {
        Self { budget: self.budget.enlarge(), transactions: self.transactions + 1, ..self }
    }

    /// Steps without faults.
    pub(crate) fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        for (name, coordinator) in state.coordinators.iter().enumerate() {
            if coordinator.commit_requested {
                steps.push(Step::Commit(name));
            }
        }
        for (at, process) in state.processes.iter().enumerate() {
            self.steps_of(state, at, process, &mut steps);
        }
        if steps.is_empty() {
            // No wait is longer than a transaction can stay open.
            let open = |coordinator: &Coordinator| coordinator.open.is_some();
            steps.extend(state.coordinators.iter().position(open).map(Step::TimeOut));
        }
        steps
    }

    fn steps_of(&self, state: &State, at: usize, process: &Process, steps: &mut Vec<Step>) {
        let stable = state.stable();
        match process.phase {
            Phase::Absent => return,
            Phase::Down => return steps.push(Step::Start(at)),
            Phase::Connect if self.reads_first() => steps.push(Step::Read(at)),
            Phase::Connect | Phase::ReadEarly => steps.push(Step::Init(at)),
            Phase::Read { end } if stable >= end => steps.push(Step::Read(at)),
            Phase::Settle { end } if stable >= end => steps.push(Step::Settle(at)),
            Phase::Ready => {
                let has_entries =
                    state.directories[at].unreleased(process.released).next().is_some();
                if has_entries {
                    if process.next < Some(stable) {
                        steps.push(Step::Batch { process: at, ledger_arrived: true });
                    }
                    steps.push(Step::Batch { process: at, ledger_arrived: false });
                } else if self.window.is_some() && self.idle_expiry(state, at).is_some() {
                    steps.push(Step::ExpireIdle(at));
                }
            }
            Phase::Committable => steps.push(Step::RequestCommit(at)),
            Phase::Committing if state.outcome(process) != Some(Outcome::Open) => {
                steps.push(Step::TakeAnswer(at));
            }
            Phase::Read { .. } | Phase::Settle { .. } | Phase::Committing => {}
            Phase::Aborting => steps.push(Step::Abort(at)),
            Phase::Resend => steps.push(Step::Resend(at)),
        }
        if usize::from(state.delivered[at]) < self.processes[at].1.len() {
            steps.push(Step::Append(at));
        }
    }

    pub(crate) fn reads_first(&self) -> bool {
        matches!(self.fault, Some(Fault::LedgerReadBeforeInit | Fault::SettledLedgerReadBeforeInit))
    }

    /// What an idle process does with its ledger, unless it has just done it.
    pub(crate) fn idle_expiry(&self, state: &State, at: usize) -> Option<LedgerStep> {
        let step = LedgerStep::Expire { oldest: state.now + state.skew, at: self.monotonic(state) };
        (state.processes[at].ledger.last() != Some(&step)).then_some(step)
    }

    /// Steps that can occur between those of a process.
    fn disturbances(&self, state: &State, steps: &mut Vec<Step>) {
        let left = state.left;
        for (at, process) in state.processes.iter().enumerate() {
            if matches!(process.phase, Phase::Absent | Phase::Down) {
                continue;
            }
            if left.kills > 0 {
                steps.push(Step::Kill(at));
            }
            if left.power_cuts > 0 {
                steps.push(Step::CutPower(at));
            }
            if left.lost_answers > 0 && process.phase == Phase::Committing {
                steps.push(Step::LoseAnswer(at));
            }
            if left.failed_sends > 0 && process.phase == Phase::Committable {
                steps.push(Step::FailSend(at));
            }
        }
        if left.time_outs > 0 {
            let open = |coordinator: &Coordinator| coordinator.open.is_some();
            let names = state.coordinators.iter().enumerate();
            steps.extend(names.filter(|(_, c)| open(c)).map(|(name, _)| Step::TimeOut(name)));
        }
        if left.copies > 0 && state.copy.is_none() {
            steps.push(Step::TakeCopy);
        }
        if state.copy.is_some() {
            match self.copy {
                CopyUse::Restored if state.processes[0].phase == Phase::Down => {
                    steps.push(Step::PutCopyBack);
                }
                CopyUse::Cloned if state.processes[1].phase == Phase::Absent => {
                    steps.push(Step::StartClone);
                }
                _ => {}
            }
        }
        if left.ticks > 0 {
            steps.push(Step::Tick);
        }
        if left.clock_jumps > 0 {
            steps.push(Step::ClockJump);
        }
        if left.expired_records > 0 && self.may_expire(state) {
            steps.push(Step::ExpireRecord);
        }
    }

    /// Kafka keeps a ledger record for longer than the window plus the longest outage, and no
    /// reader lags further behind.
    fn may_expire(&self, state: &State) -> bool {
        let Some(written) = state.topic.get(usize::from(state.low)) else { return false };
        let waiting = state.directories.iter().zip(&state.processes);
        let waiting = waiting.flat_map(|(directory, process)| {
            let unreleased = directory.unreleased(process.released);
            unreleased.map(|(segment, place)| segment.entry(place).received)
        });
        let oldest = waiting.min().unwrap_or(state.now).min(state.now);
        let is_read = |process: &Process| {
            process.next.is_none_or(|next| next > state.low) || process.has_applied(state.low)
        };
        written.outcome != Outcome::Open
            && written.newest + self.window.unwrap_or(0) < oldest
            && state.processes.iter().all(is_read)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let count = self.processes.len();
        let names = self.processes.iter().map(|(name, _)| name + 1).max().unwrap_or(0);
        let directory = |log| Directory { log: log as u8, ..Directory::default() };
        let mut state = State {
            topic: Vec::new(),
            low: 0,
            coordinators: vec![Coordinator::default(); names.into()],
            processes: vec![Process::new(); count],
            directories: (0..count).map(directory).collect(),
            delivered: vec![0; count],
            copy: None,
            now: 0,
            skew: 0,
            forfeited: 0,
            left: self.budget,
            covered_unpublished: false,
        };
        if self.budget.copies > 0 && self.copy == CopyUse::Cloned {
            state.processes[1].phase = Phase::Absent;
        }
        for at in 0..count {
            if state.processes[at].phase == Phase::Down {
                self.start(&mut state, at);
            }
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        let steps = self.steps(state);
        if state.topic.len() >= self.transactions {
            actions.extend(steps.first());
            return;
        }
        actions.extend(steps);
        self.disturbances(state, actions);
    }

    fn next_state(&self, last: &State, action: Step) -> Option<State> {
        let mut next = last.clone();
        let state = &mut next;
        match action {
            Step::Commit(_) | Step::TimeOut(_) | Step::ExpireRecord => broker(state, action)?,
            Step::Kill(at) => {
                self.kill(state, at);
                state.left.kills -= 1;
            }
            Step::CutPower(at) => {
                self.kill(state, at);
                state.directories[at].position = None;
                state.left.power_cuts -= 1;
            }
            Step::LoseAnswer(at) => self.lose_answer(state, at),
            Step::FailSend(at) => {
                state.left.failed_sends -= 1;
                if self.abort(state, at) {
                    state.processes[at].phase = Phase::Resend;
                }
            }
            Step::TakeCopy => {
                state.copy = Some(state.directories[0].clone());
                state.left.copies -= 1;
            }
            Step::PutCopyBack => Self::put_copy_back(state),
            Step::StartClone => {
                state.directories[1] = state.copy.take()?;
                state.processes[1].phase = Phase::Down;
            }
            Step::Tick => {
                state.now += 1;
                state.left.ticks -= 1;
            }
            Step::ClockJump => {
                state.skew += 1 + self.window.unwrap_or(0);
                state.left.clock_jumps -= 1;
            }
            step => self.advance(state, step)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(self)
    }
}

/// The broker's next step of its own; `None` if there is none.
fn broker(state: &mut State, step: Step) -> Option<()> {
    match step {
        Step::Commit(name) => {
            let coordinator = &mut state.coordinators[name];
            coordinator.commit_requested = false;
            let open = coordinator.open.take()?;
            state.topic[usize::from(open)].outcome = Outcome::Committed;
        }
        Step::TimeOut(name) => {
            let open = state.coordinators[name].open?;
            state.coordinators[name] = Coordinator::default();
            state.topic[usize::from(open)].outcome = Outcome::Aborted;
            state.left.time_outs = state.left.time_outs.saturating_sub(1);
        }
        Step::ExpireRecord => {
            state.low += 1;
            state.left.expired_records -= 1;
        }
        _ => return None,
    }
    Some(())
}
