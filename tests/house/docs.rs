//! The documents match the repository: links, commands, keys, metrics, citations. The public
//! contract in `docs/contract.md` matches the code.

mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use livebridge::event::EventType;
use serde_json::Value;

use crate::support::process::{livebridge, run};
use markdown::{
    anchors, blocks, codes, column, documents, files, links, read, resolve, root, spans,
};

/// Documents of other projects that comments refer to.
const FOREIGN: [&str; 1] = ["STATISTICS.md"];

#[test]
fn every_page_is_linked_from_the_readme() {
    let readme = links(&read("README.md"));
    let linked: BTreeSet<&str> = readme.iter().filter_map(|link| link.split('#').next()).collect();
    for (page, _) in documents() {
        let page = page.to_str().unwrap();
        assert!(
            !page.starts_with("docs/") || linked.contains(page),
            "the README does not link {page}"
        );
    }
}

#[test]
fn every_link_target_exists() {
    let mut count = 0;
    for (page, text) in documents() {
        for link in links(&text) {
            if link.starts_with("https://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if target.is_empty() { page.clone() } else { resolve(&page, target) };
            assert!(root().join(&target).exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() {
                assert!(
                    anchors(&read(&target)).contains(anchor),
                    "{}: {link} has no target",
                    page.display()
                );
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count} links were found");
}

#[test]
fn every_path_of_the_repository_in_a_document_exists() {
    let mut count = 0;
    for (page, text) in documents() {
        for span in spans(&text) {
            let in_repository = ["src/", "tests/", "benches/", "deploy/", "docs/", ".ci/"];
            let is_path = in_repository.iter().any(|top| span.starts_with(top));
            // A command with arguments begins with its path; a pattern is not a path.
            let path = span.split(' ').next().unwrap();
            if is_path && !path.contains(['*', '<']) && page != Path::new("CHANGELOG.md") {
                assert!(root().join(path).exists(), "{}: there is no {path}", page.display());
                count += 1;
            }
        }
    }
    assert!(count > 40, "{count} paths were found");
}

#[test]
fn the_modules_of_the_design_match_the_library() {
    let library = read("src/lib.rs");
    let modules =
        library.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    let modules: BTreeSet<String> =
        modules.map(|name| name.trim_end_matches(';').to_owned()).collect();
    let described: BTreeSet<String> =
        codes(&read("docs/design.md"), "Overview", 0).into_iter().collect();
    let missing: Vec<_> = modules.difference(&described).collect();
    assert!(missing.is_empty(), "docs/design.md does not describe {missing:?}");
    for module in &described {
        let paths = [format!("src/{module}.rs"), format!("src/{module}/mod.rs")];
        assert!(paths.iter().any(|path| root().join(path).exists()), "there is no {module}");
    }
}

/// A type's function, variant or field in a document, as `Type::name`, exists: a file that declares the type,
/// or has an `impl` of it, has a function, variant or field of that name.
#[test]
fn every_member_of_a_type_in_a_document_exists() {
    let mut sources = files("src", &["rs"]);
    sources.extend(files("tests", &["rs"]));
    let sources: Vec<String> = sources.into_iter().map(read).collect();
    let is_name = |part: &str| part.chars().all(|c| c.is_alphanumeric() || c == '_');
    let mut count = 0;
    for (page, text) in documents() {
        for span in spans(&text) {
            let Some((of_type, member)) = span.split_once("::") else { continue };
            let is_type = of_type.starts_with(|c: char| c.is_ascii_uppercase());
            if !is_type || !is_name(of_type) || !is_name(member) {
                continue;
            }
            let declares = |source: &&String| {
                ["struct", "enum", "trait", "impl"]
                    .iter()
                    .any(|keyword| words(source, keyword).any(|name| name == of_type))
            };
            let has = |source: &String| {
                words(source, "fn").any(|name| name == member)
                    || source.lines().any(|line| {
                        let rest = line.trim().strip_prefix(member);
                        rest.is_some_and(|rest| rest.starts_with([',', '(', ' ', ':']))
                    })
            };
            let exists = sources.iter().filter(declares).any(has);
            assert!(exists, "{}: there is no {span}", page.display());
            count += 1;
        }
    }
    assert!(count >= 8, "{count} were found");
}

/// The names that follow `keyword` in a source file.
fn words<'a>(source: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = source.split_whitespace().zip(source.split_whitespace().skip(1));
    pairs.filter(move |(word, _)| *word == keyword).map(|(_, name)| {
        name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
    })
}

#[test]
fn the_path_of_a_callback_names_each_file_once() {
    let design = read("docs/design.md");
    let (_, path) = design.split_once("## The path of a callback\n").unwrap();
    let path = path.split("\n## ").next().unwrap();
    let mut named = BTreeSet::new();
    for file in spans(path).into_iter().filter(|span| span.starts_with("src/")) {
        assert!(named.insert(file.clone()), "{file} is named twice");
    }
    assert!(named.len() >= 20, "{named:?}");
}

/// The commands that `livebridge ARGUMENTS --help` lists.
fn commands(arguments: &[&str]) -> BTreeSet<String> {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--help"]).collect();
    let help = run(&mut livebridge(&arguments)).stdout;
    let (_, list) = help.split_once("\nCommands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    // The second line of a description is further to the right.
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn every_documented_command_line_is_valid() {
    let (known, of_wal) = (commands(&[]), commands(&["wal"]));
    assert!(known.contains("serve") && of_wal.contains("status"), "{known:?} {of_wal:?}");
    let mut named = BTreeSet::new();
    for (page, text) in documents() {
        let (code, _) = blocks(&text);
        let lines: Vec<String> = code
            .iter()
            .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
            .chain(spans(&text))
            .collect();
        for line in lines {
            for prefix in ["livebridge ", "cargo run --release -- "] {
                // In a container's command, containers and images are named livebridge, too.
                let is_container = line.starts_with("docker ");
                let split =
                    if is_container { line.rsplit_once(prefix) } else { line.split_once(prefix) };
                let Some((before, rest)) = split else { continue };
                // A word after the name of a service or a namespace is not a livebridge command.
                let starts = before.is_empty() || before.ends_with("&& ") || before.contains('=');
                let mut words = rest.split([' ', '\n']);
                let command = words.next().unwrap();
                if !starts || command.is_empty() || command.starts_with(['<', '-', '…', '.']) {
                    continue;
                }
                assert!(known.contains(command), "{}: {line}", page.display());
                if let ("wal", Some(step)) = (command, words.next()) {
                    assert!(of_wal.contains(step), "{}: {line}", page.display());
                }
                named.insert(command.to_owned());
            }
        }
    }
    assert!(named.len() >= 8, "{named:?}");
    let readme = read("README.md");
    let (_, table) = readme.split_once("| command | |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect::<String>();
    let listed: BTreeSet<String> = rows.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let missing: Vec<_> =
        known.iter().filter(|name| *name != "help" && !listed.contains(*name)).collect();
    assert!(missing.is_empty(), "the README does not list {missing:?}");
}

#[test]
fn the_testing_page_links_every_test_module_and_those_of_promises_by_promise() {
    let page = read("docs/testing.md");
    let (_, by_promise) = page.split_once("\n## Promises\n").unwrap();
    let by_promise = links(by_promise.split("\n## ").next().unwrap());
    let anywhere = links(&page);
    let mut count = 0;
    for main in files("tests", &["rs"]).iter().filter(|file| file.ends_with("main.rs")) {
        let directory = main.parent().unwrap();
        let text = read(main);
        let modules = text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        for module in modules {
            let file = directory.join(format!("{module}.rs"));
            if root().join(&file).exists() {
                let named = if directory.ends_with("promise") { &by_promise } else { &anywhere };
                let link = format!("../{}", file.display());
                assert!(named.contains(&link), "docs/testing.md does not link {link}");
                count += 1;
            }
        }
    }
    assert!(count > 40, "{count} modules were found");
}

#[test]
fn every_documented_test_command_names_tests_that_exist() {
    let mut paths: Vec<PathBuf> = documents().into_iter().map(|(page, _)| page).collect();
    paths.extend(files("tests", &["rs"]));
    paths.extend([PathBuf::from(".ci/run")]);
    let mut count = 0;
    for path in paths {
        for command in read(&path).split("--test ").skip(1) {
            let mut words = command.split([' ', '`', '\n']);
            let binary = words.next().unwrap();
            if !binary.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                continue;
            }
            let directory = Path::new("tests").join(binary);
            let exists = root().join(&directory).join("main.rs").is_file();
            assert!(exists, "{}: there is no test {binary}", path.display());
            let module = words.next().and_then(|word| word.strip_suffix("::"));
            let exists = |module| root().join(&directory).join(format!("{module}.rs")).is_file();
            assert!(module.is_none_or(exists), "{}: {module:?} in {binary}", path.display());
            count += 1;
        }
    }
    assert!(count > 10, "{count} commands were found");
}

/// Every configuration key, as `livebridge config` prints them, and the two tables with free-form
/// keys.
fn keys() -> BTreeSet<String> {
    let mut command = livebridge(&["config", "--json"]);
    let printed = run(command.env("LIVEBRIDGE_CALLBACK_KEYS", "k"));
    let config: Value = serde_json::from_str(&printed.stdout).unwrap();
    let mut keys: BTreeSet<String> = config.as_object().unwrap().keys().cloned().collect();
    assert!(keys.len() >= 34, "{keys:?}");
    keys.extend(["kafka.client".to_owned(), "kafka.topics".to_owned()]);
    keys
}

#[test]
fn the_table_of_keys_matches_the_program() {
    let listed = codes(&read("docs/configuration.md"), "Keys", 0);
    let listed: BTreeSet<String> =
        listed.iter().map(|key| key.trim_matches(['[', ']']).to_owned()).collect();
    assert_eq!(listed, keys());
}

#[test]
fn the_documented_defaults_match_the_program() {
    let mut command = livebridge(&["config", "--json"]);
    let printed = run(command.env("LIVEBRIDGE_CALLBACK_KEYS", "k")).stdout;
    let config: Value = serde_json::from_str(&printed).unwrap();
    let document = read("docs/configuration.md");
    let rows = column(&document, "Keys", 0).into_iter().zip(column(&document, "Keys", 1));
    let mut count = 0;
    for (keys, defaults) in rows {
        let defaults = defaults.split('`').skip(1).step_by(2);
        for (key, default) in keys.split('`').skip(1).step_by(2).zip(defaults) {
            let documented: toml::Table = format!("value = {default}").parse().unwrap();
            let documented = serde_json::to_value(&documented["value"]).unwrap();
            assert_eq!(config[key]["value"], documented, "{key}");
            count += 1;
        }
    }
    assert!(count >= 24, "{count} defaults were found");
}

#[test]
fn the_figures_of_the_readme_match_the_benchmarks() {
    let readme = read("README.md");
    let (_, speed) = readme.split_once("\n## How it is tested, and how fast it is\n").unwrap();
    let speed = speed.split("\n## ").next().unwrap();
    let measured = figures(&read("docs/benchmarks.md"));
    let figures = figures(speed);
    assert!(figures.len() >= 4, "{figures:?}");
    assert!(figures.is_subset(&measured), "{figures:?}");
}

#[test]
fn documents_name_only_keys_that_exist() {
    let known = keys();
    let sections: BTreeSet<&str> =
        known.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    for (page, text) in documents() {
        // Members of the status have the same form.
        if page == Path::new("docs/status.md") || page == Path::new("CHANGELOG.md") {
            continue;
        }
        for span in spans(&text) {
            let span = span.trim_matches(['[', ']']);
            let word = span.split([' ', '=']).next().unwrap();
            let Some((section, key)) = word.split_once('.') else { continue };
            let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            // File names and topic names with a prefix are not keys.
            let other = ["toml", "md", "rs", "yml", "json"].contains(&key);
            if is_key && !other && sections.contains(section) {
                assert!(known.contains(word), "{}: there is no {word}", page.display());
            }
        }
    }
}

/// Each metric and its labels, by the tables of a document: the name is in the first column.
fn metrics(document: &str, labels: usize) -> BTreeMap<String, BTreeSet<String>> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter(|row| row.starts_with("livebridge_") || row.starts_with("process_"));
    rows.map(|row| {
        let (name, _) = row.split_once('`').unwrap();
        let cell = row.split('|').nth(labels).unwrap_or_default();
        let labels = cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (name.to_owned(), labels)
    })
    .collect()
}

#[test]
fn documents_name_only_metrics_that_exist() {
    // A test in `observe` compares this table with a running bridge.
    let known = metrics(&read("docs/metrics.md"), 3);
    assert!(known.len() >= 50, "{known:?}");
    let mut count = 0;
    for (page, text) in documents() {
        if page == Path::new("CHANGELOG.md") {
            continue;
        }
        for span in spans(&text) {
            let name = span.split('{').next().unwrap();
            if name.starts_with("livebridge_") || name.starts_with("process_") {
                assert!(known.contains_key(name), "{}: there is no {name}", page.display());
                count += 1;
            }
        }
    }
    assert!(count > 80, "{count} were found");
}

/// The numbers in a text, outside code and links.
fn figures(text: &str) -> BTreeSet<String> {
    let prose = blocks(text).1;
    let prose: String = prose.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let prose: String = prose
        .split("](")
        .map(|part| part.split_once(')').map_or(part, |(_, rest)| rest))
        .collect::<Vec<_>>()
        .join(" ");
    let is_part = |c: char| c.is_ascii_digit() || c == ',' || c == '.';
    let numbers = prose.split(|c: char| !is_part(c)).map(|word| word.trim_matches(['.', ',']));
    numbers.filter(|number| !number.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_chinese_readme_has_the_commands_figures_names_and_links_of_the_english_one() {
    let (english, chinese) = ("README.md", "docs/zh-CN/README.md");
    let targets = |page: &str, other: &str| -> BTreeSet<PathBuf> {
        let links = links(&read(page)).into_iter().map(|link| resolve(Path::new(page), &link));
        let links: BTreeSet<PathBuf> = links.collect();
        assert!(links.contains(Path::new(other)), "{page} does not link to {other}");
        links.into_iter().filter(|link| link != Path::new(other)).collect()
    };
    assert_eq!(targets(english, chinese), targets(chinese, english));
    let (english, chinese) = (read(english), read(chinese));
    let shell = |text: &str| -> Vec<String> {
        text.split("```sh\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(shell(&english), shell(&chinese));
    let names = |text: &str| spans(text).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(names(&english), names(&chinese));
    assert_eq!(figures(&english), figures(&chinese));
    let rows = |text: &str| text.lines().filter(|line| line.starts_with('|')).count();
    assert_eq!(rows(&english), rows(&chinese));
}

/// The documents that a source file cites, each with the cited sections.
fn citations(text: &str) -> Vec<(String, Vec<String>)> {
    let text = text.replace("\n//! ", " ").replace("\n/// ", " ");
    let lines = text.lines().map(str::trim_start);
    let text: Vec<&str> = lines.map(|line| line.strip_prefix("// ").unwrap_or(line)).collect();
    let words: Vec<&str> = text.iter().flat_map(|line| line.split_whitespace()).collect();
    let is_mark = |c: char| "`()[]\"',;:.".contains(c);
    let is_path = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let name = word.split(|c| !is_path(c)).map(|part| part.trim_matches('.'));
        let name = name.map(|part| part.trim_start_matches('/'));
        let is_document = |part: &&str| Path::new(part).extension().is_some_and(|e| e == "md");
        let Some(name) = name.into_iter().find(is_document) else { continue };
        let mut sections = Vec::new();
        // `name.md section 2`, `name.md A, D`, `name.md 3 and 5`; any other citation has no
        // sections.
        let ended = word.ends_with([')', '.', ',', ':', ';']);
        for next in words[at + 1..].iter().take_while(|_| !ended) {
            let section = next.trim_matches(is_mark);
            let is_section = section.len() == 1
                && section.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase());
            if is_section {
                sections.push(section.to_owned());
            } else if !["section", "sections", "and"].contains(&section) {
                break;
            }
            if next.ends_with([')', '.']) {
                break;
            }
        }
        found.push((name.to_owned(), sections));
    }
    found
}

#[test]
fn every_document_that_a_source_file_cites_exists_with_its_section() {
    let mut cited = BTreeSet::new();
    let mut paths = files("src", &["rs", "html", "js", "css"]);
    for dir in ["tests", "benches", "fuzz", "deploy", ".ci"] {
        paths.extend(files(dir, &["rs", "py", "toml", "yml", "yaml", "json", "md", "cfg"]));
    }
    paths.extend(
        ["Cargo.toml", "docker-compose.yml", ".ci/run", "deploy/drills/drill"].map(PathBuf::from),
    );
    // This file contains document names as test data.
    paths.retain(|path| path != Path::new("tests/house/docs.rs"));
    for path in paths {
        for (name, sections) in citations(&read(&path)) {
            let place = [
                PathBuf::from(&name),
                Path::new("docs").join(&name),
                Path::new("tests").join(&name),
                path.parent().unwrap().join(&name),
                Path::new("tests/payloads").join(&name),
            ];
            let place = place.iter().find(|place| root().join(place).is_file());
            let foreign = FOREIGN.contains(&name.as_str());
            assert!(foreign || place.is_some(), "{} cites {name}", path.display());
            let Some(place) = place else { continue };
            let text = read(place);
            for section in &sections {
                let heading = format!("\n## {section}. ");
                assert!(text.contains(&heading), "{} cites {name} {section}", path.display());
            }
            cited.insert((name, sections));
        }
    }
    let sections = cited.iter().filter(|(_, sections)| !sections.is_empty()).count();
    assert!(sections >= 4, "{cited:?}");
}

/// The code spans in a list or table of a section of the contract.
fn pinned(section: &str) -> BTreeSet<String> {
    let contract = read("docs/contract.md");
    let (_, rest) = contract.split_once(&format!("\n## {section}\n")).expect(section);
    let section = rest.split("\n## ").next().unwrap();
    section.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_contract_pins_the_metrics_and_their_labels() {
    let pinned = metrics(&read("docs/contract.md"), 1);
    assert_eq!(pinned, metrics(&read("docs/metrics.md"), 3));
}

#[test]
fn the_contract_pins_the_configuration_keys() {
    let pinned: BTreeSet<String> = pinned("Configuration keys");
    assert_eq!(pinned, keys());
}

#[test]
fn the_contract_pins_the_headers() {
    let mut written = BTreeSet::new();
    for path in files("src/publisher", &["rs"]) {
        let text = read(path);
        let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
        let texts = code.split('"').skip(1).step_by(2);
        let names = texts
            .filter(|text| text.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '-'));
        let names = names.filter(|name| {
            name.starts_with("ce_") || name.starts_with("livebridge-") || *name == "content-type"
        });
        written.extend(names.map(str::to_owned));
    }
    assert_eq!(pinned("Headers of Kafka records"), written);
}

#[test]
fn the_contract_pins_the_exit_codes() {
    let source = read("src/cli.rs");
    let codes = source.lines().filter_map(|line| line.strip_prefix("const EXIT_"));
    let codes = codes.filter_map(|line| line.split_once("= ")?.1.strip_suffix(';'));
    let mut codes: BTreeSet<String> = codes.map(str::to_owned).collect();
    assert!(codes.len() >= 3, "{codes:?}");
    codes.insert("0".to_owned());
    let contract = read("docs/contract.md");
    assert_eq!(self::codes(&contract, "Exit codes", 0).into_iter().collect::<BTreeSet<_>>(), codes);
}

#[test]
fn the_contract_pins_the_alerts() {
    let alerts = read("deploy/alerts.yml");
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(pinned("Alerts"), names.map(str::to_owned).collect());
}

#[test]
fn the_contract_pins_the_event_types() {
    let contract = read("docs/contract.md");
    let codes = column(&contract, "Event types", 0);
    let names = self::codes(&contract, "Event types", 1);
    let pinned: BTreeSet<(String, String)> = codes.into_iter().zip(names).collect();
    let known = EventType::known().map(|(code, name)| (code.0.to_string(), name.to_owned()));
    let known = known.chain([("other".to_owned(), "other".to_owned())]);
    assert_eq!(pinned, known.collect());
}
