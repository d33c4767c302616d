//! The mark of the machine-readable report.

use alloc::string::String;
use core::fmt;

use super::MAX_LINE;

/// Marks the machine-readable report, so that a guest that prints one of its own is not believed.
#[derive(Clone, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// The nonce with these digits: 16 to 64 of `0-9a-f`.
    #[must_use]
    pub fn new(digits: &str) -> Option<Self> {
        let good = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        (good && (16..=64).contains(&digits.len())).then(|| Self(digits.into()))
    }

    /// The nonce on a command line that may otherwise be wrong: so that its refusal can be reported.
    #[must_use]
    pub fn find(line: &str) -> Option<Self> {
        let words = line.get(..MAX_LINE).unwrap_or(line).split_ascii_whitespace();
        words.filter_map(|word| word.strip_prefix("report=")).find_map(Self::new)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nonce {
    /// Not the digits: whoever reads them off the console could forge a report.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}
