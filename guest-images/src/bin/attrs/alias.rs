//! The same RAM under every memory type, by page, 2 MiB block and 1 GiB block.
//!
//! The identity map knows all RAM as write-back; an alias with another type is a mismatched alias, and
//! only cache maintenance carries a write from one to the other (`guest_rt::cache`). Three pages for
//! each alias: first touched by a load through it, by a store through it, and by a store through the
//! identity map.

use guest_rt::cache::clean_invalidate;
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, Size, Table};
use guest_rt::{Arena, GIB, MIB2, PAGE, check_eq};

use crate::{MARK, walk};

/// Checks every memory type in every size, and says how many mappings that were.
pub(crate) fn check(arena: &mut Arena) -> usize {
    let sizes = [Size::Page, Size::Block2M, Size::Block1G];
    let all = sizes.into_iter().flat_map(|size| Attr::ALL.map(|attr| (size, attr)));
    all.enumerate()
        .map(|(index, (size, attr))| {
            let ipa = arena.take(3 * PAGE, MIB2);
            let va = map(arena, ALIAS_SLOT + walk::SLOTS + index, ipa, size, attr);
            through(va, ipa, size, attr);
        })
        .count()
}

/// Maps the block around `ipa` (three pages of it, for pages) in a root slot of its own, and gives
/// the alias of `ipa`.
fn map(arena: &mut Arena, slot: usize, ipa: usize, size: Size, attr: Attr) -> usize {
    let start = ipa & !(size.bytes() - 1);
    let (in_gib, in_block) = (ipa % GIB, ipa % MIB2);
    let leaf = mmu::leaf(start, size, attr, false);
    if size == Size::Block1G {
        mmu::ROOT.set(slot, leaf);
    } else {
        let level2 = arena.take(PAGE, PAGE);
        // SAFETY: 1. arena RAM, in the identity map; 2. used as a table only.
        let blocks = unsafe { Table::at(level2) };
        if size == Size::Block2M {
            blocks.set(in_gib / MIB2, leaf);
        } else {
            let level3 = arena.take(PAGE, PAGE);
            // SAFETY: as above.
            let pages = unsafe { Table::at(level3) };
            for page in 0..3 {
                let leaf = mmu::leaf(ipa + page * PAGE, size, attr, false);
                pages.set(in_block / PAGE + page, leaf);
            }
            blocks.set(in_gib / MIB2, mmu::table(level3));
        }
        mmu::ROOT.set(slot, mmu::table(level2));
    }
    mmu::publish();
    mmu::slot_va(slot) + in_gib
}

/// Both directions, three kinds of first touch.
fn through(alias: usize, ipa: usize, size: Size, attr: Attr) {
    let [mine, theirs] = [alias, ipa];
    let step = |page: usize| page * PAGE + 8 * page;

    // First touch: a load through the alias.
    check_eq!(read(mine), 0, "{attr:?} {size:?}: first load through the alias");
    write(mine, MARK);
    check_eq!(read(mine), MARK, "{attr:?} {size:?}: own store through the alias");
    // First touch: a store through the alias.
    write(mine + step(1), !MARK);
    check_eq!(read(mine + PAGE), 0, "{attr:?} {size:?}: the word before the first store");
    check_eq!(read(mine + step(1)), !MARK, "{attr:?} {size:?}: the first store");
    // Now through the identity map.
    clean_invalidate(theirs, 2 * PAGE);
    check_eq!(read(theirs), MARK, "{attr:?} {size:?}: the alias's store through the identity map");
    check_eq!(read(theirs + step(1)), !MARK, "{attr:?} {size:?}: its second store");
    // First touch: a store through the identity map; then back and forth.
    write(theirs + step(2), MARK);
    clean_invalidate(theirs + 2 * PAGE, PAGE);
    check_eq!(read(mine + step(2)), MARK, "{attr:?} {size:?}: the identity map's store");
    write(mine + step(2), MARK + 1);
    clean_invalidate(theirs + 2 * PAGE, PAGE);
    check_eq!(read(theirs + step(2)), MARK + 1, "{attr:?} {size:?}: the alias's answer");
}

fn read(va: usize) -> u64 {
    // SAFETY: 1. mapped, in the three pages of one alias; 2. aligned, any value is valid.
    unsafe { (va as *const u64).read_volatile() }
}

fn write(va: usize, value: u64) {
    // SAFETY: 1. as in `read`; 2. the arena gave these pages to one alias alone.
    unsafe { (va as *mut u64).write_volatile(value) }
}
