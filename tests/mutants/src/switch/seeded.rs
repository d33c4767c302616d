//! Which mutant is on: none while compiling, else the one that the environment picks.

extern crate std;

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static PICKED: OnceLock<u32> = OnceLock::new();
static REACHED: AtomicBool = AtomicBool::new(false);

#[inline]
pub(crate) const fn on(number: u32) -> bool {
    const fn never(_: u32) -> bool {
        false
    }
    core::intrinsics::const_eval_select((number,), never, picked)
}

#[inline]
fn picked(number: u32) -> bool {
    let variable = || std::env::var("@SWITCH@").ok();
    let on = *PICKED.get_or_init(|| variable().and_then(|n| n.parse().ok()).unwrap_or(0)) == number;
    // Not by `eprintln`, which a test may capture.
    if on && !REACHED.swap(true, Ordering::Relaxed) {
        let _ = std::io::stderr().write_all(b"@REACHED@\n");
    }
    on
}
