//! Memory that operations ask for while they are on their way, and what they say of it.

use super::*;

/// Pages for what was scratch, by address.
pub(super) struct Given {
    pub(super) left: usize,
    pub(super) back: usize,
}

impl Given {
    pub(super) fn at(ipa: u64) -> u64 {
        (1 << 47) - (1 << 40) + ipa % (1 << 40)
    }
}

// SAFETY: (1, 2) no guest runs on the host.
unsafe impl Replacements for Given {
    fn take(&mut self, ipa: Ipa) -> Option<Pa> {
        self.left = self.left.checked_sub(1)?;
        Some(Pa::new(Self::at(ipa.get())))
    }

    fn give_back(&mut self, _: Ipa, _: Pa) {
        self.back += 1;
    }
}

/// Where blocks come from, and what was said of them.
#[derive(Default)]
pub(super) struct Moved {
    /// Blocks that are left.
    pub(super) left: usize,
    /// By the page's IPA: where its bytes came from, if it was there, and where they went.
    pub(super) written: BTreeMap<u64, (Option<u64>, u64)>,
    /// By IPA.
    pub(super) finished: BTreeMap<u64, u64>,
    pub(super) released: Released,
    /// Blocks that were made, by IPA, with the holes that were filled.
    pub(super) told: BTreeMap<u64, usize>,
}

impl Release for Moved {
    fn frame(&mut self, ipa: Ipa, former: &Former, flushed: &Flushed) {
        self.released.frame(ipa, former, flushed);
    }
}

// SAFETY: (1, 2) no guest runs on the host.
unsafe impl Blocks for Moved {
    fn take(&mut self) -> Option<Pa> {
        self.left = self.left.checked_sub(1)?;
        // Far from what is mapped, and from what other operations of the program have taken.
        Some(Pa::new((1 << 46) + FRESH.fetch_add(2 << 20, Ordering::Relaxed)))
    }

    fn give_back(&mut self, block: Pa) {
        panic!("{block} was not used, and nobody was in the way");
    }

    fn copy(&mut self, ipa: Ipa, from: Pa, to: Pa) {
        let what = (Some(from.get()), to.get());
        assert_eq!(self.written.insert(ipa.get(), what), None, "written twice");
    }

    fn fill(&mut self, ipa: Ipa, to: Pa) {
        assert_eq!(self.written.insert(ipa.get(), (None, to.get())), None, "written twice");
    }

    fn finish(&mut self, ipa: Ipa, block: Pa) {
        assert_eq!(self.finished.insert(ipa.get(), block.get()), None);
    }

    fn heard(&mut self, ipa: Ipa, what: CopyCollapse) {
        if let CopyCollapse::Made { filled } = what {
            assert_eq!(self.told.insert(ipa.get(), filled), None, "told twice");
        }
    }
}

/// Where the next block is: each is given out once.
static FRESH: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
