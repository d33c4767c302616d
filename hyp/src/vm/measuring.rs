//! MEASURE: a change of protections, done in the way that the guest asks for, and what it took. In builds with the
//! feature `measure` only.
//!
//! ```text
//! turn, claim, pins
//! for each batch    counter; write_protect or protect, which flush; counter
//! pins back
//! ```
//!
//! Counted is the work itself, by PMCCNTR_EL0: without the exit from the guest and the return, and with what reading the
//! counter twice takes for each batch. With `-icount shift=0` these are instructions; QEMU counts those of all CPUs there, so
//! the others sit still while instructions are measured. Without, they are nanoseconds.
//!
//! A window is the time of a batch: from just before its first change to just after its flush.

use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_abi::call::Stat;
use hyp_abi::measure::{Engine, Flush, MEASURE_MAX, SAMPLES, Way, Work};
use hyp_core::report::ProtSample;
use stage2::account::TLBI_KINDS;
use stage2::space::{
    Batch, Bitmaps, DirtyError, Engine as Pinned, LogBlocks, Progress, ProtError, Relax,
};
use stage2::{Account, Claim, Ipa, IpaRange, PAGE_SIZE, Pinned as Form, Prot};

use super::outcome::Refused;
use super::run::Env;
use crate::event::counters::{self, Own};
use crate::lock::{Lock, relax};
use crate::sysreg;

/// What one call took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    way: u64,
    pages: u64,
    ticks: u64,
    window: u64,
    counts: Counts,
}

/// What happens meanwhile.
#[derive(Clone, Copy, Debug)]
struct Counts {
    changed: u64,
    broken: u64,
    tlbi: [u64; TLBI_KINDS.len()],
    dsb: u64,
    faults: u64,
    met: u64,
}

/// What was measured, in order. Not on the heap, of which the VM's end leaves nothing taken.
struct Samples {
    /// What the dirty session covers that a first harvest has started.
    session: Option<IpaRange>,
    count: usize,
    all: [Sample; SAMPLES],
}

static NOTED: Lock<Samples> = {
    let counts =
        Counts { changed: 0, broken: 0, tlbi: [0; TLBI_KINDS.len()], dsb: 0, faults: 0, met: 0 };
    let none = Sample { way: 0, pages: 0, ticks: 0, window: 0, counts };
    Lock::new("the samples", Samples { session: None, count: 0, all: [none; SAMPLES] })
};

/// The bitmaps of the session.
static PAGES: [AtomicU64; MEASURE_MAX as usize / PAGE_SIZE as usize / 64] =
    [const { AtomicU64::new(0) }; _];
static SPANS: [AtomicU64; 32] = [const { AtomicU64::new(0) }; _];

/// Changes protections and notes what it took, which is returned. Called at a safe point.
pub(crate) fn measure(env: Env<'_>, start: u64, bytes: u64, word: u64) -> Result<u64, Refused> {
    let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
    let way = Way::from_word(word).ok_or(Refused::Invalid)?;
    if bytes > MEASURE_MAX || !ram(env).covers(&range) {
        return Err(Refused::Invalid);
    }
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = env.vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let mut noted = NOTED.lock();
    if noted.count == SAMPLES {
        return Err(Refused::NoMemory);
    }
    match way.work {
        Work::FirstHarvest if env.vm.space.dirty_range().is_some() => return Err(Refused::Invalid),
        Work::FirstHarvest => {
            SPANS.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            start_session(env, &mut claim)?;
            noted.session = Some(range);
        }
        Work::Harvest if noted.session != Some(range) || env.vm.space.dirty_range().is_none() => {
            return Err(Refused::Invalid);
        }
        _ => {}
    }
    let before = Counts::now(&env.vm.space.account());
    let (ticks, window) = pinned(env, way, || timed(env, &mut claim, range, way))?;
    let counts = Counts::now(&env.vm.space.account()).since(&before);
    if way.work == Work::Harvest {
        noted.session = None;
        stop_session(env, &mut claim)?;
    }
    let Samples { count, all, .. } = &mut *noted;
    if let Some(place) = all.get_mut(*count) {
        *place = Sample { way: word, pages: range.pages(), ticks, window, counts };
        *count += 1;
    }
    Ok(ticks)
}

/// All of RAM.
fn ram(env: Env<'_>) -> IpaRange {
    let guard = env.guards.enter();
    let policy = env.vm.policy(&guard);
    policy.main
}

/// Does something with the space pinned to a way, as far as that says so.
fn pinned<T>(env: Env<'_>, way: Way, work: impl FnOnce() -> T) -> T {
    let space = &env.vm.space;
    space.pin_engine(match way.engine {
        Engine::Own => None,
        Engine::InPlace => Some(Pinned::InPlace),
        Engine::BreakUnsettled => Some(Pinned::BreakUnsettled),
        Engine::Break => Some(Pinned::Break),
    });
    space.pin_flushes(match way.flush {
        Flush::ByCost => None,
        Flush::PerPage => Some(Form::PerPage),
        Flush::Range => Some(Form::Range),
        Flush::Vmid => Some(Form::Vmid),
    });
    let done = work();
    space.pin_engine(None);
    space.pin_flushes(None);
    done
}

/// Does the work; returns what it took, and the longest of its batches.
#[inline(never)]
fn timed(
    env: Env<'_>,
    claim: &mut Claim<'_>,
    range: IpaRange,
    way: Way,
) -> Result<(u64, u64), Refused> {
    let slots = if way.batch == 0 { usize::MAX } else { way.batch as usize };
    let (mut from, mut window) = (range.start(), 0);
    let start = now();
    loop {
        let opened = now();
        let progress = batch(env, claim, Batch { from, slots }, way.work)?;
        window = window.max(now().wrapping_sub(opened));
        match progress {
            Progress::Done => return Ok((now().wrapping_sub(start), window)),
            Progress::Until(next) => from = next,
        }
    }
}

#[inline]
fn batch(
    env: Env<'_>,
    claim: &mut Claim<'_>,
    batch: Batch,
    work: Work,
) -> Result<Progress, Refused> {
    let (space, guards) = (&env.vm.space, env.guards);
    match work {
        Work::WriteProtect => space.write_protect(guards, claim, batch).map_err(prot),
        Work::Unprotect => {
            space.protect(guards, claim, batch, Prot::RWX, Relax::Everywhere).map_err(prot)
        }
        Work::FirstHarvest | Work::Harvest => {
            let harvested = space.dirty_harvest(guards, claim, batch).map_err(dirty)?;
            Ok(harvested.progress)
        }
    }
}

/// Starts a dirty session for all of the claimed range.
fn start_session(env: Env<'_>, claim: &mut Claim<'_>) -> Result<(), Refused> {
    let [pages, spans] = Bitmaps::words(claim.range());
    let bitmaps = Bitmaps {
        pages: PAGES.get(..pages).unwrap_or_default(),
        spans: SPANS.get(..spans).unwrap_or_default(),
    };
    let space = &env.vm.space;
    // SAFETY: (1) they are static, and of this session only: there is one at a time, and the guest's own have others.
    let started = unsafe { space.dirty_start(env.guards, claim, &bitmaps, LogBlocks::Keep, relax) };
    match started {
        // The guest's own.
        Err(DirtyError::Running { .. } | DirtyError::Stopping { .. }) => Err(Refused::Invalid),
        started => started.map_err(broken),
    }
}

/// Stops it: all is writable again without more ado.
fn stop_session(env: Env<'_>, claim: &mut Claim<'_>) -> Result<(), Refused> {
    let space = &env.vm.space;
    let mut progress = Progress::Until(claim.range().start());
    while progress != Progress::Done {
        progress = space.dirty_stop(env.guards, claim, usize::MAX, relax).map_err(broken)?.progress;
    }
    Ok(())
}

fn broken(error: impl fmt::Display) -> Refused {
    Refused::Broken(format!("cannot change protections: {error}"))
}

/// A range that cuts a block, or a session that an earlier life of the VM had, is the guest's mistake.
fn dirty(error: DirtyError) -> Refused {
    match error {
        DirtyError::NoSession | DirtyError::Prot(ProtError::Straddles { .. }) => Refused::Invalid,
        error => broken(error),
    }
}

fn prot(error: ProtError) -> Refused {
    match error {
        ProtError::Straddles { .. } => Refused::Invalid,
        error => broken(error),
    }
}

#[inline]
fn now() -> u64 {
    sysreg::read!("pmccntr_el0")
}

impl Counts {
    fn now(account: &Account) -> Self {
        Self {
            changed: account.changed,
            broken: account.broken,
            tlbi: account.tlbi,
            dsb: counters::sum_own(Own::Dsb),
            faults: counters::sum(Stat::Faults),
            met: counters::sum(Stat::Retries),
        }
    }

    fn since(&self, before: &Self) -> Self {
        let mut tlbi = self.tlbi;
        tlbi.iter_mut().zip(before.tlbi).for_each(|(now, then)| *now = now.wrapping_sub(then));
        Self {
            changed: self.changed.wrapping_sub(before.changed),
            broken: self.broken.wrapping_sub(before.broken),
            tlbi,
            dsb: self.dsb.wrapping_sub(before.dsb),
            faults: self.faults.wrapping_sub(before.faults),
            met: self.met.wrapping_sub(before.met),
        }
    }
}

/// All that was measured.
pub(crate) fn result() -> Vec<ProtSample> {
    let noted = NOTED.lock();
    noted.all.iter().take(noted.count).map(Sample::told).collect()
}

impl Sample {
    fn told(&self) -> ProtSample {
        let Self { way, pages, ticks, window, counts } = *self;
        let count = |name: &str| {
            let kinds = TLBI_KINDS.iter().zip(counts.tlbi);
            kinds.filter(|(kind, _)| **kind == name).map(|(_, count)| count).sum()
        };
        ProtSample {
            way,
            pages,
            ticks,
            window,
            changed: counts.changed,
            broken: counts.broken,
            tlbi: ProtSample::TLBI.map(count),
            dsb: counts.dsb,
            faults: counts.faults,
            met: counts.met,
        }
    }
}
