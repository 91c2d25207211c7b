//! Alerts, runbook and dashboard are consistent, and are valid in a real Prometheus that scrapes a
//! bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::bridge::Bridge;
use crate::support::kafka::{free_port, mock_kafka};
use crate::support::{Unavailable, or_skip, wait_until};

const ALERTS: &str = include_str!("../../deploy/alerts.yml");
const CASES: &str = include_str!("alerts.yml");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");
const DASHBOARD: &str = include_str!("../../deploy/dashboard.json");
const METRICS: &str = include_str!("../../docs/metrics.md");
const FINDINGS: &str = include_str!("../../src/admin/findings.rs");

/// The name and the text of each alerting rule. An alert with two severities has two rules.
fn rules() -> Vec<(&'static str, &'static str)> {
    let rules = ALERTS.split("      - alert: ").skip(1);
    let rules: Vec<_> = rules.filter_map(|rule| rule.split_once('\n')).collect();
    assert!(rules.len() >= 20, "{rules:?}");
    rules
}

/// Each alert's name and the texts of its rules.
fn alerts() -> BTreeMap<&'static str, String> {
    let mut alerts = BTreeMap::<_, String>::new();
    for (name, rule) in rules() {
        alerts.entry(name).or_default().push_str(rule);
    }
    alerts
}

/// The paragraph of a runbook section that begins with `start`, in one line.
fn paragraph(section: &str, start: &str) -> String {
    let found = section.split("\n\n").find(|paragraph| paragraph.trim_start().starts_with(start));
    found.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The metric tables of docs/metrics.md.
fn metrics() -> BTreeSet<&'static str> {
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.filter(|name| name.starts_with("livebridge_") || name.starts_with("process_")).collect()
}

/// The metrics that a query refers to.
fn asked(query: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = query.split(|c| !is_part(c));
    let named = |word: &&str| word.starts_with("livebridge_") || word.starts_with("process_");
    let known = metrics();
    let family = |word: &str| {
        let mut stems =
            ["_bucket", "_sum", "_count"].iter().filter_map(|end| word.strip_suffix(end));
        stems.find(|stem| known.contains(stem)).unwrap_or(word).to_owned()
    };
    words.filter(named).map(family).collect()
}

#[test]
fn every_alert_has_a_firing_case_a_silent_case_and_a_runbook_section() {
    for (name, rule) in rules() {
        for case in ["fires", "is quiet"] {
            assert!(CASES.contains(&format!("- name: {name} {case}\n")), "{name} has none: {case}");
        }
        let severity = ["severity: page}", "severity: ticket}"];
        assert!(severity.iter().any(|severity| rule.contains(severity)), "{name} has no severity");
        for annotation in ["summary: ", "description: "] {
            assert!(rule.contains(annotation), "{name} has no {annotation}");
        }
        let link = format!("runbook_url: docs/runbook.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&link), "{name} does not point to {link}");
        let (_, section) =
            RUNBOOK.split_once(&format!("\n## {name}\n")).unwrap_or_else(|| panic!("no {name}"));
        let section = section.split("\n## ").next().expect("a section");
        for part in ["**What it means.** ", "**Look.** ", "**Do.** ", "**Do not** "] {
            assert!(section.contains(part), "{name} has no {part}");
        }
        // Without its own negation, a sentence in it reads as an instruction.
        let prohibited = paragraph(section, "**Do not");
        for sentence in prohibited.trim_end_matches('.').split(". ") {
            assert!(sentence.starts_with("**Do not** "), "{name}: {sentence:?} has no negation");
        }
    }
    let sections = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## "));
    let alerts: BTreeSet<_> = alerts().into_keys().collect();
    assert_eq!(sections.collect::<BTreeSet<_>>(), alerts);
    let found =
        FINDINGS.split("    (\n        \"").skip(1).filter_map(|rest| rest.split('"').next());
    let found: BTreeSet<_> = found.collect();
    assert!(found.len() > 8, "{found:?}");
    assert!(found.is_subset(&alerts), "the status page names others: {found:?}");
}

/// Alerts of severity page that no status page can show: nothing serves it, and a forecast.
const WITHOUT_FINDING: [&str; 2] = ["LivebridgeDown", "LivebridgeLogFillingUp"];

#[test]
fn every_alert_that_pages_has_a_finding_on_the_status_page() {
    for (name, rule) in alerts() {
        if rule.contains("severity: page}") && !WITHOUT_FINDING.contains(&name) {
            assert!(FINDINGS.contains(&format!("\"{name}\"")), "{name} has no finding");
        }
    }
}

#[test]
fn findings_of_the_status_page_have_the_conditions_of_their_alerts() {
    let expression = |alert: &str| -> String {
        alerts()[alert].lines().filter(|line| line.contains("expr: ")).collect()
    };
    let mut metrics = 0;
    for rule in FINDINGS.split("    (\n        \"").skip(1) {
        let (alert, rule) = rule.split_once('"').expect("an alert");
        let expression = expression(alert);
        for name in rule.split("table::").skip(1) {
            let name = name.split(|c: char| !c.is_ascii_uppercase() && c != '_').next();
            let name = format!("livebridge_{}", name.expect("a metric").to_lowercase());
            assert!(expression.contains(&name), "{alert} has no {name}");
            metrics += 1;
        }
    }
    assert!(metrics >= 10, "{metrics} were found");
    let value = |name: &str| {
        let (_, rest) = FINDINGS.split_once(&format!("const {name}: ")).expect(name);
        rest.split_once(" =").and_then(|(_, value)| value.split(';').next()).expect(name)
    };
    for (alert, reasons) in [
        ("LivebridgeSignatureFailures", "AUTHENTICATION"),
        ("LivebridgeRejectingCallbacks", "UNAVAILABLE"),
        ("LivebridgeMalformedCallbacks", "MALFORMED"),
        ("LivebridgeAccessDenied", "ACCESS"),
    ] {
        let reasons: BTreeSet<_> = value(reasons).split('"').skip(1).step_by(2).collect();
        let expression = expression(alert);
        let queried = expression.split("reason=~\"").skip(1);
        let queried = queried.filter_map(|rest| rest.split('"').next());
        let queried: BTreeSet<_> = queried.flat_map(|reasons| reasons.split('|')).collect();
        assert_eq!(queried, reasons, "{alert}");
    }
    for (alert, limit) in [
        ("LivebridgePublishingLate", "LATE_SECONDS"),
        ("LivebridgeLogSpaceLow", "ROOM_LOW_BYTES"),
        ("LivebridgeLedgerLag", "LEDGER_LAG_RECORDS"),
    ] {
        let factors =
            value(limit).split('*').map(|factor| factor.trim().replace('_', "").parse::<f64>());
        let limit = factors.map(|factor| factor.expect("a number")).product::<f64>();
        let limit = format!(" {limit}'");
        assert!(expression(alert).ends_with(&limit), "{alert} {limit}");
    }
}

#[test]
fn every_summary_begins_with_the_instance_unless_the_rule_is_about_all_of_them() {
    for (name, rule) in rules() {
        let (_, summary) = rule.split_once("summary: '").expect("a summary");
        let names_instance = summary.starts_with("{{ $labels.instance }}: ")
            || summary.starts_with("{{ if $labels.instance }}{{ $labels.instance }}: ");
        let of_all = rule.contains(" by (job) (");
        assert!(names_instance != of_all, "{name}: {summary}");
    }
}

/// A directory of that name tempts an operator to delete "log files" when it fills a disk.
#[test]
fn alerts_and_findings_say_write_ahead_log_where_they_mean_wal_dir() {
    for text in [ALERTS, FINDINGS] {
        // Comments are not shown to operators.
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let text = lines.collect::<Vec<_>>().join("\n").to_lowercase();
        let text = text.replace("the log line", "").replace("log files", "");
        assert_eq!(text.matches("the log").count(), 0, "says \"the log\"");
    }
    for alert in ["LivebridgeLogFillingUp", "LivebridgeLogSpaceLow", "LivebridgeLogNotReadable"] {
        let rule = &alerts()[alert];
        for part in ["not yet in Kafka", "no log files", "delete nothing in wal.dir"] {
            assert!(rule.contains(part), "{alert} does not say {part:?}");
        }
    }
}

#[test]
fn the_documented_scrape_configuration_is_valid_and_has_the_job_of_the_alerts() {
    let page = include_str!("../../docs/operations.md");
    let (_, config) = page.split_once("```yaml\nrule_files: [alerts.yml]\n").expect("it");
    let config = config.split("```").next().expect("its end");
    assert!(config.contains("- job_name: livebridge\n"), "{config}");
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    fs::write(&token, "token").expect("a writable directory");
    let config = config.replace("/etc/prometheus/livebridge-token", token.to_str().expect("text"));
    let path = dir.path().join("prometheus.yml");
    fs::write(&path, config).expect("a writable directory");
    let output = Command::new("promtool").args(["check", "config"]).arg(&path).output();
    let unavailable = |error| Unavailable(format!("promtool (Debian's prometheus): {error}"));
    let Some(output) = or_skip("promtool", output.map_err(unavailable)) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_documented_command_makes_every_runbook_address_absolute() {
    let command = ALERTS.lines().find_map(|line| line.strip_prefix("#   sed "));
    let command = command.expect("the command").replace("alerts.yml", "\"$1\"");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("alerts.yml");
    fs::write(&file, ALERTS).expect("a writable directory");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("sed {command}"), "sh"]).arg(&file);
    assert!(shell.status().expect("a shell").success(), "{command}");
    let changed = fs::read_to_string(&file).expect("a readable file");
    let addresses = changed.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: "));
    let addresses: Vec<_> = addresses.collect();
    assert_eq!(addresses.len(), rules().len());
    assert!(addresses.iter().all(|address| address.starts_with("https://")), "{addresses:?}");
}

#[test]
fn every_metric_key_and_file_in_the_runbook_exists() {
    for name in asked(RUNBOOK) {
        assert!(metrics().contains(name.as_str()), "there is no {name}");
    }
    let (_, keys) =
        include_str!("../../docs/configuration.md").split_once("## Keys").expect("the table");
    let sections = ["http.", "access.", "tls.", "callback.", "wal.", "kafka.", "dedup.", "admin."];
    let code = RUNBOOK.split('`').skip(1).step_by(2);
    let named = code.filter(|code| sections.iter().any(|section| code.starts_with(section)));
    for key in named.map(|key| key.split([' ', '=']).next().expect("a word")) {
        assert!(keys.contains(&format!("`{key}`")), "there is no {key}");
    }
}

#[test]
fn every_alert_passes_its_promtool_cases() {
    let run = |arguments: &[&str]| {
        let output = Command::new("promtool").args(arguments).output();
        output.map_err(|error| Unavailable(format!("promtool (Debian's prometheus): {error}")))
    };
    let here = env!("CARGO_MANIFEST_DIR");
    for arguments in [
        ["check", "rules", &format!("{here}/deploy/alerts.yml")],
        ["test", "rules", &format!("{here}/tests/house/alerts.yml")],
    ] {
        let Some(output) = or_skip("promtool", run(&arguments)) else { return };
        let output_text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output_text));
    }
}

/// Every query in the dashboard.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<_> =
        targets.filter_map(|target| target["expr"].as_str()).map(str::to_owned).collect();
    assert!(queries.len() > 40, "{queries:?}");
    queries
}

#[test]
fn the_dashboard_shows_exactly_the_declared_metrics() {
    let shown: BTreeSet<String> = queries().iter().flat_map(|query| asked(query)).collect();
    let documented: BTreeSet<String> = metrics().into_iter().map(str::to_owned).collect();
    assert_eq!(shown, documented);
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64()), "two panels have one id: {panel}");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{} is on another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{panel}");
        }
        for alert in panel["description"].as_str().unwrap_or_default().split("Alert").skip(1) {
            let names = alert.trim_start_matches('s').trim().trim_end_matches('.').split(", ");
            for name in names {
                assert!(alerts().contains_key(name), "{name} is not an alert");
            }
        }
    }
}

/// A Prometheus process that is killed when the value is dropped.
struct Prometheus {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(bridge: &Bridge) -> Result<Self, Unavailable> {
        let dir = tempfile::tempdir().expect("a directory");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}/deploy/alerts.yml]\n\
             scrape_configs:\n  - job_name: livebridge\n    static_configs: [{{targets: ['{}']}}]\n",
            env!("CARGO_MANIFEST_DIR"),
            bridge.admin_address()
        );
        let path = dir.path().join("prometheus.yml");
        fs::write(&path, config).expect("a writable directory");
        let port = free_port();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = command
            .spawn()
            .map_err(|error| Unavailable(format!("prometheus (Debian's package): {error}")))?;
        Ok(Self { process, port, _dir: dir })
    }

    /// The response of the HTTP API; `None` while it is not available.
    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        // HTTP/1.0, so that the response is not chunked.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn query(&self, query: &str) -> Value {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02x}").expect("a String takes all");
        }
        self.get(&format!("/api/v1/query?query={encoded}")).expect("an answer")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn prometheus_scrapes_the_bridge_and_evaluates_every_rule_and_query() {
    let kafka = mock_kafka(3);
    let bridge =
        Bridge::new("alerts", &kafka.brokers(), "live").set("KAFKA_CREATE_TOPICS", "false");
    bridge.start();
    let Some(prometheus) = or_skip("prometheus", Prometheus::start(&bridge)) else { return };
    let up = |value: Value| value["data"]["result"][0]["value"][1] == "1";
    let scrapes = || prometheus.get("/api/v1/query?query=up").is_some_and(up);
    wait_until(Duration::from_mins(1), scrapes, || "it does not scrape");
    let healthy = |answer: &Value| {
        let Some(groups) = answer["data"]["groups"].as_array() else { return false };
        let evaluated: Vec<&Value> =
            groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
        for rule in &evaluated {
            assert_ne!(rule["health"], "err", "{}: {}", rule["name"], rule["lastError"]);
        }
        let done = evaluated.iter().filter(|rule| rule["health"] == "ok").count();
        done == rules().len() + 1
    };
    let are_evaluated = || prometheus.get("/api/v1/rules").is_some_and(|rules| healthy(&rules));
    wait_until(Duration::from_mins(1), are_evaluated, || "rules are not evaluated");
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}");
    assert_eq!(firing["data"]["result"], Value::Array(Vec::new()), "nothing is wrong");
    for query in queries() {
        let query = query.replace("$job", "livebridge").replace("$instance", ".+");
        let query = query.replace("$__rate_interval", "1m");
        let answer = prometheus.query(&query);
        assert_eq!(answer["status"], "success", "{query}: {}", answer["error"]);
    }
    for metric in metrics() {
        let found = prometheus.query(&format!("count({{__name__=~\"{metric}(_count)?\"}})"));
        assert!(!found["data"]["result"][0].is_null(), "{metric} is not scraped");
    }
}
