//! Events as a person reads them, in the words of [`shape`](crate::shape), with numbers for names.

use core::fmt;

use crate::event::{Aim, Dsb, Event, Scope};

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pe = self.pe();
        match *self {
            Self::SetVttbr { value, .. } => {
                let (vmid, root) = (value >> 48, value & 0xffff_ffff_fffe);
                write!(f, "{pe} vttbr {vmid} root {root:#x}")
            }
            Self::Isb { .. } => write!(f, "{pe} isb"),
            Self::Write { slot, new, atomic, relaxed, .. } => {
                let atomic = if atomic { " atomic" } else { "" };
                let relaxed = if relaxed { " relaxed" } else { "" };
                write!(f, "{pe} write {slot:#x} = {new:#x}{atomic}{relaxed}")
            }
            Self::HwUpdate { slot, new, .. } => write!(f, "{pe} hw {slot:#x} = {new:#x}"),
            Self::GuestStore { slot, .. } => write!(f, "{pe} store {slot:#x}"),
            Self::Harvested { slot, count: 1, .. } => write!(f, "{pe} harvested {slot:#x}"),
            Self::Harvested { slot, count, .. } => {
                write!(f, "{pe} harvested {slot:#x} count={count}")
            }
            Self::Dsb { kind, .. } => write!(f, "{pe} dsb {kind}"),
            Self::Tlbi { scope, aim, .. } => tlbi(f, pe, scope, aim),
            Self::AllocTable { table, .. } => write!(f, "{pe} alloc {table:#x}"),
            Self::FreeTable { table, .. } => write!(f, "{pe} free {table:#x}"),
            Self::ListTable { table, .. } => write!(f, "{pe} list {table:#x}"),
            Self::Scribble { table, .. } => write!(f, "{pe} scribble {table:#x}"),
            Self::FreeFrame { frame, bytes, .. } => {
                write!(f, "{pe} free-frame {frame:#x} {bytes:#x}")
            }
            Self::Published { .. } => write!(f, "{pe} published"),
            Self::Flushed { vmid, span: Some(span), .. } => {
                write!(f, "{pe} flushed {:#x} {:#x} of VMID {vmid}", span.ipa, span.bytes)
            }
            Self::Flushed { vmid, span: None, .. } => write!(f, "{pe} flushed all of VMID {vmid}"),
            Self::El2Root { root, .. } => write!(f, "{pe} el2-root {root:#x}"),
            Self::El2Flushed { .. } => write!(f, "{pe} el2-flushed"),
            Self::ReuseVmid { vmid, .. } => write!(f, "{pe} reuse {vmid}"),
            Self::Lock { table, .. } => write!(f, "{pe} lock {table:#x}"),
            Self::Unlock { table, .. } => write!(f, "{pe} unlock {table:#x}"),
            Self::Start { slot, .. } => write!(f, "{pe} start {slot:#x}"),
            Self::Commit { slot, .. } => write!(f, "{pe} commit {slot:#x}"),
        }
    }
}

impl fmt::Display for Dsb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IshSt => "ishst",
            Self::IshLd => "ishld",
            Self::Ish => "ish",
            Self::NshSt => "nshst",
            Self::NshLd => "nshld",
            Self::Nsh => "nsh",
        })
    }
}

fn tlbi(f: &mut fmt::Formatter<'_>, pe: usize, scope: Scope, aim: Aim) -> fmt::Result {
    let is = if scope == Scope::Is { "is" } else { "" };
    match aim {
        Aim::Ipa(operand) | Aim::IpaLast(operand) => {
            let last = if matches!(aim, Aim::IpaLast(_)) { "l" } else { "" };
            let (ipa, ttl) = ((operand & ((1 << 36) - 1)) << 12, operand >> 44 & 0xf);
            write!(f, "{pe} tlbi ipas2{last}e1{is} {ipa:#x}")?;
            if ttl == 0 { Ok(()) } else { write!(f, " ttl={ttl:#06b}") }
        }
        Aim::IpaRange(operand) | Aim::IpaRangeLast(operand) => {
            let last = if matches!(aim, Aim::IpaRangeLast(_)) { "l" } else { "" };
            let base = (operand & ((1 << 37) - 1)) << 12;
            let (ttl, num) = (operand >> 37 & 0b11, operand >> 39 & 0x1f);
            let (scale, granule) = (operand >> 44 & 0b11, operand >> 46 & 0b11);
            write!(f, "{pe} tlbi ripas2{last}e1{is} {base:#x} num={num} scale={scale}")?;
            if granule != 1 {
                write!(f, " tg={granule}")?;
            }
            if ttl == 0 { Ok(()) } else { write!(f, " ttl={ttl}") }
        }
        Aim::VmStage1 => write!(f, "{pe} tlbi vmalle1{is}"),
        Aim::Vm => write!(f, "{pe} tlbi vmalls12e1{is}"),
        Aim::All => write!(f, "{pe} tlbi alle1{is}"),
        Aim::El2Va(operand) => {
            let (va, ttl) = ((operand & ((1 << 44) - 1)) << 12, operand >> 44 & 0xf);
            write!(f, "{pe} tlbi vae2{is} {va:#x}")?;
            if ttl == 0 { Ok(()) } else { write!(f, " ttl={ttl:#06b}") }
        }
        Aim::El2All => write!(f, "{pe} tlbi alle2{is}"),
    }
}
