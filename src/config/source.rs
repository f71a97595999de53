//! Errors that point into the configuration's file: its name, the line, the key.
//!
//! Never quotes a line, which might hold a secret.

use crate::config::invalid::InvalidKey;
use crate::config::load::ConfigError;

/// Returns an example of a key's value, if the type's own error gives none.
fn hint(key: &str) -> &'static str {
    match key {
        "hosts" => "; write a list of names: [\"relay.example.org\"]",
        "allow" => "; write networks: [\"10.0.0.0/8\"], a single host is \"10.0.0.1/32\"",
        "idle_timeout" | "line_timeout" | "timeout" | "connect_timeout" | "retry_max" | "probe_interval" | "linger"
        | "sync_interval" | "max_age" | "shutdown_timeout" => "; write a duration: \"30s\"",
        "separator" => "; write a text: \"_\"",
        "netdata_host_parts" => "; write a number between 1 and 16",
        "unsigned" => "; write \"refuse\", \"keep\" or \"signed\"",
        "address" => "; write an address without a port: \"192.0.2.10\"",
        "[tcp]" => "; there may be several: write [[tcp]]",
        "[udp]" => "; there may be several: write [[udp]]",
        "[backend]" => "; there may be several: write [[backend]]",
        _ => "",
    }
}

/// The configuration's file.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
}

impl Source {
    /// Returns an error of the TOML parser or of a value's type, with the line's key before it.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start.min(self.text.len()));
        let line = self.text[..start].matches('\n').count() + 1;
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let key = text.split(['=', '#']).next().unwrap_or_default().trim();
        // A line of another shape might be a secret in the wrong index.
        let is_key = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.[] ".contains(c));
        let (shown, hint) = if is_key { (format!("{key}: "), hint(key)) } else { (String::new(), "") };
        let message = error.message().trim_end().replace('\n', "; ");
        ConfigError::new(format_args!("{}:{line}: {shown}{message}{hint}", self.name))
    }

    /// Returns an error in a key of a table, or of the element at `index` of an array of tables.
    pub(super) fn at(&self, table: &str, index: usize, key: &str, what: &str) -> ConfigError {
        let line = self.line_of(table, index, key).map_or_else(String::new, |line| format!("{}:{line}: ", self.name));
        ConfigError::new(format_args!("{line}{table}.{key} {what}"))
    }

    /// Returns an error in an invalid key, as [`Self::at`] does.
    pub(super) fn invalid(&self, table: &str, index: usize, error: &InvalidKey) -> ConfigError {
        self.at(table, index, error.key, &error.what)
    }

    /// Returns the line of the key, or of its table's head; `None` if the value is not from the
    /// file.
    fn line_of(&self, table: &str, index: usize, key: &str) -> Option<usize> {
        let is_head = |line: &str| {
            let head = line.trim_start().trim_start_matches('[');
            line.trim_start().starts_with('[') && head.split(']').next().map(str::trim) == Some(table)
        };
        let lines = || self.text.lines().enumerate();
        let (head, _) = lines().filter(|(_, line)| is_head(line)).nth(index)?;
        let inside = lines().skip(head + 1).take_while(|(_, line)| !line.trim_start().starts_with('['));
        let mut with_key = inside.filter(|(_, line)| line.split('=').next().map(str::trim) == Some(key));
        Some(with_key.next().map_or(head, |(line, _)| line) + 1)
    }
}
