//! More vCPUs than CPUs: each gets its turns, and finds its registers again.
//!
//! | what | why it shows something |
//! | --- | --- |
//! | a barrier that everybody spins at, without WFI, interrupts masked | nobody leaves it before all have had a turn, so the hypervisor has taken the CPU from whoever spins |
//! | before it each vCPU writes every register of its that no exit moves, each its own values; after it, reads them | on the way another vCPU had written the same registers of the same CPU |
//! | the counter behind a barrier is never less than anybody's before it | all vCPUs have one time |
//! | each vCPU waits in WFI for its timer, again and again, while one spins | who sleeps is woken though its CPU is busy, and not before its time |
//! | all that in several lives of each vCPU | CPU_ON of a vCPU whose CPU runs another one; no register is left from the life before |
//! | two vCPUs pass a ball to each other, while a third one has all CPUs stand still (`pauses`) | who waited for its turn when they stood still still gets it |
//!
//! Arguments (`key=value`): `lives` (3), `rounds` (12) of barriers in each, `naps` (4) in each; `pauses` (0) takes the place of all that.

#![no_std]
#![no_main]

mod pauses;

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::asm::barrier::{SY, isb};
use aarch64_cpu::asm::wfi;
use aarch64_cpu::registers::{CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTPCT_EL0};
use guest_rt::rng::mix;
use guest_rt::smp::{Rendezvous, Vcpu};
use guest_rt::{Machine, check, check_eq, cpu, fpsimd, say, smp};
use tock_registers::interfaces::{Readable, Writeable};

guest_rt::guest!("turns", turns);

/// Times that a WFI may end without a reason that the guest knows of.
const MOST_WOKEN: usize = 16;

/// Ticks of a nap: 1/400 s, a quarter of a time slice.
fn nap() -> u64 {
    cpu::tick_rate() / 400
}

macro_rules! register {
    ($name:literal, $bits:expr) => {
        Register {
            name: $name,
            bits: $bits,
            read: || {
                let value: u64;
                // SAFETY: 1. reading has no effect, and the register is there.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
                value
            },
            write: |value| {
                // SAFETY: 1. nothing that this guest relies on depends on it.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nomem, nostack)) };
            },
        }
    };
}

/// A register that no exit of the guest moves.
struct Register {
    name: &'static str,
    /// Those that keep what is written.
    bits: u64,
    read: fn() -> u64,
    write: fn(u64),
}

/// Those that every CPU has. Not the tables', which this guest runs by, but for the ASID.
static REGISTERS: &[Register] = &[
    register!("tpidr_el0", u64::MAX),
    register!("tpidrro_el0", u64::MAX),
    register!("sp_el0", u64::MAX),
    register!("elr_el1", u64::MAX),
    register!("far_el1", u64::MAX),
    register!("vbar_el1", 0),
    register!("esr_el1", 0xffff_ffff),
    register!("spsr_el1", 0xf000_0000),
    register!("contextidr_el1", 0xffff_ffff),
    register!("csselr_el1", 0b11),
    register!("cntkctl_el1", 0b11),
    register!("ttbr0_el1", 0xff << 48),
    register!("cpacr_el1", 0),
    register!("sctlr_el1", 0),
    register!("tcr_el1", 0),
    register!("mair_el1", 0),
    register!("tpidr_el1", 0),
    // Neither of the timers is on.
    register!("cntv_cval_el0", u64::MAX),
    register!("cntp_cval_el0", u64::MAX),
];

/// Those of pointer authentication.
static KEYS: &[Register] = &[
    register!("S3_0_C2_C1_0", u64::MAX),
    register!("S3_0_C2_C1_1", u64::MAX),
    register!("S3_0_C2_C1_2", u64::MAX),
    register!("S3_0_C2_C1_3", u64::MAX),
    register!("S3_0_C2_C2_0", u64::MAX),
    register!("S3_0_C2_C2_1", u64::MAX),
    register!("S3_0_C2_C2_2", u64::MAX),
    register!("S3_0_C2_C2_3", u64::MAX),
    register!("S3_0_C2_C3_0", u64::MAX),
    register!("S3_0_C2_C3_1", u64::MAX),
];

/// All that this CPU has.
fn registers() -> impl Iterator<Item = &'static Register> {
    let (isar1, isar2): (u64, u64);
    // SAFETY: 1. reading has no effect; the second is reserved, and zero, where it is not known.
    unsafe {
        asm!("mrs {}, id_aa64isar1_el1", out(reg) isar1, options(nomem, nostack));
        asm!("mrs {}, S3_0_C0_C6_2", out(reg) isar2, options(nomem, nostack));
    }
    // API and APA, APA3.
    let has_keys = isar1 & 0xff0 != 0 || isar2 & 0xf000 != 0;
    REGISTERS.iter().chain(KEYS.iter().filter(move |_| has_keys))
}

static MEET: Rendezvous = Rendezvous::new();
/// The latest counter that anybody has read before a barrier, of even ones and odd ones: nobody is two ahead of another.
static LATEST: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// vCPUs that have had all their naps.
static RESTED: AtomicUsize = AtomicUsize::new(0);

fn turns(machine: &Machine) {
    let args = machine.args(&["lives", "rounds", "naps", "pauses"]);
    let pauses = args.number("pauses", 0);
    if pauses > 0 {
        return pauses::run(machine, &mut machine.arena(), pauses);
    }
    let (lives, rounds) = (args.number("lives", 3), args.number("rounds", 12));
    let naps = args.number("naps", 4);
    let vcpus = machine.vcpus().len();
    check!(vcpus > 1, "turns needs two vCPUs");
    for life in 0..lives {
        RESTED.store(0, Ordering::Relaxed);
        smp::run(machine, vcpus, &|me| {
            if me.index > 0 {
                check_eq!(fpsimd::nonzero(), 0, "FP/SIMD registers of a vCPU that was switched on");
                // The timers' compare values are unknown after reset.
                for key in registers().filter(|register| register.name.starts_with('S')) {
                    check_eq!((key.read)(), 0, "{} of a vCPU that was switched on", key.name);
                }
            }
            for round in 0..rounds {
                meet(me, (life * rounds + round) as u64);
            }
            sleep(me, naps);
        });
    }
    say!(
        "turns: {vcpus} vCPUs met {} times, and slept {} times each",
        lives * rounds,
        lives * naps
    );
}

/// Everybody writes its registers, meets all others, and reads them.
fn meet(me: Vcpu, nth: u64) {
    let value = |number: usize| mix(nth << 32 | (me.index as u64) << 16 | number as u64);
    let (mut before, seed) = ([0; 32], value(99));
    for ((number, register), before) in registers().enumerate().zip(&mut before) {
        *before = (register.read)() & !register.bits | value(number) & register.bits;
        (register.write)(*before);
    }
    fpsimd::fill(seed);
    let latest = &LATEST[nth as usize % 2];
    latest.fetch_max(cpu::ticks(), Ordering::AcqRel);
    MEET.meet(me, nth as usize);
    check_eq!(fpsimd::mismatches(seed), 0, "FP/SIMD registers of vCPU {} after a turn", me.index);
    for (register, before) in registers().zip(before) {
        check_eq!((register.read)(), before, "{} of vCPU {} after a turn", register.name, me.index);
    }
    let (now, latest) = (cpu::ticks(), latest.load(Ordering::Acquire));
    check!(now >= latest, "the counter is {now} behind a barrier, and was {latest} before it");
}

/// Naps; the last vCPU spins until all others have had theirs.
fn sleep(me: Vcpu, naps: usize) {
    if me.index + 1 == me.count {
        while RESTED.load(Ordering::Acquire) < me.count - 1 {
            core::hint::black_box(());
        }
        return;
    }
    for _ in 0..naps {
        let woken = sleep_until(physical_ticks() + nap());
        check!(woken <= MOST_WOKEN, "WFI ended {woken} times before the timer of a nap");
    }
    RESTED.fetch_add(1, Ordering::Release);
}

/// Waits in WFI for the physical timer; says how often WFI has ended.
fn sleep_until(at: u64) -> usize {
    let mut woken = 0;
    CNTP_CVAL_EL0.set(at);
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::SET);
    isb(SY);
    while !CNTP_CTL_EL0.is_set(CNTP_CTL_EL0::ISTATUS) {
        wfi();
        woken += 1;
    }
    check!(physical_ticks() >= at, "the timer has fired before its time");
    CNTP_CTL_EL0.set(0);
    woken
}

fn physical_ticks() -> u64 {
    isb(SY);
    CNTPCT_EL0.get()
}
