//! README, book and CONTRIBUTING: what they show works, what they link to exists, and the
//! reference pages name everything there is.
//!
//! A fenced block marked `toml` is a configuration of Twinflux. A block of another program carries
//! that program's name: `toml,telegraf`. Links of the book stay inside the book.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use twinflux::cli::Cli;
use twinflux::config::Config;
use twinflux::config::Overrides;
use twinflux::deliver::State;
use twinflux::journal::{DropReason, Rejection};
use twinflux::protocol::Refusal;

const BOOK: &str = "docs/src";

/// A page: its path below the repository, and its text.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        let text = fs::read_to_string(root().join(&path));
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    fn of_book(name: &str) -> Self {
        Self::read(Path::new(BOOK).join(name))
    }

    /// The lines outside of fenced blocks, and each fenced block with its info string.
    fn parts(&self) -> (Vec<&str>, Vec<(&str, String)>) {
        let (mut prose, mut blocks) = (Vec::new(), Vec::new());
        let mut open: Option<(&str, String)> = None;
        for line in self.text.lines() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(info), None) => open = Some((info.trim(), String::new())),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some((_, block))) => {
                    block.push_str(line);
                    block.push('\n');
                }
                (None, None) => prose.push(line),
            }
        }
        assert!(open.is_none(), "{}: a block has no end", self.path.display());
        (prose, blocks)
    }

    fn anchors(&self) -> Vec<String> {
        let headings = self.parts().0.into_iter().filter_map(|line| {
            let title = line.trim_start_matches('#');
            (title.len() < line.len()).then(|| title.strip_prefix(' ')).flatten()
        });
        let anchors: Vec<String> = headings.map(anchor).collect();
        let mut sorted = anchors.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), anchors.len(), "{}: two headings are the same", self.path.display());
        anchors
    }

    /// The targets of the links in its prose.
    fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for line in self.parts().0.into_iter().filter(|line| !line.starts_with("    ")) {
            // Every second piece is code.
            let prose: String = line.split('`').step_by(2).collect();
            let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            links.extend(targets.map(str::to_owned));
        }
        links
    }

    /// The text below a heading of the second level, up to the next one.
    fn section(&self, title: &str) -> &str {
        let (_, rest) = self.text.split_once(&format!("\n## {title}\n")).expect(title);
        rest.split("\n## ").next().unwrap_or(rest)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let book = fs::read_dir(root().join(BOOK)).expect("a book");
    let names = book.map(|entry| entry.expect("an entry").file_name());
    let book = names
        .map(|name| Path::new(BOOK).join(name))
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from);
    top.into_iter().chain(book).map(Page::read).collect()
}

/// A heading's anchor, as GitHub and mdBook make it.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("twinflux.toml");
    fs::write(&file, text).expect("write");
    Config::load(Some(&file), Overrides::default()).map_err(|error| error.to_string())
}

#[test]
fn every_toml_block_is_a_configuration() {
    let mut parsed = 0;
    for page in pages() {
        for (info, block) in page.parts().1 {
            let Some(of) = info.strip_prefix("toml") else { continue };
            if of.strip_prefix(',').is_some_and(|program| !program.is_empty()) {
                continue;
            }
            let path = page.path.display();
            assert_eq!(of, "", "{path}: mark another program's block as `toml,NAME`");
            load(&block).unwrap_or_else(|error| panic!("{path}: {error}\n{block}"));
            parsed += 1;
        }
    }
    assert!(parsed > 0);
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    for page in pages() {
        for link in page.links() {
            if link.contains("://") {
                continue;
            }
            let what = format!("{}: {link}", page.path.display());
            let (path, heading) =
                link.split_once('#').map_or((&link[..], None), |(path, heading)| (path, Some(heading)));
            let folder = page.path.parent().expect("a folder");
            let target = if path.is_empty() { page.path.clone() } else { folder.join(path) };
            assert!(root().join(&target).is_file(), "{what} does not exist");
            let leaves = page.path.starts_with(BOOK) && target.parent() != Some(Path::new(BOOK));
            assert!(!leaves, "{what} leaves the book");
            if let Some(heading) = heading {
                let anchors = Page::read(&target).anchors();
                assert!(anchors.iter().any(|anchor| anchor == heading), "{what}: no such heading");
            }
        }
    }
}

#[test]
fn the_summary_has_every_page_of_the_book() {
    let links = Page::of_book("SUMMARY.md").links();
    for page in pages().into_iter().filter(|page| page.path.starts_with(BOOK)) {
        let name = page.path.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(name == "SUMMARY.md" || links.iter().any(|link| link == name), "SUMMARY.md lacks {name}");
    }
}

#[test]
fn the_readme_is_short() {
    assert!(Page::read("README.md").text.lines().count() <= 200);
}

/// The tables of a configuration: the page's heading, and a file with an unknown key there.
const TABLES: [(&str, &str); 11] = [
    ("Top level", "nonsense = 1"),
    ("admin", "[admin]\nnonsense = 1"),
    ("udp", "[[udp]]\nnonsense = 1"),
    ("tcp", "[[tcp]]\nnonsense = 1"),
    ("http", "[[http]]\nnonsense = 1"),
    ("auth", "[auth]\nnonsense = 1"),
    ("query", "[query]\nnonsense = 1"),
    ("backend", "[[backend]]\nnonsense = 1"),
    ("journal", "[journal]\nnonsense = 1"),
    ("dead_letters", "[dead_letters]\nnonsense = 1"),
    ("pair", "[pair]\nnonsense = 1"),
];

#[test]
fn the_reference_names_every_key_with_its_default() {
    let page = Page::of_book("configuration.md");
    let file = "[[udp]]\n[[tcp]]\n[[http]]\n[[backend]]\nname = \"a\"\nurl = \"file:///a\"\n";
    let shown = toml::to_string(&load(file).expect("a good file")).expect("TOML");
    let shown: toml::Table = shown.parse().expect("TOML");
    for (title, unknown) in TABLES {
        // The error for an unknown key lists those that there are.
        let error = load(unknown).expect_err(unknown);
        let (_, known) = error.split_once("expected ").expect("a list of keys");
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let defaults = match shown.get(title) {
            Some(toml::Value::Array(tables)) => tables[0].as_table(),
            Some(table) => table.as_table(),
            None => Some(&shown),
        };
        let defaults = defaults.expect("a table");
        let section = page.section(title);
        for key in keys {
            if title == "Top level" && TABLES.iter().any(|(table, _)| *table == key) {
                continue;
            }
            assert!(section.contains(&format!("`{key}`")), "{title} lacks {key}");
            let Some((_, row)) = section.split_once(&format!("\n| `{key}` | ")) else { continue };
            let written = row.split(" |").next().expect("a cell");
            if let Some(default) = defaults.get(key).filter(|_| written != "–") {
                assert_eq!(written, format!("`{default}`"), "the default of {title}.{key}");
            }
        }
    }
}

#[test]
fn the_reference_names_every_command_and_option() {
    fn check(command: &clap::Command, section: &str) {
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        for long in longs.filter(|long| !["help", "version"].contains(long)) {
            assert!(section.contains(&format!("`--{long}")), "{} lacks --{long}", command.get_name());
        }
        for inner in command.get_subcommands() {
            let name = format!("`{} {} ", command.get_name(), inner.get_name());
            assert!(section.contains(&name), "{name} is missing");
            check(inner, section);
        }
    }
    let page = Page::of_book("command-line.md");
    let program = Cli::command();
    for command in program.get_subcommands() {
        check(command, page.section(&format!("twinflux {}", command.get_name())));
    }
    let of_relay = Cli::command().subcommand_required(false);
    let longs = of_relay.get_arguments().filter_map(clap::Arg::get_long);
    for long in longs.filter(|long| !["help", "version"].contains(long)) {
        assert!(page.section("twinflux").contains(&format!("`--{long} ")), "the relay's options lack --{long}");
    }
}

#[test]
fn the_page_about_lines_names_every_reason_class_and_state() {
    let page = Page::of_book("lines.md");
    let tables = [
        ("Refused", Refusal::ALL.map(Refusal::name).to_vec()),
        ("Rejected", Rejection::ALL.map(Rejection::name).to_vec()),
        ("Dropped", DropReason::ALL.map(DropReason::name).to_vec()),
        ("States of a backend", State::ALL.map(State::name).to_vec()),
    ];
    for (title, mut names) in tables {
        let rows = page.section(title).lines().filter_map(|line| line.strip_prefix("| `"));
        let mut written: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        names.sort_unstable();
        written.sort_unstable();
        assert_eq!(written, names, "{title}");
    }
}
