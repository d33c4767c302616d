//! The UART as drivers see it.

use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Terminal {
    shown: Vec<u8>,
    typed: VecDeque<u8>,
}

impl Console for Terminal {
    fn put(&mut self, byte: u8) {
        self.shown.push(byte);
    }

    fn get(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }
}

fn typed(text: &str) -> Terminal {
    Terminal { shown: Vec::new(), typed: text.bytes().collect() }
}

const RX_EMPTY: u64 = 1 << 4;
const RX_FULL: u64 = 1 << 6;

#[test]
fn what_is_written_is_shown_at_any_access_size() {
    let (mut uart, mut terminal) = (Pl011::new(), Terminal::default());
    for (size, byte) in [(1, b'a'), (2, b'b'), (4, b'c'), (8, b'd')] {
        uart.write(reg::DR, size, u64::from(byte) | 0xff00, &mut terminal);
    }
    assert_eq!(terminal.shown, b"abcd");
    // Writes that do not cover the lowest byte of the data register show nothing.
    for offset in 1..4 {
        uart.write(offset, 1, 0x41, &mut terminal);
    }
    assert_eq!(terminal.shown, b"abcd");
}

#[test]
fn what_is_typed_is_read_once_in_order() {
    let (mut uart, mut terminal) = (Pl011::new(), typed("hi"));
    let mut got = Vec::new();
    while got.len() < 9 && uart.read(reg::FR, 4, &mut terminal) & RX_EMPTY == 0 {
        // Looking again takes nothing.
        assert_eq!(uart.read(reg::FR, 4, &mut terminal) & RX_EMPTY, 0);
        got.push(uart.read(reg::DR, 1, &mut terminal) as u8);
    }
    assert_eq!(got, b"hi");
    assert_eq!(uart.read(reg::DR, 4, &mut terminal), 0, "empty reads as zero");
}

#[test]
fn the_data_register_can_be_read_without_looking_first() {
    let (mut uart, mut terminal) = (Pl011::new(), typed("x"));
    assert_eq!(uart.read(reg::DR, 4, &mut terminal), u64::from(b'x'));
}

#[test]
fn without_fifo_one_character_fills_the_receiver() {
    let (mut uart, mut terminal) = (Pl011::new(), typed("x"));
    assert_eq!(uart.read(reg::FR, 4, &mut terminal), 0x80 | RX_FULL);
    uart.write(reg::LCR_H, 4, 0x70, &mut terminal);
    assert_eq!(uart.read(reg::FR, 4, &mut terminal), 0x80);
}

#[test]
fn drivers_recognise_it() {
    let (mut uart, mut terminal) = (Pl011::new(), Terminal::default());
    let id = |from: u64, uart: &mut Pl011, terminal: &mut Terminal| {
        (0..4).fold(0, |id, n| id | uart.read(from + 4 * n, 4, terminal) << (8 * n))
    };
    // The amba bus of Linux matches peripheral 0x00041011 under mask 0x000fffff, PrimeCell 0xb105f00d.
    assert_eq!(id(0xfe0, &mut uart, &mut terminal) & 0xf_ffff, 0x4_1011);
    assert_eq!(id(0xff0, &mut uart, &mut terminal), 0xb105_f00d);
}

#[test]
fn settings_read_back_within_their_width_and_reset_values_are_the_manual_s() {
    let (mut uart, mut terminal) = (Pl011::new(), Terminal::default());
    assert_eq!(uart.read(reg::CR, 4, &mut terminal), 0x300);
    assert_eq!(uart.read(reg::IFLS, 4, &mut terminal), 0x12);
    assert_eq!(uart.read(reg::FR, 4, &mut terminal), 0x90);
    let widths = [
        (reg::ILPR, 0xff),
        (reg::IBRD, 0xffff),
        (reg::FBRD, 0x3f),
        (reg::LCR_H, 0xff),
        (reg::CR, 0xff87),
        (reg::IFLS, 0x3f),
        (reg::IMSC, 0x7ff),
        (reg::DMACR, 0x7),
    ];
    for (register, mask) in widths {
        uart.write(register, 4, u64::MAX, &mut terminal);
        assert_eq!(uart.read(register, 4, &mut terminal), mask, "{register:#x}");
    }
    assert_eq!(terminal.shown, b"");
}

const RX: u64 = 1 << 4;
const TX: u64 = 1 << 5;
const RX_TIMEOUT: u64 = 1 << 6;
const FIFOS: u64 = 1 << 4;

#[test]
fn without_fifo_each_character_raises_the_line_until_it_is_read() {
    let (mut uart, mut terminal) = (Pl011::new(), typed("xy"));
    uart.receive(&mut terminal);
    assert!(!uart.irq(), "nothing is unmasked");
    uart.write(reg::IMSC, 4, RX, &mut terminal);
    assert!(uart.irq());
    assert_eq!(uart.read(reg::MIS, 4, &mut terminal), RX);
    assert_eq!(terminal.typed, [b'y'], "the other waits outside");
    assert_eq!(uart.read(reg::DR, 4, &mut terminal), u64::from(b'x'));
    assert!(!uart.irq(), "reading takes the cause away");
    uart.receive(&mut terminal);
    assert!(uart.irq(), "and the next one raises it again");
}

#[test]
fn the_receiver_raises_rx_at_its_level_and_the_timeout_at_once() {
    for (level, trigger) in [(0, 2), (1, 4), (2, 8), (3, 12), (4, 14), (7, 14)] {
        let (mut uart, mut terminal) = (Pl011::new(), Terminal::default());
        uart.write(reg::LCR_H, 4, FIFOS, &mut terminal);
        uart.write(reg::IFLS, 4, level << 3, &mut terminal);
        uart.write(reg::IMSC, 4, RX, &mut terminal);
        for count in 1..=16 {
            terminal.typed.push_back(b'x');
            uart.receive(&mut terminal);
            let rx = if count >= trigger { RX } else { 0 };
            assert_eq!(
                uart.read(reg::RIS, 4, &mut terminal),
                RX_TIMEOUT | rx,
                "{count} of 16 characters"
            );
            assert_eq!(uart.irq(), count >= trigger, "level {level}, {count} of 16 characters");
        }
        for left in (0..16).rev() {
            let _ = uart.read(reg::DR, 4, &mut terminal);
            assert_eq!(uart.irq(), left >= trigger, "level {level}, {left} of 16 characters");
        }
        assert_eq!(uart.read(reg::RIS, 4, &mut terminal), 0);
    }
}

#[test]
fn a_full_receiver_leaves_the_rest_where_it_is_and_loses_nothing() {
    let text: std::string::String = ('a'..='z').collect();
    let (mut uart, mut terminal) = (Pl011::new(), typed(&text));
    uart.write(reg::LCR_H, 4, FIFOS, &mut terminal);
    uart.receive(&mut terminal);
    assert_eq!(terminal.typed.len(), 10, "the rest waits outside");
    assert_eq!(uart.read(reg::FR, 4, &mut terminal), 0x80 | RX_FULL);
    // Switching the FIFOs off forgets nothing either.
    uart.write(reg::LCR_H, 4, 0, &mut terminal);
    let got: Vec<_> = (0..26).map(|_| uart.read(reg::DR, 4, &mut terminal) as u8).collect();
    assert_eq!(got, text.as_bytes());
    assert_eq!(uart.read(reg::FR, 4, &mut terminal) & RX_EMPTY, RX_EMPTY);
}

#[test]
fn clearing_does_not_hide_characters_that_wait() {
    let (mut uart, mut terminal) = (Pl011::new(), typed("x"));
    uart.write(reg::LCR_H, 4, FIFOS, &mut terminal);
    uart.write(reg::IMSC, 4, RX | RX_TIMEOUT, &mut terminal);
    uart.receive(&mut terminal);
    uart.write(reg::ICR, 4, 0x7ff, &mut terminal);
    assert!(uart.irq());
    let _ = uart.read(reg::DR, 4, &mut terminal);
    assert!(!uart.irq());
}

#[test]
fn a_written_character_raises_tx_until_it_is_cleared() {
    let (mut uart, mut terminal) = (Pl011::new(), Terminal::default());
    uart.write(reg::IMSC, 4, TX, &mut terminal);
    assert!(!uart.irq(), "nothing was written");
    uart.write(reg::DR, 4, 0x41, &mut terminal);
    assert_eq!(uart.read(reg::RIS, 4, &mut terminal), TX);
    assert!(uart.irq());
    uart.write(reg::ICR, 4, RX, &mut terminal);
    assert!(uart.irq(), "another one was cleared");
    uart.write(reg::ICR, 4, TX, &mut terminal);
    assert!(!uart.irq());
    uart.write(reg::DR, 4, 0x41, &mut terminal);
    uart.write(reg::IMSC, 4, 0, &mut terminal);
    assert!(!uart.irq(), "masked");
    assert_eq!(uart.read(reg::MIS, 4, &mut terminal), 0);
}

#[test]
fn a_wide_read_covers_two_registers() {
    let (mut uart, mut terminal) = (Pl011::new(), Terminal::default());
    uart.write(reg::IBRD, 8, 0x0000_0015_0000_1234, &mut terminal);
    assert_eq!(uart.read(reg::IBRD, 8, &mut terminal), 0x0000_0015_0000_1234);
    assert_eq!(uart.read(reg::IBRD + 1, 2, &mut terminal), 0x0012);
    assert_eq!(uart.read(reg::IBRD + 2, 4, &mut terminal), 0x0015_0000);
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_defined(
        accesses in proptest::collection::vec((any::<bool>(), 0..0x1100_u64, 0..=9_u8, any::<u64>()), 0..200),
        text in "[a-z]{0,20}", far: u64,
    ) {
        let (mut uart, mut terminal) = (Pl011::new(), typed(&text));
        let mut expected = Vec::new();
        for (write, offset, size, value) in accesses {
            if write {
                uart.write(offset, size, value, &mut terminal);
                if offset == 0 && size > 0 {
                    expected.push(value as u8);
                }
            } else {
                let value = uart.read(offset, size, &mut terminal);
                prop_assert!(size >= 8 || value >> (8 * size) == 0);
            }
        }
        prop_assert_eq!(terminal.shown, expected);
        let mut terminal = Terminal::default();
        uart.write(far, 8, u64::MAX, &mut terminal);
        let _ = uart.read(far, 8, &mut terminal);
    }

    #[test]
    fn no_typed_character_is_lost_or_doubled(
        text in "[a-z]{0,30}",
        offsets in proptest::collection::vec(prop_oneof![Just(0_u64), Just(0x18), Just(0x3c), 0..0x50_u64], 0..100),
    ) {
        let (mut uart, mut terminal) = (Pl011::new(), typed(&text));
        let mut got = Vec::new();
        for offset in offsets {
            let value = uart.read(offset, 4, &mut terminal);
            if offset == 0 && value != 0 {
                got.push(value as u8);
            }
        }
        while got.len() < 99 && uart.read(0x18, 4, &mut terminal) & RX_EMPTY == 0 {
            got.push(uart.read(0, 4, &mut terminal) as u8);
        }
        prop_assert_eq!(got, text.as_bytes());
    }
}
