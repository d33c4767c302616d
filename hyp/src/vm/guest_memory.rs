//! EL2 writes to the guest's memory: what a call answers in a buffer.
//!
//! Page by page, through EL2's window ([`window`]). Where nothing is mapped the first touch faults at EL2, and the page is there as after
//! a fault of the guest. Each write is under a guard that spans the look into the tables, the bytes, and the record that they were
//! written ([`Space::write_through`](stage2::Space::write_through)): so neither a move of the page nor a dirty log misses them.
//! Where the guest may not write, EL2 does not either.
//!
//! Addresses come from the guest. Everything that can be wrong with them is an answer.

use alloc::format;

use hyp_core::PaRange;
use hyp_core::recovery::Past;
use stage2::fault::{Place, Recovery, Seen};
use stage2::space::WriteError;
use stage2::{Ipa, Prot, View};

use super::fault;
use super::outcome::Refused;
use super::run::Env;
use crate::lock::relax;
use crate::mem::{PAGE, clean};
use crate::window::{self, Session, TouchError};

/// Times that a page is tried again: its slot is in transition, or the stock was empty.
const TRIES: usize = 64;

/// Whether so many bytes, of a few pages, are RAM that the guest may write, or where the scratch page takes what is written and EL2's
/// window reaches.
///
/// # Errors
/// [`Refused::Invalid`] if not: nothing has been done, nor written of an answer, then.
pub(crate) fn check(env: Env<'_>, ipa: u64, bytes: u64) -> Result<(), Refused> {
    let end = ipa.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(PAGE));
    let (start, end) = (ipa & !(PAGE - 1), end.ok_or(Refused::Invalid)?);
    let guard = env.guards.enter();
    let policy = env.vm.policy(&guard);
    let may = |page: Ipa| match policy.place(page) {
        Place::Ram { allowed } => allowed.contains(Prot::WRITE),
        Place::Recovery { policy: Recovery::Scratch, ram: None } => {
            env.vm.space.window_covers(page)
        }
        Place::Recovery { policy, ram: Some(allowed) } => {
            let is_hole = || fault::seen(env, &guard, page) == Seen::Empty;
            allowed.contains(Prot::WRITE) && (policy == Recovery::Scratch || !is_hole())
        }
        Place::Recovery { ram: None, .. }
        | Place::Emulated
        | Place::Nothing(_)
        | Place::BeyondIpaSize(_) => false,
    };
    if (start..end).step_by(PAGE as usize).map(Ipa::new).all(may) {
        Ok(())
    } else {
        Err(Refused::Invalid)
    }
}

/// Writes bytes to the guest's memory from `ipa` on. Called with no guard open.
///
/// # Errors
/// [`Refused::Invalid`]: it is no RAM, or the guest may not write there. [`Refused::Busy`]: a page is being changed for
/// long. [`Refused::NoMemory`]: a page could not be populated. What comes before it is written.
pub(crate) fn write(env: Env<'_>, ipa: u64, bytes: &[u8]) -> Result<(), Refused> {
    check(env, ipa, bytes.len() as u64)?;
    let (mut at, mut rest) = (ipa, bytes);
    while !rest.is_empty() {
        let room = (PAGE - at % PAGE) as usize;
        let (now, later) = rest.split_at(room.min(rest.len()));
        write_in_page(env, at, now)?;
        at += now.len() as u64;
        rest = later;
    }
    Ok(())
}

/// Writes bytes that lie in one page.
fn write_in_page(env: Env<'_>, ipa: u64, bytes: &[u8]) -> Result<(), Refused> {
    let quota = &env.vm.plan.quota;
    let past = |past: Past| Refused::Broken(format!("{past}"));
    let mut short = false;
    for _try in 0..TRIES {
        // A fault at EL2 has only what is here.
        if env.cpu.stock.is_low() {
            env.cpu.stock.refill();
        }
        match window::with(env, |session| once(env, session, Ipa::new(ipa), bytes))? {
            Ok(()) => return Ok(()),
            Err(TouchError::Retry) => relax(),
            // The VM ends, as after one of its own.
            Err(TouchError::PastLimit) => return Err(past(Past::Limit(quota.in_all))),
            Err(TouchError::PastRate) => return Err(past(Past::Rate(quota.a_second))),
            Err(TouchError::ReadOnly | TouchError::NotMapped | TouchError::NotCovered) => {
                return Err(Refused::Invalid);
            }
        }
        short = !env.cpu.stock.has(1);
    }
    Err(if short { Refused::NoMemory } else { Refused::Busy })
}

/// Writes bytes that lie in one page, if nobody is in the way. The outer error is a mistake of the hypervisor's.
fn once(
    env: Env<'_>,
    session: &Session<'_>,
    at: Ipa,
    bytes: &[u8],
) -> Result<Result<(), TouchError>, Refused> {
    let guard = env.guards.enter();
    let put = |pa: u64| {
        let range = PaRange { start: pa, end: pa + bytes.len() as u64 };
        // A guest that looks past the caches, or has written so, shares lines with what is written here.
        clean::from_guest(range);
        let done = session.copy_out(at, bytes);
        clean::for_guest(range);
        done
    };
    let written = env.vm.space.write_through(&guard, at, |pa| put(pa.get()));
    Ok(match written {
        Ok(done) => done,
        Err(WriteError::Again { .. }) => Err(TouchError::Retry),
        // The fault fills it; then all of it again.
        Err(WriteError::NotMapped { .. }) => session.probe(at).and(Err(TouchError::Retry)),
        // A page that is behind many addresses and is nobody's memory: nothing records that it was written.
        Err(WriteError::NotOwned { .. }) => {
            match env.vm.space.lookup(&guard, at).map(|at| at.view()) {
                Some(View::Leaf(leaf)) if env.vm.scratch.is_behind(&leaf) => {
                    put(leaf.pa().get() + at.get() % PAGE)
                }
                // It has changed since.
                _ => Err(TouchError::Retry),
            }
        }
        Err(WriteError::ReadOnly { .. }) => Err(TouchError::ReadOnly),
        Err(error @ (WriteError::ForeignGuard | WriteError::Unsupported)) => {
            return Err(Refused::Broken(format!("EL2 cannot write guest memory: {error}")));
        }
    })
}
