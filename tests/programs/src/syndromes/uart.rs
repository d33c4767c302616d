//! The UART as its manual's register table has it (DDI 0183, table 3-1), byte by byte.

use std::collections::VecDeque;

use hyp_core::pl011::Console;

/// Registers that keep what is written: offset, writable bits, value after reset.
const KEPT: [(u64, u32, u32); 8] = [
    (0x20, 0xff, 0),       // ILPR
    (0x24, 0xffff, 0),     // IBRD
    (0x28, 0x3f, 0),       // FBRD
    (0x2c, 0xff, 0),       // LCR_H
    (0x30, 0xff87, 0x300), // CR
    (0x34, 0x3f, 0x12),    // IFLS
    (0x38, 0x7ff, 0),      // IMSC
    (0x48, 0x7, 0),        // DMACR
];

/// PeriphID0-3 and PCellID0-3, from 0xfe0.
const ID: [u32; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RX_TIMEOUT: u32 = 1 << 6;

/// What the guest sees of the outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire {
    pub(super) waiting: VecDeque<u8>,
    pub(super) written: Vec<u8>,
}

impl Console for Wire {
    fn put(&mut self, byte: u8) {
        self.written.push(byte);
    }
    fn get(&mut self) -> Option<u8> {
        self.waiting.pop_front()
    }
}

/// The reference.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    kept: [u32; 8],
    held: VecDeque<u8>,
    sent: bool,
    pub(super) waiting: VecDeque<u8>,
    pub(super) written: Vec<u8>,
}

impl Default for Reference {
    fn default() -> Self {
        let kept = KEPT.map(|(_, _, reset)| reset);
        Self {
            kept,
            held: VecDeque::new(),
            sent: false,
            waiting: VecDeque::new(),
            written: Vec::new(),
        }
    }
}

impl Reference {
    fn kept(&self, offset: u64) -> Option<usize> {
        KEPT.iter().position(|(at, _, _)| *at == offset)
    }

    fn value(&self, offset: u64) -> u32 {
        self.kept(offset).map_or(0, |at| self.kept[at])
    }

    /// LCR_H.FEN.
    fn has_fifo(&self) -> bool {
        self.value(0x2c) >> 4 & 1 == 1
    }

    /// The receiver is 16 characters deep, or one.
    pub(super) fn has_room(&self) -> bool {
        self.held.len() < if self.has_fifo() { 16 } else { 1 }
    }

    pub(super) fn poll(&mut self) {
        while self.has_room() && !self.waiting.is_empty() {
            self.held.extend(self.waiting.pop_front());
        }
    }

    fn raw(&self) -> u32 {
        // IFLS, bits 5:3: 1/8, 1/4, 1/2, 3/4, 7/8 of 16.
        let level = match (self.has_fifo(), self.value(0x34) >> 3 & 7) {
            (false, _) => 1,
            (true, 0) => 2,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, 3) => 12,
            (true, _) => 14,
        };
        let mut raw = if self.sent { TX } else { 0 };
        raw |= if self.held.len() >= level { RX } else { 0 };
        raw | if self.has_fifo() && !self.held.is_empty() { RX_TIMEOUT } else { 0 }
    }

    pub(super) fn irq(&self) -> bool {
        self.raw() & self.value(0x38) != 0
    }

    /// One whole register. `lowest`: its first byte is among those read.
    fn register(&mut self, offset: u64, lowest: bool) -> u32 {
        match offset {
            0x00 if lowest => {
                self.poll();
                self.held.pop_front().map_or(0, u32::from)
            }
            0x18 => {
                self.poll();
                let empty = if self.held.is_empty() { 1 << 4 } else { 0 };
                let full = if self.has_room() { 0 } else { 1 << 6 };
                1 << 7 | empty | full
            }
            0x3c => {
                self.poll();
                self.raw()
            }
            0x40 => {
                self.poll();
                self.raw() & self.value(0x38)
            }
            0xfe0..=0xffc => ID[(offset - 0xfe0) as usize / 4],
            _ => self.value(offset),
        }
    }

    pub(super) fn read(&mut self, offset: u64, size: u64) -> u64 {
        let (mut value, mut register) = (0, (u64::MAX, 0));
        for byte in 0..size {
            let (at, lane) = ((offset + byte) & !3, (offset + byte) % 4);
            if register.0 != at {
                register = (at, self.register(at, lane == 0));
            }
            value |= u64::from(register.1.to_le_bytes()[lane as usize]) << (8 * byte);
        }
        value
    }

    pub(super) fn write(&mut self, offset: u64, size: u64, value: u64) {
        for at in offset..offset + size {
            if at % 4 != 0 {
                continue;
            }
            // The bytes of the access that fall into this register.
            let bytes: Vec<u8> = (at..(at + 4).min(offset + size))
                .map(|byte| (value >> (8 * (byte - offset))) as u8)
                .collect();
            let word = bytes.iter().rev().fold(0, |word: u32, byte| word << 8 | u32::from(*byte));
            match at {
                0x00 => {
                    self.written.push(word as u8);
                    self.sent = true;
                }
                0x44 if word & TX != 0 => self.sent = false,
                _ => {
                    if let Some(kept) = self.kept(at) {
                        self.kept[kept] = word & KEPT[kept].1;
                    }
                }
            }
        }
    }
}
