//! The PL011, written line by line.
//!
//! A line is written under one lock, so vCPUs do not tear each other's lines. Who reports an
//! exception or a failure may have been interrupted while it held that lock itself, or the holder may
//! never run again: such a line waits a bounded time and is then written regardless.

use core::fmt::{self, Write};
use core::ptr;

use hyp_abi::map::UART_BASE;
use spin::mutex::SpinMutex;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const LINE_CONTROL: usize = 0x2c;
const CONTROL: usize = 0x30;
const INTERRUPT_MASK: usize = 0x38;
const INTERRUPT_CLEAR: usize = 0x44;

const FLAG_RX_EMPTY: u32 = 1 << 4;
const FLAG_TX_FULL: u32 = 1 << 5;

/// How often a line that must get out tries for the lock.
const PATIENCE: u32 = 1 << 20;

static LINES: SpinMutex<()> = SpinMutex::new(());

/// Reads a UART register.
fn read(register: usize) -> u32 {
    // SAFETY: 1. the UART's page is mapped as Device by the identity map; 2. `register` is one of
    // this file's aligned offsets; 3. reading has no effect on memory.
    unsafe { ptr::read_volatile((UART_BASE as usize + register) as *const u32) }
}

/// Writes a UART register.
fn write(register: usize, value: u32) {
    // SAFETY: 1. and 2. as in `read`; 3. the UART does no DMA here.
    unsafe { ptr::write_volatile((UART_BASE as usize + register) as *mut u32, value) }
}

/// The transmitter, for whoever holds the lock.
struct Transmitter;

impl Write for Transmitter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    while read(FLAGS) & FLAG_TX_FULL != 0 {}
    write(DATA, byte.into());
}

/// 8 bits, FIFO on, transmitter and receiver on.
pub fn init() {
    write(CONTROL, 0);
    write(LINE_CONTROL, 3 << 5 | 1 << 4);
    write(CONTROL, 1 << 9 | 1 << 8 | 1);
}

/// A byte from the receiver, if one waits.
pub fn poll_key() -> Option<u8> {
    (read(FLAGS) & FLAG_RX_EMPTY == 0).then(|| read(DATA) as u8)
}

/// Which interrupts the UART raises: UARTIMSC.
pub fn interrupts() -> u32 {
    read(INTERRUPT_MASK)
}

/// Has the UART raise these interrupts.
pub fn set_interrupts(mask: u32) {
    write(INTERRUPT_MASK, mask);
}

/// Clears interrupts: UARTICR.
pub fn clear_interrupts(which: u32) {
    write(INTERRUPT_CLEAR, which & 0x7ff);
}

/// Writes one line.
pub fn line(args: fmt::Arguments<'_>) {
    let _guard = LINES.lock();
    write_line(args);
}

/// Writes one line even when the lock is never given back.
pub fn urgent_line(args: fmt::Arguments<'_>) {
    let _guard = (0..PATIENCE).find_map(|_| LINES.try_lock());
    write_line(args);
}

fn write_line(args: fmt::Arguments<'_>) {
    // The transmitter never returns an error; a `Display` that does loses the rest of its line.
    let _ = writeln!(Transmitter, "{args}");
}
