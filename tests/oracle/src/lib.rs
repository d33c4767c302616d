//! A model of AArch64 stage-2 translation that judges how tables are maintained.
//!
//! Emulators and most real machines hide most mistakes of TLB maintenance: their TLBs are small, their
//! walks are quick, their stores are visible at once. This model is the opposite of such a machine: it
//! holds every entry that the architecture allows any PE to hold, for as long as it allows, and
//! reports what could go wrong on some machine. It is a model of the architecture, not of QEMU.
//!
//! ```text
//!  your code ──▶ Arch, Memory of OracleMachine ─┐
//!  a recording of a real run (recorded) ────────┼─▶ Event ─▶ Model ─▶ Verdict, with the events
//!  a trace by hand (shape) ─────────────────────┘              ▲       that led to it
//!  hardware that updates descriptors (walker) ─────────────────┘
//! ```
//!
//! Rule names are those of the Arm ARM, DDI 0487 M.a.a.
//!
//! # A trace and its verdict
//!
//! A page is taken away, and the flush goes by IPA only. What the TLB made of stage 2 *and* the guest's
//! stage 1 is found by VA, and stays:
//!
//! ```
//! use mmu_oracle::shape::parse;
//! use mmu_oracle::{Defect, Machine, Model};
//!
//! let mut model = Model::new(Machine::default());
//! let trace = "
//!     0 alloc L1
//!     0 alloc L2
//!     0 alloc L3
//!     0 write L2[0] = table L3
//!     0 write L1[0] = table L2
//!     0 write L3[5] = page 0x80000 rw
//!     0 dsb ish
//!     0 vttbr 1
//!     0 isb
//!     0 write L3[5] = drain atomic
//!     0 dsb ishst
//!     0 tlbi ipas2e1is 0x5000
//!     0 dsb ish
//!     0 isb
//!     0 flushed 0x5000 0x1000";
//! for line in trace.lines().filter(|line| !line.is_empty()) {
//!     model.apply(&parse(line).unwrap());
//! }
//!
//! let [verdict] = model.verdicts() else { panic!() };
//! assert_eq!(verdict.defect, Defect::StaleTranslation);
//! assert_eq!(
//!     verdict.to_string(),
//!     "event 14: stale-translation: PE 0 may hold 0x807ff for IPA 0x5000, level 3, VMID 1, \
//! combined with stage 1 (RGPPYH, RPSMWS, RYNJCP, RBLDZX: maintenance completes with a DSB of its \
//! scope)
//!       5  0 write 0x4028 = 0x807ff
//!       7  0 vttbr 1 root 0x1000
//!       8  0 isb
//!       9  0 write 0x4028 = 0x2 atomic
//!      10  0 dsb ishst
//!      11  0 tlbi ipas2e1is 0x5000
//!      12  0 dsb ish
//!      13  0 isb
//! >    14  0 flushed 0x5000 0x1000 of VMID 1"
//! );
//! ```
//!
//! # How to use it
//!
//! * Run code that is written against the traits of crate `stage2` on an [`OracleMachine`], on plain
//!   threads or under a model checker (loom, shuttle), and look at [`OracleMachine::verdicts`].
//! * Or make [`Event`]s yourself, feed them to a [`Model`], look at [`Model::verdicts`].
//! * Or record a real run as JSON lines, and read it with [`recorded`].
//! * [`walker`] adds hardware that sets access flags and dirty state while all that goes on.
//!
//! # What the model assumes
//!
//! * Any PE may at any moment walk for any IPA under the VMIDs that its VTTBR_EL2 names, and cache all
//!   that it reads; between a write of VTTBR_EL2 and the next context synchronization, under old and new
//!   value. From an intermediate entry that it holds it may walk on, whatever became of the table.
//! * A store to a descriptor takes effect at some moment between its execution and the end of the
//!   next DSB of its PE. A release store, or an atomic one, comes after the PE's earlier stores.
//! * An invalidation removes what the architecture requires it to remove, and nothing else; it is
//!   complete for other PEs at a DSB of its PE and scope, for the PE itself at the context
//!   synchronization after that. What a walk could fetch again at once is not removed.
//! * Events come in one total order. For a trace with an order for each PE only, see [`recorded`].
//! * Software runs at EL2; a PE that executes it walks for no guest until it returns \[RNRJPP\]. EL2's own tables, where a trace
//!   names their root, every PE may walk at any moment.
//!
//! # What it does not model
//!
//! * Stage 1, other than that combined entries exist; execute permission and instruction fetch; caches
//!   of instructions or data; memory contents (two pages always count as different).
//! * Granules other than 4 KiB, 52-bit addresses (FEAT_LPA2), FEAT_D128, Realms and Secure state, nXS,
//!   Outer Shareable invalidations, FEAT_HAFT, FEAT_HDBSS, indirect permissions, VMALLWS2.
//! * Intermediate caches that are indexed by the PA of the descriptor (without FEAT_nTLBPA).
//! * Descriptors with a clear access flag where hardware does not manage it: they are not held, so
//!   memory that only they name counts as out of reach.
//! * The weak order of loads: an event is where its access took effect.
//!
//! # Verdicts
//!
//! | verdict | what could go wrong on some machine |
//! | --- | --- |
//! | [`StaleTranslation`](Defect::StaleTranslation) | a flush is relied on, and a PE may still translate by what was there before |
//! | [`WrongVmid`](Defect::WrongVmid) | likewise, because the flush acted on another VMID, or an undetermined one |
//! | [`ConflictingAddress`](Defect::ConflictingAddress), [`ConflictingMemory`](Defect::ConflictingMemory), [`ConflictingSize`](Defect::ConflictingSize) | two entries for one IPA at once: break-before-make was violated |
//! | [`EmptyTooEarly`](Defect::EmptyTooEarly) | a slot that anybody may fill, while what it held, or what was below, is in use |
//! | [`TableStillWalked`](Defect::TableStillWalked), [`TableReused`](Defect::TableReused), [`TableListed`](Defect::TableListed), [`TableScribbled`](Defect::TableScribbled) | a table page given back, made a table again, put in a list, or written, while a walk may enter it |
//! | [`FrameStillReachable`](Defect::FrameStillReachable) | memory given back that a guest may still read or write |
//! | [`VmidStillCached`](Defect::VmidStillCached), [`WalkAcrossSwitch`](Defect::WalkAcrossSwitch) | entries of one VM under the VMID of another |
//! | [`WriteToNoTable`](Defect::WriteToNoTable), [`WriteToDeadSlot`](Defect::WriteToDeadSlot) | a descriptor written where the writer has no business |
//! | [`PublishedBeforeFilled`](Defect::PublishedBeforeFilled), [`NotYetVisible`](Defect::NotYetVisible) | a table linked before its content, a write relied on before its DSB |
//! | [`DirtyAtRisk`](Defect::DirtyAtRisk), [`LostDirty`](Defect::LostDirty), [`InventedDirty`](Defect::InventedDirty), [`UpdateOverwritten`](Defect::UpdateOverwritten) | dirty state that says less, or more, than what was written |
//! | [`ImpossibleUpdate`](Defect::ImpossibleUpdate) | the trace is wrong: no hardware does this |
//! | [`LockOrder`](Defect::LockOrder), [`LockState`](Defect::LockState), [`UnmatchedTransaction`](Defect::UnmatchedTransaction) | conventions of the software, broken |
//!
//! Each has a rule: [`Defect::rule`]. The table of shapes that the model is held to is in the book.

#![deny(missing_docs)]
#![deny(missing_debug_implementations)]

pub mod descriptor;
pub mod event;
mod event_text;
mod invalidate;
pub mod machine;
mod memory;
pub mod model;
pub mod recorded;
pub mod shape;
mod tlb;
pub mod verdict;
pub mod walker;

pub use event::Event;
pub use machine::OracleMachine;
pub use model::{Machine, Model};
pub use verdict::{Defect, Verdict};
