//! `livebridge tencent` in accounts that others use too, and when a request fails half way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::cli::{Bed, DOMAIN};
use crate::support::process::run;
use crate::support::tencent::{Fault, SECRET_ID, SECRET_KEY};

const OTHER: &str = "other.example.com";
const RULE: &str = "CreateLiveCallbackRule";
const DELETE: &str = "DeleteLiveCallbackRule";

/// An account in which a template of another owner, of this name, has the rule of `domain` and `app`.
fn account_with(name: &str, domain: &str, app: &str) -> (Bed, i64) {
    let bed = Bed::new();
    let id = {
        let mut state = bed.tencent.state();
        state.domains.push((OTHER.into(), true));
        let fields = json!({ "TemplateName": name, "StreamBeginNotifyUrl": "http://192.0.2.1/" });
        let id = state.add_template(&fields);
        state.rules.push((domain.into(), app.into(), id));
        id
    };
    (bed, id)
}

fn rules(bed: &Bed) -> Vec<(String, String, i64)> {
    bed.tencent.state().rules.clone()
}

#[test]
fn a_rule_that_cannot_be_replaced_is_created_again_and_the_outcome_is_told() {
    let code = || Fault::Code("InvalidParameter");
    // The faults, whether the old rule is there afterwards (if there is one), and what is told.
    for (faults, old_is_left, says) in [
        (vec![(RULE, code())], Some(true), "was deleted and created again"),
        (vec![(RULE, Fault::Close)], Some(true), "was deleted and created again"),
        (vec![(RULE, Fault::CloseAfter)], Some(false), "has a rule; run this again"),
        (vec![(RULE, code()), (RULE, code())], None, "none of its callbacks is sent until"),
        (vec![(DELETE, Fault::CloseAfter)], Some(true), "was deleted and created again"),
        (vec![(DELETE, Fault::Close)], Some(true), "has a rule; run this again"),
        (vec![(DELETE, code())], Some(true), "DeleteLiveCallbackRule: a parameter is wrong"),
    ] {
        let (bed, foreign) = account_with("other", DOMAIN, "");
        for (action, fault) in faults.clone() {
            bed.tencent.inject(action, fault);
        }
        let stopped = bed.setup(&["--take-over", "--yes"]);
        assert_eq!(stopped.code, Some(1), "{faults:?} {stopped:?}");
        assert!(stopped.stderr.contains(says), "{says} {stopped:?}");
        if says.contains("deleted") || old_is_left.is_none() {
            let named = format!("{DOMAIN}, for template {foreign},");
            assert!(stopped.stderr.contains(&named), "{named} {stopped:?}");
        }
        let left: Vec<bool> = rules(&bed).iter().map(|(_, _, id)| *id == foreign).collect();
        assert_eq!(left, Vec::from_iter(old_is_left), "{faults:?}");
        assert_eq!(bed.setup(&["--take-over", "--yes"]).code, Some(0));
        assert!(rules(&bed).len() == 1 && rules(&bed)[0].2 != foreign);
    }
}

#[test]
fn rules_that_replace_none_are_created_first() {
    let (bed, _) = account_with("theirs", OTHER, "");
    let done = bed.setup(&["--domain", OTHER, "--domain", DOMAIN, "--take-over", "--yes"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let calls = bed.tencent.state().calls.clone();
    let of_rules = calls.iter().filter(|(action, _)| action == RULE || action == DELETE);
    let domains: Vec<_> = of_rules.map(|(_, call)| call["DomainName"].as_str().unwrap()).collect();
    assert_eq!(domains, [DOMAIN, OTHER, OTHER], "a domain that is given twice counts once");
}

#[test]
fn setup_stops_at_a_rule_of_another_template_that_overlaps_and_does_not_change_it() {
    for (theirs, ours, overlap) in [
        ("live", "", "the callbacks of push.example.com/live go elsewhere"),
        ("", "live", "the callbacks of push.example.com/live follow the rule of push.example.com,"),
    ] {
        let (bed, foreign) = account_with("other", DOMAIN, theirs);
        let app: &[&str] = if ours.is_empty() { &[] } else { &["--app", ours] };
        let stopped = bed.setup(&[app, &["--yes"]].concat());
        assert_eq!(stopped.code, Some(64), "{stopped:?}");
        assert!(stopped.stderr.contains(overlap), "{stopped:?}");
        assert!(stopped.stderr.contains("--take-over"), "{stopped:?}");
        assert_eq!(rules(&bed).len(), 1);
        let done = bed.setup(&[app, &["--take-over", "--yes"]].concat());
        assert!(done.code == Some(0) && done.stdout.contains(overlap), "{done:?}");
        assert_eq!(rules(&bed)[0], (DOMAIN.into(), theirs.into(), foreign), "unchanged");
        assert_eq!(rules(&bed)[1].1, ours);
        let again = bed.setup(&[app, &["--yes"]].concat());
        assert!(again.code == Some(0) && again.stdout.contains("nothing to do"), "{again:?}");
    }
    // Apps do not overlap.
    let (bed, _) = account_with("other", DOMAIN, "vod");
    assert_eq!(bed.setup(&["--app", "live", "--yes"]).code, Some(0));
}

#[test]
fn setup_does_not_take_over_a_template_that_other_domains_use() {
    let (bed, id) = account_with("livebridge", OTHER, "");
    let stopped = bed.setup(&["--take-over", "--yes"]);
    assert_eq!(stopped.code, Some(64), "{stopped:?}");
    let says = format!("the rule of {OTHER} names template {id} too");
    assert!(stopped.stderr.contains(&says), "{stopped:?}");
    assert_eq!(bed.tencent.state().template(id)["StreamBeginNotifyUrl"], "http://192.0.2.1/");
    let done = bed.setup(&["--domain", OTHER, "--take-over", "--yes"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let told = bed.setup(&["--events", "push"]);
    assert!(told.stdout.contains(&format!("changes the callbacks of {OTHER} too")), "{told:?}");
}

#[test]
fn a_template_key_that_is_not_configured_is_a_note_if_signatures_are_not_required() {
    let (bed, _) = account_with("other", DOMAIN, "");
    let id = bed.tencent.state().templates[0]["TemplateId"].as_i64().unwrap();
    let url = bed.url();
    {
        let mut state = bed.tencent.state();
        state.templates[0].insert("CallbackKey".into(), "anotherKey0123456789".into());
        state.templates[0].insert("StreamBeginNotifyUrl".into(), url.into());
        state.domains.pop();
    }
    let status = |unsigned: &str| {
        run(bed.command(&["tencent", "status"]).env("LIVEBRIDGE_CALLBACK_UNSIGNED", unsigned))
    };
    let of = format!("{DOMAIN} (template {id}): its key");
    let rejected = status("");
    assert_eq!(rejected.code, Some(1), "{rejected:?}");
    assert!(rejected.stdout.contains(&format!("FAIL  {of} is none of those")), "{rejected:?}");
    let accepted = status("all");
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    assert!(accepted.stdout.contains(&format!("note  {of} is not configured")), "{accepted:?}");
}

#[test]
fn an_empty_variable_for_the_credentials_file_counts_as_absent_and_check_notes_a_readable_file() {
    let bed = Bed::new();
    let with = |arguments: &[&str], file: &str| {
        run(bed.command(arguments).env("TENCENTCLOUD_CREDENTIALS_FILE", file))
    };
    let removed = with(&["tencent", "remove"], "");
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let file = bed.keys().with_file_name("credentials");
    let text = json!({ "secretId": SECRET_ID, "secretKey": SECRET_KEY }).to_string();
    fs::write(&file, text).unwrap();
    for (mode, is_noted) in [(0o600, false), (0o604, true)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let check = with(&["check"], file.to_str().unwrap());
        let noted = "can read ".to_owned() + file.to_str().unwrap();
        assert_eq!(check.stdout.contains(&noted), is_noted, "{mode:o} {check:?}");
    }
}

#[test]
fn recover_exits_with_64_for_credentials_that_the_account_does_not_have() {
    let bed = Bed::new();
    let mut recover = bed.command(&["recover", "--since", "1h"]);
    let rejected = run(recover.env("TENCENTCLOUD_SECRET_KEY", "another-key"));
    assert_eq!(rejected.code, Some(64), "{rejected:?}");
    assert!(rejected.stderr.contains("the signature is not accepted"), "{rejected:?}");
}
