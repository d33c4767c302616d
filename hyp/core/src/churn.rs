//! A manager of guest memory that never rests: what it is asked for, what it does next, and what came of it.
//!
//! The word `churn=SECONDS[,seed=N]` has the hypervisor change how the guest's RAM is kept, at random and under a guest that knows nothing
//! of it. Here is the random part, in plain values: [`Dice`] say what is done next, and where.
//!
//! | kind | what it does to a guest that is none of its business |
//! | --- | --- |
//! | `write-protect` | the next write of each page faults, and is allowed |
//! | `harvest` | the next write of each page faults, or is recorded by hardware |
//! | `age` | the next access of each page faults, or is recorded by hardware |
//! | `split`, `collapse` | 2 MiB are translated by another number of TLB entries |
//! | `copy` | pages are copied into a block, and what was missing there is populated |
//! | `move` | pages are copied to other frames |
//! | `run`, `dissolve` | 16 pages may be one TLB entry, or may not |
//! | `compare` | a second copy of RAM, kept by harvests alone, is compared byte for byte |
//!
//! For a while all happens at one [place](Dice::place), so that what one step leaves behind the next one meets. Then the place changes.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::format;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::range::{Count, IpaRange, PAGE_SIZE};

/// Bytes of a block.
pub const BLOCK: u64 = hyp_abi::call::BLOCK;
/// Pages of a block.
const PAGES: u64 = BLOCK / PAGE_SIZE;
/// The longest time, in seconds: a day.
pub const MAX_SECONDS: u32 = 86_400;
/// Blocks of a place.
const PLACE: u64 = 8;
/// Steps at a place.
const STEPS: u32 = 32;
/// Pages of a move that takes no whole block, at the most.
const MOVED: u64 = 64;
/// What a value of the word may be, in words.
pub const WANTED: &str = "a number of seconds from 1 to 86400, and perhaps \",seed=N\"";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For how long, from the start of each life of the VM on, in seconds.
    pub seconds: u32,
    /// What the order of all steps follows from.
    pub seed: u64,
}

impl Wanted {
    /// Reads `SECONDS[,seed=N]`; `None` if it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (seconds, seed) = match text.split_once(",seed=") {
            Some((seconds, seed)) => (seconds, decimal(seed)?),
            None => (text, 0),
        };
        let seconds = u32::try_from(decimal(seconds)?).ok()?;
        (1..=MAX_SECONDS).contains(&seconds).then_some(Self { seconds, seed })
    }
}

impl fmt::Display for Wanted {
    /// As [`Wanted::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seconds)?;
        if self.seed == 0 { Ok(()) } else { write!(f, ",seed={}", self.seed) }
    }
}

/// Digits and nothing else.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// What the manager does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Takes the permission to write from leaves; the next write gives it back.
    WriteProtect,
    /// Asks the dirty log what was written, and copies that.
    Harvest,
    /// Takes the accessed state of leaves.
    Age,
    /// Makes pages of blocks.
    Split,
    /// Makes blocks of pages where they lie.
    Collapse,
    /// Makes blocks of pages that lie anywhere, by copying them.
    Copy,
    /// Moves pages to other frames.
    Move,
    /// Makes contiguous runs.
    Run,
    /// Dissolves them.
    Dissolve,
    /// Compares the second copy with what it is a copy of.
    Compare,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::WriteProtect,
        Self::Harvest,
        Self::Age,
        Self::Split,
        Self::Collapse,
        Self::Copy,
        Self::Move,
        Self::Run,
        Self::Dissolve,
        Self::Compare,
    ];

    /// Its name in a report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "write-protect",
            Self::Harvest => "harvest",
            Self::Age => "age",
            Self::Split => "split",
            Self::Collapse => "collapse",
            Self::Copy => "copy",
            Self::Move => "move",
            Self::Run => "run",
            Self::Dissolve => "dissolve",
            Self::Compare => "compare",
        }
    }

    /// What its [`Effect::changed`] counts, one of them.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::WriteProtect => "mapping",
            Self::Harvest | Self::Age | Self::Move | Self::Compare => "page",
            Self::Split | Self::Collapse | Self::Copy => "block",
            Self::Run | Self::Dissolve => "run",
        }
    }
}

/// What came of one kind of step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Effect {
    /// Steps that changed something; of [`Kind::Compare`] the sessions that were compared as a whole.
    pub steps: u64,
    /// What they changed, in the [unit](Kind::unit) of the kind.
    pub changed: u64,
    /// Steps that were refused: another CPU was at it, or memory was short.
    pub refused: u64,
}

/// What came of all of it, by kind. Kinds of which there was no step are missing.
pub type Effects = BTreeMap<Kind, Effect>;

/// The same while it is counted: without a heap.
#[derive(Clone, Copy, Debug)]
pub struct Tally([Effect; Kind::ALL.len()]);

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([Effect { steps: 0, changed: 0, refused: 0 }; Kind::ALL.len()])
    }

    /// A step of a kind has changed so much.
    pub fn add(&mut self, kind: Kind, changed: u64) {
        if let Some(effect) = self.0.get_mut(kind as usize) {
            effect.steps = effect.steps.saturating_add(u64::from(changed != 0));
            effect.changed = effect.changed.saturating_add(changed);
        }
    }

    /// So many pages were compared; whether they were a session's last.
    pub fn compared(&mut self, pages: u64, is_last: bool) {
        if let Some(effect) = self.0.get_mut(Kind::Compare as usize) {
            effect.steps = effect.steps.saturating_add(u64::from(is_last));
            effect.changed = effect.changed.saturating_add(pages);
        }
    }

    /// A step of a kind was refused.
    pub fn refuse(&mut self, kind: Kind) {
        if let Some(effect) = self.0.get_mut(kind as usize) {
            effect.refused = effect.refused.saturating_add(1);
        }
    }

    /// For a report.
    #[must_use]
    pub fn effects(&self) -> Effects {
        let all = Kind::ALL.into_iter().zip(self.0);
        all.filter(|(_, effect)| *effect != Effect::default()).collect()
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

/// The rows of a summary, whose labels are so wide.
pub(crate) fn rows(effects: &Effects, f: &mut fmt::Formatter<'_>, label: usize) -> fmt::Result {
    for (kind, Effect { steps, changed, refused }) in effects {
        let (name, changed) = (format!("churn: {}", kind.name()), Count(*changed, kind.unit()));
        write!(f, "\n{name:label$} {changed} in {}", Count(*steps, "step"))?;
        if *refused != 0 {
            write!(f, ", {refused} refused")?;
        }
    }
    Ok(())
}

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
const WAYS: [(Kind, u64); 9] = [
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
    /// Steps that are left at the place.
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

    /// Where the next steps are, those of a harvest apart.
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
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => self.move_on(),
        }
        let kind = self.kind();
        let blocks = self.place.len() / BLOCK;
        let count = self.below(most.clamp(1, blocks)).saturating_add(1);
        let first = self.below(blocks.saturating_sub(count).saturating_add(1));
        let range = blocks_from(self.place.start, first, count);
        match kind {
            Kind::WriteProtect => Step::WriteProtect(range),
            Kind::Harvest | Kind::Compare => Step::Harvest,
            Kind::Age => Step::Age(range),
            Kind::Split => Step::Split(range),
            Kind::Collapse => Step::Collapse(range),
            Kind::Copy => Step::Copy { range, holes: self.holes() },
            Kind::Move => Step::Move(self.pages(range.start)),
            Kind::Run => Step::Run { range, and_dissolve: self.below(2) == 0 },
            Kind::Dissolve => Step::Dissolve(range),
        }
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
