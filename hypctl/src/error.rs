//! Everything that can be wrong before QEMU starts, as one type. Each ends with exit code 2.

use std::path::PathBuf;

use hyp_core::config::MIN_MEM;
use hyp_core::range::Bytes;

use crate::build::BuildError;
use crate::guest::GuestError;
use crate::linux::LinuxError;
use crate::machine::MachineError;
use crate::qemu::QemuError;
use crate::script::ScriptError;
use crate::toolchain::ToolchainError;
use crate::workspace::NoCheckout;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is its module's, and says itself what it is")]
pub enum Error {
    #[error(transparent)]
    NoCheckout(#[from] NoCheckout),
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Linux(#[from] LinuxError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("--guest-mem {} is too small: a guest needs at least {}", Bytes(*.0), Bytes(MIN_MEM))]
    TooLittleGuestMem(u64),
    #[error("--{option}: there is no folder {}", folder.display())]
    NoFolder { option: &'static str, folder: PathBuf },
}
