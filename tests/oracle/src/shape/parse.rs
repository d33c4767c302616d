//! One line of the language.

use super::{DEAD, DRAIN, ShapeError};
use crate::event::{Aim, Dsb, Event, Pe, Scope, Span};

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
    let names = ["L1", "L2", "M2", "L3", "M3", "N3", "E0", "E1", "E2", "E3"];
    let index = names.iter().position(|known| *known == name)?;
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
        "el2-root" => Event::El2Root { pe, root: words.table()? },
        "el2-flushed" => Event::El2Flushed { pe },
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
            // AttrIndx 1, XN; AP[2] is 0.
            "el2" => {
                bits |= 1 << 54;
                memory = 0b001 << 2;
            }
            _ => {
                return Err(
                    words.bad("rw, ro, clean, dirty, noaf, contig, nt, device, el2 or atomic")
                );
            }
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
        "vae2" => {
            let page = words.number("an address")? >> 12;
            let ttl = words.option("ttl")?.map_or(0, |level| 0b0100 | level);
            Aim::El2Va(ttl << 44 | page)
        }
        "alle2" => Aim::El2All,
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
