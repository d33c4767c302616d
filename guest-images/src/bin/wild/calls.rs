//! Calls that the hypervisor must refuse, or that end the VM.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTPCT_EL0, CNTVCT_EL0, Readable};
use guest_rt::exception::{Resume, catch};
use guest_rt::{Args, Machine, call, check, check_eq, fail, say, smp, start};
use hyp_abi::call as vendor;
use smccc::psci::error::Error;
use smccc::psci::{self, LowestAffinityLevel};
use smccc::{Call, Hvc, Smc};

const NOT_SUPPORTED: u64 = vendor::NOT_SUPPORTED as u64;

/// Function identifiers that nobody implements: SiP, vendor, Arm architecture, not a fast call, zero.
const UNKNOWN: [u32; 5] = [0xc300_0001, 0xc600_0777, 0x8000_7fff, 0x0400_0000, 0];

/// An unknown call returns "not supported" and leaves x4-x17 alone (SMCCC 1.1 and later).
fn refuses<C: Call>(conduit: &str) {
    for function in UNKNOWN {
        let args = core::array::from_fn(|i| 0xa5a5_0000 + i as u64);
        let results = C::call64(function, args);
        check_eq!(results[0] as i32, -1, "{conduit} {function:#x}: w0");
        check_eq!(&results[4..], &args[3..], "{conduit} {function:#x}: x4-x17");
    }
    say!("wild: {conduit}: {} unknown calls refused", UNKNOWN.len());
}

pub(crate) fn hvc_unknown(_: &Machine, _: Args) {
    refuses::<Hvc>("HVC");
}

/// An SMC is trapped, so the hypervisor has to step over the instruction itself.
pub(crate) fn smc_unknown(_: &Machine, _: Args) {
    let version = catch(Resume::Next, || Smc::call32(psci::PSCI_VERSION, [0; 7])[0]);
    match version {
        Ok(version) => {
            let hvc = Hvc::call32(psci::PSCI_VERSION, [0; 7])[0];
            check_eq!(version, hvc, "PSCI VERSION by SMC, against HVC");
            refuses::<Smc>("SMC");
        }
        Err(fault) => fail!("PSCI VERSION by SMC: {fault}"),
    }
}

pub(crate) fn stat_bad(_: &Machine, _: Args) {
    for selector in [vendor::Stat::ALL.len() as u64, 1 << 32, u64::MAX] {
        let [status, ..] = call::raw::<Hvc>(vendor::STAT, [selector, 0, 0]);
        check_eq!(status as i64, vendor::INVALID_PARAMETER, "STAT {selector:#x}");
    }
    let uid = call::raw::<Hvc>(vendor::VENDOR_UID, [0; 3]).map(|word| word as u32);
    check_eq!(uid, vendor::UID, "the hypervisor's UID");
}

/// Whatever the arguments, and before any of them is looked at.
pub(crate) fn not_allowed(machine: &Machine, _: Args) {
    let ram = machine.ram.start as u64;
    for function in vendor::MANAGING {
        for args in [[ram, vendor::BLOCK, 0], [ram, 0x1000, 1], [1, 0, 0], [0; 3]] {
            let [status, values @ ..] = call::raw::<Hvc>(function, args);
            check_eq!(status as i64, vendor::NOT_SUPPORTED, "{function:#x} of {args:#x?}");
            check_eq!(values, args, "{function:#x}: x1-x3");
        }
    }
    say!("wild: {} calls refused", vendor::MANAGING.len());
}

pub(crate) fn psci_wrong(machine: &Machine, _: Args) {
    let (me, entry) = (machine.vcpus()[0], start::secondary_entry_ipa());
    let nobody = 0xff_00ff_ff00;
    check_eq!(psci::cpu_on::<Hvc>(me, entry, 0), Err(Error::AlreadyOn), "CPU_ON of itself");
    check_eq!(
        psci::cpu_on::<Hvc>(nobody, entry, 0),
        Err(Error::InvalidParameters),
        "CPU_ON of nobody"
    );
    if let Some(&other) = machine.vcpus().get(1) {
        let outside = machine.ram.end as u64 + 0x1000;
        let refused = psci::cpu_on::<Hvc>(other, outside, 0);
        check_eq!(refused, Err(Error::InvalidAddress), "CPU_ON with an entry outside RAM");
        let state = psci::affinity_info::<Hvc>(other, LowestAffinityLevel::All);
        check_eq!(state, Ok(psci::AffinityState::Off), "AFFINITY_INFO of a vCPU not started");
        check_on_twice(machine, other);
    }
    let state = psci::affinity_info::<Hvc>(me, LowestAffinityLevel::All);
    check_eq!(state, Ok(psci::AffinityState::On), "AFFINITY_INFO of itself");
    check!(
        psci::affinity_info::<Hvc>(nobody, LowestAffinityLevel::All).is_err(),
        "AFFINITY_INFO of nobody is not an error"
    );
    for known in
        [psci::PSCI_CPU_ON_64, psci::PSCI_CPU_ON_32, psci::PSCI_CPU_OFF, psci::PSCI_SYSTEM_OFF]
    {
        check!(psci::psci_features::<Hvc>(known).is_ok(), "PSCI_FEATURES denies {known:#x}");
    }
    let unknown = call::raw::<Hvc>(psci::PSCI_FEATURES, [0xc400_0077, 0, 0])[0];
    check_eq!(unknown as i32, NOT_SUPPORTED as i32, "PSCI_FEATURES of an unknown call");
    // The 32-bit form takes 32 bits of each argument, whatever is above them.
    let dirty =
        call::raw::<Hvc>(psci::PSCI_AFFINITY_INFO_32, [me | 0xdead << 32, 0xdead << 32, 0])[0];
    check_eq!(dirty as i32, 0, "AFFINITY_INFO_32 of itself with dirt above bit 31");
    say!("wild: PSCI refuses what is wrong");
}

/// A vCPU that runs cannot be started, and one that ran can be started again.
fn check_on_twice(machine: &Machine, other: u64) {
    for _ in 0..3 {
        let point = smp::Rendezvous::new();
        smp::run(machine, 2, &|me| {
            point.meet(me, 0);
            if me.index == 0 {
                let again = psci::cpu_on::<Hvc>(other, start::secondary_entry_ipa(), 1);
                check_eq!(again, Err(Error::AlreadyOn), "CPU_ON of a running vCPU");
            }
            point.meet(me, 1);
        });
    }
}

pub(crate) fn off(_: &Machine, _: Args) {
    call::system_off();
}

pub(crate) fn reset(_: &Machine, _: Args) {
    let refused = psci::system_reset::<Hvc>();
    fail!("PSCI SYSTEM_RESET returned: {refused:?}");
}

/// The physical counter is ahead of the virtual one by the counter's value when the VM began: told as the bounds that three
/// readings give.
pub(crate) fn counters(machine: &Machine, args: Args) {
    let read = |counter: &dyn Fn() -> u64| {
        barrier::isb(barrier::SY);
        counter()
    };
    let before = read(&|| CNTVCT_EL0.get());
    let physical = read(&|| CNTPCT_EL0.get());
    let after = read(&|| CNTVCT_EL0.get());
    say!("wild: ahead by {} to {}", physical - after, physical - before);
    reset(machine, args);
}

pub(crate) fn verdict_fail(_: &Machine, args: Args) {
    call::verdict(args.number("code", 1) as u64);
}

pub(crate) fn cpu_off(_: &Machine, _: Args) {
    let refused = psci::cpu_off::<Hvc>();
    fail!("PSCI CPU_OFF returned: {refused:?}");
}
