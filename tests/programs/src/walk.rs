//! A walk as hardware makes it, with nothing of `stage2` but the memory that the slots are.

use std::collections::BTreeMap;

use mmu_oracle::OracleMachine;
use stage2::slot::native;
use stage2::{Pa, Slot, Table};

use crate::format::{self, Kind, Machine, Meaning};

/// Bits of address below each level's index.
const SHIFT: [u32; 4] = [39, 30, 21, 12];

/// The tables of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'m> {
    /// Where they lie.
    pub memory: &'m OracleMachine,
    /// First root page.
    pub root: u64,
    /// Pages of the root.
    pub root_pages: u64,
    /// Level at which walks start.
    pub start: usize,
    /// Bits of IPA.
    pub ipa_bits: u32,
    /// How leaves are read.
    pub machine: Machine,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub struct Stop<'m> {
    /// Level of the slot.
    pub level: usize,
    /// First IPA that the slot translates.
    pub start: u64,
    /// Address of the table page that the slot is in.
    pub table: u64,
    /// The slot.
    pub slot: &'m Slot,
    /// What it holds.
    pub bits: u64,
}

impl Stop<'_> {
    /// Address of the slot.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.table + (self.start >> SHIFT[self.level]) % 512 * 8
    }
}

/// The first IPA of the span of a slot of `level` that holds `ipa`.
#[must_use]
pub const fn base(ipa: u64, level: usize) -> u64 {
    ipa >> SHIFT[level] << SHIFT[level]
}

/// Bytes that a slot of `level` spans.
#[must_use]
pub const fn span(level: usize) -> u64 {
    1 << SHIFT[level]
}

impl<'m> Tables<'m> {
    /// The table page at an address that a descriptor gave.
    #[must_use]
    pub fn page(&self, address: u64) -> &'m Table {
        // SAFETY: (1) linked, and nobody frees while these programs look: one thread runs them.
        unsafe { self.memory.table_at(Pa::new(address)) }
    }

    /// Walks down to `last` at the most. `None` beyond the IPA size.
    #[must_use]
    pub fn walk(&self, ipa: u64, last: usize) -> Option<Stop<'m>> {
        if ipa >> self.ipa_bits != 0 {
            return None;
        }
        let mut level = self.start;
        let mut table = self.root + (ipa >> SHIFT[level] >> 9) * 4096;
        loop {
            let slot = self.page(table).slot((ipa >> SHIFT[level]) as usize % 512);
            let bits = native::load(slot);
            match format::read(bits, level, self.machine) {
                Meaning::Table { address } if level < last => (level, table) = (level + 1, address),
                _ => return Some(Stop { level, start: base(ipa, level), table, slot, bits }),
            }
        }
    }

    /// What an access to `ipa` comes to: the leaf that translates it.
    #[must_use]
    pub fn translate(&self, ipa: u64) -> Option<(Stop<'m>, format::Leaf)> {
        let stop = self.walk(ipa, 3)?;
        match format::read(stop.bits, stop.level, self.machine) {
            Meaning::Leaf(leaf) => Some((stop, leaf)),
            _ => None,
        }
    }

    /// The level of every table that is linked, by its address, the root's pages too; every slot that is neither zero nor a
    /// link, by its first IPA and level.
    #[must_use]
    pub fn all(&self) -> (BTreeMap<u64, usize>, BTreeMap<(u64, usize), u64>) {
        let roots = (0..self.root_pages)
            .map(|n| (self.root + n * 4096, self.start, n << 9 << SHIFT[self.start]));
        let mut todo: Vec<(u64, usize, u64)> = roots.collect();
        let (mut tables, mut slots) = (BTreeMap::new(), BTreeMap::new());
        while let Some((table, level, ipa)) = todo.pop() {
            assert_eq!(tables.insert(table, level), None, "table {table:#x} is linked twice");
            for (index, slot) in (0..).zip(self.page(table).slots()) {
                let (bits, ipa) = (native::load(slot), ipa + (index << SHIFT[level]));
                match format::kind(bits, level) {
                    Kind::Table => {
                        todo.push((format::TABLE_ADDRESS.of(bits) << 12, level + 1, ipa))
                    }
                    _ if bits != 0 => _ = slots.insert((ipa, level), bits),
                    _ => {}
                }
            }
        }
        (tables, slots)
    }

    /// Every table that is linked, but the root's pages: by level and first IPA, whether it has anything in it.
    #[must_use]
    pub fn linked(&self) -> BTreeMap<(usize, u64), bool> {
        let roots = (0..self.root_pages)
            .map(|n| (self.root + n * 4096, self.start, n << 9 << SHIFT[self.start]));
        let mut todo: Vec<(u64, usize, u64)> = roots.collect();
        let mut found = BTreeMap::new();
        while let Some((table, level, first)) = todo.pop() {
            let mut used = false;
            for (index, slot) in (0..).zip(self.page(table).slots()) {
                let (bits, ipa) = (native::load(slot), first + (index << SHIFT[level]));
                used |= bits != 0;
                if format::kind(bits, level) == Kind::Table {
                    todo.push((format::TABLE_ADDRESS.of(bits) << 12, level + 1, ipa));
                }
            }
            if level > self.start {
                found.insert((level, first), used);
            }
        }
        found
    }
}
