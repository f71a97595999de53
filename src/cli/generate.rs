//! `twinflux generate`: man pages and completions, from the same description as `--help`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::cli::Cli;

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A man page of the program, and one of each command
    Man,
    /// Completions of bash
    Bash,
    /// Completions of zsh
    Zsh,
    /// Completions of fish
    Fish,
}

/// A folder cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {}: {error}", folder.display())]
pub struct GenerateError {
    folder: PathBuf,
    #[source]
    error: io::Error,
}

/// Writes files into a folder, creating it if missing; returns their paths.
///
/// # Errors
/// The folder cannot be created or written to.
pub fn generate(kind: Kind, folder: &Path) -> Result<Vec<PathBuf>, GenerateError> {
    let failed = |error| GenerateError { folder: folder.to_owned(), error };
    fs::create_dir_all(folder).map_err(failed)?;
    let shell = match kind {
        Kind::Man => return man_pages(folder).map_err(failed),
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let file = clap_complete::generate_to(shell, &mut Cli::command(), "twinflux", folder).map_err(failed)?;
    Ok(vec![file])
}

fn man_pages(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let program = Cli::command().name("twinflux").disable_help_subcommand(true);
    let mut files = Vec::new();
    write_page(&program, "twinflux", folder, &mut files)?;
    Ok(files)
}

/// Writes a command's page, and those of its subcommands.
fn write_page(command: &clap::Command, name: &str, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let page = command.clone().display_name(name).bin_name(name.replace('-', " "));
    let path = folder.join(format!("{name}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    fs::write(&path, text)?;
    files.push(path);
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_page(inner, &format!("{name}-{}", inner.get_name()), folder, files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_and_each_shell_its_completions() {
        let folder = tempfile::tempdir().expect("folder");
        let folder = folder.path().join("new");
        let pages = generate(Kind::Man, &folder).expect("pages");
        for command in Cli::command().get_subcommands() {
            let page = folder.join(format!("twinflux-{}.1", command.get_name()));
            assert!(pages.contains(&page), "{}", page.display());
            assert!(fs::read_to_string(page).expect("text").starts_with(".ie"));
        }
        for kind in [Kind::Bash, Kind::Zsh, Kind::Fish] {
            let files = generate(kind, &folder).expect("completions");
            assert!(fs::read_to_string(&files[0]).expect("text").contains("dead-letters"), "{files:?}");
        }
        assert!(
            generate(Kind::Man, Path::new("/proc/nowhere"))
                .is_err_and(|error| error.to_string().contains("/proc/nowhere"))
        );
    }
}
