//! The virtual machine.
pub(crate) mod context;
use core::convert::Infallible;
use crate::boot::{Machine, Refusal};
use crate::cpu::PerCpu;
pub(crate) fn start(machine: Machine) -> Result<Infallible, Refusal> {
    crate::say!("{} CPUs, {:?} {:?}", machine.cpus, crate::mem::frames::account(), machine.request);
    Err("no vm yet".into())
}
pub(crate) fn secondary(_cpu: &PerCpu) -> ! { crate::platform::power::stay() }
