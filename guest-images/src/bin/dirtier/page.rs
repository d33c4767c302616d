//! A page with a version and a checksum.
//!
//! | word | what |
//! | --- | --- |
//! | 0 | the version: raised by each change |
//! | 1 | the checksum of the rest: a sum over places, so that the change of a word changes it by a difference |
//! | 2 ... | follow from the page and the version in which all of it was written; or a single word was changed later |
//!
//! All zero, or not there, is version 0. The vCPU that writes a page keeps version and checksum for itself, too: an old
//! page, whole as it may be, is told from the right one.

use core::arch::asm;

use guest_rt::rng::mix;
use guest_rt::{PAGE, check_eq};

/// Words of a page.
const WORDS: usize = PAGE / 8;
/// Those in front of the content.
const HEAD: usize = 2;

/// A page and what it must hold.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    address: usize,
    version: u64,
    sum: u64,
}

impl Page {
    /// A page that nobody has touched.
    pub(crate) const fn new(address: usize) -> Self {
        Self { address, version: 0, sum: 0 }
    }

    pub(crate) const fn address(&self) -> usize {
        self.address
    }

    fn read(&self, place: usize) -> u64 {
        // SAFETY: 1. a page of RAM in the identity map; 2. any bits are a u64.
        unsafe { (self.address as *const u64).add(place).read_volatile() }
    }

    fn write(&self, place: usize, word: u64) {
        // SAFETY: 1. a page of RAM in the identity map, which only this vCPU writes.
        unsafe { (self.address as *mut u64).add(place).write_volatile(word) };
    }

    /// What a word adds to the checksum.
    fn share(place: usize, word: u64) -> u64 {
        mix(word ^ (place as u64) << 52)
    }

    /// Writes all of it.
    pub(crate) fn rewrite(&mut self) {
        self.version += 1;
        self.sum = 0;
        for place in HEAD..WORDS {
            let word = mix(self.address as u64 ^ self.version << 40 ^ place as u64);
            self.sum = self.sum.wrapping_add(Self::share(place, word));
            self.write(place, word);
        }
        self.write(0, self.version);
        self.write(1, self.sum);
    }

    /// Changes one word of a page that was written, and the head.
    pub(crate) fn poke(&mut self, dice: usize) {
        if self.version == 0 {
            return self.rewrite();
        }
        let place = HEAD + dice % (WORDS - HEAD);
        let (old, new) = (self.read(place), mix(dice as u64 ^ self.version));
        self.write(place, new);
        let (old, new) = (Self::share(place, old), Self::share(place, new));
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
        self.version += 1;
        self.write(0, self.version);
        self.write(1, self.sum);
    }

    /// Zeroes it by DC ZVA, which writes without a store.
    pub(crate) fn zero(&mut self) {
        // SAFETY: 1. DCZID_EL0 can be read at any time; 2. DC ZVA keeps to the block that it is aligned to, which divides
        // this vCPU's page.
        unsafe {
            let id: usize;
            asm!("mrs {}, dczid_el0", out(reg) id, options(nomem, nostack, preserves_flags));
            for at in (0..PAGE).step_by(4 << (id & 0xf)) {
                asm!("dc zva, {}", in(reg) self.address + at, options(nostack, preserves_flags));
            }
        }
        self.gone();
    }

    /// It was given back: what it held is gone.
    pub(crate) const fn gone(&mut self) {
        self.version = 0;
        self.sum = 0;
    }

    /// Verifies it.
    pub(crate) fn verify(&self) {
        check_eq!(self.read(0), self.version, "the version of the page at {:#x}", self.address);
        check_eq!(self.read(1), self.sum, "the checksum in the page at {:#x}", self.address);
        let shares = (HEAD..WORDS).map(|place| {
            let word = self.read(place);
            if self.version == 0 { word } else { Self::share(place, word) }
        });
        let sum = shares.fold(0, u64::wrapping_add);
        check_eq!(sum, self.sum, "the checksum of the page at {:#x}", self.address);
    }
}
