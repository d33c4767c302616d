//! EL2's window: the range of EL2's own stage 1 through which a hypervisor reaches a VM's memory.
//!
//! A hypervisor that reads a guest's buffers goes by where stage 2 says that they are. It could look that up for each access and
//! use a map of all memory; here EL2 has an address for every IPA, `base + IPA`, and what is behind it is found when it is
//! touched: the access faults at EL2, and the handler fills one slot by a compare-exchange, under whatever locks the interrupted
//! code holds.
//!
//! ```text
//!  EL2's L0 table ── slot of the window ──▶ L1 ──▶ L2 ──▶ L3, one slot for each 4 KiB of the guest's memory
//!                    (Space::hook_window)     built beforehand (Space::open_window)     0 until it is touched
//! ```
//!
//! # The states of a slot of EL2's window
//!
//! | state | bits | who may change it |
//! | --- | --- | --- |
//! | Empty | 0 | a fault handler, by compare-exchange: [`Space::recover_window`](crate::Space::recover_window) |
//! | page | valid | who changes what stage 2 holds there: its claim makes it his |
//! | Drain | `0b10` | who drained it |
//!
//! A page here is 4 KiB, readable and writable, never executable, Inner-shareable write-back. Whether EL2 *may* write to the guest's
//! page is stage 2's to say, each time: [`Space::write_through`](crate::Space::write_through) looks before it writes and makes the record
//! after it. So a change of what a leaf allows leaves the slot here as it is, and so do a split, a collapse in place and
//! the dirty log: the page stays where it was. What moves or ends does not.
//!
//! # A slot of EL2's window holds only what stage 2 holds
//!
//! ```text
//!  fault handler at EL2                   who takes the page away, or changes its address
//!  ───────────────────────────────────────────────────────────────────────────────────────
//!  guard                                  claim; stage-2 slot -> Drain, under the table's lock
//!    stage-2 read: a page                 flush of stage 2
//!    window slot: 0 -> page, by CAS       grace: no guard is open that saw the page
//!  guard ends                             window slot: page -> Drain; DSB ISHST; VAE2IS; DSB ISH; ISB
//!  the access again                       the page is copied, or released
//!                                         stage-2 slot -> 0, or the new leaf; then window slot -> 0
//! ```
//!
//! **One guard spans the stage-2 read and the compare-exchange.** Without it:
//!
//! ```text
//! PE 0, fault handler at EL2          PE 1, unmap
//! stage 2: page P
//!                                     stage-2 slot -> Drain; flush; grace (nobody)
//!                                     window slot is 0: nothing to revoke; P is released
//! window slot: 0 -> P                 <- EL2 writes to memory that is somebody else's
//! ```
//!
//! **The handler never waits.** Where stage 2 is in transition, or the slot here is in Drain, the answer is
//! [`Recovered::Retry`]: the interrupted access ends with an error through its fix-up, gives back what it holds, and is repeated
//! later. Who drained may be waiting for this very CPU's guard.
//!
//! **EL2's TLBs are told before the page is used for anything else**, by [`VAE2IS`](crate::tlbi::Tlbi::Vae2Is) for each slot that
//! was live, a DSB ISH, which also waits for accesses by the old entry, and an ISB for the executing PE \[RBLDZX\]. Slots that
//! were never touched need nothing: a translation that faults is not cached \[RXCLRD\].
//!
//! Nobody can forget this: [`Space`](crate::Space) does it itself in everything that takes a page away or changes its address
//! (`space/revoke.rs`), and what was never opened costs one load.
//!
//! # What it takes
//!
//! One page for the root and [`tables_for`] of each range, from [`Memory`](crate::Memory), until the VM ends. Readers find the
//! tables by acquire loads; a range can be added while others are in use.

use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::addr::{IpaRange, Level, Pa};

pub(crate) mod descriptor;

/// First IPA that EL2's window cannot hold: it is one slot of an L0 table.
pub const END: u64 = 1 << 39;

/// Where EL2's window lies, and how EL2's stage 1 names write-back memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    base: u64,
    attribute: u8,
}

impl Site {
    /// The window's first address, that of IPA 0, in bytes; and the index of the attribute in MAIR_EL2 that is Normal
    /// write-back memory. `None` if the base is no multiple of 512 GiB below 2^48, or the index above 7.
    #[must_use]
    pub const fn new(base: u64, attribute: u8) -> Option<Self> {
        let fits = base & (END - 1) == 0 && base < 1 << 48 && attribute < 8;
        if fits { Some(Self { base, attribute }) } else { None }
    }

    /// The address of IPA 0.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Index in MAIR_EL2.
    #[must_use]
    pub const fn attribute(&self) -> u8 {
        self.attribute
    }

    /// Both, in a word that is not 0: a base has 39 zeros.
    const fn word(self) -> u64 {
        self.base | (self.attribute as u64) << 1 | 1
    }
}

/// How the recovery of a fault in EL2's window ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// The slot leads to the page now, perhaps by another PE: the instruction is repeated.
    Mapped,
    /// Stage 2 holds nothing there. The caller fills it as for a fault of the guest, with the guest's page or the scratch
    /// page, and calls again; or ends the access.
    Fill,
    /// Stage 2 or the slot is in transition. The access ends, everything that is held is given back, and it is repeated later.
    Retry,
    /// The guest may not write there, so EL2 does not on its behalf.
    ReadOnly,
    /// No page of memory that EL2 reaches so: outside the ranges of the window, a note, or memory that is not write-back. Or
    /// the guard is of other epochs than the tables.
    NotCovered,
}

/// Why EL2's window could not be opened for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The range ends beyond [`END`], or beyond the VM's IPA size.
    TooHigh {
        /// The range.
        range: IpaRange,
    },
    /// It was opened at another place before.
    Elsewhere,
    /// No page for a table is at hand. What was built stays; once there are pages, the same call goes on.
    OutOfTables,
    /// This [`Arch`](crate::Arch) has no atomic install.
    Unsupported,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooHigh { range } => {
                let (start, end) = (range.start(), range.end());
                write!(f, "EL2's window cannot hold {start}..{end}")
            }
            Self::Elsewhere => f.write_str("EL2's window lies elsewhere already"),
            Self::OutOfTables => f.write_str("no page for a table of EL2's window"),
            Self::Unsupported => f.write_str("this machine has no atomic install"),
        }
    }
}

impl core::error::Error for OpenError {}

/// Table pages that EL2's window needs for a range at the most, its root apart.
#[must_use]
pub const fn tables_for(range: &IpaRange) -> u64 {
    spans(range, Level::L2) + spans(range, Level::L1)
}

/// Slots of a level that a range touches.
const fn spans(range: &IpaRange, level: Level) -> u64 {
    let bytes = level.slot_bytes();
    range.end().get().div_ceil(bytes) - range.start().get() / bytes
}

/// The window of one VM. Where it lies and its root do not change once they are set, what they lead to is found by loads of
/// [`Arch`](crate::Arch), and the hooks are asked for when the space is one PE's alone: so these are plain atomics, also
/// under a model checker.
#[derive(Debug, Default)]
pub(crate) struct Window {
    site: AtomicU64,
    root: AtomicU64,
    /// Slots of EL2's tables that lead to it, or are about to.
    hooks: AtomicU64,
}

impl Window {
    /// Fixes where it lies; `false` if it lies elsewhere.
    pub(crate) fn fix(&self, site: Site) -> bool {
        match self.site.compare_exchange(0, site.word(), AcqRel, Acquire) {
            Ok(_) => true,
            Err(word) => word == site.word(),
        }
    }

    /// Where it lies, if it was opened.
    #[inline]
    pub(crate) fn site(&self) -> Option<Site> {
        let word = self.site.load(Acquire);
        let site = Site { base: word & !(END - 1), attribute: (word >> 1 & 0b111) as u8 };
        (word != 0).then_some(site)
    }

    /// Its L1 table. Page 0 is no table: VTTBR_EL2 and TTBR0_EL2 could not name it.
    #[inline]
    pub(crate) fn root(&self) -> Option<Pa> {
        Some(self.root.load(Acquire)).filter(|root| *root != 0).map(Pa::new)
    }

    /// Makes a table its root; `false` if it has one.
    pub(crate) fn set_root(&self, root: Pa) -> bool {
        self.root.compare_exchange(0, root.get(), AcqRel, Acquire).is_ok()
    }

    /// A slot of EL2's tables will lead to it.
    pub(crate) fn hook(&self) {
        self.hooks.fetch_add(1, AcqRel);
    }

    /// One that was [counted](Self::hook) leads to it no more. Of one that was not, the count is wrong from then on: a debug build says so.
    pub(crate) fn unhook(&self) {
        let hooks = self.hooks.fetch_sub(1, AcqRel);
        debug_assert!(hooks > 0, "a slot led to EL2's window that was hooked by nobody");
    }

    /// Whether any does.
    pub(crate) fn is_hooked(&self) -> bool {
        self.hooks.load(Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ipa;

    #[test]
    fn a_site_is_one_slot_of_an_l0_table() {
        assert_eq!(Site::new(1 << 47, 1).unwrap().base(), 1 << 47);
        assert_eq!(Site::new(0, 7).unwrap().attribute(), 7);
        assert_eq!(Site::new(1 << 48, 1), None);
        assert_eq!(Site::new(1 << 38, 1), None);
        assert_eq!(Site::new(1 << 39, 8), None);
    }

    #[test]
    fn a_site_is_fixed_once() {
        let window = Window::default();
        assert_eq!(window.site(), None);
        let site = Site::new(0, 0).unwrap();
        assert!(window.fix(site) && window.fix(site));
        assert!(!window.fix(Site::new(1 << 39, 0).unwrap()));
        assert_eq!(window.site(), Some(site));
        assert_eq!(window.root(), None);
        assert!(window.set_root(Pa::new(0x1000)) && !window.set_root(Pa::new(0x2000)));
        assert_eq!(window.root(), Some(Pa::new(0x1000)));
    }

    /// Its tables are not given back then: there may be another.
    #[test]
    fn a_slot_that_nobody_has_counted_is_noticed() {
        let window = Window::default();
        window.hook();
        window.unhook();
        assert!(!window.is_hooked());
        let unhooked = std::panic::catch_unwind(|| window.unhook());
        assert_eq!(unhooked.is_err(), cfg!(debug_assertions));
        assert!(window.is_hooked());
    }

    #[test]
    fn tables_are_counted_by_the_spans_that_a_range_touches() {
        let tables = |start, bytes| tables_for(&IpaRange::new(Ipa::new(start), bytes).unwrap());
        assert_eq!(tables(0, 0x1000), 2);
        assert_eq!(tables(0x1f_f000, 0x2000), 3);
        assert_eq!(tables(0x4000_0000, 506 << 20), 253 + 1);
        assert_eq!(tables(0x3fff_f000, 0x2000), 4);
    }
}
