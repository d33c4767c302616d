//! A CPU's virtual interface, as the architecture describes it (Arm IHI 0069, sections 4.8 and 6): list registers, active
//! priorities, maintenance interrupt; and the physical interrupt of its virtual timer.
//!
//! It shares the list registers' layout with `hyp-core`, and nothing else.

use hyp_core::vgic::{Link, ListRegister, ListRegisters, Maintenance, Vmcr};

/// The virtual timer's INTID, physical and virtual.
pub const TIMER: u32 = 27;

/// The lowest points that an interface with 5 bits of preemption has.
const LEAST_BPR: [u32; 2] = [2, 3];

/// An interrupt that the guest acknowledged and has not ended, by INTID and group.
pub(super) type Taken = (u32, bool);

/// One CPU, which always runs the same vCPU, or nothing.
#[derive(Clone, Debug)]
pub struct Pe {
    /// A vCPU runs: its list registers are in hardware.
    pub loaded: bool,
    /// `ICH_LR<n>_EL2`.
    pub lists: ListRegisters,
    /// `ICH_HCR_EL2`'s bits that are asked for.
    pub maintenance: Maintenance,
    /// `ICH_HCR_EL2.EOIcount`.
    pub eoi_count: u32,
    /// The group enables, by group.
    pub groups: [bool; 2],
    /// `ICC_PMR_EL1`.
    pub mask: u8,
    /// `ICC_BPR0_EL1`, `ICC_BPR1_EL1`.
    bpr: [u32; 2],
    /// `ICC_CTLR_EL1.EOImode`.
    pub split: bool,
    /// `ICH_AP0R0_EL2`, `ICH_AP1R0_EL2`.
    active_priorities: [u32; 2],
    /// What the guest has acknowledged, the last last.
    pub(super) taken: Vec<Taken>,
    /// The virtual timer's output.
    pub timer_line: bool,
    /// The physical timer interrupt is active.
    pub timer_active: bool,
}

impl Pe {
    /// A CPU with `count` list registers, all off.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            loaded: false,
            lists: ListRegisters::new(count),
            maintenance: Maintenance::empty(),
            eoi_count: 0,
            groups: [false; 2],
            mask: 0,
            bpr: LEAST_BPR,
            split: false,
            active_priorities: [0; 2],
            taken: Vec::new(),
            timer_line: false,
            timer_active: false,
        }
    }

    /// `ICH_VMCR_EL2`.
    #[must_use]
    pub fn vmcr(&self) -> Vmcr {
        let bit = |on: bool, place: u32| u64::from(on) << place;
        let value = bit(self.groups[0], 0) | bit(self.groups[1], 1) | bit(self.split, 9);
        let points = u64::from(self.bpr[1]) << 18 | u64::from(self.bpr[0]) << 21;
        Vmcr(value | points | u64::from(self.mask) << 24)
    }

    /// Writes of the guest to its `ICC_*` registers. The points change only while nothing is acknowledged: an end that finds
    /// another group priority than its beginning is a program's mistake.
    pub fn set_interface(&mut self, groups: [bool; 2], mask: u8, bpr: [u8; 2], split: bool) {
        (self.groups, self.mask, self.split) = (groups, mask & 0xf8, split);
        if self.taken.is_empty() {
            for (group, point) in bpr.into_iter().enumerate() {
                self.bpr[group] = u32::from(point % 8).max(LEAST_BPR[group]);
            }
        }
    }

    /// What the list registers hold: those that are not 0.
    pub fn listed(&self) -> impl Iterator<Item = ListRegister> {
        let values = self.lists.values.iter().filter(|value| **value != 0);
        values.map(|value| ListRegister::decode(*value))
    }

    /// The priority at which the CPU runs, or none.
    #[must_use]
    pub fn running(&self) -> Option<u8> {
        let active = self.active_priorities[0] | self.active_priorities[1];
        (active != 0).then(|| (active.trailing_zeros() << 3) as u8)
    }

    /// A priority's part that counts for preemption.
    fn group_priority(&self, priority: u8, group1: bool) -> u8 {
        let subpriority_bits = if group1 { self.bpr[1] } else { self.bpr[0] + 1 };
        (u32::from(priority) >> subpriority_bits << subpriority_bits) as u8
    }

    /// Whether a pending interrupt of an enabled group would be taken now.
    #[must_use]
    pub fn passes(&self, priority: u8, group1: bool) -> bool {
        let preempts =
            |running| self.group_priority(priority, group1) < self.group_priority(running, group1);
        priority < self.mask && self.running().is_none_or(preempts)
    }

    /// The most urgent pending one of an enabled group.
    #[must_use]
    pub fn best(&self) -> Option<ListRegister> {
        let pending = self.listed().filter(|register| register.pending && !register.active);
        pending
            .filter(|register| self.groups[usize::from(register.group1)])
            .min_by_key(|register| register.priority)
    }

    /// A read of `ICC_IAR0_EL1` or `ICC_IAR1_EL1`: what it acknowledges.
    pub fn acknowledge(&mut self, group1: bool) -> Option<ListRegister> {
        let best = self.best()?;
        if best.group1 != group1 || !self.passes(best.priority, group1) {
            return None;
        }
        let bit = self.group_priority(best.priority, group1) >> 3;
        self.active_priorities[usize::from(group1)] |= 1 << bit;
        self.taken.push((best.intid, group1));
        self.change(best.intid, |register| (register.pending, register.active) = (false, true));
        Some(best)
    }

    /// A write of `ICC_EOIR<group>_EL1` for what was acknowledged last: whether a list register was found for it.
    pub fn end(&mut self) -> Option<(u32, bool)> {
        let (intid, group1) = self.taken.pop()?;
        let word = &mut self.active_priorities[usize::from(group1)];
        assert!(*word != 0, "the priority of what was acknowledged is active");
        let priority = (word.trailing_zeros() << 3) as u8;
        *word &= *word - 1;
        let found = self.listed().find(|register| register.intid == intid && register.active);
        match found {
            None => self.eoi_count = (self.eoi_count + 1) % 32,
            Some(_) if self.split => {}
            Some(register) => {
                assert_eq!(register.group1, group1, "an active one keeps its group");
                assert_eq!(
                    self.group_priority(register.priority, group1),
                    priority,
                    "an active one keeps its priority: {register:?}"
                );
                self.change(intid, |register| register.active = false);
                if let (Link::Physical(physical), false) = (register.link, register.pending) {
                    assert_eq!(physical, TIMER);
                    self.timer_active = false;
                }
            }
        }
        Some((intid, found.is_some()))
    }

    /// Whether the maintenance interrupt is asserted.
    #[must_use]
    pub fn maintains(&self) -> bool {
        let asked = |bit| self.maintenance.contains(bit);
        let valid = self.listed().filter(|register| register.pending || register.active).count();
        let pending = self.listed().any(|register| register.pending && !register.active);
        let ended = self.listed().any(|register| {
            !register.pending && !register.active && register.link == Link::Maintenance
        });
        ended
            || asked(Maintenance::UIE) && valid <= 1
            || asked(Maintenance::NPIE) && !pending
            || asked(Maintenance::LRENPIE) && self.eoi_count > 0
            || asked(Maintenance::VGRP0EIE) && self.groups[0]
            || asked(Maintenance::VGRP0DIE) && !self.groups[0]
            || asked(Maintenance::VGRP1EIE) && self.groups[1]
            || asked(Maintenance::VGRP1DIE) && !self.groups[1]
    }

    /// Whether the physical timer interrupt takes the CPU out of its guest.
    #[must_use]
    pub fn timer_pends(&self) -> bool {
        self.timer_line && !self.timer_active
    }

    fn change(&mut self, intid: u32, change: impl Fn(&mut ListRegister)) {
        let mut same = self.lists.values.iter_mut().filter(|value| **value != 0);
        let value = same.find(|value| **value as u32 == intid).expect("it is listed");
        let mut register = ListRegister::decode(*value);
        change(&mut register);
        *value = register.encode();
    }
}
