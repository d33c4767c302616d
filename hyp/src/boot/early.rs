//! The early map: enough translation to run Rust before the device tree has been read.
//!
//! One level-1 table of 1 GiB entries and three level-2 tables of 2 MiB blocks, identity-mapped:
//!
//! | what | how long | attributes |
//! | --- | --- | --- |
//! | the image with stacks and heap | whole blocks | Normal write-back, inner shareable, writable, executable |
//! | the device tree, as long as it claims to be | whole blocks | the same, never executable |
//! | the console, once the tree has named it | one block | Device-nGnRE, never executable |
//!
//! Everything else stays unmapped, so that no speculative access leaves memory that we know to be
//! RAM. W^X comes with the final tables (`mem/el2_map.rs`), before any guest or other CPU runs.
//!
//! `early_map` runs with the MMU off. Its memory is Device then: it must not use atomics, unaligned
//! accesses, or anything in `.bss`.

use core::cell::UnsafeCell;
use core::ptr;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CurrentEL, HCR_EL2, Readable};
use hyp_core::fdt::MAX_SIZE;

/// Attribute 0: Device-nGnRE. Attribute 1: Normal, write-back, read and write allocate.
pub(crate) const MAIR: u64 = 0xff04;

/// A device tree has this as its first word, big-endian.
const FDT_MAGIC: u32 = 0xd00d_feed;
/// Where QEMU puts the tree of a `virt` machine that boots an ELF file: the bottom of RAM.
const TREE_AT_RAM_BASE: u64 = 0x4000_0000;

const GIB_SHIFT: u32 = 30;
const BLOCK: u64 = 2 << 20;
const ENTRIES: usize = 512;

const VALID: u64 = 1;
const TABLE: u64 = 0b11;
const NORMAL: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 0b11 << 8;
/// At EL2, AP\[1\] is RES1. At EL1 it would open the page to EL0 and so close it to execution.
const EL2_RES1: u64 = 1 << 6;
/// UXN at EL1, XN at EL2; PXN at EL1, RES0 at EL2.
const NEVER_EXECUTE: u64 = 1 << 54;
const PRIVILEGED_NEVER_EXECUTE: u64 = 1 << 53;

type Table = [u64; ENTRIES];

/// Level 1, then the level-2 tables in order of their use.
#[repr(C, align(4096))]
pub(crate) struct Tables(UnsafeCell<[Table; 4]>);

// SAFETY: (1) only the boot CPU writes, before it starts any other, and only through volatile
// stores; (2) the other observer is the table walker.
unsafe impl Sync for Tables {}

/// The tables; the linker script keeps them out of `.bss`, which is cleared after they are in use.
#[unsafe(link_section = ".noinit.early")]
pub(crate) static EARLY_TABLES: Tables = Tables(UnsafeCell::new([[0; ENTRIES]; 4]));

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

/// Builds the early map and returns the device tree's address, 0 if there is none.
///
/// Called once from `entry.rs` with the MMU off.
#[unsafe(no_mangle)]
extern "C" fn early_map(x0: u64) -> u64 {
    let tables = EARLY_TABLES.0.get().cast::<u64>();
    for entry in 0..4 * ENTRIES {
        // SAFETY: (1) inside the array; (2) nobody else runs.
        unsafe { tables.add(entry).write_volatile(0) };
    }
    let tree = find_tree(x0);
    let image = (&raw const __image_start as u64, &raw const __image_end as u64);
    map(image.0, image.1, NORMAL | INNER_SHAREABLE);
    if tree != 0 {
        // Writable in the early map only; the final one makes it read-only.
        let data = NORMAL | INNER_SHAREABLE | NEVER_EXECUTE | PRIVILEGED_NEVER_EXECUTE;
        map(tree, tree.wrapping_add(claimed(tree)), data);
    }
    tree
}

/// Maps the block that holds a device register, for a console before the final tables exist.
///
/// Only the boot CPU calls this, with the early tables in use. An entry that was invalid is not
/// cached \[RXCLRD\], so no invalidation is needed, only the store's completion.
pub(crate) fn map_device(address: u64) {
    map(address, address.saturating_add(1), NEVER_EXECUTE | PRIVILEGED_NEVER_EXECUTE);
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

/// Maps whole blocks over `[start, end)`; what is mapped already stays as it is. An address
/// above the 512 GiB of the early map stays unmapped.
fn map(start: u64, end: u64, attributes: u64) {
    // With E2H, where it cannot be cleared, EL2 has the format of EL1: far enough for a refusal.
    let plain = CurrentEL.read(CurrentEL::EL) == 2 && !HCR_EL2.is_set(HCR_EL2::E2H);
    let level = if plain { EL2_RES1 } else { 0 };
    let mut at = start & !(BLOCK - 1);
    while at < end {
        if let Some(slot) = block_slot(at) {
            // SAFETY: (1) `block_slot` returns pointers into EARLY_TABLES; (2) one writer.
            unsafe {
                if slot.read_volatile() == 0 {
                    slot.write_volatile(at | attributes | ACCESSED | level | VALID);
                }
            }
        }
        at = at.wrapping_add(BLOCK);
    }
}

/// The level-2 slot of an address, its table taken from the free ones if need be.
fn block_slot(address: u64) -> Option<*mut u64> {
    let root = EARLY_TABLES.0.get().cast::<u64>();
    let gib = usize::try_from(address >> GIB_SHIFT).ok().filter(|gib| *gib < ENTRIES)?;
    let second = (address / BLOCK) as usize % ENTRIES;
    // SAFETY: (1) `gib` and `second` are below 512 and `table` below 4: inside the arrays;
    // (2) one writer, and the walker sees whole words.
    unsafe {
        for table in 1..4 {
            let base = root.add(table * ENTRIES);
            let entry = root.add(gib).read_volatile();
            if entry == base as u64 | TABLE {
                return Some(base.add(second));
            }
            if entry == 0 && !(0..ENTRIES).any(|at| base.add(at).read_volatile() != 0) {
                root.add(gib).write_volatile(base as u64 | TABLE);
                return Some(base.add(second));
            }
        }
    }
    None
}

/// `x0` if it points at a tree, else the bottom of RAM if a tree is there, else 0.
fn find_tree(x0: u64) -> u64 {
    for candidate in [x0, TREE_AT_RAM_BASE] {
        if candidate == 0 || candidate % 8 != 0 || candidate >> (GIB_SHIFT + 9) != 0 {
            continue;
        }
        let pointer = ptr::with_exposed_provenance::<u32>(candidate as usize);
        // SAFETY: (1) aligned; (2) the MMU is off, so nothing can be unmapped; a wild x0 is the
        // loader's breach of the boot protocol.
        if u32::from_be(unsafe { pointer.read_volatile() }) == FDT_MAGIC {
            return candidate;
        }
    }
    0
}

/// The bytes that the tree's header claims, the header's second word; at most what is ever read.
fn claimed(tree: u64) -> u64 {
    let pointer = ptr::with_exposed_provenance::<u32>(tree as usize + 4);
    // SAFETY: (1) `find_tree` has read the word before it: aligned, and the MMU is off.
    let size = u32::from_be(unsafe { pointer.read_volatile() });
    u64::from(size).min(MAX_SIZE as u64)
}
