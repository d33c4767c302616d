//! Why a command line is refused, with the numbers.

use alloc::string::String;

use super::{MAX_LINE, MIN_MEM};
use crate::range::Bytes;

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
         blocks scan churn=SECONDS[,seed=N][,session=N] manage recover=POLICY[@START+SIZE],... recover-limit=N recover-rate=N bbm=LEVEL mask=NAME,... measure trace=ORDER trace-max=N"
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
