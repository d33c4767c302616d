//! What the manager does next, and where: all of it follows from a seed.
//!
//! For 32 steps all happens at one [place](Dice::place), so that what one step leaves behind the next one meets. Then the place changes.

use super::Kind;
use crate::range::{IpaRange, PAGE_SIZE};

/// Bytes of a block.
pub const BLOCK: u64 = hyp_abi::call::BLOCK;
/// Pages of a block.
const PAGES: u64 = BLOCK / PAGE_SIZE;
/// Blocks of a place.
const PLACE: u64 = 8;
/// Steps at a place.
const STEPS: u32 = 32;
/// Pages of a move that takes no whole block, at the most.
const MOVED: u64 = 64;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Kind::WriteProtect`] of whole blocks.
    WriteProtect(IpaRange),
    /// [`Kind::Harvest`], wherever that is.
    Harvest,
    /// [`Kind::Age`] of whole blocks.
    Age(IpaRange),
    /// [`Kind::Split`] of whole blocks.
    Split(IpaRange),
    /// [`Kind::Collapse`] of whole blocks.
    Collapse(IpaRange),
    /// [`Kind::Copy`] of whole blocks.
    Copy {
        /// Those.
        range: IpaRange,
        /// Pages of a block that may be missing, 0 to 511.
        holes: u64,
    },
    /// [`Kind::Move`] of pages of one block.
    Move(IpaRange),
    /// [`Kind::Run`] in whole blocks, which are split for it.
    Run {
        /// Those.
        range: IpaRange,
        /// Whether the runs are [dissolved](Kind::Dissolve) at once, if nobody else was faster.
        and_dissolve: bool,
    },
    /// [`Kind::Dissolve`] in whole blocks.
    Dissolve(IpaRange),
}

impl Step {
    /// Of which kind it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::WriteProtect(_) => Kind::WriteProtect,
            Self::Harvest => Kind::Harvest,
            Self::Age(_) => Kind::Age,
            Self::Split(_) => Kind::Split,
            Self::Collapse(_) => Kind::Collapse,
            Self::Copy { .. } => Kind::Copy,
            Self::Move(_) => Kind::Move,
            Self::Run { .. } => Kind::Run,
            Self::Dissolve(_) => Kind::Dissolve,
        }
    }
}

/// How often each kind comes, of 32. A collapse needs pages that were a block before; a block comes from a copy, and is then split.
pub(super) const WAYS: [(Kind, u64); 9] = [
    (Kind::WriteProtect, 3),
    (Kind::Harvest, 4),
    (Kind::Age, 2),
    (Kind::Split, 5),
    (Kind::Collapse, 3),
    (Kind::Copy, 5),
    (Kind::Move, 4),
    (Kind::Run, 3),
    (Kind::Dissolve, 3),
];

/// What is done next, and where: all of it follows from the seed.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
    /// Whole blocks.
    ram: IpaRange,
    /// Blocks of it.
    place: IpaRange,
    /// Steps that are left at the place, 1 at the least.
    left: u32,
}

impl Dice {
    /// For RAM that begins where a block does; `None` if there is not one whole block in it.
    #[must_use]
    pub fn new(seed: u64, ram: IpaRange) -> Option<Self> {
        let end = ram.end.checked_div(BLOCK)?.checked_mul(BLOCK)?;
        let ram = IpaRange::new(ram.start, end).filter(|ram| !ram.is_empty())?;
        let aligned = ram.start.is_multiple_of(BLOCK);
        let mut dice = aligned.then_some(Self { state: seed, ram, place: ram, left: 0 })?;
        dice.move_on();
        Some(dice)
    }

    /// Where the next step is, unless it is a harvest.
    #[must_use]
    pub const fn place(&self) -> IpaRange {
        self.place
    }

    /// Leaves the place for another.
    pub fn move_on(&mut self) {
        let blocks = self.ram.len() / BLOCK;
        let most = blocks.min(PLACE);
        let first = self.below(blocks.saturating_sub(most).saturating_add(1));
        self.place = blocks_from(self.ram.start, first, most);
        self.left = STEPS;
    }

    /// A number below `end`, which is 0 if that is.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll().checked_rem(end).unwrap_or(0)
    }

    /// The next step; of whole blocks at the most `most`, which is at least taken for 1.
    pub fn step(&mut self, most: u64) -> Step {
        let kind = self.kind();
        let blocks = self.place.len() / BLOCK;
        let count = self.below(most.clamp(1, blocks)).saturating_add(1);
        let first = self.below(blocks.saturating_sub(count).saturating_add(1));
        let range = blocks_from(self.place.start, first, count);
        let step = match kind {
            Kind::WriteProtect => Step::WriteProtect(range),
            Kind::Harvest | Kind::Session | Kind::Compare => Step::Harvest,
            Kind::Age => Step::Age(range),
            Kind::Split => Step::Split(range),
            Kind::Collapse => Step::Collapse(range),
            Kind::Copy => Step::Copy { range, holes: self.holes() },
            Kind::Move => Step::Move(self.pages(range.start)),
            Kind::Run => Step::Run { range, and_dissolve: self.below(2) == 0 },
            Kind::Dissolve => Step::Dissolve(range),
        };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.move_on();
        }
        step
    }

    fn kind(&mut self) -> Kind {
        let all = WAYS.iter().fold(0_u64, |sum, (_, weight)| sum.saturating_add(*weight));
        let mut dice = self.below(all);
        for (kind, weight) in WAYS {
            match dice.checked_sub(weight) {
                Some(less) => dice = less,
                None => return kind,
            }
        }
        Kind::Harvest
    }

    /// How many pages a copy may fill: none, as many as a scan does, or any number.
    fn holes(&mut self) -> u64 {
        match self.below(3) {
            0 => 0,
            1 => 64,
            _ => PAGES.saturating_sub(1),
        }
    }

    /// Pages of a block: all of them, one time in four.
    fn pages(&mut self, block: u64) -> IpaRange {
        let (first, count) = match self.below(4) {
            0 => (0, PAGES),
            _ => {
                let count = self.below(MOVED).saturating_add(1);
                (self.below(PAGES.saturating_sub(count).saturating_add(1)), count)
            }
        };
        let start = block.saturating_add(first.saturating_mul(PAGE_SIZE));
        IpaRange { start, end: start.saturating_add(count.saturating_mul(PAGE_SIZE)) }
    }

    /// Splitmix64: the finaliser of a counter.
    fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.state;
        let z = (z ^ z.wrapping_shr(30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z.wrapping_shr(27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z.wrapping_shr(31)
    }
}

/// `count` blocks, `first` blocks behind `start`.
fn blocks_from(start: u64, first: u64, count: u64) -> IpaRange {
    let start = start.saturating_add(first.saturating_mul(BLOCK));
    IpaRange { start, end: start.saturating_add(count.saturating_mul(BLOCK)) }
}
