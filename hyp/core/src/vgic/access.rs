//! A guest's accesses to the distributor and the redistributors.
//!
//! Accesses of any size and alignment are defined: a read gives the bytes it covers, a write acts on the bytes it
//! covers, of one register or of several. Of registers where a 1 sets or clears something, the bytes that are not
//! covered are as if 0 were written.
//!
//! An access about interrupts that other vCPUs have listed is answered [`Answer::Again`] until those vCPUs have been synced (see the
//! [module](super)). What it asks for is then noted in the banks, and that it was asked, in `asks`; the same access of the same vCPU
//! finds the note and completes. Another access of this vCPU instead, of an interrupt handler that ran meanwhile, replaces the note,
//! and the first access begins anew: it may take effect twice, both times before it completes, which no program can tell
//! from an effect that came late.

use super::interface::Vmcr;
use super::registers::{self, Register, Word};
use super::set::{VcpuSet, bits};
use super::{PHYSICAL, Place, SGI_MASK, Vgic, with};

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// What is written, in the low bytes; `None` for a read.
    pub write: Option<u64>,
}

/// What an access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "others have to look, and a read has a value"]
pub struct Done {
    /// For the guest.
    pub answer: Answer,
    /// Who has to sync and fill, at once if they run. The vCPU that did the access, which does so anyway, may be among them.
    pub wake: VcpuSet,
}

/// The guest's part of [`Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done. What a load reads, in the low bytes; 0 for a store.
    Value(u64),
    /// Not yet: the guest does it again, the instruction is not passed over.
    Again,
}

/// An access that waits for other vCPUs' syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    what: What,
    /// Who has not been synced since.
    pub(super) waits: VcpuSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Distributor(u64, Access),
    Redistributor(u64, Access),
    Deactivate(u32),
}

/// What came of a part of an access.
#[derive(Clone, Copy, Default)]
struct Effect {
    /// Who has to look.
    wake: VcpuSet,
    /// Who has to be synced before the access completes.
    waits: VcpuSet,
}

impl Effect {
    fn add(&mut self, other: Self) {
        self.wake.add(other.wake);
        self.waits.add(other.waits);
    }
}

impl Vgic {
    /// `vcpu`, which has been synced, accesses the distributor, `offset` bytes from its base.
    pub fn gicd(&mut self, offset: u64, access: Access, vcpu: usize) -> Done {
        self.ask(What::Distributor(offset, access), vcpu)
    }

    /// `vcpu`, which has been synced, accesses a redistributor, `offset` bytes from the base of the first vCPU's. Each has
    /// 128 KiB; where there is no vCPU, registers read as zero and ignore writes.
    pub fn gicr(&mut self, offset: u64, access: Access, vcpu: usize) -> Done {
        self.ask(What::Redistributor(offset, access), vcpu)
    }

    /// `vcpu`, which has been synced, writes this INTID to `ICC_DIR_EL1`: deactivates it, whoever has it active. Without split
    /// ends of interrupts (`ICC_CTLR_EL1.EOImode` = 0) this does nothing.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32, vmcr: Vmcr) -> Done {
        if !vmcr.splits_eoi() {
            return Done { answer: Answer::Value(0), wake: VcpuSet::EMPTY };
        }
        self.ask(What::Deactivate(intid), vcpu)
    }

    /// Does it, or notes that it is waited for.
    fn ask(&mut self, what: What, vcpu: usize) -> Done {
        let noted = self.asks.get_mut(vcpu).and_then(|ask| {
            let noted = ask.filter(|ask| ask.what == what);
            if noted.is_none_or(|ask| ask.waits.is_empty()) {
                *ask = None;
            }
            noted
        });
        match noted {
            Some(ask) if ask.waits.is_empty() => {
                let answer = Answer::Value(self.read(what));
                return Done { answer, wake: VcpuSet::EMPTY };
            }
            Some(_) => return Done { answer: Answer::Again, wake: VcpuSet::EMPTY },
            None => {}
        }
        let Effect { wake, waits } = self.perform(what, vcpu);
        if waits.is_empty() {
            return Done { answer: Answer::Value(self.read(what)), wake };
        }
        if let Some(ask) = self.asks.get_mut(vcpu) {
            *ask = Some(Ask { what, waits });
        }
        Done { answer: Answer::Again, wake: wake.union(waits) }
    }

    /// The value of a read; 0 for all else.
    fn read(&self, what: What) -> u64 {
        let (offset, access) = match what {
            What::Distributor(offset, access) | What::Redistributor(offset, access) => {
                (offset, access)
            }
            What::Deactivate(_) => return 0,
        };
        if access.write.is_some() {
            return 0;
        }
        Parts::of(offset, access).fold(0, |value, part| {
            let word = match self.decode(what, part.word) {
                (register, Some(place)) => self.load(register, place),
                (register, None) => {
                    self.load_common(register, matches!(what, What::Redistributor(..)))
                }
            };
            value | part.in_access(word)
        })
    }

    /// The effects of a write, and for whom an access has to wait.
    fn perform(&mut self, what: What, vcpu: usize) -> Effect {
        let (offset, access) = match what {
            What::Distributor(offset, access) | What::Redistributor(offset, access) => {
                (offset, access)
            }
            What::Deactivate(intid) => {
                return self.set_active(vcpu, self.locate(vcpu, intid), false);
            }
        };
        let mut effect = Effect::default();
        for part in Parts::of(offset, access) {
            effect.add(match (self.decode(what, part.word), access.write) {
                ((register, place), Some(value)) => {
                    self.store(register, place, part.of_access(value), part.lanes, vcpu)
                }
                (
                    (Register::Bank(Word::Pending { .. } | Word::Active { .. }), Some(place)),
                    None,
                ) => Effect { waits: self.listers(place, part.lanes), ..Effect::default() },
                _ => Effect::default(),
            });
        }
        effect
    }

    fn load_common(&self, register: Register, redistributor: bool) -> u32 {
        match register {
            Register::Control => {
                let on = |group, bit| if group { bit } else { 0 };
                registers::CONTROL_FIXED
                    | on(self.groups.group0, registers::CONTROL_GROUP0)
                    | on(self.groups.group1, registers::CONTROL_GROUP1)
            }
            Register::DistributorType => registers::distributor_type(super::SPIS),
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

    fn load(&self, register: Register, place: Place) -> u32 {
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
    fn store(
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
    fn set_active(
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

    /// The register at a word of an access, and the bank or the vCPU that it is about.
    fn decode(&self, what: What, word: u64) -> (Register, Option<Place>) {
        match what {
            What::Distributor(..) if word < registers::GICD_SIZE => {
                match registers::distributor(word) {
                    (Register::Bank(word), bank @ 1..=super::SHARED) => {
                        (Register::Bank(word), Some(Place::Shared(bank.wrapping_sub(1))))
                    }
                    (Register::Bank(_), _) => (Register::Reserved, None),
                    (register, _) => (register, None),
                }
            }
            What::Redistributor(..) => {
                let (vcpu, offset) = (word / registers::GICR_STRIDE, word % registers::GICR_STRIDE);
                match registers::redistributor(offset) {
                    _ if vcpu >= self.vcpus as u64 => (Register::Reserved, None),
                    register @ (Register::Implementer | Register::Identity(_)) => (register, None),
                    register => (register, Some(Place::Private(vcpu as usize))),
                }
            }
            _ => (Register::Reserved, None),
        }
    }
}

/// The words that an access covers.
struct Parts {
    at: u64,
    left: u32,
    done: u32,
}

/// One of them.
#[derive(Clone, Copy)]
struct Part {
    /// Its offset, a multiple of 4.
    word: u64,
    /// Its bits that are covered.
    lanes: u32,
    /// The place of its lowest bit in the access, in bits; below 0 if the access begins within it.
    shift: i32,
}

impl Parts {
    fn of(offset: u64, access: Access) -> Self {
        Self { at: offset, left: u32::from(access.size.min(8)), done: 0 }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let skip = (self.at & 3) as u32;
        let bytes = self.left.min(4_u32.wrapping_sub(skip));
        if bytes == 0 {
            return None;
        }
        let covered = u32::MAX >> 32_u32.wrapping_sub(bytes << 3);
        let part = Part {
            word: self.at & !3,
            lanes: covered << (skip << 3),
            shift: ((self.done << 3) as i32).wrapping_sub((skip << 3) as i32),
        };
        self.at = self.at.wrapping_add(bytes.into());
        self.left = self.left.wrapping_sub(bytes);
        self.done = self.done.wrapping_add(bytes);
        Some(part)
    }
}

impl Part {
    /// The bits of the access's value that belong to this word.
    fn of_access(self, value: u64) -> u32 {
        let moved = match self.shift {
            shift if shift < 0 => value << shift.unsigned_abs(),
            shift => value >> shift,
        };
        moved as u32 & self.lanes
    }

    /// The word's bits in their place in the access's value.
    fn in_access(self, word: u32) -> u64 {
        let value = u64::from(word & self.lanes);
        match self.shift {
            shift if shift < 0 => value >> shift.unsigned_abs(),
            shift => value << shift,
        }
    }
}
