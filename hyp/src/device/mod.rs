//! The guest's devices: the models are in crate `hyp-core`, the console behind the UART is the machine's.
//!
//! Input comes by the machine's UART interrupt, which stays active from its acknowledgement (`platform/gic.rs`) until the model has
//! room again: so input that the guest does not read stays in the machine's UART, and takes no CPU out of its guest. A guest
//! that polls takes input by looking, as ever. As long as the model is full nobody but the guest can change that, by an
//! access, so no interrupt is a reason to look, nor to wait for the lock.
//!
//! ```text
//!  a character ──▶ interrupt, acknowledged: active ──▶ input(): into the model ──▶ its line to the interrupt controller
//!                              ▲                              │ full: stays active
//!                              └──────── deactivated ◀────────┴── room, at once or when the guest has read
//! ```

use core::sync::atomic::{Ordering, fence};

use hyp_abi::interrupt::UART;
use hyp_core::mmio::{Access, Devices, Window};
use hyp_core::pl011::Console;
use hyp_core::syndrome::LoadStore;
use hyp_core::vgic::{self, Answer};

use crate::platform::{console, gic};
use crate::vm::interrupts;
use crate::vm::run::Env;
use crate::vm::vcpu::Vcpu;

/// The machine's console, as the emulated UART sees it.
struct Line;

impl Console for Line {
    fn put(&mut self, byte: u8) {
        console::guest_put(byte);
    }

    fn get(&mut self) -> Option<u8> {
        console::guest_get()
    }
}

/// Performs a decoded access of a vCPU at `ipa`; `register` is what a store stores.
///
/// Returns what a load puts into its register, or that the guest has to repeat the access; `None` if no device is there.
pub(crate) fn access(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    ipa: u64,
    decoded: LoadStore,
    register: u64,
) -> Option<Answer> {
    let access = Access::new(ipa, decoded, register);
    let window = Window::at(ipa)?;
    let answer = match window {
        Window::Distributor | Window::Redistributors => {
            let offset = ipa - window.range().start;
            let access = vgic::Access { size: access.size, write: access.write };
            interrupts::access(env, vcpu, window, offset, access)
        }
        Window::Uart | Window::Flash => {
            let mut devices = env.vm.devices.lock();
            let value = devices.access(access, &mut Line)?;
            // Still locked: levels are told in the order in which they change.
            if let Some(level) = devices.changed_irq() {
                interrupts::set_line(env, vcpu, UART, level);
            }
            listen(env, &devices);
            Answer::Value(value)
        }
    };
    Some(match answer {
        Answer::Value(value) => Answer::Value(decoded.extend(value)),
        Answer::Again => Answer::Again,
    })
}

/// Takes the input that the machine's UART has told of, if it has. Any CPU of the VM's, at a safe point, with or without a vCPU.
pub(crate) fn input(env: Env<'_>) {
    if !gic::console_is_active() || env.vm.full.load(Ordering::Acquire) {
        return;
    }
    let mut devices = env.vm.devices.lock();
    devices.receive(&mut Line);
    if let Some(level) = devices.changed_irq() {
        interrupts::set_spi(env, UART, level);
    }
    listen(env, &devices);
}

/// Input may interrupt again, if there is room for it. `devices` are the VM's, locked.
fn listen(env: Env<'_>, devices: &Devices) {
    let is_full = !devices.has_room();
    // Before an interrupt can come for which it is to be clear. One may just have come on another CPU, which has stored that, and looks at this mark:
    // with a fence on both sides one of the two sees the other's.
    env.vm.full.store(is_full, Ordering::Release);
    fence(Ordering::SeqCst);
    if !is_full && gic::console_is_active() {
        gic::listen_to_console();
    }
}
