//! Says who and where it is, and checks what every other guest takes for granted: EL1, the other
//! vCPUs, PSCI, FP/SIMD registers that survive traps, ID registers that keep their promises.

#![no_std]
#![no_main]

use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering};

use guest_rt::cpu::{self, Midr};
use guest_rt::{Machine, PAGE, call, check, check_eq, exception, fpsimd, promises, say, smp};
use hyp_abi::call::Stat;
use smccc::{Hvc, psci};

guest_rt::guest!("hello", hello);

fn hello(machine: &Machine) {
    machine.args(&[]);
    let (el, midr) = (cpu::exception_level(), Midr::read());
    let (vcpus, ram) = (machine.vcpus().len(), &machine.ram);
    let mib = ram.len() >> 20;
    say!("hello from a {midr} at EL{el}: {vcpus} vCPUs, {mib} MiB of RAM at {:#x}", ram.start);
    check_eq!(el, 1, "exception level");
    check!(vcpus > 0, "the device tree has no CPU");

    match psci::version::<Hvc>() {
        Ok(version) => {
            say!("hello: PSCI {version}, counter at {} Hz", cpu::tick_rate());
            check!(version.major >= 1, "PSCI {version} is older than 1.0");
        }
        Err(error) => guest_rt::fail!("PSCI VERSION: {error}"),
    }

    let page = machine.arena().take(vcpus * PAGE, PAGE);
    let greeted = AtomicUsize::new(0);
    smp::run(machine, vcpus, &|me| {
        let mpidr = machine.vcpus()[me.index];
        say!("hello from vCPU {} of {} (MPIDR {mpidr:#x})", me.index, me.count);
        check_eq!(cpu::mpidr(), mpidr, "MPIDR_EL1 of vCPU {}", me.index);
        check_fp(page + me.index * PAGE, me.index as u64);
        greeted.fetch_add(1, Ordering::Relaxed);
    });
    check_eq!(greeted.into_inner(), vcpus, "vCPUs that greeted");
    say!("hello: FP/SIMD registers survive page faults, hypercalls, console output and exceptions");

    let kept = promises::check();
    say!("hello: the ID registers keep all of their {kept} promises that this guest can try");

    if let (Some(faults), Some(pages)) = (call::stat(Stat::Faults), call::stat(Stat::Installed)) {
        say!("hello: so far {faults} stage-2 faults populated {pages} pages");
        check!(faults >= pages, "{pages} pages installed by only {faults} faults");
    }
}

/// FP/SIMD computes, and keeps its registers over every kind of trap.
fn check_fp(fresh: usize, seed: u64) {
    fpsimd::check_arithmetic();
    fpsimd::check_kept("a page fault", seed << 32, || {
        check_eq!(black_box(exception::probe_read(fresh)), Ok(0), "a never-touched page");
    });
    fpsimd::check_kept("a hypercall", seed << 33, || {
        black_box(psci::version::<Hvc>().is_ok());
    });
    fpsimd::check_kept("console output", seed << 34, || {
        say!("hello: vCPU {seed}: FP/SIMD computes");
    });
    fpsimd::check_kept("an exception", seed << 35, || {
        // SAFETY: the word there is zero, which is UDF #0.
        let fault = unsafe { exception::probe_call(fresh) };
        check!(fault.is_err(), "a page of zeroes ran as code: {fault:?}");
    });
}
