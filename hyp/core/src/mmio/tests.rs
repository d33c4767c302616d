//! From a syndrome to a device and back.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::syndrome::Syndrome;

#[derive(Default)]
struct Output(Vec<u8>);

impl Console for Output {
    fn put(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn get(&mut self) -> Option<u8> {
        None
    }
}

#[test]
fn windows_lie_where_the_map_says() {
    assert_eq!(Window::at(0x900_0000), Some(Window::Uart));
    assert_eq!(Window::at(0x900_0fff), Some(Window::Uart));
    assert_eq!(Window::at(0x900_1000), None);
    assert_eq!(Window::at(0), Some(Window::Flash));
    assert_eq!(Window::at(0x7ff_ffff), Some(Window::Flash));
    assert_eq!(Window::at(0x800_0000), Some(Window::Distributor));
    assert_eq!(Window::at(0x801_0000), None);
    assert_eq!(Window::at(0x809_ffff), None);
    assert_eq!(Window::at(0x80a_0000), Some(Window::Redistributors));
    assert_eq!(Window::at(0x819_ffff), Some(Window::Redistributors));
    assert_eq!(Window::at(0x81a_0000), None);
    assert_eq!(Window::at(map::RAM_BASE), None);
}

#[test]
fn a_byte_store_reaches_the_console_without_the_register_s_rest() {
    // STRB w3, [UART]: ISV, SAS=0, SRT=3, WnR.
    let esr = Syndrome(0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 16 | 1 << 6 | 7);
    let decoded = esr.abort().unwrap().access().unwrap();
    let access = Access::new(map::UART_BASE, decoded, 0xffff_ff41);
    assert_eq!(access, Access { ipa: map::UART_BASE, size: 1, write: Some(0x41) });
    let (mut devices, mut output) = (Devices::new(), Output::default());
    assert_eq!(devices.access(access, &mut output), Some(0));
    assert_eq!(output.0, b"A");
}

#[test]
fn a_change_of_the_uart_s_line_is_told_once() {
    let (mut devices, mut output) = (Devices::new(), Output::default());
    let write = |devices: &mut Devices, output: &mut Output, offset, value| {
        let access = Access { ipa: map::UART_BASE + offset, size: 4, write: Some(value) };
        assert!(devices.access(access, output).is_some());
        (devices.changed_irq(), devices.changed_irq())
    };
    // The data register, the interrupt's mask, its clear register: TX is bit 5.
    assert_eq!(write(&mut devices, &mut output, 0, 0x41), (None, None));
    assert_eq!(write(&mut devices, &mut output, 0x38, 1 << 5), (Some(true), None));
    assert_eq!(write(&mut devices, &mut output, 0, 0x41), (None, None));
    assert_eq!(write(&mut devices, &mut output, 0x44, 1 << 5), (Some(false), None));
}

#[test]
fn flash_reads_as_zero_and_ignores_writes() {
    let (mut devices, mut output) = (Devices::new(), Output::default());
    let at = |write| Access { ipa: 0x400_0000, size: 8, write };
    assert_eq!(devices.access(at(Some(u64::MAX)), &mut output), Some(0));
    assert_eq!(devices.access(at(None), &mut output), Some(0));
}

#[test]
fn nothing_answers_outside_the_windows() {
    let access = Access { ipa: 0x904_0000, size: 4, write: None };
    assert_eq!(Devices::new().access(access, &mut Output::default()), None);
}

proptest! {
    #[test]
    fn an_access_at_a_window_s_edge_is_defined(before in 0..16_u64, size in 1..=8_u8, write: Option<u64>) {
        for window in [Window::Uart, Window::Flash] {
            let access = Access { ipa: window.range().end - 1 - before, size, write };
            prop_assert!(Devices::new().access(access, &mut Output::default()).is_some());
        }
    }
}
