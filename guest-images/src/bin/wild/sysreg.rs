//! System registers by encoding: the access is assembled at run time into a page and called.

use guest_rt::cache::sync_code;
use guest_rt::exception::{Fault, probe_call};
use guest_rt::{Args, Machine, PAGE, check_eq, fail, say};

/// MRS X0 and MSR X0 with op0 = 2, and RET.
const MRS: u32 = 0xd530_0000;
const MSR: u32 = 0xd510_0000;
const RET: u32 = 0xd65f_03c0;

/// op0, op1, CRn, CRm, op2.
type Encoding = [u32; 5];

/// A page that holds one access at a time.
struct Access {
    code: usize,
}

impl Access {
    fn new(machine: &Machine) -> Self {
        Self { code: machine.arena().take(PAGE, PAGE) }
    }

    /// MOVZ and MOVKs of `value` into X0, then the access, then RET.
    fn run(
        &self,
        access: u32,
        [op0, op1, crn, crm, op2]: Encoding,
        value: u64,
    ) -> Result<u64, Fault> {
        let fields = (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5;
        let chunk = |n: u32| (value >> (16 * n) & 0xffff) as u32;
        let word = |n: u32| 0xf280_0000 | n << 21 | chunk(n) << 5;
        let words = [0xd280_0000 | chunk(0) << 5, word(1), word(2), word(3), access | fields, RET];
        // SAFETY: 1. a page of the arena that this file alone uses; 2. nobody executes it now.
        unsafe { (self.code as *mut [u32; 6]).write_volatile(words) };
        sync_code(self.code, size_of_val(&words));
        // SAFETY: the words above keep to x0.
        unsafe { probe_call(self.code) }
    }
}

/// Every register of the ID block S3_0_C0_C1-7 is readable; what is not assigned reads as zero.
pub(crate) fn idregs(machine: &Machine, _: Args) {
    let access = Access::new(machine);
    for crm in 1..8 {
        for op2 in 0..8 {
            match access.run(MRS, [3, 0, 0, crm, op2], !0) {
                Ok(0) => {}
                Ok(value) => say!("wild: S3_0_C0_C{crm}_{op2} = {value:#018x}"),
                Err(fault) => fail!("S3_0_C0_C{crm}_{op2}: {fault}"),
            }
        }
    }
    // AArch32 at EL0 alone is allowed, nothing above; EL2 and EL3 are not this guest's business.
    let Ok(pfr0) = access.run(MRS, [3, 0, 0, 4, 0], 0) else {
        return;
    };
    check_eq!(pfr0 >> 4 & 0xf, 1, "ID_AA64PFR0_EL1.EL1: AArch64 only");
    check_eq!(pfr0 >> 8 & 0xff, 0, "ID_AA64PFR0_EL1.EL2 and EL3");
    // Counters, profiling and trace could look past EL2. 0xf is "absent", too, but means one of Arm's own.
    let Ok(dfr0) = access.run(MRS, [3, 0, 0, 5, 0], 0) else {
        return;
    };
    for (field, shift) in [("PMUVer", 8), ("TraceVer", 4), ("PMSVer", 32), ("TraceBuffer", 44)] {
        check_eq!(dfr0 >> shift & 0xf, 0, "ID_AA64DFR0_EL1.{field}");
    }
}

/// Reads `reg=`, or writes `value=` to it, and says what came of it.
pub(crate) fn any(machine: &Machine, args: Args) {
    let name = args.get("reg").unwrap_or("S3_0_C15_C0_0");
    let Some(encoding) = parse(name) else { fail!("reg={name}: not of the form S3_0_C15_C0_0") };
    let access = Access::new(machine);
    let result = match args.get("value") {
        None => access.run(MRS, encoding, 0),
        Some(_) => access.run(MSR, encoding, args.number("value", 0) as u64),
    };
    match result {
        Ok(value) => say!("wild: {name}: x0 = {value:#x}"),
        Err(fault) => say!("wild: {name}: {fault}"),
    }
}

/// `S<op0>_<op1>_C<CRn>_C<CRm>_<op2>`, as assemblers write it.
fn parse(name: &str) -> Option<Encoding> {
    let limits = [3, 7, 15, 15, 7];
    let prefixes = ["S", "", "C", "C", ""];
    let mut parts = name.split('_');
    let mut encoding = [0; 5];
    for ((field, limit), prefix) in encoding.iter_mut().zip(limits).zip(prefixes) {
        *field = parts.next()?.strip_prefix(prefix)?.parse().ok()?;
        if *field > limit {
            return None;
        }
    }
    (parts.next().is_none() && encoding[0] >= 2).then_some(encoding)
}
