//! Stage 1: a constant identity map, and alias mappings that a scenario adds.
//!
//! VA bits 39, 4 KiB granule, the walk starts at level 1, so the root is one page of 512 slots of
//! 1 GiB. The image carries it ready-made:
//!
//! | VA | maps to | as |
//! | --- | --- | --- |
//! | 0 - 1 GiB | itself | Device-nGnRnE, execute-never: flash area, UART |
//! | 1 - 32 GiB | itself | Normal write-back, inner shareable, executable: RAM and the nothing behind it |
//! | from 64 GiB ([`ALIAS_SLOT`]) | nothing yet | whatever a scenario puts there |
//!
//! Going from invalid to valid needs no TLB invalidation, only [`publish`]; any other change needs
//! break-before-make, which is [`invalidate`] between the two stores. A mapping whose attributes
//! differ from the identity map's makes the two aliases *mismatched*: only `cache.rs` makes what was
//! written through one visible through the other.

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;

use crate::{GIB, MIB2, PAGE};

/// A memory type, as an index into [`MAIR`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Attr {
    /// Device-nGnRnE.
    Device = 0,
    /// Normal, write-back, read and write allocate.
    WriteBack = 1,
    /// Normal, non-cacheable.
    NonCacheable = 2,
    /// Device-nGnRE.
    DeviceEarlyAck = 3,
    /// Device-GRE.
    DeviceGathering = 4,
    /// Normal, write-through.
    WriteThrough = 5,
}

impl Attr {
    /// Every memory type.
    pub const ALL: [Self; 6] = [
        Self::WriteBack,
        Self::WriteThrough,
        Self::NonCacheable,
        Self::Device,
        Self::DeviceEarlyAck,
        Self::DeviceGathering,
    ];

    /// Whether unaligned accesses, exclusives and DC ZVA are allowed.
    pub fn is_normal(self) -> bool {
        matches!(self, Self::WriteBack | Self::NonCacheable | Self::WriteThrough)
    }
}

/// MAIR_EL1: the attributes of [`Attr`], byte by byte.
pub const MAIR: u64 = 0xff << 8 | 0x44 << 16 | 0x04 << 24 | 0x0c << 32 | 0xbb << 40;

/// TCR_EL1 without IPS: T0SZ 25, walks write-back and inner shareable, 4 KiB granule, TTBR1 unused.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 25 << 16 | 2 << 30;

/// SCTLR_EL1: the bits that are RES1 in Armv8.0, and M, C, SA, I.
pub const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 12;

/// A level-1 slot with the first alias VA: 64 GiB.
pub const ALIAS_SLOT: usize = 64;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 1 << 53 | 1 << 54;

/// The size of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// 4 KiB, level 3.
    Page,
    /// 2 MiB, level 2.
    Block2M,
    /// 1 GiB, level 1.
    Block1G,
}

impl Size {
    /// Bytes that the leaf maps.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Page => PAGE,
            Self::Block2M => MIB2,
            Self::Block1G => GIB,
        }
    }
}

/// A leaf descriptor: read and write at EL1, no EL0.
pub const fn leaf(ipa: usize, size: Size, attr: Attr, executable: bool) -> u64 {
    let kind = if matches!(size, Size::Page) { TABLE_OR_PAGE } else { 0 };
    let never = if executable { 0 } else { EXECUTE_NEVER };
    // Shareability is ignored for Device and non-cacheable memory (both are outer shareable).
    ipa as u64 | (attr as u64) << 2 | INNER_SHAREABLE | ACCESSED | kind | never | VALID
}

/// A descriptor of a next-level table.
pub const fn table(ipa: usize) -> u64 {
    ipa as u64 | TABLE_OR_PAGE | VALID
}

/// One table page, reached through the identity map.
#[repr(C, align(4096))]
pub struct Table([AtomicU64; 512]);

/// The level-1 table that every vCPU uses.
#[unsafe(link_section = ".data.root")]
pub static ROOT: Table = {
    let mut slots = [const { AtomicU64::new(0) }; 512];
    slots[0] = AtomicU64::new(leaf(0, Size::Block1G, Attr::Device, false));
    let mut slot = 1;
    while slot < 32 {
        slots[slot] = AtomicU64::new(leaf(slot * GIB, Size::Block1G, Attr::WriteBack, true));
        slot += 1;
    }
    Table(slots)
};

impl Table {
    /// The table page at `ipa`.
    ///
    /// # Safety
    /// 1. `ipa` is page-aligned guest RAM inside the identity map;
    /// 2. the page is used as a table only, for ever.
    pub unsafe fn at(ipa: usize) -> &'static Self {
        // SAFETY: 1. mapped and aligned by clause 1; 2. only atomics by clause 2, and any bit
        // pattern is a valid descriptor.
        unsafe { &*(ipa as *const Self) }
    }

    /// Stores a descriptor. Every vCPU's walker may see it at once, and does after [`publish`].
    pub fn set(&self, slot: usize, descriptor: u64) {
        self.0[slot].store(descriptor, Ordering::Release);
    }

    /// The descriptor in a slot.
    pub fn get(&self, slot: usize) -> u64 {
        self.0[slot].load(Ordering::Acquire)
    }
}

/// The VA of a level-1 slot.
pub const fn slot_va(slot: usize) -> usize {
    slot * GIB
}

/// Makes earlier stores to tables visible to every walker, and this vCPU's next instruction see them.
pub fn publish() {
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

/// Drops every stage-1 translation from every vCPU's TLB: the middle of break-before-make.
pub fn invalidate() {
    barrier::dsb(barrier::ISHST);
    // SAFETY: 1. invalidating a TLB changes no mapping; 2. completed by the DSB below.
    unsafe { core::arch::asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}
