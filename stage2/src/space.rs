//! One VM's stage-2 tables, and what can be done to them.
//!
//! | file | what | takes |
//! | --- | --- | --- |
//! | `space/install.rs` | populate one slot, from a fault handler | a guard |
//! | `space/relax.rs` | give a leaf what an access needs, from a fault handler | a guard |
//! | `space/scratch.rs` | show the scratch page where nothing is, from a fault handler; put memory in its place | a guard; a claim |
//! | `space/lookup.rs` | what translates an address | a guard |
//! | `space/tables.rs` | find a table; from there to one that may be written | a guard, then the table's lock |
//! | `space/map.rs` | map a range | a claim |
//! | `space/unmap.rs` | take a range away, and give its tables back | a claim |
//! | `space/split.rs` | blocks become tables of smaller leaves | a claim |
//! | `space/collapse.rs` | tables of alike leaves become blocks | a claim |
//! | `space/copy.rs` | pages that lie anywhere move into a block | a claim |
//! | `space/contiguous.rs` | runs of 16 alike leaves that a TLB may hold as one | a claim |
//! | `space/prot.rs` | what leaves allow and have recorded changes, under one flush | a guard and a claim |
//! | `space/dirty.rs` | which pages were written since somebody asked last | a claim; EL2's own writes a guard |
//! | `space/age.rs` | which pages were accessed since it was last asked | a claim |
//! | `space/annotate.rs` | notes in slots where nothing is mapped | a claim |
//! | `space/window.rs` | EL2's own way to the VM's memory: built, filled by EL2's faults | a guard |
//! | `space/visit.rs` | see all that is there | a guard |
//! | `space/destroy.rs` | the end | everything |
//!
//! Operations on ranges are *prepare, then commit*: what can fail happens before anything that a guest can
//! see. They work in batches of a stated number of slots and say where they stopped; between two
//! batches no lock, guard, Busy, Drain or Dead of theirs is left, and no flush is owed.

use crate::account::{Account, Ledger};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Locked};
use crate::attr::{Attributes, Encoding, Write};
use crate::claim::{Claim, ClaimError, Claims};
use crate::cost::Pinned;
use crate::descriptor::{LeafTemplate, Owner};
use crate::epoch::{Domain, Guard};
use crate::features::Bbm;
use crate::flush::Stage2Tlb;
use crate::geometry::Geometry;
use crate::memory::{Memory, Table};
use crate::vmid::{self, EntryError, Loan, Running};
use crate::window::Window;

mod age;
mod alike;
mod annotate;
mod batch;
mod collapse;
mod content;
mod contiguous;
mod copy;
mod destroy;
mod dirty;
mod error;
mod install;
mod lookup;
mod map;
mod pins;
mod prot;
mod relax;
mod revoke;
mod scratch;
mod split;
mod tables;
mod unmap;
mod visit;
mod window;
pub use age::{AgeError, Aged, IdlePages, WorkingSet};
pub use alike::Obstacle;
pub use batch::{Batch, Progress};
pub use collapse::{Collapse, CollapseError};
pub use content::Extent;
pub use contiguous::{Contiguous, ContiguousError};
pub use copy::{Blocks, CopyCollapse, CopyError, CopyObstacle};
pub use destroy::{DestroyError, Leak};
pub use dirty::{Bitmaps, DirtyError, Harvested, LogBlocks, Stopped, WriteError};
pub use error::{InstallError, MapError, MappingError, NewSpaceError, NotClaimed, UnmapError};
pub use install::{Frames, Install, Tally};
pub use lookup::{Lookup, Translation};
pub use prot::{Engine, Modified, ProtError, Relax, Started, Taken, Transaction};
pub use relax::{Allows, RelaxError, Relaxed};
pub use scratch::{ReplaceError, Replaced, Replacements, Scratch};
pub use split::SplitError;
pub use tables::{LockedTable, RoLocked, RoTable, RwTable, Stale};
pub use unmap::{Notes, Release};
pub use visit::{Census, Visit};

/// The stage-2 tables of one VM. Guards of one [`Epochs`](crate::Epochs), `'e`, protect them.
#[derive(Debug)]
pub struct Space<'e, M, A> {
    geometry: Geometry,
    encoding: Encoding,
    shape: Shape,
    loan: Loan<'e>,
    root: Pa,
    domain: Domain<'e>,
    claims: Claims,
    pins: pins::Pins,
    pending: prot::Pending,
    ledger: Ledger,
    memory: M,
    arch: A,
    log: dirty::Log,
    window: Window,
}

/// What to map at an address, checked and encoded: see [`Space::mapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    template: LeafTemplate,
    /// Of the tables that it was checked for.
    shape: Shape,
}

/// What tables must have in common to take the same [`Mapping`]: the level where walks start, and how
/// attributes are encoded. A block of 1 GiB in a slot of 2 MiB would be another block; write-back in the encoding
/// of FEAT_S2FWB is another type of memory without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape(u8);

impl Shape {
    const fn of(start: Level, Encoding { fwb, xnx }: Encoding) -> Self {
        Self(start as u8 | (fwb as u8) << 2 | (xnx as u8) << 3)
    }
}

impl<'e, M: Memory, A: Arch> Space<'e, M, A> {
    /// Empty tables for a VM, to be walked under guards of `domain`. It has no VMID until a CPU enters it;
    /// then it is lent one of `vmids`. Allocates the root.
    ///
    /// # Errors
    /// [`NewSpaceError`]: no memory for the root, or VMIDs that the machine cannot tell apart.
    pub fn new(
        geometry: Geometry,
        vmids: &'e vmid::Allocator,
        domain: Domain<'e>,
        memory: M,
        arch: A,
    ) -> Result<Self, NewSpaceError> {
        let bits = geometry.features().vmid_bits();
        if let Some(vmid) = vmids.beyond(bits) {
            return Err(NewSpaceError::VmidTooWide { vmid, bits });
        }
        let pages = geometry.root_tables();
        let root = memory.alloc_table(pages).ok_or(NewSpaceError::OutOfTables { pages })?;
        let encoding = Encoding::of(geometry.features());
        Ok(Self {
            geometry,
            encoding,
            shape: Shape::of(geometry.start(), encoding),
            loan: Loan::new(vmids),
            root,
            domain,
            claims: Claims::new(),
            pins: pins::Pins::default(),
            pending: prot::Pending::new(),
            ledger: Ledger::default(),
            memory,
            arch,
            log: dirty::Log::new(),
            window: Window::default(),
        })
    }

    /// Gives every flush of this VM one form, for measurements; `None` leaves it to the [cost
    /// model](crate::cost).
    pub fn pin_flushes(&self, pinned: Option<Pinned>) {
        self.pins.pin_flushes(pinned);
    }

    /// Has sizes changed as on a machine with no more than this level of FEAT_BBM, for measurements and tests;
    /// `None` is what this machine has. Which of the ways there are is in `space/split.rs`.
    pub fn pin_bbm(&self, most: Option<Bbm>) {
        self.pins.pin_bbm(most);
    }

    /// The level of FEAT_BBM by which sizes are changed.
    fn bbm(&self) -> Bbm {
        let has = self.geometry.features().bbm;
        self.pins.bbm().map_or(has, |most| has.min(most))
    }

    /// The shape, and VTCR_EL2 with it.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How attributes are encoded: HCR_EL2.FWB must agree with it.
    #[must_use]
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The first page of the root.
    #[must_use]
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// This CPU runs the VM's vCPU `vcpu` until the returned token is dropped: VTTBR_EL2 holds the VM's
    /// root and a VMID that stays the VM's. Exits to EL2 and returns to the guest are part of it.
    ///
    /// Quick where the VM has a VMID already: no lock, a DMB and a DSB. Where it has none it is lent
    /// one, and if all are lent, every TLB of the machine is emptied first. If another vCPU of the VM ran
    /// last on this CPU, this CPU's stage-1 entries of the VM go. Ends with a context synchronization.
    ///
    /// # Errors
    /// [`EntryError`]: another allocator's CPU, or no VMID that is free. No VM runs here then, and
    /// VTTBR_EL2 holds VMID 0.
    ///
    /// # Safety
    /// 1. This is the CPU of `cpu`, and until the token is dropped a guest that runs on it is vCPU `vcpu`
    ///    of this VM, under [`Geometry::vtcr`] and with HCR_EL2.FB.
    /// 2. Meanwhile nobody else writes VTTBR_EL2 here; who has run a guest here before under a value of his
    ///    own runs it no more.
    pub unsafe fn enter<'r>(
        &'r self,
        cpu: &'r mut vmid::Cpu<'_>,
        vcpu: u16,
    ) -> Result<Running<'r, A>, EntryError> {
        // SAFETY: (1) the caller's clauses.
        unsafe { self.loan.enter(&self.arch, self.root, cpu, vcpu) }
    }

    /// The PE's primitives that this space uses.
    pub const fn arch(&self) -> &A {
        &self.arch
    }

    /// Where this space's table pages come from.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Flushes of this VM's translations.
    #[must_use]
    pub fn tlb(&self) -> Stage2Tlb<'_, A> {
        Stage2Tlb {
            arch: &self.arch,
            loan: &self.loan,
            root: self.root,
            caps: self.geometry.features().caps,
            pinned: self.pins.flushes(),
            ledger: &self.ledger,
        }
    }

    /// What has happened to these tables so far.
    #[must_use]
    pub fn account(&self) -> Account {
        self.ledger.account()
    }

    /// Adds what installs did to the account: by their caller, when it suits.
    pub fn credit(&self, tally: &Tally) {
        self.ledger.credit(tally);
    }

    /// Adds so many scratch leaves that were [installed](Self::install_scratch) to the account: likewise.
    pub fn credit_scratch(&self, leaves: u64) {
        self.ledger.scratched(leaves);
    }

    /// A kind of leaf for [`install`](Self::install): made once, used for many.
    ///
    /// # Errors
    /// [`MappingError`]: a level that this VM's walks do not reach, a single member of a contiguous
    /// run, attributes that the machine cannot express, memory of others that a fault would have to change.
    pub const fn mapping(
        &self,
        level: Level,
        attributes: &Attributes,
        owner: Owner,
    ) -> Result<Mapping, MappingError> {
        let start = self.geometry.start();
        if (level as u8) < start as u8 {
            return Err(MappingError::Level { level, start });
        }
        match self.template(level, attributes, owner) {
            Ok(template) => Ok(Mapping { template, shape: self.shape }),
            Err(error) => Err(error),
        }
    }

    const fn template(
        &self,
        level: Level,
        attributes: &Attributes,
        owner: Owner,
    ) -> Result<LeafTemplate, MappingError> {
        if attributes.contiguous {
            return Err(MappingError::Contiguous);
        }
        let settled = attributes.accessed && !matches!(attributes.write, Write::Clean);
        if matches!(owner, Owner::Other) && !settled {
            return Err(MappingError::Unsettled);
        }
        match LeafTemplate::new(level, attributes, self.encoding, owner) {
            Ok(template) => Ok(template),
            Err(error) => Err(MappingError::Descriptor(error)),
        }
    }

    /// The right to change what is mapped in `range`, for one operation at a time.
    ///
    /// # Errors
    /// [`ClaimError`]: another operation's claim overlaps, too many are under way, or the range ends
    /// beyond the IPA size.
    pub fn claim(&self, range: IpaRange) -> Result<Claim<'_>, ClaimError> {
        let bits = self.geometry.ipa_bits();
        if range.end().get() > 1 << bits {
            return Err(ClaimError::BeyondIpaSize { wanted: range, bits });
        }
        self.arch.about_to_lock(Locked::Claims);
        self.claims.claim(range)
    }

    /// The range of a claim of this VM in which an operation may begin at `from`.
    fn claimed(&self, claim: &Claim<'_>, from: Ipa) -> Result<IpaRange, NotClaimed> {
        let range = claim.range();
        if !claim.is_of(&self.claims) {
            return Err(NotClaimed::ForeignClaim);
        }
        if !(range.contains(from) && from.page() == from) {
            return Err(NotClaimed::From { from, range });
        }
        Ok(range)
    }

    /// The root page that serves `ipa`.
    #[inline(always)]
    fn root_table<'t>(&'t self, _guard: &'t Guard<'_>, ipa: Ipa) -> &'t Table {
        // SAFETY: (1) the root was allocated in `new` and lives as long as the space.
        unsafe { self.memory.table(self.geometry.root_page(self.root, ipa)) }
    }

    /// A table that a live descriptor pointed to.
    #[inline(always)]
    fn linked_table<'t>(&'t self, _guard: &'t Guard<'_>, pa: Pa) -> &'t Table {
        // SAFETY: (1) found linked under a guard of this space's domain, so it stays allocated while
        // the guard lives.
        unsafe { self.memory.table(pa) }
    }
}

#[cfg(test)]
mod tests;
