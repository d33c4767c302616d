//! vCPUs that need each other's turns, while another one has them all stand still again and again.
//!
//! | vCPU | what it does |
//! | --- | --- |
//! | 0 | makes a shadow of 16 MiB and ends it: for the comparison all other CPUs stand still, longer than a time slice. Then it makes no call until the ball has come and gone some more |
//! | 1 and 3 | pass a ball to each other, interrupts masked; who has not got it spins. vCPU 3 keeps it every other time for a nap in WFI |
//! | 2 | nothing |
//!
//! Where there are two CPUs vCPUs 1 and 3 share one. So each pass takes a switch: at the end of the spinner's slice, or at the end of the nap, when the
//! spinner has had its slice. While the CPU stands still that time comes, and the interrupt that says so is taken. If nobody looks afterwards, or sets
//! the time again, vCPU 1 or 3 spins for good: none of them has anything else that takes it out, and vCPU 0 does nothing that would.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use guest_rt::{Arena, Machine, PAGE, call, check, check_eq, cpu, fail, say, smp};
use hyp_abi::call::{
    BUSY, DIRTY_START, DIRTY_STOP, SHADOW, SHADOW_BEGIN, SHADOW_END, SHADOW_MAX, SUCCESS,
};
use smccc::Hvc;

use super::{physical_ticks, sleep_until};

/// vCPUs that take part.
const VCPUS: usize = 4;
/// Ticks of the hypervisor's time slice: 10 ms.
fn slice() -> u64 {
    cpu::tick_rate() / 100
}
/// Passes of the ball between two pauses: both players have had turns that began after the first one.
const BETWEEN: usize = 6;
/// Shadows that are ended for each pause that counts: one that is over within a slice shows nothing.
const TRIES: usize = 8;
/// Seconds that vCPU 0 waits for the ball.
const PATIENCE: u64 = 60;

/// Times that the ball was passed: even, and vCPU 1 has it.
static BALL: AtomicUsize = AtomicUsize::new(0);
/// The game is over.
static OVER: AtomicBool = AtomicBool::new(false);

/// Has the VM stand still so many times for longer than a slice.
pub(crate) fn run(machine: &Machine, arena: &mut Arena, pauses: usize) {
    check_eq!(machine.vcpus().len(), VCPUS, "vCPUs");
    let bytes = SHADOW_MAX as usize;
    let start = arena.take(bytes, bytes);
    for page in (start..start + bytes).step_by(PAGE) {
        // SAFETY: 1. RAM of the arena in the identity map, aligned, this vCPU's alone.
        unsafe { (page as *mut usize).write_volatile(page) };
    }
    smp::run(machine, VCPUS, &|me| match me.index {
        0 => {
            (0..pauses).for_each(|_| pause(start as u64));
            OVER.store(true, Ordering::Release);
        }
        1 => play(0, || {}),
        3 => play(1, || _ = sleep_until(physical_ticks() + 2 * slice())),
        _ => {}
    });
    let passes = BALL.load(Ordering::Relaxed);
    say!("turns: {pauses} long pauses, and the ball was passed {passes} times");
}

/// Passes the ball whenever it has come, every other time after `a_while`.
fn play(mine: usize, a_while: impl Fn()) {
    loop {
        let passed = BALL.load(Ordering::Acquire);
        if OVER.load(Ordering::Acquire) {
            return;
        }
        if passed % 2 == mine {
            if passed / 2 % 2 == 1 {
                a_while();
            }
            BALL.store(passed + 1, Ordering::Release);
        }
    }
}

/// A pause that is longer than a slice, and then some passes of the ball.
fn pause(start: u64) {
    for _ in 0..TRIES {
        let took = compare(start);
        let (passed, begun) = (BALL.load(Ordering::Acquire), cpu::ticks());
        while BALL.load(Ordering::Acquire) < passed + BETWEEN {
            let waited = cpu::ticks() - begun;
            check!(
                waited < PATIENCE * cpu::tick_rate(),
                "since the pause a vCPU waits for its turn"
            );
        }
        if took > slice() {
            return;
        }
    }
    fail!("none of {TRIES} pauses was longer than a slice: this shows nothing");
}

/// Has 16 MiB compared with their shadow, which is new; returns the ticks that this took.
fn compare(start: u64) -> u64 {
    call(DIRTY_START, [start, SHADOW_MAX, 0]);
    call(SHADOW, [SHADOW_BEGIN, start, SHADOW_MAX]);
    let begun = cpu::ticks();
    let [_, differs] = call(SHADOW, [SHADOW_END, 0, 0]);
    let took = cpu::ticks() - begun;
    check_eq!(differs, 0, "the first page that is not what was reported of it");
    let mut stopped = 0;
    while stopped < SHADOW_MAX {
        stopped = call(DIRTY_STOP, [0; 3])[0];
    }
    took
}

/// A call that has to be served; again while something else is in the way.
fn call(function: u32, arguments: [u64; 3]) -> [u64; 2] {
    loop {
        let [status, first, second, _] = call::raw::<Hvc>(function, arguments);
        match status as i64 {
            SUCCESS => return [first, second],
            BUSY => smp::relax(),
            status => fail!("{function:#x} with {arguments:#x?} answered {status}"),
        }
    }
}
