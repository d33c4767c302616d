//! The console stream: guest text for the reader, one hidden line for the program.
//!
//! Guest and hypervisor share one UART. The hypervisor ends its run with the line
//! `\x1e<nonce>{json}\n`, where the nonce was drawn by `hypctl` for this run alone, so a guest
//! cannot forge a report. [`Console::feed`] takes the bytes as they come, in pieces of any size,
//! returns what a person should see and keeps the reports.
//!
//! Three states: *Text* (everything passes), *Match* (the last bytes are a prefix of
//! `\x1e<nonce>{`; they are held back, and released when the match breaks), *Report* (everything
//! up to the newline is the report). A report longer than [`REPORT_MAX`] is cut off and passed on
//! as text: a broken hypervisor must not make us hoard memory.

/// The longest report line that is believed, in bytes.
pub const REPORT_MAX: usize = 256 * 1024;

const RECORD_SEPARATOR: u8 = 0x1e;

/// Splits a console stream into text and reports.
#[derive(Debug)]
pub struct Console {
    marker: Vec<u8>,
    state: State,
    reports: Vec<String>,
}

#[derive(Debug)]
enum State {
    /// Seen this many bytes of the marker; 0 is plain text.
    Match(usize),
    /// Inside a report: its bytes so far, from the opening brace on.
    Report(Vec<u8>),
}

impl Console {
    /// A splitter for the reports marked by `nonce`.
    pub fn new(nonce: &str) -> Self {
        let mut marker = vec![RECORD_SEPARATOR];
        marker.extend_from_slice(nonce.as_bytes());
        marker.push(b'{');
        Self { marker, state: State::Match(0), reports: Vec::new() }
    }

    /// Takes the next bytes of the stream and returns those that are text.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match &mut self.state {
                State::Match(seen) if self.marker[*seen] == byte => {
                    *seen += 1;
                    if *seen == self.marker.len() {
                        self.state = State::Report(vec![b'{']);
                    }
                }
                State::Match(seen) => {
                    // The separator occurs only at the marker's start, so a broken match can
                    // begin again with this byte and nowhere before it.
                    text.extend_from_slice(&self.marker[..*seen]);
                    *seen = usize::from(byte == RECORD_SEPARATOR);
                    if *seen == 0 {
                        text.push(byte);
                    }
                }
                State::Report(line) if byte == b'\n' => {
                    let line = String::from_utf8_lossy(line).trim_end().to_owned();
                    self.reports.push(line);
                    self.state = State::Match(0);
                }
                State::Report(line) => {
                    line.push(byte);
                    if line.len() > REPORT_MAX {
                        text.append(line);
                        self.state = State::Match(0);
                    }
                }
            }
        }
        text
    }

    /// Ends the stream: what was held back and turned out not to be a report.
    pub fn finish(&mut self) -> Vec<u8> {
        match std::mem::replace(&mut self.state, State::Match(0)) {
            State::Match(seen) => self.marker[..seen].to_vec(),
            State::Report(line) => line,
        }
    }

    /// The reports so far, oldest first. A guest that resets the machine leaves one per boot.
    pub fn reports(&self) -> &[String] {
        &self.reports
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "0123456789abcdef";

    fn run(pieces: &[&[u8]]) -> (String, Vec<String>) {
        let mut console = Console::new(NONCE);
        let mut text = Vec::new();
        for piece in pieces {
            text.extend(console.feed(piece));
        }
        text.extend(console.finish());
        (String::from_utf8(text).unwrap(), console.reports().to_vec())
    }

    #[test]
    fn text_passes_and_the_report_is_taken_out() {
        let stream = b"hello\r\n\x1e0123456789abcdef{\"a\":1}\r\nbye";
        assert_eq!(run(&[stream]), ("hello\r\nbye".into(), vec!["{\"a\":1}".into()]));
    }

    #[test]
    fn another_nonce_is_text() {
        let stream = b"\x1e0123456789abcdee{\"a\":1}\n";
        assert_eq!(run(&[stream]), (String::from_utf8(stream.to_vec()).unwrap(), vec![]));
    }

    #[test]
    fn a_broken_match_may_start_the_next_one() {
        let stream = b"\x1e\x1e01\x1e0123456789abcdef{}\n";
        assert_eq!(run(&[stream]), ("\x1e\x1e01".into(), vec!["{}".into()]));
    }

    #[test]
    fn a_report_cut_short_is_shown() {
        let stream = b"x\x1e0123456789abcdef{\"half";
        assert_eq!(run(&[stream]), ("x{\"half".into(), vec![]));
    }

    #[test]
    fn every_boot_leaves_its_report() {
        let stream = b"\x1e0123456789abcdef{1}\nboot\n\x1e0123456789abcdef{2}\n";
        assert_eq!(run(&[stream]), ("boot\n".into(), vec!["{1}".into(), "{2}".into()]));
    }

    #[test]
    fn a_report_without_end_becomes_text() {
        let mut console = Console::new(NONCE);
        assert!(console.feed(b"\x1e0123456789abcdef{").is_empty());
        let flood = vec![b'x'; REPORT_MAX + 1];
        assert_eq!(console.feed(&flood).len(), REPORT_MAX + 2);
    }

    proptest! {
        #[test]
        fn the_split_of_the_reads_does_not_matter(
            before in "[a-f0-9\x1e{}\n]{0,40}",
            cuts in proptest::collection::vec(0usize..120, 0..8),
        ) {
            let stream = format!("{before}\x1e{NONCE}{{\"k\":2}}\nend");
            let whole = run(&[stream.as_bytes()]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|w| &stream.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&pieces), whole);
        }
    }
}
