//! Between the state and the list registers: [`Vgic::sync`] and [`Vgic::fill`].

use super::interface::{Maintenance, Vmcr, eoi_count};
use super::list::{Link, ListRegister, ListRegisters, MAX_LIST_REGISTERS};
use super::set::{VcpuSet, bits};
use super::{Place, Vgic, with};

/// What [`Vgic::fill`] needs besides the list registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "maintenance interrupts are to be asked for, and physical interrupts to be deactivated"]
pub struct Filled {
    /// The maintenance interrupts to ask for, and no others.
    pub maintenance: Maintenance,
    /// Physical interrupts that are active for nothing any more, bit n for INTID n: the caller deactivates them.
    pub deactivate: u32,
    /// List registers in use: the first so many.
    pub used: usize,
}

impl Vgic {
    /// Takes back what `vcpu` has listed, and what hardware changed of it; the list registers are then empty.
    ///
    /// `hcr` is the vCPU's `ICH_HCR_EL2`, whose EOIcount the caller then sets to 0; it matters only if the last fill asked for
    /// [`Maintenance::LRENPIE`], else 0 will do. Gives which other vCPUs have to look: an interrupt is theirs now. Registers that are empty
    /// already, as of a vCPU that is not loaded, are no error and change nothing.
    pub fn sync(
        &mut self,
        vcpu: usize,
        lists: &mut ListRegisters,
        hcr: u64,
        vmcr: Vmcr,
    ) -> VcpuSet {
        let mut wake = VcpuSet::EMPTY;
        // With the end split, ends count but deactivate nothing. Whoever is counted was not in a list register: before these come back.
        if !vmcr.splits_eoi() {
            for _ in 0..eoi_count(hcr) {
                wake.add(self.end_unlisted(vcpu));
            }
        }
        for register in &mut lists.values {
            let value = core::mem::take(register);
            if value != 0 {
                wake.add(self.take_back(vcpu, ListRegister::decode(value)));
            }
        }
        for ask in self.asks.iter_mut().flatten() {
            ask.waits = ask.waits.without(vcpu);
        }
        wake.without(vcpu)
    }

    /// Lists what `vcpu` should have: see the [module](super). The caller has synced it, and its registers are empty.
    pub fn fill(&mut self, vcpu: usize, lists: &mut ListRegisters, vmcr: Vmcr) -> Filled {
        let room = lists.capacity();
        let (mut pending, mut active) = (Best::new(room), Best::new(room));
        self.gather(vcpu, vmcr, &mut pending, &mut active);
        // The most urgent pending one always has a place.
        let for_pending = room.saturating_sub(active.total).max(1).min(pending.len());
        let for_active = room.saturating_sub(for_pending).min(active.len());
        let crowded = pending.total > for_pending;
        let mut used = 0_usize;
        let chosen = pending.first(for_pending).chain(active.first(for_active));
        for (register, intid) in lists.values.iter_mut().zip(chosen) {
            *register = self.list(vcpu, intid, crowded);
            used = used.wrapping_add(1);
        }
        let mut maintenance = Maintenance::empty();
        if crowded {
            maintenance |= Maintenance::NPIE;
            // If the guest switches groups, others of them come first. The bits for switching off are asked for only while both are
            // on: an emulator we know takes group 1's state for both of them.
            maintenance |= pending.off;
            let both = vmcr.enables(false) && vmcr.enables(true);
            maintenance.set(Maintenance::VGRP0DIE | Maintenance::VGRP1DIE, both);
        }
        if active.total > for_active {
            maintenance.set(Maintenance::LRENPIE, !vmcr.splits_eoi());
        }
        // With fewer than two in use this would be asserted at once, and for ever.
        let left_out = crowded || active.total > for_active;
        maintenance.set(Maintenance::UIE, left_out && used >= 2);
        Filled { maintenance, deactivate: self.release(vcpu), used }
    }

    /// Takes one list register back.
    fn take_back(&mut self, vcpu: usize, register: ListRegister) -> VcpuSet {
        let Some((place, index)) = self.locate(vcpu, register.intid) else { return VcpuSet::EMPTY };
        let bit = with(0, index);
        if !self.listers(place, bit).contains(vcpu) {
            return VcpuSet::EMPTY;
        }
        let Some(bank) = self.bank_mut(place) else { return VcpuSet::EMPTY };
        // The guest has not acknowledged it: what was latched is so still, unless the latch was cleared meanwhile.
        if register.pending {
            bank.latch |= bank.carried & !bank.withdrawn & bit;
        }
        let activated = bank.activated & bit != 0;
        let active = (register.active || activated) && bank.deactivated & bit == 0;
        if register.active {
            bank.note_running(index, register.priority, register.group1);
        } else if activated {
            let (priority, group1) = (bank.priority(index), bank.group1 & bit != 0);
            bank.note_running(index, priority, group1);
        }
        bank.active = if active { bank.active | bit } else { bank.active & !bit };
        // Hardware deactivated the physical one, too.
        if let (Link::Physical(_), false, false) =
            (register.link, register.pending, register.active)
        {
            bank.held &= !bit;
        }
        for word in [
            &mut bank.listed,
            &mut bank.carried,
            &mut bank.withdrawn,
            &mut bank.activated,
            &mut bank.deactivated,
        ] {
            *word &= !bit;
        }
        self.lookers(place, bit)
    }

    /// The guest ended an interrupt that was in no list register: the most urgent of those.
    fn end_unlisted(&mut self, vcpu: usize) -> VcpuSet {
        let unlisted = self.owned(vcpu, |bank| bank.active & !bank.listed);
        let ended = unlisted
            .into_iter()
            .flat_map(|(place, mask)| bits(mask).map(move |index| (place, index)))
            .filter_map(|(place, index)| Some((self.bank(place)?.running(index), place, index)))
            .min_by_key(|(priority, ..)| *priority);
        let Some((_, place, index)) = ended else { return VcpuSet::EMPTY };
        if let Some(bank) = self.bank_mut(place) {
            bank.active &= !with(0, index);
        }
        self.lookers(place, with(0, index))
    }

    /// Finds what `vcpu` could have listed.
    fn gather(&self, vcpu: usize, vmcr: Vmcr, pending: &mut Best, active: &mut Best) {
        let groups = self.groups;
        let here =
            |place: Place, base: u32, waiting: u32, running: u32, best: (&mut Best, &mut Best)| {
                let Some(bank) = self.bank(place) else { return };
                for index in bits(waiting) {
                    // A group that the guest has off comes last, until it is switched on.
                    let group1 = bank.group1 >> index & 1 != 0;
                    let off = !vmcr.enables(group1);
                    let key = u16::from(off) << 8 | u16::from(bank.priority(index));
                    best.0.off |= match (off, group1) {
                        (false, _) => Maintenance::empty(),
                        (true, false) => Maintenance::VGRP0EIE,
                        (true, true) => Maintenance::VGRP1EIE,
                    };
                    best.0.insert(key, base | index as u32);
                }
                for index in bits(running) {
                    // Of equals the linked ones keep their place.
                    let unlinked = bank.held >> index & 1 == 0;
                    let key = u16::from(bank.running(index)) << 1 | u16::from(unlinked);
                    best.1.insert(key, base | index as u32);
                }
            };
        if let Some(bank) = self.private.get(vcpu) {
            let (unlisted, waiting) = (!bank.listed, bank.forwarded(groups) & !bank.active);
            let running = bank.active & unlisted;
            here(
                Place::Private(vcpu),
                0,
                waiting & unlisted,
                running,
                (&mut *pending, &mut *active),
            );
        }
        for (number, shared) in self.shared.iter().enumerate() {
            let bank = &shared.bank;
            let waiting = bank.forwarded(groups) & !bank.active & !bank.listed;
            let running = bank.active & !bank.listed;
            if waiting | running != 0 {
                let base = (number as u32).wrapping_add(1).wrapping_mul(32);
                let (waiting, running) =
                    (shared.routed(waiting, vcpu), shared.owned(running, vcpu));
                here(Place::Shared(number), base, waiting, running, (&mut *pending, &mut *active));
            }
        }
    }

    /// Puts an interrupt in a list register of `vcpu`; gives the register's value. If it is crowded, pending ones are left out.
    fn list(&mut self, vcpu: usize, intid: u32, crowded: bool) -> u64 {
        let Some((place, index)) = self.locate(vcpu, intid) else { return 0 };
        if let Place::Shared(number) = place
            && let Some(shared) = self.shared.get_mut(number)
        {
            shared.set_owner(index, vcpu);
        }
        let (groups, here) = (self.groups, self.routes_to(place, index, vcpu));
        let Some(bank) = self.bank_mut(place) else { return 0 };
        let bit = with(0, index);
        let [active, latch, up, held, forwarded] =
            [bank.active, bank.latch, bank.line & !bank.edge, bank.held, bank.forwarded(groups)]
                .map(|word| word & bit != 0);
        let fresh = (bank.priority(index), bank.group1 & bit != 0);
        let running = (bank.running(index), bank.running_group1 & bit != 0);
        // Active and pending again: hardware makes it pending by itself if that is all there is to it. A line has to be looked at first; and
        // if it would come with another priority, elsewhere, or in the place of more urgent ones that are left out, it is EL2's to list it.
        let smooth = !up && !held && !crowded && here && fresh == running;
        let pending = !active || (forwarded && smooth);
        let again = active && forwarded && !pending;
        bank.listed |= bit;
        if pending {
            bank.carried |= bank.latch & bit;
            bank.latch &= !bit;
        }
        let (priority, group1) = if active { running } else { fresh };
        // A physical interrupt that is deactivated tells of its line by itself.
        let link = match held {
            true if !(again && latch) => Link::Physical(intid),
            _ if again || (pending && up) => Link::Maintenance,
            _ => Link::None,
        };
        ListRegister { intid, pending, active, group1, priority, link }.encode()
    }

    /// Whether the interrupt would go to `vcpu` if it were pending and no more.
    fn routes_to(&self, place: Place, index: usize, vcpu: usize) -> bool {
        match place {
            Place::Private(owner) => owner == vcpu,
            Place::Shared(number) => {
                self.shared.get(number).is_some_and(|shared| shared.route(index) == vcpu)
            }
        }
    }

    /// Gives back the physical interrupts that are held for what is neither pending nor active.
    fn release(&mut self, vcpu: usize) -> u32 {
        let Some(bank) = self.private.get_mut(vcpu) else { return 0 };
        let idle = bank.held & !bank.listed & !bank.active & !bank.pending();
        bank.held &= !idle;
        idle
    }

    /// The interrupts of a kind in `vcpu`'s own bank, and those of the SPIs that belong to it.
    fn owned(
        &self,
        vcpu: usize,
        kind: impl Fn(&super::Bank) -> u32,
    ) -> [(Place, u32); super::SHARED + 1] {
        let mut found = [(Place::Private(vcpu), 0); super::SHARED + 1];
        let private = self.private.get(vcpu).map(|bank| (Place::Private(vcpu), kind(bank)));
        let shared = self.shared.iter().enumerate().map(|(number, shared)| {
            (Place::Shared(number), shared.owned(kind(&shared.bank), vcpu))
        });
        for (slot, one) in found.iter_mut().zip(private.into_iter().chain(shared)) {
            *slot = one;
        }
        found
    }
}

/// The most urgent of some interrupts, as many as there is room for, and how many there were.
struct Best {
    entries: [(u16, u32); MAX_LIST_REGISTERS],
    room: usize,
    total: usize,
    /// Of which groups that the guest has off there are some.
    off: Maintenance,
}

impl Best {
    const fn new(room: usize) -> Self {
        Self {
            entries: [(u16::MAX, 0); MAX_LIST_REGISTERS],
            room,
            total: 0,
            off: Maintenance::empty(),
        }
    }

    fn len(&self) -> usize {
        self.total.min(self.room)
    }

    /// One more; the lower the key, the more urgent. Of equals the first stays first.
    fn insert(&mut self, key: u16, intid: u32) {
        self.total = self.total.wrapping_add(1);
        let mut moving = (key, intid);
        let len = self.len();
        for entry in self.entries.iter_mut().take(len) {
            if moving.0 < entry.0 {
                core::mem::swap(entry, &mut moving);
            }
        }
    }

    /// The INTIDs of the `count` most urgent.
    fn first(&self, count: usize) -> impl Iterator<Item = u32> {
        self.entries.iter().take(count).map(|(_, intid)| *intid)
    }
}
