//! What the hypervisor decides without touching the machine.
//!
//! Everything here is a pure function or a small state machine over plain values, so it is tested on
//! the host: what the machine looks like ([`fdt`]), what of its memory is free ([`layout`]), what the
//! user asked for ([`config`]), where a guest goes ([`image`]) and what it is told ([`guest_dtb`]), how
//! its exits read ([`syndrome`], [`mmio`]) and its own faults ([`el2_fault`]), how its own walks went ([`stage1`]), what places of its memory have apart ([`patches`]), where it has none ([`recovery`]), what is done to it in the background ([`churn`]), what its calls and registers answer ([`psci`], [`idreg`],
//! [`pl011`]), how its interrupts go ([`vgic`]), how the run is told to a person and to a program ([`diagnosis`], [`report`]),
//! how its steps are recorded ([`trace`]), who wants the timer of a CPU when ([`alarms`]), which of its vCPUs runs ([`turns`]), how all CPUs of a VM come to stand still ([`standstill`]), and who reached for what is not there ([`violation`]).
//!
//! Input comes from people, from QEMU and from guests, and none of it is trusted: it is bounded, it is
//! answered with a typed error that has the numbers in it, and it never panics. The lints below hold the
//! code to that; tests are exempt.

#![no_std]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod alarms;
pub mod caches;
pub mod churn;
pub mod config;
pub mod diagnosis;
pub mod el2_fault;
pub mod fdt;
pub mod guest_dtb;
pub mod idreg;
pub mod image;
pub mod layout;
pub mod mask;
pub mod mmio;
pub mod patches;
pub mod pl011;
pub mod psci;
pub mod range;
pub mod recovery;
pub mod report;
pub mod stage1;
pub mod standstill;
pub mod syndrome;
pub mod timer;
pub mod trace;
pub mod turns;
pub mod vgic;
pub mod violation;

pub use range::{IpaRange, PaRange};
