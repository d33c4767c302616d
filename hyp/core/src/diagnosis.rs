//! Why a VM was stopped, for the person who has to find the mistake in the guest.
//!
//! A [`Diagnosis`] names the VM, the virtual CPU, the instruction, the address, what lies there, and gives
//! a hint. It is printed on the console and goes into the [`report`](crate::report).

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::range::IpaRange;
use crate::syndrome::{Class, Status, Syndrome};

/// Why a VM was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The VM.
    pub vm: u32,
    /// The virtual CPU that did it.
    pub vcpu: u32,
    /// Its program counter: the instruction that did it.
    pub pc: u64,
    /// ESR_EL2.
    pub esr: u64,
    /// [`esr`](Self::esr) in words.
    pub cause: String,
    /// The virtual address it accessed, if hardware says so.
    pub va: Option<u64>,
    /// The intermediate physical address it accessed, if hardware says so.
    pub ipa: Option<u64>,
    /// What lies at `ipa`.
    pub region: Option<String>,
    /// What to look for.
    pub hint: String,
}

impl Diagnosis {
    /// A diagnosis with what an exit always has. The hint is the general one for the syndrome.
    #[must_use]
    pub fn new(vm: u32, vcpu: u32, pc: u64, esr: u64) -> Self {
        let syndrome = Syndrome(esr);
        let hint = hint(syndrome).to_string();
        let cause = syndrome.to_string();
        Self { vm, vcpu, pc, esr, cause, va: None, ipa: None, region: None, hint }
    }

    /// Adds the virtual address, unless the syndrome says that there is none.
    #[must_use]
    pub fn with_va(mut self, va: u64) -> Self {
        let valid = !Syndrome(self.esr).abort().is_some_and(|abort| abort.far_not_valid());
        self.va = valid.then_some(va);
        self
    }

    /// Adds the intermediate physical address.
    #[must_use]
    pub fn with_ipa(mut self, ipa: u64) -> Self {
        self.ipa = Some(ipa);
        self
    }

    /// Adds what lies at the address; see [`locate`].
    #[must_use]
    pub fn with_region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Replaces the hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Diagnosis {
    /// Several lines, one fact a line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VM {} stopped", self.vm)?;
        writeln!(f, "  vCPU    {}", self.vcpu)?;
        writeln!(f, "  PC      {:#018x}", self.pc)?;
        writeln!(f, "  ESR     {}", self.cause)?;
        if let Some(va) = self.va {
            writeln!(f, "  VA      {va:#018x}")?;
        }
        if let Some(ipa) = self.ipa {
            writeln!(f, "  IPA     {ipa:#018x}")?;
        }
        if let Some(region) = &self.region {
            writeln!(f, "  region  {region}")?;
        }
        write!(f, "  hint    {}", self.hint)
    }
}

/// Says what lies at `ipa` among named regions: the region that holds it, or the nearest and how far off.
#[must_use]
pub fn locate(ipa: u64, regions: &[(&str, IpaRange)]) -> String {
    if let Some((name, range)) = regions.iter().find(|(_, range)| range.contains(ipa)) {
        return format!("{name} ({range})");
    }
    let nearest = regions.iter().filter(|(_, range)| !range.is_empty()).min_by_key(|(_, range)| {
        if ipa < range.start {
            range.start.saturating_sub(ipa)
        } else {
            ipa.saturating_sub(range.end)
        }
    });
    match nearest {
        Some((name, range)) if ipa < range.start => {
            let gap = range.start.saturating_sub(ipa);
            format!("none; nearest is {name} ({range}), {gap:#x} bytes further up")
        }
        Some((name, range)) => {
            let gap = ipa.saturating_sub(range.end);
            format!("none; nearest is {name} ({range}), which ended {gap:#x} bytes before")
        }
        None => "none".to_string(),
    }
}

/// What to look for, as far as the syndrome alone tells.
fn hint(syndrome: Syndrome) -> &'static str {
    if let Some(abort) = syndrome.abort() {
        return match abort.status() {
            _ if abort.is_stage1_walk() => {
                "the guest's own translation tables point outside its memory: check TTBR and table descriptors"
            }
            _ if abort.is_cache_maintenance() => {
                "cache maintenance by address reached something that is not RAM"
            }
            Status::Translation(_) | Status::AddressSize(_) if abort.is_instruction() => {
                "the guest jumped to where it has no memory: check the branch target and the load address"
            }
            Status::Translation(_) | Status::AddressSize(_) => {
                "nothing is mapped here: check the guest's memory size and device addresses against its device tree"
            }
            Status::Permission(_) => "the guest may not access this memory in this way",
            Status::External => {
                "the machine answered with an error: nothing is there, or it refused"
            }
            Status::Alignment => "a misaligned access to device memory",
            Status::UnsupportedExclusive => {
                "exclusive or atomic access to memory that does not take it: map it Normal, inner shareable"
            }
            _ => "a fault that a guest cannot cause by a plain mistake: suspect the hypervisor",
        };
    }
    match syndrome.class() {
        Class::SystemRegister => {
            "a system register that the hypervisor does not give to guests: check the ID registers first"
        }
        Class::Sve | Class::Sme => {
            "SVE and SME are not given to guests: check the ID registers first"
        }
        Class::Hvc64 | Class::Smc64 => "a call that the hypervisor does not know how to answer",
        Class::SError => "an asynchronous error: an access shortly before went wrong",
        Class::Unknown => "an instruction that this CPU does not have, or that EL2 does not allow",
        _ => "the hypervisor does not handle this exit",
    }
}
