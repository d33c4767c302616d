//! What a worker does with its 2 MiB block.
//!
//! | page of the block | what |
//! | --- | --- |
//! | 0 ... | data, reached through an alias only |
//! | from [`NOTHING`] | nothing was ever written: zeros, populated or not |
//! | [`CODE`] | a function that returns the block's number |
//! | [`TABLE2`], [`TABLE3`] | the alias's own stage-1 tables |
//!
//! Each word of a data page follows from the page, its version and its place, so an old page, another's
//! page and poison are all told from the right one.

use aarch64_cpu::asm::barrier;
use guest_rt::cache::sync_code;
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, Size, Table};
use guest_rt::rng::mix;
use guest_rt::{PAGE, check_eq};

/// Data pages that a block has room for.
pub(crate) const MAX_PAGES: usize = 256;
const NOTHING: usize = MAX_PAGES;
const CODE: usize = 300;
const TABLE2: usize = 400;
const TABLE3: usize = 511;
/// Words of a page.
const WORDS: usize = PAGE / 8;
/// Rounds between two flushes of the vCPU's own stage 1, which make it walk the moved tables again.
const FLUSH: u64 = 8;

const RET: u32 = 0xd65f_03c0;

/// A worker's block, or the one that all read.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    start: usize,
    number: usize,
    pages: usize,
}

impl Block {
    pub(crate) const fn new(start: usize, number: usize, pages: usize) -> Self {
        Self { start, number, pages }
    }

    const fn page(&self, page: usize) -> usize {
        self.start + page * PAGE
    }

    /// Where a page is reached through the alias.
    const fn alias(&self, page: usize) -> usize {
        mmu::slot_va(ALIAS_SLOT + self.number) + page * PAGE
    }

    /// Builds the alias, the code, and version 0 of every page.
    pub(crate) fn prepare(&self) {
        // SAFETY: 1. RAM of the arena, inside the identity map; 2. used as tables only.
        let (two, three) = unsafe { (Table::at(self.page(TABLE2)), Table::at(self.page(TABLE3))) };
        for page in 0..WORDS {
            let executable = page == CODE;
            three.set(page, mmu::leaf(self.page(page), Size::Page, Attr::WriteBack, executable));
        }
        two.set(0, mmu::table(self.page(TABLE3)));
        mmu::ROOT.set(ALIAS_SLOT + self.number, mmu::table(self.page(TABLE2)));
        mmu::publish();
        let code = self.alias(CODE) as *mut u32;
        // MOVZ X0, #number; RET.
        let words = [0xd280_0000 | (self.number as u32) << 5, RET];
        for (place, word) in words.into_iter().enumerate() {
            // SAFETY: 1. mapped above, writable; 2. nobody runs it yet.
            unsafe { code.add(place).write_volatile(word) };
        }
        sync_code(self.alias(CODE), 8);
        (0..self.pages).for_each(|page| self.write(page, 0));
    }

    /// The word at a place of a page in a version.
    fn word(&self, page: usize, version: u64, place: usize) -> u64 {
        mix((self.number as u64) << 48 | (page as u64) << 32 | version << 12 | place as u64)
    }

    fn write(&self, page: usize, version: u64) {
        let words = self.alias(page) as *mut u64;
        for place in 0..WORDS {
            // SAFETY: 1. a data page of the alias, which only this vCPU writes; 2. any bits are a u64.
            unsafe { words.add(place).write_volatile(self.word(page, version, place)) };
        }
    }

    fn read(&self, page: usize, version: u64) {
        let words = self.alias(page) as *const u64;
        for place in 0..WORDS {
            // SAFETY: 1. a data page of the alias; 2. any bits are a u64.
            let found = unsafe { words.add(place).read_volatile() };
            let wanted = self.word(page, version, place);
            check_eq!(
                found,
                wanted,
                "block {}, page {page}, version {version}, word {place}",
                self.number
            );
        }
    }

    /// A page that nobody has written, by a word of it.
    fn read_nothing(&self, dice: usize) {
        let (page, place) = (NOTHING + dice % (CODE - NOTHING), (dice >> 16) % WORDS);
        // SAFETY: 1. a page of the alias; 2. any bits are a u64.
        let found = unsafe { (self.alias(page) as *const u64).add(place).read_volatile() };
        check_eq!(found, 0, "block {}, page {page}, which nobody wrote", self.number);
    }

    fn run_code(&self) {
        // SAFETY: 1. `prepare` wrote a function of this type there.
        let code: extern "C" fn() -> usize = unsafe { core::mem::transmute(self.alias(CODE)) };
        check_eq!(code(), self.number, "the code of block {}", self.number);
    }

    /// Verifies that every page is as `prepare` left it.
    pub(crate) fn verify(&self) {
        (0..self.pages).for_each(|page| self.read(page, 0));
    }
}

/// Verifies and rewrites pages of a worker's blocks in turn until it is over; returns how many.
pub(crate) fn work(mine: &[Block; 2], shared: &Block, is_over: impl Fn() -> bool) -> usize {
    let mut versions = [[0u64; MAX_PAGES]; 2];
    // Both may be the same one.
    let used = 1 + usize::from(mine[0].number != mine[1].number);
    let mut rounds = 0u64;
    while !is_over() {
        let turn = rounds as usize % used;
        let (block, versions) = (&mine[turn], &mut versions[turn]);
        let dice = mix(rounds << 8 | block.number as u64) as usize;
        let page = dice % block.pages;
        block.read(page, versions[page]);
        versions[page] += 1;
        block.write(page, versions[page]);
        shared.read((dice >> 16) % block.pages, 0);
        block.run_code();
        shared.run_code();
        rounds += 1;
        if rounds.is_multiple_of(FLUSH) {
            block.read_nothing(dice >> 8);
            forget_stage1();
        }
    }
    for (block, versions) in mine.iter().zip(&versions).take(used) {
        for (page, version) in versions.iter().enumerate().take(block.pages) {
            block.read(page, *version);
            // So that `verify` knows what to expect.
            block.write(page, 0);
        }
    }
    rounds as usize
}

/// Drops this vCPU's stage-1 translations.
fn forget_stage1() {
    // SAFETY: 1. invalidating a TLB changes no mapping; 2. completed by the DSB.
    unsafe { core::arch::asm!("tlbi vmalle1", options(nostack, preserves_flags)) };
    barrier::dsb(barrier::NSH);
    barrier::isb(barrier::SY);
}
