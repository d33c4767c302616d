//! The hypervisor's command line: `/chosen/bootargs`, what the user gives QEMU by `-append`.
//!
//! Space separated words, each at most once:
//!
//! | word | meaning | default |
//! | --- | --- | --- |
//! | `vcpus=N` | virtual CPUs, 1 to 8; where they are more than CPUs they take turns | one for each CPU, at most 8 |
//! | `mem=SIZE` | guest RAM with suffix `K`, `M` or `G`; whole pages, 8 MiB or more | half of what is free, at most 1 GiB |
//! | `restarts=N` | times that the guest may reset its machine and go on; the next reset ends the run | any number |
//! | `report=NONCE` | 16 to 64 digits of `0-9a-f`: print the machine-readable report, marked with them | no report |
//! | `blocks` | populate RAM by blocks of 2 MiB where that is possible | off: by pages |
//! | `scan` | CPUs without a vCPU to run look for pages that are worth a block of 2 MiB, and make it | off: only when the guest asks, and only with `blocks` |
//! | `churn=SECONDS[,seed=N]` | change how RAM is kept, at random, for so long ([`Wanted`]); RAM may have blocks then | off |
//! | `manage` | the guest may make the calls that change its memory (crate `hyp-abi`, `call.rs`) | off: only if the node of its image has the property `stage2,manage` |
//! | `recover=POLICY[@START+SIZE][,…]` | what becomes of an access to an address without memory ([`recovery`](crate::recovery)): `scratch`, `inject` or `stop`, in a window, or, without a place, at every address that is nothing | what properties of the node of the guest's image say; else `stop` everywhere |
//! | `recover-limit=N` | violations that are recovered, in all; one more ends the VM | 1048576 |
//! | `recover-rate=N` | the same, in a second | 262144 |
//! | `bbm=LEVEL` | change the size of mappings as on a machine whose FEAT_BBM has at most this level: 0, 1 or 2 | 2: what the machine has |
//! | `mask=NAME,…` | do without parts of the architecture that the machine has ([`Mask`]): `vmid16`, `hw-access`, `hw-dirty`, `tlbi-range`, `lse`, `ttl`, `fwb`, `xnx`, `idc`, `dic` | everything is used |
//! | `measure` | time faults, and do what `MEASURE` asks for (needs a build with the feature `measure`) | off |
//! | `trace=ORDER` | record every step of table maintenance in memory, in the order `total` or `per-pe` (needs a build with the feature `trace`, and `report=`) | off |
//! | `trace-max=N` | record at most so many | as the buffer holds |
//!
//! Reading has two steps because the numbers have bounds that only the running machine knows:
//! [`Request::parse`] says what was asked for, [`Request::resolve`] what that comes to. An unknown word
//! or a bad number is an error: a guest that was not asked for is never started.

#[cfg(test)]
mod tests;

use alloc::string::String;
use core::fmt;

use hyp_abi::MAX_VCPUS;

use crate::churn::{self, Wanted};
use crate::mask::Mask;
use crate::range::{Bytes, PAGE_SIZE, align_down};
use crate::recovery::{Asked, WANTED};
use crate::trace::Order;

/// The longest command line that is read, in bytes.
pub const MAX_LINE: usize = 2048;
/// The least guest RAM, in bytes.
pub const MIN_MEM: u64 = 8 << 20;
/// The most guest RAM that is given without being asked for, in bytes.
pub const MAX_DEFAULT_MEM: u64 = 1 << 30;
/// Guest RAM that was not asked for is a multiple of this, in bytes.
const DEFAULT_MEM_UNIT: u64 = 2 << 20;

/// Why the command line was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Longer than [`MAX_LINE`].
    #[error("the command line has {0} bytes; at most {MAX_LINE} are read")]
    TooLong(usize),
    /// A word that is not one of ours.
    #[error(
        "unknown word \"{0}\" on the command line; known: vcpus=N mem=SIZE restarts=N report=NONCE \
         blocks scan churn=SECONDS[,seed=N] manage recover=POLICY[@START+SIZE],... recover-limit=N recover-rate=N bbm=LEVEL mask=NAME,... measure trace=ORDER trace-max=N"
    )]
    UnknownWord(String),
    /// A word twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A word that needs a value has none, or one that cannot be read.
    #[error("{word}=\"{value}\" is not {wanted}")]
    Value {
        /// The word.
        word: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
    /// Nothing to run virtual CPUs on.
    #[error("this machine has no CPU")]
    NoCpu,
    /// Guest RAM below the least.
    #[error("mem={} is too little: a guest needs at least {}", Bytes(*.0), Bytes(MIN_MEM))]
    TooLittleMem(u64),
    /// Guest RAM that is not whole pages.
    #[error("mem={} bytes is not a multiple of 4 KiB", .0)]
    MemNotPages(u64),
    /// More guest RAM than is free.
    #[error(
        "mem={} is too much: {} are free, and {} of that are the hypervisor's own",
        Bytes(*.asked), Bytes(*.free), Bytes(*.overhead)
    )]
    TooMuchMem {
        /// Asked for, in bytes.
        asked: u64,
        /// Free, in bytes.
        free: u64,
        /// What of that the hypervisor keeps, in bytes.
        overhead: u64,
    },
    /// So little is free that even the least guest has no place.
    #[error(
        "the machine is too small: {} are free, {} of that are the hypervisor's own, a guest needs {}",
        Bytes(*.free), Bytes(*.overhead), Bytes(MIN_MEM)
    )]
    MachineTooSmall {
        /// Free, in bytes.
        free: u64,
        /// What of that the hypervisor keeps, in bytes.
        overhead: u64,
    },
    /// `measure` in a build that cannot.
    #[error("\"measure\" needs a hypervisor built with the feature \"measure\"")]
    CannotMeasure,
    /// `trace` in a build that cannot.
    #[error("\"trace\" needs a hypervisor built with the feature \"trace\"")]
    CannotTrace,
    /// `trace` without a report: nobody could tell whose trace it is.
    #[error("\"trace\" needs \"report=NONCE\": it marks the trace too")]
    TraceWithoutReport,
    /// `trace-max` alone.
    #[error("\"trace-max\" without \"trace\"")]
    NothingToBound,
}

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

/// What the user asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `vcpus=N`
    pub vcpus: Option<usize>,
    /// `mem=SIZE`, in bytes
    pub mem: Option<u64>,
    /// `restarts=N`
    pub restarts: Option<u32>,
    /// `report=NONCE`
    pub report: Option<Nonce>,
    /// `blocks`
    pub blocks: bool,
    /// `scan`
    pub scan: bool,
    /// `churn=SECONDS[,seed=N]`
    pub churn: Option<Wanted>,
    /// `manage`
    pub manage: bool,
    /// `recover=POLICY[@START+SIZE][,…]`
    pub recover: Option<Asked>,
    /// `recover-limit=N`
    pub recover_limit: Option<u64>,
    /// `recover-rate=N`
    pub recover_rate: Option<u32>,
    /// `bbm=LEVEL`
    pub bbm: Option<u8>,
    /// `mask=NAME,…`
    pub mask: Option<Mask>,
    /// `measure`
    pub measure: bool,
    /// `trace=ORDER`
    pub trace: Option<Order>,
    /// `trace-max=N`
    pub trace_max: Option<u64>,
}

/// What the running machine allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// CPUs that came up.
    pub cpus: usize,
    /// Free memory, in bytes.
    pub free: u64,
    /// What of the free memory the hypervisor needs for itself, in bytes.
    pub overhead: u64,
    /// Whether this build can measure.
    pub can_measure: bool,
    /// Whether this build can trace.
    pub can_trace: bool,
}

/// What will be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: usize,
    /// Guest RAM in bytes, whole pages.
    pub mem: u64,
    /// Times that the guest may reset its machine and go on; `None` is any number.
    pub restarts: Option<u32>,
    /// Mark of the machine-readable report, if one is wanted.
    pub report: Option<Nonce>,
    /// Whether RAM is populated by blocks where that is possible.
    pub blocks: bool,
    /// Whether CPUs that are idle make blocks of pages.
    pub scan: bool,
    /// How RAM is changed in the background, if it is.
    pub churn: Option<Wanted>,
    /// Whether the guest may make the calls that change its memory, whatever its node says.
    pub manage: bool,
    /// What becomes of accesses to addresses without memory, as far as the command line says it.
    pub recover: Asked,
    /// The level of FEAT_BBM that may be made use of, at the most: 0 to 2; `None` is the machine's.
    pub bbm: Option<u8>,
    /// What is not made use of, though the machine has it.
    pub mask: Mask,
    /// Whether populate faults are timed.
    pub measure: bool,
    /// How steps are recorded, if they are.
    pub trace: Option<Trace>,
}

/// A trace that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What the numbers of its records say.
    pub order: Order,
    /// Records at the most.
    pub most: Option<u64>,
}

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
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            match (name, value) {
                ("vcpus", Some(value)) => once(&mut request.vcpus, "vcpus", vcpus(value)?)?,
                ("mem", Some(value)) => once(&mut request.mem, "mem", size(value)?)?,
                ("restarts", Some(value)) => {
                    once(&mut request.restarts, "restarts", restarts(value)?)?;
                }
                ("report", Some(value)) => once(&mut request.report, "report", nonce(value)?)?,
                ("blocks", None) if request.blocks => return Err(ConfigError::Twice("blocks")),
                ("blocks", None) => request.blocks = true,
                ("scan", None) if request.scan => return Err(ConfigError::Twice("scan")),
                ("scan", None) => request.scan = true,
                ("churn", Some(value)) => once(&mut request.churn, "churn", churn(value)?)?,
                ("manage", None) if request.manage => return Err(ConfigError::Twice("manage")),
                ("manage", None) => request.manage = true,
                ("recover", Some(value)) => {
                    once(&mut request.recover, "recover", recover(value)?)?;
                }
                ("recover-limit", Some(value)) => {
                    once(&mut request.recover_limit, "recover-limit", limit(value)?)?;
                }
                ("recover-rate", Some(value)) => {
                    once(&mut request.recover_rate, "recover-rate", rate(value)?)?;
                }
                ("bbm", Some(value)) => once(&mut request.bbm, "bbm", bbm(value)?)?,
                ("mask", Some(value)) => once(&mut request.mask, "mask", mask(value)?)?,
                ("measure", None) if request.measure => return Err(ConfigError::Twice("measure")),
                ("measure", None) => request.measure = true,
                ("trace", Some(value)) => once(&mut request.trace, "trace", order(value)?)?,
                ("trace-max", Some(value)) => {
                    once(&mut request.trace_max, "trace-max", count(value)?)?;
                }
                _ => return Err(ConfigError::UnknownWord(shown(word))),
            }
        }
        Ok(request)
    }

    /// What the request comes to on this machine.
    ///
    /// # Errors
    /// [`ConfigError`]: more memory than there is, or less than a guest needs; no CPU.
    pub fn resolve(self, machine: &Bounds) -> Result<Config, ConfigError> {
        if machine.cpus == 0 {
            return Err(ConfigError::NoCpu);
        }
        let vcpus = self.vcpus.unwrap_or(machine.cpus).min(MAX_VCPUS);
        if self.measure && !machine.can_measure {
            return Err(ConfigError::CannotMeasure);
        }
        let most = self.trace_max;
        let trace = self.trace.map(|order| Trace { order, most });
        match trace {
            Some(_) if !machine.can_trace => return Err(ConfigError::CannotTrace),
            Some(_) if self.report.is_none() => return Err(ConfigError::TraceWithoutReport),
            None if most.is_some() => return Err(ConfigError::NothingToBound),
            _ => {}
        }
        let mem = self.memory(machine)?;
        let Self { restarts, blocks, scan, churn, manage, bbm, measure, .. } = self;
        let (report, mask) = (self.report, self.mask.unwrap_or_default());
        let (limit, rate) = (self.recover_limit, self.recover_rate);
        let recover = Asked { limit, rate, ..self.recover.unwrap_or_default() };
        Ok(Config {
            vcpus,
            mem,
            restarts,
            report,
            blocks,
            scan,
            churn,
            manage,
            recover,
            bbm,
            mask,
            measure,
            trace,
        })
    }

    fn memory(&self, machine: &Bounds) -> Result<u64, ConfigError> {
        let &Bounds { free, overhead, .. } = machine;
        let room = free.saturating_sub(overhead);
        let Some(asked) = self.mem else {
            let half = align_down(free.wrapping_shr(1).min(room), DEFAULT_MEM_UNIT);
            return if room < MIN_MEM {
                Err(ConfigError::MachineTooSmall { free, overhead })
            } else {
                Ok(half.clamp(MIN_MEM, MAX_DEFAULT_MEM))
            };
        };
        if asked < MIN_MEM {
            Err(ConfigError::TooLittleMem(asked))
        } else if !asked.is_multiple_of(PAGE_SIZE) {
            Err(ConfigError::MemNotPages(asked))
        } else if asked > room {
            Err(ConfigError::TooMuchMem { asked, free, overhead })
        } else {
            Ok(asked)
        }
    }
}

fn once<T>(slot: &mut Option<T>, word: &'static str, value: T) -> Result<(), ConfigError> {
    match slot.replace(value) {
        Some(_) => Err(ConfigError::Twice(word)),
        None => Ok(()),
    }
}

/// What was given, fit to be printed: it is the user's, but a terminal reads it.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}

fn vcpus(value: &str) -> Result<usize, ConfigError> {
    let number = decimal(value).filter(|&number| (1..=MAX_VCPUS as u64).contains(&number));
    number.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| ConfigError::Value {
        word: "vcpus",
        value: shown(value),
        wanted: "a number from 1 to 8",
    })
}

fn restarts(value: &str) -> Result<u32, ConfigError> {
    decimal(value).and_then(|number| u32::try_from(number).ok()).ok_or_else(|| ConfigError::Value {
        word: "restarts",
        value: shown(value),
        wanted: "a number from 0 to 4294967295",
    })
}

fn churn(value: &str) -> Result<Wanted, ConfigError> {
    Wanted::parse(value).ok_or_else(|| ConfigError::Value {
        word: "churn",
        value: shown(value),
        wanted: churn::WANTED,
    })
}

fn recover(value: &str) -> Result<Asked, ConfigError> {
    Asked::parse(value).ok_or_else(|| ConfigError::Value {
        word: "recover",
        value: shown(value),
        wanted: WANTED,
    })
}

fn limit(value: &str) -> Result<u64, ConfigError> {
    decimal(value).ok_or_else(|| ConfigError::Value {
        word: "recover-limit",
        value: shown(value),
        wanted: "a number of violations",
    })
}

fn rate(value: &str) -> Result<u32, ConfigError> {
    decimal(value).and_then(|number| u32::try_from(number).ok()).ok_or_else(|| ConfigError::Value {
        word: "recover-rate",
        value: shown(value),
        wanted: "a number of violations from 0 to 4294967295",
    })
}

fn bbm(value: &str) -> Result<u8, ConfigError> {
    match value {
        "0" => Ok(0),
        "1" => Ok(1),
        "2" => Ok(2),
        _ => Err(ConfigError::Value { word: "bbm", value: shown(value), wanted: "0, 1 or 2" }),
    }
}

fn mask(value: &str) -> Result<Mask, ConfigError> {
    Mask::parse(value).ok_or_else(|| ConfigError::Value {
        word: "mask",
        value: shown(value),
        wanted: "names with commas between them, of vmid16 hw-access hw-dirty tlbi-range lse ttl fwb xnx idc dic",
    })
}

fn nonce(value: &str) -> Result<Nonce, ConfigError> {
    Nonce::new(value).ok_or_else(|| ConfigError::Value {
        word: "report",
        value: shown(value),
        wanted: "16 to 64 of the digits 0-9a-f",
    })
}

fn order(value: &str) -> Result<Order, ConfigError> {
    match value {
        "total" => Ok(Order::Total),
        "per-pe" => Ok(Order::PerCpu),
        _ => Err(ConfigError::Value {
            word: "trace",
            value: shown(value),
            wanted: "total or per-pe",
        }),
    }
}

fn count(value: &str) -> Result<u64, ConfigError> {
    decimal(value).ok_or_else(|| ConfigError::Value {
        word: "trace-max",
        value: shown(value),
        wanted: "a number of records",
    })
}

/// A size with its unit. Without one it is refused: QEMU's `-m 64` means MiB, and nobody asks for 64 bytes.
fn size(value: &str) -> Result<u64, ConfigError> {
    parse_size(value).ok_or_else(|| ConfigError::Value {
        word: "mem",
        value: shown(value),
        wanted: "a size such as 65536K, 64M or 1G",
    })
}

/// Reads a size such as `64M`: decimal digits and one of `K`, `M`, `G`, in bytes. `None` for anything
/// else, and for what does not fit in 64 bits.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)];
    let (unit, digits) = units
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (unit, digits)))?;
    decimal(digits)?.checked_mul(unit)
}

/// Digits and nothing else; `str::parse` would let a sign through.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
