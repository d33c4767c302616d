//! VMIDs: which VM has which, and when it may serve another one.
//!
//! TLB entries are tagged with the VMID in VTTBR_EL2 \[RNWYRD\]. There are 255 of them, or 65535, and
//! possibly more VMs in a machine's life. So a VM has no VMID of its own: it is *lent* one when a CPU
//! enters it. VMIDs are lent in ascending order; when all are lent, the allocator *rolls over*: a new
//! *generation* begins, all TLBs are emptied (`ALLE1IS`), and all VMIDs are free again but those
//! that are *pinned*. A VMID is pinned while a CPU runs the VM, from before the write of VTTBR_EL2 to
//! after its replacement, and while a flush acts on it. A VM keeps its VMID as long as it is pinned,
//! and then as long as no roll-over comes. VMID 0 belongs to no VM: it stands in VTTBR_EL2
//! where none runs.
//!
//! # What a VM remembers
//!
//! A *tag*: its VMID and the generation in which it was confirmed. If that is the present generation,
//! the VMID is the VM's: one compare, no lock. If it is an earlier one, the allocator knows under its
//! lock: of each VMID that was pinned at the last roll-over it has the generation in which it
//! was lent (its *birth*). A tag of that VMID that is not older than that is of the same loan, because
//! while a VMID is pinned it is not lent again. Such a tag is confirmed for the present generation. Any
//! other tag has expired: the VM has no VMID.
//!
//! # Entering against a roll-over
//!
//! ```text
//! CPU 0 enters VM a (tag 7.5)           CPU 1 rolls over
//! running[0] = 7.5                      generation = 8
//! DMB ISH                               DMB ISH
//! generation still 7? then enter        running[0]? then keep 5
//! ```
//!
//! This is store buffering with both barriers: it cannot be that CPU 0 reads 7 *and* CPU 1 reads an older
//! `running[0]`. Without either barrier both can, and VMID 5 runs VM a on CPU 0 while it is lent to another:
//! two VMs share TLB entries. If CPU 0 reads 8, it takes the lock and asks there.
//!
//! What a roll-over reads from `running` comes before the invalidation, and a DSB makes it so. In the
//! other order a guest that leaves in between is not kept, but has filled a TLB again:
//!
//! ```text
//! CPU 0 runs VM a under 5               CPU 1 rolls over
//!                                       ALLE1IS, DSB
//! walks, caches under 5
//! leaves: DSB, VTTBR_EL2 = 0,
//!   running[0] = 0
//!                                       running[0] is 0: 5 is free, and lent to VM b
//!                                       <- CPU 0's entries of VM a are found by VM b
//! ```
//!
//! For the same reason a CPU that leaves ends its walks with a DSB \[RLFHQG, IQVPYJ\] and replaces
//! VTTBR_EL2 before it clears `running`.
//!
//! # Flushing against a roll-over
//!
//! A flush pins the VMID as a CPU does, in a place for flushes, until its last DSB. It writes VTTBR_EL2 where
//! another VM's value stands, and then VM a's root is there under a VMID that must be VM a's:
//!
//! ```text
//! CPU 0 flushes VM a (tag 7.5)          CPU 1
//! reads VMID 5                          rolls over, lends 5 to VM b
//! VTTBR_EL2 = 5 and the root of VM a    runs VM b under 5
//! TLBI under 5                          <- VM b's TLB entries go, and VM a's may come in their place
//! ```
//!
//! And it reads the tag only after the DSB that makes the changed descriptors visible; whoever confirms
//! or lends a tag executes one after storing it and before VTTBR_EL2 holds it:
//!
//! ```text
//! CPU 0 flushes VM a                    CPU 1 enters VM a, whose tag has expired
//! slot = 0                              tag = 8.9
//! DSB ISH                               DSB ISH
//! reads the tag: expired, or 8.9        VTTBR_EL2 = 9, walks: reads the slot
//! ```
//!
//! Again it cannot be that CPU 0 misses VMID 9 and CPU 1's walk misses the change.
//!
//! **If the tag has expired there is nothing to invalidate.** The VM's last VMID was not pinned at a
//! roll-over since, so no CPU ran it then, and `ALLE1IS` took everything that was cached of it; that was
//! complete before the roll-over gave back the lock, under which the tag was found to have expired. No CPU
//! has entered it since, or the tag would have been confirmed; and who enters it next walks after the
//! DSB. So such a flush is the DSB alone.
//!
//! # Lock
//!
//! A ticket lock, the last in every order: who holds it takes no other and waits for nobody. Entering takes it
//! only after a roll-over, or for the VM's first VMID; so does a flush after a roll-over.
//!
//! # Several vCPUs of a VM on one CPU
//!
//! Stage-1 and combined entries are tagged with VMID and ASID, not with the vCPU. Two vCPUs may use one ASID
//! for different tables, and invalidate on their own CPU only. So a CPU remembers which vCPU it ran
//! last under a VMID, and when another one of the VM comes it empties its own TLB of the VMID's stage 1 (KVM:
//! `last_vcpu_ran`). What it remembers is a few VMIDs; one that it has forgotten counts as
//! another vCPU.
//!
//! # Instruction caches
//!
//! They are PIPT or VIPT \[RXBHSB\], with physical tags, and need maintenance only when a location that
//! holds instructions is written \[RXLZJK\]: not when a VMID changes hands, nor when another vCPU comes, as
//! long as HCR_EL2.FB makes a guest's own maintenance reach all CPUs. (Earlier issues of the manual knew a
//! VMID-tagged form, VPIPT. CTR_EL0.L1Ip no longer has it.)
//!
//! Linux' allocators of VMIDs (`arch/arm64/kvm/vmid.c`) and ASIDs (`mm/context.c`) solve the same problem.

use core::fmt;

use crate::addr::{Pa, Vmid};
use crate::arch::{Arch, Observation};
use crate::features::Features;
use crate::flush;
use crate::sync::{AtomicU64, Lock, Ordering, array, const_fn, fence};

mod loan;
mod place;
mod running;
pub(crate) use loan::Loan;
pub use place::{Cpu, Place};
pub use running::Running;
pub(crate) use running::vttbr;

/// The VMIDs of a machine, for up to `CPUS` CPUs.
pub type Vmids<const CPUS: usize> = Allocator<[Place; CPUS]>;

/// The VMIDs of a machine: see [`Vmids`], which is this with a number of CPUs.
#[derive(Debug)]
pub struct Allocator<P: ?Sized = [Place]> {
    first: u16,
    last: u16,
    /// What VTTBR_EL2 holds where no VM runs.
    idle: u64,
    /// From 1 on, in 48 bits: enough for a million roll-overs a second for nine years.
    generation: AtomicU64,
    /// The next VMID to be lent, if it is not kept; past `last` when all are.
    next: Lock<u32>,
    places: P,
}

/// A VMID, and a generation in which it was the VM's. As a word: 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    generation: u64,
    vmid: Vmid,
}

impl Tag {
    const VMID_BITS: u32 = 16;
    const NONE: u64 = 0;

    const fn bits(self) -> u64 {
        self.generation << Self::VMID_BITS | self.vmid.get() as u64
    }

    fn of(bits: u64) -> Option<Self> {
        let vmid = Vmid::new(bits as u16, Self::VMID_BITS)?;
        Some(Self { generation: bits >> Self::VMID_BITS, vmid })
    }
}

/// Why a VM was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// The CPU's place is another allocator's.
    ForeignCpu,
    /// Every VMID is pinned. It cannot be where there are at least twice as many VMIDs as CPUs, because a
    /// CPU pins two at the most: that of the VM that it runs, and that of one that it flushes.
    Exhausted {
        /// VMIDs that there are.
        vmids: u32,
        /// CPUs that there may be.
        cpus: usize,
    },
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignCpu => f.write_str("the CPU belongs to another allocator of VMIDs"),
            Self::Exhausted { vmids, cpus } => {
                write!(f, "all VMIDs ({vmids}, for {cpus} CPUs) are in use at this moment")
            }
        }
    }
}

impl core::error::Error for EntryError {}

impl<const CPUS: usize> Vmids<CPUS> {
    const_fn! {
        /// All VMIDs of a machine with `features`, which are those of all its PEs: 1 to 255 or 65535.
        ///
        /// Every VM of the machine takes its VMIDs from here. What TLBs hold now is of no matter: the
        /// first VM to be entered empties them.
        #[must_use]
        pub const fn new(features: &Features) -> Self {
            Self::within(1, if features.vmid_bits() == 16 { u16::MAX } else { 0xff })
        }
    }

    const_fn! {
        /// Those from `first` to `last`, which is included: the others have another use.
        #[must_use]
        pub const fn between(first: Vmid, last: Vmid) -> Self {
            Self::within(first.get(), last.get())
        }
    }

    const_fn! {
        /// One VMID, for a hypervisor with one VM. A second VM can run when the first no longer does;
        /// everything is flushed first.
        #[must_use]
        pub const fn only(vmid: Vmid) -> Self {
            Self::within(vmid.get(), vmid.get())
        }
    }

    const_fn! {
        const fn within(first: u16, last: u16) -> Self {
            Self {
                first,
                last,
                idle: 0,
                generation: AtomicU64::new(1),
                // As if all were lent: the first loan is a roll-over, which empties the TLBs.
                next: Lock::new(last as u32 + 1),
                places: array![Place::new(); CPUS],
            }
        }
    }

    /// Where no VM runs, VTTBR_EL2 holds VMID 0 and this root, instead of 0: tables that map nothing, in
    /// case something makes a PE walk there.
    #[must_use]
    pub const fn idle_root(mut self, root: Pa) -> Self {
        self.idle = root.get();
        self
    }

    /// The right of CPU `index` to run guests; `None` beyond `CPUS`, or while somebody holds it.
    #[must_use]
    pub fn join(&self, index: usize) -> Option<Cpu<'_>> {
        self.places.get(index)?.join(self)
    }
}

impl Allocator {
    /// The largest VMID that may be lent, if it has more than `bits` bits.
    pub(crate) fn beyond(&self, bits: u32) -> Option<Vmid> {
        Vmid::new(self.last, Tag::VMID_BITS).filter(|last| Vmid::new(last.get(), bits).is_none())
    }

    /// Whether a pinned tag counts: it is of the present generation, and so any roll-over that begins later
    /// finds it pinned. The caller has just pinned it.
    fn counts(&self, tag: Tag) -> bool {
        fence(Ordering::SeqCst);
        tag.generation == self.generation.load(Ordering::Relaxed)
    }

    /// The tag with the present generation, if its VMID is still of the same loan. Under the lock.
    fn confirm(&self, tag: Option<Tag>) -> Option<Tag> {
        let tag = tag?;
        let generation = self.generation.load(Ordering::Relaxed);
        let birth = self.birth(generation, tag.vmid).unwrap_or(generation);
        (birth <= tag.generation).then_some(Tag { generation, ..tag })
    }

    /// The generation in which a VMID was lent that was kept when `generation` began. Under the lock.
    fn birth(&self, generation: u64, vmid: Vmid) -> Option<u64> {
        self.places.iter().find_map(|place| place.kept(generation, vmid))
    }

    /// Lends a VMID. Under the lock, which `next` comes from.
    fn lend<A: Arch>(&self, arch: &A, next: &mut u32) -> Result<Tag, EntryError> {
        // Twice: after a roll-over all are free but those that are kept.
        for rolled_over in [false, true] {
            if rolled_over {
                self.roll_over(arch, next);
            }
            let generation = self.generation.load(Ordering::Relaxed);
            while let Some(candidate) = u16::try_from(*next).ok().filter(|n| *n <= self.last) {
                *next += 1;
                let free = Vmid::new(candidate, Tag::VMID_BITS)
                    .filter(|vmid| self.birth(generation, *vmid).is_none());
                if let Some(vmid) = free {
                    arch.observe(Observation::Lent { vmid });
                    return Ok(Tag { generation, vmid });
                }
            }
        }
        let vmids = u32::from(self.last).saturating_sub(self.first.into()) + 1;
        Err(EntryError::Exhausted { vmids, cpus: self.places.len() })
    }

    /// Begins a generation: no VMID is lent but those that are pinned, and no TLB knows the others. Under
    /// the lock.
    fn roll_over<A: Arch>(&self, arch: &A, next: &mut u32) {
        let ending = self.generation.load(Ordering::Relaxed);
        self.generation.store(ending + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for place in &self.places {
            // A tag that was pinned by who is about to find that it has expired keeps nothing.
            let kept = place.pinned().map(|tag| {
                let tag = tag?;
                let birth = self.birth(ending, tag.vmid).unwrap_or(ending);
                (birth <= tag.generation).then_some(Tag { generation: birth, ..tag })
            });
            place.keep(ending + 1, kept);
        }
        // It begins with a DSB, which waits for the loads above, too.
        let _ = flush::all(arch);
        *next = self.first.into();
    }
}

#[cfg(test)]
mod tests;
