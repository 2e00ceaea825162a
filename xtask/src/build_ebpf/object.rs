//! An ELF object of BPF programs in, what is in it out, or why the agent could not load it. Pure.
//!
//! The kernel would say the same at load, on the user's node; here it is said to the one who builds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, bail, ensure};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind, read::elf::ElfFile64,
};
use probe_common::abi::{maps, programs};

/// `MAX_BPF_STACK`: <https://github.com/torvalds/linux/blob/v6.12/include/linux/filter.h>.
const STACK_LIMIT: u32 = 512;

/// The kernel rounds each frame up before it sums them along a chain of calls
/// (`check_max_stack_depth` in <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/verifier.c>).
const FRAME_UNIT: u32 = 32;

/// What the kernel takes for GPL-compatible: <https://github.com/torvalds/linux/blob/v6.12/include/linux/license.h>.
const LICENSES: [&str; 6] =
    ["GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"];

const INSTRUCTION: usize = 8;

/// One function: a program's entry, or something that it calls.
#[derive(Debug, Default, PartialEq, Eq)]
struct Function {
    instructions: usize,
    /// Bytes of its own frame.
    frame: u32,
    calls: BTreeSet<String>,
}

/// What a good object holds.
#[derive(Debug)]
pub(super) struct Contents {
    license: String,
    /// Name, instructions with everything it calls, deepest stack.
    programs: Vec<(String, usize, u32)>,
    /// Name and description.
    maps: Vec<(String, String)>,
}

type Elf<'data> = ElfFile64<'data, Endianness, &'data [u8]>;

impl Contents {
    /// Reads and checks.
    pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let elf = Elf::parse(bytes).context("it is no ELF file")?;
        for section in [".BTF", ".BTF.ext"] {
            ensure!(elf.section_by_name(section).is_some(), "it has no section {section}");
        }
        let license = license(&elf)?;
        let functions = functions(&elf)?;
        let mut found = Vec::new();
        for name in programs::ALL {
            let section = format!("tp_btf/{name}");
            ensure!(elf.section_by_name(&section).is_some(), "it has no section {section}");
            ensure!(functions.contains_key(name), "it has no program {name}");
            let (instructions, depth) = whole(&functions, name);
            ensure!(depth <= STACK_LIMIT, "{name} needs {depth} bytes of stack, {STACK_LIMIT} are the limit");
            found.push((name.to_owned(), instructions, depth));
        }
        Ok(Self { license, programs: found, maps: map_descriptions(&elf)? })
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, instructions, depth) in &self.programs {
            writeln!(
                f,
                "Program:  {name:<22} {instructions:>5} instructions, {depth:>3} of {STACK_LIMIT} bytes of stack"
            )?;
        }
        for (name, description) in &self.maps {
            writeln!(f, "Map:      {name:<22} {description}")?;
        }
        writeln!(f, "License:  {}", self.license)
    }
}

fn license(elf: &Elf<'_>) -> anyhow::Result<String> {
    let section = elf.section_by_name("license").context("it has no license section")?;
    let text = String::from_utf8_lossy(section.data()?).trim_end_matches('\0').to_owned();
    ensure!(LICENSES.contains(&text.as_str()), "the kernel does not take license {text:?} for GPL-compatible");
    Ok(text)
}

/// Every function of the object, by name.
fn functions(elf: &Elf<'_>) -> anyhow::Result<BTreeMap<String, Function>> {
    let mut functions = BTreeMap::new();
    for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let section = elf.section_by_index(symbol.section_index().context("a function without a section")?)?;
        let (start, end) = (symbol.address() as usize, (symbol.address() + symbol.size()) as usize);
        let code = section.data()?.get(start..end).context("a function beyond its section")?;
        let mut function =
            Function { instructions: code.len() / INSTRUCTION, frame: frame(code), ..Function::default() };
        for (offset, relocation) in section.relocations() {
            let offset = offset as usize;
            if !(start..end).contains(&offset) || !is_call(&code[offset - start..]) {
                continue;
            }
            let RelocationTarget::Symbol(target) = relocation.target() else { bail!("a call to nowhere") };
            let target = elf.symbol_by_index(target)?;
            // A call by way of the section says in its immediate which instruction it means, counted from the next one.
            let address = if target.kind() == SymbolKind::Section {
                (i64::from(immediate(&code[offset - start..])) + 1) * INSTRUCTION as i64
            } else {
                target.address() as i64
            };
            let callee = elf.symbols().find(|symbol| {
                symbol.kind() == SymbolKind::Text
                    && symbol.size() > 0
                    && symbol.section_index() == target.section_index()
                    && symbol.address() as i64 == address
            });
            function.calls.insert(callee.context("a call into the middle of nothing")?.name()?.to_owned());
        }
        functions.insert(symbol.name()?.to_owned(), function);
    }
    Ok(functions)
}

/// Instructions and deepest stack of a function with all that it calls. BPF has no recursion.
fn whole(functions: &BTreeMap<String, Function>, entry: &str) -> (usize, u32) {
    let mut reached = BTreeSet::new();
    let depth = depth(functions, entry, &mut reached);
    (reached.iter().map(|name| functions[name].instructions).sum(), depth)
}

fn depth(functions: &BTreeMap<String, Function>, name: &str, reached: &mut BTreeSet<String>) -> u32 {
    let Some(function) = functions.get(name) else { return 0 };
    reached.insert(name.to_owned());
    let deepest = function.calls.iter().map(|callee| depth(functions, callee, reached)).max().unwrap_or(0);
    function.frame.max(1).next_multiple_of(FRAME_UNIT) + deepest
}

/// How far below the frame pointer the code reaches, by direct access or by an address it computes.
///
/// Instructions are read in a row: a register that holds a frame address keeps it until it is written. The encoding is
/// <https://docs.kernel.org/bpf/standardization/instruction-set.html>.
fn frame(code: &[u8]) -> u32 {
    const FRAME_POINTER: usize = 10;
    let mut lowest = 0;
    let mut addresses: [Option<i64>; 16] = [None; 16];
    addresses[FRAME_POINTER] = Some(0);
    let mut at = 0;
    while let Some(bytes) = code.get(at..at + INSTRUCTION) {
        let (opcode, registers) = (bytes[0], bytes[1]);
        let (to, from) = (usize::from(registers & 0xf), usize::from(registers >> 4));
        let offset = i64::from(i16::from_le_bytes([bytes[2], bytes[3]]));
        let mut reach = |address: Option<i64>, by: i64| lowest = lowest.min(address.map_or(0, |address| address + by));
        match opcode & 7 {
            // Load from memory.
            1 => {
                reach(addresses[from], offset);
                addresses[to] = None;
            }
            // Store to memory, of an immediate or a register.
            2 | 3 => reach(addresses[to], offset),
            // 64-bit arithmetic: copies and sums of addresses are followed.
            7 if opcode == 0xbf => addresses[to] = addresses[from],
            7 if opcode == 0x07 => {
                addresses[to] = addresses[to].map(|address| address + i64::from(immediate(bytes)));
                reach(addresses[to], 0);
            }
            // Other arithmetic, and wide immediates.
            0 | 4 | 7 => addresses[to] = None,
            // Calls clobber r0 to r5.
            5 if opcode == 0x85 => addresses[..6].fill(None),
            _ => {}
        }
        addresses[FRAME_POINTER] = Some(0);
        at += if opcode == 0x18 { 2 * INSTRUCTION } else { INSTRUCTION };
    }
    u32::try_from(-lowest).unwrap_or(u32::MAX)
}

/// Whether the instruction calls a function of the object, not one of the kernel's.
fn is_call(instruction: &[u8]) -> bool {
    matches!(instruction, [0x85, registers, ..] if registers >> 4 == 1)
}

fn immediate(instruction: &[u8]) -> i32 {
    i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]])
}

/// Every map that the agent asks for, with its sizes as far as the object has them.
fn map_descriptions(elf: &Elf<'_>) -> anyhow::Result<Vec<(String, String)>> {
    let describe = |name: &str| {
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name));
        let symbol = symbol.with_context(|| format!("it has no map {name}"))?;
        let section = elf.section_by_index(symbol.section_index().context("a map without a section")?)?;
        match section.name()? {
            ".maps" => Ok("socket storage".to_owned()),
            "maps" => {
                let start = symbol.address() as usize;
                let bytes = section.data()?.get(start..start + 20).context("a map beyond its section")?;
                let words: Vec<u32> = bytes
                    .chunks_exact(4)
                    .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                    .collect();
                Ok(describe_sizes(words[0], words[1], words[2], words[3]))
            }
            other => bail!("{name} is no map: it lies in section {other}"),
        }
    };
    maps::ALL.iter().map(|&name| Ok((name.to_owned(), describe(name)?))).collect()
}

/// Map types: `enum bpf_map_type` in <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h>.
fn describe_sizes(kind: u32, key: u32, value: u32, entries: u32) -> String {
    let kind = match kind {
        1 => "hash",
        2 => "array",
        6 => "per-CPU array",
        9 => "LRU hash",
        27 => return format!("ring of {} KiB", entries / 1024),
        _ => "map of another type",
    };
    format!("{kind}, key {key}, value {value} bytes, {entries} or as loaded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Vec<u8> {
        let mut bytes = vec![opcode, from << 4 | to];
        bytes.extend(offset.to_le_bytes());
        bytes.extend(immediate.to_le_bytes());
        bytes
    }

    #[test]
    fn a_frame_reaches_as_far_as_its_stores_and_the_addresses_it_hands_out() {
        let store = instruction(0x7b, 10, 1, -16, 0);
        let address = [instruction(0xbf, 2, 10, 0, 0), instruction(0x07, 2, 0, 0, -40)].concat();
        let through_address = [instruction(0xbf, 3, 2, 0, 0), instruction(0x7a, 3, 0, -8, 0)].concat();
        assert_eq!(frame(&store), 16);
        assert_eq!(frame(&[store.clone(), address.clone()].concat()), 40);
        assert_eq!(frame(&[store, address, through_address].concat()), 48);
    }

    #[test]
    fn a_register_written_anew_is_no_frame_address() {
        let code = [instruction(0xbf, 2, 10, 0, 0), instruction(0xb7, 2, 0, 0, 5), instruction(0x07, 2, 0, 0, -400)];
        assert_eq!(frame(&code.concat()), 0);
    }

    #[test]
    fn frames_along_the_deepest_chain_of_calls_are_summed() {
        let function = |frame, calls: &[&str]| Function {
            instructions: 10,
            frame,
            calls: calls.iter().map(|&name| name.to_owned()).collect(),
        };
        let functions = BTreeMap::from([
            ("entry".to_owned(), function(40, &["shallow", "deep"])),
            ("shallow".to_owned(), function(100, &[])),
            ("deep".to_owned(), function(8, &["bottom"])),
            ("bottom".to_owned(), function(96, &[])),
            ("unused".to_owned(), function(500, &[])),
        ]);
        assert_eq!(whole(&functions, "entry"), (40, 64 + 32 + 96));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(Contents::read(b"no object").is_err());
    }
}
