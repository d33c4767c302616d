//! EL2's own translation: one identity map for the whole machine, built once (crate `aarch64-paging`), and a place for the
//! window on guest memory.
//!
//! Four levels, 48 bits of address:
//!
//! | root slots | what |
//! | --- | --- |
//! | 0 to 255, addresses below 2^47 | the identity map |
//! | 256, 512 GiB from 2^47 on ([`WINDOW`]) | the window of the VM that there is: tables of crate `stage2`, hung in and taken out by [`window`](crate::window) |
//! | 257 to 511 | nothing |
//!
//! | in the identity map | attributes |
//! | --- | --- |
//! | the image's code | read, execute |
//! | the image's constants, the device tree, the modules | read |
//! | the image's data and heap, the stacks without their guard pages, free RAM | read, write |
//! | console, interrupt controller | read, write, Device-nGnRE |
//!
//! Nothing is both writable and executable, and `SCTLR_EL2.WXN` makes that a property of the machine.
//! Guard pages, reserved memory and everything that the tree does not name stay unmapped. Normal
//! memory is Inner-shareable write-back: stage-2 tables are written through this map and walked with
//! the same attributes, and the hardware update of descriptors asks for it \[RWLTNL\].
//!
//! The identity map never changes after it is switched on, so it needs no break-before-make and no invalidation
//! of its own. Each CPU switches to it with its MMU off (`boot/entry.rs`). The one root slot that does change is crate `stage2`'s to
//! change and to flush.

use alloc::boxed::Box;

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::idmap::IdTranslation;
use aarch64_paging::paging::{Constraints, El2, MemoryRegion};
use hyp_core::PaRange;
use hyp_core::fdt::Platform;
use hyp_core::layout::Layout;
use spin::Once;
use stage2::slot::Slot;

use super::image;
use crate::boot::early::MAIR;
use crate::boot::entry::{SCTLR_EL2_WXN, el2_mmu_switch};
use crate::boot::stack;

/// Where the window on guest memory begins, in EL2's virtual addresses; also where the identity map ends.
pub(crate) const WINDOW: u64 = 1 << 47;
/// The root slot of the window, 512 GiB each.
const WINDOW_SLOT: usize = (WINDOW >> 39) as usize;
/// Index in MAIR_EL2 of Normal write-back memory.
pub(crate) const WRITE_BACK: u8 = 1;
/// `TCR_EL2.T0SZ`: 48 bits.
const T0SZ: u64 = 64 - 48;
/// `TCR_EL2`: RES1 bits, 4 KiB granule, Inner-shareable write-back walks; PS is added.
const TCR: u64 = 1 << 31 | 1 << 23 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | T0SZ;

const BASE: El23Attributes =
    El23Attributes::VALID.union(El23Attributes::USER_RES1).union(El23Attributes::ACCESSED);
const NORMAL: El23Attributes =
    BASE.union(El23Attributes::ATTRIBUTE_INDEX_1).union(El23Attributes::INNER_SHAREABLE);
const CODE: El23Attributes = NORMAL.union(El23Attributes::READ_ONLY);
const CONSTANT: El23Attributes = CODE.union(El23Attributes::XN);
const DATA: El23Attributes = NORMAL.union(El23Attributes::XN);
const DEVICE: El23Attributes =
    BASE.union(El23Attributes::ATTRIBUTE_INDEX_0).union(El23Attributes::XN);

/// What the registers hold while the map is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    /// `TTBR0_EL2`.
    pub(crate) ttbr: u64,
    /// `TCR_EL2`.
    pub(crate) tcr: u64,
    /// `MAIR_EL2`.
    pub(crate) mair: u64,
    /// `SCTLR_EL2`.
    pub(crate) sctlr: u64,
}

static REGISTERS: Once<Registers> = Once::new();

/// The registers for a CPU that joins; `None` before [`switch_on`].
pub(crate) fn registers() -> Option<Registers> {
    REGISTERS.get().copied()
}

type Map = Mapping<IdTranslation<El23Attributes>, El2>;

/// Why the map could not be built.
#[derive(Debug)]
pub(crate) enum MapError {
    /// The machine has memory beyond 47 bits.
    TooHigh(PaRange),
    /// The crate refused.
    Refused(aarch64_paging::MapError),
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooHigh(range) => write!(f, "memory at {range} lies beyond 47 bits"),
            Self::Refused(error) => write!(f, "EL2's tables: {error}"),
        }
    }
}

/// Builds the map and switches this CPU, the only one that runs, to it.
pub(crate) fn switch_on(
    platform: &Platform,
    layout: &Layout,
    tree: PaRange,
) -> Result<(), MapError> {
    let mut map = Builder::new(platform)?;
    map.add(image::text(), CODE)?;
    map.add(image::rodata(), CONSTANT)?;
    map.add(image::data(), DATA)?;
    for cpu in 0..hyp_abi::MAX_VCPUS {
        for part in stack::mapped(cpu) {
            map.add(PaRange { start: part.start, end: part.end }, DATA)?;
        }
    }
    map.add(tree, CONSTANT)?;
    for module in &platform.modules {
        map.add(module.range, CONSTANT)?;
    }
    for range in &layout.free {
        map.add(*range, DATA)?;
    }
    map.add(platform.uart, DEVICE)?;
    if let Some(gic) = platform.gic {
        map.add(gic.dist, DEVICE)?;
        map.add(gic.redist, DEVICE)?;
    }
    let registers = map.finish();
    // SAFETY: (1) the map holds the image with the stack in use, at the addresses they have, and is
    // leaked; the early map showed the same bytes. (2) SCTLR_EL2_WXN has M set.
    unsafe { el2_mmu_switch(registers.ttbr, registers.tcr, registers.mair, registers.sctlr) };
    REGISTERS.call_once(|| registers);
    Ok(())
}

/// The physical address of the root table; 0 before the map is on.
pub(crate) fn root() -> u64 {
    registers().map_or(0, |registers| registers.ttbr)
}

/// The root slot of the window; `None` before the map is on.
pub(crate) fn window_slot() -> Option<&'static Slot> {
    let root = core::ptr::with_exposed_provenance::<Slot>(registers()?.ttbr as usize);
    // SAFETY: (1) the root is a page of 512 slots, leaked, whose address was exposed when it was told; (2) nothing here touches
    // this slot.
    Some(unsafe { &*root.add(WINDOW_SLOT) })
}

struct Builder {
    map: Map,
}

impl Builder {
    fn new(platform: &Platform) -> Result<Self, MapError> {
        let devices = platform.gic.iter().flat_map(|gic| [gic.dist, gic.redist]);
        let all = platform.ram.iter().copied().chain(devices).chain([platform.uart]);
        let highest = all.max_by_key(|range| range.end);
        if let Some(range) = highest.filter(|range| range.end > WINDOW) {
            return Err(MapError::TooHigh(range));
        }
        Ok(Self { map: Mapping::new(IdTranslation::new(), 0, El2) })
    }

    fn add(&mut self, range: PaRange, attributes: El23Attributes) -> Result<(), MapError> {
        if range.is_empty() {
            return Ok(());
        }
        let region = MemoryRegion::new(range.start as usize, range.end as usize);
        // No contiguous hint: nothing to gain here, and one rule less to keep.
        self.map
            .map_range(
                &region,
                PhysicalAddress(region.start().0),
                attributes,
                Constraints::NO_CONTIGUOUS_HINT,
            )
            .map_err(MapError::Refused)
    }

    fn finish(self) -> Registers {
        let map = Box::leak(Box::new(self.map));
        // Without FEAT_LPA2's DS bit a 4 KiB granule reaches 48 bits at the most: PS 5.
        let size = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
        Registers {
            ttbr: map.root_address().0 as u64,
            tcr: TCR | size << 16,
            mair: MAIR,
            sctlr: SCTLR_EL2_WXN,
        }
    }
}
