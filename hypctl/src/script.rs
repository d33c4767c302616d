//! Scripts: a conversation with a guest, one step a line.
//!
//! ```text
//! # U-Boot: stop the countdown, ask for the version
//! expect Hit any key
//! send-raw \x20
//! expect =>
//! send version
//! ```
//!
//! `expect TEXT` waits until the console has shown TEXT after the place where the last `expect`
//! matched; `send TEXT` types TEXT and Enter; `send-raw TEXT` types TEXT alone, with the escapes
//! `\r \n \t \\ \xHH`. Blank lines and lines that start with `#` are skipped. There are no
//! conditions and no loops: what a script cannot say belongs into a test.
//!
//! QEMU's console multiplexer takes Ctrl-A for itself, so a Ctrl-A that a script types is doubled.

use std::collections::VecDeque;
use std::path::PathBuf;

/// One step of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait until the console shows these bytes.
    Expect(Vec<u8>),
    /// Type these bytes.
    Send(Vec<u8>),
}

/// Why a script cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("script {}: {source}", path.display())]
    Read {
        /// The script.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is no step.
    #[error("script line {line}: {why}: `{text}`")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
        /// The line itself.
        text: String,
    },
}

/// Reads a script. See the module's documentation for the language.
pub fn parse(text: &str) -> Result<Vec<Step>, ScriptError> {
    let mut steps = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |why| ScriptError::Line { line: index + 1, why, text: line.to_owned() };
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim_start();
        match word {
            "expect" if rest.is_empty() => return Err(bad("`expect` needs a text")),
            "expect" => steps.push(Step::Expect(unescape(rest).map_err(bad)?)),
            "send" => steps.push(Step::send_line(rest)),
            "send-raw" => steps.push(Step::Send(unescape(rest).map_err(bad)?)),
            _ => return Err(bad("a step is `expect`, `send` or `send-raw`")),
        }
    }
    Ok(steps)
}

/// The steps that `--send` options stand for: each line waits for the prompt, and so does the end
/// of what the last one prints.
pub fn from_lines(prompt: &str, lines: &[String]) -> Vec<Step> {
    lines
        .iter()
        .flat_map(|line| [Step::Expect(prompt.as_bytes().to_vec()), Step::send_line(line)])
        .collect()
}

impl Step {
    /// Types a line and Enter.
    pub fn send_line(line: &str) -> Self {
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(b'\r');
        Self::Send(bytes)
    }
}

fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digit = |byte: Option<u8>| char::from(byte.unwrap_or(b'?')).to_digit(16);
                match (digit(rest.next()), digit(rest.next())) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err("`\\x` needs two hexadecimal digits"),
                }
            }
            _ => return Err("the escapes are \\r \\n \\t \\\\ \\xHH"),
        });
    }
    Ok(out)
}

/// A script under way.
#[derive(Debug)]
pub struct Player {
    steps: VecDeque<Step>,
    total: usize,
    /// Console output since the last match.
    unmatched: Vec<u8>,
}

impl Player {
    /// Starts at the first of `steps`.
    pub fn new(steps: Vec<Step>) -> Self {
        Self { total: steps.len(), steps: steps.into(), unmatched: Vec::new() }
    }

    /// Takes console output and returns what is to be typed now.
    pub fn feed(&mut self, output: &[u8]) -> Vec<u8> {
        if self.steps.is_empty() {
            return Vec::new();
        }
        self.unmatched.extend_from_slice(output);
        let mut typed = Vec::new();
        while let Some(step) = self.steps.front() {
            match step {
                Step::Send(bytes) => typed.extend_from_slice(bytes),
                Step::Expect(wanted) => match find(&self.unmatched, wanted) {
                    Some(at) => drop(self.unmatched.drain(..at + wanted.len())),
                    None => break,
                },
            }
            self.steps.pop_front();
        }
        typed
    }

    /// What the script still waits for, in words; `None` when it is through.
    pub fn waiting_for(&self) -> Option<String> {
        let Step::Expect(wanted) = self.steps.front()? else {
            return None;
        };
        let step = self.total - self.steps.len() + 1;
        let wanted = String::from_utf8_lossy(wanted).into_owned();
        Some(format!("step {step} of {}: expect {wanted:?}", self.total))
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Doubles every Ctrl-A, as QEMU's console multiplexer wants it.
pub fn quote_mux(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        if byte == 1 {
            out.push(1);
        }
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_expect_send_and_comments() {
        let steps = parse("# hi\n\nexpect Hit any key\nsend-raw \\x20\\r\n  send md 40000000 1\n");
        assert_eq!(
            steps.unwrap(),
            [
                Step::Expect(b"Hit any key".to_vec()),
                Step::Send(b" \r".to_vec()),
                Step::Send(b"md 40000000 1\r".to_vec()),
            ]
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("send a\nwait 5\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("wait 5"), "{error}");
        assert!(parse("send-raw \\x1").unwrap_err().to_string().contains("two hexadecimal"));
        assert!(parse("expect\n").unwrap_err().to_string().contains("needs a text"));
    }

    #[test]
    fn steps_are_played_in_order_across_split_output() {
        let mut player = Player::new(parse("expect => \nsend a\nexpect =>\nsend b").unwrap());
        assert!(player.feed(b"boot\r\n=").is_empty());
        assert_eq!(player.waiting_for().unwrap(), "step 1 of 4: expect \"=>\"");
        assert_eq!(player.feed(b"> "), b"a\r");
        assert!(player.feed(b"a\r\nout\r\n").is_empty());
        assert_eq!(player.waiting_for().unwrap(), "step 3 of 4: expect \"=>\"");
        assert_eq!(player.feed(b"=>"), b"b\r");
        assert_eq!(player.waiting_for(), None);
    }

    #[test]
    fn one_output_may_match_several_steps() {
        let mut player = Player::new(parse("expect a\nexpect b\nsend c").unwrap());
        assert_eq!(player.feed(b"xaxb"), b"c\r");
    }

    #[test]
    fn control_a_is_doubled_for_the_multiplexer() {
        assert_eq!(quote_mux(b"a\x01b"), b"a\x01\x01b");
    }
}
