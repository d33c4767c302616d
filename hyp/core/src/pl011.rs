//! The guest's UART: a PL011 (Arm DDI 0183), for programs that poll and for those that wait for interrupts.
//!
//! Everything written to the data register goes out at once, so the transmitter is always empty. Input is
//! taken from the [`Console`] when it is said to have some ([`Pl011::receive`]) and when the guest looks
//! whether there is any, as far as the receiver has room: 16 characters, or one with FIFOs off. What it has no room for
//! stays where it is, so nothing typed is lost.
//!
//! # Interrupts
//!
//! | bit | raised | until |
//! | --- | --- | --- |
//! | RX | the receiver holds as many characters as UARTIFLS says (one with FIFOs off) | it holds fewer |
//! | RT | it holds a character; only with FIFOs on | it is empty |
//! | TX | a character was written | it is cleared by UARTICR |
//!
//! No time passes in the receiver: its timeout is over as soon as a character is there. RX and RT are levels, and a write to
//! UARTICR does not take them away while the characters are there: a driver that clears first and reads then misses none. There
//! are neither errors nor modem signals, so their bits stay 0. [`Pl011::irq`] is the line, the OR of what is
//! raised and unmasked.
//!
//! Accesses of any size and alignment are defined, none panics: registers are 32 bits wide at multiples of
//! 4; a read gives the bytes it covers, 0 outside any register; a write acts on each register whose lowest
//! byte it covers, with the bytes it brings, and does nothing to a register of which it covers only upper bytes.
//! Baud rate, parity and FIFO settings read back and have no other effect. Transmission does not wait for
//! `UARTCR.UARTEN`: early boot code often writes without enabling the UART, relying on firmware.

mod fifo;
#[cfg(test)]
mod tests;

use bitflags::bitflags;
use fifo::{DEPTH, Fifo};

/// Where characters come from and go to.
pub trait Console {
    /// Takes a character that the guest wrote.
    fn put(&mut self, byte: u8);
    /// Gives the next character for the guest, if there is one. Does not wait.
    fn get(&mut self) -> Option<u8>;
}

bitflags! {
    /// UARTFR.
    struct Flags: u32 {
        const RX_EMPTY = 1 << 4;
        const RX_FULL = 1 << 6;
        const TX_EMPTY = 1 << 7;
    }

    /// UARTRIS, UARTMIS, UARTIMSC and UARTICR.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Interrupts: u32 {
        const RX = 1 << 4;
        const TX = 1 << 5;
        const RX_TIMEOUT = 1 << 6;
        const ALL = 0x7ff;
    }
}

/// Register offsets.
mod reg {
    pub(super) const DR: u64 = 0x000;
    pub(super) const RSR: u64 = 0x004;
    pub(super) const FR: u64 = 0x018;
    pub(super) const ILPR: u64 = 0x020;
    pub(super) const IBRD: u64 = 0x024;
    pub(super) const FBRD: u64 = 0x028;
    pub(super) const LCR_H: u64 = 0x02c;
    pub(super) const CR: u64 = 0x030;
    pub(super) const IFLS: u64 = 0x034;
    pub(super) const IMSC: u64 = 0x038;
    pub(super) const RIS: u64 = 0x03c;
    pub(super) const MIS: u64 = 0x040;
    pub(super) const ICR: u64 = 0x044;
    pub(super) const DMACR: u64 = 0x048;
    /// UARTPeriphID0-3 and UARTPCellID0-3, one byte each.
    pub(super) const ID: u64 = 0xfe0;
}

/// Part 0x011, designer 0x41 (Arm), revision 1 (r1p5 has 3; drivers of `arm,pl011` accept both), PrimeCell.
const ID: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// UARTLCR_H.FEN: FIFOs on.
const FIFO_ENABLE: u32 = 1 << 4;

/// The UART's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pl011 {
    received: Fifo,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    dmacr: u32,
    mask: Interrupts,
    /// TX is raised by a write and stays until it is cleared.
    transmitted: bool,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// The registers after reset.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            received: Fifo::new(),
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: 0x300,
            ifls: 0x12,
            dmacr: 0,
            mask: Interrupts::empty(),
            transmitted: false,
        }
    }

    /// The guest reads `size` bytes (1, 2, 4 or 8) at `offset` from the UART's base. Other sizes read
    /// as many bytes of a register pair as they ask for, at most 8.
    pub fn read(&mut self, offset: u64, size: u8, console: &mut impl Console) -> u64 {
        let first = offset & !3;
        let shift = (offset & 3).wrapping_mul(8) as u32;
        let bytes = size.min(8);
        let end = offset.saturating_add(u64::from(bytes));
        let mut value = u128::from(self.load(first, offset == first, console));
        let mut at = first.saturating_add(4);
        let mut place = 32_u32;
        while at < end && place <= 64 {
            value |= u128::from(self.load(at, true, console)).wrapping_shl(place);
            at = at.saturating_add(4);
            place = place.wrapping_add(32);
        }
        let spare = 64_u32.wrapping_sub(u32::from(bytes).wrapping_mul(8));
        if spare >= 64 {
            return 0;
        }
        (value.wrapping_shr(shift) as u64).wrapping_shl(spare).wrapping_shr(spare)
    }

    /// The guest writes the low `size` bytes (1, 2, 4 or 8) of `value` at `offset` from the UART's base.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, console: &mut impl Console) {
        let mut at = offset;
        let mut left = u32::from(size.min(8));
        let mut value = value;
        while left > 0 {
            let skip = (at & 3) as u32;
            let bytes = left.min(4_u32.wrapping_sub(skip));
            if skip == 0 {
                let spare = 32_u32.wrapping_sub(bytes.wrapping_mul(8));
                let part = (value as u32).wrapping_shl(spare).wrapping_shr(spare);
                self.store(at, part, console);
            }
            value = value.wrapping_shr(bytes.wrapping_mul(8));
            at = at.saturating_add(u64::from(bytes));
            left = left.saturating_sub(bytes);
        }
    }

    /// Takes what input there is and the receiver has room for.
    pub fn receive(&mut self, console: &mut impl Console) {
        while self.has_room() {
            let Some(byte) = console.get() else { return };
            self.received.push(byte);
        }
    }

    /// Whether the receiver takes another character.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.received.len() < self.depth()
    }

    /// Whether the interrupt line is raised. It changes by accesses and by [`Pl011::receive`].
    #[must_use]
    pub fn irq(&self) -> bool {
        self.raw().intersects(self.mask)
    }

    const fn has_fifo(&self) -> bool {
        self.lcr_h & FIFO_ENABLE != 0
    }

    /// Characters that the receiver holds at the most.
    const fn depth(&self) -> usize {
        if self.has_fifo() { DEPTH } else { 1 }
    }

    /// Characters with which RX is raised: UARTIFLS.RXIFLSEL, in eighths of the FIFO. Reserved values are as the highest.
    const fn trigger(&self) -> usize {
        if !self.has_fifo() {
            return 1;
        }
        match self.ifls.wrapping_shr(3) & 7 {
            0 => DEPTH / 8,
            1 => DEPTH / 4,
            2 => DEPTH / 2,
            3 => DEPTH / 4 * 3,
            _ => DEPTH / 8 * 7,
        }
    }

    fn flags(&self) -> Flags {
        let mut flags = Flags::TX_EMPTY;
        flags.set(Flags::RX_EMPTY, self.received.len() == 0);
        flags.set(Flags::RX_FULL, !self.has_room());
        flags
    }

    fn raw(&self) -> Interrupts {
        let held = self.received.len();
        let mut raw = Interrupts::empty();
        raw.set(Interrupts::TX, self.transmitted);
        raw.set(Interrupts::RX, held >= self.trigger());
        raw.set(Interrupts::RX_TIMEOUT, held > 0 && self.has_fifo());
        raw
    }

    /// Reads a register. `whole`: the access covers its lowest byte, so the data register gives away
    /// its character.
    fn load(&mut self, register: u64, whole: bool, console: &mut impl Console) -> u32 {
        match register {
            reg::DR if whole => {
                self.receive(console);
                self.received.pop().map_or(0, u32::from)
            }
            reg::FR => {
                self.receive(console);
                self.flags().bits()
            }
            reg::ILPR => self.ilpr,
            reg::IBRD => self.ibrd,
            reg::FBRD => self.fbrd,
            reg::LCR_H => self.lcr_h,
            reg::CR => self.cr,
            reg::IFLS => self.ifls,
            reg::IMSC => self.mask.bits(),
            reg::RIS => {
                self.receive(console);
                self.raw().bits()
            }
            reg::MIS => {
                self.receive(console);
                self.raw().intersection(self.mask).bits()
            }
            reg::DMACR => self.dmacr,
            _ => {
                let index =
                    register.checked_sub(reg::ID).map(|bytes| bytes.wrapping_shr(2) as usize);
                index.and_then(|index| ID.get(index)).copied().map_or(0, u32::from)
            }
        }
    }

    fn store(&mut self, register: u64, value: u32, console: &mut impl Console) {
        match register {
            reg::DR => {
                console.put(value as u8);
                self.transmitted = true;
            }
            // A write of any value clears receive errors, of which there are none.
            reg::RSR => {}
            reg::ILPR => self.ilpr = value & 0xff,
            reg::IBRD => self.ibrd = value & 0xffff,
            reg::FBRD => self.fbrd = value & 0x3f,
            reg::LCR_H => self.lcr_h = value & 0xff,
            reg::CR => self.cr = value & 0xff87,
            reg::IFLS => self.ifls = value & 0x3f,
            reg::IMSC => self.mask = Interrupts::from_bits_truncate(value),
            reg::ICR => {
                if Interrupts::from_bits_truncate(value).contains(Interrupts::TX) {
                    self.transmitted = false;
                }
            }
            reg::DMACR => self.dmacr = value & 7,
            _ => {}
        }
    }
}
