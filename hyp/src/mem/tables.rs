//! Table pages for crate `stage2`: one page from the CPU's stock, a root from the pool.
//!
//! A single page is what a fault needs, so it comes from the stock: zeroed, clean, without a lock. A root of
//! several pages is made once, when the VM is, and may take the pool's lock.

use hyp_core::PaRange;
use stage2::{Memory, Pa, Table, TableMeta};

use super::cache::wipe;
use super::{PAGE, clean, frames};
use crate::cpu;

/// The hypervisor's table pages. EL2 reaches a page at its physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables;

/// For a page that the pool does not know, which no table page is: one lock for all of them is slow, not wrong.
static ORPHAN: TableMeta = TableMeta::new();

// SAFETY: (1) the stock and the pool hand out frames that nobody else has, zeroed, aligned to their
// size, cleaned to the point of coherency, in Inner-shareable write-back memory; (2) EL2's map is the
// identity and never changes; (3) a page put back can be taken again only by a later call.
unsafe impl Memory for Tables {
    #[inline]
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        if pages == 1 {
            return cpu::current().stock.take().map(Pa::new);
        }
        let first = frames::take(pages)?;
        // SAFETY: (1) just taken.
        unsafe { wipe(first, pages as u64 * PAGE) };
        Some(Pa::new(first))
    }

    #[inline]
    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        if pages == 1 {
            // All zero, but perhaps only in a cache: it may have been a live table.
            clean::for_guest(PaRange { start: pa.get(), end: pa.get() + PAGE });
            if !cpu::current().stock.put_back(pa.get()) {
                // SAFETY: (1, 2) the caller's clauses; the page came from a stock, and so from the pool.
                unsafe { frames::give_back(pa.get(), 1) };
            }
        } else {
            // SAFETY: (1, 2) the caller's clauses.
            unsafe { frames::give_back(pa.get(), pages) };
        }
    }

    #[inline]
    unsafe fn table(&self, pa: Pa) -> &Table {
        let table = core::ptr::with_exposed_provenance::<Table>(pa.get() as usize);
        // SAFETY: (1) the caller's clause 1; the identity map holds it, aligned to a page.
        unsafe { &*table }
    }

    #[inline]
    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        // Every frame of the pool has one, and tables come from the pool.
        frames::meta(pa.get()).map_or(&ORPHAN, |meta| &meta.table)
    }
}
