//! The first of the two traits: where table pages come from and how they are reached.

use crate::addr::{Pa, SLOTS};
use crate::descriptor::Descriptor;
use crate::lock::TableMeta;
use crate::slot::Slot;
use crate::sync::{array, const_fn};

/// Slots of a [`Table`] as walks see it: all of them, but a few where a model checker pays for each.
/// Its models keep to addresses whose indices are below that.
pub(crate) const ARITY: usize = if cfg!(any(loom, shuttle)) { 4 } else { SLOTS };

/// One table page: 512 slots, 4 KiB, aligned to its size.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Table<const N: usize = ARITY>([Slot; N]);

impl<const N: usize> Table<N> {
    const_fn! {
        /// A page of Empty slots: for memory that the program provides itself.
        #[must_use]
        pub const fn empty() -> Self {
            Self(array![Slot::new(Descriptor::EMPTY); N])
        }
    }

    /// The slot at `index`, which [`Level::index`](crate::Level::index) keeps below 512.
    #[inline]
    #[must_use]
    pub fn slot(&self, index: usize) -> &Slot {
        // The mask shows the compiler that no bound can be missed.
        &self.0[index % N]
    }

    /// All slots in order of address.
    #[must_use]
    pub fn slots(&self) -> &[Slot; N] {
        &self.0
    }
}

/// Table pages, as the hypervisor provides them.
///
/// # Safety
/// An implementation promises that
/// 1. `alloc_table` returns memory that nobody else uses, zeroed, aligned to its whole size, below
///    the machine's physical address size, and visible as zero to every hardware walker: it is
///    Inner-shareable write-back as VTCR_EL2 says, and cleaned where walkers do not snoop;
/// 2. `table` returns the page at that address as long as it is allocated, at the same place for
///    every caller;
/// 3. `meta` returns the metadata of that page, one for each page, apart from it, likewise;
/// 4. dropping the implementation frees no page that is still allocated: a walker may be in it.
pub unsafe trait Memory: Sync {
    /// `pages` table pages side by side: 1, or for a root 1 to 16, a power of two.
    ///
    /// It runs in fault handlers, under any lock: it takes no lock itself and never waits. `None`
    /// when no page is at hand; the caller then unwinds, refills where it may wait, and repeats.
    fn alloc_table(&self, pages: usize) -> Option<Pa>;

    /// Takes back what `alloc_table` gave, with the same `pages`. Runs where `alloc_table` runs.
    ///
    /// # Safety
    /// 1. The pages came from `alloc_table` and are in no table tree;
    /// 2. no PE can still walk them: they were never linked, or their flush and grace period are over;
    /// 3. every slot is zero.
    unsafe fn free_table(&self, pa: Pa, pages: usize);

    /// The table page at `pa`.
    ///
    /// # Safety
    /// 1. `pa` is an allocated table page, and stays so while the reference lives: the caller holds a guard under
    ///    which it was found linked, or owns it.
    unsafe fn table(&self, pa: Pa) -> &Table;

    /// The metadata of the table page at `pa`.
    ///
    /// # Safety
    /// 1. As of [`table`](Self::table).
    unsafe fn meta(&self, pa: Pa) -> &TableMeta;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_one_page_of_packed_slots() {
        assert_eq!(size_of::<Table>(), 4096);
        assert_eq!(align_of::<Table>(), 4096);
        assert_eq!(size_of::<Slot>(), 8);
    }
}
