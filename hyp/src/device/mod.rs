//! The guest's devices: the models are in crate `hyp-core`, the console behind the UART is the machine's.

use hyp_core::mmio::Access;
use hyp_core::pl011::Console;
use hyp_core::syndrome::LoadStore;

use crate::platform::console;
use crate::vm::Vm;

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

/// Performs a decoded access at `ipa`; `register` is what a store stores.
///
/// Returns what a load puts into its register; `None` if no device is there.
pub(crate) fn access(vm: &Vm, ipa: u64, decoded: LoadStore, register: u64) -> Option<u64> {
    let access = Access::new(ipa, decoded, register);
    let value = vm.devices.lock().access(access, &mut Line)?;
    Some(decoded.extend(value))
}
