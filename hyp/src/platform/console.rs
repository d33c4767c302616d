//! The machine's PL011: one console for the hypervisor and its guest.
//!
//! Bytes of the guest pass through unchanged. A line of the hypervisor starts with `hyp: ` at the
//! beginning of a line: where the guest left one open, it is ended first. The lock is held for whole
//! lines, so that lines of several CPUs do not mix; a crash does not wait for it (`Uart` is `Copy`, and
//! a byte on a half-written line is better than no dump).
//!
//! Output waits for room. Input raises the UART's interrupt, which says no more than that somebody should look. The baud rate is
//! left as firmware set it.

use core::fmt::{self, Write};

use hyp_core::PaRange;
use spin::Once;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

use crate::lock::{Lock, relax};

register_bitfields! {u32,
    Flags [
        /// The transmit FIFO takes no more.
        TXFF OFFSET(5) NUMBITS(1) [],
        /// The receive FIFO holds nothing.
        RXFE OFFSET(4) NUMBITS(1) [],
        /// Still sending.
        BUSY OFFSET(3) NUMBITS(1) []
    ],
    LineControl [
        /// Word length.
        WLEN OFFSET(5) NUMBITS(2) [ Eight = 3 ],
        /// Use the FIFOs.
        FEN OFFSET(4) NUMBITS(1) []
    ],
    Control [
        /// Receive.
        RXE OFFSET(9) NUMBITS(1) [],
        /// Transmit.
        TXE OFFSET(8) NUMBITS(1) [],
        /// The UART as a whole.
        UARTEN OFFSET(0) NUMBITS(1) []
    ],
    Interrupts [
        /// Characters have waited for a while.
        RTIM OFFSET(6) NUMBITS(1) [],
        /// So many characters wait.
        RXIM OFFSET(4) NUMBITS(1) []
    ]
}

register_structs! {
    // The registers have the names of the PL011's manual.
    #[allow(non_snake_case)]
    Pl011 {
        (0x00 => DR: ReadWrite<u32>),
        (0x04 => _reserved),
        (0x18 => FR: ReadOnly<u32, Flags::Register>),
        (0x1c => _reserved2),
        (0x2c => LCR_H: ReadWrite<u32, LineControl::Register>),
        (0x30 => CR: ReadWrite<u32, Control::Register>),
        (0x34 => _reserved3),
        (0x38 => IMSC: ReadWrite<u32, Interrupts::Register>),
        (0x3c => @END),
    }
}

/// Polls of a full FIFO before a byte is dropped: a dead UART must not hang EL2.
const PATIENCE: u32 = 10_000_000;

/// The UART. Copies refer to the same device.
#[derive(Clone, Copy)]
pub(crate) struct Uart(&'static Pl011);

// SAFETY: (1) the registers are single words, and each access is one volatile access.
unsafe impl Send for Uart {}
// SAFETY: (1) as for `Send`.
unsafe impl Sync for Uart {}

impl Uart {
    /// Eight bits, FIFOs, interrupts for input, both directions. Nobody may have used it before us.
    fn switch_on(self) {
        self.0.IMSC.write(Interrupts::RXIM::SET + Interrupts::RTIM::SET);
        self.0.LCR_H.write(LineControl::WLEN::Eight + LineControl::FEN::SET);
        self.0.CR.write(Control::UARTEN::SET + Control::TXE::SET + Control::RXE::SET);
    }

    /// Sends one byte, waiting for room within reason.
    pub(crate) fn put(self, byte: u8) {
        for _ in 0..PATIENCE {
            if !self.0.FR.is_set(Flags::TXFF) {
                break;
            }
            relax();
        }
        self.0.DR.set(u32::from(byte));
    }

    /// The next byte that has arrived.
    pub(crate) fn get(self) -> Option<u8> {
        (!self.0.FR.is_set(Flags::RXFE)).then(|| self.0.DR.get() as u8)
    }

    /// Waits, within reason, until everything has left: before the power goes.
    fn drain(self) {
        for _ in 0..PATIENCE {
            if !self.0.FR.is_set(Flags::BUSY) {
                return;
            }
            relax();
        }
    }
}

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// Whether the last byte sent ended a line.
struct Line {
    open: bool,
}

static UART: Once<Uart> = Once::new();
static LINE: Lock<Line> = Lock::new("the console", Line { open: false });

/// Makes the UART at `window` the console. The first call counts.
///
/// # Safety
/// 1. `window` is a PL011's, mapped as device memory from now on for ever.
pub(crate) unsafe fn init(window: PaRange) {
    UART.call_once(|| {
        let registers = core::ptr::with_exposed_provenance::<Pl011>(window.start as usize);
        // SAFETY: (1) the caller's clause 1.
        let uart = Uart(unsafe { &*registers });
        uart.switch_on();
        uart
    });
}

/// The console, for a crash dump.
pub(crate) fn uart() -> Option<Uart> {
    UART.get().copied()
}

/// Prints one line (or several) of the hypervisor.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let Some(mut uart) = uart() else { return };
    let mut line = LINE.lock();
    start_of_line(uart, &mut line);
    let _ = uart.write_str("hyp: ");
    let _ = uart.write_fmt(text);
    let _ = uart.write_str("\n");
}

/// Prints `text` as it is, at the beginning of a line, and ends the line.
pub(crate) fn print_raw(text: fmt::Arguments<'_>) {
    let Some(mut uart) = uart() else { return };
    let mut line = LINE.lock();
    start_of_line(uart, &mut line);
    let _ = uart.write_fmt(text);
    let _ = uart.write_str("\n");
}

/// Sends one byte of the guest.
pub(crate) fn guest_put(byte: u8) {
    let Some(uart) = uart() else { return };
    let mut line = LINE.lock();
    line.open = byte != b'\n';
    uart.put(byte);
}

/// The next byte that a person has typed.
pub(crate) fn guest_get() -> Option<u8> {
    uart().and_then(Uart::get)
}

/// Does `work` with the console's lock held.
#[cfg(feature = "selftest")]
pub(crate) fn with_lock(work: &mut dyn FnMut()) {
    let _held = LINE.lock();
    work();
}

/// Waits until everything printed has left the machine.
pub(crate) fn flush() {
    if let Some(uart) = uart() {
        uart.drain();
    }
}

fn start_of_line(mut uart: Uart, line: &mut Line) {
    if line.open {
        let _ = uart.write_str("\n");
        line.open = false;
    }
}

/// Prints a line of the hypervisor.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::platform::console::print(format_args!($($arg)*)) };
}
