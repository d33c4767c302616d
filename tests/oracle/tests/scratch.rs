//! Scratch pages on the oracle's machine: shown under teardown, replaced by memory while PEs use what they had, given back with
//! their tables; and hardware, which has nothing to record in them.

#[expect(dead_code, reason = "others let hardware act while they copy, too")]
mod shaken;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mmu_oracle::walker::Hardware;
use mmu_oracle::{Event, Machine, Model, OracleMachine};
use shaken::Shaken;
use stage2::addr::PAGE_SIZE;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Frames, Notes, Progress, Release, Replaced, Replacements};
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Flushed, Former, Geometry, HwUpdate,
    Install, InstallError, Ipa, IpaRange, Level, MemType, Owner, Pa, Prot, Scratch, Space, Tally,
    Vmid,
};

const PES: usize = 3;
const VMID: u16 = 3;
/// The VM's scratch page.
const SCRATCH: u64 = 0x7000_0000;
/// A hole, with two tables' worth of addresses.
const HOLE: u64 = 0x4000_0000;

type Vm<'m, A> = Space<'m, &'m OracleMachine, A>;

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

fn page(number: u64) -> u64 {
    HOLE + number * PAGE_SIZE
}

/// A machine whose hardware updates both.
fn machine(tables: usize) -> OracleMachine {
    let (hw_access, hw_dirty) = (true, true);
    OracleMachine::new(Machine { pes: PES, hw_access, hw_dirty, ..Machine::default() }, tables)
}

fn geometry(caps: Caps) -> Geometry {
    let caps = caps | Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY;
    let features = Features { caps, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
    Geometry::new(39, &features, HwUpdate::AccessAndDirty).unwrap()
}

fn vmids() -> Vmids<PES> {
    Vmids::only(Vmid::new(VMID, 8).unwrap())
}

/// Every PE runs the guest.
fn enter<A: Arch>(machine: &OracleMachine, vmids: &Vmids<PES>, vm: &Vm<'_, A>) {
    for pe in 0..PES {
        machine.on_pe(pe, || {
            let mut cpu = vmids.join(pe).unwrap();
            // SAFETY: (1, 2) the guest of a PE is who was entered last.
            core::mem::forget(unsafe { vm.enter(&mut cpu, 0) }.unwrap());
        });
    }
}

/// Every PE runs another VM.
fn leave(machine: &OracleMachine) {
    for pe in 0..PES {
        machine.on_pe(pe, || {
            (&machine).dsb(stage2::arch::Dsb::Ish);
            // SAFETY: (1) the value is that of the VM that runs; (2) the DSB above.
            unsafe { (&machine).set_vttbr(9 << 48 | 0x5000_0000) };
            (&machine).isb();
        });
    }
}

fn scratch<A: Arch>(vm: &Vm<'_, A>) -> Scratch {
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables; (3) not kept beyond the space.
    unsafe { vm.scratch(Pa::new(SCRATCH)) }.unwrap()
}

/// A wild access of this PE.
fn reach<A: Arch>(vm: &Vm<'_, A>, cpu: &Cpu<'_>, ipa: u64) -> Result<Install, InstallError> {
    let (scratch, mut tally) = (scratch(vm), Tally::default());
    let done = vm.install_scratch(&cpu.enter(), Ipa::new(ipa), &scratch, &mut tally);
    vm.memory().note(|pe| Event::Published { pe });
    vm.credit(&tally);
    vm.credit_scratch(u64::from(matches!(done, Ok(Install::Installed(_)))));
    done
}

/// Tells the machine of each frame that comes back.
struct Freed<'m>(&'m OracleMachine, Vec<u64>);

impl Release for Freed<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        let (frame, bytes) = (former.pa().get(), former.level().slot_bytes());
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes });
        self.1.push(frame);
    }
}

/// Memory from an address on.
struct Own(u64);

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Replacements for Own {
    fn take(&mut self, _: Ipa) -> Option<Pa> {
        self.0 += PAGE_SIZE;
        Some(Pa::new(self.0))
    }

    fn give_back(&mut self, ipa: Ipa, _: Pa) {
        panic!("nobody takes scratch away at {ipa} but the claim");
    }
}

// SAFETY: (1, 2) as above.
unsafe impl Frames for Own {
    fn take(&mut self) -> Option<Pa> {
        self.0 += PAGE_SIZE;
        Some(Pa::new(self.0))
    }

    fn give_back(&mut self, _: Pa) {
        self.0 -= PAGE_SIZE;
    }
}

fn replace<A: Arch>(vm: &Vm<'_, A>, cpu: &Cpu<'_>, at: IpaRange, own: &mut Own) -> Replaced {
    let ram = Attributes::new(Prot::RWX, MemType::Normal);
    let mapping = vm.mapping(Level::L3, &ram, Owner::Vm).unwrap();
    let mut claim = vm.claim(at).unwrap();
    let (all, scratch) = (Batch::all_of(&claim), scratch(vm));
    let relax = std::thread::yield_now;
    let done = vm.replace_scratch(cpu, &mut claim, all, &scratch, &mapping, own, relax).unwrap();
    vm.memory().note(|pe| Event::Published { pe });
    done
}

fn unmap<A: Arch>(vm: &Vm<'_, A>, cpu: &Cpu<'_>, at: IpaRange, freed: &mut Freed<'_>) {
    let mut claim = vm.claim(at).unwrap();
    let (all, relax) = (Batch::all_of(&claim), std::thread::yield_now);
    let done = vm.unmap(cpu, &mut claim, all, Notes::Keep, relax, freed);
    assert_eq!(done, Ok(Progress::Done));
}

fn remove<A: Arch>(vm: &Vm<'_, A>, cpu: &Cpu<'_>, at: IpaRange, freed: &mut Freed<'_>) {
    let mut claim = vm.claim(at).unwrap();
    let (all, relax) = (Batch::all_of(&claim), std::thread::yield_now);
    let done = vm.remove_scratch(cpu, &mut claim, all, &scratch(vm), relax, freed);
    assert_eq!(done, Ok(Progress::Done));
}

/// Shown, replaced, shown again elsewhere, removed, given back with its table; and the page serves somebody else in the end.
#[test]
fn a_life_with_scratch_is_sound_on_every_machine() {
    for caps in [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE, Caps::TLBI_RANGE | Caps::TTL] {
        let machine = machine(16);
        let (epochs, vmids) = (Epochs::<PES>::new(), vmids());
        let vm = Space::new(geometry(caps), &vmids, epochs.domain(), &machine, &machine).unwrap();
        enter(&machine, &vmids, &vm);
        let cpu = epochs.join(0).unwrap();
        let (mut own, mut freed) = (Own(0x8000_0000), Freed(&machine, Vec::new()));
        let all = range(HOLE, 4 << 20);
        for number in [0, 1, 7, 511, 512, 1023] {
            reach(&vm, &cpu, page(number)).unwrap();
        }
        let some = replace(&vm, &cpu, range(HOLE, 8 * PAGE_SIZE), &mut own);
        assert_eq!(some, Replaced { progress: Progress::Done, replaced: 3, occupied: 0 });
        unmap(&vm, &cpu, range(HOLE, 2 * PAGE_SIZE), &mut freed);
        reach(&vm, &cpu, page(0)).unwrap();
        remove(&vm, &cpu, all, &mut freed);
        assert_eq!(freed.1.len(), 2, "of the removal nobody hears");
        reach(&vm, &cpu, page(1)).unwrap();
        reach(&vm, &cpu, page(600)).unwrap();
        unmap(&vm, &cpu, all, &mut freed);
        reach(&vm, &cpu, page(600)).unwrap();
        leave(&machine);
        // SAFETY: (1) every PE was given another value.
        let account = unsafe { vm.destroy(&cpu, || {}, &mut freed) }.unwrap();
        machine.note(|pe| Event::ReuseVmid { pe, vmid: VMID });
        // Now, and not a moment before.
        machine.note(|pe| Event::FreeFrame { pe, frame: SCRATCH, bytes: PAGE_SIZE });
        assert!(machine.verdicts().is_empty(), "{caps:?}: {}", machine.verdicts()[0]);
        assert_eq!(freed.1, [0x8000_1000, 0x8000_2000, 0x8000_3000], "each frame, and no other");
        assert_eq!((account.leaves_now(), account.tables_now()), (0, 0));
        assert_eq!((account.scratched, account.others_unmapped), (10, 10));
    }
}

/// Two PEs populate and reach for holes while a third takes everything away, again and again.
#[test]
fn scratch_is_shown_under_teardown_and_nothing_is_lost() {
    const ROUNDS: usize = 40;
    let machine = machine(256);
    let (epochs, vmids) = (Epochs::<PES>::new(), vmids());
    let caps = Caps::TLBI_RANGE | Caps::TTL;
    let vm = Space::new(geometry(caps), &vmids, epochs.domain(), &machine, &machine).unwrap();
    enter(&machine, &vmids, &vm);
    let (stop, whole) = (AtomicBool::new(false), range(0, 1 << 39));
    // What the PEs have put there so far: frames, and the scratch page.
    let (memory, holes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let ram = Attributes::new(Prot::RWX, MemType::Normal);
    let mapping = vm.mapping(Level::L3, &ram, Owner::Vm).unwrap();
    let guest = |pe: usize| {
        machine.on_pe(pe, || {
            let cpu = epochs.join(pe).unwrap();
            let (mut frames, mut tally) = (Own((pe as u64) << 36), Tally::default());
            let (mut installed, mut shown, scratch) = (Vec::new(), 0, scratch(&vm));
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let number = (n * 7 + pe as u64) % 24;
                let ipa = Ipa::new((number % 3) << 21 | (number / 3) << 12);
                let guard = cpu.enter();
                // The same page is now a hole and now memory.
                let done = if n % 3 == 0 {
                    vm.install(&guard, ipa, &mapping, &mut frames, &mut tally)
                } else {
                    vm.install_scratch(&guard, ipa, &scratch, &mut tally)
                };
                drop(guard);
                match done {
                    Ok(Install::Installed(pa)) if pa.get() != SCRATCH => {
                        installed.push(pa.get());
                        memory.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(Install::Installed(_)) => {
                        shown += 1;
                        holes.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(_) | Err(InstallError::Retry { .. }) => std::thread::yield_now(),
                    Err(other) => panic!("{other}"),
                }
            }
            vm.credit(&tally);
            vm.credit_scratch(shown);
            installed
        })
    };
    let (mut installed, mut freed) = std::thread::scope(|scope| {
        let threads = [1, 2].map(|pe| scope.spawn(move || guest(pe)));
        let cpu = epochs.join(0).unwrap();
        let mut freed = Freed(&machine, Vec::new());
        let idle = || [&memory, &holes].iter().any(|count| count.load(Ordering::Relaxed) == 0);
        for round in 0.. {
            // Threads may start late; one that has ended has panicked.
            if round >= ROUNDS && (!idle() || threads.iter().any(|thread| thread.is_finished())) {
                break;
            }
            match round % 3 {
                0 => unmap(&vm, &cpu, whole, &mut freed),
                _ => remove(&vm, &cpu, whole, &mut freed),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let results = threads.map(|thread| thread.join().unwrap());
        unmap(&vm, &cpu, whole, &mut freed);
        (results.concat(), freed.1)
    });
    assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
    installed.sort_unstable();
    freed.sort_unstable();
    assert_eq!(installed, freed, "each frame came back exactly once, and scratch never");
    let account = vm.account();
    assert!(!installed.is_empty() && account.scratched > 0, "both were there");
    assert_eq!((account.leaves_now(), account.tables_now()), (0, 0));
    assert_eq!(account.scratched, account.others_unmapped, "each scratch leaf was taken away");
}

/// Memory comes in the place of scratch while hardware of two PEs uses what is there, and what it had.
#[test]
fn memory_replaces_scratch_under_hardware_updates() {
    let mut walks = 0;
    for (caps, seed) in [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE]
        .into_iter()
        .flat_map(|c| [1, 2, 3].map(|s| (c, s)))
    {
        let machine = machine(16);
        let touched = [page(0), page(1), page(5), page(511), page(512)];
        let hardware = Mutex::new(Hardware::new(&machine, seed, &[1, 2], &touched));
        let (epochs, vmids, arch) = (Epochs::<PES>::new(), vmids(), Shaken(&machine, &hardware));
        let vm = Space::new(geometry(caps), &vmids, epochs.domain(), &machine, arch).unwrap();
        enter(&machine, &vmids, &vm);
        let cpu = epochs.join(0).unwrap();
        let (mut own, mut freed) = (Own(0x8000_0000), Freed(&machine, Vec::new()));
        for round in 0..4 {
            touched.iter().for_each(|ipa| assert!(reach(&vm, &cpu, *ipa).is_ok()));
            let at = range(HOLE, 513 * PAGE_SIZE);
            assert_eq!(replace(&vm, &cpu, at, &mut own).replaced, 5, "round {round}");
            unmap(&vm, &cpu, at, &mut freed);
        }
        assert_eq!(freed.1.len(), 20);
        let mut hardware = hardware.lock().unwrap();
        hardware.stop();
        walks += hardware.counts().done;
        drop(hardware);
        let verdicts = machine.verdicts();
        assert!(verdicts.is_empty(), "{caps:?}, seed {seed}: {}", verdicts[0]);
    }
    assert!(walks > 100, "hardware was at work: {walks}");
}

/// Hardware updates the access flag and the dirty state of leaves; a scratch leaf has both, for good.
#[test]
fn hardware_has_nothing_to_record_in_scratch() {
    for seed in 1..=8 {
        let machine = machine(16);
        let touched = [page(0), page(1), page(2), page(600)];
        let mut hardware = Hardware::new(&machine, seed, &[1, 2], &touched);
        let (epochs, vmids) = (Epochs::<PES>::new(), vmids());
        let vm = Space::new(geometry(Caps::empty()), &vmids, epochs.domain(), &machine, &machine);
        let vm = vm.unwrap();
        enter(&machine, &vmids, &vm);
        let cpu = epochs.join(0).unwrap();
        touched.iter().for_each(|ipa| assert!(reach(&vm, &cpu, *ipa).is_ok()));
        (0..200).for_each(|_| hardware.act());
        hardware.stop();
        assert!(hardware.counts().done > 20, "{:?}", hardware.counts());
        let updated = |event: &Event| matches!(event, Event::HwUpdate { .. });
        assert!(!machine.trace().iter().any(updated), "hardware recorded something in scratch");
        let guard = cpu.enter();
        for ipa in touched {
            let held = vm.lookup(&guard, Ipa::new(ipa)).unwrap().descriptor;
            assert_eq!(held, scratch(&vm).descriptor(), "hardware changed scratch");
        }
        assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
    }
}

/// Each step of a replacement's flush is needed: without it some defect shows.
#[test]
fn each_step_of_a_replacement_is_needed() {
    let machine = machine(16);
    let (epochs, vmids) = (Epochs::<PES>::new(), vmids());
    let vm = Space::new(geometry(Caps::TTL), &vmids, epochs.domain(), &machine, &machine).unwrap();
    enter(&machine, &vmids, &vm);
    let cpu = epochs.join(0).unwrap();
    [0, 1].into_iter().for_each(|number| assert!(reach(&vm, &cpu, page(number)).is_ok()));
    let from = machine.trace().len();
    let mut own = Own(0x8000_0000);
    assert_eq!(replace(&vm, &cpu, range(HOLE, 2 * PAGE_SIZE), &mut own).replaced, 2);
    machine.finish();
    assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
    let trace = machine.trace();
    let (mut model, mut needed) = (Model::new(machine.setup()), 0);
    for (at, event) in trace.iter().enumerate() {
        let step = matches!(event, Event::Tlbi { pe: 0, .. } | Event::Dsb { pe: 0, .. });
        if step && at > from {
            let mut without = model.clone();
            let shows = |event| {
                without.apply(event);
                !without.verdicts().is_empty()
            };
            assert!(trace[at + 1..].iter().any(shows), "event {at} is not needed: {event:?}");
            needed += 1;
        }
        model.apply(event);
    }
    assert!(needed >= 6, "{needed}");
}
