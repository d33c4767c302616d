//! What is done about a fault at EL2.

use hyp_core::el2_fault::{Touch, touched};
use hyp_core::violation::{Outcome, Sighting};
use stage2::Ipa;
use stage2::window::Recovered;

use super::{Session, TouchError, routines};
use crate::cpu;
use crate::event::trace;
use crate::exception::same_level::Frame;
use crate::lock::fault_path;
use crate::mem::{PAGE, el2_map};
use crate::platform::timer;
use crate::vm::filling;

/// Faults in a row on one page before the access is given up: a slot that was filled stays filled until somebody takes the page
/// away.
const PATIENCE: u32 = 64;
/// Looks into the tables for one fault: stage 2 is filled, and then the window's slot.
const LOOKS: u32 = 2;

/// Whether EL2 goes on after an exception of its own: in a routine that reaches the VM's memory, in a session, on a page
/// that has no translation yet. Then the frame says where: at the same instruction, or in the fix-up.
pub(crate) fn resolved(frame: &mut Frame) -> bool {
    let touch = touched(frame.esr, frame.far, el2_map::WINDOW, stage2::window::END);
    let session = cpu::try_current().map(|cpu| cpu.session.get().cast::<Session<'_>>());
    let (Some(touch), Some(session)) = (touch, session.filter(|session| !session.is_null())) else {
        return false;
    };
    let Some(fixup) = routines::fixup(frame.elr) else { return false };
    trace::synchronized();
    // SAFETY: (1) the session of this CPU, by `with`, which has been interrupted in a routine and takes it back when that has
    // ended.
    let session = unsafe { &*session };
    if let Err(why) = session.resolve(touch, frame) {
        (frame.elr, frame.x[0]) = (fixup, why as u64);
    }
    trace::synchronized();
    true
}

impl Session<'_> {
    /// Sees to it that the page is there.
    fn resolve(&self, Touch { ipa, is_write }: Touch, frame: &Frame) -> Result<(), TouchError> {
        let env = self.env;
        let _path = fault_path(env.cpu);
        let page = Ipa::new(ipa & !(PAGE - 1));
        let in_a_row = match self.last.get() {
            (last, count) if last == page => count + 1,
            _ => 1,
        };
        self.last.set((page, in_a_row));
        if in_a_row > PATIENCE {
            return Err(TouchError::Retry);
        }
        for _look in 0..LOOKS {
            // One guard over the look into stage 2 and the exchange of the slot.
            let guard = env.guards.enter();
            match env.vm.space.recover_window(&guard, page, is_write) {
                Recovered::Mapped => return Ok(()),
                Recovered::Fill => {
                    let sighting = Sighting {
                        ticks: timer::ticks(),
                        esr: frame.esr,
                        pc: frame.elr,
                        va: frame.far,
                        ipa: Some(ipa),
                        el: 2,
                        outcome: Outcome::Scratch,
                    };
                    filling::fill(env, &guard, page, &sighting)?;
                }
                Recovered::Retry => return Err(TouchError::Retry),
                Recovered::ReadOnly => return Err(TouchError::ReadOnly),
                Recovered::NotCovered => return Err(TouchError::NotCovered),
            }
        }
        Err(TouchError::Retry)
    }
}
