//! DIRTY_START, DIRTY_HARVEST, DIRTY_STOP: the guest asks which of its pages were written.
//!
//! How it works is in crate `stage2` ([`space::dirty`](stage2::space)). Here is where the bitmaps are, and how much a call
//! does:
//!
//! | | |
//! | --- | --- |
//! | bitmaps | frames of the pool, from start to stop, or to the end of the VM |
//! | range of the session | what was asked for, widened to whole blocks where RAM may have any |
//! | harvest | 16 MiB a call: leaves first; then bits are taken out, and written to the guest's buffer |
//! | stop | 4096 slots a call, and what was split there is collapsed |
//!
//! If the guest's buffer cannot be written, the bits go back: the next harvest reports them. The buffer itself may lie in the
//! logged range; that EL2 has written it is reported by the next harvest, too.
//!
//! There is one session, the guest's or, with the word `churn=`, the background manager's ([`churning`](super::churning)). What the other asks of
//! it is refused, as if there were none; to start one, too.
//!
//! Only one CPU harvests at a time, or moves or resizes memory: a second is told so and does not wait.

use alloc::format;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_abi::call::Stat;
use hyp_core::PaRange;
use stage2::space::{Batch, Bitmaps, DirtyError, LogBlocks, Progress};
use stage2::{Claim, Ipa, IpaRange};

use super::blocks::count_splits;
use super::outcome::{Part, Refused};
use super::protecting::{self, wanted};
use super::run::Env;
use super::{guest_memory, scan};
use crate::lock::relax;
use crate::mem::cache::BLOCK;
use crate::mem::{PAGE, clean, frames};

/// Pages whose bits a word has.
const WORD: u64 = u64::BITS as u64;
/// Words that a call gives to the guest, at the most.
const WORDS: usize = 64;
/// What one call harvests, in bytes.
const PART: u64 = WORDS as u64 * WORD * PAGE;
/// Slots of a batch: as many as the library takes at once.
const BATCH: usize = 4096;

/// Who has started a session, and harvests it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The guest.
    Guest,
    /// The manager in the background.
    Manager,
}

/// The VM's dirty session. Locked by who has the turn, and nobody else.
#[derive(Debug)]
pub(crate) struct Logging {
    /// Whose it is.
    by: By,
    /// What was asked for.
    asked: IpaRange,
    /// What is logged.
    range: IpaRange,
    /// A bit for each page of it.
    pages: &'static [AtomicU64],
    /// The first of the frames that all bitmaps are in, and how many those are.
    frames: (u64, usize),
}

impl Logging {
    /// Takes the bits of the page at `at`, in the range, and of the 63 behind it.
    fn take(&self, at: Ipa) -> u64 {
        let page = (at.get() - self.range.start().get()) / PAGE;
        let (word, shift) = ((page / WORD) as usize, page % WORD);
        let take = |index: usize, mask: u64| {
            self.pages.get(index).map_or(0, |word| word.fetch_and(!mask, Ordering::Acquire) & mask)
        };
        let low = take(word, u64::MAX << shift) >> shift;
        if shift == 0 { low } else { low | take(word + 1, !(u64::MAX << shift)) << (WORD - shift) }
    }

    /// Sets bits that [`take`](Self::take) has taken.
    fn give_back(&self, at: Ipa, bits: u64) {
        let page = (at.get() - self.range.start().get()) / PAGE;
        let (word, shift) = ((page / WORD) as usize, page % WORD);
        let set = |index: usize, bits: u64| {
            if let Some(word) = self.pages.get(index) {
                word.fetch_or(bits, Ordering::Release);
            }
        };
        set(word, bits << shift);
        if shift != 0 {
            set(word + 1, bits >> (WORD - shift));
        }
    }

    /// Gives the bitmaps back to the pool.
    ///
    /// # Safety
    /// 1. The session has been stopped, or its space is gone.
    pub(super) unsafe fn free(self) {
        let (first, count) = self.frames;
        // SAFETY: (1) from the pool, by `start`; (2) the caller's clause: nobody has a reference.
        unsafe { frames::give_back(first, count) };
    }
}

/// A range with all of each block that it touches, as far as `ram` has them.
fn widened(range: IpaRange, ram: IpaRange) -> IpaRange {
    let start = range.start().align_down(BLOCK).max(ram.start());
    let end = range.end().get().next_multiple_of(BLOCK).min(ram.end().get());
    IpaRange::new(start, end.saturating_sub(start.get())).unwrap_or(range)
}

/// Begins to log writes to a range; `flags` bit 0: by pages, also where there are blocks. Called at a safe point.
pub(crate) fn start(env: Env<'_>, start: u64, bytes: u64, flags: u64) -> Result<Part, Refused> {
    let blocks = match flags {
        0 => LogBlocks::Keep,
        1 => LogBlocks::Split,
        _ => return Err(Refused::Invalid),
    };
    start_by(env, By::Guest, start, bytes, blocks)
}

/// Begins a session of somebody's.
pub(super) fn start_by(
    env: Env<'_>,
    by: By,
    start: u64,
    bytes: u64,
    blocks: LogBlocks,
) -> Result<Part, Refused> {
    let Env { vm, guards, .. } = env;
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let asked = wanted(env, start, bytes)?;
    let mut held = vm.logging.lock();
    if held.is_some() {
        return Err(Refused::Invalid);
    }
    let range = {
        let guard = guards.enter();
        let policy = vm.policy(&guard);
        policy.blocks.map_or(asked, |_| widened(asked, policy.main))
    };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let sizes = Bitmaps::words(range);
    let count = (sizes.iter().sum::<usize>() * size_of::<AtomicU64>())
        .div_ceil(PAGE as usize)
        .next_power_of_two();
    let first = frames::take(count).ok_or(Refused::NoMemory)?;
    // SAFETY: (1) just taken.
    unsafe { clean::zero(PaRange { start: first, end: first + count as u64 * PAGE }) };
    let words = core::ptr::with_exposed_provenance::<AtomicU64>(first as usize);
    // SAFETY: (1) frames of the pool, mapped and zeroed, with room for both; (2) given back when the session is over.
    let words = unsafe { core::slice::from_raw_parts(words, sizes.iter().sum()) };
    let (pages, spans) = words.split_at(sizes[0]);
    let logging = Logging { by, asked, range, pages, frames: (first, count) };
    let bitmaps = Bitmaps { pages, spans };
    // SAFETY: (1) they stay until the session is stopped, or the VM is gone: see `Logging::free`.
    match unsafe { vm.space.dirty_start(guards, &mut claim, &bitmaps, blocks, relax) } {
        Ok(()) => {
            *held = Some(logging);
            Ok(Part { bytes: asked.bytes(), count: 0 })
        }
        Err(why) => {
            // SAFETY: (1) there is no session.
            unsafe { logging.free() };
            Err(broken(why))
        }
    }
}

/// Harvests the first part of a range, and writes the bits of its pages to the guest's memory from `buffer` on. Called at a
/// safe point.
pub(crate) fn harvest(env: Env<'_>, start: u64, bytes: u64, buffer: u64) -> Result<Part, Refused> {
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let held = env.vm.logging.lock();
    let logging = of(&held, By::Guest)?;
    let part = first_part(logging, start, bytes)?;
    let words = part.pages().div_ceil(WORD);
    if !buffer.is_multiple_of(8) {
        return Err(Refused::Invalid);
    }
    guest_memory::check(env, buffer, words * 8)?;
    harvest_leaves(env, logging, part)?;
    let mut taken = [0; WORDS];
    let mut count = 0;
    for (word, (at, mask)) in taken.iter_mut().zip(groups(part)) {
        *word = taken_in(logging, at, mask);
        count += u64::from(word.count_ones());
    }
    let mut image = [0; WORDS * 8];
    for (bytes, word) in image.chunks_exact_mut(8).zip(&taken) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let image = image.get(..words as usize * 8).unwrap_or_default();
    if let Err(why) = guest_memory::write(env, buffer, image) {
        for ((at, _), bits) in groups(part).zip(taken) {
            logging.give_back(at, bits);
        }
        return Err(why);
    }
    Ok(Part { bytes: part.bytes(), count })
}

/// Harvests the first part of a range, and shows each page of it that was written since it was last shown or told: after the
/// flush, so what the page holds now has all that was reported. `each` may open guards; it does not harvest. Called at a
/// safe point.
pub(super) fn harvest_with(
    env: Env<'_>,
    by: By,
    range: IpaRange,
    each: &mut dyn FnMut(Ipa),
) -> Result<Part, Refused> {
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let held = env.vm.logging.lock();
    let logging = of(&held, by)?;
    let part = first_part(logging, range.start().get(), range.bytes())?;
    harvest_leaves(env, logging, part)?;
    let mut count = 0;
    for (at, mask) in groups(part) {
        let mut bits = taken_in(logging, at, mask);
        while bits != 0 {
            each(Ipa::new(at.get() + u64::from(bits.trailing_zeros()) * PAGE));
            bits &= bits - 1;
            count += 1;
        }
    }
    Ok(Part { bytes: part.bytes(), count })
}

/// The session, if it is this one's.
fn of(held: &Option<Logging>, by: By) -> Result<&Logging, Refused> {
    held.as_ref().filter(|logging| logging.by == by).ok_or(Refused::Invalid)
}

/// The first part of a range of the session: all, or 64 words of bits at the most, up to where a block may end.
fn first_part(logging: &Logging, start: u64, bytes: u64) -> Result<IpaRange, Refused> {
    let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
    if !logging.asked.covers(&range) {
        return Err(Refused::Invalid);
    }
    Ok(protecting::first_part(range, PART))
}

/// Groups of 64 pages, from the first page of a range on, each with the bits that are in it.
fn groups(part: IpaRange) -> impl Iterator<Item = (Ipa, u64)> {
    (0..part.pages().div_ceil(WORD)).map(move |group| {
        let pages = (part.pages() - group * WORD).min(WORD);
        let at = Ipa::new(part.start().get() + group * WORD * PAGE);
        (at, u64::MAX >> (WORD - pages))
    })
}

/// Takes the bits of a group that are in the mask; the others stay.
fn taken_in(logging: &Logging, at: Ipa, mask: u64) -> u64 {
    let bits = logging.take(at);
    if bits & !mask != 0 {
        logging.give_back(at, bits & !mask);
    }
    bits & mask
}

/// Moves what leaves have recorded into the bitmap, for a part and the rest of the blocks that it touches.
fn harvest_leaves(env: Env<'_>, logging: &Logging, part: IpaRange) -> Result<(), Refused> {
    let Env { vm, cpu, guards } = env;
    let mut claim = vm.space.claim(widened(part, logging.range)).map_err(|_| Refused::Busy)?;
    let mut batch = Batch { from: claim.range().start(), slots: BATCH };
    loop {
        if cpu.stock.is_low() {
            cpu.stock.refill();
        }
        let before = vm.space.account();
        let harvested = vm.space.dirty_harvest(guards, &mut claim, batch).map_err(broken)?;
        if count_splits(env, &before) != 0 {
            scan::split(env, claim.range());
        }
        match harvested.progress {
            Progress::Done => return Ok(()),
            Progress::Until(next) => batch.from = next,
        }
    }
}

/// Stops the log, a part at a time; returns how much of its range is done, and how many blocks were made. Called at a safe
/// point.
pub(crate) fn stop(env: Env<'_>) -> Result<Part, Refused> {
    stop_by(env, By::Guest)
}

/// Stops a session of somebody's, likewise.
pub(super) fn stop_by(env: Env<'_>, by: By) -> Result<Part, Refused> {
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut held = env.vm.logging.lock();
    let Logging { asked, range, .. } = *of(&held, by)?;
    let mut claim = env.vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let mut count = 0;
    // What was widened at the end belongs to the last part.
    let until = loop {
        match stop_batch(env, &mut claim, &mut count)? {
            Progress::Until(next) if next < asked.end() => break next.max(asked.start()),
            Progress::Until(_) => {}
            Progress::Done => {
                if let Some(logging) = held.take() {
                    // SAFETY: (1) the session is over.
                    unsafe { logging.free() };
                }
                break asked.end();
            }
        }
    };
    Ok(Part { bytes: until.get() - asked.start().get(), count })
}

fn stop_batch(env: Env<'_>, claim: &mut Claim<'_>, made: &mut u64) -> Result<Progress, Refused> {
    let Env { vm, cpu, guards } = env;
    let stopped = vm.space.dirty_stop(guards, claim, BATCH, relax).map_err(broken)?;
    cpu.counters.add(Stat::Collapsed, stopped.collapsed);
    cpu.counters.add(Stat::TablesFreed, stopped.collapsed);
    *made += stopped.collapsed;
    Ok(stopped.progress)
}

/// What the guest hears of it: that there is no such session, or one that it has begun to stop. Everything else no arguments of
/// a call can bring about.
fn broken(why: DirtyError) -> Refused {
    match why {
        DirtyError::NoSession | DirtyError::Running { .. } | DirtyError::Stopping { .. } => {
            Refused::Invalid
        }
        why => Refused::Broken(format!("the dirty log: {why}")),
    }
}

/// What the guest has asked to be logged, while it is.
pub(super) fn asked(env: Env<'_>) -> Result<IpaRange, Refused> {
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let held = env.vm.logging.lock();
    of(&held, By::Guest).map(|logging| logging.asked)
}
