//! Any exit of a guest: syndromes, device accesses, PSCI calls, ID registers, with any values.
//!
//! What is promised of each: an answer, no panic, and nothing that hardware did not say. A syndrome is compared
//! with field tables written out from the Arm ARM (D24.2, ESR_EL2), what is decided about an abort with what must never be,
//! the UART, PSCI and the ID registers with references in files of their own, after every step of a random sequence.

mod decide;
mod esr;
mod idregs;
mod power;
mod uart;

use arbitrary::{Arbitrary, Unstructured};
use hyp_abi::map;
use hyp_core::IpaRange;
use hyp_core::mmio::{Access, Devices, Window};
use hyp_core::psci::Psci;
use hyp_core::syndrome::LoadStore;

/// One exit.
#[derive(Clone, Debug, Arbitrary)]
enum Exit {
    /// Any syndrome, FAR_EL2, and the IPA of HPFAR_EL2.
    Syndrome { esr: u64, far: u64, ipa: u64, pc: u64 },
    /// A data abort from the guest at a device: ISS bits, offset into the window, register value.
    Device { iss: u32, uart: bool, offset: u16, register: u64 },
    /// A character arrives.
    Input { byte: u8 },
    /// The UART is told that there is input.
    Receive,
    /// A call, by its place in the list of known ones or by its number.
    Call { vcpu: u8, function: power::Function, args: [u64; 3] },
    /// The target of a CPU_ON begins to run.
    Started { vcpu: u8 },
    /// A read of a system register: op0, op1, CRn, CRm, op2 packed, or one of the ID space.
    Register { encoding: u16, in_id_space: bool, raw: u64, ipa_bits: u8 },
}

/// The fuzz target.
pub fn check(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let vcpus = usize::from(u8::arbitrary(&mut input).unwrap_or(1) % 10);
    let mut guest = Guest::new(vcpus);
    while !input.is_empty() {
        match Exit::arbitrary(&mut input) {
            Ok(exit) => guest.exit(exit),
            Err(_) => return,
        }
    }
}

/// The devices of a VM, each beside its reference.
struct Guest {
    devices: Devices,
    uart: uart::Reference,
    irq: bool,
    wire: uart::Wire,
    psci: Psci,
    power: power::Reference,
}

impl Guest {
    fn new(vcpus: usize) -> Self {
        let ram = IpaRange { start: map::RAM_BASE, end: map::RAM_BASE + (64 << 20) };
        Self {
            devices: Devices::new(),
            uart: uart::Reference::default(),
            irq: false,
            wire: uart::Wire::default(),
            psci: Psci::new(vcpus, ram),
            power: power::Reference::new(vcpus, ram),
        }
    }

    fn exit(&mut self, exit: Exit) {
        match exit {
            Exit::Syndrome { esr, far, ipa, pc } => {
                esr::check(esr, far, ipa, pc);
                decide::check(esr, far, ipa, pc);
                // An abort of the guest, too: few values are one.
                let class = 0x20 | (esr >> 32 & 1) << 2;
                decide::check(esr & !(0x3f << 26) | class << 26, far, ipa, pc);
            }
            Exit::Device { iss, uart, offset, register } => {
                self.device(iss, uart, u64::from(offset), register);
            }
            Exit::Input { byte } => self.input(byte),
            Exit::Receive => {
                self.devices.receive(&mut self.wire);
                self.uart.poll();
                self.line();
            }
            Exit::Call { vcpu, function, args } => {
                self.power.call(&self.psci, usize::from(vcpu % 10), function, args);
            }
            Exit::Started { vcpu } => self.power.started(&self.psci, usize::from(vcpu % 10)),
            Exit::Register { encoding, in_id_space, raw, ipa_bits } => {
                idregs::check(encoding, in_id_space, raw, u32::from(ipa_bits % 65));
            }
        }
    }

    /// From the syndrome to the device and back to the register, as the hypervisor goes.
    fn device(&mut self, iss: u32, uart: bool, offset: u64, register: u64) {
        let window = if uart { Window::Uart } else { Window::Flash };
        // Half of the accesses meet where the registers are.
        let reach = if offset >> 15 == 1 { 0x50 } else { window.range().len() };
        let (offset, size) = (offset % reach, 1 << (iss >> 22 & 3));
        let ipa = window.range().start + offset;
        assert_eq!(Window::at(ipa), Some(window));
        let Some(decoded) = esr::decoded(iss) else {
            return;
        };
        let access = Access::new(ipa, decoded, register);
        assert_eq!(access.size, size);
        let low = u64::MAX >> (64 - 8 * u32::from(size));
        assert_eq!(access.write, decoded.is_write.then_some(register & low));
        assert_eq!(
            decoded.extend(register),
            extended(&decoded, register),
            "any value, not this device's"
        );
        let value = self.devices.access(access, &mut self.wire);
        let expected = match (uart, access.write) {
            (false, _) => 0,
            (true, None) => self.uart.read(offset, u64::from(size)),
            (true, Some(value)) => {
                self.uart.write(offset, u64::from(size), value);
                0
            }
        };
        assert_eq!(value, Some(expected), "{decoded} at {window:?} + {offset:#x}");
        assert_eq!(self.wire.written, self.uart.written);
        self.line();
        assert_eq!(decoded.extend(expected), extended(&decoded, expected));
    }

    fn input(&mut self, byte: u8) {
        self.wire.waiting.push_back(byte);
        self.uart.waiting.push_back(byte);
    }

    /// The interrupt line, and each change of it once.
    fn line(&mut self) {
        let now = self.uart.irq();
        assert_eq!(self.devices.changed_irq(), (self.irq != now).then_some(now));
        self.irq = now;
        assert_eq!(self.devices.has_room(), self.uart.has_room());
        assert_eq!(self.wire.waiting, self.uart.waiting, "input is taken as far as there is room");
    }
}

/// What a load leaves in its register, by the casts of the language.
fn extended(access: &LoadStore, value: u64) -> u64 {
    let wide = match (access.size, access.sign_extend) {
        (1, true) => value as u8 as i8 as i64 as u64,
        (2, true) => value as u16 as i16 as i64 as u64,
        (4, true) => value as u32 as i32 as i64 as u64,
        (1, false) => value as u8 as u64,
        (2, false) => value as u16 as u64,
        (4, false) => value as u32 as u64,
        _ => value,
    };
    if access.is_64_bit { wide } else { wide as u32 as u64 }
}
