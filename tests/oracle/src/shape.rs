//! A short language for traces, so that a person can check one against the Arm ARM.
//!
//! A shape is a machine, a list of steps and the defect that they must show, or none. Tables have
//! names: `L1` is the root, at level 1; `L2`, `M2` and `L3`, `M3`, `N3` are pages of the levels in
//! their names. Unless a shape says `bare`, it begins with `L1[0]` → L2, `L2[0]` → L3, both PEs under VMID 1
//! and everything visible; so ``L3[5]`` translates IPA 0x5000.
//!
//! ```text
//! 0 write L3[5] = page 0x80000 rw      PE 0 writes a descriptor; append `atomic` for an RMW, `relaxed`
//!                                      for a store without release order
//! 0 hw L3[5] = page 0x80000 dirty      a walk of PE 0 updates it
//! 0 store L3[5]                        PE 0's guest stores through that leaf
//! 0 harvested L3[5]                    PE 0 takes the dirty state it read for complete; count=16: of a run
//! 0 dsb ish                            ishst, ishld, ish, nshst, nshld, nsh
//! 0 tlbi ipas2e1is 0x5000 ttl=3        also: ripas2e1is 0x5000 num=0, vmalle1is, vmalls12e1is,
//!                                      alle1is; without "is": local; ipas2le1is: last level
//! 0 vttbr 2                            PE 0 switches to VMID 2 (same root)
//! 0 isb
//! 0 el2-root E0                        EL2's own walks start there; 0 el2-flushed: nobody translates by what was
//! 0 tlbi vae2is 0x800000005000 ttl=3   also: alle2is
//! 0 alloc M3      0 free L3      0 list L3      0 scribble L3      0 lock L3      0 unlock L3
//! 0 published     0 start L3[5]  0 commit L3[5]
//! 0 free-frame 0x80000 0x1000          0 flushed 0x5000 0x1000      0 flushed all      0 reuse 1
//! ```
//!
//! A shape that says `el2` has EL2's own tables besides, `E0[256]` → `E1[0]` → `E2[0]` → E3: so ``E3[5]`` translates EL2's address
//! 0x800000005000. A page of theirs has the word `el2`.
//!
//! `L3[0..15]` in a write stands for 16 lines, each with the next page or block. A descriptor is `0`,
//! `drain`, `dead`, `table M3`, or `page` / `block` with an address and words: `rw`, `ro`, `clean` (DBM,
//! not yet dirty), `dirty` (DBM, dirty), `noaf`, `contig`, `nt`, `device`. A range has `num`, `scale`,
//! `ttl` and `tg` as in the register.
//!
//! What every shape takes for granted:
//!
//! * The software's steps are executed at EL2, and the guest of a PE does not come back between them:
//!   while at EL2 a PE starts no walk for it \[RNRJPP\]. Other PEs' guests run all the time. `isb` stands
//!   for every context synchronization event, exception entry and return among them.
//! * `hw_dirty` means an effective HD, so it implies HA, unless `hw_access = false` says otherwise.
//! * A store comes before its `hw` update; a dirty update without a store is an impossible one.

mod parse;

pub use parse::{parse, parse_all};
use serde::Deserialize;

use crate::model::{Machine, Model};
use crate::verdict::{Defect, Verdict};

/// What shapes call `drain`.
pub const DRAIN: u64 = 0b0010;
/// What shapes call `dead`.
pub const DEAD: u64 = 0b0110;

/// A trace with the verdict that it must get.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// A name that says what is done.
    pub name: String,
    /// Where in the Arm ARM, or in the literature, the answer stands.
    pub rule: String,
    /// The first defect, or nothing for a trace without one.
    pub defect: Option<Defect>,
    /// A defect that must follow from the first.
    pub also: Option<Defect>,
    /// PEs, if not two.
    pub pes: Option<usize>,
    /// No prelude.
    #[serde(default)]
    pub bare: bool,
    /// With EL2's own tables.
    #[serde(default)]
    pub el2: bool,
    /// FEAT_BBM.
    #[serde(default)]
    pub bbm: u8,
    /// VTCR_EL2.HA; as HD, if not given.
    #[serde(default)]
    pub hw_access: Option<bool>,
    /// VTCR_EL2.HD.
    #[serde(default)]
    pub hw_dirty: bool,
    /// The steps, one a line.
    pub steps: String,
}

/// All shapes of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shapes {
    /// In order of the file.
    pub shape: Vec<Shape>,
}

/// A line that is not of the language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeError {
    /// The line.
    pub line: String,
    /// What was expected.
    pub wanted: &'static str,
}

impl core::fmt::Display for ShapeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "in `{}`: expected {}", self.line, self.wanted)
    }
}

impl core::error::Error for ShapeError {}

const PRELUDE: &str = "
    0 alloc L1
    0 alloc L2
    0 alloc L3
    0 write L2[0] = table L3
    0 write L1[0] = table L2
    0 dsb ish
    0 vttbr 1
    0 isb
    1 vttbr 1
    1 isb
";

const EL2_PRELUDE: &str = "
    0 alloc E0
    0 el2-root E0
    0 alloc E1
    0 alloc E2
    0 alloc E3
    0 write E2[0] = table E3
    0 write E1[0] = table E2
    0 write E0[256] = table E1
    0 dsb ish
    0 isb
";

impl Shape {
    /// Runs the steps and returns what is wrong with them.
    ///
    /// # Errors
    /// [`ShapeError`]: a line that is not of the language.
    pub fn run(&self) -> Result<Vec<Verdict>, ShapeError> {
        let mut model = Model::new(Machine {
            bbm: self.bbm,
            hw_access: self.hw_access.unwrap_or(self.hw_dirty),
            hw_dirty: self.hw_dirty,
            dead: Some(DEAD),
            pes: self.pes.unwrap_or(2),
            ..Machine::default()
        });
        let prelude = if self.bare { "" } else { PRELUDE };
        let el2 = if self.el2 { EL2_PRELUDE } else { "" };
        for line in prelude.lines().chain(el2.lines()).chain(self.steps.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                for event in parse_all(line)? {
                    model.apply(&event);
                }
            }
        }
        model.finish();
        Ok(model.verdicts().to_vec())
    }
}
