//! `aarch64-paging` 0.12: `Mapping` in the stage-2 regime, tables from our arena, zeroed beforehand.

use std::cell::Cell;
use std::ptr::NonNull;
use std::time::Duration;

use ::aarch64_paging::Mapping;
use ::aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes, UpdatableDescriptor};
use ::aarch64_paging::paging::{Constraints, MemoryRegion, PageTable, Stage2, Translation};
use spin::mutex::TicketMutex;
use stage2::PAGE_SIZE;

use crate::arena::Arena;
use crate::work::{Bench, TABLE_PAGES, check_mapped, check_unmapped, timed};

const RAM: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB)
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::SH_INNER)
    .union(Stage2Attributes::ACCESS_FLAG);

struct FromArena<'a>(&'a Arena);

impl Translation<Stage2Attributes> for FromArena<'_> {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Stage2Attributes>>, PhysicalAddress) {
        let page = self.0.take().expect("the arena is large enough");
        (self.physical_to_virtual(PhysicalAddress(page as usize)), PhysicalAddress(page as usize))
    }
    unsafe fn deallocate_table(&mut self, _table: NonNull<PageTable<Stage2Attributes>>) {
        self.0.give_back();
    }
    #[inline]
    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<Stage2Attributes>> {
        NonNull::new(Arena::pointer(pa.0 as u64)).expect("a page of the arena")
    }
}

type Tables<'a> = Mapping<FromArena<'a>, Stage2>;

fn tables(bench: &mut Bench) -> Tables<'_> {
    bench.arena.reset();
    Mapping::new(FromArena(&bench.arena), 1, Stage2)
}

fn root(tables: &Tables<'_>) -> u64 {
    tables.root_address().0 as u64
}

fn region(ipa: u64, bytes: u64) -> MemoryRegion {
    MemoryRegion::new(ipa as usize, (ipa + bytes) as usize)
}

#[inline]
fn map_region(tables: &mut Tables<'_>, ipa: u64, pa: u64, bytes: u64) {
    let limits = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
    let pa = PhysicalAddress(pa as usize);
    tables.map_range(&region(ipa, bytes), pa, RAM, limits).expect("in range");
}

pub(crate) fn install(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let tables = TicketMutex::<_>::new(tables(bench));
    let time = timed(|| {
        let tables = &tables;
        for index in 0..pages.count {
            let (ipa, pa) = (pages.ipa_of(index), pages.pa_of(index));
            map_region(&mut tables.lock(), ipa, pa, PAGE_SIZE);
        }
    });
    check_mapped(root(&tables.lock()), pages, "aarch64-paging install");
    time
}

pub(crate) fn map(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let mut tables = tables(bench);
    let time = timed(|| map_region(&mut tables, pages.ipa, pages.pa, pages.bytes()));
    check_mapped(root(&tables), pages, "aarch64-paging map");
    time
}

/// Blocks of 2 MiB become pages: a change of one page splits the block that it is in.
pub(crate) fn split(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let mut tables = tables(bench);
    let (all, pa) = (region(pages.ipa, pages.bytes()), PhysicalAddress(pages.pa as usize));
    let limits = Constraints::NO_CONTIGUOUS_HINT;
    tables.map_range(&all, pa, RAM, limits).expect("in range");
    let time = timed(|| {
        let as_it_is = |_: &MemoryRegion, _: &mut UpdatableDescriptor<'_, Stage2Attributes>| Ok(());
        for table in 0..pages.tables() {
            let page = region(pages.ipa_of(table * TABLE_PAGES), PAGE_SIZE);
            tables.modify_range(&page, &as_it_is).expect("in range");
        }
    });
    check_mapped(root(&tables), pages, "aarch64-paging split");
    time
}

/// There is no look-up by address but a visit of a range.
pub(crate) fn translate(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let order = std::mem::take(&mut bench.order);
    let mut tables = tables(bench);
    map_region(&mut tables, pages.ipa, pages.pa, pages.bytes());
    let mut total = 0;
    let time = timed(|| {
        let (tables, mut sum) = (&tables, 0u64);
        for index in &order {
            let page = region(pages.ipa_of(*index as usize), PAGE_SIZE);
            let found = tables.walk_range(&page, &mut |_, leaf, _| {
                sum = sum.wrapping_add(leaf.output_address().0 as u64);
                if leaf.is_valid() { Ok(()) } else { Err(()) }
            });
            found.expect("mapped");
        }
        total = sum;
    });
    drop(tables);
    bench.order = order;
    assert_eq!(total, pages.sum(), "aarch64-paging translate: a page was not found");
    time
}

/// Harvests by `modify_range`. The tables stay.
pub(crate) fn unmap(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    let mut tables = tables(bench);
    map_region(&mut tables, pages.ipa, pages.pa, pages.bytes());
    let sum = Cell::new(0u64);
    let time = timed(|| {
        let take = |_: &MemoryRegion, leaf: &mut UpdatableDescriptor<'_, Stage2Attributes>| {
            sum.set(sum.get().wrapping_add(leaf.output_address().0 as u64));
            leaf.set(PhysicalAddress(0), Stage2Attributes::empty())
        };
        tables.modify_range(&region(pages.ipa, pages.bytes()), &take).expect("in range");
    });
    assert_eq!(sum.get(), pages.sum(), "aarch64-paging unmap: frames");
    check_unmapped(root(&tables), pages, "aarch64-paging unmap");
    time
}
