//! Random programs of all operations on ranges, each judged by what was there before it.
//!
//! No reference implementation: an operation says what it did (what it released, removed, where it stopped), and
//! everything else must be as it was. After each one nothing may be left in transition and no table may be
//! lost, also when it was refused or ran out of tables in the middle.

use super::map::extent;
use super::scratch::scratch;
use super::unmap::{Released, range};
use super::*;
use crate::descriptor::Former;
use crate::flush::Flushed;
use crate::space::{
    Batch, Blocks, Collapse, Contiguous, ContiguousError, CopyCollapse, MapError, Notes, Progress,
    Release, ReplaceError, Replacements, SplitError, UnmapError,
};

mod memory;
mod program;
use memory::{Given, Moved};
use program::{How, Op, WINDOW, ops};

/// A slot that is not Empty: what it holds and its bytes, by its address.
type Picture = BTreeMap<u64, (Held, u64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Leaf(u64),
    Note(u64),
    Scratch,
}

struct Rig<'t> {
    space: Space<'t, &'t Pages, Host>,
    cpu: crate::epoch::Cpu<'t>,
    base: u64,
}

impl Rig<'_> {
    fn picture(&self) -> Picture {
        let guard = self.cpu.enter();
        let all = range(0, 1 << self.space.geometry.ipa_bits());
        let mut runs: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
        let slots = self.space.visit(&guard, all).map(|(ipa, lookup)| {
            let held = match lookup.view() {
                View::Leaf(leaf) if scratch(&self.space).is_behind(&leaf) => Held::Scratch,
                View::Leaf(leaf) => {
                    if leaf.is_contiguous() {
                        let (ipa, bytes) = (ipa.get(), lookup.level.slot_bytes());
                        let (of, behind) = (ipa / (16 * bytes), ipa % (16 * bytes));
                        runs.entry((of, bytes)).or_default().push(leaf.pa().get() - behind);
                    }
                    Held::Leaf(leaf.pa().get())
                }
                View::Note(note) => Held::Note(note.get()),
                other => panic!("left in transition: {ipa} {other:?}"),
            };
            (ipa.get(), (held, lookup.level.slot_bytes()))
        });
        let picture = slots.collect();
        for (of, members) in runs {
            assert_eq!(members, [members[0]; 16], "a run of other than 16 in a row: {of:x?}");
        }
        picture
    }

    /// Members of runs, by address.
    fn members(&self) -> std::collections::BTreeSet<u64> {
        let guard = self.cpu.enter();
        let all = range(0, 1 << self.space.geometry.ipa_bits());
        let member = |lookup: &crate::space::Lookup| matches!(lookup.view(), View::Leaf(leaf) if leaf.is_contiguous());
        let slots = self.space.visit(&guard, all).filter(|(_, lookup)| member(lookup));
        slots.map(|(ipa, _)| ipa.get()).collect()
    }

    fn at(&self, first: u64, count: u64) -> IpaRange {
        range(self.base + (first << 12), count << 12)
    }

    /// Runs batches until the end or an error; `done` hears of each batch that was done.
    fn batches<E>(
        &self,
        at: IpaRange,
        how: &How,
        mut batch: impl FnMut(&mut crate::Claim<'_>, Batch) -> Result<Progress, E>,
        mut done: impl FnMut(u64, u64),
    ) -> Result<(), E> {
        let mut claim = self.space.claim(at).unwrap();
        let mut from = Ipa::new(at.start().get() + (how.skipped.min(at.pages() - 1) << 12));
        loop {
            let progress = batch(&mut claim, Batch { from, slots: how.slots })?;
            assert!(self.cpu.is_quiescent());
            let next = match progress {
                Progress::Done => at.end(),
                Progress::Until(next) => next,
            };
            assert!(from < next && next <= at.end(), "a batch makes progress");
            done(from.get(), next.get());
            if progress == Progress::Done {
                return Ok(());
            }
            from = next;
        }
    }

    fn install(&self, page: u64, block: bool, before: &mut Picture) {
        let level = if block { Level::L2 } else { PAGE };
        let ipa = Ipa::new(self.base + (page << 12)).align_down(level.slot_bytes());
        let (mut frames, mut tally) = (Counted::new(7 << 40, 1 << 30, 1), Tally::default());
        let mapping = at(&self.space, level);
        let result = self.space.install(&self.cpu.enter(), ipa, &mapping, &mut frames, &mut tally);
        match result {
            Ok(Install::Installed(pa)) => {
                before.insert(ipa.get(), (Held::Leaf(pa.get()), level.slot_bytes()));
            }
            Ok(Install::Present(_)) => {}
            Err(
                InstallError::OutOfTables
                | InstallError::Note { .. }
                | InstallError::Occupied { .. },
            ) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn reach(&self, page: u64, before: &mut Picture) {
        let ipa = Ipa::new(self.base + (page << 12));
        let (scratch, mut tally) = (scratch(&self.space), Tally::default());
        match self.space.install_scratch(&self.cpu.enter(), ipa, &scratch, &mut tally) {
            Ok(Install::Installed(_)) => {
                let was = before.insert(ipa.get(), (Held::Scratch, 4096));
                assert_eq!(was, None, "{ipa} was no hole");
            }
            Ok(Install::Present(_))
            | Err(InstallError::OutOfTables | InstallError::Note { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// What a batch that was done has filled, page by page, replaces what is expected there.
    fn filled(expected: &mut BTreeMap<u64, Held>, from: u64, to: u64, held: impl Fn(u64) -> Held) {
        for page in (from..to).step_by(4096) {
            assert_eq!(expected.insert(page, held(page)), None, "{page:#x} was there before");
        }
    }

    fn run(&self, op: &Op, how: &How) {
        let mut before = self.picture();
        self.space.memory.budget.store(how.tables, Ordering::Relaxed);
        match *op {
            Op::Install { page, block } => {
                self.install(page, block, &mut before);
                assert_eq!(self.picture(), before);
            }
            Op::Reach { page } => {
                self.reach(page, &mut before);
                assert_eq!(self.picture(), before);
            }
            Op::RemoveScratch { first, count } => {
                let at = self.at(first, count);
                let mut released = Released::default();
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        let (scratch, nobody) = (scratch(&self.space), || panic!("nobody"));
                        let Self { space, cpu, .. } = self;
                        space.remove_scratch(cpu, claim, batch, &scratch, nobody, &mut released)
                    },
                    |_, _| {},
                );
                assert_eq!((result, released.0.len()), (Ok(()), 0));
                let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
                let gone = |ipa: &u64| (from..at.end().get()).contains(ipa);
                before.retain(|ipa, (held, _)| *held != Held::Scratch || !gone(ipa));
                assert_eq!(self.picture(), before);
            }
            Op::ReplaceScratch { first, count, pages } => {
                let at = self.at(first, count);
                let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
                let mut given = Given { left: pages, back: 0 };
                let (mut until, mut replaced) = (from, 0);
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        let (shown, nobody) = (scratch(&self.space), || panic!("nobody"));
                        let (Self { space, cpu, .. }, page) = (self, super::at(&self.space, PAGE));
                        let done = space.replace_scratch(
                            cpu, claim, batch, &shown, &page, &mut given, nobody,
                        )?;
                        replaced += done.replaced;
                        Ok(done.progress)
                    },
                    |_, next| until = next,
                );
                match result {
                    Ok(()) => {}
                    Err(ReplaceError::OutOfFrames { ipa }) => {
                        assert_eq!((ipa.get(), given.left), (until, 0));
                        assert_eq!(before[&until].0, Held::Scratch);
                    }
                    Err(other) => panic!("{other}"),
                }
                for (ipa, (held, _)) in before.range_mut(from..until) {
                    if *held == Held::Scratch {
                        *held = Held::Leaf(Given::at(*ipa));
                        replaced -= 1;
                    }
                }
                assert_eq!((replaced, given.back), (0, 0));
                assert_eq!(self.picture(), before);
            }
            Op::Map { first, count, to, coarsest } => {
                let at = self.at(first, count);
                let coarsest = [Level::L1, Level::L2, PAGE][coarsest];
                // Congruent, off by a page, or of the same alignment as a block of 2 MiB.
                let pa = at.start().get() % (1 << 30)
                    + [1 << 44, (1 << 44) + 4096, (1 << 44) + (6 << 20)][to as usize];
                let mut expected = pages_of(&before);
                let result = self.batches(
                    at,
                    how,
                    // SAFETY: (1, 2) no guest runs on the host.
                    |claim, batch| unsafe {
                        self.space.map(&self.cpu, claim, batch, &extent(pa, coarsest))
                    },
                    |from, next| {
                        let to = |page| Held::Leaf(pa + (page - at.start().get()));
                        Self::filled(&mut expected, from, next, to);
                    },
                );
                judge(result, &before, at, how);
                assert_eq!(pages_of(&self.picture()), expected);
            }
            Op::Annotate { first, count, payload } => {
                let at = self.at(first, count);
                let note = Note::new(payload).unwrap();
                let mut expected = pages_of(&before);
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| self.space.annotate(&self.cpu, claim, batch, note),
                    |from, next| {
                        Self::filled(&mut expected, from, next, |_| Held::Note(payload));
                    },
                );
                judge(result, &before, at, how);
                assert_eq!(pages_of(&self.picture()), expected);
            }
            Op::Unmap { first, count, notes } => {
                let at = self.at(first, count);
                let (mut released, mut until) = (Released::default(), at.start().get());
                let kept = if notes { Notes::Remove } else { Notes::Keep };
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        let nobody = || panic!("nobody to wait for");
                        self.space.unmap(&self.cpu, claim, batch, kept, nobody, &mut released)
                    },
                    |_, next| until = next,
                );
                let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
                for (ipa, (pa, bytes)) in &released.0 {
                    assert_eq!(before.remove(ipa), Some((Held::Leaf(*pa), *bytes)));
                    assert!(from <= *ipa && ipa + bytes <= at.end().get(), "not asked for");
                }
                let after = self.picture();
                if let Err(error) = &result {
                    let cut = match error {
                        UnmapError::Straddles { ipa, .. } => *ipa,
                        UnmapError::CutsRun { ipa, level } => {
                            assert!(self.members().contains(&ipa.get()), "{error}");
                            let end = ipa.get() + 16 * level.slot_bytes();
                            let from = from.max(until);
                            assert!(ipa.get() < from || end > at.end().get(), "{error}");
                            *ipa
                        }
                        _ => panic!("{error}"),
                    };
                    assert!(cut < at.end(), "{error}");
                    until = until.max(from);
                }
                for (ipa, (held, bytes)) in &before {
                    let inside = from <= *ipa && ipa + bytes <= at.end().get();
                    let gone = after.get(ipa) != Some(&(*held, *bytes));
                    match held {
                        Held::Leaf(_) => assert!(!gone, "{ipa:#x}: gone and not released"),
                        Held::Note(_) => assert!(!gone || notes && inside, "{ipa:#x}"),
                        Held::Scratch => assert!(!gone || inside, "{ipa:#x}"),
                    }
                    let met = from <= *ipa && ipa + bytes <= until;
                    let stays = matches!(held, Held::Note(_)) && !notes;
                    assert!(!met || gone || stays, "{ipa:#x}: stayed");
                }
                assert!(after.keys().all(|ipa| before.contains_key(ipa)), "nothing new");
            }
            Op::Deannotate { first, count } => {
                let at = self.at(first, count);
                let mut until = at.start().get();
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        self.space.deannotate(&self.cpu, claim, batch, |ipa, bytes, note| {
                            let was = before.remove(&ipa.get());
                            assert_eq!(was, Some((Held::Note(note.get()), bytes)));
                            assert!(at.start() <= ipa && ipa.get() + bytes <= at.end().get());
                        })
                    },
                    |_, next| until = next,
                );
                assert!(matches!(result, Ok(()) | Err(UnmapError::Straddles { .. })), "{result:?}");
                let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
                for (ipa, (held, bytes)) in &before {
                    let met = from <= *ipa && ipa + bytes <= until;
                    assert!(!met || !matches!(held, Held::Note(_)), "{ipa:#x}: stayed");
                }
                assert_eq!(self.picture(), before);
            }
            Op::Split { first, count } => {
                let (at, members) = (self.at(first, count), self.members());
                let mut until = at.start().get();
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| self.space.split(&self.cpu, claim, batch, PAGE),
                    |_, next| until = next,
                );
                match result {
                    Ok(()) => {}
                    Err(SplitError::OutOfTables { .. }) => assert!(how.tables < 4),
                    Err(SplitError::Contiguous { ipa }) => assert!(members.contains(&ipa.get())),
                    Err(SplitError::Straddles { ipa, .. }) => {
                        let end = ipa.get() + before[&ipa.get()].1;
                        assert!(ipa < at.start() || end > at.end().get(), "{ipa} is inside");
                    }
                    Err(other) => panic!("{other}"),
                }
                let after = self.picture();
                assert_eq!(pages_of(&after), pages_of(&before));
                let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
                for (ipa, (held, bytes)) in after.range(from..until.max(from)) {
                    assert!(matches!(held, Held::Note(_)) || *bytes == 4096, "{ipa:#x} is a block");
                }
                for (ipa, slot) in before.iter().filter(|(ipa, _)| !at.contains(Ipa::new(**ipa))) {
                    assert_eq!(after.get(ipa), Some(slot), "outside the claim");
                }
                assert_eq!(self.members(), members);
            }
            Op::Collapse { first, count } => {
                let (at, mut members) = (self.at(first, count), self.members());
                let mut told = Vec::new();
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        let (nobody, block) = (|| panic!("nobody to wait for"), Level::L2);
                        let heard = &mut |ipa: Ipa, what| told.push((ipa.get(), what));
                        self.space.collapse(&self.cpu, claim, batch, block, nobody, heard)
                    },
                    |_, _| {},
                );
                assert_eq!(result, Ok(()));
                told.retain(|(_, what)| *what == Collapse::Made);
                let wholes = wholes(&before, at, how, 4096, 512);
                assert_eq!(told.iter().map(|(ipa, _)| *ipa).collect::<Vec<_>>(), wholes);
                for ipa in wholes {
                    let pa = before[&ipa].0;
                    before.retain(|at, _| !(ipa..ipa + (2 << 20)).contains(at));
                    before.insert(ipa, (pa, 2 << 20));
                    members.retain(|member| !(ipa..ipa + (2 << 20)).contains(member));
                }
                assert_eq!((self.picture(), self.members()), (before, members));
            }
            Op::MakeContiguous { first, count, blocks } => {
                let (at, mut members) = (self.at(first, count), self.members());
                let level = if blocks { Level::L2 } else { PAGE };
                let mut told = Vec::new();
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        let heard = &mut |ipa: Ipa, what| told.push((ipa.get(), what));
                        self.space.make_contiguous(&self.cpu, claim, batch, level, heard)
                    },
                    |_, _| {},
                );
                assert_eq!(result, Ok(()));
                told.retain(|(_, what)| *what == Contiguous::Made);
                let mut wholes = wholes(&before, at, how, level.slot_bytes(), 16);
                wholes.retain(|ipa| !members.contains(ipa));
                assert_eq!(told.iter().map(|(ipa, _)| *ipa).collect::<Vec<_>>(), wholes);
                let leaves = wholes.iter().flat_map(|ipa| (0..16).map(move |n| (ipa, n)));
                members.extend(leaves.map(|(ipa, n)| ipa + n * level.slot_bytes()));
                assert_eq!((self.picture(), self.members()), (before, members));
            }
            Op::Dissolve { first, count } => {
                let (at, members) = (self.at(first, count), self.members());
                let mut until = at.start().get();
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| self.space.dissolve(&self.cpu, claim, batch),
                    |_, next| until = next,
                );
                match result {
                    Ok(()) => {}
                    Err(ContiguousError::Straddles { ipa, level }) => {
                        assert!(members.contains(&ipa.get()));
                        let end = ipa.get() + 16 * level.slot_bytes();
                        assert!(ipa < at.start() || end > at.end().get(), "{ipa} is inside");
                    }
                    Err(other) => panic!("{other}"),
                }
                let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
                let after = self.members();
                assert!(after.range(from..until.max(from)).next().is_none(), "members are left");
                for ipa in members.iter().filter(|ipa| !at.contains(Ipa::new(**ipa))) {
                    assert!(after.contains(ipa), "{ipa:#x} is outside the claim");
                }
                assert!(after.is_subset(&members));
                assert_eq!(self.picture(), before);
            }
            Op::CopyCollapse { first, count, holes, blocks } => {
                let (at, mut members) = (self.at(first, count), self.members());
                let mut moved = Moved { left: blocks, ..Moved::default() };
                let result = self.batches(
                    at,
                    how,
                    |claim, batch| {
                        let nobody = || panic!("nobody to wait for");
                        self.space.copy_collapse(&self.cpu, claim, batch, holes, &mut moved, nobody)
                    },
                    |_, _| {},
                );
                assert_eq!(result, Ok(()));
                let copies = copies(&before, at, how, holes);
                let made: Vec<u64> = moved.told.keys().copied().collect();
                assert_eq!(made, copies[..copies.len().min(blocks)], "the first that could be");
                for (ipa, filled) in &moved.told {
                    let (span, block) = (*ipa..ipa + (2 << 20), moved.finished[ipa]);
                    let mut empty = 0;
                    for page in span.clone().step_by(4096) {
                        let to = block + (page - ipa);
                        let from = moved.written.remove(&page);
                        match before.remove(&page) {
                            Some((Held::Leaf(pa), 4096)) => {
                                assert_eq!(from, Some((Some(pa), to)), "{page:#x}: copied");
                                assert_eq!(moved.released.0.remove(&page), Some((pa, 4096)));
                            }
                            None => {
                                assert_eq!(from, Some((None, to)), "{page:#x}: filled");
                                empty += 1;
                            }
                            other => panic!("{page:#x}: {other:?} is no page"),
                        }
                    }
                    assert_eq!(*filled, empty);
                    before.insert(*ipa, (Held::Leaf(block), 2 << 20));
                    members.retain(|member| !span.contains(member));
                }
                assert!(moved.written.is_empty() && moved.released.0.is_empty(), "nothing else");
                assert_eq!((self.picture(), self.members()), (before, members));
            }
        }
        self.space.memory.budget.store(usize::MAX, Ordering::Relaxed);
        assert_eq!(linked_tables(&self.space), self.space.memory.live(), "a table was lost");
    }
}

/// Spans of 2 MiB whose pages can be copied into a block, by their first IPA, in what is asked for.
fn copies(before: &Picture, at: IpaRange, how: &How, holes: usize) -> Vec<u64> {
    let block = 2 << 20;
    let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
    let first = (from / block * block).max(at.start().get().next_multiple_of(block));
    let spans = (first..).step_by(block as usize).take_while(|ipa| ipa + block <= at.end().get());
    let can = |ipa: &u64| {
        // What begins before may reach over it.
        let over = before.range(..ipa).next_back().is_some_and(|(start, (_, n))| start + n > *ipa);
        let mut slots = before.range(ipa..&(ipa + block)).map(|(_, slot)| slot);
        let count = slots.clone().count();
        let pages = slots.all(|(held, n)| matches!(held, Held::Leaf(_)) && *n == 4096);
        !over && pages && count > 0 && 512 - count <= holes
    };
    spans.filter(can).collect()
}

/// Where so many leaves of one size form one, by their first IPA, in what is asked for.
fn wholes(before: &Picture, at: IpaRange, how: &How, bytes: u64, count: u64) -> Vec<u64> {
    let whole = bytes * count;
    let from = at.start().get() + (how.skipped.min(at.pages() - 1) << 12);
    let first = (from / whole * whole).max(at.start().get().next_multiple_of(whole));
    let places = (first..).step_by(whole as usize).take_while(|ipa| ipa + whole <= at.end().get());
    let is_whole = |ipa: &u64| {
        let Some((Held::Leaf(pa), _)) = before.get(ipa) else { return false };
        let follows =
            |n| before.get(&(ipa + n * bytes)) == Some(&(Held::Leaf(pa + n * bytes), bytes));
        pa % whole == 0 && (0..count).all(follows)
    };
    places.filter(is_whole).collect()
}

fn pages_of(picture: &Picture) -> BTreeMap<u64, Held> {
    let pages = picture.iter().flat_map(|(ipa, (held, bytes))| {
        (0..*bytes).step_by(4096).map(move |offset| {
            let held = match held {
                Held::Leaf(pa) => Held::Leaf(pa + offset),
                note => *note,
            };
            (ipa + offset, held)
        })
    });
    pages.collect()
}

/// A map or annotation is refused for what was there, for want of tables, and for nothing else.
fn judge(result: Result<(), MapError>, before: &Picture, at: IpaRange, how: &How) {
    match result {
        Ok(()) => {}
        Err(MapError::OutOfTables) => assert!(how.tables < 4),
        Err(MapError::Occupied { ipa, .. }) => {
            let (start, (_, bytes)) = before.range(..=ipa.get()).next_back().unwrap();
            assert!(at.contains(ipa) && ipa.get() < start + bytes, "{ipa} was free");
        }
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_an_operation_does_not_say_it_did_is_as_it_was(
        bits in prop::sample::select(vec![25u32, 30, 32, 34, 35, 39, 40, 43, 44, 48]),
        place in 0..3u64,
        bbm in prop::sample::select(vec![Bbm::Level0, Bbm::Level1, Bbm::Level2]),
        full in prop::option::of(prop::sample::select(vec![(1, WINDOW), (2, 1536)])),
        ops in ops(),
    ) {
        let window = WINDOW << 12;
        let top = (1u64 << bits) - window;
        // At the bottom, at the top, over the edge of a GiB.
        let base = [0, top, ((1 << 30) - window / 2).min(top)][place as usize];
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space(&pages, &epochs, bits);
        space.pin_bbm(Some(bbm));
        let rig = Rig { space, cpu: epochs.join(0).unwrap(), base };
        // Half of them begin with memory that is there, in blocks or in pages.
        let first = full.map(|(coarsest, count)| Op::Map { first: 0, count, to: 0, coarsest });
        let how = How { skipped: 0, slots: usize::MAX, tables: usize::MAX };
        for (op, how) in first.iter().map(|op| (op, &how)).chain(ops.iter().map(|(op, how)| (op, how))) {
            rig.run(op, how);
        }
        let (left, mut released) = (rig.picture(), Released::default());
        let Rig { space, cpu, .. } = rig;
        // SAFETY: (1) no guest runs on the host.
        unsafe { space.destroy(&cpu, || {}, &mut released) }.unwrap();
        let leaves = left.iter().filter(|(_, (held, _))| matches!(held, Held::Leaf(_))).count();
        prop_assert_eq!(released.0.len(), leaves);
        prop_assert_eq!(pages.live(), 0);
    }
}
