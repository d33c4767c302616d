//! What a Linux guest tells hypctl: lines of its first program, taken out of the console.
//!
//! They have the form of the hypervisor's report ([`Console`]), `\x1e<mark>{JSON}\n`, with a mark of their own. A program in
//! the guest can read it: it keeps output from being taken for such a line by chance, not on purpose.

use std::io::{self, Write};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::console::Console;

/// What is known of a guest's boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Boot {
    /// Wall time from QEMU's start to the first program's first line, seconds.
    pub seconds: Option<f64>,
    /// When its first line came.
    #[serde(skip)]
    pub at: Option<Instant>,
    /// The first program's first act.
    pub init: Option<Init>,
    /// The machine as the guest sees it.
    pub up: Option<Up>,
    /// The script's end.
    pub end: Option<End>,
}

/// The virtual counter when the first program started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Init {
    /// `CNTVCT_EL0`.
    pub counter: u64,
    /// `CNTFRQ_EL0`, Hz.
    pub frequency: u64,
}

/// The machine as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Up {
    /// `uname -r`.
    pub release: String,
    /// CPUs that are online.
    pub cpus: u32,
}

/// The script's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct End {
    /// Its exit status.
    pub status: u8,
    /// Lines of the kernel's log that say that something is wrong.
    pub complaints: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Init(Init),
    Up(Up),
    End(End),
}

/// Passes the console on, without the lines that are for us.
pub struct Marks<'s> {
    console: Console,
    taken: usize,
    sink: &'s mut dyn Write,
    boot: Boot,
}

impl<'s> Marks<'s> {
    /// For lines that begin with `mark`.
    pub fn new(mark: &str, sink: &'s mut dyn Write) -> Self {
        Self { console: Console::new(mark), taken: 0, sink, boot: Boot::default() }
    }

    /// What was told, once the console has ended.
    ///
    /// # Errors
    /// The sink's.
    pub fn finish(mut self) -> io::Result<Boot> {
        let rest = self.console.finish();
        self.sink.write_all(&rest)?;
        Ok(self.boot)
    }

    fn note(&mut self, line: &str) {
        // A line that is none of ours has no business here: the verdict will be missed.
        match serde_json::from_str(line) {
            Ok(Mark::Init(init)) => {
                self.boot.at.get_or_insert_with(Instant::now);
                self.boot.init.get_or_insert(init);
            }
            Ok(Mark::Up(up)) => drop(self.boot.up.get_or_insert(up)),
            Ok(Mark::End(end)) => drop(self.boot.end.get_or_insert(end)),
            Err(_) => {}
        }
    }
}

impl Write for Marks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = self.console.feed(bytes);
        let told = self.console.reports()[self.taken..].to_vec();
        self.taken += told.len();
        told.iter().for_each(|line| self.note(line));
        self.sink.write_all(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_us_are_taken_out_and_understood() {
        let mut shown = Vec::new();
        let mut marks = Marks::new("m", &mut shown);
        marks
            .write_all(b"boot\r\n\x1em{\"init\":{\"counter\":7,\"frequency\":9}}\r\nhi\r\n")
            .unwrap();
        marks
            .write_all(b"\x1em{\"up\":{\"release\":\"6.12\",\"cpus\":2}}\r\n\x1em{\"end\"")
            .unwrap();
        marks.write_all(b":{\"status\":3,\"complaints\":0}}\r\n\x1e").unwrap();
        let boot = marks.finish().unwrap();
        assert!(boot.at.is_some());
        assert_eq!(boot.init, Some(Init { counter: 7, frequency: 9 }));
        assert_eq!(boot.up, Some(Up { release: "6.12".into(), cpus: 2 }));
        assert_eq!(boot.end, Some(End { status: 3, complaints: 0 }));
        assert_eq!(shown, b"boot\r\nhi\r\n\x1e");
    }

    #[test]
    fn the_first_verdict_counts_and_nonsense_is_none() {
        let mut shown = Vec::new();
        let mut marks = Marks::new("m", &mut shown);
        marks.write_all(b"\x1em{\"end\":{\"status\":300,\"complaints\":0}}\n").unwrap();
        marks.write_all(b"\x1em{\"end\":{\"status\":1,\"complaints\":2}}\n").unwrap();
        marks.write_all(b"\x1em{\"end\":{\"status\":0,\"complaints\":0}}\n").unwrap();
        assert_eq!(marks.finish().unwrap().end, Some(End { status: 1, complaints: 2 }));
    }
}
