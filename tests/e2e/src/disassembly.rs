//! The image's machine code, function by function.
//!
//! The protocols of stage 2 promise more than their source can show: that an install is a
//! load-exclusive/store-exclusive loop on the baseline architecture, that nothing on it is called
//! out of line, and that no helper decides at run time which atomics to use. Those promises are
//! about instructions, so the instructions are read.

use std::fmt;
use std::path::Path;

use object::{Object, ObjectSymbol, SymbolKind};
use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Instruction, Opcode, Operand};

/// A linked program.
pub struct Program {
    bytes: Vec<u8>,
}

/// One decoded instruction.
#[derive(Debug)]
pub struct Line {
    /// Its address.
    pub address: u64,
    /// Its encoding.
    pub word: u32,
    /// What it is; `None` if the decoder does not know it.
    pub instruction: Option<Instruction>,
}

/// The code of one function.
#[derive(Debug)]
pub struct Function {
    /// Its symbol.
    pub name: String,
    /// Its instructions, in order.
    pub lines: Vec<Line>,
}

impl Program {
    /// Reads an ELF file with symbols.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        match std::fs::read(path) {
            Ok(bytes) => Self { bytes },
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// The names of all symbols.
    #[track_caller]
    pub fn symbols(&self) -> Vec<String> {
        let file = object::File::parse(&*self.bytes).unwrap();
        file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned)).collect()
    }

    /// The functions whose demangled path ends with `path`, as `Slot::try_set` does.
    ///
    /// Both manglings spell a path's parts as length and name in a row, so parts are looked for as
    /// that. Fails if there is none: a check of nothing proves nothing.
    #[track_caller]
    pub fn functions(&self, path: &str) -> Vec<Function> {
        let file = object::File::parse(&*self.bytes).unwrap();
        let mut found = Vec::new();
        for symbol in file.symbols() {
            let Ok(name) = symbol.name() else { continue };
            if symbol.kind() == SymbolKind::Text && symbol.size() > 0 && names(name, path) {
                let lines = self.decode(&file, symbol.address(), symbol.size());
                found.push(Function { name: name.to_owned(), lines });
            }
        }
        assert!(!found.is_empty(), "the image has no function `{path}`: inlined away, or renamed");
        found
    }

    #[track_caller]
    fn decode(&self, file: &object::File<'_>, start: u64, size: u64) -> Vec<Line> {
        use object::ObjectSection;
        let section = file
            .sections()
            .find(|section| {
                (section.address()..section.address() + section.size()).contains(&start)
            })
            .unwrap_or_else(|| panic!("no section holds {start:#x}"));
        let code = section.data_range(start, size).unwrap().unwrap_or_default();
        let decoder = InstDecoder::default();
        let words = code.as_chunks::<4>().0.iter().zip((start..).step_by(4));
        let line = |(bytes, address): (&[u8; 4], u64)| Line {
            address,
            word: u32::from_le_bytes(*bytes),
            instruction: decoder.decode(&mut U8Reader::new(bytes)).ok(),
        };
        words.map(line).collect()
    }
}

/// Whether a mangled name's path ends with `path`.
fn names(mangled: &str, path: &str) -> bool {
    if mangled == path {
        return true;
    }
    let parts: Vec<_> = path.split("::").map(|part| format!("{}{part}", part.len())).collect();
    let mut rest = mangled;
    for part in &parts {
        match rest.find(part.as_str()) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

impl Function {
    /// Expects a loop of load-exclusive and store-exclusive: both are there, and a branch after
    /// the store leads back to the load or before it.
    #[track_caller]
    pub fn is_exclusive_loop(&self) {
        let first = |wanted: &[Opcode]| {
            self.lines.iter().position(|line| line.opcode().is_some_and(|it| wanted.contains(&it)))
        };
        let load = first(&[Opcode::LDXR, Opcode::LDAXR]);
        let store = first(&[Opcode::STXR, Opcode::STLXR]);
        let (Some(load), Some(store)) = (load, store) else {
            panic!("no LDXR/LDAXR and STXR/STLXR\n{self}")
        };
        let back = self.lines[store..].iter().any(|line| {
            line.branch_target().is_some_and(|target| target <= self.lines[load].address)
        });
        assert!(load < store && back, "no branch from behind the store back to the load\n{self}");
    }

    /// Expects a leaf: no call, no tail call, and nothing that the decoder does not know.
    #[track_caller]
    pub fn calls_nothing(&self) {
        for line in &self.lines {
            let Some(opcode) = line.opcode() else {
                panic!("{:#x}: {:08x} is unknown to the decoder\n{self}", line.address, line.word)
            };
            let calls = matches!(opcode, Opcode::BL | Opcode::BLR);
            // A tail call leaves by a plain branch.
            let leaves = opcode == Opcode::BR
                || line.branch_target().is_some_and(|target| {
                    let last = self.lines.last().map_or(0, |line| line.address);
                    !(self.lines[0].address..=last).contains(&target)
                });
            assert!(!calls && !leaves, "{:#x}: {line} calls out of line\n{self}", line.address);
        }
    }

    /// Its system instructions in order: barriers, and writes of system registers without their operand.
    pub fn system(&self) -> Vec<u32> {
        // MSR and barriers: bits 31:22 are 1101010100, L (21) is 0; the low five bits of an MSR are Rt.
        let is_msr = |word: u32| word & 0xfff0_0000 == 0xd510_0000;
        let is_barrier = |word: u32| word & 0xffff_f01f == 0xd503_301f;
        let words = self.lines.iter().map(|line| line.word);
        words
            .filter(|word| is_msr(*word) || is_barrier(*word))
            .map(|word| if is_msr(word) { word & !0x1f } else { word })
            .collect()
    }

    /// How many instructions of this kind it has.
    pub fn count(&self, opcode: Opcode) -> usize {
        self.lines.iter().filter(|line| line.opcode() == Some(opcode)).count()
    }
}

impl Line {
    /// What kind of instruction it is, without its variants of ordering.
    pub fn opcode(&self) -> Option<Opcode> {
        self.instruction.as_ref().map(|instruction| instruction.opcode)
    }

    /// Where a direct branch leads.
    pub fn branch_target(&self) -> Option<u64> {
        let instruction = self.instruction.as_ref()?;
        let branches = matches!(
            instruction.opcode,
            Opcode::B | Opcode::Bcc(_) | Opcode::CBZ | Opcode::CBNZ | Opcode::TBZ | Opcode::TBNZ
        );
        let offset = instruction.operands.iter().find_map(|operand| match operand {
            Operand::PCOffset(offset) => Some(*offset),
            _ => None,
        })?;
        branches.then(|| self.address.wrapping_add_signed(offset))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instruction {
            Some(instruction) => write!(f, "{instruction}"),
            None => write!(f, "?"),
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.name)?;
        for line in &self.lines {
            writeln!(f, "  {:#x}  {:08x}  {line}", line.address, line.word)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(words: &[u32]) -> Function {
        let decoder = InstDecoder::default();
        let lines = words.iter().zip((0x1000..).step_by(4)).map(|(&word, address)| Line {
            address,
            word,
            instruction: decoder.decode(&mut U8Reader::new(&word.to_le_bytes())).ok(),
        });
        Function { name: "f".into(), lines: lines.collect() }
    }

    const LDAXR: u32 = 0xc85f_fc08;
    const STLXR: u32 = 0xc809_fc02;
    const CBNZ_BACK_1: u32 = 0x35ff_ffe9;
    const CBNZ_BACK_2: u32 = 0x35ff_ffc9;
    const RET: u32 = 0xd65f_03c0;
    const BL: u32 = 0x9400_0001;
    const BLR: u32 = 0xd63f_0100;
    const B_FAR: u32 = 0x1400_0100;

    fn fails(check: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(check).is_err()
    }

    #[test]
    fn an_exclusive_loop_is_one() {
        function(&[LDAXR, STLXR, CBNZ_BACK_2, RET]).is_exclusive_loop();
    }

    #[test]
    fn a_branch_that_misses_the_load_is_no_loop() {
        assert!(fails(|| function(&[LDAXR, STLXR, CBNZ_BACK_1, RET]).is_exclusive_loop()));
        assert!(fails(|| function(&[LDAXR, STLXR, RET]).is_exclusive_loop()));
        assert!(fails(|| function(&[STLXR, CBNZ_BACK_1, RET]).is_exclusive_loop()));
    }

    #[test]
    fn calls_and_tail_calls_are_found() {
        function(&[LDAXR, STLXR, CBNZ_BACK_2, RET]).calls_nothing();
        assert!(fails(|| function(&[BL, RET]).calls_nothing()));
        assert!(fails(|| function(&[BLR, RET]).calls_nothing()));
        assert!(fails(|| function(&[B_FAR]).calls_nothing()));
        assert!(fails(|| function(&[0xffff_ffff, RET]).calls_nothing()), "unknown is no pass");
    }

    #[test]
    fn both_manglings_name_a_path() {
        let v0 = "_RNvMs_NtCs1234_6stage24slotNtB4_4Slot7try_set";
        let legacy = "_ZN6stage24slot4Slot7try_set17h0123456789abcdefE";
        for name in [v0, legacy] {
            assert!(names(name, "Slot::try_set"), "{name}");
            assert!(!names(name, "Slot::clear"), "{name}");
        }
        assert!(names("memcpy", "memcpy"));
    }
}
