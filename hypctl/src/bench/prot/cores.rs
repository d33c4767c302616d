//! A projection of what was counted on real cores.
//!
//! ```text
//! time = instructions / (instructions a cycle · frequency)  +  flush · waits      if messages before one DSB overlap
//!                                                           …  flush · messages   if they do not
//! ```
//!
//! A wait is a DSB that has invalidations before it: two for a flush by IPA (stage 2, then combined entries), one for a
//! flush of the VM. All parameters are in `cores.toml`, with their sources, and what is not known is said there.

use serde::{Deserialize, Serialize};

use super::cells::{Counted, Key};

/// The parameters.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Cores {
    instructions: Instructions,
    exit: Exit,
    /// What a flush may take.
    pub(super) flush: Vec<Flush>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Instructions {
    ipc: f64,
    ipc_source: String,
    ghz: f64,
    ghz_source: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Exit {
    cycles: f64,
    source: String,
}

/// What one broadcast invalidation and its DSB take.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Flush {
    pub(super) name: String,
    nanoseconds: f64,
    source: String,
}

/// What a cell would take, in microseconds: from and to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Projected {
    #[serde(flatten)]
    pub(super) key: Key,
    /// Name of the flush that is assumed.
    pub(super) flush: String,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Cores {
    /// Those of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn published() -> Result<Self, toml::de::Error> {
        toml::from_str(include_str!("cores.toml"))
    }

    /// What a cell would take where a flush takes so long.
    pub(super) fn project(&self, cell: &Counted, flush: &Flush) -> Projected {
        let Instructions { ipc, ghz, .. } = self.instructions;
        let working = cell.instructions as f64 / (ipc * ghz);
        let count = |kind: &str| cell.tlbi.get(kind).copied().unwrap_or_default();
        let waits = 2 * count("VMALLE1IS") + count("VMALLS12E1IS");
        let micro = |flushes: u64| (working + flushes as f64 * flush.nanoseconds) / 1000.0;
        Projected {
            key: cell.key,
            flush: flush.name.clone(),
            low: micro(waits),
            high: micro(waits.max(cell.tlbis())),
        }
    }

    /// The same for all cells and flushes.
    pub(super) fn all(&self, cells: &[Counted]) -> Vec<Projected> {
        let each = |cell| self.flush.iter().map(move |flush| self.project(cell, flush));
        cells.iter().flat_map(each).collect()
    }

    /// Microseconds that a vCPU loses to a fault at the least, on top of EL2's instructions for it.
    pub(super) fn exit(&self) -> f64 {
        self.exit.cycles / self.instructions.ghz / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::cells::Key;
    use super::*;

    fn cell(instructions: u64, tlbi: &[(&str, u64)]) -> Counted {
        let key = Key { method: "", work: "", pages: 512 };
        let tlbi: BTreeMap<_, _> = tlbi.iter().map(|&(kind, n)| (kind.to_owned(), n)).collect();
        Counted { key, instructions, window: 0, writes: 0, tlbi, dsb: 0 }
    }

    #[test]
    fn the_file_can_be_read_and_every_parameter_names_its_source() {
        let cores = Cores::published().unwrap();
        let Instructions { ipc_source, ghz_source, .. } = &cores.instructions;
        let flushes = cores.flush.iter().map(|flush| &flush.source);
        for source in [ipc_source, ghz_source, &cores.exit.source].into_iter().chain(flushes) {
            assert!(source.len() > 20, "{source}");
        }
    }

    #[test]
    fn one_flush_for_many_pages_is_projected_between_its_waits_and_its_messages() {
        let cores = Cores::published().unwrap();
        let flush = Flush { name: String::new(), nanoseconds: 1000.0, source: String::new() };
        let by_page = cell(0, &[("IPAS2E1IS", 512), ("VMALLE1IS", 1)]);
        let interval = |cell| {
            let Projected { low, high, .. } = cores.project(cell, &flush);
            (low, high)
        };
        assert_eq!(interval(&by_page), (2.0, 513.0));
        let page_by_page = cell(0, &[("IPAS2E1IS", 512), ("VMALLE1IS", 512)]);
        assert_eq!(interval(&page_by_page), (1024.0, 1024.0));
        let whole = cell(2400, &[("VMALLS12E1IS", 1)]);
        assert_eq!(interval(&whole), (2.0, 2.0));
    }
}
