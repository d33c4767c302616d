//! VMs begin and end.

use std::sync::Arc;

use mmu_oracle::Event;
use stage2::Space;
use stage2::space::NewSpaceError;

use super::take::Released;
use super::{Held, Owed, Vm, World, level};
use crate::program::Who;
use crate::reference::Reference;
use crate::walk::Tables;

impl World<'_> {
    /// A VM begins: its tables are empty.
    pub(super) fn begin(&mut self, pe: usize, vm: usize) {
        let (before, geometry) = (self.ground.store.count(), self.setup.geometry());
        let (root_pages, ipa_bits) = (geometry.root_tables(), geometry.ipa_bits());
        let made = self.ground.machine.on_pe(pe, || {
            Space::new(
                geometry,
                self.ground.vmids,
                self.ground.epochs.domain(),
                self.ground.store,
                self.ground.machine,
            )
        });
        let after = self.ground.store.count();
        match made {
            Ok(space) => {
                assert_eq!(after.tables - before.tables, root_pages);
                let tables = Tables {
                    memory: self.ground.machine,
                    root: space.root().get(),
                    root_pages: root_pages as u64,
                    start: self.start_level(),
                    ipa_bits,
                    machine: self.encoding(),
                };
                assert!(tables.root.is_multiple_of(root_pages as u64 * 4096), "root alignment");
                let (space, reference) = (Arc::new(space), Reference::default());
                let (owed, held) = (Vec::new(), Vec::new());
                self.vms.insert(vm, Vm { space, tables, reference, owed, held });
            }
            Err(NewSpaceError::OutOfTables { pages }) => {
                assert!(after.refused > before.refused && after.tables == before.tables);
                assert_eq!(pages, root_pages);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The VM ends, and another one begins.
    pub(super) fn rebuild(&mut self, who: Who) {
        let Some(vm) = self.vm(who) else { return };
        self.settle_vm(vm);
        self.compare_vm(vm);
        self.end_vm(who.pe(), vm);
        self.begin(who.pe(), vm);
    }

    /// All that was begun is finished: slots in transition are live or Empty again.
    pub(super) fn settle(&mut self) {
        let all: Vec<usize> = self.vms.keys().copied().collect();
        all.into_iter().for_each(|vm| self.settle_vm(vm));
        self.no_verdict(&"all was finished");
    }

    fn settle_vm(&mut self, vm: usize) {
        self.finish_all(vm);
        self.forget_all(vm);
    }

    /// All slots of a VM that are in transition are live or Empty again.
    pub(super) fn finish_all(&mut self, vm: usize) {
        let Some(state) = self.vms.get(&vm) else { return };
        let held = state.held.iter().map(|Held { pe, .. }| *pe);
        let mut pes: Vec<usize> =
            held.chain(state.owed.iter().map(|Owed { pe, .. }| *pe)).collect();
        pes.sort_unstable();
        pes.dedup();
        for pe in pes {
            let who = Who { pe: pe as u8, vm: vm as u8 };
            self.thaw(who);
            self.finish(who, false);
        }
    }

    /// Every VM ends.
    pub(super) fn end(&mut self) {
        let all: Vec<usize> = self.vms.keys().copied().collect();
        all.into_iter().for_each(|vm| self.end_vm(0, vm));
        self.no_verdict(&"every VM has ended");
    }

    /// A VM ends: nobody runs it. Either `destroy` takes it down, or here: all live slots to Drain, one flush of the VM,
    /// all slots Empty, memory back.
    fn end_vm(&mut self, pe: usize, vm: usize) {
        for other in 0..self.running.len() {
            if self.running[other] == Some(vm) {
                self.enter(other, None);
            }
        }
        let Some(ended) = self.vms.remove(&vm) else { return };
        let (machine, store, tables) = (self.ground.machine, self.ground.store, ended.tables);
        let (linked, _) = tables.all();
        // Each table that is given back costs a thousand events.
        if linked.len() < ended.tables.root_pages as usize + 3 {
            return self.destroy(pe, ended);
        }
        machine.on_pe(pe, || {
            let mut drained = Vec::new();
            for (table, at) in &linked {
                for slot in tables.page(*table).slots() {
                    // SAFETY: (1) nobody else changes tables of a VM that ends.
                    drained.extend(unsafe { slot.clear(&machine, level(*at)) });
                }
            }
            let flushed = ended.space.tlb().vm();
            for slot in drained {
                // SAFETY: (1) the whole VM was flushed after the clear.
                unsafe { slot.release(&machine, &flushed) };
            }
            for leaf in ended.reference.leaves.values() {
                let (frame, bytes) = (leaf.frame.get(), leaf.at().slot_bytes());
                machine.note(|pe| Event::FreeFrame { pe, frame, bytes });
                store.give(leaf.frame, leaf.at());
            }
            let roots = tables.root..tables.root + tables.root_pages * 4096;
            for table in linked.keys().filter(|table| !roots.contains(table)) {
                self.free(*table, 1);
            }
            self.free(tables.root, tables.root_pages as usize);
        });
    }

    /// What comes back is what the reference has.
    fn destroy(&self, pe: usize, ended: Vm<'_>) {
        let space = Arc::into_inner(ended.space).expect("nobody else uses the tables");
        self.ground.machine.on_pe(pe, || {
            let cpu = self.ground.epochs.join(pe).expect("each PE joins once at a time");
            let mut back = Released::new(self.ground);
            let alone = || panic!("nobody is inside a guard");
            // SAFETY: (1) every PE has left the VM.
            let done = unsafe { space.destroy(&cpu, alone, &mut back) };
            done.expect("everything can be unmapped");
            back.are(ended.reference.leaves.iter());
        });
    }

    /// Gives table pages back.
    pub(super) fn free(&self, table: u64, pages: usize) {
        use stage2::{Memory, Pa};
        // SAFETY: (1) the caller found them linked, so they were allocated, and has unlinked them. (2) It has flushed,
        // and no guard is open: one thread runs these programs. (3) It has made every slot zero.
        unsafe { self.ground.store.free_table(Pa::new(table), pages) };
    }
}
