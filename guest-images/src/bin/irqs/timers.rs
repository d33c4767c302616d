//! The EL1 virtual and physical timer of each vCPU: a level, up while the timer is on, unmasked and its time is past.

use core::arch::asm;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::SeqCst;

use guest_rt::gic::{self, Interrupt};
use guest_rt::smp::{self, Vcpu};
use guest_rt::{Machine, check, check_eq, cpu, start};
use hyp_abi::MAX_VCPUS;
use hyp_abi::interrupt::{PHYSICAL_TIMER, VIRTUAL_TIMER};

use crate::handler::{begin, count, expect, linger, mask, unmask, with_body};

/// CNT*_CTL_EL0.
const ENABLE: u64 = 1;
const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    Virtual,
    Physical,
}

impl Timer {
    pub(crate) const ALL: [Self; 2] = [Self::Virtual, Self::Physical];

    pub(crate) const fn intid(self) -> u32 {
        match self {
            Self::Virtual => VIRTUAL_TIMER,
            Self::Physical => PHYSICAL_TIMER,
        }
    }

    /// CNT*_CTL_EL0.
    pub(crate) fn control(self) -> u64 {
        let value;
        // SAFETY: 1. registers of this vCPU's timers.
        unsafe {
            match self {
                Self::Virtual => asm!("isb", "mrs {}, cntv_ctl_el0", out(reg) value),
                Self::Physical => asm!("isb", "mrs {}, cntp_ctl_el0", out(reg) value),
            }
        }
        value
    }

    pub(crate) fn set_control(self, value: u64) {
        // SAFETY: 1. as in `control`.
        unsafe {
            match self {
                Self::Virtual => asm!("msr cntv_ctl_el0, {}", "isb", in(reg) value),
                Self::Physical => asm!("msr cntp_ctl_el0, {}", "isb", in(reg) value),
            }
        }
    }

    /// Its counter.
    pub(crate) fn now(self) -> u64 {
        let value;
        // SAFETY: 1. as in `control`.
        unsafe {
            match self {
                Self::Virtual => asm!("isb", "mrs {}, cntvct_el0", out(reg) value),
                Self::Physical => asm!("isb", "mrs {}, cntpct_el0", out(reg) value),
            }
        }
        value
    }

    fn set_compare(self, value: u64) {
        // SAFETY: 1. as in `control`.
        unsafe {
            match self {
                Self::Virtual => asm!("msr cntv_cval_el0, {}", in(reg) value),
                Self::Physical => asm!("msr cntp_cval_el0, {}", in(reg) value),
            }
        }
    }

    fn compare(self) -> u64 {
        let value;
        // SAFETY: 1. as in `control`.
        unsafe {
            match self {
                Self::Virtual => asm!("mrs {}, cntv_cval_el0", out(reg) value),
                Self::Physical => asm!("mrs {}, cntp_cval_el0", out(reg) value),
            }
        }
        value
    }

    fn set_down_counter(self, value: u64) {
        // SAFETY: 1. as in `control`.
        unsafe {
            match self {
                Self::Virtual => asm!("msr cntv_tval_el0, {}", "isb", in(reg) value),
                Self::Physical => asm!("msr cntp_tval_el0, {}", "isb", in(reg) value),
            }
        }
    }

    /// Its time is so many ticks from now: when that is.
    pub(crate) fn start(self, ticks: u64) -> u64 {
        let at = self.now() + ticks;
        self.set_compare(at);
        self.set_control(ENABLE);
        at
    }
}

/// How often a vCPU's timer is served before it is seen to.
const TIMES: usize = 3;

/// What is left of that.
static LEFT: [AtomicUsize; MAX_VCPUS] = [const { AtomicUsize::new(0) }; MAX_VCPUS];

/// All vCPUs at once.
pub(crate) fn timers(machine: &Machine, _: usize) {
    smp::run(machine, machine.vcpus().len(), &|me| {
        if me.index > 0 {
            gic::init(machine.vcpus().len());
        }
        Timer::ALL.into_iter().for_each(|timer| one(me, timer));
        both(me);
    });
}

/// Where a timer is masked, so that its line goes down.
fn quiet(intid: u32) {
    for timer in Timer::ALL.into_iter().filter(|timer| timer.intid() == intid) {
        timer.set_control(ENABLE | IMASK);
    }
}

fn one(me: Vcpu, timer: Timer) {
    let line = Interrupt::new(timer.intid());
    let tick = cpu::tick_rate() / 1000;
    begin();
    timer.set_control(0);
    line.set_priority(0x80);
    line.enable(true);
    check!(!line.is_pending(), "vCPU {}: a timer that is off", me.index);
    // Not before its time.
    with_body(|intid| {
        let left = &LEFT[start::vcpu()];
        if left.fetch_sub(1, SeqCst) == 1 {
            quiet(intid);
        }
    });
    LEFT[me.index].store(1, SeqCst);
    let at = timer.start(2 * tick);
    check_eq!(timer.compare(), at, "CVAL of vCPU {}", me.index);
    unmask();
    crate::handler::until("a timer", || count() > 0);
    check!(timer.now() >= at, "vCPU {}: a timer that comes before its time", me.index);
    expect("a timer, once", &[timer.intid()]);
    check_eq!(timer.control() & 7, ENABLE | IMASK | ISTATUS, "CTL of vCPU {}", me.index);
    // Its time is past: it is up at once, and again after each end, until it is seen to.
    LEFT[me.index].store(TIMES, SeqCst);
    timer.start(0);
    expect("a timer, until it is seen to", &[timer.intid(); TIMES]);
    // The same by the down-counter, with a negative value.
    LEFT[me.index].store(1, SeqCst);
    timer.set_down_counter(u64::from(u32::MAX));
    timer.set_control(ENABLE);
    expect("a timer by TVAL", &[timer.intid()]);
    // Its line can be seen, and taken back, while nobody takes it.
    timer.start(0);
    crate::handler::until("the line of a timer", || line.is_pending());
    timer.set_control(0);
    check!(!line.is_pending(), "vCPU {}: a timer that was switched off", me.index);
    timer.start(0);
    crate::handler::until("the line of a timer", || line.is_pending());
    timer.start(1 << 40);
    check!(!line.is_pending(), "vCPU {}: a timer whose time was moved away", me.index);
    unmask();
    linger();
    mask();
    check_eq!(count(), 0, "vCPU {}: what was taken back", me.index);
    timer.set_control(0);
    line.enable(false);
}

/// Both at once, by priority.
fn both(me: Vcpu) {
    begin();
    for (timer, priority) in [(Timer::Virtual, 0x90), (Timer::Physical, 0x80)] {
        Interrupt::new(timer.intid()).set_priority(priority);
        Interrupt::new(timer.intid()).enable(true);
        timer.start(0);
    }
    let lines = Timer::ALL.map(|timer| Interrupt::new(timer.intid()));
    crate::handler::until("both timers", || lines.iter().all(|line| line.is_pending()));
    LEFT[me.index].store(0, SeqCst);
    with_body(quiet);
    expect("both timers", &[PHYSICAL_TIMER, VIRTUAL_TIMER]);
    for timer in Timer::ALL {
        timer.set_control(0);
        Interrupt::new(timer.intid()).enable(false);
    }
}
