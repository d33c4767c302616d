//! What the allocator has of each CPU.

use core::marker::PhantomData;
// What only one CPU at a time gets at: the holder of the allocator's lock, or the CPU of the place. Model
// checkers need not watch it.
use core::sync::atomic::AtomicU64 as Plain;

use super::{Allocator, Tag, running};
use crate::addr::Vmid;
use crate::arch::Arch;
use crate::sync::{AtomicBool, AtomicU64, Ordering, const_fn};

/// One CPU's part of an allocator, alone on its cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub struct Place {
    /// Tag of the VM that the CPU runs.
    running: AtomicU64,
    /// Tag of a VM that some CPU flushes: there are as many of these as CPUs, and which one a flush takes
    /// is of no matter.
    flushing: AtomicU64,
    /// VMIDs that were pinned at the last roll-over and at the one before, by the parity of the generation
    /// that began; the generation is that in which each was lent.
    kept: [[Plain; 2]; 2],
    joined: AtomicBool,
    /// Which vCPU ran last under a VMID, by its low bits: the VMID and the number. The CPU's own.
    ran: [Plain; RAN],
}

/// VMIDs of which a CPU remembers the last vCPU.
const RAN: usize = 4;

/// One CPU's right to run guests. There is one for each CPU, and it stays on it.
#[derive(Debug)]
pub struct Cpu<'v> {
    place: &'v Place,
    vmids: &'v Allocator,
    /// It stands for the CPU.
    not_sync: PhantomData<core::cell::Cell<()>>,
}

impl Place {
    const_fn! {
        pub(super) const fn new() -> Self {
            Self {
                running: AtomicU64::new(Tag::NONE),
                flushing: AtomicU64::new(Tag::NONE),
                kept: [const { [const { Plain::new(Tag::NONE) }; 2] }; 2],
                joined: AtomicBool::new(false),
                ran: [const { Plain::new(0) }; RAN],
            }
        }
    }

    pub(super) fn join<'v>(&'v self, vmids: &'v Allocator) -> Option<Cpu<'v>> {
        // Acquire: what the last holder remembered of vCPUs is known here.
        if self.joined.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Cpu { place: self, vmids, not_sync: PhantomData })
    }

    /// The CPU is about to run the VM with this tag, or runs none any more. Release: what it did under the
    /// former tag comes before.
    pub(super) fn run(&self, tag: Option<Tag>) {
        self.running.store(tag.map_or(Tag::NONE, Tag::bits), Ordering::Release);
    }

    /// Pins a tag for a flush, unless something is pinned here already.
    pub(super) fn flush(&self, tag: Tag) -> bool {
        let free = Tag::NONE;
        self.flushing
            .compare_exchange(free, tag.bits(), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// The flush that has pinned something here goes on under another tag.
    pub(super) fn flush_instead(&self, tag: Tag) {
        self.flushing.store(tag.bits(), Ordering::Relaxed);
    }

    /// The flush that has pinned something here is over. Release: all of it came before.
    pub(super) fn flushed(&self) {
        self.flushing.store(Tag::NONE, Ordering::Release);
    }

    /// What is pinned here. Acquire: if it is nothing, what was done under it is over.
    pub(super) fn pinned(&self) -> [Option<Tag>; 2] {
        [&self.running, &self.flushing].map(|pin| Tag::of(pin.load(Ordering::Acquire)))
    }

    /// What stays lent when `generation` begins. Under the lock.
    pub(super) fn keep(&self, generation: u64, tags: [Option<Tag>; 2]) {
        for (kept, tag) in self.kept[generation as usize % 2].iter().zip(tags) {
            kept.store(tag.map_or(Tag::NONE, Tag::bits), Ordering::Relaxed);
        }
    }

    /// The generation in which a VMID was lent that stayed lent when `generation` began. Under the lock.
    pub(super) fn kept(&self, generation: u64, vmid: Vmid) -> Option<u64> {
        let kept = self.kept[generation as usize % 2].iter();
        let tags = kept.filter_map(|kept| Tag::of(kept.load(Ordering::Relaxed)));
        tags.filter(|tag| tag.vmid == vmid).map(|tag| tag.generation).next()
    }

    /// Remembers who runs here under a VMID; whether another vCPU may have run last. A VMID that changes
    /// hands brings nothing with it: the TLBs were emptied.
    pub(super) fn is_another(&self, vmid: Vmid, vcpu: u16) -> bool {
        let ran = &self.ran[usize::from(vmid.get()) % RAN];
        let now = u64::from(vmid.get()) << 16 | u64::from(vcpu);
        let before = ran.load(Ordering::Relaxed);
        ran.store(now, Ordering::Relaxed);
        before != now
    }
}

impl<'v> Cpu<'v> {
    /// No VM runs on this CPU any more, for who has forgotten the [`Running`](super::Running) that said
    /// so: what dropping it does.
    pub fn leave<A: Arch>(&mut self, arch: &A) {
        running::vacate(arch, self.vmids, self.place);
    }

    pub(super) fn is_of(&self, vmids: &Allocator) -> bool {
        core::ptr::eq(self.vmids, vmids)
    }

    pub(super) const fn place(&self) -> &'v Place {
        self.place
    }
}

impl Drop for Cpu<'_> {
    fn drop(&mut self) {
        self.place.joined.store(false, Ordering::Release);
    }
}
