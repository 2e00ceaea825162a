//! The running kernel's type information (BTF) in, offsets of structure members out. Pure but for [`Types::of_kernel`].
//!
//! rustc emits no CO-RE records and aya keeps members to itself, so the offsets that the programs need are looked up
//! here. Nothing but members of structures and unions is understood; the format is
//! <https://docs.kernel.org/bpf/btf.html>.

use std::path::Path;

use super::LoadError;

/// Where every kernel with CONFIG_DEBUG_INFO_BTF has it.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

// Kinds: <https://docs.kernel.org/bpf/btf.html#type-encoding>.
const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;
const LAST_KIND: u32 = ENUM64;

/// How deep anonymous members and type qualifiers may nest: the kernel's deepest is 5.
const DEPTH: u32 = 16;

/// The types of one kernel.
pub(super) struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins, by id; id 0 is void and begins nowhere.
    starts: Vec<u32>,
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// One type's record.
#[derive(Clone, Copy)]
struct Record {
    start: usize,
    name: u32,
    info: u32,
    size_or_type: u32,
}

impl Record {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn members(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Whether the offsets of its members carry sizes of bit fields.
    fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }

    /// Bytes of the record with what follows it; `None` for a kind from the future.
    fn length(self) -> Option<usize> {
        let following = match self.kind() {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => 12 * self.members(),
            ENUM | FUNC_PROTO => 8 * self.members(),
            0 => return None,
            kind if kind > LAST_KIND => return None,
            _ => 0,
        };
        Some(12 + following)
    }
}

impl Types {
    /// Those of the running kernel.
    pub(super) fn of_kernel() -> Result<Self, LoadError> {
        let path = Path::new(KERNEL);
        let bytes = std::fs::read(path).map_err(|source| LoadError::Btf { path: path.to_owned(), source })?;
        Self::parse(&bytes)
    }

    /// From the contents of a BTF file in this machine's byte order.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, LoadError> {
        let malformed = |reason| LoadError::BtfFormat { reason };
        let magic = bytes.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        if bytes.len() < HEADER || magic != Some(MAGIC) {
            return Err(malformed("its header is not that of BTF"));
        }
        let field = |at| word(bytes, at).map(|value| value as usize).ok_or(malformed("its header is cut off"));
        let header = field(4)?;
        let section = |offset: usize, length: usize, reason| {
            let start = header.checked_add(offset);
            let end = start.and_then(|start| start.checked_add(length));
            start.zip(end).and_then(|(start, end)| bytes.get(start..end)).map(<[u8]>::to_vec).ok_or(malformed(reason))
        };
        let types = section(field(8)?, field(12)?, "its types are cut off")?;
        let strings = section(field(16)?, field(20)?, "its strings are cut off")?;
        let mut parsed = Self { types, strings, starts: vec![u32::MAX] };
        let mut at = 0;
        while at < parsed.types.len() {
            let record = parsed.record_at(at).ok_or(malformed("a type is cut off"))?;
            let length = record.length().ok_or(malformed("it has a type of an unknown kind"))?;
            parsed.starts.push(at as u32);
            at += length;
        }
        Ok(parsed)
    }

    /// Where `path` (names joined by dots) lies in the structure of that name.
    pub(super) fn member(&self, structure: &str, path: &str) -> Result<Place, LoadError> {
        let missing = |reason| LoadError::Member { member: format!("{structure}.{path}"), reason };
        let mut record = self.structure(structure).ok_or(missing("there is no such structure"))?;
        let mut place = Place { offset: 0, size: record.size_or_type };
        for name in path.split('.') {
            let (bits, kind) = self.find(record, name, 0).ok_or(missing("there is no such member"))?;
            if bits % 8 != 0 {
                return Err(missing("it is a bit field"));
            }
            record = self.stripped(kind).ok_or(missing("its type is unknown"))?;
            let size = self.size(record, 0).ok_or(missing("its size is unknown"))?;
            place = Place { offset: place.offset + u64::from(bits / 8), size };
        }
        Ok(place)
    }

    /// The first complete structure of that name.
    fn structure(&self, name: &str) -> Option<Record> {
        let ids = 1..self.starts.len() as u32;
        ids.filter_map(|id| self.record(id)).find(|record| {
            record.kind() == STRUCT && record.members() > 0 && self.string(record.name) == name.as_bytes()
        })
    }

    /// The member's offset in bits and its type, looked for in anonymous members too. A bit field's offset is made odd,
    /// since it cannot be loaded as a whole.
    fn find(&self, record: Record, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > DEPTH || !matches!(record.kind(), STRUCT | UNION) {
            return None;
        }
        for position in 0..record.members() {
            let at = record.start + 12 + 12 * position;
            let (member_name, kind, raw) =
                (word(&self.types, at)?, word(&self.types, at + 4)?, word(&self.types, at + 8)?);
            let (bits, is_bit_field) =
                if record.has_bit_fields() { (raw & 0xff_ffff, raw >> 24 != 0) } else { (raw, false) };
            if self.string(member_name) == name.as_bytes() {
                return Some((if is_bit_field { bits | 1 } else { bits }, kind));
            }
            if self.string(member_name).is_empty()
                && let Some(inner) = self.stripped(kind)
                && let Some((inner_bits, kind)) = self.find(inner, name, depth + 1)
            {
                return Some((bits + inner_bits, kind));
            }
        }
        None
    }

    /// The type without its names and qualifiers.
    fn stripped(&self, id: u32) -> Option<Record> {
        let mut record = self.record(id)?;
        for _ in 0..DEPTH {
            if !matches!(record.kind(), TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Some(record);
            }
            record = self.record(record.size_or_type)?;
        }
        None
    }

    fn size(&self, record: Record, depth: u32) -> Option<u32> {
        match record.kind() {
            POINTER => Some(size_of::<usize>() as u32),
            ARRAY if depth < DEPTH => {
                let element = self.stripped(word(&self.types, record.start + 12)?)?;
                self.size(element, depth + 1)?.checked_mul(word(&self.types, record.start + 20)?)
            }
            INT | STRUCT | UNION | ENUM | ENUM64 => Some(record.size_or_type),
            _ => None,
        }
    }

    fn record(&self, id: u32) -> Option<Record> {
        self.record_at(*self.starts.get(id as usize)? as usize)
    }

    fn record_at(&self, start: usize) -> Option<Record> {
        let at = |offset: usize| word(&self.types, start.checked_add(offset)?);
        Some(Record { start, name: at(0)?, info: at(4)?, size_or_type: at(8)? })
    }

    /// Empty for anonymous things, and for an offset that leads nowhere.
    fn string(&self, offset: u32) -> &[u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF file under construction.
    struct Draft {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Draft {
        fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0] }
        }

        fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            at
        }

        fn add(&mut self, name: &str, kind: u32, flag: u32, count: u32, size_or_type: u32, following: &[u32]) {
            let name = self.string(name);
            for value in [name, flag << 31 | kind << 24 | count, size_or_type].iter().chain(following) {
                self.types.extend(value.to_ne_bytes());
            }
        }

        fn finish(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            for value in [HEADER as u32, 0, types, types, strings] {
                bytes.extend(value.to_ne_bytes());
            }
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }
    }

    fn mk_types() -> Types {
        let mut draft = Draft::new();
        draft.add("int", INT, 0, 0, 4, &[32]); // 1
        let (x, y, z, inner, flag) =
            (draft.string("x"), draft.string("y"), draft.string("z"), draft.string("inner"), draft.string("flag"));
        draft.add("", UNION, 0, 2, 4, &[x, 1, 0, y, 1, 0]); // 2
        draft.add("", ARRAY, 0, 0, 0, &[1, 1, 4]); // 3
        draft.add("embedded", STRUCT, 0, 2, 20, &[0, 2, 0, z, 3, 32]); // 4
        draft.add("embedded_t", TYPEDEF, 0, 0, 4, &[]); // 5
        draft.add("outer", STRUCT, 1, 2, 28, &[flag, 1, 1 << 24 | 8, inner, 5, 64]); // 6
        Types::parse(&draft.finish()).expect("well formed")
    }

    #[test]
    fn a_member_is_found_through_names_anonymous_unions_and_typedefs() {
        let types = mk_types();
        assert_eq!(types.member("outer", "inner.y").expect("is there"), Place { offset: 8, size: 4 });
        assert_eq!(types.member("outer", "inner.z").expect("is there"), Place { offset: 12, size: 16 });
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_with_its_name() {
        let types = mk_types();
        for (structure, path, reason) in [
            ("nothing", "x", "there is no such structure"),
            ("outer", "inner.nothing", "there is no such member"),
            ("outer", "flag", "it is a bit field"),
        ] {
            let error = types.member(structure, path).expect_err("is refused");
            assert_eq!(error.to_string(), format!("this kernel has no usable {structure}.{path}: {reason}"));
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_no_panic() {
        let mut draft = Draft::new();
        draft.add("int", INT, 0, 0, 4, &[32]);
        let whole = draft.finish();
        for length in 0..whole.len() {
            assert!(Types::parse(&whole[..length]).is_err(), "cut to {length}");
        }
    }
}
