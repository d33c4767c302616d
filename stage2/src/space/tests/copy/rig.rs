//! A VM whose pages lie nowhere near each other, and where blocks for them come from.

use super::*;

/// Memory: one word a page.
pub(super) type Bytes = Mutex<BTreeMap<u64, u64>>;

/// A VM whose pages lie nowhere near each other.
pub(super) struct Rig<'t> {
    pub(super) pages: &'t Pages,
    pub(super) space: Space<'t, &'t Pages, Host>,
    pub(super) cpu: Cpu<'t>,
    pub(super) other: Cpu<'t>,
    pub(super) frames: Counted,
    pub(super) bytes: Bytes,
}

impl<'t> Rig<'t> {
    /// These pages from 1 GiB on, by number: each holds its number and 1000.
    pub(super) fn new(
        pages: &'t Pages,
        epochs: &'t Epochs<2>,
        which: impl Iterator<Item = u64>,
    ) -> Self {
        let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
        let frames = Counted::new(1 << 40, 1 << 30, usize::MAX);
        let space = space(pages, epochs, 40);
        let mut rig = Self { pages, space, cpu, other, frames, bytes: Mutex::default() };
        let mut tally = Tally::default();
        which.for_each(|page| rig.install(page, Owner::Vm, &mut tally));
        rig.space.credit(&tally);
        rig
    }

    pub(super) fn install(&mut self, page: u64, owner: Owner, tally: &mut Tally) {
        let mapping = self.space.mapping(Level::L3, &ram(), owner).unwrap();
        let (guard, ipa) = (self.cpu.enter(), page_at(page));
        let Ok(Install::Installed(pa)) =
            self.space.install(&guard, ipa, &mapping, &mut self.frames, tally)
        else {
            panic!("page {page}")
        };
        self.bytes.lock().unwrap().insert(pa.get(), 1000 + page);
    }

    pub(super) fn blocks(&self, left: u64) -> Source<'_, 't> {
        Source {
            rig: self,
            left,
            taken: 0,
            given_back: vec![],
            finished: vec![],
            released: BTreeMap::new(),
            tables: vec![],
            heard: vec![],
        }
    }

    pub(super) fn copy(
        &self,
        at: IpaRange,
        holes: usize,
        blocks: &mut Source<'_, '_>,
        relax: impl FnMut(),
    ) -> Result<Progress, CopyError> {
        let mut claim = self.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        self.space.copy_collapse(&self.cpu, &mut claim, all, holes, blocks, relax)
    }

    pub(super) fn found(&self, ipa: Ipa) -> (View, Level) {
        let found = self.space.lookup(&self.cpu.enter(), ipa).unwrap();
        (found.view(), found.level)
    }

    /// Every leaf: IPA, address, level.
    pub(super) fn leaves(&self) -> Vec<(u64, u64, u8)> {
        let guard = self.cpu.enter();
        let leaf = |(ipa, found): (Ipa, Lookup)| match found.view() {
            View::Leaf(leaf) => Some((ipa.get(), leaf.pa().get(), found.level as u8)),
            _ => None,
        };
        self.space.visit(&guard, range(GIB, GIB)).filter_map(leaf).collect()
    }

    /// The slot of a page. The reference outlives its guard.
    pub(super) fn slot(&self, page: u64) -> &'t Slot {
        let guard = self.cpu.enter();
        let table = self.space.lookup_rw(&guard, page_at(page)).unwrap();
        assert_eq!(table.level(), Level::L3);
        let pa = table.parent().unwrap().as_table(Level::L2).unwrap();
        self.pages.arena[usize::try_from(pa.get() / PAGE_SIZE).unwrap()]
            .slot(Level::L3.index(page_at(page)))
    }

    pub(super) fn put(&self, page: u64, change: impl Fn(u64) -> u64) {
        let slot = self.slot(page);
        let held = slot.load(&self.space.arch).bits();
        // SAFETY: (1, 2) nothing walks these tables.
        unsafe { self.space.arch.swap(slot, change(held)) };
    }

    pub(super) fn write(&self, pa: Pa, word: u64) {
        self.bytes.lock().unwrap().insert(pa.get(), word);
    }

    pub(super) fn read(&self, pa: u64) -> u64 {
        self.bytes.lock().unwrap()[&pa]
    }
}

pub(super) fn page_at(number: u64) -> Ipa {
    Ipa::new(GIB + number * PAGE_SIZE)
}

/// Where the first block comes from, page by page.
pub(super) fn fresh(page: u64) -> u64 {
    FRESH + MIB2 + page * PAGE_SIZE
}

/// Where blocks come from, and who copies. It checks when it is called.
pub(super) struct Source<'s, 't> {
    pub(super) rig: &'s Rig<'t>,
    /// Blocks that are left.
    pub(super) left: u64,
    pub(super) taken: u64,
    pub(super) given_back: Vec<u64>,
    pub(super) finished: Vec<u64>,
    /// By IPA: address, and whether it was written.
    pub(super) released: BTreeMap<u64, (u64, bool)>,
    pub(super) tables: Vec<u64>,
    pub(super) heard: Vec<(u64, CopyCollapse)>,
}

impl Source<'_, '_> {
    pub(super) fn not_live_yet(&self, ipa: Ipa) {
        assert!(self.rig.cpu.is_quiescent(), "nothing is held while bytes are copied");
        let (View::Drain(former), Level::L2) = self.rig.found(ipa) else { panic!("{ipa} is live") };
        assert!(former.is_table());
    }
}

impl Release for Source<'_, '_> {
    fn frame(&mut self, ipa: Ipa, former: &Former, _: &Flushed) {
        let (View::Leaf(_), Level::L2) = self.rig.found(ipa) else { panic!("{ipa} is not live") };
        let what = (former.pa().get(), former.written());
        assert_eq!(self.released.insert(ipa.get(), what), None, "released twice");
    }

    fn table(&mut self, ipa: Ipa) {
        self.tables.push(ipa.get());
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Blocks for Source<'_, '_> {
    fn take(&mut self) -> Option<Pa> {
        assert!(self.rig.cpu.is_quiescent(), "a block is asked for before anything is held");
        self.left = self.left.checked_sub(1)?;
        self.taken += 1;
        Some(Pa::new(FRESH + self.taken * MIB2))
    }

    fn give_back(&mut self, block: Pa) {
        self.given_back.push(block.get());
    }

    fn copy(&mut self, ipa: Ipa, from: Pa, to: Pa) {
        self.not_live_yet(ipa);
        let word = self.rig.read(from.get());
        self.rig.write(to, word);
    }

    fn fill(&mut self, ipa: Ipa, to: Pa) {
        self.not_live_yet(ipa);
        self.rig.write(to, UNTOUCHED);
    }

    fn finish(&mut self, ipa: Ipa, block: Pa) {
        self.not_live_yet(ipa);
        self.finished.push(block.get());
        let bytes = self.rig.bytes.lock().unwrap();
        let written = |page| bytes.contains_key(&(block.get() + page * PAGE_SIZE));
        assert!((0..512).all(written), "every page of it was written");
    }

    fn heard(&mut self, ipa: Ipa, what: CopyCollapse) {
        assert!(self.rig.cpu.is_quiescent(), "he may do what the caller may");
        assert!(!matches!(self.rig.found(ipa).0, View::Drain(_)), "all is in place again");
        self.heard.push((ipa.get(), what));
    }
}
