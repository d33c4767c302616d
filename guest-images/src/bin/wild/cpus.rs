//! Instructions that wait, trap or crash, and vCPUs that do not stop by themselves.

use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::asm::{wfe, wfi};
use guest_rt::exception::{EC_UNKNOWN, Resume, catch};
use guest_rt::promises::PROMISES;
use guest_rt::{Args, Machine, call, check, fail, fpsimd, say, smp};

/// A register that software reads and writes as it likes, and the runtime never touches.
macro_rules! thread_registers {
    ($($name:literal)*) => {{
        /// Name, how to fill it, how to read it.
        type Register = (&'static str, fn(), fn() -> u64);
        const ALL: &[Register] = &[$((
            $name,
            || {
                // SAFETY: nothing depends on the register, or nothing is done that would use it.
                unsafe {
                    asm!(concat!("msr ", $name, ", {}"), in(reg) 0x5a0_u64,
                         options(nomem, nostack, preserves_flags));
                }
            },
            || {
                let value;
                // SAFETY: reading it has no effect.
                unsafe {
                    asm!(concat!("mrs {}, ", $name), out(reg) value,
                         options(nomem, nostack, preserves_flags));
                }
                value
            },
        )),*];
        ALL
    }};
}

/// What a vCPU leaves in its registers is gone when it is started again.
pub(crate) fn restart(machine: &Machine, _: Args) {
    // Those of EL1 that its own exceptions, timers and walks do not use while the job runs.
    let registers = thread_registers!(
        "tpidr_el0" "tpidrro_el0" "contextidr_el1" "sp_el0" "far_el1" "cntv_cval_el0" "cntp_cval_el0"
    );
    check!(machine.vcpus().len() > 1, "this case needs two vCPUs");
    for round in 0..3 {
        let kept = AtomicUsize::new(usize::MAX);
        smp::run_on(machine, 1..2, &|me| {
            if me.index == 0 {
                return;
            }
            let values = fpsimd::nonzero() as usize;
            let others = registers.iter().filter(|(_, _, read)| read() != 0);
            let others = others.inspect(|(name, ..)| say!("wild: {name} is not zero")).count();
            kept.store(values + others, Ordering::Relaxed);
            fpsimd::fill(0x1234_5678 + round);
            registers.iter().for_each(|(_, fill, _)| fill());
            // Else there would be nothing to lose.
            check!(fpsimd::nonzero() == 34, "FP/SIMD registers do not keep what they are given");
            for (name, _, read) in registers {
                check!(read() != 0, "{name} does not keep what it is given");
            }
        });
        check!(kept.into_inner() == 0, "a started vCPU finds what was in its registers before");
    }
    say!("wild: each start found zeroes");
}

/// Semihosting's door. Were it open, SYS_EXIT would end the emulator here.
pub(crate) fn hlt(_: &Machine, _: Args) {
    let result = catch(Resume::Next, || {
        let block: [u64; 2] = [0x2_0026, 99];
        // SAFETY: either UNDEFINED, and skipped, or the end of everything.
        unsafe {
            asm!("hlt #0xf000", inout("x0") 0x18u64 => _, in("x1") block.as_ptr(), options(nostack));
        }
    });
    match result {
        Err(fault) if fault.ec() == EC_UNKNOWN => say!("wild: caught {fault}"),
        other => fail!("HLT #0xF000 is not UNDEFINED: {other:x?}"),
    }
}

/// WFE with the event register set falls through; so does WFET with a deadline that is over.
pub(crate) fn wfx(_: &Machine, _: Args) {
    for _ in 0..100 {
        // SAFETY: hints.
        unsafe { asm!("sevl", "wfe", options(nomem, nostack, preserves_flags)) };
    }
    if let Some(timed) = PROMISES.iter().find(|p| p.feature == "WFET and WFIT" && p.is_made()) {
        check!(timed.keep().is_ok(), "WFET or WFIT is UNDEFINED");
    }
    say!("wild: woken every time");
}

/// Nothing interrupts this VM.
pub(crate) fn sleep(_: &Machine, _: Args) {
    wfi();
    say!("wild: WFI came back, as it may; going on");
    loop {
        wfi();
    }
}

pub(crate) fn spin_others(machine: &Machine, _: Args) {
    // Interrupts have been masked since the first instruction.
    leave_behind(machine, || {
        loop {
            core::hint::black_box(());
        }
    });
}

pub(crate) fn sleep_others(machine: &Machine, _: Args) {
    leave_behind(machine, || {
        loop {
            wfi();
        }
    });
}

/// Every other vCPU ends up in `stay`; then the VM is switched off.
fn leave_behind(machine: &Machine, stay: fn() -> !) {
    let gone = AtomicUsize::new(0);
    smp::run(machine, machine.vcpus().len(), &|me| {
        if me.index > 0 {
            gone.fetch_add(1, Ordering::Relaxed);
            stay();
        }
        while gone.load(Ordering::Relaxed) + 1 < me.count {
            smp::relax();
        }
        say!("wild: {} vCPUs will not come back by themselves", me.count - 1);
        call::system_off();
    });
}

pub(crate) fn fail_other(machine: &Machine, _: Args) {
    smp::run(machine, machine.vcpus().len(), &|me| {
        check!(me.index + 1 < me.count, "as announced");
        loop {
            wfe();
        }
    });
}

pub(crate) fn crash(_: &Machine, _: Args) {
    // SAFETY: UDF; the runtime's vectors end the VM.
    unsafe { asm!("udf #0x77", options(nostack)) };
}

pub(crate) fn panic(machine: &Machine, _: Args) {
    let vcpus = machine.vcpus();
    say!("wild: there is no vCPU {}: {}", vcpus.len(), vcpus[vcpus.len()]);
}
