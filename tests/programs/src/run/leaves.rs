//! Leaves go away, are replaced, and are allowed more.

use mmu_oracle::Event;
use stage2::arch::Dsb;
use stage2::tlbi::LeafLevel;
use stage2::{Arch, Attributes, Descriptor, Encoding, Ipa, IpaRange, Write, flush};

use super::{Owed, World, level};
use crate::program::{Flush, Kind, Place, Who};
use crate::reference::{Expected, Leaf};
use crate::walk::{Stop, span};

/// The hint for leaves of these levels, if they are of one.
fn hint(mut levels: impl Iterator<Item = usize>, wanted: bool) -> LeafLevel {
    match levels.next() {
        Some(first) if wanted && levels.all(|level| level == first) => {
            [LeafLevel::Unknown, LeafLevel::L1, LeafLevel::L2, LeafLevel::L3][first]
        }
        _ => LeafLevel::Unknown,
    }
}

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).expect("whole pages")
}

impl<'m> World<'m> {
    /// The live leaf at an address, as reference and tables have it.
    fn live(&self, vm: usize, ipa: u64) -> Option<(Stop<'m>, Leaf)> {
        let state = &self.vms[&vm];
        let Expected::Leaf(_, leaf) = state.reference.expected(ipa, self.start_level()) else {
            return None;
        };
        let (stop, _) = state.tables.translate(ipa)?;
        Some((stop, leaf))
    }

    /// Live to Drain. The PE that does it owes the flush.
    pub(super) fn clear(&mut self, who: Who, at: Place) {
        let Some(vm) = self.vm(who) else { return };
        if self.clear_at(who.pe(), vm, self.ipa(at)) {
            // Until it is finished another PE may flush the same addresses, and go on as if this were done.
            let machine = self.ground.machine;
            machine.on_pe(who.pe(), || machine.dsb(Dsb::IshSt));
        }
    }

    fn clear_at(&mut self, pe: usize, vm: usize, ipa: u64) -> bool {
        let Some((stop, leaf)) = self.live(vm, ipa) else { return false };
        let machine = self.ground.machine;
        // SAFETY: (1) live, and one thread changes these tables.
        let clear = || unsafe { stop.slot.clear(&machine, level(stop.level)) };
        let drained = machine.on_pe(pe, clear).expect("it is live");
        assert_eq!(drained.old().bits(), stop.bits, "the last word is what stood there");
        let state = self.vms.get_mut(&vm).expect("checked");
        state.reference.leaves.remove(&stop.start);
        let bits = stop.slot.load(&machine).bits();
        state.reference.obstacles.insert((stop.level, stop.start), bits);
        state.owed.push(Owed { pe, start: stop.start, leaf, slot: stop.address(), drained });
        true
    }

    /// The PE flushes what it cleared, once, and makes the slots Empty.
    pub(super) fn finish(&mut self, who: Who, hinted: bool) {
        let (Some(vm), pe) = (self.vm(who), who.pe()) else { return };
        let machine = self.ground.machine;
        let state = self.vms.get_mut(&vm).expect("checked");
        let owed: Vec<Owed<'m>> = state.owed.extract_if(.., |owed| owed.pe == pe).collect();
        let Some(start) = owed.iter().map(|owed| owed.start).min() else { return };
        let end = owed.iter().map(|owed| owed.start + span(owed.leaf.level)).max().unwrap_or(start);
        let hint = hint(owed.iter().map(|owed| owed.leaf.level), hinted);
        let flushed =
            machine.on_pe(pe, || state.space.tlb().reduce(range(start, end - start), hint));
        for Owed { start, leaf, slot, drained, .. } in owed {
            // What the clear returned is the last word on the dirty state.
            machine.on_pe(pe, || machine.note(|pe| Event::Harvested { pe, slot, count: 1 }));
            // SAFETY: (1) this PE flushed a range that holds it, after the clear.
            machine.on_pe(pe, || unsafe { drained.release(&machine, &flushed) });
            state.reference.obstacles.remove(&(leaf.level, start));
            give_back(self.ground.store, machine, pe, &leaf);
        }
        self.complete(who);
    }

    /// Takes away every leaf in a range, with one flush.
    pub(super) fn unmap(&mut self, who: Who, at: Place, pages: u8, hinted: bool) {
        let Some(vm) = self.vm(who) else { return };
        let from = self.ipa(at);
        let end = from + (1 + u64::from(pages)) * 4096;
        let state = &self.vms[&vm];
        let first = state.reference.leaf(from).map(|(start, _)| start);
        let inside = state.reference.leaves.range(from..end).map(|(start, _)| *start);
        let all: Vec<u64> = first.into_iter().chain(inside).collect();
        for start in all {
            self.clear_at(who.pe(), vm, start);
        }
        self.finish(who, hinted);
    }

    /// Another frame behind an address: Drain, flush, live again.
    pub(super) fn replace(&mut self, who: Who, at: Place, kind: Kind, hinted: bool) {
        let (Some(vm), pe) = (self.vm(who), who.pe()) else { return };
        if !self.clear_at(pe, vm, self.ipa(at)) {
            return;
        }
        let (machine, store, encoding) = (self.ground.machine, self.ground.store, self.encode());
        let state = self.vms.get_mut(&vm).expect("checked");
        let Some(Owed { start, leaf, drained, .. }) = state.owed.pop() else { return };
        let hint = hint([leaf.level].into_iter(), hinted);
        let span = range(start, span(leaf.level));
        let flushed = machine.on_pe(pe, || state.space.tlb().reduce(span, hint));
        state.reference.obstacles.remove(&(leaf.level, start));
        let Some(frame) = store.take(leaf.at()) else {
            // SAFETY: (1) flushed above.
            machine.on_pe(pe, || unsafe { drained.release(&machine, &flushed) });
            return give_back(store, machine, pe, &leaf);
        };
        let (attributes, owner) = (kind.attributes(), kind.owner());
        let new = Descriptor::leaf(level(leaf.level), frame, &attributes, encoding, owner);
        let new = new.expect("a frame for this level");
        // SAFETY: (1) flushed above; (2) the frame is fresh.
        machine.on_pe(pe, || unsafe { drained.replace(&machine, &flushed, new) });
        machine.on_pe(pe, || machine.note(|pe| Event::Published { pe }));
        give_back(store, machine, pe, &leaf);
        state.reference.add(start, Leaf { frame, attributes, owner, ..leaf });
    }

    /// Allows stores where they were not, by one compare-exchange and a local flush.
    pub(super) fn relax(&mut self, who: Who, at: Place, hinted: bool) {
        let Some(vm) = self.vm(who) else { return };
        let ipa = self.ipa(at);
        let Some((stop, leaf)) = self.live(vm, ipa) else { return };
        let attributes = match leaf.attributes.write {
            Write::Denied => Attributes { write: Write::Allowed, ..leaf.attributes },
            _ => return,
        };
        let new =
            Descriptor::leaf(level(leaf.level), leaf.frame, &attributes, self.encode(), leaf.owner);
        let new = new.expect("it was one before").bits();
        let hint = hint([leaf.level].into_iter(), hinted);
        self.beside_rival(who, vm, ipa, |world| {
            world.ground.machine.on_pe(who.pe(), || {
                // SAFETY: (1) a live leaf may become one that allows more, from the exact value.
                let result =
                    unsafe { (&world.ground.machine).compare_exchange(stop.slot, stop.bits, new) };
                assert_eq!(result, Some(Ok(stop.bits)), "an install changes no live leaf");
                world.vms[&vm].space.tlb().relax_local(Ipa::new(ipa), hint);
            });
        });
        let state = self.vms.get_mut(&vm).expect("checked");
        state.reference.leaves.insert(stop.start, Leaf { attributes, ..leaf });
    }

    /// A flush for its own sake.
    pub(super) fn flush(&mut self, who: Who, at: Place, what: Flush) {
        let Some(vm) = self.vm(who) else { return };
        let ipa = self.ipa(at) & !0xfff;
        let space = &self.vms[&vm].space;
        self.ground.machine.on_pe(who.pe(), || match what {
            Flush::Vm => space.tlb().vm(),
            Flush::Pages(pages) => {
                let range = range(ipa, (1 + u64::from(pages)) * 4096);
                space.tlb().reduce(range, LeafLevel::Unknown)
            }
            Flush::Table => space.tlb().table(range(ipa & !0x1f_ffff, 0x20_0000)),
            Flush::All => flush::all(&self.ground.machine),
        });
    }

    fn encode(&self) -> Encoding {
        Encoding::of(&self.setup.features())
    }
}

/// The frame behind a leaf goes back, now that nobody reaches it.
fn give_back(
    store: &crate::memory::Store<'_>,
    machine: &mmu_oracle::OracleMachine,
    pe: usize,
    leaf: &Leaf,
) {
    let (frame, bytes) = (leaf.frame.get(), leaf.at().slot_bytes());
    machine.on_pe(pe, || machine.note(|pe| Event::FreeFrame { pe, frame, bytes }));
    store.give(leaf.frame, leaf.at());
}
