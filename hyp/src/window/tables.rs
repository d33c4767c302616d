//! EL2's tables for the window of the VM: built before anything is reached through them, hung into EL2's root while the VM lives.

use stage2::IpaRange;
use stage2::window::{END, OpenError, Site};

use crate::boot::Refusal;
use crate::cpu::PerCpu;
use crate::event::trace;
use crate::mem::el2_map;
use crate::vm::Stage2;

/// Where it lies, and which attribute of MAIR_EL2 is write-back memory.
const SITE: Site = match Site::new(el2_map::WINDOW, el2_map::WRITE_BACK) {
    Some(place) => place,
    // Evaluated at compile time: an image in which it could panic is not built.
    None => panic!("a slot of the root"),
};

/// Builds the tables for a range, as far as the window reaches. The tables come from this CPU's stock, which is refilled: for a
/// safe point. What is built stays until the VM ends.
///
/// # Errors
/// [`OpenError::OutOfTables`]: memory is used up. What was built stays, and serves.
pub(crate) fn open(space: &Stage2, cpu: &PerCpu, range: IpaRange) -> Result<(), OpenError> {
    let end = range.end().get().min(END);
    let bytes = end.saturating_sub(range.start().get());
    let Ok(range) = IpaRange::new(range.start(), bytes) else { return Ok(()) };
    loop {
        match space.open_window(SITE, range) {
            Err(OpenError::OutOfTables) if cpu.stock.refill() => {}
            end => return end,
        }
    }
}

/// Hangs the window of a VM into EL2's tables.
///
/// # Errors
/// [`Refusal`]: another VM's is there.
pub(crate) fn hook(space: &Stage2) -> Result<(), Refusal> {
    let slot = el2_map::window_slot().ok_or("EL2's map is not on yet")?;
    trace::el2_root(el2_map::root());
    // SAFETY: (1) the slot at SITE, of tables that are never given back; (2) only `routines` reach there;
    // (3) as EL2 is set up on every CPU: `el2_map`.
    let hooked = unsafe { space.hook_window(slot) };
    if hooked { Ok(()) } else { Err("EL2's window is another VM's".into()) }
}

/// Takes it out, before the VM's tables end.
///
/// # Safety
/// 1. No CPU has the VM.
pub(crate) unsafe fn unhook(space: &Stage2) {
    if let Some(slot) = el2_map::window_slot() {
        // SAFETY: (1) as in `hook`; by the caller's clause nobody accesses it.
        unsafe { space.unhook_window(slot) };
    }
}
