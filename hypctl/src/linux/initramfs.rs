//! The initramfs of a Linux guest: busybox, our first program, and what it is to do.
//!
//! | file | what |
//! | --- | --- |
//! | `/init` | `init.sh` beside this file |
//! | `/bin/busybox`, `/bin/sh` | Debian's static busybox |
//! | `/bin/counter` | prints the virtual counter and its frequency: 25 instructions, below |
//! | `/dev/console` | what the kernel opens for the first program |
//! | `/hyp/mark`, `/hyp/script` | the mark of lines for hypctl, and the commands to run, if there are any |
//!
//! An archive in the format `newc`, by crate `cpio`. It has no dates and no owner but root: the same content is the same
//! archive, byte for byte, which a deterministic run needs.

use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

const INIT: &[u8] = include_bytes!("init.sh");

/// What the first program is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a> {
    /// Begins each line that is for hypctl; without it there are none.
    pub mark: Option<&'a str>,
    /// Commands for the shell; without them it is interactive.
    pub script: Option<&'a str>,
}

/// Types of files, as in `st_mode`.
const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;
/// The console's device number.
const CONSOLE: (u32, u32) = (5, 1);

/// Makes the archive. `busybox` is the program, statically linked for arm64.
///
/// # Errors
/// A file of 4 GiB or more does not go into the format.
pub fn archive(busybox: &[u8], told: Told<'_>) -> io::Result<Vec<u8>> {
    let mut out = Archive { bytes: Vec::new(), files: 0 };
    for folder in ["bin", "dev", "hyp", "proc", "sys", "tmp"] {
        out.add(folder, FOLDER | 0o755, &[])?;
    }
    out.add_device("dev/console", CHARACTERS | 0o600, CONSOLE)?;
    out.add("bin/busybox", FILE | 0o755, busybox)?;
    out.add("bin/sh", LINK | 0o777, b"busybox")?;
    out.add("bin/counter", FILE | 0o755, &counter())?;
    out.add("init", FILE | 0o755, INIT)?;
    if let Some(mark) = told.mark {
        out.add("hyp/mark", FILE | 0o644, format!("{mark}\n").as_bytes())?;
    }
    if let Some(script) = told.script {
        out.add("hyp/script", FILE | 0o644, format!("{script}\n").as_bytes())?;
    }
    trailer(out.bytes)
}

struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn next(&mut self, name: &str, mode: u32) -> Builder {
        self.files += 1;
        Builder::new(name).ino(self.files).mode(mode)
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut file = self.next(name, mode).write(&mut self.bytes, length);
        file.write_all(content)?;
        file.finish().map(drop)
    }

    fn add_device(&mut self, name: &str, mode: u32, (major, minor): (u32, u32)) -> io::Result<()> {
        let device = self.next(name, mode).rdev_major(major).rdev_minor(minor);
        device.write(&mut self.bytes, 0).finish().map(drop)
    }
}

/// The program `counter` as an ELF file: one segment, which is the whole file.
fn counter() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + 4 * COUNTER.len() as u64;
    let half = |value: u16| value.to_le_bytes().to_vec();
    let word = |value: u32| value.to_le_bytes().to_vec();
    let long = |value: u64| value.to_le_bytes().to_vec();
    [
        // ELF, 64-bit, little-endian; an executable file for AArch64; its headers' sizes and numbers.
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        [half(2), half(183), word(1), long(BASE + HEADERS), long(64), long(0), word(0)].concat(),
        [half(64), half(56), half(1), half(64), half(0), half(0)].concat(),
        // Load it all, readable and executable.
        [word(1), word(5), long(0), long(BASE), long(BASE), long(size), long(size)].concat(),
        long(0x1_0000),
        COUNTER.iter().copied().flat_map(word).collect(),
    ]
    .concat()
}

/// Prints `COUNT FREQUENCY`: the numbers' digits are put below the stack's top, the last one first.
const COUNTER: [u32; 25] = [
    0xd53b_e049, //        mrs  x9, cntvct_el0
    0xd53b_e000, //        mrs  x0, cntfrq_el0
    0x9100_03e3, //        mov  x3, sp
    0x5280_0142, //        mov  w2, #10
    0x5280_0046, //        mov  w6, #2          two numbers
    0x9ac2_0804, // digit: udiv x4, x0, x2
    0x9b02_8085, //        msub x5, x4, x2, x0
    0x1100_c0a5, //        add  w5, w5, #'0'
    0x381f_fc65, //        strb w5, [x3, #-1]!
    0xaa04_03e0, //        mov  x0, x4
    0xb5ff_ff60, //        cbnz x0, digit
    0x7100_04c6, //        subs w6, w6, #1
    0x5400_00a0, //        b.eq out
    0x5280_0405, //        mov  w5, #' '
    0x381f_fc65, //        strb w5, [x3, #-1]!
    0xaa09_03e0, //        mov  x0, x9
    0x17ff_fff5, //        b    digit
    0x5280_0020, // out:   mov  w0, #1          standard output
    0xaa03_03e1, //        mov  x1, x3
    0xcb23_63e2, //        sub  x2, sp, x3
    0x5280_0808, //        mov  w8, #64         write
    0xd400_0001, //        svc  #0
    0x5280_0000, //        mov  w0, #0
    0x5280_0ba8, //        mov  w8, #93         exit
    0xd400_0001, //        svc  #0
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cpio::newc::Reader;

    use super::*;

    /// Mode and content of each file, read back.
    fn files(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut files = BTreeMap::new();
        let mut rest = archive;
        loop {
            let mut file = Reader::new(rest).unwrap();
            if file.entry().is_trailer() {
                return files;
            }
            let (name, mode) = (file.entry().name().to_owned(), file.entry().mode());
            let mut content = Vec::new();
            io::copy(&mut file, &mut content).unwrap();
            files.insert(name, (mode, content));
            rest = file.finish().unwrap();
        }
    }

    #[test]
    fn everything_is_in_it_with_its_mode() {
        let told = Told { mark: Some("abc"), script: Some("echo hi\nexit 3") };
        let files = files(&archive(b"program", told).unwrap());
        assert_eq!(files["init"], (0o100_755, INIT.to_vec()));
        assert_eq!(files["bin/busybox"], (0o100_755, b"program".to_vec()));
        assert_eq!(files["bin/sh"], (0o120_777, b"busybox".to_vec()));
        assert_eq!(files["dev/console"].0, 0o020_600);
        assert_eq!(files["proc"].0, 0o040_755);
        assert_eq!(files["hyp/mark"].1, b"abc\n");
        assert_eq!(files["hyp/script"].1, b"echo hi\nexit 3\n");
    }

    #[test]
    fn without_a_script_it_is_a_shell_that_says_nothing_to_us() {
        let files = files(&archive(b"program", Told::default()).unwrap());
        assert!(!files.contains_key("hyp/mark") && !files.contains_key("hyp/script"));
    }

    #[test]
    fn the_same_content_is_the_same_archive() {
        let told = Told { mark: Some("abc"), script: Some("true") };
        assert_eq!(archive(b"p", told).unwrap(), archive(b"p", told).unwrap());
    }

    #[test]
    fn the_counters_program_is_an_elf_file_that_starts_at_its_code() {
        let file = counter();
        let elf = object::read::elf::ElfFile64::<object::Endianness>::parse(&*file).unwrap();
        use object::{Object, ObjectSegment};
        let segment = elf.segments().next().unwrap();
        assert_eq!(segment.size(), file.len() as u64);
        assert_eq!(elf.entry() - segment.address(), (file.len() - 4 * COUNTER.len()) as u64);
    }
}
