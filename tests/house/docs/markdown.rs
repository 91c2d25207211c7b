//! Reading the documents: their files, links, headings, code and tables.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Directories of the repository with files for tests, not for readers.
const NOT_FOR_READERS: [&str; 4] = [".git", "target", "fuzz/corpus", "tests/payloads"];
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The files below `dir`, relative to the repository, whose extension is one of `extensions`.
pub(crate) fn files(dir: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(dir)).unwrap() {
        let path = entry.unwrap().path();
        let below = path.strip_prefix(root()).unwrap().to_path_buf();
        if path.is_dir() {
            if !NOT_FOR_READERS.iter().any(|skipped| below == Path::new(skipped)) {
                found.extend(files(below.to_str().unwrap(), extensions));
            }
        } else if below.extension().is_some_and(|e| extensions.iter().any(|known| e == *known)) {
            found.push(below);
        }
    }
    found
}

/// Every document with its text.
pub(crate) fn documents() -> Vec<(PathBuf, String)> {
    let found: Vec<_> =
        files("", &["md"]).into_iter().map(|path| (path.clone(), read(path))).collect();
    assert!(found.len() >= 18, "documents are missing: {found:?}");
    found
}

/// Splits a document into code blocks and the text around them.
pub(crate) fn blocks(text: &str) -> (Vec<String>, String) {
    let (mut code, mut prose) = (Vec::new(), String::new());
    let mut within = None;
    for line in text.lines() {
        if line.starts_with("```") {
            match within.take() {
                Some(block) => code.push(block),
                None => within = Some(String::new()),
            }
        } else {
            let part = within.as_mut().unwrap_or(&mut prose);
            part.push_str(line);
            part.push('\n');
        }
    }
    assert!(within.is_none(), "a code block has no end");
    (code, prose)
}

/// The text between single backticks, with line breaks as spaces, outside code blocks.
pub(crate) fn spans(text: &str) -> Vec<String> {
    let prose = blocks(text).1;
    prose.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
}

/// The targets of links and pictures outside code.
pub(crate) fn links(text: &str) -> Vec<String> {
    let prose = blocks(text).1;
    let text: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// The anchors of a document's headings, as GitHub makes them.
pub(crate) fn anchors(text: &str) -> BTreeSet<String> {
    let headings = blocks(text).1;
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let is_kept = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|title| title.chars().filter(is_kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// `target`, as referenced in `page`, relative to the repository.
pub(crate) fn resolve(page: &Path, target: &str) -> PathBuf {
    let mut resolved = page.parent().unwrap().to_path_buf();
    for step in Path::new(target).components() {
        match step {
            Component::ParentDir => assert!(resolved.pop(), "{target} leads out of the repository"),
            Component::Normal(step) => resolved.push(step),
            _ => {}
        }
    }
    resolved
}

/// Column `column` of the table rows in a section.
pub(crate) fn column(document: &str, section: &str, column: usize) -> Vec<String> {
    let (_, rest) = document.split_once(&format!("\n## {section}\n")).expect(section);
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    // The header row and the line below it.
    let rows = rows.skip(1).filter(|line| !line.starts_with("|--"));
    let cell = |row: &str| row.split('|').nth(column + 1).unwrap_or_default().trim().to_owned();
    rows.map(cell).collect()
}

/// The code spans of a column.
pub(crate) fn codes(document: &str, section: &str, number: usize) -> Vec<String> {
    let cells = column(document, section, number);
    let codes = cells.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2));
    codes.map(str::to_owned).collect()
}
