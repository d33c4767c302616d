//! The words of an access: what each register reads as, and what a write of some of its bits does.
//!
//! A write changes the banks at once. Of what is listed it can only say who has to look, or who has to be synced before the access
//! is over ([`Effect`]): the state is in that CPU's hardware.

use super::Effect;
use crate::vgic::registers::{self, Register, Word};
use crate::vgic::set::{VcpuSet, bits};
use crate::vgic::{PHYSICAL, Place, SGI_MASK, SPIS, Vgic, with};

impl Vgic {
    /// The value of a register that no bank has.
    pub(super) fn load_common(&self, register: Register, redistributor: bool) -> u32 {
        match register {
            Register::Control => {
                let on = |group, bit| if group { bit } else { 0 };
                registers::CONTROL_FIXED
                    | on(self.groups.group0, registers::CONTROL_GROUP0)
                    | on(self.groups.group1, registers::CONTROL_GROUP1)
            }
            Register::DistributorType => registers::distributor_type(SPIS),
            Register::Implementer => registers::IMPLEMENTER,
            Register::Identity(index) => registers::identity_value(index, redistributor),
            Register::Router { intid, upper: false } => match self.locate(0, intid) {
                Some((Place::Shared(number), index)) => {
                    self.shared.get(number).map_or(0, |shared| shared.route(index) as u32)
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// The value of a register of a bank or a vCPU.
    pub(super) fn load(&self, register: Register, place: Place) -> u32 {
        let Some(bank) = self.bank(place) else { return 0 };
        match (register, place) {
            (Register::Bank(word), _) => match word {
                Word::Group => bank.group1,
                Word::Enable { .. } => bank.enabled,
                Word::Pending { .. } => bank.pending(),
                Word::Active { .. } => bank.active,
                Word::Priority { first } => {
                    let byte = |at: usize| bank.priority(first | at);
                    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
                }
                Word::Config { first } => bits(bank.edge >> first & 0xffff)
                    .fold(0, |value, index| value | 2 << (index << 1)),
            },
            (Register::RedistributorType { upper }, Place::Private(vcpu)) => {
                let last = vcpu.wrapping_add(1) == self.vcpus;
                let value = registers::redistributor_type(vcpu, last);
                if upper { (value >> 32) as u32 } else { value as u32 }
            }
            (Register::Waker, Place::Private(vcpu)) if self.asleep.contains(vcpu) => {
                registers::WAKER_SLEEP | registers::WAKER_ASLEEP
            }
            _ => 0,
        }
    }

    /// Writes the bits of `lanes` of a register.
    pub(super) fn store(
        &mut self,
        register: Register,
        place: Option<Place>,
        value: u32,
        lanes: u32,
        vcpu: usize,
    ) -> Effect {
        match (register, place) {
            (Register::Control, _) => self.store_control(value, lanes),
            (Register::Router { intid, upper: false }, _) => self.store_router(intid, value, lanes),
            (Register::Waker, Some(Place::Private(owner))) => {
                if lanes & registers::WAKER_SLEEP != 0 {
                    self.asleep = self.asleep.without(owner);
                    if value & registers::WAKER_SLEEP != 0 {
                        self.asleep.add(VcpuSet::one(owner));
                    }
                }
                Effect::default()
            }
            (Register::Bank(word), Some(place)) => self.store_bank(word, place, value, lanes, vcpu),
            _ => Effect::default(),
        }
    }

    fn store_control(&mut self, value: u32, lanes: u32) -> Effect {
        let before = self.groups;
        let bit = |old: bool, bit: u32| if lanes & bit != 0 { value & bit != 0 } else { old };
        self.groups.group0 = bit(before.group0, registers::CONTROL_GROUP0);
        self.groups.group1 = bit(before.group1, registers::CONTROL_GROUP1);
        let off = (before.group0 && !self.groups.group0) || (before.group1 && !self.groups.group1);
        let mut effect = Effect::default();
        if before != self.groups {
            for place in self.places() {
                effect.wake.add(self.lookers(place, u32::MAX));
                if off {
                    effect.waits.add(self.listers(place, u32::MAX));
                }
            }
        }
        effect
    }

    fn store_router(&mut self, intid: u32, value: u32, lanes: u32) -> Effect {
        let Some((place @ Place::Shared(number), index)) = self.locate(0, intid) else {
            return Effect::default();
        };
        let router = self.shared.get_mut(number).and_then(|shared| shared.router.get_mut(index));
        if let Some(router) = router {
            // Aff2 to Aff0. Bit 31, 1-of-N, is not there, and neither is Aff3.
            *router = (*router & !lanes | value) & 0x00ff_ffff;
        }
        Effect { wake: self.lookers(place, with(0, index)), ..Effect::default() }
    }

    fn store_bank(
        &mut self,
        word: Word,
        place: Place,
        value: u32,
        lanes: u32,
        vcpu: usize,
    ) -> Effect {
        if let Word::Active { set } = word {
            return bits(value).fold(Effect::default(), |mut effect, index| {
                effect.add(self.set_active(vcpu, Some((place, index)), set));
                effect
            });
        }
        let priority_mask = self.priority_mask;
        let private = matches!(place, Place::Private(_));
        let Some(bank) = self.bank_mut(place) else { return Effect::default() };
        // What changed, and of what the access has to wait until it is seen.
        let (changed, waits) = match word {
            Word::Group => {
                bank.group1 = bank.group1 & !lanes | value;
                (lanes, 0)
            }
            Word::Enable { set: true } => {
                bank.enabled |= value;
                (value, 0)
            }
            Word::Enable { set: false } => {
                bank.enabled &= !value;
                (value, value)
            }
            Word::Pending { set: true } => {
                bank.latch |= value;
                (value, 0)
            }
            Word::Pending { set: false } => (value, bank.clear_pending(value)),
            Word::Active { .. } => (0, 0),
            Word::Priority { first } => {
                let bytes = value.to_le_bytes().into_iter().zip(lanes.to_le_bytes());
                let slots = bank.priority.iter_mut().skip(first);
                for (priority, (byte, covered)) in slots.zip(bytes) {
                    if covered != 0 {
                        *priority = byte & priority_mask;
                    }
                }
                (0xf_u32.wrapping_shl(first as u32), 0)
            }
            Word::Config { first } => {
                // The upper bit of each pair counts; SGIs and physical interrupts are as they are.
                let fixed = if private { SGI_MASK | PHYSICAL } else { 0 };
                let half = |word: u32| {
                    (0..16).fold(0, |mask, index| mask | (word >> (index << 1) >> 1 & 1) << index)
                };
                let mask = (half(lanes) << first) & !fixed;
                bank.edge = bank.edge & !mask | half(value) << first & mask;
                (mask, 0)
            }
        };
        Effect { wake: self.lookers(place, changed), waits: self.listers(place, waits) }
    }

    /// Sets or clears the active state of one interrupt.
    pub(super) fn set_active(
        &mut self,
        vcpu: usize,
        interrupt: Option<(Place, usize)>,
        active: bool,
    ) -> Effect {
        let Some((place, index)) = interrupt else { return Effect::default() };
        let bit = with(0, index);
        if let Place::Shared(number) = place
            && let Some(shared) = self.shared.get_mut(number)
            && active
            && (shared.bank.active | shared.bank.listed) & bit == 0
        {
            // It has to be somebody's: whose it would be if it were pending.
            let route = shared.route(index);
            shared.set_owner(index, if route < self.vcpus { route } else { vcpu });
        }
        let Some(bank) = self.bank_mut(place) else { return Effect::default() };
        let listed = bank.set_active(bit, active);
        Effect { wake: self.lookers(place, bit), waits: self.listers(place, listed) }
    }
}
