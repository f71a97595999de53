//! Any bytes as a datagram of any format: each line that comes out is one that the strict scanner
//! accepts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinflux::protocol::{Format, Line, Mapping, Netdata, Precision, Reader, Refused, Rules, Scanner, Sink, Stream};

struct Strict(Scanner);

impl Sink for Strict {
    fn line(&mut self, line: Line<'_>) {
        let mut lines = self.0.lines(line.bytes, false);
        assert_eq!((lines.next(), lines.next()), (Some(Ok(line)), None));
    }

    fn refused(&mut self, _: Refused<'_>) {}
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, input)) = data.split_first() else { return };
    let format =
        [Some(Format::Graphite), Some(Format::Opentsdb), Some(Format::NetdataJson), None][usize::from(choice % 4)];
    let mapping = match choice / 4 % 4 {
        0 => Mapping::path(),
        1 => Mapping::netdata(Netdata { keep_prefix: true, host_parts: 1 }),
        2 => Mapping::netdata(Netdata { keep_prefix: false, host_parts: 2 }),
        _ => Mapping::templates(&["a.* host.measurement*.field.field k=v", ".b.b.measurement*"])
            .and_then(|mapping| mapping.with_separator("_"))
            .and_then(|mapping| mapping.with_tags(vec![("dc".to_owned(), "eu".to_owned())]))
            .expect("templates"),
    };
    let mut reader = Reader::new(format, mapping, Rules::strict(Precision::Nanoseconds));
    let mut sink = Strict(Scanner::new(Precision::Nanoseconds));
    reader.datagram(input, choice & 64 != 0, &mut sink);
    let whole = input.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
    reader.stream(&input[..whole], &mut Stream::default(), true, &mut sink);
});
