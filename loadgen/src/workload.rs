//! The simulated hosts: what each of them collects, as pre-rendered lines that are patched in
//! place.
//!
//! The plugins, their tags and fields are those of Telegraf's defaults on a server (cpu, disk,
//! diskio, net, mem, swap, system, processes, kernel), one line to a metric, each at most 512
//! bytes: what `outputs.influxdb` sends over UDP. Rendering allocates nothing: the sender must
//! outrun what it measures.

use std::ops::Range;

use crate::line;

/// What one kind of host has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// CPUs; one line each and one for the total.
    pub cpus: u32,
    /// Mounted file systems.
    pub mounts: u32,
    /// Block devices.
    pub disks: u32,
    /// Network interfaces.
    pub interfaces: u32,
}

impl Default for Shape {
    /// A server of 16 CPUs: 40 lines in each interval.
    fn default() -> Self {
        Self { cpus: 16, mounts: 4, disks: 6, interfaces: 4 }
    }
}

/// One simulated host: all the lines of one interval, one behind the other in one buffer.
#[derive(Debug)]
pub struct Host {
    buffer: Vec<u8>,
    /// Each line's bytes in the buffer, its line feed included.
    lines: Vec<Range<usize>>,
    next_sequence: u64,
    random: fastrand::Rng,
}

impl Host {
    /// The host with this number (below [`line::MAX_HOSTS`]).
    pub fn new(number: u32, shape: Shape) -> Self {
        let mut host = Self {
            buffer: Vec::new(),
            lines: Vec::new(),
            next_sequence: 0,
            random: fastrand::Rng::with_seed(u64::from(number)),
        };
        for (measurement, tags, fields) in metrics(shape) {
            host.add(number, measurement, &tags, fields);
        }
        host
    }

    /// Renders all lines of the host anew, with this timestamp in nanoseconds since 1970.
    pub fn render(&mut self, timestamp: u64) {
        for range in &self.lines {
            let line = &mut self.buffer[range.start..range.end - 1];
            vary(line, &mut self.random);
            line::patch(line, self.next_sequence, timestamp);
            self.next_sequence += 1;
        }
    }

    /// The rendered lines' places in [`Self::bytes`], line feeds included.
    pub fn lines(&self) -> &[Range<usize>] {
        &self.lines
    }

    /// The rendered lines.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// How many lines were rendered since the start.
    pub fn rendered(&self) -> u64 {
        self.next_sequence
    }

    /// Takes back the last `count` rendered lines, which could not be sent.
    pub fn unrender(&mut self, count: u64) {
        self.next_sequence -= count;
    }

    fn add(&mut self, number: u32, measurement: &str, tags: &str, fields: &[&str]) {
        let start = self.buffer.len();
        let host = line::host_tag(number);
        self.buffer.extend_from_slice(format!("{measurement}{tags},dc=eu-west-1,env=prod{host} ").as_bytes());
        for (place, field) in fields.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            self.buffer.extend_from_slice(format!("{comma}{}", fill(field, &mut self.random)).as_bytes());
        }
        line::finish(&mut self.buffer);
        self.buffer.push(b'\n');
        self.lines.push(start..self.buffer.len());
    }
}

/// The metrics of one interval: measurement, tags with their commas, fields with `#` for each
/// random digit.
fn metrics(shape: Shape) -> Vec<(&'static str, String, &'static [&'static str])> {
    let mut metrics = Vec::new();
    for cpu in 0..shape.cpus {
        metrics.push(("cpu", format!(",cpu=cpu{cpu}"), CPU));
    }
    metrics.push(("cpu", ",cpu=cpu-total".to_owned(), CPU));
    for mount in 0..shape.mounts {
        let tags = format!(",device=sda{mount},fstype=ext4,mode=rw,path=/srv/{mount}");
        metrics.push(("disk", tags, DISK));
    }
    for disk in 0..shape.disks {
        metrics.push(("diskio", format!(",name=sd{disk}"), DISKIO));
    }
    for interface in 0..shape.interfaces {
        metrics.push(("net", format!(",interface=eth{interface}"), NET));
    }
    metrics.push(("mem", String::new(), MEM));
    metrics.push(("netstat", String::new(), NETSTAT));
    metrics.push(("swap", String::new(), SWAP));
    metrics.push(("system", String::new(), SYSTEM));
    metrics.push(("processes", String::new(), PROCESSES));
    metrics.push(("kernel", String::new(), KERNEL));
    metrics
}

const CPU: &[&str] = &[
    "usage_guest=0",
    "usage_idle=9#.##########",
    "usage_iowait=0.##########",
    "usage_irq=0",
    "usage_nice=0",
    "usage_softirq=0.##########",
    "usage_steal=0",
    "usage_system=1.##########",
    "usage_user=2.##########",
];
const DISK: &[&str] = &[
    "free=5##########i",
    "inodes_free=2######i",
    "inodes_total=6553600i",
    "inodes_used=4######i",
    "total=105089261568i",
    "used=4##########i",
    "used_percent=4#.##########",
];
const DISKIO: &[&str] = &[
    "io_time=1######i",
    "iops_in_progress=0i",
    "merged_reads=1####i",
    "merged_writes=3######i",
    "read_bytes=5#########i",
    "read_time=2#####i",
    "reads=3#####i",
    "weighted_io_time=4######i",
    "write_bytes=8##########i",
    "write_time=6######i",
    "writes=7######i",
];
const NET: &[&str] = &[
    "bytes_recv=6##########i",
    "bytes_sent=3##########i",
    "drop_in=0i",
    "drop_out=0i",
    "err_in=0i",
    "err_out=0i",
    "packets_recv=9########i",
    "packets_sent=5########i",
    "speed=1000i",
];
const MEM: &[&str] = &[
    "active=4#########i",
    "available=1##########i",
    "available_percent=6#.##########",
    "buffered=4########i",
    "cached=7#########i",
    "committed_as=5#########i",
    "dirty=1#####i",
    "free=2#########i",
    "inactive=3#########i",
    "mapped=4########i",
];
const NETSTAT: &[&str] = &[
    "tcp_close=0i",
    "tcp_close_wait=1#i",
    "tcp_closing=0i",
    "tcp_established=2##i",
    "tcp_fin_wait1=0i",
    "tcp_fin_wait2=1i",
    "tcp_last_ack=0i",
    "tcp_listen=2#i",
    "tcp_none=1##i",
    "tcp_syn_recv=0i",
    "tcp_syn_sent=0i",
    "tcp_time_wait=3##i",
    "udp_socket=1#i",
];
const SWAP: &[&str] = &["free=2147479552i", "in=0i", "out=0i", "total=2147479552i", "used=0i", "used_percent=0"];
const SYSTEM: &[&str] = &["load1=0.##", "load15=0.##", "load5=0.##", "n_cpus=16i", "n_users=1i", "uptime=1######i"];
const PROCESSES: &[&str] =
    &["blocked=0i", "dead=0i", "idle=4#i", "running=1i", "sleeping=1##i", "total=2##i", "zombies=0i"];
const KERNEL: &[&str] =
    &["boot_time=1790000000i", "context_switches=7##########i", "interrupts=3##########i", "processes_forked=1#####i"];

fn fill(field: &str, random: &mut fastrand::Rng) -> String {
    field.chars().map(|c| if c == '#' { random.digit(10) } else { c }).collect()
}

/// Changes a few digits of the values, as a new measurement would, without changing any width.
fn vary(line: &mut [u8], random: &mut fastrand::Rng) {
    let fields = memchr::memchr(b' ', line).unwrap_or(line.len());
    let end = line.len() - line::TAIL;
    for _ in 0..4 {
        let at = random.usize(fields..end);
        // A digit between digits is neither a leading one nor part of a name such as `load1`.
        if line[at].is_ascii_digit() && line[at - 1].is_ascii_digit() && line[at + 1].is_ascii_digit() {
            line[at] = b'0' + random.u8(0..10);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::{Verdict, verify};

    #[test]
    fn a_host_renders_whole_lines_each_with_its_own_number() {
        let mut host = Host::new(7, Shape::default());
        assert_eq!(host.lines().len(), 37);
        for round in 0..3 {
            host.render(1_795_400_726_000_000_000 + round);
            for (place, range) in host.lines().iter().enumerate() {
                let line = &host.bytes()[range.start..range.end - 1];
                assert!(line.len() < 512, "Telegraf's datagrams hold at most 512 bytes");
                let sequence = round * 37 + place as u64;
                let timestamp = 1_795_400_726_000_000_000 + round;
                assert_eq!(verify(line), Verdict::Whole { host: 7, sequence, timestamp });
            }
        }
        assert_eq!(host.rendered(), 111);
    }
}
