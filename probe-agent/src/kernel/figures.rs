//! The kernel's own figures about our programs and maps, from `/proc/self/fdinfo`: the one place that needs no further
//! system call, and shows `recursion_misses` since Linux 5.12
//! (`bpf_prog_show_fdinfo` in <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c>).

use std::{fs, io, os::fd::RawFd};

/// What the kernel measured about one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramFigures {
    /// Nanoseconds spent in it; 0 unless `kernel.bpf_stats_enabled` is 1.
    pub run_time_ns: u64,
    /// How often it ran; 0 unless `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// Events that it was not given, since it was running on that CPU already.
    pub recursion_misses: u64,
    /// Bytes charged for it.
    pub memory_bytes: u64,
}

/// Reads a program's figures by its file descriptor.
pub(super) fn of_program(fd: RawFd) -> io::Result<ProgramFigures> {
    Ok(parse(&fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?))
}

/// Bytes charged for a map.
pub(super) fn map_bytes(fd: RawFd) -> io::Result<u64> {
    Ok(of_program(fd)?.memory_bytes)
}

fn parse(text: &str) -> ProgramFigures {
    let mut figures = ProgramFigures::default();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let Ok(value) = value.trim().parse() else { continue };
        match name {
            "run_time_ns" => figures.run_time_ns = value,
            "run_cnt" => figures.runs = value,
            "recursion_misses" => figures.recursion_misses = value,
            "memlock" => figures.memory_bytes = value,
            _ => {}
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_lines_that_have_them() {
        let text = "pos:\t0\nprog_tag:\tab12\nmemlock:\t8192\nrun_time_ns:\t12\nrun_cnt:\t3\nrecursion_misses:\t2\n";
        let expected = ProgramFigures { run_time_ns: 12, runs: 3, recursion_misses: 2, memory_bytes: 8192 };
        assert_eq!(parse(text), expected);
    }
}
