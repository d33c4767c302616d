//! How the CPUs of a VM come to stand still for a moment, and how its end finds them.
//!
//! ```text
//!  CPU that pauses the VM                       the other CPUs of the VM
//!  wait until nobody is asked, or stands still
//!  word: 0 -> PAUSE; kick each                  out of the guest, or out of WFI, to the safe point
//!  wait until all others stand still  ◀──────── word + 1 stands; rest until a kick comes
//!  works: no instruction of the guest runs
//!  word: no PAUSE; kick each  ────────────────▶ word - 1 stands; find out anew what there is to do
//! ```
//!
//! # One word
//!
//! What the CPUs are asked for and how many stand still is one word, so that it is decided by one exchange whether a pause
//! may begin. A CPU that goes on is still counted for a moment, and the next pause would take it for one that stands still. With two words the
//! pauser would look at one, and ask by the other; in between a whole pause of somebody else may have come and gone.
//!
//! Who stands still counts, and not who was asked. So a CPU that is on its way into the VM, or works for a guest's call, is waited for.
//!
//! A CPU looks at each safe point whether it is asked for something, which is the word's lower half. How many still go on from a pause that is over does
//! not keep it from its guest: that is waited for by nobody but the next one that pauses.
//!
//! # Kicks
//!
//! A kick carries no message, and two that come before the first is taken are one. So what a kick tells of is stored before it, and looked at after it
//! was taken. A CPU that stands still takes kicks, those among them that were meant for something else, and its timer's interrupt. Nobody repeats them:
//! what they would have told the CPU has to find out by itself when it goes on ([`Asked::LookAgain`]).
//!
//! # Two at once
//!
//! If two pause at the same time, or one while the VM ends, the second is refused, and goes back to its safe point. There it stands still or leaves.
//! Who ends the VM does so whatever is asked for: everybody who stands still goes on then, and leaves.
//!
//! The word orders nothing but what CPUs of the inner shareable domain see of each other. What hardware does for a guest (the accessed and dirty
//! state of its descriptors) is the caller's to complete, by a DSB, before it stands still.

#[cfg(test)]
mod tests;

#[cfg(not(any(loom, shuttle)))]
use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(any(loom, shuttle))]
use stage2::sync::{AtomicU64, Ordering};

/// Somebody has claimed the VM's end.
const END: u64 = 1 << 0;
/// Somebody pauses the VM.
const PAUSE: u64 = 1 << 1;
/// One CPU that stands still, or has not gone on yet. Their number is in the bits from here on.
const STANDS: u64 = 1 << 32;
/// What CPUs are asked for is below: half a register, which is compared with 0 by one instruction.
const ASKED: u64 = STANDS - 1;

/// The machine around a CPU of the VM.
pub trait Around {
    /// Has every other CPU of the VM come to its safe point, out of its guest or out of [`rest`](Self::rest). What was stored before is seen by
    /// who takes the kick.
    fn kick_others(&self);
    /// Looks until `done`; gives up when that takes too long.
    fn wait_until(&self, done: impl Fn() -> bool);
    /// Takes a kick or another interrupt that has come, if one has. What else is pending ends the next rest.
    fn take_kick(&self);
    /// Waits until a kick comes. One that has not been taken is there already.
    fn rest(&self);
}

/// What a CPU that was asked for something has to do, after it stood still if that was it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Asked {
    /// The VM ends: leave it.
    Leave,
    /// Look anew at everything that an interrupt may tell of: it may have been taken meanwhile.
    LookAgain,
}

/// What the CPUs of a VM are asked for at their safe points, and how many do it.
#[derive(Debug)]
pub struct Standstill(AtomicU64);

/// All other CPUs stand still, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Pause<'s, A: Around> {
    still: &'s Standstill,
    around: A,
}

impl Standstill {
    /// Nobody is asked for anything.
    #[cfg(not(any(loom, shuttle)))]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Nobody is asked for anything. A model checker's atomics are made at run time.
    #[cfg(any(loom, shuttle))]
    #[must_use]
    #[expect(clippy::new_without_default, reason = "as without a checker")]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The VM's next life is about to begin, while none of its CPUs is in it. Whoever tells them so publishes this, too.
    pub fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether a CPU of the VM has to [`obey`](Self::obey). Orders nothing: a pause makes every CPU obey, and that does.
    #[inline(always)]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ASKED != 0
    }

    /// Whether the VM's end has been claimed. What was done in a pause that is over is seen.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) & END != 0
    }

    /// Claims the VM's end; returns whether nobody else has before. The others still have to be kicked.
    pub fn end(&self) -> bool {
        self.0.fetch_or(END, Ordering::AcqRel) & END == 0
    }

    /// Has all `others` of the VM's CPUs stand still. Called at a safe point: another one that pauses the VM waits for this CPU. `None` if another CPU
    /// pauses or ends the VM, or if one does not come to its safe point in time; then they run on.
    ///
    /// What the others have done before they stood still is seen, and they see what is done in the pause.
    pub fn pause<A: Around>(&self, others: u64, around: A) -> Option<Pause<'_, A>> {
        let all = PAUSE | others.saturating_mul(STANDS);
        let word = || self.0.load(Ordering::Acquire);
        around.wait_until(|| word() == 0 || word() & (END | PAUSE) != 0);
        let asked = self.0.compare_exchange(0, PAUSE, Ordering::AcqRel, Ordering::Relaxed);
        if asked.is_err() {
            return None;
        }
        let pause = Pause { still: self, around };
        pause.around.kick_others();
        pause.around.wait_until(|| word() == all || self.is_over());
        (word() == all).then_some(pause)
    }

    /// Does what this CPU is asked for, at its safe point: stands still for as long as that takes. What was done in a pause that is over is seen.
    #[cold]
    pub fn obey(&self, around: &impl Around) -> Asked {
        if self.is_paused() {
            self.stand_still(around);
        }
        if self.is_over() { Asked::Leave } else { Asked::LookAgain }
    }

    /// Whether the VM's CPUs are to stand still. Once its end is claimed they are not. Orders nothing.
    fn is_paused(&self) -> bool {
        self.0.load(Ordering::Relaxed) & (END | PAUSE) == PAUSE
    }

    fn stand_still(&self, around: &impl Around) {
        self.0.fetch_add(STANDS, Ordering::Release);
        loop {
            around.take_kick();
            // A kick that comes after this look ends the rest.
            if !self.is_paused() {
                break;
            }
            around.rest();
        }
        self.0.fetch_sub(STANDS, Ordering::Relaxed);
    }
}

impl<A: Around> Drop for Pause<'_, A> {
    fn drop(&mut self) {
        self.still.0.fetch_and(!PAUSE, Ordering::Release);
        self.around.kick_others();
    }
}
