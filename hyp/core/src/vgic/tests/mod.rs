//! The registers by themselves, and single steps between state and list registers. Whole stories, with a CPU
//! interface that acknowledges and ends, are in package `programs`.

mod accesses;
mod lists;
mod registers;

use std::vec::Vec;

use super::*;

/// Group 1 on at the interface, nothing masked, ends not split.
const OPEN: Vmcr = Vmcr(0xf8 << 24 | 1 << 1);

/// `GICD_CTLR` and so on.
pub(super) mod gicd {
    pub(in crate::vgic) const CTLR: u64 = 0;
    pub(in crate::vgic) const TYPER: u64 = 4;
    pub(in crate::vgic) const IGROUPR: u64 = 0x080;
    pub(in crate::vgic) const ISENABLER: u64 = 0x100;
    pub(in crate::vgic) const ICENABLER: u64 = 0x180;
    pub(in crate::vgic) const ISPENDR: u64 = 0x200;
    pub(in crate::vgic) const ICPENDR: u64 = 0x280;
    pub(in crate::vgic) const ISACTIVER: u64 = 0x300;
    pub(in crate::vgic) const ICACTIVER: u64 = 0x380;
    pub(in crate::vgic) const IPRIORITYR: u64 = 0x400;
    pub(in crate::vgic) const ITARGETSR: u64 = 0x800;
    pub(in crate::vgic) const ICFGR: u64 = 0xc00;
    pub(in crate::vgic) const IROUTER: u64 = 0x6000;
    pub(in crate::vgic) const PIDR2: u64 = 0xffe8;
}

/// A redistributor's registers, from the base of all.
pub(super) const fn gicr(vcpu: u64, register: u64) -> u64 {
    vcpu * 0x2_0000 + register
}

/// The frame of SGIs and PPIs.
pub(super) const SGI: u64 = 0x1_0000;

pub(super) const fn read(size: u8) -> Access {
    Access { size, write: None }
}

pub(super) const fn write(size: u8, value: u64) -> Access {
    Access { size, write: Some(value) }
}

/// The value of an access that completes.
#[track_caller]
pub(super) fn value(done: Done) -> u64 {
    match done.answer {
        Answer::Value(value) => value,
        Answer::Again => panic!("is to be done again: {done:?}"),
    }
}

/// A controller with all of `vcpus`' interrupts in group 1, enabled, of priority 0xa0, and group 1 forwarded.
pub(super) fn set_up(vcpus: usize) -> Vgic {
    let mut vgic = Vgic::new(vcpus, 5);
    let all = u64::from(u32::MAX);
    for register in [gicd::IGROUPR, gicd::ISENABLER] {
        for bank in [4, 8] {
            value(vgic.gicd(register + bank, write(4, all), 0));
        }
        for vcpu in 0..vcpus {
            value(vgic.gicr(gicr(vcpu as u64, SGI + register), write(4, all), vcpu));
        }
    }
    for word in (0..96).step_by(4) {
        value(vgic.gicd(gicd::IPRIORITYR + word, write(4, 0xa0a0_a0a0), 0));
    }
    for vcpu in 0..vcpus {
        for word in (0..32).step_by(4) {
            let register = gicr(vcpu as u64, SGI + gicd::IPRIORITYR + word);
            value(vgic.gicr(register, write(4, 0xa0a0_a0a0), vcpu));
        }
    }
    value(vgic.gicd(gicd::CTLR, write(4, 2), 0));
    vgic
}

/// What is in the list registers.
pub(super) fn listed(lists: &ListRegisters) -> Vec<ListRegister> {
    lists
        .values
        .iter()
        .filter(|value| **value != 0)
        .map(|value| ListRegister::decode(*value))
        .collect()
}

/// Their INTIDs.
pub(super) fn intids(lists: &ListRegisters) -> Vec<u32> {
    listed(lists).into_iter().map(|register| register.intid).collect()
}

/// No INTIDs.
pub(super) const NONE: [u32; 0] = [];

/// Changes the list register of an interrupt as a guest would.
#[track_caller]
pub(super) fn guest(lists: &mut ListRegisters, intid: u32, change: impl Fn(&mut ListRegister)) {
    let value = lists.values.iter_mut().find(|value| **value as u32 == intid && **value != 0);
    let value = value.expect("it is listed");
    let mut register = ListRegister::decode(*value);
    change(&mut register);
    *value = register.encode();
}

/// The guest acknowledges.
#[track_caller]
pub(super) fn acknowledge(lists: &mut ListRegisters, intid: u32) {
    guest(lists, intid, |register| {
        assert!(register.pending, "{register:?}");
        (register.pending, register.active) = (false, true);
    });
}

/// The guest deactivates.
#[track_caller]
pub(super) fn deactivate(lists: &mut ListRegisters, intid: u32) {
    guest(lists, intid, |register| {
        assert!(register.active, "{register:?}");
        register.active = false;
    });
}
