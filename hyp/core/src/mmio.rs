//! Guest accesses to emulated devices: from an abort's syndrome to a device and back to a register.
//!
//! [`Window::at`] says which device an IPA belongs to, [`Access::new`] makes an access of the decoded
//! syndrome, [`Devices::access`] performs it, and [`LoadStore::extend`] makes the register value of a load's
//! result. The interrupt controller has a window here and a model and a lock of its own. An access that hardware did not decode (ISV=0: pairs, writeback, SIMD) is never guessed at:
//! there is no [`Access`] for it, and the caller stops the VM with a diagnosis.

#[cfg(test)]
mod tests;

use hyp_abi::{MAX_VCPUS, map};

use crate::pl011::{Console, Pl011};
use crate::range::IpaRange;
use crate::syndrome::LoadStore;

/// The emulated devices and where each lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// The PL011.
    Uart,
    /// Flash: reads as zero, ignores writes.
    Flash,
    /// The interrupt controller's distributor.
    Distributor,
    /// The redistributors of all vCPUs that there can be.
    Redistributors,
}

impl Window {
    /// All windows.
    pub const ALL: [Self; 4] = [Self::Uart, Self::Flash, Self::Distributor, Self::Redistributors];

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uart => "UART (PL011)",
            Self::Flash => "flash",
            Self::Distributor => "interrupt distributor (GICD)",
            Self::Redistributors => "interrupt redistributors (GICR)",
        }
    }

    /// Where it lies.
    #[must_use]
    pub const fn range(self) -> IpaRange {
        let (start, len) = match self {
            Self::Uart => (map::UART_BASE, map::UART_SIZE),
            Self::Flash => (map::FLASH_BASE, map::FLASH_SIZE),
            Self::Distributor => (map::GICD_BASE, map::GICD_SIZE),
            Self::Redistributors => {
                (map::GICR_BASE, map::GICR_STRIDE.saturating_mul(MAX_VCPUS as u64))
            }
        };
        IpaRange { start, end: start.saturating_add(len) }
    }

    /// The window that holds `ipa`.
    #[must_use]
    pub fn at(ipa: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.range().contains(ipa))
    }
}

/// A decoded access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First byte.
    pub ipa: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// What is written; `None` for a read.
    pub write: Option<u64>,
}

impl Access {
    /// The access that `decoded` describes. `register` is the 64-bit value of its register; a read ignores it.
    #[must_use]
    pub const fn new(ipa: u64, decoded: LoadStore, register: u64) -> Self {
        let write = if decoded.is_write { Some(decoded.truncate(register)) } else { None };
        Self { ipa, size: decoded.size, write }
    }
}

/// A VM's emulated devices, but for the interrupt controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    uart: Pl011,
    /// The UART's interrupt line, as it was told last.
    irq: bool,
}

impl Devices {
    /// All devices after reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { uart: Pl011::new(), irq: false }
    }

    /// Input has come: the UART takes what it has room for.
    pub fn receive(&mut self, console: &mut impl Console) {
        self.uart.receive(console);
    }

    /// Whether the UART takes more input.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.uart.has_room()
    }

    /// The UART's interrupt line, if it is another than at the last call.
    pub fn changed_irq(&mut self) -> Option<bool> {
        let now = self.uart.irq();
        (core::mem::replace(&mut self.irq, now) != now).then_some(now)
    }

    /// Performs an access. Gives what a read yields (0 for a write), or `None` when no device is at that
    /// IPA: the interrupt controller is none of these. Bytes past the device's window read as zero and are not written.
    pub fn access(&mut self, access: Access, console: &mut impl Console) -> Option<u64> {
        let window = Window::at(access.ipa)?;
        match (window, access.write) {
            (Window::Flash, _) => Some(0),
            (Window::Distributor | Window::Redistributors, _) => None,
            (Window::Uart, write) => {
                let offset = access.ipa.saturating_sub(window.range().start);
                Some(match write {
                    None => self.uart.read(offset, access.size, console),
                    Some(value) => {
                        self.uart.write(offset, access.size, value, console);
                        0
                    }
                })
            }
        }
    }
}
