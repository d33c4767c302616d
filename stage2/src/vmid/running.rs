//! The time for which a CPU runs a VM.

use core::marker::PhantomData;

use super::{Allocator, Place};
use crate::addr::{Pa, Vmid};
use crate::arch::{Arch, Dsb};
use crate::errata::Errata;
use crate::tlbi::Tlbi;

/// This CPU runs a VM: VTTBR_EL2 holds the VM's root and VMID, and the VMID stays the VM's.
///
/// It lives from before the first entry to the guest to after its last exit; between the two there is
/// nothing to do. Dropping it ends the guest's walks, writes VMID 0 to VTTBR_EL2 and gives the VMID up.
///
/// Forgetting it leaves the CPU to the VM until it enters another one.
///
/// Where the PE has [`Errata::SPECULATIVE_AT`], stage-1 walks of EL1&0 are disabled in TCR_EL1 when it is
/// dropped: save EL1's registers before, and load those of the next guest after it was entered,
/// TCR_EL1 last.
#[derive(Debug)]
#[must_use = "the VM runs here as long as this lives"]
pub struct Running<'r, A: Arch> {
    arch: &'r A,
    vmids: &'r Allocator,
    place: &'r Place,
    vmid: Vmid,
    root: Pa,
    /// It stands for the CPU.
    not_send: PhantomData<*const ()>,
}

impl<'r, A: Arch> Running<'r, A> {
    /// `vmid` is pinned in `place`; VTTBR_EL2 is no VM's.
    ///
    /// # Safety
    /// 1. As of [`Space::enter`](crate::Space::enter).
    pub(super) unsafe fn begin(
        arch: &'r A,
        vmids: &'r Allocator,
        place: &'r Place,
        vmid: Vmid,
        root: Pa,
        vcpu: u16,
    ) -> Self {
        let running = Self { arch, vmids, place, vmid, root, not_send: PhantomData };
        // Either a flush finds the tag that was stored before, or this CPU's walks find what it changed.
        arch.dsb(Dsb::Ish);
        // SAFETY: (1) the caller's clause; (2) the DSB above.
        unsafe { arch.set_vttbr(running.vttbr()) };
        arch.isb();
        if place.is_another(vmid, vcpu) {
            arch.tlbi(Tlbi::Vmalle1);
            arch.dsb(Dsb::Nsh);
            arch.isb();
        }
        running
    }

    /// The VMID: the VM's as long as this lives.
    #[must_use]
    pub const fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// What VTTBR_EL2 holds. CnP is 0.
    #[must_use]
    pub const fn vttbr(&self) -> u64 {
        vttbr(self.vmid, self.root)
    }
}

impl<A: Arch> Drop for Running<'_, A> {
    fn drop(&mut self) {
        vacate(self.arch, self.vmids, self.place);
    }
}

/// The value of VTTBR_EL2 for a VMID and a root. CnP is 0.
pub(crate) const fn vttbr(vmid: Vmid, root: Pa) -> u64 {
    (vmid.get() as u64) << 48 | root.get()
}

/// No VM runs here any more: neither VTTBR_EL2 nor a walk in flight has anything of the last one.
pub(super) fn vacate<A: Arch>(arch: &A, vmids: &Allocator, place: &Place) {
    if arch.vttbr() != vmids.idle {
        arch.dsb(Dsb::Ish);
        if arch.errata().contains(Errata::SPECULATIVE_AT) {
            // Until the caller writes the next guest's TCR_EL1: nobody takes these back.
            let _ = arch.hold_walks();
        }
        // SAFETY: (1) no guest runs under VMID 0: one is entered by `Running::begin`, after its own value
        // was written; (2) the DSB above.
        unsafe { arch.set_vttbr(vmids.idle) };
        arch.isb();
    }
    place.run(None);
}
