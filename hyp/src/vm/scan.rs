//! Pages that are worth a block become one: khugepaged's job, at EL2.
//!
//! What is worth it, and when, crate `stage2` decides ([`stage2::scan`]). Here is who asks, how much a call may
//! cost, and what is done:
//!
//! | who | how much |
//! | --- | --- |
//! | the guest, by the hypercall `SCAN` | as many tables as it says, up to 64; 64 blocks where they lie, 4 by copying |
//! | CPUs that are idle (`idle`), with the option `scan` | 8 tables; 8 blocks where they lie, 1 by copying; every 10 ms, and 100 ms after the end of RAM |
//!
//! A scan takes the turn of whoever moves and resizes memory, and gives it back after each call; a guest that calls
//! meanwhile is told so and tries again, as with two vCPUs. It looks at a span under a guard of its own, without a
//! lock, and acts as the hypercalls `COLLAPSE` and `COPY` do.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
use hyp_abi::call::{SCAN_MAX, Stat};
use stage2::scan::{Budget, Limits, Look, Span, Step, Way};
use stage2::space::{Collapse, CopyCollapse};
use stage2::{IpaRange, Scan};

use super::outcome::Refused;
use super::run::Env;
use super::{blocks, copying};
use crate::mem::cache::{BLOCK, BLOCK_FRAMES};
use crate::platform::timer;

/// What is worth a block. With holes, and that is 1/8 of it, memory is spent that the guest has not asked for yet.
const LIMITS: Limits = Limits { in_a_row: 2, rest: 8, holes: 64, misplaced: BLOCK_FRAMES as u16 };
/// Spans that are remembered at a time: 8 GiB of RAM.
const ROOM: u64 = 4096;

/// What a call of the guest may cost, but for the slots.
const CALL: Budget = Budget { slots: 0, blocks: blocks::BATCH, copies: 4 };
/// What a part on an idle CPU may cost.
const PART: Budget = Budget { slots: 8 * BLOCK_FRAMES, blocks: 8, copies: 1 };
/// Parts a second, of all CPUs together.
const RATE: u64 = 100;
/// Scans of all RAM a second, at the most.
const SCANS: u64 = 10;

/// Where a VM's scan is.
pub(super) type Scanner = Scan<Box<[Span]>>;

/// When the next part is due on an idle CPU, in ticks of the counter.
static DUE: AtomicU64 = AtomicU64::new(0);

/// What a call came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scanned {
    /// Blocks that were made.
    pub(crate) made: u64,
    /// Spans that were to become blocks, and could not.
    failed: u64,
    /// It came to the end of RAM.
    pub(crate) ended: bool,
}

/// A scan of RAM from its start; `None` if there is no room for one on the heap.
pub(super) fn scanner(ram: IpaRange) -> Option<Scanner> {
    let mut history = Vec::new();
    let room = ROOM.min(ram.bytes() / BLOCK) as usize;
    history.try_reserve_exact(room).ok()?;
    history.resize(room, Span::default());
    Scan::new(ram, LIMITS, history.into_boxed_slice()).ok()
}

/// The guest asks for a scan of so many tables. Called at a safe point.
pub(crate) fn by_call(env: Env<'_>, tables: u64) -> Result<Scanned, Refused> {
    if !may_scan(env) {
        return Err(Refused::Unsupported);
    }
    if !(1..=SCAN_MAX).contains(&tables) {
        return Err(Refused::Invalid);
    }
    go_on(env, Budget { slots: tables as usize * BLOCK_FRAMES, ..CALL }, || false)
}

/// A part of a scan on an idle CPU, if one is due; `None` if not. It ends early when the CPU `has_work`. Called at a safe
/// point.
pub(super) fn when_due(
    env: Env<'_>,
    has_work: impl Fn() -> bool,
) -> Result<Option<Scanned>, Refused> {
    let (now, due) = (timer::now(), DUE.load(Ordering::Relaxed));
    // One of several CPUs that see the time come.
    let mine = now >= due
        && DUE
            .compare_exchange(
                due,
                now.saturating_add(ticks(RATE)),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .is_ok();
    if !mine || !may_scan(env) {
        return Ok(None);
    }
    let scanned = go_on(env, PART, has_work)?;
    if scanned.ended {
        DUE.store(now.saturating_add(ticks(SCANS)), Ordering::Relaxed);
    }
    Ok(Some(scanned))
}

/// When the next part is due.
pub(super) fn next_part() -> u64 {
    DUE.load(Ordering::Relaxed)
}

/// Ticks from one time to the next, for so many a second.
fn ticks(rate: u64) -> u64 {
    CNTFRQ_EL0.get() / rate
}

/// Blocks of a range were split at the guest's wish. The caller has the turn.
pub(super) fn split(env: Env<'_>, range: IpaRange) {
    if let Some(scan) = env.vm.scan.lock().as_mut() {
        scan.split(range);
    }
}

/// Whether RAM may have blocks at all.
fn may_scan(env: Env<'_>) -> bool {
    let guard = env.guards.enter();
    env.vm.policy(&guard).blocks.is_some()
}

/// Goes on where the last call stopped.
fn go_on(
    env: Env<'_>,
    mut budget: Budget,
    has_work: impl Fn() -> bool,
) -> Result<Scanned, Refused> {
    let Env { vm, cpu, guards } = env;
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut held = vm.scan.lock();
    let Some(scan) = held.as_mut() else { return Err(Refused::Unsupported) };
    let before = scan.counts();
    let mut scanned = Scanned::default();
    let outcome = loop {
        if has_work() {
            break Ok(());
        }
        let step = scan.step(&mut budget, |ipa| {
            let guard = guards.enter();
            Look::of(&vm.space, &guard, ipa)
        });
        let acted = match step {
            Step::Act { spans, way } => act(env, scan, spans, way, &mut scanned),
            Step::Pass => {
                scanned.ended = true;
                break Ok(());
            }
            Step::Spent => break Ok(()),
        };
        if let Err(why) = acted {
            break Err(why);
        }
    };
    let now = scan.counts();
    let counters = &cpu.counters;
    counters.add(Stat::ScanPasses, now.passes - before.passes);
    counters.add(Stat::Scanned, now.looked - before.looked);
    counters.add(Stat::ScanWaits, now.waiting - before.waiting);
    counters.add(Stat::ScanRests, now.resting - before.resting);
    counters.add(Stat::ScanMade, scanned.made);
    counters.add(Stat::ScanFailed, scanned.failed);
    outcome.map(|()| scanned)
}

/// Makes blocks of adjacent spans, and tells the scan what became of each.
fn act(
    env: Env<'_>,
    scan: &mut Scanner,
    spans: IpaRange,
    way: Way,
    scanned: &mut Scanned,
) -> Result<(), Refused> {
    let mut heard = |ipa, made| {
        scan.heard(ipa, made);
        *(if made { &mut scanned.made } else { &mut scanned.failed }) += 1;
    };
    // What a batch leaves out is handed out again in the next scan.
    let progress = match way {
        Way::Collapse => {
            let mut outcome = |ipa, what| heard(ipa, what == Collapse::Made);
            blocks::collapse_spans(env, spans, &mut outcome)
        }
        Way::Copy => {
            let holes = usize::from(LIMITS.holes);
            let mut outcome = |ipa, what| heard(ipa, matches!(what, CopyCollapse::Made { .. }));
            copying::copy_spans(env, spans, holes, &mut outcome)
        }
    };
    match progress {
        // A claim is in the way: in the next scan.
        Ok(_) | Err(Refused::Busy) => Ok(()),
        Err(why) => Err(why),
    }
}
