//! A running bridge exposes what `docs/` documents for operators.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use livebridge::kafka::mock::MockKafka;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::bridge::Bridge;
use crate::support::kafka::mock_kafka;
use crate::support::{Unavailable, or_skip, wait_until};

const METRICS: &str = include_str!("../../docs/metrics.md");

/// A bridge that publishes to the mock cluster.
struct BridgeWithKafka {
    bridge: Bridge,
    _kafka: MockKafka,
}

fn whole(name: &str) -> BridgeWithKafka {
    let kafka = mock_kafka(3);
    let bridge = Bridge::new(name, &kafka.brokers(), "live").set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    BridgeWithKafka { bridge, _kafka: kafka }
}

/// A metric in a table or an exposition: type, label names, help.
type Families = BTreeMap<String, (String, BTreeSet<String>, String)>;

/// The rows of the tables in docs/metrics.md, and each metric's unit.
fn documented() -> (Families, BTreeMap<String, String>) {
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let mut families = Families::new();
    let mut units = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        let [name, kind, unit, labels, help] = cells[..] else { continue };
        let name = name.trim_end_matches('`').to_owned();
        let labels = labels.split(", ").filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.trim_matches('`').to_owned()).collect();
        units.insert(name.clone(), unit.to_owned());
        let before = families.insert(name, (kind.to_owned(), labels, help.to_owned()));
        assert!(before.is_none(), "{row} is listed twice");
    }
    (families, units)
}

/// The metrics of an exposition, and the values of each label.
fn printed(text: &str) -> (Families, BTreeMap<String, BTreeSet<String>>) {
    let comment = |line: &str, kind: &str| {
        let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let helps: BTreeMap<_, _> = text.lines().filter_map(|l| comment(l, "# HELP ")).collect();
    let mut families: Families = text
        .lines()
        .filter_map(|line| comment(line, "# TYPE "))
        .map(|(name, kind)| {
            let help = helps.get(&name).cloned().unwrap_or_default();
            (name, (kind, BTreeSet::new(), help))
        })
        .collect();
    let (mut seen, mut values) = (BTreeSet::new(), BTreeMap::<_, BTreeSet<String>>::new());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let series = line.rsplit_once(' ').expect("a value").0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let family = name.strip_suffix(suffix)?;
            (families.get(family)?.0 == "histogram").then(|| family.to_owned())
        });
        let family = family.unwrap_or_else(|| name.to_owned());
        let entry = families.get_mut(&family).unwrap_or_else(|| panic!("{line} has no TYPE"));
        seen.insert(family);
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once("=\"").expect("a label's value");
            if label != "le" {
                entry.1.insert(label.to_owned());
                values.entry(label.to_owned()).or_default().insert(value.replace('"', ""));
            }
        }
    }
    for (name, (kind, ..)) in &families {
        assert!(seen.contains(name), "{name} has no series");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
    }
    (families, values)
}

#[test]
fn the_metrics_table_matches_a_running_bridge() {
    let whole = whole("observe-table");
    let text = whole.bridge.get("/metrics");
    let (documented, units) = documented();
    let (printed, taken_values) = printed(&text);
    assert!(documented.len() >= 40, "the tables were not found: {documented:?}");
    let all = |families: &Families| families.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(all(&documented), all(&printed));
    assert_eq!(documented, printed);
    let described = text.lines().filter(|line| line.starts_with("# HELP "));
    assert!(described.is_sorted(), "scrapes cannot be compared by eye: {text}");
    let accepted = text.lines().filter(|line| line.starts_with("livebridge_callbacks_accepted"));
    assert!(accepted.clone().is_sorted() && accepted.count() > 10, "{text}");

    for (name, unit) in &units {
        let base = name.trim_end_matches("_total");
        for suffix in ["seconds", "bytes"] {
            let named = base.ends_with(suffix);
            assert_eq!(named, unit == suffix, "{name} is in {unit:?}");
        }
    }
    let (_, meanings) = METRICS.split_once("## Label values").expect("the section");
    for (label, taken) in taken_values {
        let row = meanings.lines().find(|line| line.starts_with(&format!("| `{label}` |")));
        let row = row.unwrap_or_else(|| panic!("{label} is not explained"));
        assert!(taken.len() <= 40, "{label} is unbounded: {taken:?}");
        let own = row.split('`').skip(1).step_by(2).collect::<Vec<_>>();
        let elsewhere = ["event_type", "version"].contains(&label.as_str());
        for value in taken {
            assert!(elsewhere || own.contains(&value.as_str()), "{label}={value} is not explained");
        }
    }
}

#[test]
fn promtool_reports_no_problem() {
    let whole = whole("observe-lint");
    let text = whole.bridge.get("/metrics");
    let Some(output_text) =
        or_skip("promtool check metrics", promtool(&["check", "metrics"], &text))
    else {
        return;
    };
    assert_eq!(output_text, "", "{text}");
}

/// The output of promtool, which must succeed.
fn promtool(arguments: &[&str], input: &str) -> Result<String, Unavailable> {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| Unavailable(format!("promtool (Debian's prometheus): {error}")))?;
    let mut stdin = child.stdin.take().expect("a piped input");
    stdin.write_all(input.as_bytes()).expect("a readable pipe");
    drop(stdin);
    let output = child.wait_with_output().expect("a child that is not yet reaped");
    let output_text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let output_text = String::from_utf8_lossy(&output_text).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {output_text}");
    Ok(output_text)
}

#[test]
fn process_metrics_match_the_kernels_figures() {
    let whole = whole("observe-process");
    let metric = |name: &str| whole.bridge.metric(name).expect("an answer");
    let pid = whole.bridge.pid();
    // Between two readings at startup, its memory grows, and threads start and end.
    let growth = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: f64 = kib.trim().trim_end_matches(" kB").parse().expect("a number");
        metric("process_resident_memory_bytes") / (kib * 1024.0) - 1.0
    };
    wait_until(Duration::from_secs(30), || growth().abs() < 0.5, growth);
    let difference = || {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
        metric("process_open_fds") - f64::from(u32::try_from(fds).expect("few"))
    };
    wait_until(Duration::from_secs(30), || difference().abs() < 5.0, difference);
    let uses_time = || metric("process_cpu_seconds_total") > 0.0;
    wait_until(Duration::from_secs(30), uses_time, || "answers and uses no time");
    assert!(metric("process_threads") > 5.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = now.expect("after 1970").as_secs_f64() - metric("process_start_time_seconds");
    assert!((-2.0..120.0).contains(&age), "started {age} s ago");
}

#[test]
fn the_admin_listener_pauses_while_no_file_descriptor_is_left() {
    let bridge = Bridge::new("admin-descriptors", "127.0.0.1:1", "live");
    bridge.start();
    let admin = bridge.admin_address();
    let pid = Pid::from_raw(i32::try_from(bridge.pid()).expect("a process ID")).expect("not 0");
    let cpu_ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", bridge.pid())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    };
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = |current| prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum });
    limit(Some(8)).expect("its own user");
    let mut waiting = TcpStream::connect(admin).expect("the kernel accepts");
    let says = "the admin listener cannot accept a connection";
    bridge.wait_until("logging it", Duration::from_secs(30), || bridge.log_text().contains(says));
    let before = cpu_ticks();
    thread::sleep(Duration::from_secs(2));
    let used = cpu_ticks() - before;
    assert!(used < 40, "{used} of 200 ticks of processor time");
    assert_eq!(bridge.log_text().matches(says).count(), 1, "one line a minute");

    limit(maximum).expect("its own user");
    waiting
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
        .expect("open");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("alive\n"), "{answer}");
}
