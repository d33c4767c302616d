//! EL2 made to fail on purpose: builds with the feature `selftest` only.
//!
//! What protects EL2 from itself (guard pages, W^X, the crash dump) is never used in a good run, so tests
//! ask for each by a word on the command line, and read the dump. A build for users has neither the word
//! nor this code.
//!
//! | word | what EL2 does | what must come of it |
//! | --- | --- | --- |
//! | `selftest=stack` | recurses until its stack ends | a data abort in the guard page, told from the emergency stack |
//! | `selftest=stack-1` | the same on CPU 1 | likewise, with that CPU's stacks |
//! | `selftest=write-code` | stores to its own code | a permission fault |
//! | `selftest=write-constant` | stores to a constant | a permission fault |
//! | `selftest=run-data` | branches to an instruction in its data | an instruction abort, permission |
//! | `selftest=read-unmapped` | loads from an address that nothing has | a translation fault |
//! | `selftest=panic` | panics | the message and its place |
//! | `selftest=guard` | forgets to close a guard | it is noticed before the guest runs |
//! | `selftest=held-lock` | forgets to give a lock back | likewise |
//! | `selftest=held-slot` | leaves a slot Busy | likewise |
//! | `selftest=wild-window` | loads from its window on the guest's memory, by an instruction that may not | a translation fault |
//! | `selftest=wild-routine` | has the routine that may copy from its window copy from elsewhere | a translation fault |
//! | `selftest=wild-before` | has that routine copy from its window, where nobody has said for which VM | a translation fault |
//! | `selftest=locked-install` | takes the lock of the stage-2 table before it installs a page that it misses itself | a panic that names it, whatever is held |
//! | `selftest=conflict` | takes every second translation fault for a TLB conflict, which QEMU never raises | the guest notices nothing |
//! | `selftest=slow-copy` | has a COPY take so long that a vCPU comes back for the memory more often than any fault may | the guest notices nothing |
//! | `selftest=stale-copy` | has a second copy of RAM keep what it first had of a page | the VM stops, and the page that differs is named |
//! | `selftest=short-copy` | has a second copy of RAM find no frame for a page | no session is compared |

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use hyp_abi::call::Stat;
use hyp_abi::map::RAM_BASE;
use spin::Once;
use stage2::Descriptor;
use stage2::arch::Arch;
use stage2::slot::Slot;

use crate::boot::Refusal;
use crate::event::counters;
use crate::lock::relax;
use crate::mem::{el2_map, image};
use crate::vm::run::Env;
use crate::vm::vcpu::PATIENCE;
use crate::window;

/// What starts the word.
const WORD: &str = "selftest=";
/// The words, without what starts them.
const NAMES: [&str; 18] = [
    "stack",
    "stack-1",
    "write-code",
    "write-constant",
    "run-data",
    "read-unmapped",
    "panic",
    "guard",
    "held-lock",
    "held-slot",
    "wild-window",
    "wild-routine",
    "wild-before",
    "locked-install",
    "conflict",
    "slow-copy",
    "stale-copy",
    "short-copy",
];
/// `RET`, as data.
static RET: AtomicU32 = AtomicU32::new(0xd65f_03c0);

static WANTED: Once<usize> = Once::new();

/// Takes the word off the command line, and returns the others.
pub(crate) fn take(line: &str) -> Result<String, Refusal> {
    let (ours, others): (Vec<&str>, Vec<&str>) =
        line.split_ascii_whitespace().partition(|word| word.starts_with(WORD));
    if let Some(name) = ours.first().and_then(|word| word.strip_prefix(WORD)) {
        let number = NAMES.iter().position(|known| *known == name);
        let number = number.ok_or_else(|| Refusal(format!("no selftest \"{name}\"")))?;
        WANTED.call_once(|| number);
    }
    Ok(others.join(" "))
}

/// Whether this word was given.
pub(crate) fn is_wanted(name: &str) -> bool {
    WANTED.get().is_some_and(|number| NAMES.get(*number) == Some(&name))
}

/// Keeps something for good that no CPU may hold at the safe point, if that is what was asked for.
pub(crate) fn leave_held(env: Env<'_>) {
    let wanted = WANTED.get().and_then(|number| NAMES.get(*number)).filter(|_| env.cpu.number == 0);
    match wanted {
        Some(&"guard") => core::mem::forget(env.guards.enter()),
        Some(&"held-lock") => core::mem::forget(env.vm.devices.lock()),
        Some(&"held-slot") => {
            // MANAGED, and no valid bit: what was a page at address 0.
            let busy = Descriptor::from_bits(1 << 56 | 0b10);
            let slot = Slot::new(Descriptor::EMPTY);
            // SAFETY: (1) the slot is in no table; nobody else has it.
            unsafe { env.vm.space.arch().store(&slot, busy.bits()) };
        }
        _ => {}
    }
}

/// A guest's syndrome: if that was asked for, of every second abort that is a translation fault that of a TLB
/// conflict. The fault comes again when that is handled.
pub(crate) fn as_conflict(esr: u64) -> u64 {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    // EC 0x20 or 0x24, fault status 0b0001LL; the status of a conflict is 0b110000.
    let translation = esr >> 26 & 0b11_1011 == 0x20 && esr & 0b11_1100 == 0b00_0100;
    if is_wanted("conflict")
        && translation
        && SEEN.fetch_add(1, Ordering::Relaxed).is_multiple_of(2)
    {
        esr & !0x3f | 0x30
    } else {
        esr
    }
}

/// A block is copied and about to be made: if that was asked for, waits until one of three other vCPUs has found it missing
/// too often, once. Not where nobody has wanted it for a second.
pub(crate) fn hold_up_copy() {
    static DONE: AtomicBool = AtomicBool::new(false);
    const RETRIES: u64 = 3 * PATIENCE as u64;
    if !is_wanted("slow-copy") || DONE.load(Ordering::Relaxed) {
        return;
    }
    let before = counters::sum(Stat::Retries);
    let (mut last, mut since) = (before, CNTPCT_EL0.get());
    while CNTPCT_EL0.get().wrapping_sub(since) < CNTFRQ_EL0.get() {
        let now = counters::sum(Stat::Retries);
        if now - before > RETRIES {
            DONE.store(true, Ordering::Relaxed);
            return;
        }
        if now != last {
            (last, since) = (now, CNTPCT_EL0.get());
        }
        relax();
    }
}

/// Fails as asked, on the CPU that it was asked of; else does nothing.
pub(crate) fn run(cpu: usize) {
    let Some(wanted) = WANTED.get().and_then(|number| NAMES.get(*number)) else { return };
    match (*wanted, cpu) {
        ("stack", 0) | ("stack-1", 1) => {
            black_box(recurse(black_box(0)));
        }
        ("write-code", 0) => store(image::text().start),
        ("write-constant", 0) => store(image::rodata().start),
        ("run-data", 0) => {
            let code = RET.as_ptr().cast_const().cast::<()>();
            // SAFETY: none. The address is that of an instruction, and must not be executable: the
            // branch faults. Should it not fault, the instruction returns.
            let code: extern "C" fn() = unsafe { core::mem::transmute(code) };
            code();
        }
        ("read-unmapped", 0) => {
            let nothing = core::ptr::without_provenance::<u64>(0x10_0000_0000);
            // SAFETY: none. Nothing is mapped there: the load faults.
            black_box(unsafe { nothing.read_volatile() });
        }
        ("wild-window", 0) => {
            let window =
                core::ptr::without_provenance::<u64>((el2_map::WINDOW + RAM_BASE) as usize);
            // SAFETY: none. Nothing is mapped there yet, and only routines that are made for it may fault.
            black_box(unsafe { window.read_volatile() });
        }
        ("wild-routine", 0) => window::wild_copy(0x10_0000_0000),
        ("wild-before", 0) => window::wild_copy(el2_map::WINDOW + RAM_BASE),
        ("panic", 0) => panic!("a selftest asked for this"),
        // Among them those that ask for nothing here.
        _ => return,
    }
    // The report says "refused", which no test expects.
    crate::end::refuse(Refusal(format!("selftest {wanted}: nothing stopped EL2")));
}

#[expect(unconditional_recursion, reason = "the end of the stack is what is wanted")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1).wrapping_add(black_box(frame)[1])
}

fn store(to: u64) {
    let to = core::ptr::with_exposed_provenance_mut::<u32>(to as usize);
    // SAFETY: none. The page is read-only: the store faults. Should it not fault, the value is that which
    // stood there.
    unsafe { to.write_volatile(to.read_volatile()) };
}
