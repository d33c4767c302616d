//! From what the user typed to files that QEMU can load.
//!
//! A word is looked up in this order: a guest of ours, `u-boot`, a path. (`./touch` is always a
//! path.) The files are opened and looked at before anything is built or started, with the code
//! that the hypervisor will use ([`hyp_core::image`]), so that a mistake is one sentence at the
//! prompt instead of a crash at EL1.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hyp_abi::map::RAM_BASE;
use hyp_core::config::MIN_MEM;
use hyp_core::image::{self, Format, HEAD, ImageError};

use crate::build::DEFAULT_GUEST;
use crate::catalogue::{self, FetchError, UBOOT, ours};
use crate::cli::RunArgs;
use crate::machine::{Module, Role};
use crate::terminal::ControlC;
use crate::workspace::Workspace;

/// RAM that no guest has: for asking how much an image needs, bytes.
const PLENTY: u64 = 1 << 40;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Neither a guest of ours nor a file.
    #[error(
        "no guest `{word}`, and no file of that name; ours are {known}; others are u-boot and linux; or give a path \
         to a raw image"
    )]
    Unknown {
        /// What was typed.
        word: String,
        /// The guests of ours.
        known: String,
    },
    /// A file cannot be used.
    #[error("{what} {}: {why}", path.display())]
    File {
        /// What it was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file is readable, but no guest.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// The bootstrap could not bring it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Our own image is not one.
    #[error("{}: no arm64 Image header; build it again", .0.display())]
    Hypervisor(PathBuf),
}

/// A guest that was found, before the build.
#[derive(Debug)]
pub enum Wanted {
    /// One of ours.
    Ours(String),
    /// Somebody else's.
    File(PathBuf),
}

/// A guest that is ready.
#[derive(Debug)]
pub struct Guest {
    /// What QEMU has to load; nothing for the embedded guest.
    pub modules: Vec<Module>,
    /// Guest RAM that it needs at least, bytes.
    pub least_mem: u64,
    /// What Ctrl-C means to it.
    pub control_c: ControlC,
    /// One of ours: what it asks of the hypervisor it may ask.
    pub is_ours: bool,
}

impl Wanted {
    /// Looks up the guest of a run and checks the files that are there before the build.
    pub fn find(workspace: &Workspace, arguments: &RunArgs) -> Result<Self, GuestError> {
        if let Some(initrd) = &arguments.initrd {
            open("initrd", initrd)?;
        }
        let word = &arguments.guest;
        let ours = ours(workspace);
        if ours.iter().any(|name| name == word) {
            return Ok(Self::Ours(word.clone()));
        }
        let path =
            if word == UBOOT { catalogue::fetch(workspace, UBOOT)? } else { PathBuf::from(word) };
        if !word.contains('/') && !path.exists() {
            return Err(GuestError::Unknown { word: word.clone(), known: ours.join(", ") });
        }
        modules(&path, arguments)?;
        Ok(Self::File(path))
    }

    /// The guest's files, after the build.
    pub fn load(self, workspace: &Workspace, arguments: &RunArgs) -> Result<Guest, GuestError> {
        let (path, control_c) = match &self {
            Self::Ours(name) => (workspace.guest_bin(name), ControlC::EndsTheRun),
            Self::File(path) => (path.clone(), ControlC::GoesToTheGuest),
        };
        let (mut modules, least_mem) = modules(&path, arguments)?;
        let bare = arguments.append.is_none() && arguments.initrd.is_none();
        if bare && matches!(&self, Self::Ours(name) if name == DEFAULT_GUEST) {
            modules.clear();
        }
        Ok(Guest { modules, least_mem, control_c, is_ours: matches!(self, Self::Ours(_)) })
    }
}

/// The modules of a guest image, and the guest RAM that they need.
pub(crate) fn modules(path: &Path, arguments: &RunArgs) -> Result<(Vec<Module>, u64), GuestError> {
    let (head, size) = open("guest image", path)?;
    let bootargs = arguments.append.clone().unwrap_or_default();
    let mut modules = vec![Module { role: Role::Kernel { bootargs }, path: path.to_owned(), size }];
    let mut ramdisk = None;
    if let Some(initrd) = &arguments.initrd {
        let (_, size) = open("initrd", initrd)?;
        ramdisk = Some(size);
        modules.push(Module { role: Role::Initrd, path: initrd.clone(), size });
    }
    let place = |mem| {
        image::place(&head, size, ramdisk, mem)
            .map_err(|source| GuestError::Image { path: path.to_owned(), source })
    };
    let layout = place(arguments.guest_mem.unwrap_or(PLENTY))?;
    let end = layout.ramdisk.unwrap_or(layout.footprint).end;
    let least = (end - RAM_BASE).max(MIN_MEM);
    Ok((modules, arguments.guest_mem.unwrap_or(least)))
}

/// The first bytes of a regular file, and its size.
pub(crate) fn open(what: &'static str, path: &Path) -> Result<(Vec<u8>, u64), GuestError> {
    let bad = |why: String| GuestError::File { what, path: path.to_owned(), why };
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => bad("there is no such file".to_owned()),
        _ => bad(error.to_string()),
    })?;
    if meta.is_dir() {
        return Err(bad("this is a folder; a raw image is needed".to_owned()));
    }
    if !meta.is_file() {
        return Err(bad("this is not a regular file; a raw image is needed".to_owned()));
    }
    if meta.len() == 0 {
        return Err(bad("the file is empty".to_owned()));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(|error| bad(error.to_string()))?;
    file.take(HEAD as u64).read_to_end(&mut head).map_err(|error| bad(error.to_string()))?;
    Ok((head, meta.len()))
}

/// The memory that the hypervisor's image takes when it runs, bytes.
pub fn hyp_footprint(path: &Path) -> Result<u64, GuestError> {
    let (head, size) = open("hypervisor image", path)?;
    match Format::of(&head) {
        Format::Arm64(header) => Ok(header.image_size.max(size)),
        _ => Err(GuestError::Hypervisor(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn arguments(words: &[&str]) -> RunArgs {
        let line = ["hypctl", "run"].iter().chain(words);
        match Cli::parse_from(line).command {
            Command::Run(run) => *run,
            _ => unreachable!(),
        }
    }

    fn find(words: &[&str]) -> Result<Wanted, String> {
        let workspace = Workspace::find().unwrap();
        Wanted::find(&workspace, &arguments(words)).map_err(|error| error.to_string())
    }

    #[test]
    fn our_guests_are_known_by_name() {
        assert!(matches!(find(&["touch"]), Ok(Wanted::Ours(name)) if name == "touch"));
        assert!(ours(&Workspace::find().unwrap()).iter().any(|name| name == DEFAULT_GUEST));
    }

    #[test]
    fn an_unknown_word_lists_the_guests() {
        let error = find(&["tuoch"]).unwrap_err();
        assert!(error.contains("`tuoch`") && error.contains("touch, "), "{error}");
    }

    #[test]
    fn files_that_are_no_images_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let here = folder.path().display().to_string();
        for (path, wanted) in [
            (format!("{here}/none"), "no such file"),
            (here.clone(), "folder"),
            ("/dev/null".to_owned(), "not a regular file"),
            (file("empty", b""), "empty"),
            (file("elf", b"\x7fELF\x02\x01\x01"), "an ELF file; flatten it first"),
            (file("gz", b"\x1f\x8b\x08\0"), "compressed by gzip; unpack it first"),
            (file("uimage", b"\x27\x05\x19\x56...."), "a U-Boot legacy image"),
            (file("fit", b"\xd0\x0d\xfe\xed...."), "flattened tree"),
        ] {
            let error = find(&[&path]).unwrap_err();
            assert!(error.contains(&path) && error.contains(wanted), "{error}");
        }
        let raw = file("raw", &[0; 4096]);
        assert!(matches!(find(&[&raw]), Ok(Wanted::File(_))));
        let error = find(&[&raw, "--initrd", "/nonexistent"]).unwrap_err();
        assert!(error.contains("initrd /nonexistent"), "{error}");
        let large = file("large", &vec![1; 7 << 20]);
        let error = find(&[&large, "--guest-mem", "8M"]).unwrap_err();
        assert!(error.contains("9 MiB") && error.contains("8 MiB"), "{error}");
        let error = find(&[&raw, "--guest-mem", "8M", "--initrd", &large]).unwrap_err();
        assert!(error.contains("the image and the ramdisk") && error.contains("11 MiB"), "{error}");
    }

    #[test]
    fn a_ramdisk_makes_the_guest_larger() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raw");
        std::fs::write(&path, vec![1; 16 << 20]).unwrap();
        let path = path.display().to_string();
        let run = arguments(&[&path, "--initrd", &path, "--append", "a=b"]);
        let guest = Wanted::File(path.into()).load(&Workspace::find().unwrap(), &run).unwrap();
        assert_eq!(guest.least_mem, (2 + 16 + 16) << 20);
        assert_eq!(guest.modules.len(), 2);
        assert_eq!(guest.control_c, ControlC::GoesToTheGuest);
    }
}
