//! A model of AArch64 stage-2 translation that judges how tables are maintained.
//!
//! Emulators and most real machines hide most mistakes of TLB maintenance: their TLBs are small, their
//! walks are quick, their stores are visible at once. This model is the opposite of such a machine: it
//! holds every entry that the architecture allows any PE to hold, for as long as it allows, and
//! reports what could go wrong on some machine. It is a model of the architecture, not of QEMU.
//!
//! Feed [`Event`]s to a [`Model`]; read its [`Verdict`]s. [`shape`] has a short language for traces, in
//! which the crate's own tests are written. Rule names are those of the Arm ARM, DDI 0487 M.a.a.

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
