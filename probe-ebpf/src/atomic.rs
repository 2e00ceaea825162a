//! Atomic instructions on map values: of BPF's instruction set v3, Linux 5.12
//! (<https://docs.kernel.org/bpf/standardization/instruction-set.html#atomic-operations>).
//!
//! rustc describes the target as single-threaded, so that core's atomics compile to plain loads and stores there; hence
//! the assembly. Two programs can meet on one CPU (an ICMP error arrives in a softirq while a state change is counted),
//! and shared values are written from all CPUs.

use core::arch::asm;

/// Adds to a 64-bit counter.
#[inline(always)]
pub(crate) fn add64(counter: *mut u64, value: u64) {
    // SAFETY: the pointer is into a map value (the verifier checks it), aligned to 8.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value, options(nostack)) }
}

/// Sets bits of a 64-bit word.
#[inline(always)]
pub(crate) fn or64(word: *mut u64, bits: u64) {
    // SAFETY: as in `add64`.
    unsafe { asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits, options(nostack)) }
}

/// Stores `new` if the word holds `expected`; whether it did.
#[inline(always)]
pub(crate) fn swap32(word: *mut u32, expected: u32, new: u32) -> bool {
    let found: u64;
    // SAFETY: the pointer is into a map value or a socket's storage (the verifier checks it), aligned to 4. The
    // instruction compares with, and leaves what it found in, r0.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
            in("r1") word,
            in("r2") u64::from(new),
            inout("r0") u64::from(expected) => found,
            options(nostack)
        );
    }
    found as u32 == expected
}
