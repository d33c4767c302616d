//! The guest's interrupts, EL2's side: between the model of its interrupt controller, which is a value
//! ([`hyp_core::vgic`]), and the hardware's virtual CPU interface.
//!
//! ```text
//!  GICD, GICR (stage-2 faults)    SGIs, DIR (traps)    CNTP (traps)    UART    CNTV (hardware, PPI 27)
//!         │                              │                  │            │          │
//!         ▼                              ▼                  ▼            ▼          ▼
//!  the VM's Vgic, under one lock:   pending, enabled, active, priority, target of every interrupt
//!         │  fill                                                          ▲  sync
//!         ▼                                                                │
//!  list registers of the vCPU that is in the hardware   ──────▶   the guest acknowledges and ends
//! ```
//!
//! Whatever is done to the model is done [between](with) a *sync*, which takes back what the guest has done to the list registers,
//! and a *fill*, which gives the vCPU its most urgent interrupts. So the model is up to date whenever it is asked, and the hardware
//! whenever the guest runs. An ordinary exit does nothing of this: it happens when the guest reaches for the controller, when a
//! physical interrupt took it out, when it waits, and at a switch of vCPUs.
//!
//! What concerns a vCPU of another CPU is only noted, and that CPU is [kicked](wake): the SGI takes it out of its guest, or out of its
//! wait, and it syncs and fills for itself. More pending interrupts than list registers wait in the model; the maintenance
//! interrupt comes when the registers run empty.
//!
//! # Timers
//!
//! The virtual timer is the hardware's. When its output rises, the physical interrupt 27 takes the CPU out of its guest and stays active,
//! which keeps it from coming again; the list register that announces it to the guest is linked to it, so that the guest's deactivation is
//! that of both. If the level falls before the guest has seen it (it moved the compare value, with the interrupt masked), the next sync finds
//! that out and has the physical one deactivated.
//!
//! The physical timer is emulated ([`hyp_core::timer`]): EL2's own timer takes the CPU out of its guest when it is due.

mod cpu_interface;

use core::sync::atomic::Ordering;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTPCT_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, Readable};
use hyp_abi::interrupt::{PHYSICAL_TIMER, VIRTUAL_TIMER};
use hyp_core::idreg::Encoding;
use hyp_core::mmio::Window;
use hyp_core::syndrome::SystemRegister;
use hyp_core::timer::{Register, Timer};
use hyp_core::vgic::{self, Answer, Maintenance, Sgi, VcpuSet, Vgic};

use self::cpu_interface::{CpuInterface, Lists};
use super::Vm;
use super::run::Env;
use super::vcpu::{State, Vcpu};
use crate::platform::gic;
use crate::platform::timer::{self, Why};
use crate::{cpu, device, sysreg};

/// `ICC_SRE_EL1`: the CPU interface is reached by system registers, and by nothing else (SRE, DFB, DIB).
const SYSTEM_REGISTERS: u64 = 0b111;
const SGI1R: Encoding = (3, 0, 12, 11, 5);
const ASGI1R: Encoding = (3, 0, 12, 11, 6);
const SGI0R: Encoding = (3, 0, 12, 11, 7);
const DIR: Encoding = (3, 0, 12, 11, 1);

/// What belongs to one vCPU beyond the model: its CPU interface and its timers.
#[derive(Debug)]
pub(crate) struct VcpuInterrupts {
    /// Its list registers. Those of a vCPU in the hardware as they were filled, else empty.
    lists: Lists,
    /// Its CPU interface, while that is not in the hardware.
    interface: CpuInterface,
    /// Its virtual timer, while that is not in the hardware.
    virtual_timer: Timer,
    /// Its physical timer, which never is.
    physical_timer: Timer,
    /// The maintenance interrupts that were asked for last.
    maintenance: Maintenance,
    /// It is in the hardware of its CPU.
    is_loaded: bool,
}

impl VcpuInterrupts {
    /// After reset, and not in the hardware.
    pub(crate) fn new() -> Self {
        Self {
            lists: Lists::new(),
            interface: CpuInterface::new(),
            virtual_timer: Timer::default(),
            physical_timer: Timer::default(),
            maintenance: Maintenance::empty(),
            is_loaded: false,
        }
    }

    /// The levels of its timers' outputs now, the virtual one's first.
    fn outputs(&self, vm: &Vm) -> [bool; 2] {
        let now = CNTPCT_EL0.get();
        let virtual_timer = if self.is_loaded { loaded_timer() } else { self.virtual_timer };
        [virtual_timer.output(now.wrapping_sub(vm.epoch)), self.physical_timer.output(now)]
    }
}

/// The virtual timer of the vCPU that is in this CPU's hardware.
fn loaded_timer() -> Timer {
    Timer::from_registers(CNTV_CTL_EL0.get(), CNTV_CVAL_EL0.get())
}

/// Puts a vCPU's interrupts and its virtual timer into the hardware of this, its CPU.
pub(crate) fn load(env: Env<'_>, vcpu: &mut Vcpu) {
    let mine = &mut vcpu.interrupts;
    // Where a GIC has GICv2's way, too, EL1 may have chosen it: each vCPU begins with the registers.
    sysreg::write!("S3_0_C12_C12_5", SYSTEM_REGISTERS);
    mine.interface.put();
    sysreg::write!("cntv_cval_el0", mine.virtual_timer.compare());
    sysreg::write!("cntv_ctl_el0", mine.virtual_timer.control());
    barrier::isb(barrier::SY);
    mine.is_loaded = true;
    refresh(env, vcpu);
}

/// Takes them out again. The CPU interface is off then, and no interrupt of the vCPU's timer is active or comes.
pub(crate) fn save(env: Env<'_>, vcpu: &mut Vcpu) {
    let (number, mine) = (vcpu.number, &mut vcpu.interrupts);
    // What the guest has last done is complete.
    barrier::isb(barrier::SY);
    let (wake, holds) = {
        let mut vgic = env.vm.vgic.lock();
        let wake = sync(&mut vgic, env, number, mine);
        (wake, vgic.take_holds(number))
    };
    mine.lists.put(0);
    mine.maintenance = Maintenance::empty();
    cpu_interface::switch_off();
    mine.interface = CpuInterface::take();
    mine.virtual_timer = loaded_timer();
    mine.is_loaded = false;
    sysreg::write!("cntv_ctl_el0", 0);
    barrier::isb(barrier::SY);
    release(holds);
    timer::disarm(env.cpu, Why::GuestTimer);
    self::wake(env, wake.without(number));
}

/// The vCPU starts: its CPU interface and its timers are as after reset. It is not in the hardware.
pub(crate) fn reset(vcpu: &mut Vcpu) {
    vcpu.interrupts = VcpuInterrupts::new();
}

/// A physical interrupt has taken the CPU out of its guest, or has ended its wait: takes it, and gives the vCPU what it means for it.
pub(crate) fn taken(env: Env<'_>, vcpu: &mut Vcpu) {
    gic::acknowledge();
    device::input(env);
    refresh(env, vcpu);
}

/// Brings the model and the list registers of the vCPU in this CPU's hardware up to date.
pub(crate) fn refresh(env: Env<'_>, vcpu: &mut Vcpu) {
    with(env, vcpu, |_| ((), VcpuSet::EMPTY));
}

/// Does `work` on the model for the vCPU in this CPU's hardware, between sync and fill. Who else has to look, as sync and `work`
/// say, is made to.
fn with<R>(env: Env<'_>, vcpu: &mut Vcpu, work: impl FnOnce(&mut Vgic) -> (R, VcpuSet)) -> R {
    let is_off = vcpu.state == State::Off;
    let (number, mine) = (vcpu.number, &mut vcpu.interrupts);
    let (result, wake, filled) = {
        let mut vgic = env.vm.vgic.lock();
        let synced = sync(&mut vgic, env, number, mine);
        let (result, worked) = work(&mut vgic);
        let filled = vgic.fill(number, &mut mine.lists.values, cpu_interface::machine_control());
        (result, synced.union(worked), filled)
    };
    mine.lists.put(filled.used);
    mine.maintenance = filled.maintenance;
    if is_off {
        // It is told of nothing, and what is pending for it does not end its CPU's waits.
        cpu_interface::switch_off();
    } else {
        cpu_interface::switch_on(filled.maintenance);
    }
    release(filled.deactivate);
    watch(env, &mine.physical_timer);
    self::wake(env, wake.without(number));
    result
}

/// Takes a vCPU's list registers back into the model, out of this CPU's hardware, and brings the lines of its timers up to date.
/// Gives who else has to look.
fn sync(vgic: &mut Vgic, env: Env<'_>, vcpu: usize, mine: &mut VcpuInterrupts) -> VcpuSet {
    mine.lists.take();
    // EOIcount matters only where this was asked for.
    let counts = mine.maintenance.contains(Maintenance::LRENPIE);
    let control = if counts { cpu_interface::control() } else { 0 };
    let lists = &mut mine.lists.values;
    let mut wake = vgic.sync(vcpu, lists, control, cpu_interface::machine_control());
    if gic::was_forwarded(env.cpu) {
        wake.add(vgic.forward(vcpu, VIRTUAL_TIMER));
    }
    wake.union(set_timers(vgic, vcpu, mine.outputs(env.vm)))
}

/// Sets the lines of a vCPU's timers.
fn set_timers(vgic: &mut Vgic, vcpu: usize, [of_virtual, of_physical]: [bool; 2]) -> VcpuSet {
    let wake = vgic.set_level(vcpu, VIRTUAL_TIMER, of_virtual);
    wake.union(vgic.set_level(vcpu, PHYSICAL_TIMER, of_physical))
}

/// Deactivates physical interrupts that no guest is going to: bit n for INTID n.
fn release(interrupts: u32) {
    (0..u32::BITS).filter(|number| interrupts >> number & 1 != 0).for_each(gic::release);
}

/// Has this CPU look when the emulated timer of its vCPU is due. One whose output is high has been told of.
fn watch(env: Env<'_>, timer: &Timer) {
    match timer.due() {
        Some(at) if !timer.output(CNTPCT_EL0.get()) => timer::arm(env.cpu, Why::GuestTimer, at),
        _ => timer::disarm(env.cpu, Why::GuestTimer),
    }
}

/// Whether there is an interrupt that ends the vCPU's WFI, whatever its PSTATE masks. The vCPU is one of this CPU's.
pub(crate) fn has_pending(env: Env<'_>, vcpu: &mut Vcpu) -> bool {
    let number = vcpu.number;
    if vcpu.interrupts.is_loaded {
        let interface = CpuInterface::take().view();
        return with(env, vcpu, |vgic| (vgic.signals(number, &interface), VcpuSet::EMPTY));
    }
    let outputs = vcpu.interrupts.outputs(env.vm);
    let mut vgic = env.vm.vgic.lock();
    // It is asked about, and told.
    let _ = set_timers(&mut vgic, number, outputs);
    vgic.signals(number, &vcpu.interrupts.interface.view())
}

/// When a timer of a vCPU may end its WFI, in ticks of the physical counter; `None` for none. Of one that is in the hardware the virtual timer's
/// interrupt ends EL2's WFI by itself, and is not meant.
pub(crate) fn wake_at(vm: &Vm, vcpu: &Vcpu) -> Option<u64> {
    let mine = &vcpu.interrupts;
    let of_virtual = mine.virtual_timer.due().filter(|_| !mine.is_loaded);
    // Past the counter's end is never.
    let of_virtual = of_virtual.and_then(|due| due.checked_add(vm.epoch));
    [of_virtual, mine.physical_timer.due()].into_iter().flatten().min()
}

/// The model for a VM with so many vCPUs on CPUs like the executing one.
pub(super) fn model(vcpus: usize) -> Vgic {
    Vgic::new(vcpus, cpu_interface::priority_bits())
}

/// The CPU interface of the executing CPU is off: no vCPU is in its hardware.
pub(super) fn switch_off() {
    cpu_interface::switch_off();
}

/// Has the CPUs of these vCPUs look at their interrupts, which the caller has changed in the model before.
pub(crate) fn wake(env: Env<'_>, vcpus: VcpuSet) {
    if vcpus.is_empty() {
        return;
    }
    let homes = vcpus.iter().fold(0_u64, |homes, vcpu| homes | 1 << (vcpu % env.vm.plan.cpus));
    for cpu in cpu::all().iter().filter(|cpu| homes >> cpu.number & 1 != 0) {
        gic::kick(cpu.mpidr.load(Ordering::Relaxed));
    }
}

/// Changes the line of an SPI, seen from the vCPU in this CPU's hardware.
pub(crate) fn set_line(env: Env<'_>, vcpu: &mut Vcpu, intid: u32, level: bool) {
    let number = vcpu.number;
    with(env, vcpu, |vgic| ((), vgic.set_level(number, intid, level)));
}

/// Changes the line of an SPI, whatever is in this CPU's hardware: the CPU of the vCPU that it concerns is made to look, be it this one.
pub(crate) fn set_spi(env: Env<'_>, intid: u32, level: bool) {
    // Of an SPI the vCPU does not matter.
    let wake = env.vm.vgic.lock().set_level(0, intid, level);
    self::wake(env, wake);
}

/// An access of the vCPU to the controller's registers at `offset` in a window of its. What it yields, or that the guest
/// has to make it again: another vCPU's hardware knows more, and is asked to tell.
pub(crate) fn access(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    window: Window,
    offset: u64,
    access: vgic::Access,
) -> Answer {
    let number = vcpu.number;
    with(env, vcpu, |vgic| {
        let done = match window {
            Window::Redistributors => vgic.gicr(offset, access, number),
            _ => vgic.gicd(offset, access, number),
        };
        (done.answer, done.wake)
    })
}

/// A trapped access of the vCPU to a register of its CPU interface or its physical timer. `None` if it is none of these.
pub(crate) fn trapped(env: Env<'_>, vcpu: &mut Vcpu, access: SystemRegister) -> Option<Answer> {
    let register = access.encoding();
    let value = vcpu.context.x(access.register());
    if let Some(register) = Register::of_physical(register) {
        return Some(Answer::Value(physical_timer(
            env,
            vcpu,
            register,
            (!access.is_read()).then_some(value),
        )));
    }
    // The others can only be written: a read is undefined, and does not come here.
    let number = vcpu.number;
    let sgi = match register {
        SGI1R => Sgi::One,
        ASGI1R => Sgi::Alternate,
        SGI0R => Sgi::Zero,
        DIR => {
            return Some(with(env, vcpu, |vgic| {
                let done = vgic.deactivate(number, value as u32, cpu_interface::machine_control());
                (done.answer, done.wake)
            }));
        }
        _ => return None,
    };
    with(env, vcpu, |vgic| {
        let wake = vgic.sgi(number, sgi, value);
        ((), wake)
    });
    Some(Answer::Value(0))
}

/// An access to the emulated timer.
fn physical_timer(env: Env<'_>, vcpu: &mut Vcpu, register: Register, write: Option<u64>) -> u64 {
    let (timer, now) = (&mut vcpu.interrupts.physical_timer, CNTPCT_EL0.get());
    let Some(value) = write else { return timer.read(register, now) };
    timer.write(register, value, now);
    refresh(env, vcpu);
    0
}
