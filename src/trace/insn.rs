//! Assembles BPF instructions (Documentation/bpf/standardization/instruction-set.rst).
//!
//! An instruction has 8 bytes: an operation, two registers, a 16-bit offset and a 32-bit value. Jumps name a [`Label`], and
//! [`Assembler::finish`] calculates their offsets.

/// A register of the BPF machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

/// The result of a call. A call also destroys R1 to R5, its arguments.
pub const R0: Reg = Reg(0);
/// The first argument of a call, and the context when the program starts.
pub const R1: Reg = Reg(1);
/// The second argument of a call.
pub const R2: Reg = Reg(2);
/// The third argument of a call.
pub const R3: Reg = Reg(3);
/// The fourth argument of a call.
pub const R4: Reg = Reg(4);
/// Calls do not change R6, R7, R8 and R9.
pub const R6: Reg = Reg(6);
/// See [`R6`].
pub const R7: Reg = Reg(7);
/// See [`R6`].
pub const R8: Reg = Reg(8);
/// See [`R6`].
pub const R9: Reg = Reg(9);
/// The frame pointer, which is the upper end of the stack.
pub const FP: Reg = Reg(10);

/// The size of a load or a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 1 byte.
    Byte = 0x10,
    /// 2 bytes.
    Half = 0x08,
    /// 4 bytes.
    Word = 0x00,
    /// 8 bytes.
    Double = 0x18,
}

/// A condition that compares a register with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JumpCondition {
    /// Equal.
    Equal = 0x10,
    /// Not equal.
    NotEqual = 0x50,
    /// Less, unsigned.
    Less = 0xa0,
    /// Greater or equal, unsigned.
    AtLeast = 0x30,
    /// Less, signed.
    SignedLess = 0xc0,
}

/// The target of jumps: a mark at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    operation: u8,
    to: Reg,
    from: Reg,
    offset: i16,
    value: i32,
}

/// Collects the instructions of a program.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// The index of the instruction that each label marks; `None` until [`Assembler::place`] is called.
    labels: Vec<Option<usize>>,
    /// The index of each jump, and the label that it jumps to.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, operation: u8, to: Reg, from: Reg, offset: i16, value: i32) {
        self.code.push(Instruction { operation, to, from, offset, value });
    }

    /// `to = from`.
    pub fn copy(&mut self, to: Reg, from: Reg) {
        self.push(0xbf, to, from, 0, 0);
    }

    /// `to = value`.
    pub fn set(&mut self, to: Reg, value: i32) {
        self.push(0xb7, to, R0, 0, value);
    }

    /// `to += value`.
    pub fn add(&mut self, to: Reg, value: i32) {
        self.push(0x07, to, R0, 0, value);
    }

    /// `to &= value`.
    pub fn and(&mut self, to: Reg, value: i32) {
        self.push(0x57, to, R0, 0, value);
    }

    /// Converts the lower 16 bits from the byte order of the network.
    pub fn from_network_order_16(&mut self, reg: Reg) {
        self.push(0xdc, reg, R0, 0, 16);
    }

    /// `to = base + offset`.
    pub fn address(&mut self, to: Reg, base: Reg, offset: i16) {
        self.copy(to, base);
        self.add(to, offset.into());
    }

    /// `to = *(base + offset)`.
    pub fn load(&mut self, size: Size, to: Reg, base: Reg, offset: i16) {
        self.push(0x61 | size as u8, to, base, offset, 0);
    }

    /// `*(base + offset) = from`.
    pub fn store(&mut self, size: Size, base: Reg, offset: i16, from: Reg) {
        self.push(0x63 | size as u8, base, from, offset, 0);
    }

    /// `*(base + offset) = value`.
    pub fn store_value(&mut self, size: Size, base: Reg, offset: i16, value: i32) {
        self.push(0x62 | size as u8, base, R0, offset, value);
    }

    /// Adds the register to the 8 bytes at `base + offset`, atomically.
    pub fn atomic_add(&mut self, base: Reg, offset: i16, from: Reg) {
        self.push(0xdb, base, from, offset, 0);
    }

    /// `to` = the address of the map that has this descriptor. This instruction has the length of two instructions (16 bytes).
    pub fn map(&mut self, to: Reg, descriptor: i32) {
        const PSEUDO_MAP_FD: Reg = Reg(1);
        self.push(0x18, to, PSEUDO_MAP_FD, 0, descriptor);
        self.push(0, R0, R0, 0, 0);
    }

    /// Calls a function of the kernel by its number (enum bpf_func_id).
    pub fn call(&mut self, function: i32) {
        self.push(0x85, R0, R0, 0, function);
    }

    /// Ends the program.
    pub fn exit(&mut self) {
        self.push(0x95, R0, R0, 0, 0);
    }

    /// Creates a label. [`Self::place`] later makes it mark an instruction.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Makes the label mark the next instruction.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Jumps to the label.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x05, R0, R0, 0, 0);
    }

    /// Jumps to the label if the condition is true for the register and the value.
    pub fn jump_if(&mut self, condition: JumpCondition, reg: Reg, value: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x05 | condition as u8, reg, R0, 0, value);
    }

    /// Returns the bytes of the program, in the byte order of this machine.
    ///
    /// # Panics
    /// The label of a jump marks no instruction, or a jump is too long. Both are mistakes in the calling code.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        for (at, label) in &self.jumps {
            let place = self.labels[label.0].expect("every label has a place");
            let distance = place.cast_signed() - at.cast_signed() - 1;
            self.code[*at].offset = distance.try_into().expect("a program of a few hundred instructions");
        }
        self.code.iter().flat_map(|instruction| instruction.bytes()).collect()
    }
}

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        // Both registers are bit fields of one byte, whose order depends on the byte order of the machine.
        let registers =
            if cfg!(target_endian = "little") { self.to.0 | self.from.0 << 4 } else { self.to.0 << 4 | self.from.0 };
        let mut bytes = [self.operation, registers, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.value.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    /// The expected bytes come from clang (`llvm-objdump -d` shows them).
    #[test]
    fn instructions_have_the_same_bytes_as_from_clang() {
        let bytes = |write: &dyn Fn(&mut Assembler)| {
            let mut assembler = Assembler::default();
            write(&mut assembler);
            assembler.finish()
        };
        assert_eq!(bytes(&|a| a.copy(R6, R1)), [0xbf, 0x16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.set(R0, 1)), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.load(Size::Double, R2, R1, 16)), [0x79, 0x12, 16, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.load(Size::Half, R2, R6, 14)), [0x69, 0x62, 14, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.store(Size::Word, FP, -8, R2)), [0x63, 0x2a, 0xf8, 0xff, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.store_value(Size::Double, FP, -8, 0)), [0x7a, 0x0a, 0xf8, 0xff, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.atomic_add(R0, 0, R1)), [0xdb, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.map(R1, 7)), [0x18, 0x11, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.from_network_order_16(R1)), [0xdc, 1, 0, 0, 16, 0, 0, 0]);
        assert_eq!(bytes(&|a| a.call(1)), [0x85, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes(&Assembler::exit), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_offset_of_a_jump_counts_from_the_next_instruction() {
        let mut assembler = Assembler::default();
        let (end, begin) = (assembler.label(), assembler.label());
        assembler.place(begin);
        assembler.jump_if(JumpCondition::NotEqual, R1, 4, end);
        assembler.jump(begin);
        assembler.place(end);
        assembler.exit();
        let code = assembler.finish();
        assert_eq!(code[..8], [0x55, 1, 1, 0, 4, 0, 0, 0]);
        assert_eq!(code[8..16], [0x05, 0, 0xfe, 0xff, 0, 0, 0, 0]);
    }
}
