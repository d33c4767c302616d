//! What a worker does with its block, and with pages that all workers write.
//!
//! | of 16 | what |
//! | --- | --- |
//! | 5 | a page is verified and written anew |
//! | 5 | a page is verified, and a word of it changed |
//! | 2 | a word that all workers add to, each in a lane of its own |
//! | 1 | a page is zeroed by DC ZVA |
//! | 1 | a page is released |
//! | 1 | a store that crosses from one page to the next |
//! | 1 | the access flag in a table of stage 1 is cleared, or set by the walker (`walk`) |

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_rt::rng::mix;
use guest_rt::{MIB2, PAGE, check_eq};
use hyp_abi::call::RELEASE;

use super::calls::on_range;
use super::page::Page;
use super::walk::Walked;

/// Pages of a block that are written.
pub(crate) const PAGES: usize = 160;
/// Pages from one of these to the next: they lie all over the block.
const STEP: usize = 3;
/// Two neighbours behind them.
const SEAM: usize = PAGES * STEP + 1;
/// Bytes of a store across the two that lie in the first.
const ACROSS: usize = 4;
/// Where the tables of stage 1 are that hardware writes.
const TABLES: usize = SEAM + 2;
/// Pages that all workers add to.
pub(crate) const SHARED: usize = 8;

/// A worker.
pub(crate) struct Worker {
    block: usize,
    pages: [Page; PAGES],
    /// Where it adds in the shared pages, and what it has added.
    lane: usize,
    added: [u64; SHARED],
    seam: u64,
    walked: Option<Walked>,
}

impl Worker {
    /// The worker of a number, whose block and whose share of the block at `shared` nobody has touched.
    pub(crate) fn new(number: usize, block: usize, shared: usize) -> Self {
        let pages = core::array::from_fn(|page| Page::new(block + page * STEP * PAGE));
        let lane = shared + number * size_of::<u64>();
        let walked = Walked::new(number, block + TABLES * PAGE, block);
        Self { block, pages, lane, added: [0; SHARED], seam: 0, walked }
    }

    /// Does one thing.
    pub(crate) fn step(&mut self, dice: usize) {
        let page = &mut self.pages[(dice >> 8) % PAGES];
        match dice % 16 {
            0..=4 => {
                page.verify();
                page.rewrite();
            }
            5..=9 => {
                page.verify();
                page.poke(dice >> 20);
            }
            10..=11 => self.add((dice >> 8) % SHARED),
            12 => page.zero(),
            13 => {
                page.gone();
                on_range(RELEASE, page.address(), PAGE, 0);
            }
            14 => self.cross(),
            _ => match &mut self.walked {
                Some(walked) => walked.step(),
                None => page.verify(),
            },
        }
    }

    /// Adds to a word of a shared page.
    fn add(&mut self, page: usize) {
        // SAFETY: 1. RAM in the identity map, aligned; 2. only accessed atomically.
        let lane = unsafe { AtomicU64::from_ptr((self.lane + page * PAGE) as *mut u64) };
        let before = lane.fetch_add(1, Ordering::Relaxed);
        check_eq!(before, self.added[page], "a word of shared page {page}, before it is added to");
        self.added[page] += 1;
    }

    /// Writes a word that lies in two pages.
    fn cross(&mut self) {
        let word = (self.block + (SEAM + 1) * PAGE - ACROSS) as *mut u64;
        // SAFETY: 1. RAM of this worker in the identity map; 2. any bits are a u64.
        let found = unsafe { word.read_unaligned() };
        check_eq!(found, self.seam, "a word across two pages");
        self.seam = mix(self.seam);
        // SAFETY: 1. as above.
        unsafe { word.write_unaligned(self.seam) };
    }

    /// Verifies everything.
    fn verify(&self) {
        self.pages.iter().for_each(Page::verify);
    }
}

/// What workers and driver know of each other.
pub(crate) struct Progress {
    /// Things that all workers have done.
    pub(crate) steps: AtomicU64,
    /// They are to come to an end.
    pub(crate) stop: AtomicBool,
}

/// Works until told to stop.
pub(crate) fn work(number: usize, block: usize, shared: usize, progress: &Progress) {
    let mut worker = Worker::new(number, block, shared);
    let mut steps = 0;
    while !progress.stop.load(Ordering::Acquire) {
        worker.step(mix(steps << 8 | number as u64) as usize);
        steps += 1;
        progress.steps.fetch_add(1, Ordering::Relaxed);
    }
    worker.verify();
}

/// A worker's block has room for all of it.
const _: () = assert!((TABLES + 2) * PAGE <= MIB2);
