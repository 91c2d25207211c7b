//! The window against a naive model, and the bytes of a commit.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn opening(number: u8) -> OpeningId {
    OpeningId::from_bytes([number; 16])
}

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(secs).unwrap()
}

fn id(natural: u64, content: u64) -> EventId {
    EventId { natural, content }
}

/// A commit of an opening that publishes what it wrote.
fn commit(publisher: OpeningId, last: Lsn, newest: Timestamp, ids: Vec<EventId>) -> Commit {
    Commit { publisher, writer: publisher, first: last, last, newest, ids }
}

/// The monotonic clock's time at which every test starts.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The monotonic clock's time `seconds` after [`START`].
fn mono(secs: i64) -> Instant {
    *START + Duration::from_secs(u64::try_from(secs).unwrap())
}

fn ledger(max_ids: usize) -> Ledger {
    Ledger::new(&[opening(9), opening(1)], Config { window: HOUR, max_ids })
}

#[derive(Clone, Debug)]
enum Op {
    /// A transaction with these ids, received this many seconds after (or before) the newest so far.
    Commit { by: u8, ids: Vec<(u64, u64)>, after: i64 },
    /// The oldest record to publish is this many seconds older than the newest commit.
    Expire { lag: i64 },
}

fn any_op() -> impl Strategy<Value = Op> {
    // Few naturals and fewer contents: retries and conflicts abound.
    let ids = vec((0_u64..60, 0_u64..3), 0..12);
    prop_oneof![
        4 => (1_u8..3, ids, prop_oneof![9 => 0_i64..900, 1 => -4000_i64..20_000])
            .prop_map(|(by, ids, after)| Op::Commit { by, ids, after }),
        1 => prop_oneof![0_i64..10, 0_i64..10_000].prop_map(|lag| Op::Expire { lag }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ids_within_the_window_are_known_and_unpublished_ids_are_not(ops in vec((any_op(), 0_i64..900), 1..80)) {
        let mut ledger = ledger(usize::MAX);
        // Every id ever published, with the latest time it was; and what must still be known.
        let mut ever: Vec<(EventId, Timestamp)> = Vec::new();
        let mut within: Vec<(EventId, Timestamp, i64)> = Vec::new();
        let (mut now, mut next) = (1_700_000_000, Lsn::new(1, 1));
        // The monotonic clock goes on by itself, whatever the system clock does.
        let mut elapsed = 0;
        for (op, pause) in ops {
            elapsed += pause;
            match op {
                Op::Commit { by, ids, after } => {
                    let newest = at(now + after);
                    now = now.max(now + after);
                    let ids: Vec<_> = ids.into_iter().map(|(n, c)| id(n, c)).collect();
                    ever.extend(ids.iter().map(|id| (*id, newest)));
                    within.extend(ids.iter().map(|id| (*id, newest, elapsed)));
                    ledger.apply(&commit(opening(by), next, newest, ids), mono(elapsed));
                    next = next.next();
                }
                Op::Expire { lag } => {
                    let oldest = at(now - lag);
                    ledger.expire(oldest, mono(elapsed));
                    within.retain(|(_, received, learned)| {
                        *received >= oldest.before(HOUR) || elapsed - learned < 3600
                    });
                }
            }
            for natural in 0..60 {
                for content in 0..3 {
                    let id = id(natural, content);
                    let known = ledger.known(id);
                    let is_kept = within.iter().any(|(other, ..)| *other == id);
                    let is_twin_kept = within.iter().any(|(other, ..)| other.natural == natural);
                    let was = ever.iter().any(|(other, _)| *other == id);
                    let was_twin = ever.iter().any(|(other, _)| other.natural == natural);
                    prop_assert!(!is_kept || known == Known::Retry, "{id} is forgotten: {known:?}");
                    prop_assert!(was || known != Known::Retry, "{id} was never published");
                    prop_assert!(!is_twin_kept || known != Known::New, "{id} has a twin");
                    prop_assert!(was_twin || known == Known::New, "{id} has no twin: {known:?}");
                }
            }
        }
    }

    #[test]
    fn expired_ids_are_dropped_within_an_eighth_of_the_window(
        gaps in vec(0_i64..600, 1..300),
        lag in 0_i64..7200,
    ) {
        let mut ledger = ledger(usize::MAX);
        let (mut now, mut published) = (1_700_000_000, Vec::new());
        for (number, gap) in (1..).zip(gaps) {
            now += gap;
            let commit = commit(opening(1), Lsn::new(1, number), at(now), vec![id(number.into(), 0)]);
            ledger.apply(&commit, mono(now - 1_700_000_000));
            published.push((id(number.into(), 0), at(now)));
        }
        let oldest = at(now - lag);
        ledger.expire(oldest, mono(now - 1_700_000_000));
        for (id, received) in published {
            let known = ledger.known(id);
            if received >= oldest.before(HOUR) {
                prop_assert_eq!(known, Known::Retry);
            } else if received < oldest.before(HOUR + HOUR / 8) {
                prop_assert_eq!(known, Known::New);
            }
        }
    }

    /// A failure of an earlier version: expired generations were dropped one at a time while full
    /// ones came, and the window grew to many times `dedup.max_ids`.
    #[test]
    fn at_most_max_ids_are_kept_and_the_newest_are_among_them(
        max_ids in 8_usize..400,
        commits in vec((0_usize..50, 0_i64..1000), 1..200),
    ) {
        let mut ledger = ledger(max_ids);
        let (mut now, mut ids, mut next) = (1_700_000_000, Vec::new(), Lsn::new(1, 1));
        for (count, gap) in commits {
            now += gap;
            let new: Vec<_> = (ids.len()..ids.len() + count).map(|n| id(n as u64, 0)).collect();
            ids.extend(&new);
            ledger.apply(&commit(opening(1), next, at(now), new), mono(now - 1_700_000_000));
            next = next.next();
            prop_assert!(ledger.window.len() <= max_ids, "{} of {max_ids}", ledger.window.len());
        }
        // Generations go whole: three quarters is what can be counted on.
        for id in ids.iter().rev().take(max_ids * 3 / 4) {
            prop_assert_eq!(ledger.known(*id), Known::Retry);
        }
    }

    #[test]
    fn every_commit_comes_back_as_it_was(
        openings: ([u8; 16], [u8; 16]), lsns: (u64, u64), newest: i64, ids in vec(any::<[u8; 16]>(), 0..50),
    ) {
        let commit = Commit {
            publisher: OpeningId::from_bytes(openings.0),
            writer: OpeningId::from_bytes(openings.1),
            first: Lsn::from_u64(lsns.0),
            last: Lsn::from_u64(lsns.1),
            newest: Timestamp::from_millis(newest),
            ids: ids.into_iter().map(EventId::from_bytes).collect(),
        };
        prop_assert_eq!(Commit::decode(&commit.encode()), Ok(commit));
    }

    /// Other programs can write to the topic.
    #[test]
    fn any_bytes_are_decoded_or_rejected_without_a_panic(mut bytes in vec(any::<u8>(), 0..200), version in 0_u8..4) {
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        if let Ok(commit) = Commit::decode(&bytes) {
            if version == VERSION {
                prop_assert_eq!(commit.encode(), bytes);
            }
            // Whatever it contains, it can be applied.
            let mut ledger = ledger(10);
            ledger.apply(&commit, mono(0));
            ledger.expire(commit.newest, mono(0));
            ledger.expire(Timestamp::from_millis(i64::MAX), mono(7200));
            ledger.expire(Timestamp::from_millis(i64::MIN), mono(7200));
        }
    }
}

const VERSION_1: &[&[u8]] = &[
    &[1],
    &[7; 16],
    &[0, 0, 0, 2, 0, 0, 0, 3],
    &[0, 0, 0, 4, 0, 0, 0, 5],
    &[0, 0, 0x01, 0x8B, 0xCF, 0xE5, 0x68, 0x00],
    &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9],
];

/// Topics outlive the version that wrote them: these bytes may change only with the format.
#[test]
fn version_2_has_these_bytes() {
    let golden = [&[&[2][..], &[6; 16]], &VERSION_1[1..]].concat().concat();
    let commit = Commit {
        publisher: opening(6),
        writer: opening(7),
        first: Lsn::new(2, 3),
        last: Lsn::new(4, 5),
        newest: at(1_700_000_000),
        ids: vec![id(8, 9)],
    };
    assert_eq!(commit.encode(), golden);
    let mut bytes = golden;
    for version in (0..=u8::MAX).filter(|version| ![1, 2].contains(version)) {
        bytes[0] = version;
        assert_eq!(Commit::decode(&bytes), Err(InvalidCommit), "version {version}");
    }
}

/// As after an outage in which the position in the topic was lost.
#[test]
fn reading_the_ledger_once_more_takes_no_place_of_other_ids() {
    let mut ledger = ledger(800);
    let ids = |part: u64| (0..90).map(|number| id(part * 100 + number, 1)).collect::<Vec<_>>();
    let foreign =
        |part: u64| commit(opening(7), Lsn::new(1, 1), at(500 * part.cast_signed()), ids(part));
    for (round, now) in [0, 30, 60].into_iter().enumerate() {
        for part in 0..7 {
            ledger.apply(&foreign(part), mono(now));
        }
        assert_eq!(ledger.window.len(), 7 * 90, "after reading it {} times", round + 1);
    }
    for part in 0..7 {
        assert!(ids(part).iter().all(|id| ledger.known(*id) == Known::Retry), "part {part}");
    }
}

#[test]
fn version_1_tells_ids_and_no_progress() {
    let mut ledger = Ledger::new(&[opening(1)], Config { window: HOUR, max_ids: 10 });
    ledger.apply(&Commit::decode(&VERSION_1.concat()).unwrap(), mono(0));
    assert_eq!(ledger.known(id(8, 9)), Known::Retry);
    assert_eq!(*ledger.progress(), Progress::default());
    for cut in 0..41 {
        assert_eq!(Commit::decode(&VERSION_1.concat()[..cut]), Err(InvalidCommit), "{cut} bytes");
    }
}

#[test]
fn a_second_content_under_one_key_is_a_conflict_once_and_then_a_retry() {
    let mut ledger = ledger(100);
    let (one, two) = (id(1, 1), id(1, 2));
    assert_eq!(ledger.known(one), Known::New);
    ledger.apply(&commit(opening(1), Lsn::new(1, 1), at(0), vec![one]), mono(0));
    assert_eq!((ledger.known(one), ledger.known(two)), (Known::Retry, Known::Conflict));
    ledger.apply(&commit(opening(1), Lsn::new(1, 2), at(1), vec![two]), mono(0));
    assert_eq!((ledger.known(one), ledger.known(two)), (Known::Retry, Known::Retry));
    // Also when they are remembered in different generations.
    ledger.apply(&commit(opening(1), Lsn::new(1, 3), at(2000), vec![id(1, 3)]), mono(0));
    for content in 1..=3 {
        assert_eq!(ledger.known(id(1, content)), Known::Retry);
    }
    assert_eq!(ledger.known(id(1, 4)), Known::Conflict);
}

#[test]
fn only_commits_of_the_lineage_are_progress() {
    let mut ledger = ledger(100);
    // A copy of this directory, or the original that this is a copy of, went on with records that
    // an opening of the lineage wrote.
    let other =
        Commit { writer: opening(9), ..commit(opening(2), Lsn::new(9, 9), at(0), vec![id(1, 1)]) };
    ledger.apply(&other, mono(0));
    assert_eq!(*ledger.progress(), Progress::default());
    assert_eq!(ledger.known(id(1, 1)), Known::Retry, "its events are known");

    ledger.apply(&commit(opening(9), Lsn::new(2, 5), at(0), vec![id(2, 2)]), mono(0));
    ledger.apply(
        &Commit { writer: opening(9), ..commit(opening(1), Lsn::new(2, 4), at(0), vec![id(3, 3)]) },
        mono(0),
    );
    assert_eq!(ledger.progress().of(opening(9)), Lsn::new(2, 5), "it never goes back");
    assert_eq!(ledger.known(id(3, 3)), Known::Retry);
    assert!(!ledger.progress().covers(opening(1), Lsn::new(1, 1)), "each writer has its own");
}

#[test]
fn a_limit_of_no_ids_at_all_still_works() {
    let mut ledger = ledger(0);
    for number in 1..100 {
        ledger.apply(
            &commit(opening(1), Lsn::new(1, number), at(0), vec![id(number.into(), 0)]),
            mono(0),
        );
        assert_eq!(ledger.known(id(number.into(), 0)), Known::Retry);
    }
    assert!(ledger.window.len() <= 1);
}

/// The system clock is set forward by more than the window at run time.
#[test]
fn system_clock_set_forward_expires_nothing() {
    let mut ledger = ledger(100);
    ledger.apply(&commit(opening(1), Lsn::new(1, 1), at(0), vec![id(1, 1)]), mono(0));
    // An hour later by the system clock, a second later in truth; then a year later.
    for (jump, elapsed) in [(3600, 1), (3601, 2), (365 * 86_400, 3599)] {
        ledger.expire(at(jump), mono(elapsed));
        assert_eq!(ledger.known(id(1, 1)), Known::Retry, "{jump} s by the system clock");
    }
    // Ids that are learned after the jump do not push out the earlier ones either.
    let later = at(365 * 86_400);
    for number in 2..50 {
        let commit = commit(opening(1), Lsn::new(1, number), later, vec![id(number.into(), 1)]);
        ledger.apply(&commit, mono(3500));
        ledger.expire(later, mono(3500));
    }
    assert_eq!(ledger.known(id(1, 1)), Known::Retry);
    // The window has passed by both clocks.
    ledger.expire(later, mono(7200));
    assert_eq!(ledger.known(id(1, 1)), Known::New);
}

#[test]
fn system_clock_set_back_expires_nothing_early_and_everything_in_the_end() {
    let mut ledger = ledger(100);
    ledger.apply(&commit(opening(1), Lsn::new(1, 1), at(90_000), vec![id(1, 1)]), mono(0));
    // A day back: receipts are now earlier than those that are known.
    for hour in 0..3 {
        let (received, elapsed) = (at(3600 + hour * 3600), mono(hour * 3600));
        let number = u32::try_from(hour).unwrap() + 2;
        let commit = commit(opening(1), Lsn::new(1, number), received, vec![id(number.into(), 1)]);
        ledger.apply(&commit, elapsed);
        ledger.expire(received, elapsed);
        assert_eq!(ledger.known(id(1, 1)), Known::Retry);
        assert_eq!(ledger.known(id(number.into(), 1)), Known::Retry);
    }
    // The clock is right again.
    ledger.expire(at(100_800), mono(10_799));
    assert_eq!(ledger.known(id(1, 1)), Known::New);
    assert_eq!(ledger.known(id(2, 1)), Known::New);
    assert_eq!(ledger.known(id(4, 1)), Known::Retry, "learned within the last hour");
}

#[test]
fn ids_read_after_a_restart_are_kept_for_a_window_of_monotonic_time() {
    let mut ledger = ledger(100);
    // All read in one second from the ledger topic, published over the last hour.
    for number in 1..=60 {
        let commit = commit(
            opening(1),
            Lsn::new(1, number),
            at(i64::from(number) * 60),
            vec![id(number.into(), 1)],
        );
        ledger.apply(&commit, mono(1));
    }
    ledger.expire(at(1_000_000), mono(3600));
    for number in 1..=60 {
        assert_eq!(ledger.known(id(number, 1)), Known::Retry);
    }
    ledger.expire(at(1_000_000), mono(3601));
    assert_eq!(ledger.window.len(), 0);
}

#[test]
fn the_number_of_known_ids_counts_each_once() {
    let mut ledger = ledger(100);
    let last = |index| Lsn::new(1, index);
    let ids = vec![id(1, 1), id(2, 2), id(2, 3)];
    ledger.apply(&commit(opening(1), last(3), at(0), ids), mono(0));
    assert_eq!(ledger.window.len(), 3);
    ledger.apply(&commit(opening(2), last(2), at(0), vec![id(2, 2), id(4, 4)]), mono(0));
    assert_eq!(ledger.window.len(), 4);
}

#[test]
fn the_publisher_of_a_commit_is_known_without_decoding_it() {
    let bytes = commit(opening(1), Lsn::new(1, 1), at(0), vec![id(1, 1)]).encode();
    assert!(Commit::is_published_by(&bytes, opening(1)));
    assert!(!Commit::is_published_by(&bytes, opening(2)));
    // Version 1 names a log in its place.
    let version_1 = [&[VERSION_OF_LOG][..], &bytes[1..]].concat();
    assert!(!Commit::is_published_by(&version_1, opening(1)));
    assert!(!Commit::is_published_by(&[], opening(1)));
}

#[test]
fn own_events_are_those_of_own_commits_each_counted_once() {
    let mut ledger = ledger(100);
    assert_eq!(ledger.own_events(), 0);
    let first = commit(opening(1), Lsn::new(1, 2), at(0), vec![id(1, 1), id(2, 1)]);
    for commit in [
        &first,
        &first,
        &commit(opening(2), Lsn::new(1, 9), at(0), vec![id(3, 1)]),
        &commit(opening(1), Lsn::new(1, 5), at(0), vec![id(4, 1), id(5, 1), id(6, 1)]),
    ] {
        ledger.apply(commit, mono(0));
    }
    assert_eq!(ledger.own_events(), 5);
}

#[test]
fn an_id_is_known_until_it_is_older_than_the_window_to_the_millisecond() {
    let mut ledger = ledger(100);
    ledger.apply(&commit(opening(1), Lsn::new(1, 1), at(0), vec![id(1, 1)]), mono(0));
    ledger.expire(at(3600), mono(100_000));
    assert_eq!(ledger.known(id(1, 1)), Known::Retry);
    ledger.expire(Timestamp::from_millis(3_600_001), mono(100_000));
    assert_eq!(ledger.known(id(1, 1)), Known::New);
}

#[test]
fn ids_learned_at_once_expire_by_when_their_records_were_received() {
    let mut ledger = ledger(100);
    for hour in 0..3 {
        let last = Lsn::new(1, 1 + u32::try_from(hour).unwrap());
        let ids = vec![id(u64::try_from(hour).unwrap(), 1)];
        ledger.apply(&commit(opening(1), last, at(hour * 3600), ids), mono(0));
    }
    ledger.expire(at(2 * 3600 + 1), mono(3600));
    let known = [0, 1, 2].map(|natural| ledger.known(id(natural, 1)));
    assert_eq!(known, [Known::New, Known::New, Known::Retry]);
}

#[test]
fn only_the_loss_of_ids_that_have_not_expired_truncates_the_window() {
    let config = Config { window: HOUR, max_ids: 8 };
    let mut window = DedupWindow::new(config);
    window.expire(at(0), mono(0));
    let truncated =
        (0..9).map(|number| window.insert(id(number, 1), at(10), mono(0))).collect::<Vec<_>>();
    assert_eq!(truncated.iter().position(|truncated| *truncated), Some(8), "the ninth id");
    // Older than what a retry can still be of, though not yet dropped.
    let mut window = DedupWindow::new(config);
    window.expire(at(100), mono(0));
    assert!(!(0..20).any(|number| window.insert(id(number, 1), at(10), mono(0))));
}
