//! PROTECT: what the guest may do with a part of its RAM, from now on.
//!
//! | step | an access in the range meanwhile |
//! | --- | --- |
//! | the next policy is made: all that may be refused is found out | as before |
//! | it is published; grace period | of pages that are there, as before; others are populated by the one or the other |
//! | blocks and runs that reach over an edge are split, dissolved | meets Busy: tries again |
//! | sweep: leaves get the permissions, a batch under one flush | as before, or as it will be |
//! | | what is no longer allowed is an abort ([`inject`](super::inject)) |
//!
//! The order is what makes it hold: without the grace period, a fault handler that decided by the old policy would install a page
//! with old permissions behind the sweep. Everybody who maps pages asks the policy how
//! ([`Policy::page`](super::policy::Policy::page), [`Policy::block`](super::policy::Policy::block)); what makes blocks of pages leaves alone where
//! permissions change within.

use alloc::format;

use hyp_abi::call::{PROT_EXEC_EL0, PROT_EXEC_EL1, PROT_READ, PROT_WRITE, PROTECT_MAX, RANGE_MAX};
use stage2::space::{Batch, Progress, ProtError, Relax};
use stage2::{Attributes, Guard, Ipa, IpaRange, Level, MemType, Owner, Prot};

use super::edges;
use super::outcome::{Part, Refused};
use super::policy::{Limits, Room, plain, publish};
use super::run::Env;
use crate::mem::cache::BLOCK;

/// What one call does at the most, in bytes.
const PART: u64 = 64 * BLOCK;
/// Slots that are changed under one flush, and under one guard.
const BATCH: usize = 4096;

/// The range of a call, if it is RAM.
pub(super) fn wanted(env: Env<'_>, start: u64, bytes: u64) -> Result<IpaRange, Refused> {
    let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
    let guard = env.guards.enter();
    let is_ram = env.vm.policy(&guard).main.covers(&range);
    if is_ram && bytes <= RANGE_MAX { Ok(range) } else { Err(Refused::Invalid) }
}

/// The first part of a range, of `most` bytes or less; if it is not all, it ends where a block may.
pub(super) fn first_part(range: IpaRange, most: u64) -> IpaRange {
    let start = range.start().get();
    let end = range.end().get().min(start.saturating_add(most) & !(BLOCK - 1));
    IpaRange::new(range.start(), end.saturating_sub(start)).unwrap_or(range)
}

/// Permissions by their number in a call.
fn permissions(number: u64) -> Option<Prot> {
    let all = [
        (PROT_READ, Prot::READ),
        (PROT_WRITE, Prot::WRITE),
        (PROT_EXEC_EL1, Prot::EXEC_EL1),
        (PROT_EXEC_EL0, Prot::EXEC_EL0),
    ];
    let known = all.iter().fold(0, |known, (bit, _)| known | bit);
    let given = all.into_iter().filter(|(bit, _)| number & bit != 0);
    (number & !known == 0).then(|| given.map(|(_, prot)| prot).collect())
}

/// Has the first part of a range allow `number`, and no more. Called at a safe point.
pub(crate) fn protect(env: Env<'_>, start: u64, bytes: u64, number: u64) -> Result<Part, Refused> {
    let Env { vm, guards, .. } = env;
    let prot = permissions(number).ok_or(Refused::Invalid)?;
    let limits = limits(env, prot)?;
    let range = first_part(wanted(env, start, bytes)?, PART);
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let room = {
        let guard = guards.enter();
        let policy = vm.policy(&guard);
        // Too many, or no memory for them.
        let next = policy.limited.with(plain(range), limits, PROTECT_MAX);
        Room::limiting(policy, next.map_err(|_| Refused::NoMemory)?)?
    };
    edges::prepare(env)?;

    publish(env, room, None)?;
    drop(claim);
    let split = edges::free(env, range)?;
    let gone = |why| Refused::Broken(format!("what is protected cannot be claimed: {why}"));
    claim = vm.space.claim(range).map_err(gone)?;
    let mut batch = Batch { from: range.start(), slots: BATCH };
    while batch.from < range.end() {
        match vm.space.protect(guards, &mut claim, batch, prot, Relax::Everywhere) {
            Ok(Progress::Done) => break,
            Ok(Progress::Until(next)) => batch.from = next,
            // A fault has installed a block since: by the new policy, which allows the same in all of it.
            Err(ProtError::Straddles { ipa, level }) => {
                batch.from = Ipa::new(ipa.get() + level.slot_bytes());
            }
            Err(error) => return Err(Refused::Broken(format!("cannot protect: {error}"))),
        }
    }
    Ok(Part { bytes: range.bytes(), count: split })
}

/// A page or block of RAM was installed at `at`, under this guard and the policy that it saw. Where the guest may not write, no
/// leaf says that what is there is new: a dirty log is told.
pub(super) fn installed(env: Env<'_>, guard: &Guard<'_>, at: Ipa, level: Level) {
    let bytes = level.slot_bytes();
    let writable = env.vm.policy(guard).allows(at).is_none_or(|prot| prot.contains(Prot::WRITE));
    if !writable && let Ok(range) = IpaRange::new(at.align_down(bytes), bytes) {
        env.vm.space.dirty_mark(guard, range);
    }
}

/// How RAM is mapped that allows `prot`; `None` if that is everything.
fn limits(env: Env<'_>, prot: Prot) -> Result<Option<Limits>, Refused> {
    let attributes = Attributes::new(prot, MemType::Normal);
    let mapping = |level| env.vm.space.mapping(level, &attributes, Owner::Vm);
    // The machine cannot say it.
    let [page, block] = [mapping(Level::L3), mapping(Level::L2)];
    let (Ok(page), Ok(block)) = (page, block) else { return Err(Refused::Invalid) };
    Ok((prot != Prot::RWX).then_some(Limits { prot, page, block }))
}
