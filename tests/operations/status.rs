//! The status page in a real browser, and the JSON that it displays.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::{Bridge, KEY};
use crate::support::browser::Browser;
use crate::support::kafka::{UNREACHABLE, mock_kafka};
use crate::support::{TIME_LIMIT, metrics, or_skip, wait_until, wire};

const DOCUMENT: &str = include_str!("../../docs/status.md");
/// A stream name that injects a script into a page without escaping.
const HOSTILE: &str = "<img src=x onerror='document.title=\"taken over\"'>";

fn bridge(name: &str, brokers: &str) -> Bridge {
    let bridge = Bridge::new(name, brokers, "live").set("KAFKA_CREATE_TOPICS", "false");
    let bridge = bridge.set("CALLBACK_UNSIGNED", "push");
    bridge.start();
    bridge
}

/// Sends a callback and returns the response status.
fn send(bridge: &Bridge, event_type: i64, stream: &str, number: u32) -> u16 {
    let body =
        json!({"event_type": event_type, "stream_id": stream, "sequence": number.to_string()});
    let request = wire::post("/callback", &body.to_string());
    wire::exchange(bridge.intake(), request).expect("an answer").status
}

fn status(bridge: &Bridge, path: &str) -> Value {
    serde_json::from_str(&bridge.get(path)).expect("JSON")
}

/// The number of closed connections.
fn ended(bridge: &Bridge, reason: &str) -> f64 {
    let series = format!("livebridge_admin_connections_closed_total{{reason=\"{reason}\"}}");
    metrics::scrape(bridge.admin_address())[&series]
}

#[test]
fn the_document_lists_exactly_the_members_of_the_status() {
    let bridge = bridge("status-members", UNREACHABLE);
    assert_eq!(send(&bridge, 1, "s", 1), 200);
    let status = status(&bridge, "/status");
    let mut members = BTreeSet::new();
    for (name, value) in status.as_object().expect("an object") {
        match value {
            Value::Object(inner) if name != "config" => {
                let list = |value: &Value| if value.is_array() { "[]" } else { "" };
                let bounds = |name: &str| name == "bounds";
                members.extend(inner.iter().map(|(inner, value)| {
                    format!("{name}.{inner}{}", if bounds(inner) { "" } else { list(value) })
                }));
            }
            Value::Array(_) => drop(members.insert(format!("{name}[]"))),
            _ => drop(members.insert(name.clone())),
        }
    }
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names = rows.flat_map(|cell| cell.split('`')).filter(|name| !name.starts_with(','));
    let documented: BTreeSet<String> =
        names.filter(|name| !name.trim().is_empty()).map(str::to_owned).collect();
    assert_eq!(documented, members);

    for (list, row) in [("recent", "| `recent[]`"), ("history", "| `history[]`")] {
        let row = DOCUMENT.lines().find(|line| line.starts_with(row)).expect("the row");
        for name in status[list][0].as_object().expect("at least one").keys() {
            assert!(row.contains(&format!("`{name}`")), "{list}[].{name} is not explained");
        }
    }
}

#[test]
fn samples_the_client_already_has_are_not_sent_again() {
    let bridge = bridge("status-after", UNREACHABLE);
    let latest = |status: &Value| status["history"].as_array()?.last()?["at"].as_i64();
    let first = latest(&status(&bridge, "/status")).expect("a sample");
    let mut then = status(&bridge, &format!("/status?after={first}"));
    bridge.wait_until("taking another sample", Duration::from_mins(1), || {
        then = status(&bridge, &format!("/status?after={first}"));
        latest(&then).is_some()
    });
    let new = then["history"].as_array().expect("a list");
    assert!(new.iter().all(|sample| sample["at"].as_i64() > Some(first)), "{new:?}");
    let answer = wire::get(bridge.admin_address(), "/status?after=yesterday");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("milliseconds since 1970"), "{}", answer.body);
}

#[test]
fn clients_that_do_not_read_do_not_block_health_checks() {
    let bridge = bridge("status-full", UNREACHABLE);
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut client = TcpStream::connect(bridge.admin_address()).expect("a connection");
        // The responses to these requests fill every buffer; writes to a closed connection fail.
        client.set_nonblocking(true).expect("an option");
        let _ = client.write(&b"GET /metrics HTTP/1.1\r\nHost: l\r\n\r\n".repeat(300));
        silent.push(client);
    }
    // A health check that waits for them gets no answer.
    assert_eq!(bridge.get("/healthz"), "alive\n");
    let evicted = || ended(&bridge, "evicted");
    wait_until(TIME_LIMIT, || evicted() >= 36.0, || format!("{} of 100 were evicted", evicted()));
}

#[test]
fn neither_keys_nor_bodies_nor_passwords_are_printed() {
    let bridge = Bridge::new("status-secrets", UNREACHABLE, "live")
        .set("CALLBACK_UNSIGNED", "push")
        .set("KAFKA_CLIENT_SASL_PASSWORD", "the-password")
        .set("KAFKA_CLIENT_SASL_USERNAME", "the-user");
    bridge.start();
    assert_eq!(send(&bridge, 1, "the-stream", 424_242), 200);
    assert_eq!(send(&bridge, 0, "the-stream", 424_242), 401);
    let text = bridge.get("/status");
    for shown in ["the-user", "the-stream", "(hidden)"] {
        assert!(text.contains(shown), "no {shown} in {text}");
    }
    for secret in [KEY, "the-password", "424242"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    let rejected = &status(&bridge, "/status")["recent"][0];
    assert_eq!(
        (rejected["status"].as_u64(), rejected["outcome"].as_str()),
        (Some(401), Some("unsigned"))
    );
}

#[test]
fn the_page_shows_the_bridges_state_in_a_browser_and_refreshes_itself() {
    let Some(browser) = or_skip("the status page", Browser::start()) else { return };
    let kafka = mock_kafka(3);
    let bridge = bridge("status-page", &kafka.brokers());
    let url = format!("http://{}/", bridge.admin_address());
    let says = |text: &str| format!("return document.body.innerText.includes({text:?})");
    browser.look(1280, 900, false, "light");
    browser.open(&url);
    browser.wait_until(&says("Callbacks are accepted, stored and published."));
    browser.run("window.same = true");

    for number in 0..20 {
        assert_eq!(send(&bridge, 1, HOSTILE, number), 200);
    }
    assert_eq!(send(&bridge, 0, "unknown", 1), 401);
    browser.wait_until(&says("20\naccepted"));
    browser.wait_until(&says("✓ adds up"));
    browser.wait_until(&says("unsigned"));
    browser.wait_until(&says("1 callbacks had no valid signature"));
    browser.wait_until(&says(HOSTILE));
    assert_eq!(browser.run("return document.querySelectorAll('main img').length"), 0);
    assert_eq!(browser.run("return document.title"), "⚠ livebridge · status-page");
    assert_eq!(browser.run("return window.same"), true, "it was not loaded again");

    for (name, width, phone) in
        [("desktop", 1280, false), ("tablet", 800, true), ("phone", 360, true)]
    {
        for scheme in ["light", "dark"] {
            browser.look(width, 800, phone, scheme);
            browser.open(&url);
            browser.wait_until(&says(HOSTILE));
            let plots = browser.run(
                "return [...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('path').length)",
            );
            assert!(plots.as_array().is_some_and(|plots| plots.len() == 4), "{plots}");
            assert!(plots.as_array().expect("plots").iter().all(|paths| paths != 0), "{plots}");
            let wide = browser.run(
                "const root = document.documentElement; return root.scrollWidth - root.clientWidth",
            );
            assert_eq!(wide, 0, "{name} has to be scrolled sideways");
            let dark = browser.run(
                "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] < 128",
            );
            assert_eq!(dark, scheme == "dark");
            let picture = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let picture = picture.join(format!("status-{name}-{scheme}.png"));
            fs::write(picture, browser.picture()).expect("a writable directory");
        }
    }
    let elsewhere = browser.run(
        "return performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith(location.origin + '/'))",
    );
    let elsewhere: Vec<&str> =
        elsewhere.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(elsewhere.iter().all(|name| name.starts_with("data:")), "{elsewhere:?}");
    assert_eq!(browser.console(), Vec::<String>::new(), "no errors and no policy violations");

    drop(kafka);
    browser.wait_until(&says("Kafka is unreachable"));
    assert_eq!(send(&bridge, 1, "s", 100), 200);
    browser.wait_until("return document.querySelectorAll('.plot .band').length > 0");
    bridge.stop();
    browser.wait_until(&says("retrying"));
    bridge.start();
    browser.wait_until("return document.getElementById('heartbeat').innerText === 'live'");
}

#[test]
fn the_page_asks_for_the_token_and_shows_nothing_without_it() {
    let Some(browser) = or_skip("the status page", Browser::start()) else { return };
    let bridge =
        Bridge::new("status-token", UNREACHABLE, "live").set("ADMIN_TOKEN", "open-sesame-123456");
    bridge.start();
    browser.look(400, 800, true, "light");
    browser.open(&format!("http://{}/", bridge.admin_address()));
    let says = |text: &str| format!("return document.body.innerText.includes({text:?})");
    let enter = |token: &str| {
        browser.run(&format!(
            "document.querySelector('#token').value = {token:?}; document.querySelector('form').requestSubmit()"
        ));
    };
    browser.wait_until(&says("Token required"));
    assert_eq!(browser.run("return document.body.innerText.includes('kafka.brokers')"), false);
    enter("wrong");
    browser.wait_until(&says("The token is wrong"));
    enter("open-sesame-123456");
    browser.wait_until(&says("Every callback accounted for"));
    assert!(!bridge.log_text().contains("open-sesame"));
}
