//! A small EL1 runtime for the project's own guests.
//!
//! A guest is one scenario that puts a question to the hypervisor and judges the answer itself. It
//! is a flat binary linked at RAM base + 2 MiB, entered at its first byte at EL1 with the MMU off and
//! the device tree's IPA in x0. [`start`] turns stage 1 on before anything is written, hands a
//! [`Machine`] to the guest's function, and reports its end as the verdict *pass*. [`fail!`] ends the
//! whole VM with the verdict *fail*, from any vCPU and at any point: no scenario has to unwind.
//!
//! | file | story |
//! | --- | --- |
//! | `start.rs` | entry, and why the MMU is on before the first store |
//! | `mmu.rs`, `cache.rs` | the identity map, alias mappings, maintenance between them |
//! | `exception.rs`, `fault.rs` | the vectors: report, or hand the exception to a scenario that expects it |
//! | `gic.rs` | the interrupt controller: registers by INTID, and the driver that sets it up |
//! | `el0.rs` | one instruction at EL0 |
//! | `access.rs` | loads, stores and fetches whose abort is checked field by field |
//! | `machine.rs` | what the device tree says: RAM, CPUs, command line |
//! | `console.rs` | PL011 output in whole lines |
//! | `call.rs`, `ranges.rs` | hypercalls, PSCI, the verdict; calls on a range |
//! | `smp.rs`, `race.rs` | vCPU start, barriers; two vCPUs at the same moment |
//! | `cpu.rs`, `promises.rs`, `fpsimd.rs` | what CPU this is, and whether what it promises works |
//!
//! Without the hypervisor (plain QEMU, the ELF file as `-kernel`) everything but the vendor calls
//! works too; the end is then a PSCI SYSTEM_OFF and the words "no hypervisor".

#![no_std]

pub mod access;
pub mod cache;
pub mod call;
pub mod console;
pub mod cpu;
pub mod el0;
pub mod exception;
mod fault;
pub mod fpsimd;
pub mod gic;
pub mod machine;
pub mod mmu;
pub mod promises;
pub mod race;
pub mod ranges;
pub mod rng;
pub mod smp;
pub mod start;

pub use machine::{Arena, Args, Machine};

/// Bytes of a page: the stage-1 and stage-2 granule.
pub const PAGE: usize = 4096;
/// Bytes that one level-3 table maps, and a level-2 block.
pub const MIB2: usize = 2 << 20;
/// Bytes that one level-2 table maps, and a level-1 block.
pub const GIB: usize = 1 << 30;

/// Names the guest and the function that is its scenario: `guest!("hello", run)` with
/// `fn run(machine: &Machine)`. Returning from it is the verdict *pass*.
#[macro_export]
macro_rules! guest {
    ($name:literal, $run:path) => {
        #[unsafe(no_mangle)]
        static GUEST_NAME: &str = $name;

        #[unsafe(no_mangle)]
        fn guest_main(machine: &$crate::Machine) {
            $run(machine)
        }
    };
}

/// Prints one line, whole, however many vCPUs print at the same time.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::line(::core::format_args!($($arg)*)) };
}

/// Ends the VM with the verdict *fail*, after a line that says where and why.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => {
        $crate::call::fail(::core::file!(), ::core::line!(), ::core::format_args!($($arg)*))
    };
}

/// Fails unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr, $($arg:tt)+) => {
        if !$cond { $crate::fail!($($arg)+) }
    };
}

/// Fails, printing both values, unless they are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($arg:tt)+) => {{
        let (left, right) = ($left, $right);
        if left != right {
            $crate::fail!("{}: is {left:#x?}, should be {right:#x?}", ::core::format_args!($($arg)+))
        }
    }};
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    call::fail(file, line, format_args!("panicked: {}", info.message()))
}
