//! What EL2 spent its instructions on while a guest ran, by what took it out of the guest, when that was measured.

use alloc::collections::BTreeMap;
use alloc::format;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::range::Count;

/// What EL2 was busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Cause {
    /// A fault that installed a page without bytes of the payload.
    Populate,
    /// A fault that installed a page and copied the payload's bytes into it.
    Fill,
    /// A fault that gave a leaf what a write needed.
    Write,
    /// A fault that was recovered by the scratch page.
    Recover,
    /// An access to an emulated device, the interrupt controller among them.
    Device,
    /// Any other abort: another grant of a leaf, a lost race, a fault to be repeated.
    Abort,
    /// A trapped system register or instruction.
    Register,
    /// A hypercall.
    Call,
    /// WFI or WFE: until the guest goes on, without the time that the CPU slept.
    Wait,
    /// An interrupt that took the CPU out of the guest.
    Interrupt,
    /// Any other exit.
    Other,
    /// Frames and tables are zeroed and cleaned for the CPU's stock, on the way back to the guest.
    Refill,
}

impl Cause {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Populate,
        Self::Fill,
        Self::Write,
        Self::Recover,
        Self::Device,
        Self::Abort,
        Self::Register,
        Self::Call,
        Self::Wait,
        Self::Interrupt,
        Self::Other,
        Self::Refill,
    ];

    /// In a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Populate => "populate faults",
            Self::Fill => "image faults",
            Self::Write => "write faults",
            Self::Recover => "recoveries",
            Self::Device => "device accesses",
            Self::Abort => "other aborts",
            Self::Register => "register traps",
            Self::Call => "hypercalls",
            Self::Wait => "waits",
            Self::Interrupt => "interrupts",
            Self::Other => "other exits",
            Self::Refill => "refills",
        }
    }
}

/// How often, and how much in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Times.
    pub count: u64,
    /// EL2 instructions, from the vector to the return to the guest.
    pub instructions: u64,
}

/// By cause. What did not happen is missing.
pub type AllSpent = BTreeMap<Cause, Spent>;

/// The rows of a summary, whose labels are so wide.
pub(super) fn rows(all: &AllSpent, f: &mut fmt::Formatter<'_>, label: usize) -> fmt::Result {
    for (cause, Spent { count, instructions }) in all {
        let name = format!("EL2: {}", cause.name());
        write!(f, "\n{name:label$} {} in {count}", Count(*instructions, "instruction"))?;
    }
    Ok(())
}
