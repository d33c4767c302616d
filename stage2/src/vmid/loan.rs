//! What a VM has of the allocator: a VMID that it may lose, unless it runs or flushes.

use super::{Allocator, Cpu, EntryError, Place, Running, Tag, running};
use crate::addr::{Pa, Vmid};
use crate::arch::{Arch, Locked};
use crate::sync::{AtomicU64, Ordering, const_fn};

/// A VM's VMID, whichever it is at the moment.
#[derive(Debug)]
pub(crate) struct Loan<'v> {
    vmids: &'v Allocator,
    tag: AtomicU64,
}

impl<'v> Loan<'v> {
    const_fn! {
        /// None yet.
        pub(crate) const fn new(vmids: &'v Allocator) -> Self {
            Self { vmids, tag: AtomicU64::new(Tag::NONE) }
        }
    }

    pub(super) fn tag(&self) -> Option<Tag> {
        Tag::of(self.tag.load(Ordering::Acquire))
    }

    /// Runs the VM on this CPU: [`Space::enter`](crate::Space::enter).
    ///
    /// # Safety
    /// 1. As there.
    pub(crate) unsafe fn enter<'r, A: Arch>(
        &'r self,
        arch: &'r A,
        root: Pa,
        cpu: &'r mut Cpu<'_>,
        vcpu: u16,
    ) -> Result<Running<'r, A>, EntryError> {
        if !cpu.is_of(self.vmids) {
            return Err(EntryError::ForeignCpu);
        }
        let place: &Place = cpu.place();
        running::vacate(arch, self.vmids, place);
        let quick = self.tag().filter(|tag| {
            place.run(Some(*tag));
            self.vmids.counts(*tag)
        });
        let tag = match quick {
            Some(tag) => tag,
            None => self.ask(arch, place)?,
        };
        // SAFETY: (1) the caller's clause.
        Ok(unsafe { Running::begin(arch, self.vmids, place, tag.vmid, root, vcpu) })
    }

    /// Asks the allocator under its lock, and borrows a VMID if the VM has none.
    #[cold]
    fn ask<A: Arch>(&self, arch: &A, place: &Place) -> Result<Tag, EntryError> {
        arch.about_to_lock(Locked::Vmids);
        let mut next = self.vmids.next.lock();
        let tag = match self.vmids.confirm(self.tag()) {
            Some(tag) => tag,
            None => self.vmids.lend(arch, &mut next)?,
        };
        place.run(Some(tag));
        self.tag.store(tag.bits(), Ordering::Release);
        Ok(tag)
    }

    /// Keeps the VMID the VM's until the value is dropped; `None` if it has none, and so no TLB has
    /// anything of the VM. The caller has executed a DSB ISH after the changes that it flushes.
    pub(crate) fn pin<A: Arch>(&self, arch: &A) -> Option<Pin<'v>> {
        let tag = self.tag()?;
        let mut pin = Pin::take(self.vmids, tag);
        if !self.vmids.counts(tag) {
            arch.about_to_lock(Locked::Vmids);
            let _next = self.vmids.next.lock();
            let tag = self.vmids.confirm(self.tag())?;
            self.tag.store(tag.bits(), Ordering::Release);
            pin.change(tag);
        }
        Some(pin)
    }
}

/// A VMID that stays its VM's as long as this lives: for a flush.
#[derive(Debug)]
pub(crate) struct Pin<'v> {
    place: &'v Place,
    vmid: Vmid,
}

impl<'v> Pin<'v> {
    /// Pins a tag that may have expired.
    fn take(vmids: &'v Allocator, tag: Tag) -> Self {
        // There are as many places as CPUs, and no CPU flushes twice at once: one is free, or about to be.
        loop {
            if let Some(place) = vmids.places.iter().find(|place| place.flush(tag)) {
                return Self { place, vmid: tag.vmid };
            }
            core::hint::spin_loop();
        }
    }

    /// Under the lock.
    fn change(&mut self, tag: Tag) {
        self.place.flush_instead(tag);
        self.vmid = tag.vmid;
    }

    pub(crate) const fn vmid(&self) -> Vmid {
        self.vmid
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.place.flushed();
    }
}
