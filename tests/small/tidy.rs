//! Rules about the source that no linter knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::left_out::left_out;

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

/// The layers, and what each may look at beside itself. `relay.rs`, `demo.rs` and `main.rs` wire
/// them together.
const LAYERS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("net", &[]),
    ("auth", &["sys"]),
    ("protocol", &[]),
    ("batch", &["protocol"]),
    ("journal", &["sys", "protocol", "batch"]),
    ("intake", &["sys", "protocol", "batch"]),
    ("receive", &["sys", "net", "auth", "protocol", "batch", "intake"]),
    ("deliver", &["sys", "net", "protocol", "batch", "journal"]),
    ("pair", &["sys", "net", "protocol", "journal"]),
    ("query", &["sys", "protocol", "batch", "journal", "receive", "deliver", "pair"]),
    ("config", &["sys", "net", "auth", "protocol", "batch", "intake", "journal", "receive", "deliver", "pair"]),
    (
        "observe",
        &[
            "sys", "net", "auth", "protocol", "batch", "intake", "journal", "receive", "deliver", "pair", "query",
            "config",
        ],
    ),
    (
        "cli",
        &[
            "sys", "net", "auth", "protocol", "batch", "intake", "journal", "receive", "deliver", "pair", "query",
            "config", "observe",
        ],
    ),
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

/// The layers within the journal, lowest first: each may look at those before it.
const JOURNAL: &[&str] = &["segment", "state", "shared", "disk"];

#[test]
fn the_journals_layers_point_one_way() {
    for (place, layer) in JOURNAL.iter().enumerate() {
        let files = sources("src/journal");
        let is_of_layer = |path: &Path| {
            let below = path.strip_prefix("src/journal").expect("of the journal");
            below.starts_with(layer) || below == Path::new(&format!("{layer}.rs"))
        };
        for (path, text) in files.iter().filter(|(path, _)| is_of_layer(path)) {
            assert!(!text.contains("super::super"), "{}: name modules from the crate's root", path.display());
            for upper in &JOURNAL[place + 1..] {
                let name = format!("crate::journal::{upper}");
                assert!(!text.contains(&name), "{}: {layer} must not know {upper}", path.display());
            }
            // What stands at the journal's root (handles, and the re-exports) is above all layers.
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for name in code.flat_map(|line| line.split("crate::journal::").skip(1)) {
                let word: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                assert!(JOURNAL[..=place].contains(&word.as_str()), "{}: knows journal::{word}", path.display());
            }
        }
    }
}

/// What each file of a folder uses, as `crate::a::b` or `super::b`, must not lead back to it.
#[test]
fn no_file_of_the_journal_is_in_a_circle() {
    let files = sources("src/journal");
    let module = |path: &Path| {
        let name = path.with_extension("").display().to_string().replace('/', "::");
        name.trim_start_matches("src::").trim_end_matches("::mod").to_owned()
    };
    let names: Vec<String> = files.iter().map(|(path, _)| module(path)).collect();
    let uses: Vec<Vec<usize>> = files
        .iter()
        .zip(&names)
        .map(|((_, text), name)| {
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let base = name.rsplit_once("::").map_or("", |(parent, _)| parent);
            let mut used = Vec::new();
            for line in text.lines().map(str::trim).filter(|line| line.starts_with("use ")) {
                let path = line.trim_start_matches("use ").replace("crate::", "");
                let path = path.strip_prefix("super::").map(|rest| format!("{base}::{rest}")).unwrap_or(path);
                // A folder's own `mod.rs` holds what its files share, and names them: only the
                // other way counts.
                let best = names.iter().enumerate().filter(|(_, other)| path.starts_with(&format!("{other}::")));
                used.extend(best.max_by_key(|(_, other)| other.len()).map(|(place, _)| place));
            }
            used
        })
        .collect();
    for start in 0..files.len() {
        let is_parent = |place: usize| names[start].starts_with(&format!("{}::", names[place]));
        let (mut seen, mut open) = (vec![false; files.len()], uses[start].clone());
        while let Some(place) = open.pop() {
            if place == start || is_parent(place) || std::mem::replace(&mut seen[place], true) {
                assert!(place != start, "{} is in a circle", files[start].0.display());
                continue;
            }
            open.extend(&uses[place]);
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

/// The longest line of a comment, but for rows of tables and blocks of text.
const COMMENT_COLUMNS: usize = 100;

#[test]
fn comments_wrap_at_a_hundred_columns() {
    for folder in ["src", "loadgen/src", "benches", "tests"] {
        for (path, text) in sources(folder) {
            let mut is_block = false;
            for (number, line) in text.lines().enumerate() {
                let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
                let comment = comment.trim_start_matches(['/', '!']).trim_start();
                is_block ^= comment.starts_with("```");
                let may_be_long = is_block || comment.starts_with('|');
                let is_short = may_be_long || line.chars().count() <= COMMENT_COLUMNS;
                assert!(is_short, "{}:{}: a comment is too long", path.display(), number + 1);
            }
        }
    }
}

/// Endings of the files that are tracked, all of them text.
const TEXT: &[&str] = &["rs", "toml", "md"];
/// Files of text without such an ending.
const NAMES: &[&str] = &[
    ".ci/run",
    ".gitignore",
    "Cargo.lock",
    "LICENSE",
    "benches/record/run",
    "packaging/build",
    "packaging/image",
    "packaging/try",
    "tests/mutants",
    "tests/run",
];
/// Files of text that only these folders hold, with their ending.
const TEXT_OF: &[(&str, &str)] = &[
    ("tests/corpus", "jsonl"),
    ("tests/proptest-regressions", "txt"),
    ("tests/large/clients", "js"),
    ("tests/large/clients", "py"),
    ("tests/large", "go"),
    ("src/observe/page", "html"),
    ("src/observe/page", "css"),
    ("src/observe/page", "js"),
    ("packaging/prometheus", "yml"),
    ("packaging/grafana", "json"),
    ("packaging/systemd", "service"),
    ("packaging/systemd", "socket"),
    ("packaging/etc", "conf"),
    ("packaging/sysusers.d", "conf"),
    ("packaging/debian", ""),
];
/// The only folder of files that are no text: what senders sent, compressed.
const CAPTURES: &str = "tests/captures";

/// What is wrong with a tracked file; none where its kind is known.
fn is_strange(path: &Path, content: &[u8]) -> Option<&'static str> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if path.parent() == Some(Path::new(CAPTURES)) && ending == "gz" {
        return (!content.starts_with(&[0x1f, 0x8b])).then_some("is not compressed");
    }
    if path.parent() == Some(Path::new("docs/src")) && ending == "png" {
        return (!content.starts_with(b"\x89PNG")).then_some("is no picture");
    }
    let is_of_folder = TEXT_OF.contains(&(path.parent().and_then(Path::to_str).unwrap_or_default(), ending));
    if !TEXT.contains(&ending) && !is_of_folder && !NAMES.iter().any(|name| path == Path::new(name)) {
        return Some("is of an unknown kind: remove it, or add its kind to this test");
    }
    let is_text = std::str::from_utf8(content).is_ok() && !content.contains(&0);
    (!is_text).then_some("is no text")
}

#[test]
fn only_files_of_known_kinds_are_tracked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Without Git, as in a copy of the sources, nobody tracks anything.
    let listed = Command::new("git").current_dir(root).args(["ls-files", "-z"]).output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success() && !listed.stdout.is_empty()) else {
        left_out("only_files_of_known_kinds_are_tracked", "no Git repository here");
        return;
    };
    for path in String::from_utf8(listed.stdout).expect("UTF-8").split_terminator('\0') {
        // A file that is about to be removed is still listed.
        let Ok(content) = fs::read(root.join(path)) else { continue };
        let strange = is_strange(Path::new(path), &content);
        assert!(strange.is_none(), "{path} {}", strange.unwrap_or_default());
    }
}

#[test]
fn a_stray_package_is_of_no_known_kind() {
    for (path, content, is_known) in [
        ("src/lib.rs", &b"//! Text\n"[..], true),
        ("src/lib.rs", b"\x7fELF\0", false),
        ("docs/src/lines.md", b"\xff\xfe", false),
        ("netdata_1.37.deb", b"!<arch>\n", false),
        ("target.tar.gz", b"\x1f\x8b", false),
        ("tests/captures/more/a.gz", b"\x1f\x8b", false),
        ("tests/captures/a.bin.gz", b"\x1f\x8b", true),
        ("tests/captures/a.bin.gz", b"plain", false),
        ("docs/src/page.png", b"\x89PNG\r\n", true),
        ("page.png", b"\x89PNG\r\n", false),
        ("tests/corpus/lines.jsonl", b"{}\n", true),
        ("lines.jsonl", b"{}\n", false),
        ("tests/run", b"#!/usr/bin/env bash\n", true),
        ("run", b"#!/usr/bin/env bash\n", false),
        ("twinflux", b"\x7fELF\0", false),
        ("other/Cargo.lock", b"", false),
    ] {
        assert_eq!(is_strange(Path::new(path), content).is_none(), is_known, "{path}");
    }
}
