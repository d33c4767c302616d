//! Instructions that wait, trap or crash, and vCPUs that do not stop by themselves.

use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::asm::{wfe, wfi};
use guest_rt::exception::{EC_UNKNOWN, Resume, catch};
use guest_rt::promises::PROMISES;
use guest_rt::{Args, Machine, call, check, fail, say, smp};

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
