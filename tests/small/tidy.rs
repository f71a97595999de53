//! Rules about the source that no linter knows.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.ends_with("target") {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).expect("a file")));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join(folder), &mut found);
    for (path, _) in &mut found {
        *path = path.strip_prefix(root).expect("below the root").to_owned();
    }
    assert!(!found.is_empty());
    found
}

/// The layers, and what each may look at beside itself. `relay.rs`, `demo.rs` and `main.rs` wire them together.
const LAYERS: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("batch", &["protocol"]),
    ("journal", &["protocol", "batch"]),
    ("receive", &["protocol", "batch"]),
    ("deliver", &["protocol", "batch", "journal"]),
    ("control", &["protocol", "batch", "journal", "receive", "deliver"]),
];

#[test]
fn dependencies_point_one_way() {
    for (layer, allowed) in LAYERS {
        for (path, text) in sources(&format!("src/{layer}")) {
            for (place, _) in text.match_indices("crate::") {
                let name: String =
                    text[place + 7..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let known = LAYERS.iter().any(|(other, _)| *other == name);
                let is_wiring = ["relay", "demo"].contains(&name.as_str());
                let is_fine = name == *layer || allowed.contains(&name.as_str());
                assert!(!(known || is_wiring) || is_fine, "{}: {layer} must not know {name}", path.display());
            }
        }
    }
}

#[test]
fn the_grammar_knows_no_runtime() {
    for (path, text) in sources("src/protocol").into_iter().chain(sources("src/batch")) {
        for word in ["tokio", "std::net", "std::fs", "std::thread"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

#[test]
fn only_one_file_has_unsafe_code() {
    for folder in ["src", "loadgen/src", "benches", "tests"] {
        for (path, text) in sources(folder) {
            let marker = concat!("unsafe", " {");
            let has = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(marker));
            assert_eq!(has, path.ends_with("src/receive/udp/mmsg.rs"), "{}", path.display());
        }
    }
}

#[test]
fn files_are_short_documented_and_done() {
    for folder in ["src", "loadgen/src", "benches", "tests"] {
        for (path, text) in sources(folder) {
            assert!(text.lines().count() <= 500, "{} is too long", path.display());
            assert!(text.starts_with("//!"), "{} begins with what it owns", path.display());
            for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
}
