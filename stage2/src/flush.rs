//! The flush sequences of stage 2, each with its barriers in the order that the architecture asks.
//!
//! Stage 2 is cached in three ways \[RRVJDB\]: stage-2 entries by IPA, combined stage-1-and-2 entries by
//! VA, and intermediate table entries. `IPAS2*` reaches the first only; the combined ones go with
//! the VMID's stage 1, `VMALLE1IS`, and only **after** the stage-2 entries have gone, because a
//! walk in between would make a new combined entry from an old stage-2 one:
//!
//! ```text
//! DSB ISHST        the descriptor writes are visible to every walker
//! TLBI IPAS2E1IS   stage-2 entries of the range
//! DSB ISH          they are gone on every PE; no walk can use one any more
//! TLBI VMALLE1IS   combined entries
//! DSB ISH          gone, and every access that used one has completed
//! ```
//!
//! It is needed in full even while the guest's stage 1 is off. A PE's DSB counts for its own stores
//! and TLBIs only \[RPSMWS\], so whoever changed the tables flushes, on the same PE.
//!
//! All of it acts on the VMID in VTTBR_EL2. If that is another VM's, the flush switches, flushes
//! and restores. A completed flush returns a [`Flushed`], against which memory may be given back.

use crate::addr::{Ipa, IpaRange};
use crate::arch::{Arch, Dsb};
use crate::features::Caps;
use crate::tlbi::{LeafLevel, PageOperand, Tlbi, by_ipa};

/// Proof of a completed flush. Whoever holds one made it on this PE: it is `!Send`.
#[derive(Debug)]
pub struct Flushed(core::marker::PhantomData<*const ()>);

impl Flushed {
    const DONE: Self = Self(core::marker::PhantomData);
}

/// Flushes of one VM's translations.
#[derive(Debug)]
pub struct Stage2Tlb<'a, A> {
    arch: &'a A,
    vttbr: u64,
    caps: Caps,
}

impl<'a, A: Arch> Stage2Tlb<'a, A> {
    /// For the VM whose VTTBR_EL2 value is `vttbr`, on a machine with `caps`.
    ///
    /// The caller's code does not move to another PE between a change and the end of its flush.
    #[must_use]
    pub const fn new(arch: &'a A, vttbr: u64, caps: Caps) -> Self {
        Self { arch, vttbr, caps }
    }

    /// After an unmap, or a change that takes permission away, of leaves in `range`.
    ///
    /// Returns once no PE translates by what the slots held. `level` may name the level of the
    /// leaves only if all of them are at that level and no table was linked or unlinked.
    pub fn reduce(&self, range: IpaRange, level: LeafLevel) -> Flushed {
        self.under_vmid(|arch| {
            arch.dsb(Dsb::IshSt);
            by_ipa(range, level, self.caps).for_each(|op| arch.tlbi(op));
            arch.dsb(Dsb::Ish);
            arch.tlbi(Tlbi::Vmalle1Is);
            arch.dsb(Dsb::Ish);
        })
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
        // A local flush is no ground to give memory back: the token ends here.
        let _local = self.under_vmid(|arch| {
            arch.dsb(Dsb::IshSt);
            arch.tlbi(Tlbi::Ipas2e1(PageOperand::new(ipa, level, self.caps)));
            arch.dsb(Dsb::Nsh);
            arch.tlbi(Tlbi::Vmalle1);
            arch.dsb(Dsb::Nsh);
        });
    }

    /// Everything of the VM, both stages: before its VMID serves another VM, or its tables end.
    pub fn vm(&self) -> Flushed {
        self.under_vmid(|arch| {
            arch.dsb(Dsb::IshSt);
            arch.tlbi(Tlbi::Vmalls12e1Is);
            arch.dsb(Dsb::Ish);
        })
    }

    /// Runs `flush` while VTTBR_EL2 holds the VM's VMID.
    fn under_vmid(&self, flush: impl FnOnce(&A)) -> Flushed {
        let before = self.arch.vttbr();
        let switch = before != self.vttbr;
        if switch {
            // SAFETY: (1) restored below, before anything else runs on this PE.
            unsafe { self.arch.set_vttbr(self.vttbr) };
            self.arch.isb();
        }
        flush(self.arch);
        if switch {
            // SAFETY: (2) what stood there before.
            unsafe { self.arch.set_vttbr(before) };
        }
        // The context that follows must not use what was fetched before the flush.
        self.arch.isb();
        Flushed::DONE
    }
}

/// Everything of every VM: once at boot, when TLBs may hold anything, and when VMIDs start anew.
pub fn all<A: Arch>(arch: &A) -> Flushed {
    arch.dsb(Dsb::IshSt);
    arch.tlbi(Tlbi::Alle1Is);
    arch.dsb(Dsb::Ish);
    arch.isb();
    Flushed::DONE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::host::{Event, Host};
    use crate::{Level, arch};

    const VTTBR: u64 = 7 << 48 | 0x8000_0000;

    fn run(before: u64, flush: impl FnOnce(&Stage2Tlb<'_, Host>)) -> Vec<Event> {
        let host = Host::new();
        // SAFETY: (1) no guest runs on the host.
        unsafe { arch::Arch::set_vttbr(&host, before) };
        let _ = host.take_log();
        flush(&Stage2Tlb::new(&host, VTTBR, Caps::empty()));
        assert_eq!(arch::Arch::vttbr(&host), before, "VTTBR_EL2 is as it was");
        host.take_log()
    }

    fn page() -> IpaRange {
        IpaRange::page_of(Ipa::new(0x4000_0000)).unwrap()
    }

    #[test]
    fn reduce_flushes_stage_2_before_combined_entries() {
        let operand = PageOperand::new(page().start(), LeafLevel::Unknown, Caps::empty());
        let log = run(VTTBR, |tlb| _ = tlb.reduce(page(), LeafLevel::Only(Level::L3)));
        assert_eq!(
            log,
            [
                Event::Dsb(Dsb::IshSt),
                Event::Tlbi(Tlbi::Ipas2e1Is(operand), VTTBR),
                Event::Dsb(Dsb::Ish),
                Event::Tlbi(Tlbi::Vmalle1Is, VTTBR),
                Event::Dsb(Dsb::Ish),
                Event::Isb,
            ]
        );
    }

    #[test]
    fn another_vms_flush_switches_the_vmid_and_back() {
        let other = 9 << 48 | 0x9000_0000;
        let log = run(other, |tlb| _ = tlb.vm());
        assert_eq!(
            log,
            [
                Event::SetVttbr(VTTBR),
                Event::Isb,
                Event::Dsb(Dsb::IshSt),
                Event::Tlbi(Tlbi::Vmalls12e1Is, VTTBR),
                Event::Dsb(Dsb::Ish),
                Event::SetVttbr(other),
                Event::Isb,
            ]
        );
    }

    #[test]
    fn relax_stays_on_this_pe() {
        let log = run(VTTBR, |tlb| tlb.relax_local(page().start(), LeafLevel::Unknown));
        assert!(log.contains(&Event::Tlbi(Tlbi::Vmalle1, VTTBR)));
        let completing = log.iter().filter(|e| **e == Event::Dsb(Dsb::Nsh)).count();
        assert_eq!(completing, 2);
    }

    #[test]
    fn boot_flushes_every_vmid() {
        let host = Host::new();
        let _ = all(&host);
        assert_eq!(
            host.take_log(),
            [
                Event::Dsb(Dsb::IshSt),
                Event::Tlbi(Tlbi::Alle1Is, 0),
                Event::Dsb(Dsb::Ish),
                Event::Isb
            ]
        );
    }
}
