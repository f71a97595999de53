//! Converts influxdb-relay's configuration to this program's.
//!
//! Owns influxdb-relay's keys: those of its last version (05c8811), and of its forks where known.
//! Names each key whose meaning differs. Refuses what has no counterpart, and says what to do
//! instead.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::sys::text::write_line;

/// The smallest `max_batch_bytes` of a backend, in KiB.
const LEAST_BATCH_KIB: u64 = 65;
/// The default of `journal.disk`, in MiB: more than any buffer in memory.
const JOURNAL_MIB: u64 = 8 * 1024;

/// A configuration file of influxdb-relay.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Relay {
    http: Vec<HttpInput>,
    udp: Vec<UdpInput>,
    filter: Option<toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct HttpInput {
    name: Option<String>,
    bind_addr: String,
    ssl_combined_pem: String,
    default_retention_policy: String,
    output: Vec<HttpOutput>,
    // Keys of a fork.
    default_ping_response: Option<u16>,
    rate_limit: Option<u64>,
    burst_limit: Option<u64>,
    health_timeout_ms: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct HttpOutput {
    name: Option<String>,
    location: String,
    timeout: Option<String>,
    buffer_size_mb: u64,
    max_batch_kb: Option<u64>,
    max_delay_interval: Option<String>,
    skip_tls_verification: bool,
    // A key of a fork.
    endpoints: Option<Endpoints>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Endpoints {
    write: String,
    write_prom: String,
    ping: String,
    query: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct UdpInput {
    name: Option<String>,
    bind_addr: String,
    precision: String,
    read_buffer: u64,
    output: Vec<UdpOutput>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UdpOutput {
    name: Option<String>,
    location: String,
    mtu: Option<u16>,
}

/// A converted configuration, and how it differs.
#[derive(Debug, PartialEq, Eq)]
pub struct Converted {
    /// The text of the configuration file.
    pub text: String,
    /// The differences, a sentence for each key.
    pub differs: Vec<String>,
}

impl Converted {
    /// Returns the text, preceded by the differences as comments.
    pub fn commented(&self) -> String {
        let mut text = String::new();
        for sentence in &self.differs {
            write_line(&mut text, format_args!("# {sentence}"));
        }
        text.push_str(&self.text);
        text
    }
}

/// A configuration of influxdb-relay that cannot be converted. The message says what to do instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConvertError(String);

impl ConvertError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Reads and converts a configuration file of influxdb-relay.
///
/// # Errors
/// The file cannot be read, is invalid, or has a key without counterpart.
pub fn convert(path: &Path) -> Result<Converted, ConvertError> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| ConvertError(format!("cannot read {name}: {error}")))?;
    convert_text(&text).map_err(|error| ConvertError(format!("{name}: {error}")))
}

fn convert_text(text: &str) -> Result<Converted, ConvertError> {
    let relay: Relay = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConvertError(format!("line {line}: {}", error.message().trim_end().replace('\n', "; ")))
    })?;
    if relay.filter.is_some() {
        return Err(ConvertError::new(
            "filter: lines are not withheld from outputs; run a relay for each group of outputs",
        ));
    }
    if relay.http.is_empty() && relay.udp.is_empty() {
        return Err(ConvertError::new("it has neither [[http]] nor [[udp]]"));
    }
    check_outputs(&relay)?;
    let mut writing = Writing::default();
    for input in &relay.http {
        writing.http(input);
    }
    for input in &relay.udp {
        writing.udp(input)?;
    }
    match relay.http.first() {
        Some(first) => {
            for output in &first.output {
                writing.http_output(output)?;
            }
            writing.replaced_outputs(&relay);
        }
        None => {
            for output in relay.udp.first().into_iter().flat_map(|first| &first.output) {
                writing.udp_output(output)?;
            }
        }
    }
    writing.differ(
        "credentials of clients are not passed on: give --backend-username and --backend-password-file".to_owned(),
    );
    Ok(Converted { text: writing.text, differs: writing.differs })
}

/// Checks that all inputs have the same outputs, because here every backend gets every line.
fn check_outputs(relay: &Relay) -> Result<(), ConvertError> {
    let groups = "every backend gets every line here: run a relay for each set of outputs";
    if relay.http.iter().any(|input| input.output.is_empty()) || relay.udp.iter().any(|input| input.output.is_empty()) {
        return Err(ConvertError::new("an input has no output"));
    }
    if relay.http.windows(2).any(|pair| pair[0].output != pair[1].output) {
        return Err(ConvertError(format!("http.output: inputs have different outputs; {groups}")));
    }
    let Some(first) = relay.http.first() else {
        if relay.udp.windows(2).any(|pair| pair[0].output != pair[1].output) {
            return Err(ConvertError(format!("udp.output: inputs have different outputs; {groups}")));
        }
        return Ok(());
    };
    let hosts: BTreeSet<&str> = first.output.iter().map(|output| host_of(&output.location)).collect();
    for output in relay.udp.iter().flat_map(|input| &input.output) {
        if !hosts.contains(host_of(&output.location)) {
            return Err(ConvertError(format!(
                "udp.output {:?} is on a host that no http.output has; {groups}",
                output.location
            )));
        }
    }
    Ok(())
}

/// Returns the host of a URL or of `host:port`.
fn host_of(location: &str) -> &str {
    let rest = location.split_once("://").map_or(location, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[derive(Default)]
struct Writing {
    text: String,
    differs: Vec<String>,
}

impl Writing {
    fn table(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        write_line(&mut self.text, format_args!("[[{name}]]"));
    }

    fn key(&mut self, key: &str, value: impl Into<toml::Value>) {
        write_line(&mut self.text, format_args!("{key} = {}", value.into()));
    }

    fn differ(&mut self, sentence: String) {
        if !self.differs.contains(&sentence) {
            self.differs.push(sentence);
        }
    }

    fn http(&mut self, input: &HttpInput) {
        self.table("http");
        self.key("listen", address(&input.bind_addr));
        if !input.ssl_combined_pem.is_empty() {
            self.key("tls_cert_file", input.ssl_combined_pem.as_str());
            self.key("tls_key_file", input.ssl_combined_pem.as_str());
        }
        if !input.default_retention_policy.is_empty() {
            self.key("retention_policy", input.default_retention_policy.as_str());
        }
        self.named("http", input.name.as_ref());
        self.differ("http: 204 comes once the lines are in the journal, and not from a backend".to_owned());
        self.differ("http: of a body with bad lines the good ones are taken, and the bad ones are named".to_owned());
        for (key, is_there, what) in [
            (
                "default-ping-response",
                input.default_ping_response.is_some_and(|status| status != 204),
                "/ping is answered with 204",
            ),
            ("rate-limit", input.rate_limit.is_some_and(|rate| rate > 0), "requests are not limited by rate"),
            ("burst-limit", input.burst_limit.is_some(), "requests are not limited by rate"),
            ("health-timeout-ms", input.health_timeout_ms.is_some(), "/health asks no backend"),
        ] {
            if is_there {
                self.differ(format!("http.{key} has no counterpart: {what}"));
            }
        }
    }

    fn udp(&mut self, input: &UdpInput) -> Result<(), ConvertError> {
        let precision = match input.precision.as_str() {
            "" | "n" | "ns" => "ns",
            "u" | "us" => "us",
            known @ ("ms" | "s" | "m" | "h") => known,
            other => return Err(ConvertError(format!("udp.precision {other:?}: write n, u, ms, s, m or h"))),
        };
        self.table("udp");
        self.key("listen", address(&input.bind_addr));
        if precision != "ns" {
            self.key("precision", precision);
        }
        if input.read_buffer > 0 {
            let bytes =
                i64::try_from(input.read_buffer).map_err(|_| ConvertError::new("udp.read-buffer is too large"))?;
            self.key("receive_buffer", bytes);
        }
        self.named("udp", input.name.as_ref());
        self.differ("udp: a bad line costs itself, and not its datagram".to_owned());
        Ok(())
    }

    fn named(&mut self, table: &str, name: Option<&String>) {
        if name.is_some() {
            self.differ(format!("{table}.name is left out: listeners are known by their address"));
        }
    }

    fn http_output(&mut self, output: &HttpOutput) -> Result<(), ConvertError> {
        let location = &output.location;
        if output.skip_tls_verification {
            return Err(ConvertError(format!(
                "http.output.skip-tls-verification of {location:?}: certificates are always checked; let ca_file hold the \
                 server's own certificate"
            )));
        }
        if !(location.starts_with("http://") || location.starts_with("https://")) {
            return Err(ConvertError(format!("http.output.location {location:?} must begin with http:// or https://")));
        }
        let location = match &output.endpoints {
            // The fork's location is the URL before the paths.
            Some(endpoints) => {
                let path = if endpoints.write.is_empty() { "write" } else { endpoints.write.trim_start_matches('/') };
                format!("{}/{path}", location.trim_end_matches('/'))
            }
            None => location.split('?').next().unwrap_or_default().to_owned(),
        };
        self.table("backend");
        self.key("name", name_of(output.name.as_deref().unwrap_or(&location)));
        self.key("url", location);
        if let Some(timeout) = &output.timeout {
            self.key("timeout", timeout.as_str());
        }
        if let Some(kib) = output.max_batch_kb {
            let kept = kib.max(LEAST_BATCH_KIB);
            self.key("max_batch_bytes", format!("{kept}KiB"));
            if kept != kib {
                self.differ(format!("http.output.max-batch-kb = {kib} is {kept} here: no line is split"));
            }
        }
        if let Some(longest) = &output.max_delay_interval {
            self.key("retry_max", longest.as_str());
        }
        let buffer = output.buffer_size_mb;
        self.differ(match buffer {
            0 => "http.output without buffer-size-mb: lines wait in the journal all the same".to_owned(),
            _ => format!(
                "http.output.buffer-size-mb is the journal's here: {JOURNAL_MIB} MiB on the disk for all backends (journal.disk), \
                 which a restart does not lose"
            ),
        });
        Ok(())
    }

    /// Notes that datagrams go to the backends of the HTTP outputs.
    fn replaced_outputs(&mut self, relay: &Relay) {
        let outputs: BTreeSet<&str> =
            relay.udp.iter().flat_map(|input| &input.output).map(|output| output.location.as_str()).collect();
        for output in outputs {
            self.differ(format!(
                "udp.output {output:?}: lines go to the http.output on the same host, to the listener's database \
                 (--database), where they are acknowledged"
            ));
        }
    }

    fn udp_output(&mut self, output: &UdpOutput) -> Result<(), ConvertError> {
        let location = &output.location;
        if location.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(ConvertError(format!("udp.output.location {location:?} must be HOST:PORT")));
        }
        self.table("backend");
        self.key("name", name_of(output.name.as_deref().unwrap_or(location)));
        self.key("url", format!("udp://{location}"));
        self.key("mtu", i64::from(output.mtu.unwrap_or(1024)));
        Ok(())
    }
}

/// Returns an address to listen on; in Go, `:8086` means every address.
fn address(bind: &str) -> String {
    if bind.starts_with(':') { format!("0.0.0.0{bind}") } else { bind.to_owned() }
}

/// Replaces characters that a backend's name may not have.
fn name_of(name: &str) -> String {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || super::url::NAME_SIGNS.contains(c);
    name.chars().map(|c| if is_fit(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample that influxdb-relay ships.
    const SAMPLE: &str = r#"
[[http]]
name = "example-http"
bind-addr = "127.0.0.1:9096"
output = [
    { name="local1", location = "http://127.0.0.1:8086/write", buffer-size-mb = 100, max-batch-kb = 50, max-delay-interval = "5s" },
    { name="local2", location = "http://127.0.0.1:7086/write" },
]
[[udp]]
name = "example-udp"
bind-addr = "127.0.0.1:9096"
read-buffer = 0
output = [
    { name="local1", location="127.0.0.1:8089", mtu=512 },
    { name="local2", location="127.0.0.1:7089", mtu=1024 },
]
"#;

    #[test]
    fn the_shipped_sample_is_converted() {
        let converted = convert_text(SAMPLE).expect("good");
        let expected = r#"[[http]]
listen = "127.0.0.1:9096"

[[udp]]
listen = "127.0.0.1:9096"

[[backend]]
name = "local1"
url = "http://127.0.0.1:8086/write"
max_batch_bytes = "65KiB"
retry_max = "5s"

[[backend]]
name = "local2"
url = "http://127.0.0.1:7086/write"
"#;
        assert_eq!(converted.text, expected);
        let differs = converted.differs.join("\n");
        for part in [
            "buffer-size-mb is the journal's",
            "max-batch-kb = 50 is 65",
            "udp.output \"127.0.0.1:8089\"",
            "credentials",
        ] {
            assert!(differs.contains(part), "{part}: {differs}");
        }
        assert!(converted.commented().starts_with("# "));
    }

    #[test]
    fn every_key_has_its_place() {
        let text = r#"
[[http]]
bind-addr = ":8086"
ssl-combined-pem = "/etc/both.pem"
default-retention-policy = "week"
default-ping-response = 200
rate-limit = 5
output = [ { location = "https://a:8086/", timeout = "3s", endpoints = { write = "/write", query = "/query" } } ]
"#;
        let converted = convert_text(text).expect("good");
        for part in [
            "listen = \"0.0.0.0:8086\"",
            "tls_cert_file = \"/etc/both.pem\"",
            "tls_key_file = \"/etc/both.pem\"",
            "retention_policy = \"week\"",
            "url = \"https://a:8086/write\"",
            "timeout = \"3s\"",
        ] {
            assert!(converted.text.contains(part), "{part}: {}", converted.text);
        }
        assert!(converted.differs.iter().any(|one| one.contains("http.rate-limit has no counterpart")));
        let udp =
            "[[udp]]\nbind-addr=\"127.0.0.1:1\"\nprecision=\"s\"\nread-buffer=4096\noutput=[{location=\"h:2\"}]\n";
        let text = convert_text(udp).expect("good").text;
        for part in ["precision = \"s\"", "receive_buffer = 4096", "url = \"udp://h:2\"", "mtu = 1024"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_the_cure() {
        let http = |output: &str| format!("[[http]]\nbind-addr=\"127.0.0.1:1\"\noutput=[{{{output}}}]\n");
        let one = http("location=\"http://a:1/write\"");
        for (text, part) in [
            (http("location=\"https://a:1\", skip-tls-verification=true"), "ca_file"),
            (http("location=\"a:1\""), "must begin with http://"),
            (format!("{one}{}", http("location=\"http://b:1/write\"")), "run a relay for each set of outputs"),
            (format!("{one}[[udp]]\nbind-addr=\"127.0.0.1:1\"\noutput=[{{location=\"b:2\"}}]\n"), "no http.output has"),
            (format!("{one}[[filter]]\ntag-expression=\"x\"\n"), "run a relay for each group of outputs"),
            (http("locations=\"http://a:1\""), "line 3: unknown field `locations`"),
            ("[[http]]\nbind-addr=\"127.0.0.1:1\"\n".to_owned(), "an input has no output"),
            (String::new(), "neither [[http]] nor [[udp]]"),
            ("[[udp]]\nprecision=\"x\"\noutput=[{location=\"h:2\"}]\n".to_owned(), "write n, u, ms, s, m or h"),
            ("[[udp]]\noutput=[{location=\"h\"}]\n".to_owned(), "must be HOST:PORT"),
        ] {
            let error = convert_text(&text).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
