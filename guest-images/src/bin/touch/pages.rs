//! A set of never-touched pages, what the vCPUs do to each of them, and the proof afterwards.
//!
//! A page is eight parts of 512 bytes, one for each possible vCPU. A visit touches the page in one of
//! three ways (a load, a store, an atomic), finds its part zero, and leaves a signature of page and
//! vCPU in the part's first and last word. Nobody writes elsewhere, so the rest stays zero for ever.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::rng::mix;
use guest_rt::{PAGE, check_eq, fail};
use hyp_abi::MAX_VCPUS;

/// Words of a part.
const PART: usize = PAGE / 8 / MAX_VCPUS;

/// Pages at a constant distance.
pub(crate) struct Pages {
    name: &'static str,
    base: usize,
    count: usize,
    stride: usize,
    seed: u64,
}

/// Which vCPUs visited a page.
#[derive(Clone, Copy)]
pub(crate) enum Spread {
    /// All of them.
    All { count: usize },
    /// Page `n` belongs to vCPU `n % count`.
    Owner { count: usize },
}

impl Pages {
    /// `count` pages from `base`, `stride` bytes apart, which nobody else uses.
    pub(crate) fn new(
        name: &'static str,
        base: usize,
        count: usize,
        stride: usize,
        seed: u64,
    ) -> Self {
        Self {
            name,
            base,
            count,
            stride,
            seed,
        }
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The words of one vCPU's part of a page, `offset` pages behind the page itself.
    fn part(&self, page: usize, offset: usize, vcpu: usize) -> &[AtomicU64; PART] {
        let at = self.base + page * self.stride + offset * PAGE + vcpu * PART * 8;
        // SAFETY: 1. inside the RAM that the arena gave to this set alone, mapped by the identity
        // map; 2. aligned; 3. any value is valid and all accesses are atomic.
        unsafe { &*(at as *const [AtomicU64; PART]) }
    }

    /// What `vcpu` leaves in its part of `page`: never zero.
    fn signature(&self, page: usize, vcpu: usize) -> u64 {
        mix(self.base as u64 ^ (page as u64) << 8 ^ vcpu as u64 ^ self.seed << 56) | 1
    }

    /// Touches a page: the first access comes before anything else.
    pub(crate) fn visit(&self, page: usize, vcpu: usize) {
        self.visit_at(page, 0, vcpu);
    }

    /// Touches a 2 MiB block: the same page of it in even blocks, a page for each vCPU in odd ones,
    /// where all race for the table alone.
    pub(crate) fn visit_block(&self, block: usize, vcpu: usize) {
        self.visit_at(block, own_offset(block, vcpu), vcpu);
    }

    fn visit_at(&self, page: usize, offset: usize, vcpu: usize) {
        let (part, signature) = (self.part(page, offset, vcpu), self.signature(page, vcpu));
        let first = match page % 3 {
            0 => part[0].load(Ordering::Relaxed),
            1 => 0,
            _ => part[0].fetch_or(signature, Ordering::Relaxed),
        };
        part[0].store(signature, Ordering::Relaxed);
        if first != 0
            || part[1..]
                .iter()
                .any(|word| word.load(Ordering::Relaxed) != 0)
        {
            fail!(
                "{}: page {page} was not zero when vCPU {vcpu} first saw it: {first:#x}",
                self.name
            );
        }
        part[PART - 1].store(signature, Ordering::Relaxed);
    }

    /// Fails unless every page holds exactly what its visitors wrote.
    pub(crate) fn verify(&self, spread: Spread) {
        for page in 0..self.count {
            for vcpu in 0..MAX_VCPUS {
                let visited = match spread {
                    Spread::All { count } => vcpu < count,
                    Spread::Owner { count } => vcpu == page % count,
                };
                self.verify_part(page, 0, vcpu, visited);
            }
        }
    }

    /// As [`Self::verify`], for blocks visited by `count` vCPUs.
    pub(crate) fn verify_blocks(&self, count: usize) {
        for block in 0..self.count {
            for vcpu in 0..count {
                self.verify_part(block, own_offset(block, vcpu), vcpu, true);
            }
        }
    }

    /// Pages that [`Self::visit_block`] touched in all blocks together.
    pub(crate) fn block_pages(&self, count: usize) -> usize {
        (0..self.count)
            .map(|block| if block.is_multiple_of(2) { 1 } else { count })
            .sum()
    }

    fn verify_part(&self, page: usize, offset: usize, vcpu: usize, visited: bool) {
        let signature = if visited {
            self.signature(page, vcpu)
        } else {
            0
        };
        for (index, word) in self.part(page, offset, vcpu).iter().enumerate() {
            let expected = if index == 0 || index == PART - 1 {
                signature
            } else {
                0
            };
            let found = word.load(Ordering::Relaxed);
            check_eq!(
                found,
                expected,
                "{}: page {page}, vCPU {vcpu}, word {index}",
                self.name
            );
        }
    }
}

/// Where in a block a vCPU goes, in pages.
fn own_offset(block: usize, vcpu: usize) -> usize {
    if block.is_multiple_of(2) { 0 } else { vcpu }
}
