//! What the call MEASURE is asked: one change of protections, done in one of several ways. Only hypervisors that are
//! built to measure have the call; others answer NOT_SUPPORTED.

/// Changes the protections of a range of the caller's RAM in the way that `x3` says ([`Way::to_word`]), and notes what
/// that took. `x1` is the first address, `x2` the bytes: whole pages, all of them mapped, at most [`MEASURE_MAX`].
///
/// All of it is done in this one call, however long it takes: that is what is measured.
///
/// Returns SUCCESS in `x0`, and in `x1` the instructions (or nanoseconds) that it took; or in `x0` INVALID_PARAMETER for a
/// range that is not RAM or a word that says nothing, BUSY while another CPU changes memory, NO_MEMORY when as much
/// was noted as there is room for. Nothing was changed then.
pub const MEASURE: u32 = 0xC600_0012;

/// The most that one [`MEASURE`] takes, in bytes.
pub const MEASURE_MAX: u64 = 1 << 30;

/// The most that can be noted in one run: the report of that many fits into EL2's heap.
pub const SAMPLES: usize = 1024;

/// Ranges that are compared, in pages of 4 KiB.
pub const SIZES: [u64; 6] = [1, 8, 64, 512, 4096, 65536];

/// What is done to each leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// The permission to write is taken.
    WriteProtect,
    /// Everything is allowed again.
    Unprotect,
    /// A dirty session is started, not counted, and all of the range harvested for the first time: everything that is
    /// mapped is reported.
    FirstHarvest,
    /// The range of the session is harvested once more, what was written since being dirty; then, not counted, the session
    /// is stopped. INVALID_PARAMETER without one.
    Harvest,
}

/// How leaves are changed; the names are those of crate `stage2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// As the VM does it by itself.
    Own,
    /// By one exchange.
    InPlace,
    /// By a break, where hardware can set something in the leaf.
    BreakUnsettled,
    /// By a break.
    Break,
}

/// How TLBs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// As the cost model says.
    ByCost,
    /// By an invalidation for each leaf.
    PerPage,
    /// By ranges, where the CPU has them.
    Range,
    /// Everything of the VM.
    Vmid,
}

/// One way to do the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// What is done.
    pub work: Work,
    /// How leaves are changed.
    pub engine: Engine,
    /// How TLBs are told.
    pub flush: Flush,
    /// Leaves that share a flush; 0 is all of the range.
    pub batch: u32,
}

/// A way to change protections that is compared with the others, whatever the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method {
    /// What it is called, for people and in files.
    pub name: &'static str,
    /// How leaves are changed.
    pub engine: Engine,
    /// How TLBs are told.
    pub flush: Flush,
    /// Leaves that share a flush; 0 is all of the range.
    pub batch: u32,
}

/// What is compared. The first is what the others are compared with.
pub const METHODS: [Method; 7] = [
    Method::new("break, page by page", Engine::Break, Flush::PerPage, 1),
    Method::new("in place, page by page", Engine::InPlace, Flush::PerPage, 1),
    Method::new("in place, TLBI by page", Engine::InPlace, Flush::PerPage, 0),
    Method::new("in place, TLBI by range", Engine::InPlace, Flush::Range, 0),
    Method::new("in place, TLBI of the VM", Engine::InPlace, Flush::Vmid, 0),
    Method::new("break, batched", Engine::Break, Flush::ByCost, 0),
    Method::new("the VM's own choice", Engine::Own, Flush::ByCost, 0),
];

impl Method {
    const fn new(name: &'static str, engine: Engine, flush: Flush, batch: u32) -> Self {
        Self { name, engine, flush, batch }
    }

    /// This way to do some work.
    #[must_use]
    pub const fn way(&self, work: Work) -> Way {
        Way { work, engine: self.engine, flush: self.flush, batch: self.batch }
    }
}

impl Work {
    /// All of them, by number.
    pub const ALL: [Self; 4] =
        [Self::WriteProtect, Self::Unprotect, Self::FirstHarvest, Self::Harvest];
}

impl Engine {
    /// All of them, by number.
    pub const ALL: [Self; 4] = [Self::Own, Self::InPlace, Self::BreakUnsettled, Self::Break];
}

impl Flush {
    /// All of them, by number.
    pub const ALL: [Self; 4] = [Self::ByCost, Self::PerPage, Self::Range, Self::Vmid];
}

impl Way {
    /// As an argument: bits 7:0 the work, 15:8 the engine, 23:16 the flush, 63:32 the batch.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.work as u64
            | (self.engine as u64) << 8
            | (self.flush as u64) << 16
            | (self.batch as u64) << 32
    }

    /// What a word says; `None` if that is nothing.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        let field = |low: u32| (word >> low & 0xff) as usize;
        if field(24) != 0 {
            return None;
        }
        Some(Self {
            work: *Work::ALL.get(field(0))?,
            engine: *Engine::ALL.get(field(8))?,
            flush: *Flush::ALL.get(field(16))?,
            batch: (word >> 32) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_comes_back_from_its_word() {
        for work in Work::ALL {
            for engine in Engine::ALL {
                for flush in Flush::ALL {
                    for batch in [0, 1, 512, u32::MAX] {
                        let way = Way { work, engine, flush, batch };
                        assert_eq!(Way::from_word(way.to_word()), Some(way));
                    }
                }
            }
        }
    }

    #[test]
    fn a_word_with_anything_unknown_is_no_way() {
        for word in [Work::ALL.len() as u64, 4 << 8, 4 << 16, 1 << 24, 0xff, u64::MAX] {
            assert_eq!(Way::from_word(word), None, "{word:#x}");
        }
    }

    #[test]
    fn no_two_methods_are_the_same() {
        for (index, method) in METHODS.iter().enumerate() {
            for other in &METHODS[..index] {
                assert_ne!(method.name, other.name);
                assert_ne!(method.way(Work::Unprotect), other.way(Work::Unprotect));
            }
        }
    }
}
