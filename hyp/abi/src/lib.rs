//! What the hypervisor and its test guests agree on.
//!
//! Three things only: the hypervisor calls that a test guest may make (SMCCC, vendor specific hypervisor
//! service range), where things lie in a guest's physical address space, and which interrupts they have.
//! Constants and nothing else, so that a guest of a few hundred bytes can depend on this crate.

#![no_std]
#![deny(missing_docs)]

pub mod call;
pub mod interrupt;
pub mod map;
pub mod measure;
pub mod probe;

/// The largest number of virtual CPUs that a VM may have.
pub const MAX_VCPUS: usize = 8;
