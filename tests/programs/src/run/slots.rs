//! Slots in transition, notes, and tables that go away.

use mmu_oracle::Event;
use stage2::arch::Dsb;
use stage2::descriptor::Note;
use stage2::{Arch, Descriptor, Ipa, IpaRange, Slot, Table};

use super::{DEAD, Held, UNLINKS, World};
use crate::format::{self, Kind};
use crate::program::{Place, Who};
use crate::reference::Expected;
use crate::walk::span;

impl<'m> World<'m> {
    /// Live to Busy: whoever touches it faults and tries again.
    pub(super) fn hold(&mut self, who: Who, at: Place, level: usize) {
        let Some(vm) = self.vm(who) else { return };
        let ipa = self.ipa(at);
        let Some(stop) = self.vms[&vm].tables.walk(ipa, level) else { return };
        let Some(busy) = Descriptor::from_bits(stop.bits).to_busy() else { return };
        let held = self.beside_rival(who, vm, ipa, |world| {
            world.exchange(who, stop.slot, stop.bits, busy.bits())
        });
        assert!(held, "an install changes no live slot");
        self.complete(who);
        let state = self.vms.get_mut(&vm).expect("checked");
        state.reference.obstacles.insert((stop.level, stop.start), busy.bits());
        state.held.push(Held {
            pe: who.pe(),
            start: stop.start,
            level: stop.level,
            bits: stop.bits,
        });
    }

    /// Busy to live, as it was: nothing has changed, so nothing is flushed.
    pub(super) fn thaw(&mut self, who: Who) {
        let (Some(vm), pe) = (self.vm(who), who.pe()) else { return };
        // The last one first: a slot under a Busy table is reached when that is live again.
        loop {
            let state = self.vms.get_mut(&vm).expect("checked");
            let Some(last) = state.held.iter().rposition(|held| held.pe == pe) else { return };
            let tables = state.tables;
            let reach = |held: &Held| {
                tables.walk(held.start, held.level).filter(|stop| stop.level == held.level)
            };
            let Some(stop) = reach(&state.held[last]) else {
                // Another PE made a table above it Busy since: that one first.
                let above =
                    state.held.iter().rposition(|held| held.pe != pe && reach(held).is_some());
                let other = state.held[above.expect("some Busy slot can be reached")].pe;
                self.thaw(Who { pe: other as u8, ..who });
                continue;
            };
            let held = state.held.remove(last);
            state.reference.obstacles.remove(&(held.level, held.start));
            self.ground.machine.on_pe(pe, || {
                // SAFETY: (1) this PE made it Busy. (2) It becomes what it was.
                unsafe { (&self.ground.machine).store(stop.slot, held.bits) };
                self.ground.machine.dsb(Dsb::IshSt);
            });
        }
    }

    /// Empty to a note, through the table's lock.
    pub(super) fn annotate(&mut self, who: Who, at: Place, payload: u32) {
        let Some(vm) = self.vm(who) else { return };
        let ipa = self.ipa(at);
        let Some(stop) = self.vms[&vm].tables.walk(ipa, 3).filter(|stop| stop.bits == 0) else {
            return;
        };
        let note = Descriptor::note(Note::new(u64::from(payload)).expect("32 bits fit")).bits();
        let won = self.beside_rival(who, vm, ipa, |world| world.write(who, vm, ipa, 0, note));
        if won {
            let state = self.vms.get_mut(&vm).expect("checked");
            state.reference.obstacles.insert((stop.level, stop.start), note);
        }
    }

    /// A compare-exchange on the slot where the walk to `ipa` ends, by the way that is open to everybody: looked up to be
    /// written, locked, and the parent compared.
    fn write(&self, who: Who, vm: usize, ipa: u64, old: u64, new: u64) -> bool {
        let machine = self.ground.machine;
        machine.on_pe(who.pe(), || {
            let cpu = self.ground.epochs.join(who.pe()).expect("each PE joins once at a time");
            let (guard, ipa) = (cpu.enter(), Ipa::new(ipa));
            let found = self.vms[&vm].space.lookup_rw(&guard, ipa).expect("inside the IPA size");
            let locked = found.lock().expect("nobody takes tables away meanwhile");
            let slot = locked.slot(ipa).expect("found for it");
            // SAFETY: (1) the holder of the table's lock may make an Empty slot a note, and a note Empty.
            let result = unsafe { (&machine).compare_exchange(slot, old, new) };
            machine.dsb(Dsb::IshSt);
            result == Some(Ok(old))
        })
    }

    /// A note to Empty.
    pub(super) fn forget(&mut self, who: Who, at: Place) {
        let Some(vm) = self.vm(who) else { return };
        let state = &self.vms[&vm];
        let Expected::Obstacle(level, bits) =
            state.reference.expected(self.ipa(at), self.start_level())
        else {
            return;
        };
        if bits & 0xf == 0b0100 && bits >> 56 == 0 {
            self.drop_note(who, vm, level, self.ipa(at));
        }
    }

    pub(super) fn forget_all(&mut self, vm: usize) {
        let notes: Vec<(usize, u64)> = self.vms[&vm].reference.obstacles.keys().copied().collect();
        for (level, start) in notes {
            self.drop_note(Who { pe: 0, vm: vm as u8 }, vm, level, start);
        }
    }

    fn drop_note(&mut self, who: Who, vm: usize, level: usize, ipa: u64) {
        let stop = self.vms[&vm].tables.walk(ipa, level).expect("inside the IPA size");
        let state = self.vms.get_mut(&vm).expect("checked");
        let bits = state.reference.obstacles.remove(&(stop.level, stop.start));
        assert_eq!((bits, stop.level), (Some(stop.bits), level), "the note is where it was put");
        assert!(self.write(who, vm, ipa, stop.bits, 0));
    }

    /// The PE's stores are done before it gives the lock back: another may link the table that they are in.
    pub(super) fn complete(&self, who: Who) {
        self.ground.machine.on_pe(who.pe(), || self.ground.machine.dsb(Dsb::IshSt));
    }

    /// A compare-exchange of the protocols that hold the table's lock.
    fn exchange(&self, who: Who, slot: &Slot, old: u64, new: u64) -> bool {
        self.ground.machine.on_pe(who.pe(), || {
            // SAFETY: (1) the lock's holder may make a live slot Busy, an Empty one Dead or a note, a note Empty.
            let result = unsafe { (&self.ground.machine).compare_exchange(slot, old, new) };
            result == Some(Ok(old))
        })
    }

    /// Gives an empty table back, in the order of the design; a table that is not empty stays as it was.
    pub(super) fn unlink(&mut self, who: Who, at: Place, level: usize) {
        let (Some(vm), ipa) = (self.vm(who), self.ipa(at)) else { return };
        let tables = self.vms[&vm].tables;
        let Some(stop) = tables.walk(ipa, level).filter(|stop| stop.level == level) else { return };
        if format::kind(stop.bits, level) != Kind::Table || self.unlinked == UNLINKS {
            return;
        }
        self.unlinked += 1;
        let child = format::TABLE_ADDRESS.of(stop.bits) << 12;
        let page = tables.page(child);
        let first = (ipa / span(level + 1)) as usize % 512;
        self.lock(who, stop.table, true);
        self.lock(who, child, true);
        let frozen = self.beside_rival(who, vm, ipa, |world| world.freeze(who, page, first));
        if frozen < 512 {
            self.clean(who, page, first, frozen);
            self.lock(who, child, false);
            return self.lock(who, stop.table, false);
        }
        let (machine, space) = (self.ground.machine, &self.vms[&vm].space);
        machine.on_pe(who.pe(), || {
            // SAFETY: (1) live, and one thread changes these tables.
            let drained = unsafe { stop.slot.clear(&machine, super::level(level)) }.expect("live");
            let range = IpaRange::new(Ipa::new(stop.start), span(level)).expect("whole pages");
            let flushed = space.tlb().table(range);
            // SAFETY: (1) flushed after the clear, the whole span.
            unsafe { drained.release(&machine, &flushed) };
            let cpu = self.ground.epochs.join(who.pe()).expect("each PE joins once at a time");
            cpu.wait(|| panic!("nobody is inside a guard")).expect("nor is this PE");
        });
        self.clean(who, page, first, 512);
        self.lock(who, child, false);
        self.lock(who, stop.table, false);
        self.ground.machine.on_pe(who.pe(), || self.free(child, 1));
    }

    /// Empty to Dead, slot by slot from `first` on. Returns how many; 512 is all.
    fn freeze(&self, who: Who, page: &Table, first: usize) -> usize {
        let dead = |n: &usize| self.exchange(who, page.slot((first + n) % 512), 0, DEAD);
        (0..512).take_while(dead).count()
    }

    /// Dead to Empty.
    fn clean(&self, who: Who, page: &Table, first: usize, count: usize) {
        self.ground.machine.on_pe(who.pe(), || {
            for n in 0..count {
                // SAFETY: (1) this PE made it Dead. (2) Nothing stands there that a TLB holds.
                unsafe { (&self.ground.machine).store(page.slot((first + n) % 512), 0) };
            }
            self.ground.machine.dsb(Dsb::IshSt);
        });
    }

    fn lock(&self, who: Who, table: u64, take: bool) {
        let event = |pe| if take { Event::Lock { pe, table } } else { Event::Unlock { pe, table } };
        self.ground.machine.on_pe(who.pe(), || self.ground.machine.note(event));
    }
}
