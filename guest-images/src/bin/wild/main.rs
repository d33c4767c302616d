//! Does one wrong or odd thing, chosen by `case=`, and says beforehand what should come of it.
//!
//! A test asserts the end from outside: the guest's verdict where the hypervisor emulates or the
//! guest's own vectors catch, the hypervisor's diagnosis and exit code where the VM is to be stopped.
//! A case that should have been the end and was survived is the verdict *fail*. `case=list` prints
//! the cases. Further arguments: `at=` an IPA, `code=` a verdict, `reg=S3_0_C15_C0_0` and `value=`
//! for `sysreg`.

#![no_std]
#![no_main]

mod calls;
mod cpus;
mod devices;
mod memory;
mod recovery;
mod sysreg;

use guest_rt::{Args, Machine, fail, say};
use recovery::{
    aborts, changes, crowd, el2, floods, kinds, lives, logged, tables, told, walks, wide, windows,
};

guest_rt::guest!("wild", wild);

/// What should come of a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The guest goes on and passes.
    Pass,
    /// The hypervisor stops the VM with a diagnosis.
    Stopped,
    /// Whatever the name says.
    Named(&'static str),
}

/// One wrong or odd thing.
struct Case {
    name: &'static str,
    about: &'static str,
    end: End,
    run: fn(&Machine, Args),
}

const fn case(name: &'static str, about: &'static str, end: End, run: fn(&Machine, Args)) -> Case {
    Case { name, about, end, run }
}

#[rustfmt::skip]
static CASES: &[Case] = &[
    case("read", "loads from an IPA where nothing is", End::Stopped, memory::read),
    case("write", "stores to an IPA where nothing is", End::Stopped, memory::write),
    case("exec", "jumps to an IPA where nothing is", End::Stopped, memory::exec),
    case("s1ptw", "puts a stage-1 table at an IPA where nothing is", End::Stopped, memory::walk),
    case("fill", "touches every page of RAM", End::Pass, memory::fill),
    case("uart", "reads every UART register in every size", End::Pass, devices::uart),
    case("echo", "repeats keys until q", End::Pass, devices::echo),
    case("flash-read", "reads the flash area", End::Pass, devices::flash_read),
    case("flash-write", "writes the flash area", End::Pass, devices::flash_write),
    case("flash-exec", "jumps into the flash area", End::Stopped, devices::flash_exec),
    case("mmio-pair", "loads a pair from a device, the UART", End::Stopped, devices::pair),
    case("mmio-simd", "loads a SIMD register from the flash area", End::Stopped, devices::simd),
    case("no-device", "stores to a device that is not there", End::Stopped, devices::missing),
    case("unaligned-device", "loads from device memory, unaligned", End::Pass, devices::unaligned),
    case("smc-unknown", "makes SMC calls, one known", End::Pass, calls::smc_unknown),
    case("hvc-unknown", "makes HVC calls that nobody knows", End::Pass, calls::hvc_unknown),
    case("stat-bad", "asks for a counter that is not there", End::Pass, calls::stat_bad),
    case("not-allowed", "makes every call that changes memory, not allowed to", End::Pass, calls::not_allowed),
    case("psci", "makes PSCI calls with wrong arguments", End::Pass, calls::psci_wrong),
    case("off", "calls PSCI SYSTEM_OFF", End::Named("power-off"), calls::off),
    case("reset", "calls PSCI SYSTEM_RESET", End::Named("reset"), calls::reset),
    case("counters", "compares its counters, and calls PSCI SYSTEM_RESET", End::Named("reset"), calls::counters),
    case("verdict-fail", "ends with the verdict fail", End::Named("verdict fail"), calls::verdict_fail),
    case("cpu-off", "switches its only running vCPU off", End::Named("the VM's end"), calls::cpu_off),
    case("hlt", "executes HLT #0xF000, the semihosting call", End::Pass, cpus::hlt),
    case("wfx", "executes WFE and its kin, woken at once", End::Pass, cpus::wfx),
    case("sleep", "waits for an interrupt that never comes", End::Named("a time-out"), cpus::sleep),
    case("spin-others", "powers off while the others spin", End::Named("power-off"), cpus::spin_others),
    case("sleep-others", "powers off while the others sleep", End::Named("power-off"), cpus::sleep_others),
    case("fail-other", "fails on the last vCPU", End::Named("verdict fail"), cpus::fail_other),
    case("crash", "takes an exception that it does not expect", End::Named("verdict fail"), cpus::crash),
    case("panic", "panics", End::Named("verdict fail"), cpus::panic),
    case("restart", "starts a vCPU again after it has filled its registers", End::Pass, cpus::restart),
    case("idregs", "reads the whole block of ID registers", End::Pass, sysreg::idregs),
    // In a recovery window (`hypctl recover`).
    case("hole-read", "loads of 1 to 8 bytes", End::Pass, kinds::read),
    case("hole-write", "stores of 1 to 8 bytes", End::Pass, kinds::write),
    case("hole-pair", "pairs, and bases that are written back", End::Pass, kinds::pair),
    case("hole-simd", "SIMD registers, one to four", End::Pass, kinds::simd),
    case("hole-exclusive", "exclusives, acquire and release", End::Pass, kinds::exclusive),
    case("hole-lse", "LSE atomics", End::Pass, kinds::lse),
    case("hole-zva", "DC ZVA", End::Pass, kinds::zva),
    case("hole-maintenance", "cache maintenance by address", End::Pass, kinds::maintenance),
    case("hole-el0", "loads and stores at EL0", End::Pass, kinds::at_el0),
    case("hole-pages", "accesses over the edge of two pages", End::Pass, wide::pages),
    case("hole-ram", "accesses over the edge of RAM", End::Pass, wide::ram),
    case("hole-beyond", "addresses beyond the VM's", End::Pass, wide::beyond),
    case("hole-walk", "stage-1 tables", End::Pass, walks::tables),
    case("hole-code", "fetches, which are aborts", End::Pass, walks::code),
    case("hole-declared", "windows declared by calls", End::Pass, windows::declared),
    case("hole-undeclared", "addresses that nothing was said about", End::Pass, windows::undeclared),
    case("hole-policies", "three policies at once", End::Stopped, windows::policies),
    case("hole-crowd", "all vCPUs at the same page", End::Pass, crowd::crowd),
    case("hole-populate", "POPULATE where scratch is", End::Pass, changes::populate),
    case("hole-release", "RELEASE of scratch in use", End::Pass, changes::release),
    case("hole-protect", "PROTECT, the dirty log and AGE around holes", End::Pass, changes::protections),
    case("hole-sizes", "blocks, runs and moves around holes", End::Pass, changes::sizes),
    case("hole-shadow", "a shadow of memory with holes", End::Pass, changes::shadow),
    case("hole-tables", "more holes than tables", End::Pass, tables::bounded),
    case("hole-storm", "100 000 violations", End::Pass, floods::storm),
    case("hole-endless", "violations without end", End::Stopped, floods::endless),
    case("hole-told", "one load, and a second of nothing else", End::Pass, told::spin),
    case("hole-secret", "a secret on the scratch page, and a reset", End::Named("reset"), lives::secret),
    case("hole-logged", "accesses of which every record is known", End::Pass, logged::logged),
    case("inject-again", "the same load a thousand times", End::Pass, floods::again),
    case("inject-el1", "aborts at EL1", End::Pass, aborts::el1),
    case("inject-el0", "aborts at EL0", End::Pass, aborts::at_el0),
    case("inject-other", "aborts that are not decoded", End::Pass, aborts::others),
    case("inject-walk", "aborts on a walk", End::Pass, aborts::walk),
    case("el2-held", "EL2 reaches for memory with anything held", End::Pass, el2::held),
    case("el2-others", "EL2 reaches for memory while another CPU holds anything", End::Pass, el2::others),
    case("el2-same", "EL2 and the guest reach the same memory", End::Pass, el2::same),
    case("el2-taken", "EL2 reaches for memory that is taken away", End::Pass, el2::taken),
    case("el2-buffers", "calls that answer in a hole", End::Pass, el2::buffers),
    case("el2-outside", "calls that answer where EL2 has no way", End::Pass, el2::outside),
    case("el2-refused", "EL2 reaches for what is an abort", End::Pass, el2::refused),
    case("sysreg", "accesses the system register reg=", End::Named("a report"), sysreg::any),
];

fn wild(machine: &Machine) {
    let args = machine.args(&["case", "at", "code", "reg", "value"]);
    let name = args.get("case").unwrap_or("list");
    if name == "list" {
        CASES.iter().for_each(|case| say!("wild: case={}: {}", case.name, case.about));
        return;
    }
    let Some(case) = CASES.iter().find(|case| case.name == name) else {
        fail!("case={name}: there is no such case; case=list prints them");
    };
    let end = match case.end {
        End::Pass => "pass",
        End::Stopped => "VM stopped with a diagnosis",
        End::Named(end) => end,
    };
    say!("wild: case={name}: {}; what should come of it: {end}", case.about);
    (case.run)(machine, args);
    if case.end == End::Stopped {
        fail!("case={name}: still running");
    }
}
