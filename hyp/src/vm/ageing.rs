//! AGE: the guest asks which of its pages were accessed.
//!
//! The library takes the access flags, under one flush a call ([`Space::age`](stage2::Space::age)). Here is how much a call
//! does, and where the bits go. A block, or a contiguous run, has one flag, so where a range has a part of one all of it is
//! aged: a call ends where blocks do, so that the next does not find its own traces.
//!
//! It is a hint, and what is asked for once is forgotten. The buffer is written twice, with zeros before anything is forgotten: if
//! it cannot be written nothing is.

use alloc::format;

use hyp_abi::call::Stat;
use stage2::space::{AgeError, Batch, IdlePages, Progress, ProtError};
use stage2::{Ipa, IpaRange, View};

use super::guest_memory;
use super::outcome::{Part, Refused};
use super::protecting::{first_part, wanted};
use super::run::Env;
use crate::mem::PAGE;
use crate::mem::cache::BLOCK;

/// Pages whose bits a word has.
const WORD: u64 = u64::BITS as u64;
/// What one call ages, in bytes, but for the rest of what it has a part of.
const PART: u64 = 8 * BLOCK;
/// Words for all of it.
const WORDS: usize = ((PART + 2 * BLOCK) / PAGE / WORD) as usize;
/// Slots of all of it.
const SLOTS: usize = ((PART + 2 * BLOCK) / PAGE) as usize;
/// Members of a contiguous run.
const RUN: u64 = 16;

/// Ages the first part of a range, and writes which of its pages are idle to the guest's memory from `buffer` on, unless that is
/// 0. Called at a safe point.
pub(crate) fn age(env: Env<'_>, start: u64, bytes: u64, buffer: u64) -> Result<Part, Refused> {
    let Env { vm, guards, .. } = env;
    let part = first_part(wanted(env, start, bytes)?, PART);
    if !start.is_multiple_of(WORD * PAGE) || !buffer.is_multiple_of(8) {
        return Err(Refused::Invalid);
    }
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut image = [0; WORDS * 8];
    let length = part.pages().div_ceil(WORD) as usize * 8;
    if buffer != 0 {
        guest_memory::check(env, buffer, length as u64)?;
    }
    let whole = with_all_of_its_leaves(env, part)?;
    let mut claim = vm.space.claim(whole).map_err(|_| Refused::Busy)?;
    if buffer != 0 {
        guest_memory::write(env, buffer, image.get(..length).unwrap_or_default())?;
    }
    let mut words = [0; WORDS];
    let words = words.get_mut(..IdlePages::words(whole)).unwrap_or_default();
    let mut idle = IdlePages::new(whole, words).map_err(broken)?;
    let batch = Batch { from: whole.start(), slots: SLOTS };
    let aged =
        vm.space.age(guards, &mut claim, batch, Some(&mut idle)).map_err(|why| match why {
            // A fault has installed a block over the edge since.
            AgeError::Prot(ProtError::Straddles { .. } | ProtError::CutsRun { .. }) => {
                Refused::Busy
            }
            why => broken(why),
        })?;
    let part = match aged.progress {
        Progress::Until(next) if next < part.end() => {
            let bytes = next.get().saturating_sub(part.start().get()) & !(WORD * PAGE - 1);
            IpaRange::new(part.start(), bytes).map_err(|_| Refused::Busy)?
        }
        _ => part,
    };
    for page in 0..part.pages() {
        let (byte, bit) = ((page / 8) as usize, page % 8);
        let is_idle = idle.is_idle(Ipa::new(part.start().get() + page * PAGE));
        if let Some(byte) = image.get_mut(byte) {
            *byte |= u8::from(is_idle) << bit;
        }
    }
    drop(claim);
    if buffer != 0 {
        let length = part.pages().div_ceil(WORD) as usize * 8;
        guest_memory::write(env, buffer, image.get(..length).unwrap_or_default())?;
    }
    env.cpu.counters.add(Stat::Aged, aged.accessed + aged.idle);
    Ok(Part { bytes: part.bytes(), count: aged.accessed })
}

/// A range, and all of the block or run that it begins or ends in. The caller has the turn.
fn with_all_of_its_leaves(env: Env<'_>, range: IpaRange) -> Result<IpaRange, Refused> {
    let guard = env.guards.enter();
    let leaf = |at: Ipa| match env.vm.space.lookup(&guard, at).map(|lookup| lookup.view()) {
        Some(View::Leaf(leaf)) => {
            let bytes = leaf.level().slot_bytes();
            let bytes = if leaf.is_contiguous() { RUN * bytes } else { bytes };
            let start = at.align_down(bytes).get();
            (start, start + bytes)
        }
        _ => (at.page().get(), at.page().get() + PAGE),
    };
    let (start, _) = leaf(range.start());
    let (_, end) = leaf(Ipa::new(range.end().get() - 1));
    IpaRange::new(Ipa::new(start), end - start).map_err(|_| Refused::Invalid)
}

/// What the arguments of a call cannot bring about.
fn broken(why: AgeError) -> Refused {
    Refused::Broken(format!("cannot age: {why}"))
}
