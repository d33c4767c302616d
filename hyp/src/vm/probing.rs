//! PROBE: EL2 touches the guest's memory with something held, or while another CPU holds it. Builds with the feature `selftest`
//! only.
//!
//! The touch may fault, and its fault installs a page or the scratch page, fills EL2's window and records a violation. If any of that
//! took what is held, the CPU would wait for itself, or for the other one, which waits for this one to be done:
//!
//! ```text
//!  PE 0: PROBE_HOLD, Held::Pool         PE 1: PROBE_READ, Held::Pool | PROBE_OTHER
//!  waits for wanted = Pool              wanted = Pool
//!  takes the pool's lock; held = Pool   waits for held = Pool
//!  waits for done                       touches the page: fault at EL2, resolved
//!                                       done
//!  gives the lock back
//! ```
//!
//! Nothing is held before the other CPU is in its call: at the safe point before that it might ask for the same lock, and may.

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use hyp_abi::probe::{
    Held, PROBE_DONE, PROBE_HOLD, PROBE_NOT_COVERED, PROBE_NOT_MAPPED, PROBE_OTHER,
    PROBE_PAST_LIMIT, PROBE_PAST_RATE, PROBE_READ, PROBE_READ_ONLY, PROBE_RETRY, PROBE_SECONDS,
    PROBE_WRITE,
};
use stage2::{Ipa, IpaRange};

use super::outcome::Refused;
use super::run::Env;
use crate::event::violations;
use crate::lock::relax;
use crate::mem::{frames, heap};
use crate::platform::console;
use crate::window::{self, TouchError};

// A guest is told how an access has ended by the error's number.
const _: () = {
    assert!(TouchError::Retry as u64 == PROBE_RETRY);
    assert!(TouchError::ReadOnly as u64 == PROBE_READ_ONLY);
    assert!(TouchError::NotMapped as u64 == PROBE_NOT_MAPPED);
    assert!(TouchError::NotCovered as u64 == PROBE_NOT_COVERED);
    assert!(TouchError::PastLimit as u64 == PROBE_PAST_LIMIT);
    assert!(TouchError::PastRate as u64 == PROBE_PAST_RATE);
};

/// What some CPU wants another to hold; [`NOBODY`] if none does.
static WANTED: AtomicU64 = AtomicU64::new(NOBODY);
/// What some CPU holds for another, by its number; [`NOBODY`] if none does.
static HELD: AtomicU64 = AtomicU64::new(NOBODY);
/// Touches that were made while another CPU held something.
static DONE: AtomicU64 = AtomicU64::new(0);
const NOBODY: u64 = u64::MAX;

/// Does it; returns `x1` and `x2`. Called at a safe point.
pub(crate) fn probe(env: Env<'_>, at: u64, what: u64, how: u64) -> Result<[u64; 2], Refused> {
    let held = Held::from_u64(how & !PROBE_OTHER).ok_or(Refused::Invalid)?;
    if !at.is_multiple_of(8) || what > PROBE_HOLD || what == PROBE_HOLD && how & PROBE_OTHER != 0 {
        return Err(Refused::Invalid);
    }
    let at = Ipa::new(at);
    if env.cpu.stock.is_low() {
        env.cpu.stock.refill();
    }
    let mut answer = [0, PROBE_DONE];
    if what == PROBE_HOLD {
        if !within_patience(|| WANTED.load(Ordering::Acquire) == held as u64) {
            return Err(Refused::Busy);
        }
        under(env, held, at, &mut || answer[0] = u64::from(hold(held)))?;
    } else if how & PROBE_OTHER != 0 {
        WANTED.store(held as u64, Ordering::Release);
        let met = within_patience(|| HELD.load(Ordering::Acquire) == held as u64);
        WANTED.store(NOBODY, Ordering::Release);
        if !met {
            return Err(Refused::Busy);
        }
        answer = touch(env, at, what);
        DONE.fetch_add(1, Ordering::AcqRel);
    } else {
        under(env, held, at, &mut || answer = touch(env, at, what))?;
    }
    Ok(answer)
}

/// Touches the 8 bytes; returns the value, and how it ended.
fn touch(env: Env<'_>, at: Ipa, what: u64) -> [u64; 2] {
    let mut word = [0; 8];
    let end = window::with(env, |session| match what {
        PROBE_WRITE => session.copy_out(at, &at.get().to_le_bytes()),
        PROBE_READ => session.copy_in(at, &mut word),
        _ => Ok(()),
    });
    [u64::from_le_bytes(word), end.map_or_else(|why| why as u64, |()| PROBE_DONE)]
}

/// Waits until another CPU has touched memory; returns whether one has.
fn hold(what: Held) -> bool {
    let before = DONE.load(Ordering::Acquire);
    HELD.store(what as u64, Ordering::Release);
    let done = within_patience(|| DONE.load(Ordering::Acquire) != before);
    HELD.store(NOBODY, Ordering::Release);
    done
}

fn within_patience(done: impl Fn() -> bool) -> bool {
    let deadline = CNTPCT_EL0.get().saturating_add(PROBE_SECONDS * CNTFRQ_EL0.get());
    while !done() {
        if CNTPCT_EL0.get() > deadline {
            return false;
        }
        relax();
    }
    true
}

/// Does `work` with something held.
fn under(env: Env<'_>, held: Held, at: Ipa, work: &mut dyn FnMut()) -> Result<(), Refused> {
    let Env { vm, guards, .. } = env;
    match held {
        Held::Nothing => work(),
        Held::Table => {
            let guard = guards.enter();
            let table = vm.space.lookup_rw(&guard, at).ok_or(Refused::Invalid)?;
            let _held = table.lock().map_err(|_| Refused::Busy)?;
            work();
        }
        Held::Pool => frames::with_lock(work),
        Held::Heap => heap::with_lock(work),
        Held::Console => console::with_lock(work),
        Held::Violations => violations::with_lock(work),
        Held::Devices => {
            let _held = vm.devices.lock();
            work();
        }
        Held::Turn => {
            let _held = vm.moving.try_lock().ok_or(Refused::Busy)?;
            work();
        }
        Held::Scan => {
            let _held = vm.scan.lock();
            work();
        }
        Held::Logging => {
            let _held = vm.logging.lock();
            work();
        }
        Held::Shadow => {
            let _held = vm.shadow.try_lock().ok_or(Refused::Busy)?;
            work();
        }
        Held::Claim => {
            let page = IpaRange::page_of(at).ok_or(Refused::Invalid)?;
            let _claim = vm.space.claim(page).map_err(|_| Refused::Busy)?;
            work();
        }
        Held::Guard => {
            let _guard = guards.enter();
            work();
        }
    }
    Ok(())
}
