//! When EL2 itself fails: every register on the console, then the power goes.
//!
//! Two ways lead here: an exception at EL2 that nothing is done about (`same_level`), and a Rust panic. Both end
//! the machine with the outcome "crash", because nothing that EL2 promises its guest can be kept any more.
//!
//! The dump waits for no lock: the CPU that holds the console may be the one that crashed. A crash
//! within the dump prints one line; a third one only cuts the power.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use hyp_core::syndrome::Syndrome;

use super::same_level::Frame;
use crate::boot::stack::{self, Place};
use crate::platform::console::{self, Uart};
use crate::platform::power;
use crate::{cpu, end};

const KINDS: [&str; 8] = [
    "synchronous exception with SP_EL0",
    "IRQ with SP_EL0",
    "FIQ with SP_EL0",
    "SError with SP_EL0",
    "synchronous exception",
    "IRQ",
    "FIQ",
    "SError",
];

/// Set by the first CPU that crashes: the others stop printing their own.
static CRASHED: AtomicBool = AtomicBool::new(false);

/// EL2 has taken an exception that nothing is done about. Called on the stack by `same_level`, and by `vectors.rs` on the
/// emergency stack if the CPU was off its stack.
#[unsafe(no_mangle)]
pub(super) extern "C" fn el2_crashed(frame: &Frame) -> ! {
    let mut out = begin();
    let kind = KINDS.get(frame.kind as usize).copied().unwrap_or("unknown exception");
    let _ = writeln!(out, "hyp: EL2 crash: {kind} on CPU {}", number());
    let _ = writeln!(out, "hyp:   {}", Syndrome(frame.esr));
    if let Some((owner, Place::Guard | Place::EmergencyGuard)) = stack::place(frame.far) {
        let _ = writeln!(
            out,
            "hyp:   FAR lies in the guard page under the stack of CPU {owner}: stack overflow"
        );
    }
    let _ = writeln!(
        out,
        "hyp:   ESR {:#018x}  FAR {:#018x}  HPFAR {:#018x}",
        frame.esr, frame.far, frame.hpfar
    );
    let _ = writeln!(
        out,
        "hyp:   ELR {:#018x}  SPSR {:#018x}  SP {:#018x}",
        frame.elr, frame.spsr, frame.sp
    );
    for (index, row) in frame.x.chunks(4).enumerate() {
        let _ = write!(out, "hyp:  ");
        for (column, value) in row.iter().enumerate() {
            let _ = write!(out, " x{:<2} {value:016x}", index * 4 + column);
        }
        let _ = writeln!(out);
    }
    finish()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut out = begin();
    let _ = writeln!(out, "hyp: EL2 crash: panic on CPU {}", number());
    let _ = writeln!(out, "hyp:   {}", info.message());
    if let Some(place) = info.location() {
        let _ = writeln!(out, "hyp:   at {place}");
    }
    finish()
}

/// The executing CPU's number, as far as it has one.
fn number() -> usize {
    cpu::try_current().map_or(0, |cpu| cpu.number)
}

/// Where the dump goes: the console, whoever holds its lock; nowhere if there is none yet.
struct Out(Option<Uart>);

impl Write for Out {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.map_or(Ok(()), |mut uart| uart.write_str(text))
    }
}

fn begin() -> Out {
    let mut out = Out(console::uart());
    if let Some(cpu) = cpu::try_current() {
        match cpu.crashes.fetch_add(1, Ordering::Relaxed) {
            0 => {}
            1 => {
                let _ = writeln!(out, "\nhyp: EL2 crash: again, while the first was being told");
                finish()
            }
            _ => power::off(),
        }
        // One dump is enough: the CPU that came first cuts the power.
        if CRASHED.swap(true, Ordering::AcqRel) {
            power::stay();
        }
    }
    let _ = writeln!(out);
    out
}

fn finish() -> ! {
    end::report_crash(&mut Out(console::uart()));
    power::off()
}
