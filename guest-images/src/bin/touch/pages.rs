//! A run of never-touched pages, what the vCPUs do to each of them, and the proof afterwards.
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

/// Which vCPUs visited a page.
#[derive(Clone, Copy)]
pub(crate) enum Spread {
    /// The first so many.
    First(usize),
    /// This one alone.
    Only(usize),
}

/// Pages from `base` on.
pub(crate) struct Pages {
    name: &'static str,
    base: usize,
    seed: u64,
}

impl Pages {
    /// Pages from `base` on, as many as the caller took from the arena for this alone.
    pub(crate) fn new(name: &'static str, base: usize, seed: u64) -> Self {
        Self { name, base, seed }
    }

    /// The words of one vCPU's part of a page.
    fn part(&self, page: usize, vcpu: usize) -> &[AtomicU64; PART] {
        let at = self.base + page * PAGE + vcpu * PART * 8;
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
        let (part, signature) = (self.part(page, vcpu), self.signature(page, vcpu));
        let first = match page % 3 {
            0 => part[0].load(Ordering::Relaxed),
            1 => part[0].swap(signature, Ordering::Relaxed),
            _ => {
                part[0].store(signature, Ordering::Relaxed);
                0
            }
        };
        part[0].store(signature, Ordering::Relaxed);
        if first != 0 || part[1..].iter().any(|word| word.load(Ordering::Relaxed) != 0) {
            fail!(
                "{}: page {page} was not zero when vCPU {vcpu} first saw it: {first:#x}",
                self.name
            );
        }
        part[PART - 1].store(signature, Ordering::Relaxed);
    }

    /// Fails unless the page holds exactly what its visitors wrote.
    pub(crate) fn verify(&self, page: usize, spread: Spread) {
        for vcpu in 0..MAX_VCPUS {
            let visited = match spread {
                Spread::First(count) => vcpu < count,
                Spread::Only(owner) => vcpu == owner,
            };
            self.verify_part(page, vcpu, visited);
        }
    }

    /// How many vCPUs visited the page; fails where a part is neither untouched nor a visitor's.
    pub(crate) fn visitors(&self, page: usize) -> usize {
        let visited = |vcpu: &usize| self.part(page, *vcpu)[0].load(Ordering::Relaxed) != 0;
        (0..MAX_VCPUS).for_each(|vcpu| self.verify_part(page, vcpu, visited(&vcpu)));
        (0..MAX_VCPUS).filter(visited).count()
    }

    fn verify_part(&self, page: usize, vcpu: usize, visited: bool) {
        let signature = if visited { self.signature(page, vcpu) } else { 0 };
        for (index, word) in self.part(page, vcpu).iter().enumerate() {
            let expected = if index == 0 || index == PART - 1 { signature } else { 0 };
            let found = word.load(Ordering::Relaxed);
            check_eq!(found, expected, "{}: page {page}, vCPU {vcpu}, word {index}", self.name);
        }
    }
}
