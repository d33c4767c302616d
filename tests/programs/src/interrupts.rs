//! Random programs on the interrupt controller: registers, lines, SGIs, and CPUs that acknowledge and end.
//!
//! The real [`Vgic`](hyp_core::vgic::Vgic) beside a controller that has no list registers (`reference.rs`), with the CPU
//! interface of the architecture in between (`pe.rs`). What must hold: no interrupt is in two list registers; every CPU would take
//! what is most urgent for it, and takes it once; none is lost; a register reads as the reference says; no exit repeats itself without end;
//! a physical interrupt is active only while somebody will deactivate it.

mod machine;
mod pe;
mod reference;

use arbitrary::{Arbitrary, Unstructured};
use hyp_core::vgic::{Access, Sgi};

pub use self::machine::{Machine, Request, Window};
pub use self::pe::{Pe, TIMER};
pub use self::reference::{Id, Interrupt, Reference};

/// Operations of a program at the most.
const MOST: usize = 200;

/// A machine. Numbers are taken modulo what there can be.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Setup {
    /// 1 to 3.
    pub vcpus: u8,
    /// 1 to 5.
    pub list_registers: u8,
    /// Whether kicks come at once.
    pub prompt: bool,
    /// Whether the program begins with everything enabled, in group 1, of few priorities.
    pub open: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Op {
    /// A vCPU writes a register.
    Write { vcpu: u8, register: Register, value: u32 },
    /// A vCPU reads a register.
    Read { vcpu: u8, register: Register },
    /// A vCPU accesses any bytes of a window.
    Anything { vcpu: u8, redistributor: bool, offset: u32, size: u8, write: bool, value: u64 },
    /// An SGI to the vCPUs of a mask, or to all others.
    Sgi { vcpu: u8, intid: u8, targets: u8, others: bool },
    /// Any write of any of the three registers.
    AnySgi { vcpu: u8, register: u8, value: u64 },
    /// A device's line.
    Line { vcpu: u8, intid: u8, level: bool },
    /// A virtual timer's output.
    Timer { vcpu: u8, level: bool },
    /// A vCPU acknowledges, of group 0 or 1.
    Acknowledge { vcpu: u8, group0: bool },
    /// A vCPU ends what it acknowledged last.
    End { vcpu: u8 },
    /// A vCPU writes `ICC_DIR_EL1`.
    Deactivate { vcpu: u8, intid: u8 },
    /// A vCPU writes `ICC_IGRPEN`, `PMR`, `BPR`, and sometimes `CTLR`.
    Interface { vcpu: u8, groups: u8, mask: u8, bpr: [u8; 2], split: u8 },
    /// A kick comes; a vCPU does again what it was told to.
    Kick { vcpu: u8 },
    /// A vCPU leaves its CPU, or comes back.
    Switch { vcpu: u8, load: bool },
    /// An exit for nothing.
    Exit { vcpu: u8 },
}

/// A register of 32 interrupts, or of some of them.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Register {
    /// Which kind.
    pub kind: u8,
    /// Of which bank: the SPIs', or some vCPU's.
    pub bank: u8,
    /// Of IPRIORITYR, ICFGR and IROUTER: which one.
    pub nth: u8,
}

/// The fuzz target.
pub fn check(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(setup) = Setup::arbitrary(&mut input) else { return };
    let mut ops = Vec::new();
    while ops.len() < MOST && !input.is_empty() {
        let Ok(op) = Op::arbitrary(&mut input) else { break };
        ops.push(op);
    }
    run(setup, &ops);
}

/// Runs a program; a panic is a finding.
pub fn run(setup: Setup, ops: &[Op]) {
    let vcpus = 1 + usize::from(setup.vcpus % 3);
    let mut machine = Machine::new(vcpus, 1 + usize::from(setup.list_registers % 5), setup.prompt);
    for vcpu in 0..vcpus {
        machine.load(vcpu);
    }
    if setup.open {
        open(&mut machine, vcpus);
    }
    for op in ops {
        step(&mut machine, vcpus, *op);
    }
    machine.drain();
}

/// Enables everything.
fn open(machine: &mut Machine, vcpus: usize) {
    let write = |machine: &mut Machine, vcpu, register: Register, value| {
        step(machine, vcpus, Op::Write { vcpu, register, value });
    };
    for bank in 0..2 + vcpus as u8 {
        let vcpu = bank.saturating_sub(2);
        for kind in [0, 1] {
            write(machine, vcpu, Register { kind, bank, nth: 0 }, u32::MAX);
        }
        for nth in 0..8 {
            let value = [0x8080_8080, 0x4080_40a0, 0xa0c0_e020][usize::from(nth % 3)];
            write(machine, vcpu, Register { kind: 7, bank, nth }, value);
        }
    }
    let on = Access { size: 4, write: Some(3) };
    machine.request(0, Request::Access(Window::Distributor, 0, on));
    for vcpu in 0..vcpus {
        machine.interface(vcpu, [true; 2], 0xf0, [0; 2], false);
    }
}

fn step(machine: &mut Machine, vcpus: usize, op: Op) {
    let who = |vcpu: u8| usize::from(vcpu) % vcpus;
    match op {
        Op::Write { vcpu, register, value } => {
            let (window, offset) = register.place(vcpus);
            let access = Access { size: 4, write: Some(value.into()) };
            machine.request(who(vcpu), Request::Access(window, offset, access));
        }
        Op::Read { vcpu, register } => {
            let (window, offset) = register.place(vcpus);
            let access = Access { size: 4, write: None };
            machine.request(who(vcpu), Request::Access(window, offset, access));
        }
        Op::Anything { vcpu, redistributor, offset, size, write, value } => {
            let window = if redistributor { Window::Redistributor } else { Window::Distributor };
            let reach = if redistributor { 0x2_0000 * (vcpus as u64 + 1) } else { 0x1_0000 };
            let size = 1 << (size % 4);
            let write = write.then_some(value & u64::MAX >> (64 - 8 * u32::from(size)));
            let offset = u64::from(offset) % (reach - 8);
            machine.request(who(vcpu), Request::Access(window, offset, Access { size, write }));
        }
        Op::Sgi { vcpu, intid, targets, others } => {
            let value = u64::from(intid % 16) << 24 | u64::from(targets) | u64::from(others) << 40;
            machine.sgi(who(vcpu), Sgi::One, value);
        }
        Op::AnySgi { vcpu, register, value } => {
            let register = [Sgi::Zero, Sgi::One, Sgi::Alternate][usize::from(register % 3)];
            machine.sgi(who(vcpu), register, value);
        }
        Op::Line { vcpu, intid, level } => {
            let intid = u32::from(intid) % 128;
            if intid != TIMER {
                machine.line(who(vcpu), intid, level);
            }
        }
        Op::Timer { vcpu, level } => machine.timer(who(vcpu), level),
        Op::Acknowledge { vcpu, group0 } => {
            machine.acknowledge(who(vcpu), !group0);
        }
        Op::End { vcpu } => machine.end(who(vcpu)),
        Op::Deactivate { vcpu, intid } => {
            machine.request(who(vcpu), Request::Deactivate(intid.into()));
        }
        Op::Interface { vcpu, groups, mask, bpr, split } => {
            // Mostly open, and mostly not split.
            let mask = if mask % 4 == 0 { mask } else { 0xf8 };
            let groups =
                if groups % 4 == 0 { [groups & 4 != 0, groups & 8 != 0] } else { [true; 2] };
            machine.interface(who(vcpu), groups, mask, bpr, split % 8 == 7);
        }
        Op::Kick { vcpu } => {
            machine.kick(who(vcpu));
            machine.again(who(vcpu));
        }
        Op::Switch { vcpu, load: true } => machine.load(who(vcpu)),
        Op::Switch { vcpu, load: false } => machine.unload(who(vcpu)),
        Op::Exit { vcpu } => machine.exit_for_nothing(who(vcpu)),
    }
}

impl Register {
    /// Its window and offset.
    fn place(self, vcpus: usize) -> (Window, u64) {
        let bank = u64::from(self.bank) % (2 + vcpus as u64);
        let nth = u64::from(self.nth);
        let kind = self.kind % 10;
        let in_bank = |bank: u64| match kind {
            0..7 => 0x80 + 0x80 * u64::from(kind) + 4 * bank,
            7 => 0x400 + 32 * bank + 4 * (nth % 8),
            _ => 0xc00 + 8 * bank + 4 * (nth % 2),
        };
        match (bank, kind) {
            (0 | 1, 9) => (Window::Distributor, 0x6000 + 8 * (32 + 32 * bank + nth % 32)),
            (_, 9) => (Window::Distributor, 0),
            (0 | 1, _) => (Window::Distributor, in_bank(bank + 1)),
            (bank, _) => (Window::Redistributor, 0x2_0000 * (bank - 2) + 0x1_0000 + in_bank(0)),
        }
    }
}
