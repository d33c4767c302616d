//! What the driver does: sessions of the dirty log, each with a shadow, and what else changes memory meanwhile.
//!
//! ```text
//!  DIRTY_START ─▶ SHADOW begin ─▶ (SHADOW round ─▶ something else) as often ─▶ SHADOW end ─▶ DIRTY_STOP
//! ```
//!
//! | something else | why |
//! | --- | --- |
//! | MOVE pages of a worker | content that comes back in other frames |
//! | DIRTY_HARVEST of a block that has no shadow, with the bitmap in a page that has | a write by EL2, which no table walk sees |
//! | AGE, with its bitmap in the range, too | accessed flags go and come in the leaves that are logged |
//! | POPULATE, RELEASE of pages of the driver | installs and unmaps that are no fault |
//! | PROTECT of pages of the driver, and back some time later | a dirty record that somebody else takes |
//! | SPLIT, COLLAPSE, COPY of a worker's block, if there are blocks | records that change their size |

use core::sync::atomic::Ordering;

use guest_rt::rng::mix;
use guest_rt::{MIB2, PAGE, check, check_eq, cpu, smp};
use hyp_abi::call::{
    AGE, COLLAPSE, COPY, DIRTY_HARVEST, DIRTY_START, MOVE, POPULATE, PROT_EXEC_EL0, PROT_EXEC_EL1,
    PROT_READ, PROT_WRITE, PROTECT, RELEASE, SHADOW, SHADOW_BEGIN, SHADOW_END, SHADOW_ROUND, SPLIT,
};

use super::calls::{call, on_range};
use super::page::Page;
use super::steps;
use super::work::{Progress, SHARED};

/// Everything that a page may permit.
pub(crate) const ALL: u64 = PROT_READ | PROT_WRITE | PROT_EXEC_EL1 | PROT_EXEC_EL0;
/// The driver's first page in the shared block, and the first of two for bitmaps that EL2 writes.
const FIRST: usize = SHARED + 8;
const BITMAP: usize = SHARED;
/// The driver's pages.
const PAGES: usize = 32;
const LIMITED: usize = 4;
/// Pages that a word of a bitmap has.
const WORD: usize = u64::BITS as usize;
/// Pages of a block that may be missing when it is copied.
const HOLES: u64 = 511;
/// Things that the workers do between two harvests, at the least.
const BETWEEN: u64 = 40;
/// Seconds that the driver waits for them.
const PATIENCE: u64 = 60;

/// What sessions have come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) sessions: u64,
    /// Pages that were reported and copied while the workers ran.
    pub(crate) copied: u64,
    /// And after they had been stopped.
    pub(crate) stopped: u64,
}

/// The driver: what is logged, and its own pages.
pub(crate) struct Driver<'a> {
    start: usize,
    blocks: usize,
    /// There are blocks.
    resizes: bool,
    pages: [Page; PAGES],
    /// Pages that are read-only now and then, and whether they are.
    limited: [Page; LIMITED],
    protected: bool,
    dice: u64,
    workers: &'a Progress,
    pub(crate) sum: Sum,
}

impl<'a> Driver<'a> {
    /// Logs so many spans of 2 MiB from `start` on, of which the last one is shared; and another, without a shadow.
    pub(crate) fn new(start: usize, blocks: usize, resizes: bool, workers: &'a Progress) -> Self {
        let first = start + (blocks - 1) * MIB2 + FIRST * PAGE;
        let pages = core::array::from_fn(|page| Page::new(first + page * PAGE));
        let limited = core::array::from_fn(|page| Page::new(first + (PAGES + page) * PAGE));
        let protected = false;
        Self {
            start,
            blocks,
            resizes,
            pages,
            limited,
            protected,
            dice: 0,
            workers,
            sum: Sum::default(),
        }
    }

    const fn bytes(&self) -> usize {
        self.blocks * MIB2
    }

    /// Begins a session, and goes so many rounds. In every other session blocks are split.
    pub(crate) fn begin(&mut self, rounds: usize) {
        let (start, bytes) = (self.start, self.bytes());
        let logged = (bytes + MIB2) as u64;
        call(DIRTY_START, [start as u64, logged, (self.sum.sessions + 1) & 1]);
        let [made, _] = call(SHADOW, [SHADOW_BEGIN, start as u64, bytes as u64]);
        check_eq!(made, bytes as u64, "bytes of the shadow");
        for _ in 0..rounds {
            self.sum.copied += self.round();
            self.something();
            self.wait_for_workers();
        }
    }

    /// One session, with so many rounds.
    pub(crate) fn session(&mut self, rounds: usize) {
        self.begin(rounds);
        let [copied, differs] = call(SHADOW, [SHADOW_END, 0, 0]);
        check_eq!(differs, 0, "the first page that is not what was reported of it");
        self.sum.stopped += copied;
        steps::stop(self.bytes() + MIB2);
        self.sum.sessions += 1;
    }

    /// Waits until the workers have written something, however the host runs them.
    fn wait_for_workers(&self) {
        let steps = || self.workers.steps.load(Ordering::Relaxed);
        let (before, begun) = (steps(), cpu::ticks());
        while steps() < before + BETWEEN {
            let waited = cpu::ticks() - begun;
            check!(waited < PATIENCE * cpu::tick_rate(), "the workers stand still");
            smp::relax();
        }
    }

    /// Has all of the range harvested and copied; returns the pages.
    fn round(&self) -> u64 {
        let (mut done, mut copied) = (0, 0);
        while done < self.bytes() {
            let rest = [self.start + done, self.bytes() - done].map(|it| it as u64);
            let [bytes, pages] = call(SHADOW, [SHADOW_ROUND, rest[0], rest[1]]);
            done += bytes as usize;
            copied += pages;
        }
        copied
    }

    /// Changes memory in one of the ways.
    fn something(&mut self) {
        self.dice += 1;
        let dice = mix(self.dice) as usize;
        let block = self.start + (dice >> 8) % (self.blocks - 1) * MIB2;
        let shared = self.start + (self.blocks - 1) * MIB2;
        match dice % if self.resizes { 9 } else { 6 } {
            0 => {
                let first = block + (dice >> 16) % 400 * PAGE;
                call(MOVE, [first as u64, (1 + (dice >> 32) % 100) as u64 * PAGE as u64, 0]);
            }
            1 => self.have_el2_write(shared + BITMAP * PAGE, dice >> 16),
            2 => {
                let page = &mut self.pages[(dice >> 16) % PAGES];
                page.gone();
                on_range(RELEASE, page.address(), PAGE, 0);
                on_range(POPULATE, page.address(), PAGE, 0);
            }
            3 => self.protect(),
            4 => {
                for page in &mut self.pages {
                    page.verify();
                    page.poke(dice >> 16);
                }
            }
            5 => {
                on_range(AGE, block, MIB2, (shared + (BITMAP + 1) * PAGE) as u64);
            }
            6 => _ = on_range(SPLIT, block, MIB2, 0),
            7 => _ = on_range(COLLAPSE, block, MIB2, 0),
            _ => _ = on_range(COPY, block, MIB2, HOLES),
        }
    }

    /// Has EL2 write a bitmap: of the first pages behind all that has a shadow, some of which are written before.
    fn have_el2_write(&self, bitmap: usize, dice: usize) {
        let start = self.start + self.bytes();
        for page in (0..WORD).filter(|page| dice >> page & 1 == 1) {
            // SAFETY: 1. RAM of the driver's, in the identity map.
            unsafe { ((start + page * PAGE) as *mut usize).write_volatile(dice) };
        }
        let bytes = WORD * PAGE;
        call(DIRTY_HARVEST, [start as u64, bytes as u64, bitmap as u64]);
        // SAFETY: 1. RAM in the identity map; 2. any bits are a usize.
        let found = unsafe { (bitmap as *const usize).read_volatile() };
        check_eq!(found & dice, dice, "the bits of pages that were written, in the bitmap");
    }

    /// Writes pages and takes the permission to write them; the next time it gives that back. Meanwhile a session may end.
    fn protect(&mut self) {
        let [start, bytes] = [self.limited[0].address(), self.limited.len() * PAGE];
        if self.protected {
            self.limited.iter().for_each(Page::verify);
            on_range(PROTECT, start, bytes, ALL);
        } else {
            self.limited.iter_mut().for_each(Page::rewrite);
            on_range(PROTECT, start, bytes, PROT_READ);
        }
        self.protected = !self.protected;
    }

    /// Verifies the driver's pages.
    pub(crate) fn verify(&self) {
        self.pages.iter().chain(&self.limited).for_each(Page::verify);
    }
}
