//! `page_table_multiarch` 0.6: its generic 64-bit table. Its AArch64 descriptors exist on AArch64 only, so
//! descriptors (stage 2, the bits that the others write) and metadata (three levels) are ours, as its traits
//! ask. It zeroes table pages itself, within the measured time: its interface has no other way.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use ::page_table_multiarch::{
    GenericPTE, MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData,
};
use memory_addr::{PhysAddr, VirtAddr};
use spin::mutex::TicketMutex;

use crate::arena::Arena;
use crate::bare::{ADDRESS, TABLE};
use crate::work::{Bench, Pages, check_mapped, check_unmapped, timed};

/// Valid, AF, Inner shareable, write-back, S2AP read and write, a page.
const RAM: u64 = 0b1_11_11_1111_11;
const BLOCK: u64 = 0b01;

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Pte(u64);

impl GenericPTE for Pte {
    #[inline]
    fn new_page(pa: PhysAddr, _flags: MappingFlags, huge: bool) -> Self {
        let kind = if huge { TABLE & !BLOCK } else { 0 };
        Self(pa.as_usize() as u64 & ADDRESS | RAM & !kind)
    }
    #[inline]
    fn new_table(pa: PhysAddr) -> Self {
        Self(pa.as_usize() as u64 & ADDRESS | TABLE)
    }
    #[inline]
    fn paddr(&self) -> PhysAddr {
        PhysAddr::from((self.0 & ADDRESS) as usize)
    }
    fn flags(&self) -> MappingFlags {
        MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE
    }
    fn set_paddr(&mut self, pa: PhysAddr) {
        self.0 = pa.as_usize() as u64 & ADDRESS | self.0 & !ADDRESS;
    }
    fn set_flags(&mut self, _flags: MappingFlags, huge: bool) {
        *self = Self::new_page(self.paddr(), MappingFlags::empty(), huge);
    }
    fn bits(self) -> usize {
        self.0 as usize
    }
    #[inline]
    fn is_unused(&self) -> bool {
        self.0 == 0
    }
    #[inline]
    fn is_present(&self) -> bool {
        self.0 & BLOCK != 0
    }
    #[inline]
    fn is_huge(&self) -> bool {
        self.0 & TABLE == BLOCK
    }
    #[inline]
    fn clear(&mut self) {
        self.0 = 0;
    }
}

struct ThreeLevels;

impl PagingMetaData for ThreeLevels {
    const LEVELS: usize = 3;
    const PA_MAX_BITS: usize = 48;
    const VA_MAX_BITS: usize = 39;
    type VirtAddr = usize;
    fn flush_tlb(_va: Option<usize>) {}
}

/// The handler has no self: this is the arena that it takes pages from.
static ARENA: AtomicPtr<Arena> = AtomicPtr::new(std::ptr::null_mut());

fn arena() -> &'static Arena {
    // SAFETY: (1) set by `with_tables`, whose caller lends the arena until the tables are gone.
    unsafe { &*ARENA.load(Ordering::Relaxed) }
}

struct FromArena;

impl PagingHandler for FromArena {
    fn alloc_frames(_count: usize, _align: usize) -> Option<PhysAddr> {
        arena().take().map(|page| PhysAddr::from(page as usize))
    }
    fn dealloc_frames(_pa: PhysAddr, _count: usize) {
        arena().give_back();
    }
    #[inline]
    fn phys_to_virt(pa: PhysAddr) -> VirtAddr {
        VirtAddr::from(Arena::pointer::<u8>(pa.as_usize() as u64).expose_provenance())
    }
}

type Tables = PageTable64<ThreeLevels, Pte, FromArena>;

fn with_tables(
    bench: &mut Bench,
    work: impl FnOnce(&mut Tables, Pages, &[u32]) -> Duration,
) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    ARENA.store(&raw mut bench.arena, Ordering::Relaxed);
    let mut tables = Tables::try_new().expect("a page for the root");
    work(&mut tables, pages, &bench.order)
}

fn root(tables: &Tables) -> u64 {
    tables.root_paddr().as_usize() as u64
}

fn rwx() -> MappingFlags {
    MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE
}

fn map_all(tables: &mut Tables, pages: Pages) {
    let (ipa, bytes) = (pages.ipa as usize, pages.bytes() as usize);
    let pa = |at: usize| PhysAddr::from(at - ipa + pages.pa as usize);
    let done = tables.cursor().map_region(ipa, pa, bytes, rwx(), false);
    done.expect("nothing is there");
}

pub(crate) fn install(bench: &mut Bench) -> Duration {
    with_tables(bench, |tables, pages, _| {
        let tables = TicketMutex::<_>::new(tables);
        let time = timed(|| {
            let tables = &tables;
            for index in 0..pages.count {
                let (ipa, pa) = (pages.ipa_of(index) as usize, pages.pa_of(index) as usize);
                let mut locked = tables.lock();
                let done = locked.cursor().map(ipa, pa.into(), PageSize::Size4K, rwx());
                done.expect("nothing is there");
            }
        });
        check_mapped(root(&tables.lock()), pages, "page_table_multiarch install");
        time
    })
}

pub(crate) fn map(bench: &mut Bench) -> Duration {
    with_tables(bench, |tables, pages, _| {
        let time = timed(|| map_all(tables, pages));
        check_mapped(root(tables), pages, "page_table_multiarch map");
        time
    })
}

pub(crate) fn translate(bench: &mut Bench) -> Duration {
    with_tables(bench, |tables, pages, order| {
        map_all(tables, pages);
        let mut sum = 0;
        let time = timed(|| {
            let tables = &*tables;
            let find = |index: &u32| {
                let found = tables.query(pages.ipa_of(*index as usize) as usize);
                found.expect("mapped").0.as_usize() as u64
            };
            sum = order.iter().map(find).sum();
        });
        assert_eq!(sum, pages.sum(), "page_table_multiarch translate: a page was not found");
        time
    })
}

/// Page by page, which is how it hands frames back. The tables stay.
pub(crate) fn unmap(bench: &mut Bench) -> Duration {
    with_tables(bench, |tables, pages, _| {
        map_all(tables, pages);
        let mut sum = 0;
        let time = timed(|| {
            let mut cursor = tables.cursor();
            let take = |index| {
                let taken = cursor.unmap(pages.ipa_of(index) as usize);
                taken.expect("mapped").0.as_usize() as u64
            };
            sum = (0..pages.count).map(take).sum();
        });
        assert_eq!(sum, pages.sum(), "page_table_multiarch unmap: frames");
        check_unmapped(root(tables), pages, "page_table_multiarch unmap");
        time
    })
}
