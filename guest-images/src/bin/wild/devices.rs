//! The UART and the flash area in every size, and accesses to them that cannot be emulated.

use core::arch::asm;

use guest_rt::exception::{EC_DATA_ABORT, FSC_ALIGNMENT, Resume, catch, probe_call, probe_read};
use guest_rt::{Args, Machine, check, check_eq, console, fail, say};
use hyp_abi::map::{FLASH_BASE, FLASH_SIZE, UART_BASE};

use crate::memory::{alias, survived};

const UART: usize = UART_BASE as usize;
const FLASH: usize = FLASH_BASE as usize;

/// A load of 1, 2, 4 or 8 bytes, zero-extended.
pub(crate) fn load(at: usize, size: usize) -> u64 {
    let value: u64;
    // SAFETY: mapped by the identity map; what is read here, registers of devices among it, has no effect
    // that matters.
    unsafe {
        match size {
            1 => asm!("ldrb {v:w}, [{a}]", v = out(reg) value, a = in(reg) at, options(nostack)),
            2 => asm!("ldrh {v:w}, [{a}]", v = out(reg) value, a = in(reg) at, options(nostack)),
            4 => asm!("ldr {v:w}, [{a}]", v = out(reg) value, a = in(reg) at, options(nostack)),
            _ => asm!("ldr {v}, [{a}]", v = out(reg) value, a = in(reg) at, options(nostack)),
        }
    }
    value
}

/// The ID registers of a PL011 are what drivers look for; the rest must not be fatal.
pub(crate) fn uart(_: &Machine, _: Args) {
    for (index, expected) in
        [0x11, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1].into_iter().enumerate()
    {
        let at = UART + 0xfe0 + 4 * index;
        for size in [1, 2, 4] {
            // The high half of PeriphID2 is the revision.
            let mask = if index == 2 { 0x0f } else { 0xff };
            check_eq!(load(at, size) & mask, expected, "UART ID register at {at:#x}, {size} bytes");
        }
    }
    for offset in (0x04..0x4c).step_by(4) {
        [1, 2, 4].into_iter().for_each(|size| {
            load(UART + offset, size);
        });
    }
    check_eq!(load(UART + 0x18, 4) & 1 << 7, 1 << 7, "UART flags: transmitter empty");
    console::init();
    say!("wild: the UART answers in every size");
}

pub(crate) fn echo(_: &Machine, _: Args) {
    loop {
        match console::poll_key() {
            Some(b'q') => return,
            Some(key) => say!("wild: key {:?} ({key:#04x})", char::from(key)),
            None => {}
        }
    }
}

pub(crate) fn flash_read(_: &Machine, _: Args) {
    for at in (FLASH..FLASH + FLASH_SIZE as usize).step_by(0x7f_fff8) {
        for size in [1, 2, 4, 8] {
            check_eq!(load(at, size), 0, "{size} bytes of flash at {at:#x}");
        }
    }
    let last = FLASH + FLASH_SIZE as usize - 8;
    check_eq!(load(last, 8), 0, "the last 8 bytes of flash");
}

pub(crate) fn flash_write(_: &Machine, _: Args) {
    let at = FLASH + 0x400_0000;
    // SAFETY: writes to the flash area go nowhere.
    unsafe {
        asm!("strb {v:w}, [{a}]", "strh {v:w}, [{a}]", "str {v:w}, [{a}]", "str {v}, [{a}]",
             "str xzr, [{a}]", "str {v}, [{a}]", v = in(reg) !0u64, a = in(reg) at, options(nostack));
    }
    check_eq!(load(at, 8), 0, "flash after a write");
}

pub(crate) fn flash_exec(_: &Machine, _: Args) {
    // SAFETY: there is no code; what follows is this case's subject.
    survived("executing at", FLASH, unsafe { probe_call(alias(FLASH)) });
}

/// No decoded syndrome: the hypervisor must not guess.
pub(crate) fn pair(_: &Machine, args: Args) {
    let at = args.number("at", UART + 0x10);
    let result = catch(Resume::Next, || {
        let value: u64;
        // SAFETY: device memory; nothing is done with the values.
        unsafe {
            asm!("ldp {v}, {w}, [{a}]", v = out(reg) value, w = out(reg) _, a = in(reg) at,
                 options(nostack));
        }
        value
    });
    survived("loading a pair from", at, result);
}

pub(crate) fn simd(_: &Machine, _: Args) {
    let result = catch(Resume::Next, || {
        let value: u64;
        // SAFETY: device memory; the compiler uses no SIMD register.
        unsafe {
            asm!(".arch_extension simd", "ldr q0, [{a}]", "umov {v}, v0.d[0]", v = out(reg) value,
                 a = in(reg) FLASH, options(nostack));
        }
        value
    });
    survived("loading a SIMD register from", FLASH, result);
}

/// Where QEMU's `virt` has its virtio slots.
pub(crate) fn missing(_: &Machine, args: Args) {
    let at = args.number("at", 0x0a00_0000);
    let result = catch(Resume::Next, || {
        // SAFETY: no device is there.
        unsafe { asm!("str {v:w}, [{a}]", v = in(reg) 1u64, a = in(reg) at, options(nostack)) };
        0
    });
    survived("storing to", at, result);
}

/// Stage 1 says Device, so the guest's own alignment fault comes before any stage-2 fault.
pub(crate) fn unaligned(_: &Machine, _: Args) {
    match probe_read(UART + 1) {
        Err(fault) if fault.ec() == EC_DATA_ABORT => {
            check!(fault.fsc() == FSC_ALIGNMENT, "not an alignment fault: {fault}");
            say!("wild: caught {fault}");
        }
        other => fail!("an unaligned load from the UART: {other:x?}"),
    }
}
