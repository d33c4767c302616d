//! The words of the command line, read one by one.

use alloc::string::String;

use hyp_abi::MAX_VCPUS;

use super::{ConfigError, MAX_LINE, Nonce, Request};
use crate::churn::{self, Wanted};
use crate::mask::Mask;
use crate::recovery::{self, Asked};
use crate::trace::Order;

impl Request {
    /// Reads a command line.
    ///
    /// # Errors
    /// [`ConfigError`]: a word is unknown, given twice, or has a value that cannot be read.
    pub fn parse(line: &str) -> Result<Self, ConfigError> {
        if line.len() > MAX_LINE {
            return Err(ConfigError::TooLong(line.len()));
        }
        let mut request = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                request.flag(word)?;
                continue;
            };
            let is_known = request.value(name, value)?;
            if !is_known {
                return Err(ConfigError::UnknownWord(shown(word)));
            }
        }
        Ok(request)
    }

    /// Reads a word without a value.
    fn flag(&mut self, word: &str) -> Result<(), ConfigError> {
        let (name, place) = match word {
            "blocks" => ("blocks", &mut self.blocks),
            "scan" => ("scan", &mut self.scan),
            "manage" => ("manage", &mut self.manage),
            "measure" => ("measure", &mut self.measure),
            _ => return Err(ConfigError::UnknownWord(shown(word))),
        };
        if core::mem::replace(place, true) { Err(ConfigError::Twice(name)) } else { Ok(()) }
    }

    /// Reads the value of a word; `false` if there is no such word.
    fn value(&mut self, name: &str, text: &str) -> Result<bool, ConfigError> {
        let value = |word, wanted| Value { word, text, wanted };
        match name {
            "vcpus" => {
                value("vcpus", "a number from 1 to 8").once(&mut self.vcpus, vcpus(text))?;
            }
            "mem" => {
                let wanted = "a size such as 65536K, 64M or 1G";
                value("mem", wanted).once(&mut self.mem, parse_size(text))?;
            }
            "restarts" => {
                let wanted = "a number from 0 to 4294967295";
                value("restarts", wanted).once(&mut self.restarts, decimal(text))?;
            }
            "report" => {
                let wanted = "16 to 64 of the digits 0-9a-f";
                value("report", wanted).once(&mut self.report, Nonce::new(text))?;
            }
            "churn" => {
                value("churn", churn::WANTED).once(&mut self.churn, Wanted::parse(text))?;
            }
            "recover" => {
                value("recover", recovery::WANTED).once(&mut self.recover, Asked::parse(text))?;
            }
            "recover-limit" => {
                let wanted = "a number of violations";
                value("recover-limit", wanted).once(&mut self.recover_limit, decimal(text))?;
            }
            "recover-rate" => {
                let wanted = "a number of violations from 0 to 4294967295";
                value("recover-rate", wanted).once(&mut self.recover_rate, decimal(text))?;
            }
            "bbm" => value("bbm", "0, 1 or 2").once(&mut self.bbm, bbm(text))?,
            "mask" => {
                let wanted = "names with commas between them, of vmid16 hw-access hw-dirty tlbi-range lse ttl fwb xnx idc dic";
                value("mask", wanted).once(&mut self.mask, Mask::parse(text))?;
            }
            "trace" => value("trace", "total or per-pe").once(&mut self.trace, order(text))?,
            "trace-max" => {
                value("trace-max", "a number of records")
                    .once(&mut self.trace_max, decimal(text))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What was given for a word.
struct Value<'t> {
    word: &'static str,
    text: &'t str,
    /// What would do.
    wanted: &'static str,
}

impl Value<'_> {
    /// Puts what was read into its place, once.
    fn once<T>(self, place: &mut Option<T>, read: Option<T>) -> Result<(), ConfigError> {
        let Self { word, text, wanted } = self;
        let Some(read) = read else {
            return Err(ConfigError::Value { word, value: shown(text), wanted });
        };
        match place.replace(read) {
            Some(_) => Err(ConfigError::Twice(word)),
            None => Ok(()),
        }
    }
}

/// What was given, fit to be printed: it is the user's, but a terminal reads it.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}

fn vcpus(text: &str) -> Option<usize> {
    decimal(text).filter(|number| (1..=MAX_VCPUS).contains(number))
}

fn bbm(text: &str) -> Option<u8> {
    match text {
        "0" => Some(0),
        "1" => Some(1),
        "2" => Some(2),
        _ => None,
    }
}

fn order(text: &str) -> Option<Order> {
    match text {
        "total" => Some(Order::Total),
        "per-pe" => Some(Order::PerCpu),
        _ => None,
    }
}

/// Reads a size such as `64M`: decimal digits and one of `K`, `M`, `G`, in bytes. `None` for anything
/// else, and for what does not fit in 64 bits: without a unit it is refused, as QEMU's `-m 64` means MiB, and nobody asks
/// for 64 bytes.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)];
    let (unit, digits) = units
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (unit, digits)))?;
    decimal::<u64>(digits)?.checked_mul(unit)
}

/// Digits and nothing else; `str::parse` would let a sign through. `None` also for what does not fit.
fn decimal<T: core::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
