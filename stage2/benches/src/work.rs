//! What is measured, and the check that it happened.

use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use stage2::{
    Attributes, Bbm, Caps, Encoding, Errata, Features, LeafTemplate, Level, MemType, Owner,
    PAGE_SIZE, Pa, Prot,
};

use crate::arena::Arena;
use crate::bare;

/// Pages that one table of level 3 maps: 2 MiB.
pub(crate) const TABLE_PAGES: usize = 512;
/// The range that is mapped: at most 1 GiB from here, within one slot of the root.
pub(crate) const IPA: u64 = 1 << 30;
/// Where its memory is said to lie. Nothing is ever read there.
const MEMORY: u64 = 1 << 38;

/// The memory to work in, what is mapped, and the order of random look-ups.
pub(crate) struct Bench {
    pub(crate) arena: Arena,
    /// Pages of 4 KiB.
    count: usize,
    /// Every page once, shuffled.
    pub(crate) order: Vec<u32>,
}

impl Bench {
    /// For so many tables of level 3, at most 512.
    pub(crate) fn new(tables: usize) -> Self {
        let count = tables * TABLE_PAGES;
        let mut order: Vec<u32> = (0..count as u32).collect();
        // Fisher-Yates over xorshift64: the same order in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for last in (1..order.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(last, (state % (last as u64 + 1)) as usize);
        }
        Self { arena: Arena::new(), count, order }
    }

    /// What is mapped. The compiler is not to know: no index into a table is a constant.
    pub(crate) fn pages(&self) -> Pages {
        black_box(Pages { ipa: IPA, pa: MEMORY, count: self.count })
    }
}

/// A range of pages and the memory that it is mapped to.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    pub(crate) ipa: u64,
    pub(crate) pa: u64,
    pub(crate) count: usize,
}

impl Pages {
    /// Its bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.count as u64 * PAGE_SIZE
    }

    /// Tables of level 3 that it takes.
    pub(crate) fn tables(self) -> usize {
        self.count / TABLE_PAGES
    }

    /// The sum of the addresses that a pass over all pages finds.
    pub(crate) fn sum(self) -> u64 {
        (0..self.count).fold(0, |sum, index| sum.wrapping_add(self.pa_of(index)))
    }

    /// The address of a page.
    #[inline]
    pub(crate) fn ipa_of(self, index: usize) -> u64 {
        self.ipa + index as u64 * PAGE_SIZE
    }

    /// Where it is mapped to.
    #[inline]
    pub(crate) fn pa_of(self, index: usize) -> u64 {
        self.pa + index as u64 * PAGE_SIZE
    }
}

/// A machine that invalidates by range, with a 40-bit physical address space.
pub(crate) const FEATURES: Features = Features {
    caps: Caps::GRANULE_4K.union(Caps::TLBI_RANGE).union(Caps::TTL),
    bbm: Bbm::Level0,
    pa_bits: 40,
    errata: Errata::empty(),
};

pub(crate) fn ram() -> Attributes {
    Attributes::new(Prot::RWX, MemType::Normal)
}

/// The descriptor of the first page, for the bare loops; the next is 4096 more.
pub(crate) fn first_leaf(pages: Pages) -> u64 {
    let template = LeafTemplate::new(Level::L3, &ram(), Encoding::of(&FEATURES), Owner::Vm);
    template.and_then(|leaf| leaf.at(Pa::new(pages.pa))).expect("RAM has an encoding").bits()
}

/// CPU time of this thread: what other programs take of the machine is not counted.
///
/// Loops keep what they use in locals of the closure: what it only borrows, they would load in each turn.
pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let now = || clock_gettime(ClockId::ThreadCPUTime);
    let before = now();
    work();
    let after = now();
    let nanos = (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec;
    Duration::from_nanos(nanos.unsigned_abs())
}

/// Panics unless every page is mapped to its own memory: read with a walk that shares no code with
/// any contender.
pub(crate) fn check_mapped(root: u64, pages: Pages, who: &str) {
    for index in 0..pages.count {
        let (ipa, pa) = (pages.ipa_of(index), pages.pa_of(index));
        let found = bare::walk(root, ipa);
        assert_eq!(found, Some(pa), "{who}: page {index} at {ipa:#x} is not where it belongs");
    }
}

/// Panics if any page is still mapped.
pub(crate) fn check_unmapped(root: u64, pages: Pages, who: &str) {
    for index in 0..pages.count {
        assert_eq!(
            bare::walk(root, pages.ipa_of(index)),
            None,
            "{who}: page {index} is still mapped"
        );
    }
}
