//! The machine that QEMU is asked for: its command line, and where modules lie in its memory.
//!
//! ```text
//! 0x4000_0000  bottom of RAM (QEMU's device tree goes here when the hypervisor is an ELF)
//! 0x4020_0000  hyp.bin: image_size bytes
//! +min(RAM/2, 128 MiB)   QEMU's device tree for a raw image, at most 2 MiB
//!      …       free
//! top          guest image, initrd below it: 2 MiB aligned
//! ```
//!
//! QEMU overwrites a module silently that lies in the way of its device tree, and accepts one
//! outside RAM. Modules therefore go to the top, and [`Machine::place`] refuses a memory in which
//! they would meet the rest.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use hyp_core::range::Bytes;

use crate::qemu::Qemu;

/// First byte of RAM of QEMU's `virt`.
pub const RAM_BASE: u64 = 0x4000_0000;
/// Where QEMU loads `hyp.bin`.
pub const HYP_BASE: u64 = 0x4020_0000;
/// What QEMU's device tree may take.
const TREE_SPACE: u64 = 2 << 20;
/// Where QEMU's device tree for a raw image begins at most, from the bottom of RAM.
const TREE_AT_MOST: u64 = 128 << 20;
/// What the hypervisor keeps for its tables and caches besides its image, on the safe side: this
/// much, and one part in `OWN_SHARE` of all RAM.
const OWN: u64 = 4 << 20;
const OWN_SHARE: u64 = 128;
/// Modules are aligned to this.
const MODULE_ALIGN: u64 = 2 << 20;
/// The unit of `--mem`: QEMU's own is finer, but nobody needs it.
const MEM_UNIT: u64 = 1 << 20;

/// What makes time deterministic: one virtual nanosecond an instruction, and no other clock.
pub(crate) const ICOUNT: [&str; 6] =
    ["-icount", "shift=0,sleep=off", "-seed", "1", "-rtc", "base=2024-01-01T00:00:00,clock=vm"];

/// Why no such machine can be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Too small for what has to be in it.
    #[error(
        "--mem {} is too small: {} are needed ({parts})",
        Bytes(*.given), Bytes(*.needed)
    )]
    TooSmall {
        /// Machine memory, bytes.
        given: u64,
        /// What would do, bytes.
        needed: u64,
        /// What it is needed for.
        parts: String,
    },
    /// Not a whole number of MiB.
    #[error("--mem {} is not a multiple of 1 MiB", Bytes(*.0))]
    NotMib(u64),
}

/// What a module is to the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The guest's image, with its command line.
    Kernel {
        /// `/chosen/bootargs` of the guest.
        bootargs: String,
    },
    /// The guest's initial RAM disk.
    Initrd,
}

/// A file that QEMU's guest-loader puts into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// What it is.
    pub role: Role,
    /// The file.
    pub path: PathBuf,
    /// Its size, bytes.
    pub size: u64,
}

/// The machine's options.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPU model.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM, bytes.
    pub mem: u64,
    /// What the hypervisor keeps for tables because of what it is asked for, bytes.
    pub more: u64,
    /// A reset ends QEMU.
    pub no_reboot: bool,
    /// One virtual nanosecond an instruction, the same in every run.
    pub icount: bool,
    /// The hypervisor's image.
    pub kernel: PathBuf,
    /// The hypervisor's command line.
    pub append: String,
    /// A file that the RAM is, shared with us; by itself QEMU has memory of its own.
    pub ram: Option<PathBuf>,
    /// Guest image and initrd; none for the embedded guest.
    pub modules: Vec<Module>,
    /// More arguments for QEMU.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// Addresses for the modules, in their order, from the top of RAM downwards.
    ///
    /// `hyp_size` is the memory that the hypervisor's image takes and `guest_mem` what the guest
    /// gets at least, both in bytes.
    pub fn place(&self, hyp_size: u64, guest_mem: u64) -> Result<Vec<u64>, MachineError> {
        if !self.mem.is_multiple_of(MEM_UNIT) {
            return Err(MachineError::NotMib(self.mem));
        }
        let hyp = HYP_BASE - RAM_BASE + up(hyp_size);
        let modules = self.modules_size();
        let above_tree = TREE_SPACE.saturating_add(modules);
        let tree = (self.mem / 2).min(TREE_AT_MOST);
        let fits = guest_mem <= self.room(hyp_size)
            && tree.max(hyp).saturating_add(above_tree) <= self.mem;
        if !fits {
            let parts = format!(
                "hypervisor {}, device tree {}, guest image and initrd {}, guest RAM {}",
                Bytes((hyp + OWN).saturating_add(self.more)),
                Bytes(TREE_SPACE),
                Bytes(modules),
                Bytes(guest_mem),
            );
            let hyp = (hyp + OWN).saturating_add(self.more);
            let sum = hyp.saturating_add(above_tree).saturating_add(guest_mem);
            let sum = sum.saturating_add(sum / (OWN_SHARE - 1) + 1);
            // Up to 256 MiB the tree lies in the middle; beyond, at 128 MiB.
            let beside_tree = above_tree.saturating_add(above_tree.min(TREE_AT_MOST));
            let needed = sum.max(beside_tree).next_multiple_of(MEM_UNIT);
            return Err(MachineError::TooSmall { given: self.mem, needed, parts });
        }
        let mut top = RAM_BASE + self.mem;
        let place = |module: &Module| {
            top = (top - module.size) & !(MODULE_ALIGN - 1);
            top
        };
        Ok(self.modules.iter().map(place).collect())
    }

    /// What is left for guest RAM, bytes.
    pub fn room(&self, hyp_size: u64) -> u64 {
        let hyp = HYP_BASE - RAM_BASE + up(hyp_size) + OWN + self.mem / OWN_SHARE;
        let others = hyp
            .saturating_add(self.more)
            .saturating_add(TREE_SPACE)
            .saturating_add(self.modules_size());
        self.mem.saturating_sub(others)
    }

    fn modules_size(&self) -> u64 {
        self.modules.iter().map(|module| up(module.size)).fold(0, u64::saturating_add)
    }

    /// QEMU's arguments, given the modules' addresses.
    pub fn arguments(&self, addresses: &[u64]) -> Vec<OsString> {
        let mut arguments = Vec::<OsString>::new();
        let mut add = |words: &[&OsStr]| arguments.extend(words.iter().map(OsString::from));
        let option = |name: &'static str| OsStr::new(name);
        let mut machine = "virt,virtualization=on,gic-version=3,dtb-randomness=off".to_owned();
        if let Some(ram) = &self.ram {
            let mib = self.mem / MEM_UNIT;
            let mut backend = OsString::from(format!("memory-backend-file,id=ram,size={mib}M,"));
            backend.push("share=on,mem-path=");
            backend.push(double_commas(ram.as_os_str()));
            add(&[option("-object"), &backend]);
            machine.push_str(",memory-backend=ram");
        }
        add(&[option("-M"), OsStr::new(&machine)]);
        add(&[option("-cpu"), OsStr::new(&self.cpu)]);
        add(&[option("-smp"), OsStr::new(&self.smp.to_string())]);
        add(&[option("-m"), OsStr::new(&format!("{}M", self.mem / MEM_UNIT))]);
        add(&[option("-nic"), option("none"), option("-nographic")]);
        if self.no_reboot {
            add(&[option("-no-reboot")]);
        }
        if self.icount {
            add(&ICOUNT.map(OsStr::new));
        }
        add(&[option("-kernel"), self.kernel.as_os_str()]);
        if !self.append.is_empty() {
            add(&[option("-append"), OsStr::new(&self.append)]);
        }
        for (module, address) in self.modules.iter().zip(addresses) {
            add(&[option("-device"), &module.device(*address)]);
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// The command that starts it.
    pub fn command(&self, qemu: &Qemu, addresses: &[u64]) -> Command {
        let mut command = Command::new(qemu.program());
        command.args(self.arguments(addresses));
        command
    }
}

impl Module {
    fn device(&self, address: u64) -> OsString {
        let mut device = OsString::from(format!("guest-loader,addr={address:#x},"));
        device.push(match self.role {
            Role::Kernel { .. } => "kernel=",
            Role::Initrd => "initrd=",
        });
        device.push(double_commas(self.path.as_os_str()));
        if let Role::Kernel { bootargs } = &self.role
            && !bootargs.is_empty()
        {
            device.push(",bootargs=");
            device.push(double_commas(OsStr::new(bootargs)));
        }
        device
    }
}

/// Commas separate the parts of a QEMU option; one that is meant is written twice.
pub(crate) fn double_commas(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes().iter();
    let doubled = bytes.flat_map(|&byte| std::iter::repeat_n(byte, 1 + usize::from(byte == b',')));
    OsString::from_vec(doubled.collect())
}

fn up(size: u64) -> u64 {
    size.checked_next_multiple_of(MODULE_ALIGN).unwrap_or(u64::MAX / 4)
}

/// A command as a line for a shell.
pub fn shell_line(program: &Path, arguments: &[OsString]) -> String {
    let words = std::iter::once(program.as_os_str());
    let words = words.chain(arguments.iter().map(OsString::as_os_str));
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    // Commas and equals signs are plain to every shell; quoting them only makes the line hard to read.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@%".contains(c);
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        return word.into_owned();
    }
    shlex::try_quote(&word).map_or_else(|_| word.to_string(), |quoted| quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(mem_mib: u64, modules: &[(Role, &str, u64)]) -> Machine {
        let module = |(role, path, size): &(Role, &str, u64)| Module {
            role: role.clone(),
            path: path.into(),
            size: *size,
        };
        Machine {
            cpu: "max".into(),
            smp: 2,
            mem: mem_mib << 20,
            more: 0,
            no_reboot: false,
            icount: false,
            kernel: "hyp.bin".into(),
            append: "vcpus=2".into(),
            ram: None,
            modules: modules.iter().map(module).collect(),
            extra: vec!["-d".into(), "int".into()],
        }
    }

    fn kernel(bootargs: &str) -> Role {
        Role::Kernel { bootargs: bootargs.into() }
    }

    #[test]
    fn modules_go_to_the_top_apart_and_aligned() {
        let modules = [(kernel(""), "g", 0x1234), (Role::Initrd, "i", (2 << 20) + 1)];
        let at = machine(512, &modules).place(4 << 20, 8 << 20).unwrap();
        assert_eq!(at, [0x5fe0_0000, 0x5fa0_0000]);
    }

    #[test]
    fn too_small_a_memory_names_both_numbers() {
        let modules = [(kernel(""), "g", 40 << 20)];
        let error = machine(64, &modules).place(4 << 20, 32 << 20).unwrap_err().to_string();
        assert!(error.contains("--mem 64 MiB") && error.contains("85 MiB"), "{error}");
        assert!(error.contains("guest RAM 32 MiB"), "{error}");
    }

    #[test]
    fn a_module_in_the_way_of_the_tree_is_refused() {
        // 48 MiB of module in 64 MiB: the sum would do, but the tree lies at 32 MiB.
        let modules = [(kernel(""), "g", 44 << 20)];
        let error = machine(64, &modules).place(1 << 20, 8 << 20).unwrap_err().to_string();
        assert!(error.contains("92 MiB"), "{error}");
    }

    #[test]
    fn the_command_line_doubles_commas() {
        let modules = [(kernel("console=ttyAMA0,115200 a=b"), "a,b.bin", 16)];
        let line = shell_line(Path::new("qemu"), &machine(256, &modules).arguments(&[0x4fe0_0000]));
        assert_eq!(
            line,
            "qemu -M virt,virtualization=on,gic-version=3,dtb-randomness=off -cpu max -smp 2 \
             -m 256M -nic none -nographic -kernel hyp.bin -append vcpus=2 \
             -device 'guest-loader,addr=0x4fe00000,kernel=a,,b.bin,bootargs=console=ttyAMA0,,115200 a=b' \
             -d int"
        );
    }

    #[test]
    fn shared_ram_is_the_machines_memory() {
        let machine = Machine { ram: Some("/a,b".into()), ..machine(256, &[]) };
        let line = shell_line(Path::new("qemu"), &machine.arguments(&[]));
        let wanted =
            "-object memory-backend-file,id=ram,size=256M,share=on,mem-path=/a,,b -M virt,";
        assert!(line.contains(wanted) && line.contains(",memory-backend=ram -cpu"), "{line}");
    }

    #[test]
    fn icount_makes_time_repeatable() {
        let mut machine = machine(256, &[]);
        machine.icount = true;
        let line = shell_line(Path::new("qemu"), &machine.arguments(&[]));
        assert!(line.contains("-icount shift=0,sleep=off -seed 1 -rtc base="), "{line}");
    }
}
