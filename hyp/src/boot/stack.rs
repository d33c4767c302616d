//! Stacks: one slot a CPU, a guard page under each of its two stacks.
//!
//! ```text
//! slot, 128 KiB aligned    0       4K         16K      64K           128K
//!                          | guard | emergency | guard |    stack       |
//! ```
//!
//! The largest frames are those of splits and collapses, which note what they have broken: some 30 KiB.
//!
//! The guards are not mapped in EL2's final tables. The alignment is part of the design: the
//! vectors test one bit of the stack pointer to learn whether the CPU is still on its stack, and
//! go to the emergency stack when it is not (see `exception/vectors.rs`).

use core::cell::UnsafeCell;
use core::ops::Range;

use hyp_abi::MAX_VCPUS;

/// Bytes of a slot; also its alignment, and known to the linker script.
pub(crate) const SLOT: usize = 128 << 10;
/// Offset of the top of the emergency stack.
pub(crate) const EMERGENCY_TOP: usize = 16 << 10;
/// The bit of the stack pointer that is set on the stack and clear below it.
pub(crate) const ON_STACK_BIT: u32 = 16;

const PAGE: usize = 4096;

/// One CPU's slot.
#[repr(C, align(131072))]
pub(crate) struct Slot(UnsafeCell<[u8; SLOT]>);

// SAFETY: (1) only the CPU that owns a slot touches it, through its stack pointer; Rust code
// only takes addresses of it.
unsafe impl Sync for Slot {}

/// All slots, by CPU number.
#[unsafe(link_section = ".stacks")]
pub(crate) static STACKS: [Slot; MAX_VCPUS] =
    [const { Slot(UnsafeCell::new([0; SLOT])) }; MAX_VCPUS];

/// What an address in the stacks' memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The page under a CPU's stack: the stack overflowed.
    Guard,
    /// The page under a CPU's emergency stack.
    EmergencyGuard,
    /// A stack.
    Stack,
}

/// The first address of a CPU's slot.
fn base(cpu: usize) -> u64 {
    STACKS[cpu].0.get() as u64
}

/// The stack pointer a CPU starts with.
pub(crate) fn top(cpu: usize) -> u64 {
    base(cpu) + SLOT as u64
}

/// The two mapped parts of a CPU's slot; everything else in it is guard.
pub(crate) fn mapped(cpu: usize) -> [Range<u64>; 2] {
    let base = base(cpu);
    [
        base + PAGE as u64..base + EMERGENCY_TOP as u64,
        base + (1 << ON_STACK_BIT)..base + SLOT as u64,
    ]
}

/// Which CPU's slot an address lies in, and where in it.
pub(crate) fn place(address: u64) -> Option<(usize, Place)> {
    let offset = address.checked_sub(base(0))?;
    let cpu = usize::try_from(offset / SLOT as u64).ok()?;
    if cpu >= MAX_VCPUS {
        return None;
    }
    let place = match offset as usize % SLOT {
        at if at < PAGE => Place::EmergencyGuard,
        at if at < EMERGENCY_TOP => Place::Stack,
        at if at < 1 << ON_STACK_BIT => Place::Guard,
        _ => Place::Stack,
    };
    Some((cpu, place))
}
