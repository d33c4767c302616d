//! The allocator on the host, whose TLBs are a log. What TLBs hold is judged in `tests/oracle`.

use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use proptest::prelude::*;

use super::loan::Pin;
use super::*;
use crate::Errata;
use crate::arch::Dsb;
use crate::arch::host::{Event, Host};
use crate::features::{Bbm, Caps};
use crate::flush::tests::{Rig, VTTBR};
use crate::tlbi::Tlbi;

const CPUS: usize = 3;

fn vmid(n: u16) -> Vmid {
    Vmid::new(n, 16).unwrap()
}

fn vmids(first: u16, last: u16) -> Vmids<CPUS> {
    Vmids::between(vmid(first), vmid(last))
}

/// The root of VM `n`: roots are what tells VMs apart.
fn root(n: usize) -> Pa {
    Pa::new((n as u64 + 1) << 20)
}

fn enter<'r>(
    (vmids, host): (&Vmids<CPUS>, &'r Host),
    vm: (&'r Loan<'_>, usize),
    cpu: &'r mut Cpu<'_>,
) -> Running<'r, Host> {
    assert!(cpu.is_of(vmids));
    // SAFETY: (1, 2) no guest runs on the host.
    unsafe { vm.0.enter(host, root(vm.1), cpu, 0) }.unwrap()
}

fn flushes_of_all(log: &[Event]) -> usize {
    log.iter().filter(|event| matches!(event, Event::Tlbi(Tlbi::Alle1Is, _))).count()
}

fn machine(bits: u32) -> Features {
    let caps = if bits == 16 { Caps::VMID16 } else { Caps::empty() };
    Features { caps, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() }
}

/// Each of so many VMs runs once; then one more. VMID 0 is no VM's.
#[test]
fn every_vmid_is_lent_once_before_everything_is_flushed() {
    for (bits, count) in [(8, 255), (16, 65535)] {
        let (vmids, host) = (Vmids::<1>::new(&machine(bits)), Host::new());
        let mut cpu = vmids.join(0).unwrap();
        let mut run = |n| {
            let loan = Loan::new(&vmids);
            // SAFETY: (1, 2) no guest runs on the host.
            unsafe { loan.enter(&host, root(n), &mut cpu, 0) }.unwrap().vmid().get()
        };
        let lent: Vec<u16> = (0..count).map(&mut run).collect();
        assert_eq!(lent, (1..=count as u16).collect::<Vec<_>>());
        assert_eq!(flushes_of_all(&host.take_log()), 1, "before the first");
        assert_eq!(run(count), 1);
        assert_eq!(flushes_of_all(&host.take_log()), 1, "when all are lent");
    }
}

#[test]
fn a_vm_that_runs_keeps_its_vmid_and_one_that_does_not_loses_it() {
    let (vmids, host) = (vmids(1, 4), Host::new());
    let [mut a, mut b, mut c] = [0, 1, 2].map(|n| vmids.join(n).unwrap());
    let (kept, lost) = (Loan::new(&vmids), Loan::new(&vmids));
    let running = enter((&vmids, &host), (&kept, 0), &mut a);
    drop(enter((&vmids, &host), (&lost, 1), &mut b));
    assert_eq!((running.vmid(), lost.tag().map(|tag| tag.vmid)), (vmid(1), Some(vmid(2))));
    let others: Vec<u16> = (2..30)
        .map(|n| enter((&vmids, &host), (&Loan::new(&vmids), n), &mut c).vmid().get())
        .collect();
    assert_eq!(others[..8], [3, 4, 2, 3, 4, 2, 3, 4], "1 is never lent: its VM runs");
    // On a CPU that has not run it before, after many generations.
    assert_eq!(enter((&vmids, &host), (&kept, 0), &mut c).vmid(), vmid(1));
    assert_eq!(running.vttbr(), 1 << 48 | root(0).get());
    let again = enter((&vmids, &host), (&lost, 1), &mut b);
    assert_ne!(again.vmid(), vmid(1));
}

/// The CPUs of one VM have pinned tags of different generations, and go one by one.
#[test]
fn a_vm_has_one_vmid_however_many_generations_its_cpus_have_seen() {
    let (vmids, host) = (vmids(1, 3), Host::new());
    let [mut a, mut b, mut c] = [0, 1, 2].map(|n| vmids.join(n).unwrap());
    let vm = Loan::new(&vmids);
    let roll_over = |c: &mut Cpu<'_>| {
        let before = vmids.generation.load(Ordering::Relaxed);
        for n in 1.. {
            drop(enter((&vmids, &host), (&Loan::new(&vmids), n), c));
            if vmids.generation.load(Ordering::Relaxed) > before {
                break;
            }
        }
    };
    let first = enter((&vmids, &host), (&vm, 0), &mut a);
    roll_over(&mut c);
    let second = enter((&vmids, &host), (&vm, 0), &mut b);
    roll_over(&mut c);
    drop(second);
    roll_over(&mut c);
    // CPU 0 has pinned the oldest of its tags; the VM's own is younger.
    let again = enter((&vmids, &host), (&vm, 0), &mut b);
    assert_eq!(again.vmid(), first.vmid());
    drop(first);
    roll_over(&mut c);
    assert_eq!(enter((&vmids, &host), (&vm, 0), &mut a).vmid(), again.vmid());
}

#[test]
fn a_flush_keeps_the_vmid_of_a_vm_that_does_not_run() {
    let (vmids, host) = (vmids(1, 3), Host::new());
    let [mut a, mut b, _] = [0, 1, 2].map(|n| vmids.join(n).unwrap());
    let vm = Loan::new(&vmids);
    drop(enter((&vmids, &host), (&vm, 0), &mut a));
    let pin = vm.pin(&host).unwrap();
    for n in 1..10 {
        let other = enter((&vmids, &host), (&Loan::new(&vmids), n), &mut b).vmid();
        assert_ne!(other, pin.vmid());
    }
    // A second flush, after the roll-over, is of the same VMID.
    assert_eq!(vm.pin(&host).unwrap().vmid(), pin.vmid());
    assert_eq!(enter((&vmids, &host), (&vm, 0), &mut a).vmid(), pin.vmid());
    drop(pin);
    for n in 1..10 {
        drop(enter((&vmids, &host), (&Loan::new(&vmids), n), &mut b));
    }
    assert!(vm.pin(&host).is_none(), "it runs nowhere, and a generation has ended");
}

#[test]
fn a_vm_without_a_vmid_is_flushed_by_a_dsb() {
    let rig = Rig::new();
    rig.another_runs();
    let _ = rig.host.take_log();
    let _ = rig.tlb(Caps::empty()).vm();
    assert_eq!(rig.host.take_log(), [Event::Dsb(Dsb::Ish)]);
    assert_ne!(rig.host.vttbr(), VTTBR);
}

#[test]
fn leaving_ends_the_walks_before_the_vmid_is_given_up() {
    let (vmids, host, elsewhere) = (vmids(1, 1), Host::new(), Host::new());
    let [mut a, mut b, _] = [0, 1, 2].map(|n| vmids.join(n).unwrap());
    let (vm, other) = (Loan::new(&vmids), Loan::new(&vmids));
    let running = enter((&vmids, &host), (&vm, 0), &mut a);
    let _ = host.take_log();
    // SAFETY: (1, 2) no guest runs on the host.
    let refused = unsafe { other.enter(&elsewhere, root(1), &mut b, 0) }.err();
    assert_eq!(refused, Some(EntryError::Exhausted { vmids: 1, cpus: CPUS }));
    drop(running);
    assert_eq!(host.take_log(), [Event::Dsb(Dsb::Ish), Event::SetVttbr(0), Event::Isb]);
    assert_eq!(enter((&vmids, &host), (&other, 1), &mut b).vmid(), vmid(1));
}

#[test]
fn another_vcpu_of_the_vm_finds_the_stage_1_of_this_cpu_empty() {
    let (vmids, host) = (vmids(1, 255), Host::new());
    let mut cpu = vmids.join(0).unwrap();
    let [vm, other] = [Loan::new(&vmids), Loan::new(&vmids)];
    let mut run = |vm: (&Loan<'_>, usize), vcpu| {
        // SAFETY: (1, 2) no guest runs on the host.
        let running = unsafe { vm.0.enter(&host, root(vm.1), &mut cpu, vcpu) }.unwrap();
        let log = host.take_log();
        let own = Event::Tlbi(Tlbi::Vmalle1, running.vttbr());
        let at = log.iter().position(|event| *event == own);
        drop(running);
        let _ = host.take_log();
        at.map(|at| log[at + 1..] == [Event::Dsb(Dsb::Nsh), Event::Isb])
    };
    assert_eq!(run((&vm, 0), 0), Some(true), "nobody knows what was there");
    assert_eq!(run((&vm, 0), 0), None);
    assert_eq!(run((&vm, 0), 1), Some(true));
    assert_eq!(run((&other, 1), 1), Some(true));
    assert_eq!(run((&vm, 0), 1), None, "another VM came in between");
    assert_eq!(run((&vm, 0), 0), Some(true));
}

#[test]
fn places_are_taken_once_and_stay_with_their_allocator() {
    let (vmids, stranger, host) = (vmids(1, 3), Vmids::<1>::only(vmid(9)), Host::new());
    let cpu = vmids.join(2).unwrap();
    assert!(vmids.join(2).is_none() && vmids.join(CPUS).is_none());
    drop(cpu);
    assert!(vmids.join(2).is_some());
    let (vm, mut theirs) = (Loan::new(&vmids), stranger.join(0).unwrap());
    // SAFETY: (1, 2) no guest runs on the host.
    let refused = unsafe { vm.enter(&host, root(0), &mut theirs, 0) };
    assert_eq!(refused.err(), Some(EntryError::ForeignCpu));
    assert_eq!(host.take_log(), []);
}

#[test]
fn vmids_that_the_machine_cannot_tell_apart_are_found() {
    let beyond = |vmids: &Allocator, bits| vmids.beyond(bits).map(Vmid::get);
    assert_eq!(beyond(&vmids(1, 255), 8), None);
    assert_eq!(beyond(&vmids(1, 256), 8), Some(256));
    assert_eq!(beyond(&vmids(1, 65535), 16), None);
    assert_eq!(beyond(&Vmids::<1>::new(&machine(16)), 8), Some(65535));
}

/// What happens next, by number of the CPU and the VM.
#[derive(Clone, Copy, Debug)]
enum Step {
    Enter(usize, usize),
    Leave(usize),
    Pin(usize),
    Unpin(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..CPUS, 0usize..8).prop_map(|(cpu, vm)| Step::Enter(cpu, vm)),
        2 => (0..CPUS).prop_map(Step::Leave),
        2 => (0usize..8).prop_map(Step::Pin),
        1 => (0usize..2).prop_map(Step::Unpin),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Eight VMs, three CPUs and two flushes share six VMIDs: a VM that runs, or is flushed, has one VMID
    /// and no other VM has it; and none is lent that a TLB may know from another VM.
    #[test]
    fn pinned_vmids_belong_to_one_vm_each(steps in prop::collection::vec(step(), 1..120)) {
        let vmids: &Vmids<CPUS> = Box::leak(Box::new(vmids(1, 6)));
        let hosts = [(); CPUS].map(|()| Host::new());
        let loans: Vec<Loan<'_>> = (0..8).map(|_| Loan::new(vmids)).collect();
        let mut cpus = [0, 1, 2].map(|n| Some(vmids.join(n).unwrap()));
        let mut running: [Option<(usize, u16)>; CPUS] = [None; CPUS];
        let mut pins: Vec<(usize, Pin<'_>)> = Vec::new();
        // By VMID: whose entries a TLB may hold.
        let mut cached: BTreeMap<u16, usize> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Enter(cpu, vm) => {
                    running[cpu] = None;
                    let place = cpus[cpu].as_mut().unwrap();
                    // SAFETY: (1, 2) no guest runs on the host.
                    let token = unsafe { loans[vm].enter(&hosts[cpu], root(vm), place, 0) }.unwrap();
                    let id = token.vmid().get();
                    core::mem::forget(token);
                    for event in hosts[cpu].take_log() {
                        match event {
                            Event::Tlbi(Tlbi::Alle1Is, _) => {
                                cached = running.iter().flatten().map(|(vm, id)| (*id, *vm)).collect();
                            }
                            Event::Observe(Observation::Lent { vmid }) => {
                                prop_assert!(!cached.contains_key(&vmid.get()), "{} is cached", vmid.get());
                            }
                            _ => {}
                        }
                    }
                    running[cpu] = Some((vm, id));
                    prop_assert_eq!(*cached.entry(id).or_insert(vm), vm);
                }
                Step::Leave(cpu) => {
                    cpus[cpu].as_mut().unwrap().leave(&hosts[cpu]);
                    running[cpu] = None;
                }
                Step::Pin(vm) if pins.len() < 2 => {
                    let pin = loans[vm].pin(&Host::new());
                    if pin.is_none() {
                        let known = cached.values().any(|cached| *cached == vm);
                        prop_assert!(!known, "VM {} is cached, and its flush does nothing", vm);
                    }
                    pins.extend(pin.map(|pin| (vm, pin)));
                }
                Step::Unpin(n) if n < pins.len() => drop(pins.remove(n)),
                Step::Pin(_) | Step::Unpin(_) => {}
            }
            let flushed = pins.iter().map(|(vm, pin)| (*vm, pin.vmid().get()));
            let pairs: BTreeSet<(usize, u16)> =
                running.iter().flatten().copied().chain(flushed).collect();
            let vms: BTreeSet<usize> = pairs.iter().map(|(vm, _)| *vm).collect();
            let ids: BTreeSet<u16> = pairs.iter().map(|(_, id)| *id).collect();
            prop_assert!(pairs.len() == vms.len() && pairs.len() == ids.len(), "{:?}", pairs);
        }
    }
}
