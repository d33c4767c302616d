//! Which tables of pages are worth a block: a scan of a VM's RAM, a part at a time.
//!
//! RAM that was populated page by page, or split and not needed so any more, costs the guest a TLB entry for each
//! page and the hypervisor a table for every 2 MiB. A scan finds what could be a block again. It decides and changes
//! nothing; its caller acts, by [`Space::collapse`](crate::Space::collapse) or by moving the memory into a fresh
//! block, and says what came of it:
//!
//! ```text
//!            ┌──────────────────────── Scan ───────────────────────┐
//!  look(ipa) │ what do the slots      worth it the same way        │ Step::Act { spans, way }
//! ◀──────────│ of 2 MiB hold?    ──▶  in_a_row times, not resting? │────────────────────▶ the caller
//!  Look      │                                  ▲                  │                         │
//! ──────────▶│                             six bytes a span         │◀────────────────────────┘
//!            └─────────────────────────────────────────────────────┘ heard(ipa, made?)
//! ```
//!
//! | a span of 2 MiB holds | it is |
//! | --- | --- |
//! | nothing, a block, or anything but pages of the VM's own that allow the same | left |
//! | 512 pages, one behind the other, aligned as a block has to be | collapsed where it lies |
//! | pages elsewhere, or with holes, not more of either than [`Limits`] says | copied into a block |
//!
//! **Budget.** A call looks at a bounded number of slots and hands out a bounded number of blocks. It goes on
//! where the last one stopped.
//!
//! **Hysteresis.** Making a block costs a flush, and stops vCPUs that use it; splitting it again, as much. So a span has to
//! look worth it *in the same way* in several scans in a row: one whose holes are being filled waits until that is over.
//! One that has become pages since the last scan, or where a block could not be made, is left alone for some
//! scans, not even looked at.
//!
//! **Memory** is what the caller gives, six bytes a span. If RAM has more spans than that, the scan works on a window of it,
//! and moves on when each span of it had time to be waited for, to rest and to be tried again.
//!
//! What was seen may be out of date as soon as it was seen. That costs nothing but an attempt: whoever acts
//! checks again, under the locks.

use core::fmt;

use crate::addr::{Ipa, IpaRange, Level};

mod look;
pub use look::{Look, Pages};

/// What a scan makes of pages.
const BLOCK: u64 = Level::L2.slot_bytes();

/// What is worth a block, and how often it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Scans in a row in which a span has to look worth it. 0 is as 1.
    pub in_a_row: u8,
    /// Scans for which a span is left alone after a split or a failure.
    pub rest: u8,
    /// Holes at the most: pages that a copy fills with zeroes, and that the guest may never use.
    pub holes: u16,
    /// Pages at the most that lie elsewhere than in the block that begins with the first.
    pub misplaced: u16,
}

/// How a block is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The pages are one already.
    Collapse,
    /// Their memory moves.
    Copy,
}

impl Limits {
    /// What to make of a span, if anything.
    #[must_use]
    pub fn judge(&self, look: &Look) -> Option<Way> {
        let Look::Pages(Pages { holes, misplaced }) = *look else { return None };
        match (holes, misplaced) {
            (0, 0) => Some(Way::Collapse),
            _ if holes <= self.holes && misplaced <= self.misplaced => Some(Way::Copy),
            _ => None,
        }
    }
}

/// What one call may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Slots to look at. A table is looked at as a whole and may exceed the number.
    pub slots: usize,
    /// Blocks to hand out that are to be collapsed.
    pub blocks: usize,
    /// Blocks to hand out that are to be copied: each costs as much as 2 MiB take to be read and written.
    pub copies: usize,
}

impl Budget {
    const fn of(&mut self, way: Way) -> &mut usize {
        match way {
            Way::Collapse => &mut self.blocks,
            Way::Copy => &mut self.copies,
        }
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a scan changes nothing by itself"]
pub enum Step {
    /// Blocks are to be made of these spans, which lie side by side, in this way.
    Act {
        /// Whole blocks.
        spans: IpaRange,
        /// How.
        way: Way,
    },
    /// All of the window has been looked at once more.
    Pass,
    /// The budget does not allow more.
    Spent,
}

/// What is remembered of 2 MiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// Scans in a row that saw the same.
    streak: u8,
    /// Scans for which it is still left alone.
    rest: u8,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    /// Nothing that matters later.
    #[default]
    Other,
    Block,
    Worth {
        way: Way,
        holes: u16,
    },
}

/// What scans have come to, since the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passes over the window.
    pub passes: u64,
    /// Spans that were looked at.
    pub looked: u64,
    /// Of these, those that looked worth a block, and have to do so again.
    pub waiting: u64,
    /// Spans that were left alone after a split or a failure.
    pub resting: u64,
}

/// Why there is nothing to scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// No block fits into the range.
    TooSmall {
        /// The range.
        range: IpaRange,
    },
    /// There is no memory to remember spans in.
    NoMemory,
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { range } => write!(f, "no block of {BLOCK:#x} bytes fits into {range}"),
            Self::NoMemory => f.write_str("there is no memory to remember spans in"),
        }
    }
}

impl core::error::Error for ScanError {}

/// Where a scan is, and what it remembers. `H` holds the spans: an array, a slice, a box.
#[derive(Clone, Debug)]
pub struct Scan<H> {
    /// Start of the first span.
    start: u64,
    /// Spans in all.
    spans: u64,
    limits: Limits,
    history: H,
    /// First span of the window.
    window: u64,
    /// Passes over this window.
    turns: u32,
    /// Span of the window that is looked at next.
    at: usize,
    counts: Counts,
}

impl<H: AsRef<[Span]> + AsMut<[Span]>> Scan<H> {
    /// A scan of the whole blocks in `range`. `history` is overwritten.
    ///
    /// # Errors
    /// [`ScanError`]: there is no whole block, or nothing to remember one in.
    pub fn new(range: IpaRange, limits: Limits, mut history: H) -> Result<Self, ScanError> {
        let end = range.end().align_down(BLOCK).get();
        let start = range.start().get().checked_next_multiple_of(BLOCK);
        let Some(start) = start.filter(|start| *start < end) else {
            return Err(ScanError::TooSmall { range });
        };
        if history.as_ref().is_empty() {
            return Err(ScanError::NoMemory);
        }
        history.as_mut().fill(Span::default());
        let (spans, counts) = ((end - start) / BLOCK, Counts::default());
        Ok(Self { start, spans, limits, history, window: 0, turns: 0, at: 0, counts })
    }

    /// Looks on until there is something to do, a pass is over, or the budget is used up. `look` says what the span
    /// that begins at an address holds: [`Look::of`].
    ///
    /// The caller then makes the blocks and tells each outcome to [`heard`](Self::heard). What it does not make, and
    /// says nothing about, is handed out again in the next scan.
    pub fn step(&mut self, budget: &mut Budget, mut look: impl FnMut(Ipa) -> Look) -> Step {
        let mut run: Option<(IpaRange, Way)> = None;
        while self.at < self.len() {
            let full = run.as_ref().is_some_and(|(spans, way)| blocks(spans) >= *budget.of(*way));
            if full || budget.slots == 0 {
                break;
            }
            let ipa = self.ipa_of(self.at);
            let Some(due) = self.visit(ipa, budget, &mut look) else {
                self.at += 1;
                if run.is_some() {
                    break;
                }
                continue;
            };
            let Ok(span) = IpaRange::new(ipa, BLOCK) else { break };
            run = match run {
                // Another way, or no block left to hand out: its turn comes in the next call.
                Some((_, way)) if way != due => break,
                None if *budget.of(due) == 0 => return Step::Spent,
                Some((spans, way)) => Some((spans.hull(&span), way)),
                None => Some((span, due)),
            };
            self.at += 1;
        }
        match run {
            Some((spans, way)) => {
                let left = budget.of(way);
                *left = left.saturating_sub(blocks(&spans));
                Step::Act { spans, way }
            }
            None if self.at >= self.len() => {
                self.turn();
                Step::Pass
            }
            None => Step::Spent,
        }
    }

    /// One span: in which way it is to be made a block now.
    fn visit(
        &mut self,
        ipa: Ipa,
        budget: &mut Budget,
        look: &mut impl FnMut(Ipa) -> Look,
    ) -> Option<Way> {
        let Limits { in_a_row, rest, .. } = self.limits;
        let span = self.history.as_mut().get_mut(self.at)?;
        if span.rest > 0 {
            budget.slots = budget.slots.saturating_sub(1);
            self.counts.resting += 1;
            *span = Span { rest: span.rest - 1, ..Span::default() };
            return None;
        }
        let seen = look(ipa);
        budget.slots = budget.slots.saturating_sub(seen.slots());
        self.counts.looked += 1;
        let way = self.limits.judge(&seen);
        if matches!(seen, Look::Pages(_)) && span.seen == Seen::Block {
            *span = Span { rest, ..Span::default() };
            return None;
        }
        let now = match (seen, way) {
            (Look::Pages(Pages { holes, .. }), Some(way)) => Seen::Worth { way, holes },
            (Look::Block, _) => Seen::Block,
            _ => Seen::Other,
        };
        let streak = if span.seen == now { span.streak.saturating_add(1) } else { 1 };
        *span = Span { streak, rest: 0, seen: now };
        if way.is_some() && streak < in_a_row {
            self.counts.waiting += 1;
            return None;
        }
        way
    }

    /// What became of a span that was handed out: a block was made, or it stays.
    pub fn heard(&mut self, ipa: Ipa, made: bool) {
        let rest = self.limits.rest;
        if let Some(span) = self.span(ipa) {
            *span = if made {
                Span { seen: Seen::Block, ..Span::default() }
            } else {
                Span { rest, ..Span::default() }
            };
        }
    }

    /// Blocks in this range were split, for a reason that the scan does not know: they are left alone for as long as after
    /// a failure.
    pub fn split(&mut self, range: IpaRange) {
        let mut ipa = range.start().align_down(BLOCK);
        while ipa < range.end() {
            self.heard(ipa, false);
            let Some(next) = ipa.get().checked_add(BLOCK) else { return };
            ipa = Ipa::new(next);
        }
    }

    /// What scans have come to.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Spans of the window.
    fn len(&self) -> usize {
        let left = usize::try_from(self.spans - self.window).unwrap_or(usize::MAX);
        self.history.as_ref().len().min(left)
    }

    fn ipa_of(&self, at: usize) -> Ipa {
        Ipa::new(self.start + (self.window + at as u64) * BLOCK)
    }

    /// What is remembered of the span at an address, if it is in the window.
    fn span(&mut self, ipa: Ipa) -> Option<&mut Span> {
        let number = ipa.get().checked_sub(self.start)? / BLOCK;
        let at = usize::try_from(number.checked_sub(self.window)?).ok()?;
        self.history.as_mut().get_mut(at)
    }

    /// A pass over the window is over.
    fn turn(&mut self) {
        let Limits { in_a_row, rest, .. } = self.limits;
        self.at = 0;
        // A window that is all of RAM is never left, and a guest may ask for scans for hours.
        self.turns = self.turns.saturating_add(1);
        self.counts.passes += 1;
        let len = self.len() as u64;
        // Waited for, failed, rested, waited for again.
        let enough = 2 * u32::from(in_a_row.max(1)) + u32::from(rest);
        if len < self.spans && self.turns >= enough {
            self.window += len;
            if self.window >= self.spans {
                self.window = 0;
            }
            self.turns = 0;
            self.history.as_mut().fill(Span::default());
        }
    }
}

/// Blocks of a range.
const fn blocks(range: &IpaRange) -> usize {
    (range.bytes() / BLOCK) as usize
}

#[cfg(test)]
mod tests;
