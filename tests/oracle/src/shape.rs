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
//! 0 tlbi ipas2e1is 0x5000 ttl=3        also: ripas2e1is 0x5000 pages=2, vmalle1is, vmalls12e1is,
//!                                      alle1is; without "is": local; ipas2le1is: last level
//! 0 vttbr 2                            PE 0 switches to VMID 2 (same root)
//! 0 isb
//! 0 alloc M3      0 free L3      0 list L3      0 scribble L3      0 lock L3      0 unlock L3
//! 0 published     0 start L3[5]  0 commit L3[5]
//! 0 free-frame 0x80000 0x1000          0 flushed 0x5000 0x1000      0 flushed all      0 reuse 1
//! ```
//!
//! `L3[0..15]` in a write stands for 16 lines, each with the next page or block. A descriptor is `0`, `drain`, `dead`, `table M3`, or `page` / `block` with an address and words: `rw`,
//! `ro`, `clean` (DBM, not yet dirty), `dirty` (DBM, dirty), `noaf`, `contig`, `nt`, `device`.

//! What every shape takes for granted:
//!
//! * The software's steps are executed at EL2, and the guest of a PE does not come back between them:
//!   while at EL2 a PE starts no walk for it \[RNRJPP\]. Other PEs' guests run all the time. `isb` stands
//!   for every context synchronization event, exception entry and return among them.
//! * `hw_dirty` means an effective HD, so it implies HA, unless `hw_access = false` says otherwise.
//! * A store comes before its `hw` update; a dirty update without a store is an impossible one.

use serde::Deserialize;

use crate::event::{Aim, Dsb, Event, Pe, Scope, Span};
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
        for line in prelude.lines().chain(self.steps.lines()) {
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

struct Words<'l> {
    line: &'l str,
    words: std::str::SplitWhitespace<'l>,
}

impl<'l> Words<'l> {
    fn bad(&self, wanted: &'static str) -> ShapeError {
        ShapeError { line: self.line.into(), wanted }
    }

    fn word(&mut self, wanted: &'static str) -> Result<&'l str, ShapeError> {
        self.words.next().ok_or_else(|| self.bad(wanted))
    }

    fn number(&mut self, wanted: &'static str) -> Result<u64, ShapeError> {
        let word = self.word(wanted)?;
        number(word).ok_or_else(|| self.bad(wanted))
    }

    fn table(&mut self) -> Result<u64, ShapeError> {
        let word = self.word("a table")?;
        table(word).ok_or_else(|| self.bad("a table"))
    }

    /// The value of `name=` among the remaining words.
    fn option(&self, name: &str) -> Result<Option<u64>, ShapeError> {
        let mut values = self.words.clone().filter_map(|word| word.strip_prefix(name));
        match values.next().and_then(|value| value.strip_prefix('=')) {
            Some(value) => number(value).map(Some).ok_or_else(|| self.bad("a number")),
            None => Ok(None),
        }
    }
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

fn table(name: &str) -> Option<u64> {
    let index = ["L1", "L2", "M2", "L3", "M3", "N3"].iter().position(|known| *known == name)?;
    Some(0x1000 * (index as u64 + 1))
}

/// One line as events: `L3[0..15]` stands for 16 of them, each with the next page or block.
///
/// # Errors
/// [`ShapeError`]: not of the language.
pub fn parse_all(line: &str) -> Result<Vec<Event>, ShapeError> {
    let bad = || ShapeError { line: line.into(), wanted: "a range of slots, such as L3[0..15]" };
    let Some((before, rest)) = line.split_once('[').filter(|(_, rest)| rest.contains("..")) else {
        return Ok(vec![parse(line)?]);
    };
    let (range, after) = rest.split_once(']').ok_or_else(bad)?;
    let (first, last) = range.split_once("..").ok_or_else(bad)?;
    let (first, last) = number(first).zip(number(last)).ok_or_else(bad)?;
    let one = |index: u64| {
        let mut event = parse(&format!("{before}[{index}]{after}"))?;
        let step = if after.contains(" block ") { 0x20_0000 } else { 0x1000 };
        if let Event::Write { new, .. } = &mut event
            && [" page ", " block "].iter().any(|leaf| after.contains(leaf))
        {
            *new += (index - first) * step;
        }
        Ok(event)
    };
    (first..=last).map(one).collect()
}

/// One line as an event.
///
/// # Errors
/// [`ShapeError`]: not of the language.
pub fn parse(line: &str) -> Result<Event, ShapeError> {
    let mut words = Words { line, words: line.split_whitespace() };
    let pe = words.number("a PE")? as Pe;
    Ok(match words.word("a verb")? {
        "write" => {
            let slot = slot(&mut words)?;
            let new = descriptor(&mut words)?;
            let says = |wanted| words.words.clone().any(|word| word == wanted);
            Event::Write { pe, slot, new, atomic: says("atomic"), relaxed: says("relaxed") }
        }
        "hw" => {
            let slot = slot(&mut words)?;
            Event::HwUpdate { pe, slot, new: descriptor(&mut words)?, inferred: false }
        }
        "dsb" => Event::Dsb {
            pe,
            kind: match words.word("a kind of DSB")? {
                "ishst" => Dsb::IshSt,
                "ishld" => Dsb::IshLd,
                "ish" => Dsb::Ish,
                "nshst" => Dsb::NshSt,
                "nshld" => Dsb::NshLd,
                "nsh" => Dsb::Nsh,
                _ => return Err(words.bad("a kind of DSB")),
            },
        },
        "tlbi" => tlbi(pe, &mut words)?,
        "vttbr" => {
            let vmid = words.number("a VMID")?;
            Event::SetVttbr { pe, value: vmid << 48 | 0x1000 }
        }
        "isb" => Event::Isb { pe },
        "store" => Event::GuestStore { pe, slot: place(&mut words)? },
        "harvested" => {
            let slot = place(&mut words)?;
            Event::Harvested { pe, slot, count: words.option("count")?.unwrap_or(1) }
        }
        "published" => Event::Published { pe },
        "start" => Event::Start { pe, slot: place(&mut words)? },
        "commit" => Event::Commit { pe, slot: place(&mut words)? },
        "list" => Event::ListTable { pe, table: words.table()? },
        "alloc" => Event::AllocTable { pe, table: words.table()? },
        "free" => Event::FreeTable { pe, table: words.table()? },
        "scribble" => Event::Scribble { pe, table: words.table()? },
        "lock" => Event::Lock { pe, table: words.table()? },
        "unlock" => Event::Unlock { pe, table: words.table()? },
        "free-frame" => Event::FreeFrame {
            pe,
            frame: words.number("an address")?,
            bytes: words.number("a size")?,
        },
        "flushed" => Event::Flushed {
            pe,
            vmid: 1,
            span: if words.words.clone().next() == Some("all") {
                None
            } else {
                Some(Span { ipa: words.number("an IPA")?, bytes: words.number("a size")? })
            },
        },
        "reuse" => Event::ReuseVmid { pe, vmid: words.number("a VMID")? as u16 },
        _ => return Err(words.bad("a verb")),
    })
}

fn slot(words: &mut Words<'_>) -> Result<u64, ShapeError> {
    let slot = place(words)?;
    match words.word("=")? {
        "=" => Ok(slot),
        _ => Err(words.bad("=")),
    }
}

fn place(words: &mut Words<'_>) -> Result<u64, ShapeError> {
    let place = words.word("a slot")?;
    let (name, index) = place
        .strip_suffix(']')
        .and_then(|place| place.split_once('['))
        .ok_or_else(|| words.bad("a slot, such as L3[5]"))?;
    let table = table(name).ok_or_else(|| words.bad("a table"))?;
    let index =
        number(index).filter(|n| *n < 512).ok_or_else(|| words.bad("an index below 512"))?;
    Ok(table + index * 8)
}

fn descriptor(words: &mut Words<'_>) -> Result<u64, ShapeError> {
    let kind = match words.word("a descriptor")? {
        "0" => return Ok(0),
        "drain" => return Ok(DRAIN),
        "dead" => return Ok(DEAD),
        "table" => return Ok(words.table()? | 0b11),
        "page" => 0b11,
        "block" => 0b01,
        _ => return Err(words.bad("a descriptor")),
    };
    let mut bits = words.number("an address")? | kind | 0b11 << 8 | 1 << 10 | 1 << 6;
    let mut memory = 0b1111 << 2;
    for word in words.words.clone() {
        match word {
            "ro" | "atomic" | "relaxed" => {}
            "rw" => bits |= 1 << 7,
            "clean" => bits |= 1 << 51,
            "dirty" => bits |= 1 << 51 | 1 << 7,
            "noaf" => bits &= !(1 << 10),
            "contig" => bits |= 1 << 52,
            "nt" => bits |= 1 << 16,
            "device" => memory = 0b0001 << 2,
            _ => return Err(words.bad("rw, ro, clean, dirty, noaf, contig, nt, device or atomic")),
        }
    }
    bits |= memory;
    Ok(bits)
}

fn tlbi(pe: Pe, words: &mut Words<'_>) -> Result<Event, ShapeError> {
    let name = words.word("a TLBI")?;
    let (name, scope) = match name.strip_suffix("is") {
        Some(name) => (name, Scope::Is),
        None => (name, Scope::Local),
    };
    let aim = match name {
        "ipas2e1" | "ipas2le1" => {
            let page = words.number("an IPA")? >> 12;
            // A level, of the 4 KiB granule; or all four bits.
            let ttl = match words.option("ttl")? {
                Some(level) if level < 4 => 0b0100 | level,
                Some(bits) => bits,
                None => 0,
            };
            let operand = ttl << 44 | page;
            if name == "ipas2e1" { Aim::Ipa(operand) } else { Aim::IpaLast(operand) }
        }
        "ripas2e1" | "ripas2le1" => {
            let page = words.number("an IPA")? >> 12;
            let scale = words.option("scale")?.unwrap_or(0);
            let num = words.option("num")?.unwrap_or(0);
            let granule = words.option("tg")?.unwrap_or(1);
            let ttl = words.option("ttl")?.unwrap_or(0);
            let operand = granule << 46 | scale << 44 | num << 39 | ttl << 37 | page;
            if name == "ripas2e1" { Aim::IpaRange(operand) } else { Aim::IpaRangeLast(operand) }
        }
        "vmalle1" => Aim::VmStage1,
        "vmalls12e1" => Aim::Vm,
        "alle1" => Aim::All,
        _ => return Err(words.bad("a TLBI")),
    };
    Ok(Event::Tlbi { pe, scope, aim })
}
