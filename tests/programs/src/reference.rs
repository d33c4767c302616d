//! What the tables of a VM must say, as ordered maps.

use std::collections::BTreeMap;

use stage2::{Attributes, Level, Owner, Pa};

use crate::walk::{base, span};

/// A leaf that must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its level.
    pub level: usize,
    /// Where it points.
    pub frame: Pa,
    /// What it allows.
    pub attributes: Attributes,
    /// Whose the memory is.
    pub owner: Owner,
}

/// What a walk must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A leaf, and its first IPA.
    Leaf(u64, Leaf),
    /// A slot at this level that holds something invalid that was put there.
    Obstacle(usize, u64),
    /// Nothing.
    Nothing,
}

/// The reference of a VM.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// By first IPA. A leaf in Drain is none; one under a Busy slot is, and cannot be reached.
    pub leaves: BTreeMap<u64, Leaf>,
    /// What was put into slots, by level and first IPA.
    pub obstacles: BTreeMap<(usize, u64), u64>,
}

impl Leaf {
    /// Level as `stage2` has it.
    #[must_use]
    pub const fn at(&self) -> Level {
        match self.level {
            1 => Level::L1,
            2 => Level::L2,
            _ => Level::L3,
        }
    }
}

impl Reference {
    /// The leaf that covers `ipa`, with its first IPA.
    #[must_use]
    pub fn leaf(&self, ipa: u64) -> Option<(u64, Leaf)> {
        let (start, leaf) = self.leaves.range(..=ipa).next_back()?;
        (ipa - start < span(leaf.level)).then_some((*start, *leaf))
    }

    /// What a walk for `ipa` from level `start` must come to.
    #[must_use]
    pub fn expected(&self, ipa: u64, start: usize) -> Expected {
        let leaf = self.leaf(ipa);
        for level in start..=3 {
            if let Some(bits) = self.obstacles.get(&(level, base(ipa, level))) {
                return Expected::Obstacle(level, *bits);
            }
            if let Some((from, leaf)) = leaf.filter(|(_, leaf)| leaf.level == level) {
                return Expected::Leaf(from, leaf);
            }
        }
        Expected::Nothing
    }

    /// Whether any leaf lies in the span of the slot of `level` that holds `ipa`.
    #[must_use]
    pub fn any_within(&self, ipa: u64, level: usize) -> bool {
        let from = base(ipa, level);
        self.leaves.range(from..from + span(level)).next().is_some()
    }

    /// A leaf appears where there was none.
    ///
    /// # Panics
    /// If there was one.
    pub fn add(&mut self, ipa: u64, leaf: Leaf) {
        let from = base(ipa, leaf.level);
        assert_eq!(self.leaf(from), None, "{ipa:#x} was mapped");
        assert!(!self.any_within(ipa, leaf.level), "part of {ipa:#x} was mapped");
        self.leaves.insert(from, leaf);
    }
}
