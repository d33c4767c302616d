//! The flush sequences of stage 2, each with its barriers in the order that the architecture asks.
//!
//! Stage 2 is cached in three ways \[RRVJDB\]: stage-2 entries by IPA, combined stage-1-and-2 entries by
//! VA, and intermediate table entries. `IPAS2*` reaches the first only; the combined ones go with
//! the VMID's stage 1, `VMALLE1IS`, and only **after** the stage-2 entries have gone, because a
//! walk in between would make a new combined entry from an old stage-2 one:
//!
//! ```text
//! DSB ISH          the descriptor writes are visible to every walker; walks of this PE's guest have ended
//! the VMID         read only now, and pinned until the end: see `vmid`
//! TLBI IPAS2E1IS   stage-2 entries of the range
//! DSB ISH          they are gone on every PE; no walk can use one any more
//! TLBI VMALLE1IS   combined entries
//! DSB ISH          gone, and every access that used one has completed
//! ISB              for this PE, too
//! ```
//!
//! It is needed in full even while the guest's stage 1 is off. Which invalidations by IPA there are, or
//! whether all of the VMID goes instead, is for `cost` to say. A DSB makes the stores of its own PE
//! observable \[RSPVBD\] and finishes the TLBIs of its own PE \[RYNJCP\], so whoever changed the tables
//! flushes, on the same PE. The first one waits for loads, too: the tag from which the VMID comes is
//! read after it.
//!
//! All of it acts on the VMID in VTTBR_EL2. If that is another VM's, the flush switches, flushes and
//! restores; the first DSB has ended the walks of the guest that ran here \[IQVPYJ\], which would
//! otherwise fill a TLB under the wrong VMID. A VM that has no VMID has nothing in any TLB, and its flush
//! is the first DSB. A completed flush returns a [`Flushed`], against which memory may be given
//! back.
//!
//! # On PEs with errata
//!
//! With [`Errata::REPEAT_TLBI`](crate::Errata::REPEAT_TLBI) the last DSB may end before accesses that were
//! translated by an invalidated entry have been observed. The entries are gone; what is missing is the
//! wait. One more broadcast TLBI and DSB makes up for any number of TLBIs before it, and which one does not
//! matter (Arm's notices for CVE-2025-10263). It is one of stage 1, as what may still be under way was translated
//! by combined entries, which an invalidation by IPA does not concern; Linux makes the same choice ("arm64: tlb:
//! Optimize `ARM64_WORKAROUND_REPEAT_TLBI`"):
//!
//! ```text
//! …; TLBI VMALLE1IS; DSB ISH; TLBI VMALLE1IS; DSB ISH
//! ```
//!
//! With [`Errata::SPECULATIVE_AT`](crate::Errata::SPECULATIVE_AT) a PE may walk the tables of EL1's registers
//! under a VMID that is not theirs, and keep the result. So the switch to another VM's VTTBR_EL2 becomes
//!
//! ```text
//! DSB ISH                      the guest's walks have ended
//! TCR_EL1.EPD0 = EPD1 = 1; ISB; SCTLR_EL1.M = 1; ISB      none can start: they would fault at once
//! VTTBR_EL2 = the other VM's; ISB; the flush; VTTBR_EL2 = what it was; ISB
//! SCTLR_EL1 as it was; ISB; TCR_EL1 as it was; ISB
//! ```
//!
//! Stage 1 is turned on because without it there is no walk to disable: an address would go straight to
//! stage 2. The order back keeps "stage 1 on, walks enabled" from existing while the guest has stage 1 off.
//! (The sequence is that of Linux' `__tlb_switch_to_guest` without VHE.)

use crate::account::Ledger;
use crate::addr::{Ipa, IpaRange, Pa, Vmid};
use crate::arch::{Arch, Dsb, Observation};
use crate::cost::{self, Form, Pinned};
use crate::errata::Errata;
use crate::features::Caps;
use crate::tlbi::{LeafLevel, PageOperand, Tlbi, by_ipa};
use crate::vmid::{Loan, vttbr};

/// Proof of a completed flush. Whoever holds one made it on this PE: it is `!Send`.
#[derive(Debug)]
pub struct Flushed(core::marker::PhantomData<*const ()>);

impl Flushed {
    const DONE: Self = Self(core::marker::PhantomData);
}

/// What is invalidated once more where a DSB may end too early: it has just been, so next to nothing is lost.
const ONCE_MORE: Tlbi = Tlbi::Vmalle1Is;

/// Flushes of one VM's translations: see [`Space::tlb`](crate::Space::tlb).
#[derive(Debug)]
pub struct Stage2Tlb<'a, A> {
    pub(crate) arch: &'a A,
    pub(crate) loan: &'a Loan<'a>,
    pub(crate) root: Pa,
    pub(crate) caps: Caps,
    pub(crate) pinned: Option<Pinned>,
    pub(crate) ledger: &'a Ledger,
}

impl<A: Arch> Stage2Tlb<'_, A> {
    /// After an unmap, or a change that takes permission away, of leaves in `range`.
    ///
    /// Returns once no PE translates by what the slots held. `level` may name the level of the
    /// leaves only if all of them are at that level and no table was linked or unlinked.
    pub fn reduce(&self, range: IpaRange, level: LeafLevel) -> Flushed {
        self.reduce_all(core::iter::once(range), level)
    }

    /// [`reduce`](Self::reduce) of several ranges by one sequence.
    pub(crate) fn reduce_all(
        &self,
        ranges: impl Iterator<Item = IpaRange> + Clone,
        level: LeafLevel,
    ) -> Flushed {
        let caps = match cost::choose(self.pinned, ranges.clone(), level, self.caps) {
            Form::Vmid => return self.vm(),
            Form::ByIpa(caps) => caps,
        };
        let each = ranges.clone().flat_map(|range| by_ipa(range, level, caps));
        let flushed = self.under_vmid(|arch| {
            each.for_each(|op| self.tlbi(op));
            arch.dsb(Dsb::Ish);
            self.tlbi(Tlbi::Vmalle1Is);
            arch.dsb(Dsb::Ish);
            once_more(arch, |op| self.tlbi(op));
        });
        ranges.for_each(|range| self.observe(flushed, Some(range)));
        Flushed::DONE
    }

    /// After a table that covered `range` was unlinked or replaced: any level, whole span.
    ///
    /// Returns once no PE holds an entry of the table, not even as the next step of a walk.
    pub fn table(&self, range: IpaRange) -> Flushed {
        self.reduce(range, LeafLevel::Unknown)
    }

    /// After permission was granted at `ipa`: on this PE only.
    ///
    /// Other PEs may still hold the old entry and take one more fault, which finds nothing to do.
    pub fn relax_local(&self, ipa: Ipa, level: LeafLevel) {
        // A local flush is no ground to give memory back: there is no token.
        self.under_vmid(|arch| {
            self.tlbi(Tlbi::Ipas2e1(PageOperand::new(ipa, level, self.caps)));
            arch.dsb(Dsb::Nsh);
            self.tlbi(Tlbi::Vmalle1);
            arch.dsb(Dsb::Nsh);
        });
    }

    /// Everything of the VM, both stages: before its tables end.
    pub fn vm(&self) -> Flushed {
        let flushed = self.under_vmid(|arch| {
            self.tlbi(Tlbi::Vmalls12e1Is);
            arch.dsb(Dsb::Ish);
            once_more(arch, |op| self.tlbi(op));
        });
        self.observe(flushed, None);
        Flushed::DONE
    }

    /// Everything of the VM, both stages, on this PE only: after a TLB conflict abort, which the guest's next access
    /// would take again. It removes every entry that matched \[RBLRKC, IJCCRT\].
    pub fn vm_local(&self) {
        // A local flush is no ground to give memory back: there is no token.
        self.under_vmid(|arch| {
            self.tlbi(Tlbi::Vmalls12e1);
            arch.dsb(Dsb::Nsh);
        });
    }

    fn tlbi(&self, op: Tlbi) {
        self.ledger.tlbi(&op);
        self.arch.tlbi(op);
    }

    fn observe(&self, vmid: Option<Vmid>, range: Option<IpaRange>) {
        self.ledger.flushed(range.as_ref());
        if let Some(vmid) = vmid {
            self.arch.observe(Observation::Flushed { vmid, range });
        }
    }

    /// Makes the descriptor writes visible, then runs `flush` while VTTBR_EL2 holds the VM's VMID, which
    /// it returns; if the VM has none, nothing is left to do.
    fn under_vmid(&self, flush: impl FnOnce(&A)) -> Option<Vmid> {
        self.arch.dsb(Dsb::Ish);
        let pin = self.loan.pin(self.arch)?;
        let (before, own) = (self.arch.vttbr(), vttbr(pin.vmid(), self.root));
        if before == own {
            flush(self.arch);
        } else {
            let speculates = self.arch.errata().contains(Errata::SPECULATIVE_AT);
            let held = speculates.then(|| self.arch.hold_walks());
            // SAFETY: (1) restored below, before any guest runs; (2) the DSB above.
            unsafe { self.arch.set_vttbr(own) };
            self.arch.isb();
            flush(self.arch);
            // SAFETY: (1) what stood there before; (2) no guest has run since.
            unsafe { self.arch.set_vttbr(before) };
            if let Some(held) = held {
                self.arch.isb();
                // SAFETY: (1) this PE's, from above; (2) restored, and the ISB.
                unsafe { self.arch.release_walks(held) };
            }
        }
        // For the issuing PE a TLBI is complete after DSB and context synchronization [RBLDZX]; it
        // also puts the restored VMID in force.
        self.arch.isb();
        Some(pin.vmid())
    }
}

/// After the DSB that ends a flush by broadcast: where it may end before every access that used an
/// invalidated entry has been observed, one more invalidation and DSB.
fn once_more<A: Arch>(arch: &A, tlbi: impl FnOnce(Tlbi)) {
    if arch.errata().contains(Errata::REPEAT_TLBI) {
        tlbi(ONCE_MORE);
        arch.dsb(Dsb::Ish);
    }
}

/// [`Stage2Tlb::relax_local`], for the fault handler of a VM whose root VTTBR_EL2 has on this PE.
///
/// Next to it stands a VMID that is the VM's for as long as that is so: nothing has to be looked up, pinned or switched.
/// It is not in the [account](crate::account): PEs that fault side by side would share a line for it.
#[inline(always)]
pub(crate) fn relax_running<A: Arch>(arch: &A, caps: Caps, ipa: Ipa, level: LeafLevel) {
    arch.dsb(Dsb::IshSt);
    arch.tlbi(Tlbi::Ipas2e1(PageOperand::new(ipa, level, caps)));
    arch.dsb(Dsb::Nsh);
    arch.tlbi(Tlbi::Vmalle1);
    arch.dsb(Dsb::Nsh);
    arch.isb();
}

/// Everything of every VM. [`Vmids`](crate::vmid::Vmids) do it themselves where they need it: when they
/// start anew, and before the first VM runs.
pub fn all<A: Arch>(arch: &A) -> Flushed {
    arch.dsb(Dsb::Ish);
    arch.tlbi(Tlbi::Alle1Is);
    arch.dsb(Dsb::Ish);
    once_more(arch, |op| arch.tlbi(op));
    arch.isb();
    Flushed::DONE
}

#[cfg(test)]
pub(crate) mod tests;
