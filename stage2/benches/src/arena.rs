//! The memory in which everybody builds tables.
//!
//! One block of table pages, used by one contender after another, so that all of them touch the same lines of the
//! same caches. Pages are given out in ascending order and none is reused within a run; [`Arena::reset`]
//! zeroes them outside the measured time. What stands in a descriptor is the page's address in this
//! process, as in a hypervisor that maps memory one to one: nobody pays for a conversion.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use stage2::{Memory, PAGE_SIZE, Pa, Table, TableMeta};

/// Table pages: 1 root, 1 of level 2, 512 of level 3, and a few that are lost to races.
pub(crate) const PAGES: usize = 520;

/// Table pages and how many of them are in use.
pub(crate) struct Arena {
    tables: NonNull<[Table; PAGES]>,
    meta: Box<[TableMeta]>,
    next: AtomicUsize,
    freed: AtomicUsize,
}

// SAFETY: (1) tables are slots, which are atomics; peers that write plainly do so one at a time.
unsafe impl Send for Arena {}
// SAFETY: (1) likewise.
unsafe impl Sync for Arena {}

impl Arena {
    /// Zeroed pages, all of them touched, and for the life of the process.
    pub(crate) fn new() -> Self {
        let layout = Layout::new::<[Table; PAGES]>();
        // SAFETY: (1) the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(tables) = NonNull::new(memory.cast()) else { handle_alloc_error(layout) };
        let mut arena = Self {
            tables,
            meta: (0..PAGES).map(|_| TableMeta::new()).collect(),
            next: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
        };
        arena.reset();
        arena
    }

    /// Makes every page free and zero. `&mut`: no tables are built in it now.
    pub(crate) fn reset(&mut self) {
        // SAFETY: (1) the block is the arena's; (2) nobody else uses it now; (3) zeroed slots are slots.
        unsafe { self.tables.write_bytes(0, 1) };
        self.next = AtomicUsize::new(0);
        self.freed = AtomicUsize::new(0);
    }

    /// The next page, zeroed.
    #[inline]
    pub(crate) fn take(&self) -> Option<u64> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < PAGES).then(|| self.base() + index as u64 * PAGE_SIZE)
    }

    /// Counts a page as free.
    #[inline]
    pub(crate) fn give_back(&self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// Pages in use.
    pub(crate) fn live(&self) -> usize {
        self.next.load(Ordering::Relaxed) - self.freed.load(Ordering::Relaxed)
    }

    /// The first page's address.
    pub(crate) fn base(&self) -> u64 {
        self.tables.as_ptr().expose_provenance() as u64
    }

    /// The address of a page of the arena as a pointer.
    #[inline]
    pub(crate) fn pointer<T>(address: u64) -> *mut T {
        std::ptr::with_exposed_provenance_mut(address as usize)
    }
}

// SAFETY: (1) each page is zero and given out once between two resets, which need `&mut`. (2) An
// address is the page's own. (3) One meta for each page. (4) Nothing is freed.
unsafe impl Memory for &Arena {
    #[inline]
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        // The bench's IPAs have a root of one page.
        if pages == 1 { self.take().map(Pa::new) } else { None }
    }

    #[inline]
    unsafe fn free_table(&self, _pa: Pa, _pages: usize) {
        self.give_back();
    }

    #[inline]
    unsafe fn table(&self, pa: Pa) -> &Table {
        // SAFETY: (1) an allocated page of this arena, by the caller's clause.
        unsafe { &*Arena::pointer(pa.get()) }
    }

    #[inline]
    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        &self.meta[((pa.get() - self.base()) / PAGE_SIZE) as usize]
    }
}
