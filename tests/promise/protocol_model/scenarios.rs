//! The explored scenarios: which events are delivered to which instance, and which faults occur how
//! often.

use super::state::Budget;
use super::steps::{CopyUse, Protocol};

const PLAIN: Protocol = Protocol {
    processes: &[],
    batch: 2,
    budget: Budget::NONE,
    copy: CopyUse::Restored,
    window: None,
    transactions: 4,
    reaches: &[],
    fault: None,
};

pub(crate) fn all() -> [(&'static str, Protocol); 10] {
    [
        ("two instances", two_instances()),
        ("failed sends", failed_sends()),
        ("namesakes", namesakes()),
        ("restored copy", restored_copy()),
        ("restored copy, alone", one_restored_copy()),
        ("clone", clone()),
        ("clone with the same name", namesake_clone()),
        ("expiry", expiry()),
        ("outage", outage()),
        ("clock jump", clock_jump()),
    ]
}

/// Two instances with one event in common.
pub(crate) fn two_instances() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1]), (1, &[2, 0])],
        batch: 1,
        budget: Budget { kills: 1, lost_answers: 1, time_outs: 1, ..Budget::NONE },
        reaches: &[
            "a contended transaction is aborted",
            "a commit's answer is lost, and it is committed",
            "a commit's answer is lost, and it is not committed",
            "a process is killed while its commit is requested",
            "the broker ends a transaction that is about to be committed",
            "a log of nothing but retries is released without a transaction",
        ],
        ..PLAIN
    }
}

/// Sends fail and are repeated, and the copy of the progress is lost.
pub(crate) fn failed_sends() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1]), (1, &[0])],
        budget: Budget { failed_sends: 1, power_cuts: 1, lost_answers: 1, ..Budget::NONE },
        reaches: &["a failed transaction is sent again"],
        ..PLAIN
    }
}

/// Two instances of one name, each with its own log.
pub(crate) fn namesakes() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1]), (0, &[0])],
        budget: Budget { kills: 1, lost_answers: 1, ..Budget::NONE },
        reaches: &["a namesake fences a transaction that is about to be committed"],
        ..PLAIN
    }
}

/// A directory is replaced by an older copy of itself, beside another instance.
pub(crate) fn restored_copy() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1, 2]), (1, &[1])],
        budget: Budget { kills: 1, copies: 1, ..Budget::NONE },
        reaches: &["a restored copy publishes", "the original was ahead of the restored copy"],
        ..PLAIN
    }
}

/// The same without another instance, so that one more kill can be explored.
pub(crate) fn one_restored_copy() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1, 2])],
        budget: Budget { kills: 2, copies: 1, ..Budget::NONE },
        ..restored_copy()
    }
}

/// A copy of a directory is used beside the original, by an instance with another name.
pub(crate) fn clone() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1]), (1, &[2])],
        budget: Budget { kills: 1, copies: 1, ..Budget::NONE },
        copy: CopyUse::Cloned,
        reaches: &["original and clone publish"],
        ..PLAIN
    }
}

/// A copy of a directory is used beside the original, under the same name.
pub(crate) fn namesake_clone() -> Protocol {
    Protocol {
        processes: &[(0, &[0, 1]), (0, &[2])],
        reaches: &[
            "original and clone publish",
            "a namesake fences a transaction that is about to be committed",
        ],
        ..clone()
    }
}

/// Time passes, retries arrive late, ledger records are deleted.
pub(crate) fn expiry() -> Protocol {
    Protocol {
        processes: &[(0, &[0]), (1, &[0])],
        batch: 1,
        budget: Budget { ticks: 3, expired_records: 1, ..Budget::NONE },
        window: Some(2),
        transactions: 2,
        reaches: &[
            "ledger records are deleted before a process reads them",
            "an event older than the window is published",
        ],
        ..PLAIN
    }
}

/// Records wait for longer than the window.
pub(crate) fn outage() -> Protocol {
    Protocol {
        budget: Budget { ticks: 3, ..Budget::NONE },
        reaches: &["an event older than the window is published"],
        ..expiry()
    }
}

/// The system clock is set forward by more than the window while the instances run.
pub(crate) fn clock_jump() -> Protocol {
    Protocol {
        budget: Budget { ticks: 1, clock_jumps: 1, ..Budget::NONE },
        reaches: &["the clock is ahead of the time"],
        ..expiry()
    }
}
