//! AArch64 stage-2 translation tables for hypervisors.
//!
//! A hypervisor gives a guest its memory through stage 2: tables that turn what the guest takes
//! for physical addresses ([`Ipa`]) into machine addresses ([`Pa`]). This crate owns those tables for
//! a VM. It contains no hypervisor; it reaches the machine through two small traits,
//! [`Memory`] (where table pages are) and [`Arch`] (a PE's atomics, barriers and TLB maintenance).
//!
//! # One fault, from end to end
//!
//! ```text
//!  guest touches a page      Memory            Space                        Arch
//!  ─────────────────────────────────────────────────────────────────────────────────────
//!  translation fault ──▶ enter a Guard (epoch)
//!                        find the Region: RAM, populated on demand
//!                        Space::install ──▶ load slot ... descend            load
//!                            alloc_table ◀─ Empty above level 3 ─ try_set ─▶ compare_exchange
//!                        Frames::take    ◀─ Empty at level 3 ─── try_set ─▶ compare_exchange
//!                                           visible to all walkers ────────▶ DSB ISHST
//!                        leave the Guard
//!  resumes            ◀─
//! ```
//!
//! No lock is taken and nothing is flushed: a translation that faults is never cached. That is what
//! allows the handler to run nested under any lock.
//!
//! # Where to read
//!
//! * [`descriptor`]: the states of a slot, the heart of the design, and who may change which.
//! * [`slot`]: the rules of concurrent change, and the two operations that obey them.
//! * [`space`]: the walk that populates.
//! * [`flush`], [`cost`] and [`tlbi`]: what the architecture asks when a translation ends.
//! * [`vmid`]: which VM has which VMID, and for how long.
//! * [`coherency`]: what caches need when memory changes hands.
//! * [`epoch`]: how a decision and the change that it leads to are kept together.
//! * [`scan`]: which pages are worth a block.
//! * [`fault`]: what is done about each abort of a guest.
//! * [`window`]: EL2's own addresses for a VM's memory.
//! * [`geometry`], [`attr`], [`features`], [`region`]: the shapes; [`errata`]: what is wrong with which CPU.
//!
//! Rule names in brackets, such as \[RXCLRD\], are those of the Arm Architecture Reference Manual,
//! DDI 0487 issue M.a.a; section numbers too.

#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]
#![deny(missing_debug_implementations)]

pub mod account;
pub mod addr;
pub mod arch;
pub mod attr;
pub mod claim;
pub mod coherency;
pub mod cost;
pub mod descriptor;
pub mod epoch;
pub mod errata;
pub mod fault;
pub mod features;
pub mod flush;
mod gather;
pub mod geometry;
pub mod lock;
pub mod memory;
pub mod region;
pub mod scan;
pub mod slot;
pub mod space;
#[cfg(not(any(loom, shuttle)))]
mod sync;
#[cfg(any(loom, shuttle))]
pub mod sync;
pub mod tlbi;
pub mod vmid;
pub mod window;

pub use account::Account;
pub use addr::{Ipa, IpaRange, Level, PAGE_SIZE, Pa, Vmid};
pub use arch::{Arch, Locked, Observation};
pub use attr::{Attributes, Encoding, MemType, Prot, Write};
pub use claim::{Claim, ClaimError};
pub use coherency::Coherency;
pub use cost::Pinned;
pub use descriptor::{Change, Descriptor, Former, Leaf, LeafTemplate, Note, Owner, View};
pub use epoch::{Domain, Epochs, Guard};
pub use errata::Errata;
pub use features::{Bbm, Caps, Features, IdRegisters};
pub use flush::{Flushed, Stage2Tlb};
pub use geometry::{Geometry, HwUpdate};
pub use lock::TableMeta;
pub use memory::{Memory, Table};
pub use region::{Backing, Region, RegionMap};
pub use scan::Scan;
pub use slot::Slot;
pub use space::{
    Frames, Install, InstallError, Mapping, Notes, Progress, RelaxError, Relaxed, Release, Scratch,
    Space, Tally, UnmapError,
};
