//! Host memory, frames and spaces for the tests of operations.

use std::boxed::Box;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::addr::{PAGE_SIZE, Vmid};
use crate::arch::Dsb;
use crate::arch::host::{Event, Host, NoAtomicInstall};
use crate::attr::{MemType, Prot};
use crate::descriptor::{Descriptor, DescriptorError, Note, View};
use crate::epoch::Epochs;
use crate::errata::Errata;
use crate::features::{Bbm, Caps, Features};
use crate::geometry::HwUpdate;
use crate::lock::TableMeta;
use crate::memory::Table;
use crate::slot::native;
use crate::tlbi::Tlbi;
use crate::vmid::Vmids;

const PAGES: usize = 2048;

/// Host memory as table pages: an address is the page's place in an arena, so any is a legal [`Pa`].
struct Pages {
    arena: Box<[Table]>,
    meta: Box<[TableMeta]>,
    next: AtomicUsize,
    /// Allocations that succeed before the next ones fail.
    budget: AtomicUsize,
    freed: Mutex<HashSet<Pa>>,
    /// Let other threads run between an Empty slot and its compare-exchange, so that PEs meet.
    yields: bool,
}

impl Pages {
    fn new(budget: usize) -> Self {
        Self {
            arena: (0..PAGES).map(|_| Table::empty()).collect(),
            meta: (0..PAGES).map(|_| TableMeta::new()).collect(),
            next: AtomicUsize::new(0),
            budget: AtomicUsize::new(budget),
            freed: Mutex::default(),
            yields: false,
        }
    }

    /// Pages allocated and not given back. The root comes first, so alignment leaves no gap.
    fn live(&self) -> usize {
        self.next.load(Ordering::Relaxed) - self.freed.lock().unwrap().len()
    }
}

// SAFETY: (1) each page of the arena is Empty and given out once. (2) The arena does not move.
// (3) Nothing is reused.
unsafe impl Memory for &Pages {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        if self.yields {
            std::thread::yield_now();
        }
        self.budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .ok()?;
        let start = self.next.fetch_add(pages, Ordering::Relaxed);
        assert!(start.is_multiple_of(pages) && start + pages <= self.arena.len());
        Some(Pa::new(start as u64 * PAGE_SIZE))
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        for page in 0..pages as u64 {
            let pa = Pa::new(pa.get() + page * PAGE_SIZE);
            assert!(self.freed.lock().unwrap().insert(pa), "freed twice");
            // SAFETY: (1) still there: nothing is reused.
            let table = unsafe { self.table(pa) };
            let zero = table.slots().iter().all(|slot| native::load(slot) == 0);
            assert!(zero, "clause 3 of free_table");
        }
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        &self.arena[usize::try_from(pa.get() / PAGE_SIZE).unwrap()]
    }

    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        &self.meta[usize::try_from(pa.get() / PAGE_SIZE).unwrap()]
    }
}

/// Frames by number from `start`, with a count of those that came back.
struct Counted {
    next: u64,
    step: u64,
    left: usize,
    returned: Vec<Pa>,
    yields: bool,
}

impl Counted {
    fn new(start: u64, step: u64, left: usize) -> Self {
        Self { next: start, step, left, returned: Vec::new(), yields: false }
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Frames for Counted {
    fn take(&mut self) -> Option<Pa> {
        if self.yields {
            std::thread::yield_now();
        }
        self.left = self.left.checked_sub(1)?;
        let frame = self.next;
        self.next += self.step;
        Some(Pa::new(frame))
    }

    fn give_back(&mut self, frame: Pa) {
        self.left += 1;
        self.returned.push(frame);
    }
}

fn features(pa_bits: u32) -> Features {
    Features { caps: Caps::GRANULE_4K, bbm: Bbm::Level2, pa_bits, errata: Errata::empty() }
}

fn geometry(ipa_bits: u32) -> Geometry {
    Geometry::new(ipa_bits, &features(48), HwUpdate::Off).unwrap()
}

/// An allocator with VMID 1 alone.
fn vmids() -> &'static Vmids<1> {
    Box::leak(Box::new(Vmids::only(Vmid::new(1, 8).unwrap())))
}

/// A VM that the host runs. Sizes change by a break, unless it is pinned to something else.
fn space<'t, const CPUS: usize>(
    pages: &'t Pages,
    epochs: &'t Epochs<CPUS>,
    ipa_bits: u32,
) -> Space<'t, &'t Pages, Host> {
    let vmids = vmids();
    let space = Space::new(geometry(ipa_bits), vmids, epochs.domain(), pages, Host::new()).unwrap();
    space.pin_bbm(Some(Bbm::Level0));
    let mut cpu = vmids.join(0).unwrap();
    // SAFETY: (1, 2) no guest runs on the host.
    core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
    space
}

fn ram() -> Attributes {
    Attributes::new(Prot::RWX, MemType::Normal)
}

fn at<A: Arch>(space: &Space<'_, &Pages, A>, level: Level) -> Mapping {
    space.mapping(level, &ram(), Owner::Vm).unwrap()
}

const PAGE: Level = Level::L3;

/// Tables that can be reached from the root, the root's own pages included.
fn linked_tables<A: Arch>(space: &Space<'_, &Pages, A>) -> usize {
    fn below<A: Arch>(space: &Space<'_, &Pages, A>, pa: Pa, level: Level) -> usize {
        // SAFETY: (1) linked, and nothing is freed in these tests but losers.
        let table = unsafe { space.memory.table(pa) };
        let children = table.slots().iter().filter_map(|slot| {
            match (slot.load(&space.arch).view(level), level.next()) {
                (View::Table(child), Some(next)) => Some(below(space, child, next)),
                _ => None,
            }
        });
        1 + children.sum::<usize>()
    }
    let start = space.geometry.start();
    (0..space.geometry.root_tables() as u64)
        .map(|page| below(space, Pa::new(space.root.get() + page * PAGE_SIZE), start))
        .sum()
}

mod age;
mod contiguous;
mod copy;
mod dirty;
mod dirty_write;
mod fault;
mod install;
mod live;
mod locks;
mod map;
mod neighbours;
mod others;
mod prot;
mod prot_pending;
mod random;
mod random_prot;
mod relax;
mod resize;
mod scan;
mod scratch;
mod session;
mod take;
mod unmap;
mod whole;
mod window;
