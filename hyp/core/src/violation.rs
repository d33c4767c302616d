//! The violation log: who reached for what is not there, and what came of it.
//!
//! ```text
//!  a fault, under any lock                          a safe point of the same CPU
//!  Sighting::words ──▶ Ring::push                   Ring::take ──▶ Violation ──▶ Log::note
//!  no lock, no allocation, no wait                  decoded, and told: console, report
//! ```
//!
//! A fault handler leaves what the exception registers say in its CPU's [`Ring`], undecoded, and goes on. What that means is
//! worked out later, where nobody waits: a [`Violation`] says nothing that hardware has not said. What is not decoded (ISV=0) has
//! no size and no register, and is not guessed.
//!
//! The [`Log`] of a run keeps the first that differ from each other, counts the rest, and says which are worth a line on
//! the console, so that no guest can flood it.

mod log;
mod ring;
#[cfg(test)]
mod tests;

use core::fmt;

pub use log::{KEPT, LINES, Log, PERIOD, Rest, Summary, Told};
pub use ring::{Newest, Pushed, Ring};
use serde::{Deserialize, Serialize};

use crate::syndrome::Syndrome;

/// Words of a record in a [`Ring`].
pub const WORDS: usize = 6;

/// What was done about a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A scratch page was installed, or was there already, and the guest goes on.
    Scratch,
    /// The guest took a synchronous external abort.
    Injected,
    /// The VM was stopped.
    Stopped,
}

impl Outcome {
    const fn from_bits(bits: u64) -> Self {
        match bits & 0b11 {
            0 => Self::Scratch,
            1 => Self::Injected,
            _ => Self::Stopped,
        }
    }
}

/// What kind of access it was, as far as hardware says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A read. An atomic instruction that could not even read is reported as one, too \[D24.2.46, WnR\].
    Read,
    /// A write.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A walk of the guest's own tables, for an access of any kind.
    Walk,
    /// Cache maintenance by address.
    CacheMaintenance,
    /// The syndrome is not that of an abort.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "fetch",
            Self::Walk => "stage-1 table walk",
            Self::CacheMaintenance => "cache maintenance",
            Self::Other => "exception that is no abort",
        })
    }
}

/// What a fault handler knows of a violation: the exception registers as they are, and what it does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The physical counter, in ticks.
    pub ticks: u64,
    /// `ESR_EL2`.
    pub esr: u64,
    /// `ELR_EL2`.
    pub pc: u64,
    /// `FAR_EL2`, valid or not: the syndrome says which.
    pub va: u64,
    /// The address in the VM, if it is known.
    pub ipa: Option<u64>,
    /// The Exception level that the access was made at: 0, 1 or 2.
    pub el: u8,
    /// What is done about it.
    pub outcome: Outcome,
}

/// Bits of the last word: the outcome, the Exception level, whether there is an IPA.
const EL: u32 = 2;
const HAS_IPA: u32 = 4;

impl Sighting {
    /// As words for a [`Ring`].
    #[inline]
    #[must_use]
    pub const fn words(&self) -> [u64; WORDS] {
        let (ipa, has_ipa) = match self.ipa {
            Some(ipa) => (ipa, 1 << HAS_IPA),
            None => (0, 0),
        };
        let last = self.outcome as u64 | ((self.el & 0b11) as u64) << EL | has_ipa;
        [self.ticks, self.pc, self.va, ipa, self.esr, last]
    }

    /// From words that [`words`](Self::words) has made.
    #[must_use]
    pub const fn from_words([ticks, pc, va, ipa, esr, last]: [u64; WORDS]) -> Self {
        let ipa = if last >> HAS_IPA & 1 != 0 { Some(ipa) } else { None };
        let (el, outcome) = ((last >> EL & 0b11) as u8, Outcome::from_bits(last));
        Self { ticks, esr, pc, va, ipa, el, outcome }
    }

    /// Whether `words` are of the same violation as `before`: the same instruction, syndrome, outcome and pages, at whatever
    /// time. It is asked on the fault path, where most are of another page.
    #[inline]
    #[must_use]
    pub fn is_same(words: &[u64; WORDS], before: &Newest<'_, WORDS>) -> bool {
        let [_, pc, va, ipa, esr, last] = *words;
        let [other_va, other_ipa] = [2, 3].map(|number| before.word(number));
        let page = ((va ^ other_va) | (ipa ^ other_ipa)) >> 12;
        if page != 0 {
            return false;
        }
        let [other_pc, other_esr, other_last] = [1, 4, 5].map(|number| before.word(number));
        (pc ^ other_pc) | (esr ^ other_esr) | (last ^ other_last) == 0
    }
}

/// A violation, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// When it happened first: nanoseconds of the physical counter, which starts with the machine.
    pub time: u64,
    /// The VM.
    pub vm: u32,
    /// The virtual CPU.
    pub vcpu: u32,
    /// The Exception level of the access: 0 or 1 of the guest; 2 is the hypervisor's own, for this virtual CPU.
    pub el: u8,
    /// The instruction, as a virtual address of that Exception level.
    pub pc: u64,
    /// The virtual address; on a table walk the one that was being translated. Nothing if hardware gives none.
    pub va: Option<u64>,
    /// The address in the VM, if it is known; on a table walk the page of the table.
    pub ipa: Option<u64>,
    /// Bytes accessed. Nothing if the access was not decoded (ISV=0): pairs, SIMD, atomics, `DC ZVA`, writeback.
    pub size: Option<u8>,
    /// What kind of access it was.
    pub kind: Kind,
    /// The general register that was to be loaded or stored; 31 is the zero register. Nothing if not decoded.
    pub register: Option<u8>,
    /// What was done about it.
    pub outcome: Outcome,
    /// How often it happened.
    pub count: u64,
}

impl Violation {
    /// Decodes what a handler has seen `count` times on virtual CPU `vcpu` of `vm`, with a counter of `frequency` ticks a second.
    #[must_use]
    pub fn decode(sighting: &Sighting, count: u64, vm: u32, vcpu: u32, frequency: u64) -> Self {
        let Sighting { ticks, esr, pc, va, ipa, el, outcome } = *sighting;
        let abort = Syndrome(esr).abort();
        let access = abort.and_then(|abort| abort.access());
        let has_va = abort.is_some_and(|abort| !abort.far_not_valid());
        let kind = match abort {
            None => Kind::Other,
            Some(abort) if abort.is_stage1_walk() => Kind::Walk,
            Some(abort) if abort.is_instruction() => Kind::Fetch,
            Some(abort) if abort.is_cache_maintenance() => Kind::CacheMaintenance,
            Some(abort) if abort.is_write() => Kind::Write,
            Some(_) => Kind::Read,
        };
        Self {
            time: nanoseconds(ticks, frequency),
            vm,
            vcpu,
            el,
            pc,
            va: has_va.then_some(va),
            ipa,
            size: access.map(|access| access.size),
            kind,
            register: access.map(|access| access.register),
            outcome,
            count,
        }
    }

    /// Whether it is `other` again: by the same virtual CPU, instruction, kind of access, pages and outcome.
    #[must_use]
    pub fn is_again(&self, other: &Self) -> bool {
        let page = |address: Option<u64>| address.map(|address| address >> 12);
        let who = |it: &Self| (it.vm, it.vcpu, it.el, it.pc);
        let what = |it: &Self| (it.kind, it.outcome, page(it.va), page(it.ipa));
        who(self) == who(other) && what(self) == what(other)
    }
}

/// Ticks of a counter as nanoseconds. A counter without a frequency gives 0.
#[must_use]
pub fn nanoseconds(ticks: u64, frequency: u64) -> u64 {
    let product = u128::from(ticks).wrapping_mul(1_000_000_000);
    let nanoseconds = product.checked_div(u128::from(frequency)).unwrap_or(0);
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

impl fmt::Display for Violation {
    /// One line: `0.204818 s, VM 0 vCPU 1 at EL1, PC 0x40203e54: write of 4 bytes from register 2, VA 0x9000, IPA 0x9000: scratch
    /// page, 3 times`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, vm, vcpu, el, pc, va, ipa, size, kind, register, outcome, count } = self;
        let microseconds = time.wrapping_div(1000);
        let (whole, part) =
            (microseconds.wrapping_div(1_000_000), microseconds.wrapping_rem(1_000_000));
        write!(f, "{whole}.{part:06} s, VM {vm} vCPU {vcpu} at EL{el}, PC {pc:#x}: {kind}")?;
        match (kind, size) {
            (Kind::Read | Kind::Write, Some(size)) => {
                write!(f, " of {}", crate::range::Count(u64::from(*size), "byte"))?;
            }
            (Kind::Read | Kind::Write, None) => f.write_str(" (not decoded)")?,
            _ => {}
        }
        if let Some(register) = register {
            let way = if *kind == Kind::Write { "from" } else { "to" };
            match register {
                31 => write!(f, " {way} the zero register")?,
                number => write!(f, " {way} register {number}")?,
            }
        }
        if let Some(va) = va {
            write!(f, ", VA {va:#x}")?;
        }
        if let Some(ipa) = ipa {
            write!(f, ", IPA {ipa:#x}")?;
        }
        f.write_str(match outcome {
            Outcome::Scratch => ": scratch page",
            Outcome::Injected => ": abort injected",
            Outcome::Stopped => ": VM stopped",
        })?;
        if *count != 1 {
            write!(f, ", {count} times")?;
        }
        Ok(())
    }
}
