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
//! | `churn=SECONDS[,seed=N][,session=N]` | change how RAM is kept, at random, for so long ([`Wanted`]); RAM may have blocks then | off |
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

mod error;
mod nonce;
#[cfg(test)]
mod tests;
mod words;

pub use error::ConfigError;
use hyp_abi::MAX_VCPUS;
pub use nonce::Nonce;
pub use words::parse_size;

use crate::churn::Wanted;
use crate::mask::Mask;
use crate::range::{PAGE_SIZE, align_down};
use crate::recovery::Asked;
use crate::trace::Order;

/// The longest command line that is read, in bytes.
pub const MAX_LINE: usize = 2048;
/// The least guest RAM, in bytes.
pub const MIN_MEM: u64 = 8 << 20;
/// The most guest RAM that is given without being asked for, in bytes.
pub const MAX_DEFAULT_MEM: u64 = 1 << 30;
/// Guest RAM that was not asked for is a multiple of this, in bytes.
const DEFAULT_MEM_UNIT: u64 = 2 << 20;

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
    /// `churn=SECONDS[,seed=N][,session=N]`
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
