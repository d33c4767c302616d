//! The loops that do the memory accesses and nothing else: no walk, no check, no protocol.
//!
//! They go over 512 tables of 512 slots in the arena, in the places where everybody's tables lie.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stage2::PAGE_SIZE;

use crate::arena::Arena;
use crate::work::{Bench, Pages, check_mapped, check_unmapped, first_leaf, timed};

/// Bits 47:12 of a descriptor.
pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Bits 1:0 of a table, and of a page at level 3.
pub(crate) const TABLE: u64 = 0b11;
/// The tag that a slot of ours gets between the swap and the store.
const DRAIN: u64 = 0b0010;

/// The arena with root and level 2 linked to empty tables of level 3, and the slots of these.
struct Linked<'a> {
    root: u64,
    slots: &'a [AtomicU64],
}

fn link(arena: &mut Arena, pages: Pages) -> Linked<'_> {
    arena.reset();
    let take = || arena.take().expect("the arena is large enough");
    let table = |address: u64| Arena::pointer::<AtomicU64>(address);
    let set = |table: *mut AtomicU64, index: usize, to: u64| {
        // SAFETY: (1) a table of the arena has 512 slots of 8 bytes; (2) atomics are shared.
        unsafe { (*table.add(index)).store(to | TABLE, Ordering::Relaxed) };
    };
    let (root, middle) = (take(), take());
    set(table(root), (pages.ipa >> 30) as usize, middle);
    let first = take();
    set(table(middle), 0, first);
    (1..pages.tables()).for_each(|index| set(table(middle), index, take()));
    // SAFETY: (1) the pages follow one another, and are the caller's as long as the arena is.
    let slots = unsafe { std::slice::from_raw_parts(table(first).cast_const(), pages.count) };
    Linked { root, slots }
}

/// The level-3 slot of `ipa`, by two loads, each tested for a table.
#[inline]
fn slot_of<'a>(root: u64, ipa: u64) -> Option<&'a AtomicU64> {
    let mut table = root;
    for shift in [30, 21] {
        // SAFETY: (1) a slot of the root, or of a table that a valid descriptor pointed to.
        let descriptor = unsafe { (*slot_at(table, ipa >> shift)).load(Ordering::Acquire) };
        if descriptor & TABLE != TABLE {
            return None;
        }
        table = descriptor & ADDRESS;
    }
    // SAFETY: (1) likewise.
    Some(unsafe { &*slot_at(table, ipa >> 12) })
}

#[inline]
fn slot_at(table: u64, index: u64) -> *const AtomicU64 {
    Arena::pointer::<AtomicU64>(table).wrapping_add((index & 511) as usize)
}

/// The address that `ipa` is translated to, by three loads, each tested for what it must be.
#[inline]
pub(crate) fn walk(root: u64, ipa: u64) -> Option<u64> {
    let page = slot_of(root, ipa)?.load(Ordering::Acquire);
    (page & TABLE == TABLE).then_some(page & ADDRESS | ipa & (PAGE_SIZE - 1))
}

/// One plain store a slot. The compiler may make vectors of them.
pub(crate) fn store(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let Linked { root, slots } = link(&mut bench.arena, pages);
    let leaf = black_box(first_leaf(pages));
    let time = timed(|| {
        let first = slots.as_ptr().cast::<u64>().cast_mut();
        for index in 0..slots.len() {
            // SAFETY: (1) a slot; (2) nobody else uses it now.
            unsafe { first.add(index).write(leaf + index as u64 * PAGE_SIZE) };
        }
        black_box(first);
    });
    check_mapped(root, pages, "plain store");
    time
}

/// Fills a run of slots, each if it is zero.
fn compare_and_swap(slots: &[AtomicU64], leaf: u64) {
    let mut leaf = leaf;
    for slot in slots {
        if slot.load(Ordering::Acquire) == 0 {
            let won = slot.compare_exchange(0, leaf, Ordering::Release, Ordering::Acquire);
            assert!(won.is_ok(), "nobody else fills this slot");
        }
        leaf += PAGE_SIZE;
    }
}

/// One load and one compare-exchange a slot.
pub(crate) fn load_cas(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let Linked { root, slots } = link(&mut bench.arena, pages);
    let leaf = black_box(first_leaf(pages));
    let time = timed(|| compare_and_swap(slots, leaf));
    check_mapped(root, pages, "load+CAS");
    time
}

/// A walk to the slot, then a load and a compare-exchange there: what a lock-free install cannot do without.
pub(crate) fn walk_cas(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let Linked { root, .. } = link(&mut bench.arena, pages);
    let (leaf, at) = (black_box(first_leaf(pages)), black_box(root));
    let time = timed(|| {
        for index in 0..pages.count {
            let slot = slot_of(at, pages.ipa_of(index)).expect("linked");
            if slot.load(Ordering::Acquire) == 0 {
                let leaf = leaf + index as u64 * PAGE_SIZE;
                let won = slot.compare_exchange(0, leaf, Ordering::Release, Ordering::Acquire);
                assert!(won.is_ok(), "nobody else fills this slot");
            }
        }
    });
    check_mapped(root, pages, "walk+CAS");
    time
}

/// The same by two threads, half of the slots each.
pub(crate) fn load_cas_by_two(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let Linked { root, slots } = link(&mut bench.arena, pages);
    let leaf = black_box(first_leaf(pages));
    let half = slots.len() / 2;
    let (low, high) = slots.split_at(half);
    let time = crate::threads::both(
        || compare_and_swap(low, leaf),
        || compare_and_swap(high, leaf + half as u64 * PAGE_SIZE),
    );
    check_mapped(root, pages, "load+CAS by two threads");
    time
}

/// One swap a slot.
pub(crate) fn swap(bench: &mut Bench) -> Duration {
    unmap(bench, "swap", |slots, drain| {
        slots.iter().map(|slot| slot.swap(drain, Ordering::AcqRel) & ADDRESS).sum()
    })
}

/// One swap a slot, and right after it one store.
pub(crate) fn swap_store(bench: &mut Bench) -> Duration {
    unmap(bench, "swap+store", |slots, drain| {
        let sum = |slot: &AtomicU64| {
            let old = slot.swap(drain, Ordering::AcqRel);
            slot.store(0, Ordering::Release);
            old & ADDRESS
        };
        slots.iter().map(sum).sum()
    })
}

/// One swap a slot; when all are swapped, one load and one store a slot: the order that a flush between asks for.
pub(crate) fn swap_then_store(bench: &mut Bench) -> Duration {
    unmap(bench, "swap, then store", |slots, drain| {
        for slot in slots {
            let old = slot.load(Ordering::Acquire);
            let _ = slot.swap(old & ADDRESS | drain, Ordering::AcqRel);
        }
        let sum = |slot: &AtomicU64| {
            let old = slot.load(Ordering::Acquire);
            slot.store(0, Ordering::Release);
            old & ADDRESS
        };
        slots.iter().map(sum).sum()
    })
}

fn unmap(bench: &mut Bench, who: &str, all: impl FnOnce(&[AtomicU64], u64) -> u64) -> Duration {
    let pages = bench.pages();
    let Linked { root, slots } = link(&mut bench.arena, pages);
    compare_and_swap(slots, first_leaf(pages));
    let (drain, mut sum) = (black_box(DRAIN), 0u64);
    let time = timed(|| sum = all(slots, drain));
    assert_eq!(sum, pages.sum(), "{who}: not every frame was harvested once");
    check_unmapped(root, pages, who);
    time
}

/// A walk of three loads for every page, in random order.
pub(crate) fn translate(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let Linked { root, slots } = link(&mut bench.arena, pages);
    compare_and_swap(slots, first_leaf(pages));
    let (order, mut sum) = (&bench.order, 0);
    let time = timed(|| {
        let root = black_box(root);
        let find = |index: &u32| walk(root, pages.ipa_of(*index as usize)).expect("mapped");
        sum = order.iter().map(find).sum();
    });
    assert_eq!(sum, pages.sum(), "bare walk: a page was not found");
    time
}
