//! `twinflux tail`: shows lines as they pass through a running relay, to find the host that sends
//! garbage.
//!
//! Bounds: `--rate` lines a second; the relay keeps at most some hundred lines for it.

use std::time::{Duration, Instant};

use clap::Args;
use ipnet::IpNet;

use crate::cli::OfDataDir;
use crate::cli::outcome::{Ended, Failure, print_on};
use crate::cli::socket::{Answer, Request, follow};
use crate::intake::tap::{Filter, Passed};
use crate::sys::text::{printable, write_line};

/// Options of `tail`: which lines to show.
#[derive(Args, Clone, Debug)]
pub struct Tail {
    /// Lines from this address or network: 10.0.0.7, 10.0.0.0/8
    #[arg(long, value_name = "ADDR", value_parser = parse_network)]
    source: Option<IpNet>,
    /// Lines of this measurement; * stands for any text
    #[arg(long, value_name = "NAME")]
    measurement: Option<String>,
    /// Lines of this listener: udp, tcp, http, or its address
    #[arg(long, value_name = "LISTENER")]
    listener: Option<String>,
    /// Refused lines only, with the reason
    #[arg(long)]
    refused: bool,
    /// Show no more lines a second than this; the others are counted
    #[arg(long, value_name = "LINES", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: u64,
    /// End after so many lines
    #[arg(long, value_name = "LINES")]
    lines: Option<u64>,
    #[command(flatten)]
    of: OfDataDir,
}

/// Text that is neither an address nor a network.
#[derive(Debug, thiserror::Error)]
#[error("name an address or a network, as 10.0.0.7 or 10.0.0.0/8")]
struct InvalidNetwork;

fn parse_network(text: &str) -> Result<IpNet, InvalidNetwork> {
    let address = || text.parse().map(|address: std::net::IpAddr| IpNet::from(address.to_canonical()));
    text.parse().or_else(|_| address()).map_err(|_| InvalidNetwork)
}

impl Tail {
    /// Shows lines until `--lines` have passed, or the process is ended.
    ///
    /// # Errors
    /// No relay answers, or it shows no lines now.
    pub fn run(&self) -> Ended {
        let folder = self.of.folder()?;
        let Self { source, measurement, listener, refused, .. } = self.clone();
        let request = Request::Tail { filter: Filter { source, measurement, listener, refused } };
        let (mut ended, mut left, mut pace) = (Ok(true), self.lines, Pace::new(self.rate));
        let followed = follow(&folder, &request, |answer| {
            ended = match answer {
                Answer::Passed { passed, left_out } => print_on(&pace.text(passed, left_out, &mut left)),
                Answer::Failed { error } => Err(Failure::Failed(error)),
                answer => Err(Failure::Failed(format!("the relay shows no lines: {answer:?}"))),
            };
            ended == Ok(true) && left != Some(0)
        });
        followed.map_err(Failure::unreachable)?;
        ended.map(drop)
    }
}

/// Limits the lines shown in each second, and counts the others.
struct Pace {
    rate: u64,
    left: u64,
    since: Instant,
    untold: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate, left: rate, since: Instant::now(), untold: 0 }
    }

    /// Returns the text to print for an answer. Each line shown reduces `most` by one.
    fn text(&mut self, passed: Vec<(String, Passed)>, left_out: u64, most: &mut Option<u64>) -> String {
        let mut text = String::new();
        self.untold += left_out;
        for (listener, Passed { source, line, refused }) in passed {
            if self.left == 0 || *most == Some(0) {
                self.untold += 1;
                continue;
            }
            self.left -= 1;
            *most = most.map(|most| most - 1);
            let source = source.map_or_else(|| "-".to_owned(), |source| source.to_canonical().to_string());
            let reason = refused.map_or_else(String::new, |reason| format!("REFUSED {reason}: "));
            write_line(&mut text, format_args!("{source} {}  {reason}{}", printable(&listener), printable(&line)));
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            if self.untold > 0 {
                write_line(&mut text, format_args!("... {} more lines", self.untold));
            }
            (self.left, self.since, self.untold) = (self.rate, Instant::now(), 0);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_shows_so_many_lines_and_counts_the_others() {
        let mut pace = Pace::new(2);
        let line = || Passed { source: Some([10, 0, 0, 7].into()), line: "m v=1".to_owned(), refused: None };
        let passed = || (0..3).map(|_| ("udp 0.0.0.0:8089".to_owned(), line())).collect::<Vec<_>>();
        let text = pace.text(passed(), 4, &mut None);
        assert_eq!(text, "10.0.0.7 udp 0.0.0.0:8089  m v=1\n".repeat(2));
        pace.since = pace.since.checked_sub(Duration::from_secs(2)).expect("a time");
        let refused = Passed { refused: Some("no_fields".to_owned()), ..line() };
        assert_eq!(pace.text(Vec::new(), 0, &mut None), "... 5 more lines\n");
        let text = pace.text(vec![("tcp x".to_owned(), refused)], 0, &mut None);
        assert_eq!(text, "10.0.0.7 tcp x  REFUSED no_fields: m v=1\n");
        let mut most = Some(1);
        Pace::new(9).text(passed(), 0, &mut most);
        assert_eq!(most, Some(0));
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(parse_network("10.0.0.7").expect("one").to_string(), "10.0.0.7/32");
        assert_eq!(parse_network("10.0.0.0/8").expect("one").to_string(), "10.0.0.0/8");
        assert!(parse_network("host").is_err());
    }
}
