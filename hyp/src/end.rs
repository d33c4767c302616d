//! How a run ends: the summary for people, the report line for programs, and the power.
//!
//! A report line carries the nonce that the host command gave on the command line. A guest writes to the
//! same console but does not know the nonce.
//!
//! A crash cannot rely on the heap, so its report line is made at boot and kept.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use hyp_core::config::Nonce;
use hyp_core::report::{Outcome, Report};
use spin::Once;

use crate::boot::Refusal;
use crate::platform::{console, power};
use crate::say;

static NONCE: Once<Nonce> = Once::new();
static CRASH_LINE: Once<String> = Once::new();

/// Remembers the nonce, and makes the line that a crash would print.
pub(crate) fn prepare(nonce: Option<Nonce>) {
    let Some(nonce) = nonce else { return };
    let mut report = Report::new(Outcome::Crashed);
    report.reason = Some("EL2 crashed: the registers are on the console".into());
    if let Ok(line) = report.to_line(&nonce) {
        CRASH_LINE.call_once(|| line);
    }
    NONCE.call_once(|| nonce);
}

/// Nothing is started.
pub(crate) fn refuse(refusal: Refusal) -> ! {
    let mut report = Report::new(Outcome::Refused);
    report.reason = Some(refusal.0);
    finish(&report)
}

/// Tells the report, and resets the machine or cuts its power.
pub(crate) fn finish(report: &Report) -> ! {
    for line in format!("{report}").lines() {
        say!("{line}");
    }
    if let Some(Ok(line)) = NONCE.get().map(|nonce| report.to_line(nonce)) {
        console::print_raw(format_args!("{line}"));
    }
    match report.outcome {
        Outcome::Reset => power::reset(),
        _ => power::off(),
    }
}

/// The report line of a crash. Takes no lock and allocates nothing.
pub(crate) fn report_crash(out: &mut impl Write) {
    if let Some(line) = CRASH_LINE.get() {
        let _ = writeln!(out, "{line}");
    }
}
