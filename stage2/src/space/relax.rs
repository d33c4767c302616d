//! The lock-free upgrade: a fault on a leaf that is there gives it what the access needs.
//!
//! A Permission fault ends here, and an Access flag fault. The leaf becomes another by one compare-exchange from
//! what was read, under the guard under which the caller has read his policy. No lock, no allocation, no wait:
//!
//! ```text
//!  guard ── policy ── walk ──┬─ a leaf that allows it ─── spurious: a TLB had what was there before
//!                            ├─ a leaf, and the policy allows it ─ CAS ─┬ won ── DSB; flush on this PE
//!                            │                                          └ lost ─ look at what is there now
//!                            ├─ a leaf, and it does not ─ Denied: inject, or stop
//!                            ├─ a leaf that is not the VM's ─ Denied, unless it allows it
//!                            ├─ a contiguous run ──────── Run: dissolve it first, under a claim
//!                            ├─ a block, and it allows different things in it ─ Retry: it is about to be split
//!                            ├─ Busy, Drain, Dead, nT ─── Retry: return to the guest, fault again
//!                            └─ anything else ─────────── Nothing: the access faults on the translation next
//! ```
//!
//! What it grants is what [`Leaf`] becomes in `descriptor/grant.rs`; S2AP\[1\] is the only dirty record, so **a write to
//! a page whose writes are logged is recorded by the same exchange that lets it through**.
//!
//! # Why one exchange is enough
//!
//! Whoever takes a permission or a record away does so by an exchange, too, and what that replaces is its final word. One
//! of the two is first:
//!
//! ```text
//! PE 0, takes the dirty state         PE 1, its guest has written
//!                                     reads the leaf: writable-clean
//! dirty -> clean                      (nothing to take: it was clean)
//!                                     clean -> dirty; returns; the guest writes
//! flush; copies the page              <- the write is in the copy, or in the next harvest, as the record is
//! ```
//!
//! And who takes a permission away for good publishes his policy first and waits for the guards of those who have read
//! the old one, before he sweeps. Without the grace period:
//!
//! ```text
//! PE 0, protects                      PE 1, in a fault handler
//!                                     reads the policy: writable
//! publishes: read-only
//! sweeps: leaf -> read-only
//!                                     read-only -> writable     <- the race: nobody sweeps again
//! ```
//!
//! # Flushes
//!
//! An entry that gives a Permission fault may be in a TLB \[RJVXRH\], and software is to invalidate it \[IWJLXV\]: on
//! this PE, at once; another PE that holds it takes one more fault, which is spurious, and flushes then. An entry with AF
//! clear is in no TLB \[RXCLRD, IPNQBP\], so setting it takes a DSB alone.
//!
//! # Contiguous runs
//!
//! No member of a run is changed alone: it is dissolved first, by who may take a claim.

use core::fmt;
use core::ops::ControlFlow::{Break, Continue};

use super::Space;
use crate::addr::{Ipa, Level};
use crate::arch::{Arch, Dsb};
use crate::attr::Prot;
use crate::descriptor::{Descriptor, Grant, Leaf, Owner, View};
use crate::epoch::Guard;
use crate::flush::relax_running;
use crate::memory::Memory;
use crate::slot::Slot;
use crate::space::contiguous::run_bytes;
use crate::tlbi::LeafLevel;

/// Exchanges that are tried. Each that is lost was won by hardware or by somebody who got on.
const ATTEMPTS: usize = 4;

/// What a policy allows in all of a leaf.
///
/// A page's permissions are not those of the block that it lies in: one that is given what is allowed in a part of it
/// gives away the rest.
pub trait Allows {
    /// What is allowed in all of the leaf of `level` that translates the address in question; `None` if that is not the
    /// same everywhere in it.
    fn in_leaf(&self, level: Level) -> Option<Prot>;
}

/// Everywhere the same.
impl Allows for Prot {
    #[inline(always)]
    fn in_leaf(&self, _: Level) -> Option<Prot> {
        Some(*self)
    }
}

impl<F: Fn(Level) -> Option<Prot>> Allows for &F {
    #[inline(always)]
    fn in_leaf(&self, level: Level) -> Option<Prot> {
        self(level)
    }
}

/// VTTBR_EL2, but for the VMID.
const BADDR: u64 = (1 << 48) - 1;

/// How a fault on a leaf ended well: the guest may resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relaxed {
    /// The leaf has been changed, and is this now.
    Granted(Leaf),
    /// The leaf allows the access already: this PE had something older in its TLB, and has it no more.
    Spurious(Leaf),
}

/// Why a fault on a leaf was not resolved. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelaxError {
    /// The address is beyond the VM's IPA size.
    BeyondIpaSize {
        /// The address.
        ipa: Ipa,
        /// Bits of the VM's IPAs.
        bits: u32,
    },
    /// The guard belongs to other epochs than the tables do.
    ForeignGuard,
    /// What the caller allows is less than the access needs; or what a leaf allows that is not the VM's, to which nothing is added.
    Denied {
        /// What the access needs.
        access: Prot,
        /// What is allowed.
        allowed: Prot,
    },
    /// A slot on the way is being changed, or changes all the time; or the leaf is a block within which the policy differs, so
    /// that somebody is about to split it. Let the guest fault again.
    Retry {
        /// Level of the slot.
        level: Level,
        /// What it held.
        seen: Descriptor,
    },
    /// No leaf is there: the access will raise a Translation fault.
    Nothing {
        /// Level of the slot.
        level: Level,
        /// What it held.
        seen: Descriptor,
    },
    /// A member of a contiguous run: the run is dissolved first.
    Run {
        /// First IPA of the run.
        ipa: Ipa,
        /// Level of its leaves.
        level: Level,
    },
    /// A writable-clean leaf under hardware dirty management, where the caller allows no write: who has changed the policy
    /// is about to take the permission, by a break. Let the guest fault again.
    Unsettled {
        /// Level of the leaf.
        level: Level,
    },
    /// The machine has no atomic exchange: the fault cannot be recovered here.
    Unsupported,
}

impl fmt::Display for RelaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondIpaSize { ipa, bits } => write!(f, "{ipa} needs more than {bits} IPA bits"),
            Self::ForeignGuard => f.write_str("the guard belongs to other epochs than the tables"),
            Self::Denied { access, allowed } => {
                write!(f, "the access needs {access}, and {allowed} is allowed")
            }
            Self::Retry { level, seen } => {
                write!(f, "the {level} slot is being changed: {:#x}", seen.bits())
            }
            Self::Nothing { level, seen } => {
                write!(f, "the {level} slot holds no leaf: {:#x}", seen.bits())
            }
            Self::Run { ipa, level } => write!(f, "the contiguous run of {level} at {ipa} is one"),
            Self::Unsettled { level } => {
                write!(f, "the {level} leaf is writable-clean, and no write is allowed")
            }
            Self::Unsupported => f.write_str("this machine has no atomic exchange"),
        }
    }
}

impl core::error::Error for RelaxError {}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Gives the leaf that translates `ipa` what an `access` needs, if what is `allowed` in all of it contains that: AF, and the permissions
    /// in `access`, which may be several or none. A write makes writable-clean writable-dirty.
    ///
    /// `allowed` is what the caller's policy says, read under this guard. For a fault handler: takes no lock,
    /// allocates nothing, waits for nobody, and tries a few exchanges at the most. Remote PEs see the leaf as soon as they
    /// walk; one whose TLB holds what was there before may take one more fault. This PE's TLB holds it no more.
    ///
    /// # Errors
    /// [`RelaxError`]: nothing has changed.
    // In one piece with its caller, as an install.
    #[inline(always)]
    pub fn relax(
        &self,
        guard: &Guard<'_>,
        ipa: Ipa,
        access: Prot,
        allowed: impl Allows,
    ) -> Result<Relaxed, RelaxError> {
        let allowed = &allowed;
        if !self.domain.owns(guard) {
            return Err(RelaxError::ForeignGuard);
        }
        if !self.geometry.contains(ipa) {
            return Err(RelaxError::BeyondIpaSize { ipa, bits: self.geometry.ipa_bits() });
        }
        let block =
            |slot: &Slot, level, _| Break(self.relax_block(slot, level, ipa, access, allowed));
        match self.descend(guard, ipa, Level::L3, block) {
            Continue(slot) => self.relax_slot(slot, Level::L3, ipa, access, allowed),
            Break(end) => end,
        }
    }

    /// The same, apart from the code for pages, in which the level is a constant.
    #[cold]
    #[inline(never)]
    fn relax_block(
        &self,
        slot: &Slot,
        level: Level,
        ipa: Ipa,
        access: Prot,
        allowed: &impl Allows,
    ) -> Result<Relaxed, RelaxError> {
        self.relax_slot(slot, level, ipa, access, allowed)
    }

    /// Grants in the slot where a walk ended.
    #[inline(always)]
    fn relax_slot(
        &self,
        slot: &Slot,
        level: Level,
        ipa: Ipa,
        access: Prot,
        allowed: &impl Allows,
    ) -> Result<Relaxed, RelaxError> {
        let mut seen = slot.load(&self.arch);
        for _ in 0..ATTEMPTS {
            let leaf = match seen.as_own_leaf(level) {
                Some(leaf) if !leaf.has_no_translation() => leaf,
                _ => return self.no_own_leaf(seen, level, ipa, access),
            };
            let whole = allowed.in_leaf(level);
            // Where that is not the same everywhere, the leaf may at the most have the access already.
            let most = whole.unwrap_or(access);
            let grant = leaf.grant(access, most, self.encoding.xnx, self.geometry.hw_update());
            let now = match (grant, whole) {
                (Grant::Becomes(now), Some(_)) => now,
                (Grant::Present, _) => {
                    self.forget_rarely(ipa, level);
                    return Ok(Relaxed::Spurious(leaf));
                }
                // Who has published such a policy is about to split the block.
                (_, None) => return Err(RelaxError::Retry { level, seen }),
                (Grant::Denied, Some(allowed)) => {
                    return Err(RelaxError::Denied { access, allowed });
                }
                (Grant::Unsettled, Some(_)) => return Err(RelaxError::Unsettled { level }),
            };
            if leaf.is_contiguous() {
                return Err(RelaxError::Run { ipa: ipa.align_down(run_bytes(level)), level });
            }
            // SAFETY: (1) a live leaf may be given AF and permissions without a lock, from the value read: the same
            // translation, and settled.
            match unsafe { self.arch.compare_exchange(slot, leaf.bits(), now.bits()) } {
                Some(Ok(_)) => {
                    if leaf.is_accessed() {
                        self.forget(ipa, level);
                    } else {
                        self.arch.dsb(Dsb::IshSt);
                    }
                    return Ok(Relaxed::Granted(now));
                }
                Some(Err(changed)) => seen = Descriptor::from_bits(changed),
                None => return Err(RelaxError::Unsupported),
            }
        }
        Err(RelaxError::Retry { level, seen })
    }

    /// A slot that holds no leaf of the VM's. One of others' allows what it allowed from the start, unless it is being split.
    #[cold]
    #[inline(never)]
    fn no_own_leaf(
        &self,
        seen: Descriptor,
        level: Level,
        ipa: Ipa,
        access: Prot,
    ) -> Result<Relaxed, RelaxError> {
        let Some(leaf) = seen
            .as_leaf(level)
            .filter(|leaf| leaf.owner() == Owner::Other && !leaf.has_no_translation())
        else {
            return Err(no_leaf(seen, level));
        };
        match leaf.grant(access, access, self.encoding.xnx, self.geometry.hw_update()) {
            Grant::Present => {
                self.forget(ipa, level);
                Ok(Relaxed::Spurious(leaf))
            }
            _ => {
                let attributes = leaf.attributes(self.encoding);
                let allowed = attributes.map_or(Prot::empty(), |attributes| attributes.prot());
                Err(RelaxError::Denied { access, allowed })
            }
        }
    }

    /// What this PE's TLB may hold of the leaf goes.
    #[inline(always)]
    fn forget(&self, ipa: Ipa, level: Level) {
        let level = match level {
            Level::L3 => LeafLevel::L3,
            Level::L2 => LeafLevel::L2,
            Level::L1 => LeafLevel::L1,
            Level::L0 => LeafLevel::Unknown,
        };
        if (self.arch.vttbr() ^ self.root.get()) & BADDR == 0 {
            relax_running(&self.arch, self.geometry.features().caps, ipa.page(), level);
        } else {
            self.forget_elsewhere(ipa, level);
        }
    }

    /// On a PE where another VM runs, or none.
    #[cold]
    #[inline(never)]
    fn forget_elsewhere(&self, ipa: Ipa, level: LeafLevel) {
        self.tlb().relax_local(ipa.page(), level);
    }

    #[cold]
    #[inline(never)]
    fn forget_rarely(&self, ipa: Ipa, level: Level) {
        self.forget(ipa, level);
    }
}

/// What stands where a leaf was expected.
#[cold]
fn no_leaf(seen: Descriptor, level: Level) -> RelaxError {
    match seen.view(level) {
        View::Empty | View::Note(_) | View::Foreign(_) => RelaxError::Nothing { level, seen },
        // A leaf has nT here; a table was linked a moment ago.
        View::Leaf(_) | View::Table(_) | View::Busy(_) | View::Drain(_) | View::Dead => {
            RelaxError::Retry { level, seen }
        }
    }
}
