//! Finds structures and their members in BTF, the kernel's description of its own types (Documentation/bpf/btf.rst).
//!
//! ```text
//! header | types: name, kind, size or type, further data of the kind | names, each with a NUL behind it
//! ```
//!
//! 1. [`Btf::parse`] walks over all types once and stores where each type begins. The number of a type is its position in this order,
//!    from 1.
//! 2. [`Btf::id`] finds a type by kind and name.
//! 3. [`Btf::field`] follows a path of member names through nested structures. It also searches members without a name (anonymous
//!    structures and unions).
//!
//! This module does not rely on the form of the bytes: it checks each index, and limits the recursion.

use std::fmt;

/// The file in which the kernel describes its types, in the form BTF.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// The maximum size of the file [`KERNEL`] in bytes. Debian's kernels have a file of 5-8 MB.
pub const MAX_BYTES: u64 = 64 << 20;

/// The maximum depth of nested structures and of nested arrays. A chain of typedefs and qualifiers must be shorter than this.
const DEPTH: usize = 16;

/// The kinds of types that [`Btf::id`] can find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BtfKind {
    /// `struct`.
    Struct = 4,
    /// `typedef`.
    Typedef = 8,
}

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FLOAT: u32 = 16;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// The size of `struct btf_type` in bytes.
const TYPE: usize = 12;
/// The size of `struct btf_member` in bytes.
const MEMBER: usize = 12;

/// The reason why BTF, a type or a member cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The bytes do not have the form of BTF.
    #[error("the kernel's type information (BTF) has an unknown form: {0}")]
    Form(&'static str),
    /// The type does not exist.
    #[error("this kernel has no {0}")]
    NoType(String),
    /// The structure has no such member.
    #[error("in this kernel, struct {structure} has no member {member}")]
    NoMember {
        /// The name of the structure.
        structure: String,
        /// The path to the member.
        member: String,
    },
    /// The size of the member is not the size that the program expects.
    #[error("in this kernel, the member {member} of struct {structure} has {found} bytes instead of {expected}")]
    Size {
        /// The name of the structure.
        structure: String,
        /// The path to the member.
        member: String,
        /// Its size.
        found: u32,
        /// The expected size.
        expected: u32,
    },
}

/// The types of a kernel, parsed from its BTF.
pub struct Btf<'a> {
    bytes: &'a [u8],
    names: &'a [u8],
    /// The offset in `bytes` at which each type begins. Type 1 is the first.
    starts: Vec<u32>,
}

impl fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("types", &self.starts.len()).finish_non_exhaustive()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Btf<'a> {
    /// Finds the beginning of each type in the content of [`KERNEL`].
    ///
    /// # Errors
    /// [`BtfError::Form`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        const MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();
        let form = |why| BtfError::Form(why);
        if bytes.get(..2) != Some(&MAGIC) {
            return Err(form("it does not begin with the magic number"));
        }
        let header = |at| Some(word(bytes, at)? as usize);
        let part = |at: usize| {
            let begin = header(4)?.checked_add(header(at)?)?;
            bytes.get(begin..begin.checked_add(header(at + 4)?)?)
        };
        let cut = || form("it is cut off");
        let (types, names) = (part(8).ok_or_else(cut)?, part(16).ok_or_else(cut)?);
        // On Linux 6.18, a type has 25 bytes on average, so this vector need not grow.
        let mut starts = Vec::with_capacity(types.len() / 24);
        let mut at = 0;
        while at < types.len() {
            let info = word(types, at + 4).ok_or_else(cut)?;
            let parts = (info & 0xffff) as usize;
            // Kinds without a constant: 7 forward declaration, 12 function, 13 function prototype, 14 variable, 15 section, 17
            // declaration tag.
            let more = match info >> 24 & 0x1f {
                INT | 14 | 17 => 4,
                PTR | 7..=12 | FLOAT | TYPE_TAG => 0,
                ARRAY => 12,
                STRUCT | UNION | 15 | ENUM64 => parts * 12,
                ENUM | 13 => parts * 8,
                _ => return Err(form("it has a kind of type that twtool does not know")),
            };
            starts.push(u32::try_from(at).map_err(|_| form("it is too long"))?);
            at += TYPE + more;
        }
        if at != types.len() {
            return Err(cut());
        }
        Ok(Self { bytes: types, names, starts })
    }

    fn start(&self, id: u32) -> Option<usize> {
        Some(*self.starts.get(usize::try_from(id).ok()?.checked_sub(1)?)? as usize)
    }

    fn info(&self, start: usize) -> Option<(u32, usize)> {
        let info = word(self.bytes, start + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let rest = self.names.get(offset as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Finds the number of the type with this kind and name.
    ///
    /// # Errors
    /// [`BtfError::NoType`].
    pub fn id(&self, kind: BtfKind, name: &str) -> Result<u32, BtfError> {
        let found = (1..).zip(&self.starts).find(|(_, start)| {
            let start = **start as usize;
            self.info(start).is_some_and(|(found, _)| found == kind as u32)
                && word(self.bytes, start).is_some_and(|offset| self.is_named(offset, name))
        });
        found.map(|(id, _)| id).ok_or_else(|| {
            let word = if kind == BtfKind::Struct { "struct" } else { "type" };
            BtfError::NoType(format!("{word} {name}"))
        })
    }

    /// Finds the offset in bytes of a member in a structure. `path` is the name of the member. For a member of a nested structure, the
    /// names of the outer members come first: `__sk_common.skc_family`.
    ///
    /// # Errors
    /// The structure or the member does not exist, or the member does not have this size in bytes.
    pub fn field(&self, structure: &str, path: &str, size: u32) -> Result<u32, BtfError> {
        let missing = || BtfError::NoMember { structure: structure.to_owned(), member: path.to_owned() };
        let mut of = self.id(BtfKind::Struct, structure)?;
        let mut offset: u32 = 0;
        for name in path.split('.') {
            let (inside, kind) = self.member(of, name, DEPTH).ok_or_else(missing)?;
            offset = offset.checked_add(inside).ok_or_else(missing)?;
            of = kind;
        }
        let found = self.size(of, DEPTH).ok_or_else(missing)?;
        if found != size {
            let (structure, member) = (structure.to_owned(), path.to_owned());
            return Err(BtfError::Size { structure, member, found, expected: size });
        }
        Ok(offset)
    }

    /// The offset in bytes and the type of a member. Bit fields are never found, because they have no address.
    fn member(&self, structure: u32, name: &str, depth: usize) -> Option<(u32, u32)> {
        let start = self.start(self.plain(structure)?)?;
        let (kind, count) = self.info(start)?;
        if !matches!(kind, STRUCT | UNION) || depth == 0 {
            return None;
        }
        let has_bit_fields = word(self.bytes, start + 4)? >> 31 == 1;
        for number in 0..count {
            let at = start + TYPE + number * MEMBER;
            let (named, of, place) = (word(self.bytes, at)?, word(self.bytes, at + 4)?, word(self.bytes, at + 8)?);
            let bits = if has_bit_fields { place & 0x00ff_ffff } else { place };
            if has_bit_fields && place >> 24 != 0 || bits % 8 != 0 {
                continue;
            }
            if self.is_named(named, name) {
                return Some((bits / 8, of));
            }
            if self.is_named(named, "")
                && let Some((inside, of)) = self.member(of, name, depth - 1)
            {
                return Some(((bits / 8).checked_add(inside)?, of));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers to the type that they name.
    fn plain(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let start = self.start(id)?;
            match self.info(start)?.0 {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = word(self.bytes, start + 8)?,
                _ => return Some(id),
            }
        }
        None
    }

    fn size(&self, id: u32, depth: usize) -> Option<u32> {
        let start = self.start(self.plain(id)?)?;
        match self.info(start)?.0 {
            INT | STRUCT | UNION | ENUM | FLOAT | ENUM64 => word(self.bytes, start + 8),
            PTR => Some(8),
            ARRAY if depth > 0 => {
                let element = self.size(word(self.bytes, start + TYPE)?, depth - 1)?;
                element.checked_mul(word(self.bytes, start + TYPE + 8)?)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    pub(crate) struct BtfWriter {
        types: Vec<u8>,
        names: Vec<u8>,
        count: u32,
    }

    impl BtfWriter {
        pub(crate) fn new() -> Self {
            Self { names: vec![0], ..Self::default() }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let offset = u32::try_from(self.names.len()).expect("short");
            self.names.extend(name.bytes().chain([0]));
            offset
        }

        fn add(&mut self, name: &str, kind: u32, parts: usize, bits: bool, size: u32, more: &[u32]) -> u32 {
            let name = self.name(name);
            let info = kind << 24 | u32::try_from(parts).expect("few") | u32::from(bits) << 31;
            for number in [name, info, size].iter().chain(more) {
                self.types.extend(number.to_ne_bytes());
            }
            self.count += 1;
            self.count
        }

        pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
            self.add(name, INT, 0, false, size, &[size * 8])
        }

        pub(crate) fn modifier(&mut self, kind: u32, name: &str, of: u32) -> u32 {
            self.add(name, kind, 0, false, of, &[])
        }

        pub(crate) fn array(&mut self, of: u32, count: u32) -> u32 {
            self.add("", ARRAY, 0, false, 0, &[of, of, count])
        }

        /// Adds a structure or union. Each member is its name, its type, and its offset in bits.
        pub(crate) fn structure(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
            let parts: Vec<u32> = members.iter().flat_map(|(name, of, bits)| [self.name(name), *of, *bits]).collect();
            let bits = members.iter().any(|(_, _, place)| place >> 24 != 0);
            self.add(name, kind, members.len(), bits, size, &parts)
        }

        pub(crate) fn finish(self) -> Vec<u8> {
            let length = |part: &[u8]| u32::try_from(part.len()).expect("short");
            let mut bytes = [0xeb9f_u16.to_ne_bytes().as_slice(), &[1, 0]].concat();
            for number in [24, 0, length(&self.types), length(&self.types), length(&self.names)] {
                bytes.extend(u32::to_ne_bytes(number));
            }
            [bytes, self.types, self.names].concat()
        }
    }

    /// A simplified struct sock, with an anonymous union and structure for the ports, as in Linux 6.18. The kernel has no `sk_name`; this
    /// member tests an array.
    fn sock() -> Vec<u8> {
        let mut btf = BtfWriter::new();
        let (short, word, char) = (btf.int("short unsigned int", 2), btf.int("unsigned int", 4), btf.int("char", 1));
        let be16 = btf.modifier(TYPEDEF, "__be16", short);
        let pair = btf.structure(STRUCT, "", 4, &[("skc_dport", be16, 0), ("skc_num", short, 16)]);
        let ports = btf.structure(UNION, "", 4, &[("skc_portpair", word, 0), ("", pair, 0)]);
        let members = [("", ports, 0), ("skc_family", short, 32), ("skc_reuse", char, (4 << 24) + 48)];
        let common = btf.structure(STRUCT, "sock_common", 8, &members);
        let constant = btf.modifier(CONST, "", common);
        let name = btf.array(char, 16);
        btf.structure(
            STRUCT,
            "sock",
            32,
            &[("__sk_common", constant, 0), ("sk_name", name, 64), ("sk_err", word, 192)],
        );
        btf.modifier(TYPEDEF, "btf_trace_inet_sock_set_state", word);
        btf.finish()
    }

    #[test]
    fn a_member_is_found_through_anonymous_structures_and_qualifiers() {
        let bytes = sock();
        let btf = Btf::parse(&bytes).expect("BTF");
        assert_eq!(btf.field("sock", "__sk_common.skc_num", 2), Ok(2));
        assert_eq!(btf.field("sock", "__sk_common.skc_family", 2), Ok(4));
        assert_eq!(btf.field("sock", "sk_name", 16), Ok(8));
        assert_eq!(btf.field("sock", "sk_err", 4), Ok(24));
        assert_eq!(btf.id(BtfKind::Typedef, "btf_trace_inet_sock_set_state"), Ok(11));
    }

    #[test]
    fn the_error_names_the_missing_type_or_member() {
        let bytes = sock();
        let btf = Btf::parse(&bytes).expect("BTF");
        let why = |result: Result<u32, BtfError>| result.expect_err("it is missing").to_string();
        assert_eq!(why(btf.field("sock", "sk_uid", 4)), "in this kernel, struct sock has no member sk_uid");
        assert_eq!(why(btf.field("task", "comm", 16)), "this kernel has no struct task");
        let size = "in this kernel, the member sk_err of struct sock has 4 bytes instead of 8";
        assert_eq!(why(btf.field("sock", "sk_err", 8)), size);
        assert!(why(btf.field("sock", "__sk_common.skc_reuse", 1)).contains("no member"), "a bit field");
        assert!(why(btf.field("sock", "sk_err.x", 1)).contains("no member"), "a number has no members");
    }

    #[test]
    fn the_search_ends_at_types_that_contain_themselves() {
        let mut btf = BtfWriter::new();
        btf.structure(STRUCT, "sock", 8, &[("", 1, 0)]);
        btf.modifier(TYPEDEF, "loop", 2);
        btf.array(3, 2);
        let bytes = btf.finish();
        let btf = Btf::parse(&bytes).expect("BTF");
        assert!(btf.field("sock", "x", 4).is_err());
        assert_eq!((btf.plain(2), btf.size(3, DEPTH)), (None, None));
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = sock();
            let place = at.index(bytes.len());
            bytes[place] = byte;
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                if let Ok(btf) = Btf::parse(bytes) {
                    let _ = btf.field("sock", "__sk_common.skc_num", 2);
                    let _ = btf.field("sock", "sk_name", 16);
                }
            }
        }
    }
}
