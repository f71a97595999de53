//! Simulated hosts that run Netdata: each exports all its dimensions at once, as text in one of
//! Netdata's formats.
//!
//! ```text
//! netdata.sim-00042.sim.c0123.d1;datacenter=eu-west-1;role=web_server;… 1000000017.0471234 1795400726
//! put netdata.sim.c0123.d1 1795400726 1000000017.0471234 host=sim-00042 datacenter=eu-west-1 role=web_server …
//! {"prefix":"netdata","hostname":"sim-00042","labels":{…},…,"value":1000000017.0471234,"timestamp": 1795400726}
//! ```
//!
//! A value tells for itself what it is: its whole part is its number among the host's values, its
//! fraction a checksum over host, chart, dimension, number and time. So it is known again in
//! whatever line it arrives, alone or with its chart's others. All parts have a constant width, so
//! that a batch is made anew by patching digits in place.

use crate::line::{Verdict, read_digits, write_digits};

/// Dimensions of one chart: Netdata has 3.9 on a server.
pub const DIMENSIONS_PER_CHART: u32 = 4;
/// The largest number of dimensions: what four digits of a chart's number allow.
pub const MAX_DIMENSIONS: u32 = 10_000 * DIMENSIONS_PER_CHART;
const HOST_DIGITS: usize = 5;
const CHART_DIGITS: usize = 4;
const SEQUENCE_BASE: u64 = 1_000_000_000;
const SEQUENCE_DIGITS: usize = 10;
const SUM_DIGITS: usize = 7;
const VALUE_DIGITS: usize = SEQUENCE_DIGITS + 1 + SUM_DIGITS;
const TIME_DIGITS: usize = 10;
/// What Netdata 1.37 puts behind each name, with the labels of a usual configuration.
const LABELS: [(&str, &str); 4] = [
    ("datacenter", "eu-west-1"),
    ("role", "web_server"),
    ("_is_ephemeral", "false"),
    ("_has_unstable_connection", "false"),
];

/// What a batch is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Graphite's plain text, labels as tags.
    Graphite,
    /// OpenTSDB's telnet commands.
    Opentsdb,
    /// Netdata's JSON.
    Json,
}

/// One simulated host: its batch, rendered anew for each export.
#[derive(Debug)]
pub struct Exporter {
    number: u32,
    buffer: Vec<u8>,
    /// Where each value and time is.
    places: Vec<(usize, usize)>,
    next_sequence: u64,
}

impl Exporter {
    /// The host with this number, and so many dimensions.
    pub fn new(number: u32, dimensions: u32, format: Format) -> Self {
        let mut host = Self { number, buffer: Vec::new(), places: Vec::new(), next_sequence: 0 };
        for place in 0..dimensions {
            host.add(place / DIMENSIONS_PER_CHART, place % DIMENSIONS_PER_CHART, format);
        }
        host
    }

    /// Renders the batch anew, with this time in seconds since 1970, and returns it.
    pub fn render(&mut self, time: u64) -> &[u8] {
        for (place, (value_at, time_at)) in (0_u32..).zip(&self.places) {
            let (chart, dimension) = (place / DIMENSIONS_PER_CHART, place % DIMENSIONS_PER_CHART);
            let sum = checksum([self.number, chart, dimension], self.next_sequence, time);
            let value = &mut self.buffer[*value_at..value_at + VALUE_DIGITS];
            write_digits(&mut value[..SEQUENCE_DIGITS], SEQUENCE_BASE + self.next_sequence);
            write_digits(&mut value[SEQUENCE_DIGITS + 1..], sum);
            write_digits(&mut self.buffer[*time_at..time_at + TIME_DIGITS], time);
            self.next_sequence += 1;
        }
        &self.buffer
    }

    /// The batch as it was rendered last.
    pub fn batch(&self) -> &[u8] {
        &self.buffer
    }

    /// Values in a batch.
    pub fn values(&self) -> u64 {
        self.places.len() as u64
    }

    fn add(&mut self, chart: u32, dimension: u32, format: Format) {
        let (value, time) = ("1".repeat(SEQUENCE_DIGITS) + "." + &"1".repeat(SUM_DIGITS), "1".repeat(TIME_DIGITS));
        let host = format!("sim-{:0HOST_DIGITS$}", self.number);
        let (chart, dimension) = (format!("sim.c{chart:0CHART_DIGITS$}"), format!("d{dimension}"));
        let joined = |before: &str, is: &str| {
            LABELS.iter().map(|(key, value)| format!("{before}{key}{is}{value}")).collect::<String>()
        };
        let (head, between, tail, value_first) = match format {
            Format::Graphite => (
                format!("netdata.{host}.{chart}.{dimension}{} ", joined(";", "=")),
                " ".to_owned(),
                String::new(),
                true,
            ),
            Format::Opentsdb => {
                let tags = format!(" host={host}{}", joined(" ", "="));
                (format!("put netdata.{chart}.{dimension} "), " ".to_owned(), tags, false)
            }
            Format::Json => {
                let labels = joined("\",\"", "\":\"");
                let head = format!(
                    "{{\"prefix\":\"netdata\",\"hostname\":\"{host}\",\"labels\":{{{}\"}},\"chart_id\":\"{chart}\",\
                     \"chart_name\":\"{chart}\",\"chart_family\":\"sim\",\"chart_context\": \"{chart}\",\"chart_type\":\"sim\",\
                     \"units\": \"percentage\",\"id\":\"{dimension}\",\"name\":\"{dimension}\",\"value\":",
                    &labels[2..]
                );
                (head, ",\"timestamp\": ".to_owned(), "}".to_owned(), true)
            }
        };
        let (first, second) = if value_first { (&value, &time) } else { (&time, &value) };
        let first_at = self.buffer.len() + head.len();
        let second_at = first_at + first.len() + between.len();
        self.buffer.extend_from_slice(format!("{head}{first}{between}{second}{tail}\n").as_bytes());
        self.places.push(if value_first { (first_at, second_at) } else { (second_at, first_at) });
    }
}

/// Whether a received line may hold values of ours.
pub fn is_ours(line: &[u8]) -> bool {
    line.starts_with(b"sim.c") || line.starts_with(b"netdata.sim")
}

/// Judges each value of one received line of line protocol, with the prefix dropped or kept, a line
/// for each chart or for each value.
pub fn verify(line: &[u8], mut note: impl FnMut(Verdict)) {
    if read(line, &mut note).is_none() {
        note(Verdict::Altered);
    }
}

/// Judges the values; none where the line is not as it should be.
fn read(line: &[u8], note: &mut impl FnMut(Verdict)) -> Option<()> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    let (series, fields, stamp) = (words.next()?, words.next()?, words.next()?);
    let time = stamp.strip_suffix("000000000")?;
    let time = read_digits(time.as_bytes()).filter(|_| time.len() == TIME_DIGITS && words.next().is_none())?;
    let (name, tags) = series.split_once(',')?;
    let name = name.strip_prefix("netdata.").unwrap_or(name);
    // In a path the host comes before the chart, else it is the first tag.
    let (host, name, tags) = match (name.strip_prefix("sim-"), tags.strip_prefix("host=sim-")) {
        (Some(rest), None) => {
            let (host, name) = rest.split_once('.')?;
            (host, name, tags)
        }
        (None, Some(rest)) => {
            let (host, tags) = rest.split_once(',')?;
            (host, name, tags)
        }
        _ => return None,
    };
    let are_labels = LABELS.iter().map(|(key, value)| format!("{key}={value}")).eq(tags.split(',').map(str::to_owned));
    let number =
        |text: &str, digits: usize| u32::try_from(read_digits(text.as_bytes()).filter(|_| text.len() == digits)?).ok();
    let host = number(host, HOST_DIGITS).filter(|_| are_labels)?;
    let name = name.strip_prefix("sim.c")?;
    let (chart, dimension) = name.split_once('.').map_or((name, None), |(chart, rest)| (chart, Some(rest)));
    let chart = number(chart, CHART_DIGITS)?;
    for field in fields.split(',') {
        let (field, value) = field.split_once('=')?;
        let dimension = match dimension {
            Some(dimension) if field == "value" => dimension,
            None => field,
            Some(_) => return None,
        };
        let dimension = number(dimension.strip_prefix('d')?, 1)?;
        let (sequence, sum) = value.split_once('.').filter(|_| value.len() == VALUE_DIGITS)?;
        let sequence = read_digits(sequence.as_bytes())?.checked_sub(SEQUENCE_BASE)?;
        let is_whole = read_digits(sum.as_bytes())? == checksum([host, chart, dimension], sequence, time);
        let whole = Verdict::Whole { host, sequence, timestamp: time * 1_000_000_000 };
        note(if is_whole { whole } else { Verdict::Altered });
    }
    Some(())
}

/// The CRC-32 of all that a value belongs to, in seven digits.
fn checksum(place: [u32; 3], sequence: u64, time: u64) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for number in place {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&time.to_le_bytes());
    u64::from(hasher.finalize()) % 10_u64.pow(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(line: &str) -> Vec<Verdict> {
        let mut all = Vec::new();
        verify(line.as_bytes(), |verdict| all.push(verdict));
        all
    }

    const TIME: u64 = 1_795_400_726;

    #[test]
    fn batches_are_what_netdata_writes() {
        for (format, line) in [
            (
                Format::Graphite,
                "netdata.sim-00042.sim.c0001.d1;datacenter=eu-west-1;role=web_server;_is_ephemeral=false;_has_unstable_connection=false 1000000005.",
            ),
            (Format::Opentsdb, "put netdata.sim.c0001.d1 1795400726 1000000005."),
            (
                Format::Json,
                "{\"prefix\":\"netdata\",\"hostname\":\"sim-00042\",\"labels\":{\"datacenter\":\"eu-west-1\",\"role\":",
            ),
        ] {
            let mut host = Exporter::new(42, 6, format);
            let text = String::from_utf8(host.render(TIME).to_vec()).expect("text");
            assert_eq!((text.lines().count(), host.values()), (6, 6));
            assert!(text.lines().nth(5).expect("a line").starts_with(line), "{text}");
            assert!(text.contains("1795400726"));
            assert!(
                format != Format::Json
                    || text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
            );
        }
    }

    /// What a relay makes of the first two values.
    fn relayed(host: &mut Exporter) -> [String; 4] {
        let text = String::from_utf8(host.render(TIME).to_vec()).expect("text");
        let values: Vec<&str> = text.lines().map(|line| line.split(' ').nth(1).expect("a value")).collect();
        let labels = "datacenter=eu-west-1,role=web_server,_is_ephemeral=false,_has_unstable_connection=false";
        let stamp = format!("{TIME}000000000");
        [
            format!("sim.c0000,host=sim-00042,{labels} d0={},d1={} {stamp}", values[0], values[1]),
            format!("netdata.sim.c0000,host=sim-00042,{labels} d0={},d1={} {stamp}", values[0], values[1]),
            format!("netdata.sim-00042.sim.c0000.d1,{labels} value={} {stamp}", values[1]),
            format!("netdata.sim.c0000.d1,host=sim-00042,{labels} value={} {stamp}", values[1]),
        ]
    }

    #[test]
    fn values_are_known_again_in_every_mapping() {
        let lines = relayed(&mut Exporter::new(42, 4, Format::Graphite));
        let whole = |sequence| Verdict::Whole { host: 42, sequence, timestamp: TIME * 1_000_000_000 };
        assert_eq!(verdicts(&lines[0]), [whole(0), whole(1)]);
        assert_eq!(verdicts(&lines[1]), [whole(0), whole(1)]);
        assert_eq!(verdicts(&lines[2]), [whole(1)]);
        assert_eq!(verdicts(&lines[3]), [whole(1)]);
        assert!(lines.iter().all(|line| is_ours(line.as_bytes())));
    }

    #[test]
    fn a_change_of_any_byte_shows() {
        for line in relayed(&mut Exporter::new(42, 4, Format::Graphite)) {
            for at in 0..line.len() {
                let mut changed = line.clone().into_bytes();
                changed[at] ^= 1;
                let mut all = Vec::new();
                verify(&changed, |verdict| all.push(verdict));
                assert!(all.contains(&Verdict::Altered), "byte {at} of {line}");
            }
        }
    }
}
