//! Straight-line programs of element-wise instructions, run over blocks of elements that stay in the nearest cache.
//!
//! A register holds [`BLOCK`] lanes. Numbers narrower than 32 bits are worked on in 32-bit lanes and brought back to their own range
//! (or precision) after every instruction, so that each step rounds as if it stood alone.

mod cold;
mod hot;
mod narrow;

use crate::versions::versions;

/// Elements that one pass over the instructions handles.
pub const BLOCK: usize = 512;

/// A number type that programs compute with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Num {
    Pred,
    S8,
    S16,
    S32,
    S64,
    U8,
    U16,
    U32,
    U64,
    F16,
    BF16,
    F32,
    F64,
}

/// What a register's lanes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    Mask,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
}

impl Num {
    /// Bytes that one element takes in memory.
    pub fn size(self) -> usize {
        match self {
            Num::Pred | Num::S8 | Num::U8 => 1,
            Num::S16 | Num::U16 | Num::F16 | Num::BF16 => 2,
            Num::S32 | Num::U32 | Num::F32 => 4,
            Num::S64 | Num::U64 | Num::F64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Num::F16 | Num::BF16 | Num::F32 | Num::F64)
    }

    pub(crate) fn lane(self) -> Lane {
        match self {
            Num::Pred => Lane::Mask,
            Num::S8 | Num::S16 | Num::S32 => Lane::S32,
            Num::U8 | Num::U16 | Num::U32 => Lane::U32,
            Num::S64 => Lane::S64,
            Num::U64 => Lane::U64,
            Num::F16 | Num::BF16 | Num::F32 => Lane::F32,
            Num::F64 => Lane::F64,
        }
    }

    /// Whether memory holds it as a register does.
    fn is_natural(self) -> bool {
        matches!(self, Num::Pred | Num::S32 | Num::U32 | Num::S64 | Num::U64 | Num::F32 | Num::F64)
    }
}

/// Instructions of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Unary {
    Abs,
    Cbrt,
    Ceil,
    Clz,
    Cos,
    Erf,
    Exp,
    Expm1,
    Floor,
    IsFinite,
    Log,
    Log1p,
    Logistic,
    Negate,
    Not,
    PopulationCount,
    RoundNearestAfz,
    RoundNearestEven,
    Rsqrt,
    Sign,
    Sin,
    Sqrt,
    Tan,
    Tanh,
}

/// Instructions of two operands of one type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    And,
    Atan2,
    Divide,
    Maximum,
    Minimum,
    Multiply,
    Or,
    Power,
    Remainder,
    ShiftLeft,
    ShiftRightArithmetic,
    ShiftRightLogical,
    Subtract,
    Xor,
}

/// Comparisons; NaN is unordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A value of a program: one of its inputs, or an instruction's result.
pub type Val = usize;

/// One instruction; operands are values that come before it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Instr {
    /// One operand of type `num`; `IsFinite` yields pred, the others `num`.
    Unary {
        /// What.
        op: Unary,
        /// The operand's type.
        num: Num,
        /// The operand.
        a: Val,
    },
    /// Two operands of type `num`.
    Binary {
        /// What.
        op: Binary,
        /// The operands' and the result's type.
        num: Num,
        /// Left.
        a: Val,
        /// Right.
        b: Val,
    },
    /// Two operands of type `num`, to pred.
    Compare {
        /// Which.
        compare: Compare,
        /// Whether floats are in total order (−NaN first, NaN last, −0 before 0).
        total: bool,
        /// The operands' type.
        num: Num,
        /// Left.
        a: Val,
        /// Right.
        b: Val,
    },
    /// The same in every lane.
    Constant {
        /// Its type.
        num: Num,
        /// Its bytes, as memory holds them; those after its size are 0.
        bytes: [u8; 8],
    },
    /// `a` where the mask is set, else `b`.
    Select {
        /// The type of `a`, `b` and the result.
        num: Num,
        /// A pred.
        mask: Val,
        /// Where set.
        a: Val,
        /// Where not.
        b: Val,
    },
    /// By value: floats to ints truncate and saturate (NaN is 0), ints wrap, floats round to the nearest even.
    Convert {
        /// The operand's type.
        from: Num,
        /// The result's type.
        to: Num,
        /// The operand.
        a: Val,
    },
}

impl Instr {
    /// A constant from its bytes; `None` when they are not as many as the type has.
    pub fn constant(num: Num, value: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..num.size()).filter(|b| b.len() == value.len())?.copy_from_slice(value);
        Some(Instr::Constant { num, bytes })
    }

    fn result(&self) -> Num {
        match *self {
            Instr::Unary { op: Unary::IsFinite, .. } | Instr::Compare { .. } => Num::Pred,
            Instr::Unary { num, .. }
            | Instr::Binary { num, .. }
            | Instr::Select { num, .. }
            | Instr::Constant { num, .. } => num,
            Instr::Convert { to, .. } => to,
        }
    }

    fn operands(&self) -> [Option<Val>; 3] {
        match *self {
            Instr::Constant { .. } => [None, None, None],
            Instr::Unary { a, .. } | Instr::Convert { a, .. } => [Some(a), None, None],
            Instr::Binary { a, b, .. } | Instr::Compare { a, b, .. } => [Some(a), Some(b), None],
            Instr::Select { mask, a, b, .. } => [Some(mask), Some(a), Some(b)],
        }
    }

    fn map_operands(self, f: impl Fn(Val) -> Val) -> Self {
        match self {
            Instr::Constant { num, bytes } => Instr::Constant { num, bytes },
            Instr::Unary { op, num, a } => Instr::Unary { op, num, a: f(a) },
            Instr::Convert { from, to, a } => Instr::Convert { from, to, a: f(a) },
            Instr::Binary { op, num, a, b } => Instr::Binary { op, num, a: f(a), b: f(b) },
            Instr::Compare { compare, total, num, a, b } => {
                Instr::Compare { compare, total, num, a: f(a), b: f(b) }
            }
            Instr::Select { num, mask, a, b } => Instr::Select { num, mask: f(mask), a: f(a), b: f(b) },
        }
    }
}

/// A program under construction.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    inputs: usize,
    types: Vec<Num>,
    instrs: Vec<Instr>,
}

/// A program: inputs, instructions, and which values come out.
#[derive(Clone, Debug)]
pub struct Program {
    inputs: Vec<Num>,
    /// Operands are registers; the first `inputs.len()` are the inputs'.
    instrs: Vec<(Instr, usize)>,
    registers: usize,
    outputs: Vec<(usize, Num)>,
}

impl Builder {
    /// A program whose inputs have these types; they are values 0, 1, ….
    pub fn new(inputs: &[Num]) -> Self {
        Builder { inputs: inputs.len(), types: inputs.to_vec(), instrs: Vec::new() }
    }

    /// Adds an instruction; its result.
    ///
    /// # Panics
    /// When an operand is not a value yet, or has another type than the instruction says.
    pub fn push(&mut self, instr: Instr) -> Val {
        let expected = match instr {
            Instr::Unary { num, .. } => [num, num, num],
            Instr::Binary { num, .. } | Instr::Compare { num, .. } => [num, num, num],
            Instr::Select { num, .. } => [Num::Pred, num, num],
            Instr::Convert { from, .. } => [from, from, from],
            Instr::Constant { num, .. } => [num, num, num],
        };
        for (operand, expected) in instr.operands().into_iter().zip(expected) {
            if let Some(operand) = operand {
                assert_eq!(self.types[operand], expected, "{instr:?}");
            }
        }
        self.types.push(instr.result());
        self.instrs.push(instr);
        self.types.len() - 1
    }

    /// The type of a value.
    pub fn num(&self, value: Val) -> Num {
        self.types[value]
    }

    /// The number of instructions so far.
    pub fn len(&self) -> usize {
        self.instrs.len()
    }

    /// Whether there is no instruction yet.
    pub fn is_empty(&self) -> bool {
        self.instrs.is_empty()
    }

    /// The program that yields these values.
    pub fn finish(self, outputs: &[Val]) -> Program {
        let count = self.types.len();
        let mut last_use = vec![0; count];
        for (i, instr) in self.instrs.iter().enumerate() {
            for operand in instr.operands().into_iter().flatten() {
                last_use[operand] = i;
            }
        }
        for &output in outputs {
            last_use[output] = usize::MAX;
        }
        let mut register: Vec<usize> = (0..self.inputs).collect();
        let mut free: Vec<usize> = Vec::new();
        let mut registers = self.inputs;
        let mut instrs = Vec::with_capacity(self.instrs.len());
        for (i, instr) in self.instrs.iter().enumerate() {
            // The result never shares a register with an operand: operands are read while it is written.
            let target = free.pop().unwrap_or_else(|| {
                registers += 1;
                registers - 1
            });
            instrs.push((instr.map_operands(|v| register[v]), target));
            register.push(target);
            let mut freed = [usize::MAX; 3];
            for (slot, operand) in instr.operands().into_iter().enumerate() {
                if let Some(v) = operand
                    && v >= self.inputs
                    && last_use[v] == i
                    && !freed.contains(&v)
                {
                    freed[slot] = v;
                    free.push(register[v]);
                }
            }
            if last_use[self.inputs + i] == 0 && !outputs.contains(&(self.inputs + i)) {
                free.push(target);
            }
        }
        let outputs = outputs.iter().map(|&v| (register[v], self.types[v])).collect();
        Program { inputs: self.types[..self.inputs].to_vec(), instrs, registers, outputs }
    }
}

/// An input of one run of a program.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// One element a lane, as memory holds them.
    Block(&'a [u8]),
    /// One element for all lanes.
    Splat(&'a [u8]),
}

/// A cache line: loads of a whole vector then never cross from one into the next.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

type Register = Vec<Line>;

/// Lines beyond what a full register needs. Were registers a multiple of 4096 bytes apart, the machine would take a store to
/// one for a store to what is loaded from another.
const SPACING: usize = 5;

/// Registers, to be used again from block to block. Splat inputs are widened once: give each set of inputs a scratch of its own.
#[derive(Debug)]
pub struct Scratch {
    registers: Vec<Register>,
    splats: Vec<bool>,
    lanes: usize,
}

impl Program {
    /// The types of the inputs.
    pub fn inputs(&self) -> &[Num] {
        &self.inputs
    }

    /// The types of the outputs.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = Num> + '_ {
        self.outputs.iter().map(|o| o.1)
    }

    /// The number of instructions.
    pub fn len(&self) -> usize {
        self.instrs.len()
    }

    /// Whether the outputs are inputs.
    pub fn is_empty(&self) -> bool {
        self.instrs.is_empty()
    }

    /// Registers for runs on at most `count` elements each.
    pub fn scratch(&self, count: usize) -> Scratch {
        let lanes = count.clamp(1, BLOCK);
        Scratch {
            registers: vec![vec![Line([0; 8]); lanes.div_ceil(8) + SPACING]; self.registers],
            splats: vec![false; self.inputs.len()],
            lanes,
        }
    }

    /// Runs on `count` elements, at most [`BLOCK`], and writes each output as memory holds it.
    ///
    /// # Panics
    /// When there are more elements than the scratch is for, or an input or output has not the bytes for them.
    pub fn run(&self, scratch: &mut Scratch, inputs: &[Source<'_>], outputs: &mut [&mut [u8]], count: usize) {
        assert!(
            count <= scratch.lanes
                && inputs.len() == self.inputs.len()
                && outputs.len() == self.outputs.len()
        );
        for (i, (source, &num)) in inputs.iter().zip(&self.inputs).enumerate() {
            match source {
                Source::Block(bytes) => {
                    assert!(bytes.len() >= count * num.size());
                    if !(num.is_natural() && is_aligned(bytes, num.size())) {
                        narrow::load(num, bytes, bytemuck::cast_slice_mut(&mut scratch.registers[i]), count);
                    }
                }
                Source::Splat(bytes) => {
                    assert!(bytes.len() >= num.size());
                    if !scratch.splats[i] {
                        scratch.splats[i] = true;
                        narrow::splat(num, bytes, bytemuck::cast_slice_mut(&mut scratch.registers[i]));
                    }
                }
            }
        }
        execute(self, scratch, inputs, count);
        for ((register, num), out) in self.outputs.iter().zip(outputs) {
            let bytes = resolve(*register, scratch, self, inputs);
            narrow::store(*num, bytes, out, count);
        }
    }
}

fn is_aligned(bytes: &[u8], size: usize) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(size)
}

/// The bytes of a register, or of the input that stands for it.
#[inline(always)]
fn resolve<'a>(register: usize, scratch: &'a Scratch, program: &Program, inputs: &[Source<'a>]) -> &'a [u8] {
    if let Some(Source::Block(bytes)) = inputs.get(register) {
        let num = program.inputs[register];
        if num.is_natural() && is_aligned(bytes, num.size()) {
            return bytes;
        }
    }
    bytemuck::cast_slice(&scratch.registers[register])
}

/// What an instruction reads.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    /// A lane an element.
    Lanes(&'a [u8]),
    /// One lane for all.
    One(&'a [u8]),
}

/// As [`resolve`], but one element that serves all stays one.
#[inline(always)]
fn resolve_operand<'a>(
    register: usize,
    scratch: &'a Scratch,
    program: &Program,
    inputs: &[Source<'a>],
) -> Operand<'a> {
    let bytes = resolve(register, scratch, program, inputs);
    match inputs.get(register) {
        Some(Source::Splat(_)) => Operand::One(bytes),
        Some(Source::Block(_)) | None => Operand::Lanes(bytes),
    }
}

#[inline(always)]
fn execute_body(program: &Program, scratch: &mut Scratch, inputs: &[Source<'_>], count: usize) {
    for &(instr, target) in &program.instrs {
        // Taken out, so that the operands can be borrowed; none of them is the target.
        let mut taken = std::mem::take(&mut scratch.registers[target]);
        let out: &mut [u64] = bytemuck::cast_slice_mut(&mut taken);
        let operand = |register: usize| resolve(register, scratch, program, inputs);
        let either = |register: usize| resolve_operand(register, scratch, program, inputs);
        match instr {
            Instr::Constant { num, bytes } => narrow::splat(num, &bytes, out),
            Instr::Unary { op, num, a } => {
                if !hot::unary(op, num, operand(a), out, count) {
                    cold::unary(op, num, operand(a), out, count);
                }
            }
            Instr::Binary { op, num, a, b } => {
                if !hot::binary(op, num, either(a), either(b), out, count) {
                    cold::binary(op, num, operand(a), operand(b), out, count);
                }
            }
            Instr::Compare { compare, total, num, a, b } => {
                if total || !hot::compare(compare, num, either(a), either(b), out, count) {
                    cold::compare(compare, total, num, operand(a), operand(b), out, count);
                }
            }
            Instr::Select { num, mask, a, b } => {
                hot::select(num, operand(mask), either(a), either(b), out, count)
            }
            Instr::Convert { from, to, a } => {
                if !hot::convert(from, to, operand(a), out, count) {
                    cold::convert(from, to, operand(a), out, count);
                }
            }
        }
        narrow::settle(instr.result(), out, count);
        scratch.registers[target] = taken;
    }
}

versions! {
    fn execute(program: &Program, scratch: &mut Scratch, inputs: &[Source<'_>], count: usize) = execute_body
}

/// The first `count` lanes of a register or an input.
#[inline(always)]
fn lanes<T: bytemuck::Pod>(bytes: &[u8], count: usize) -> &[T] {
    &bytemuck::cast_slice::<u8, T>(&bytes[..count * size_of::<T>()])[..count]
}

/// The first `count` lanes of a register, to write.
#[inline(always)]
fn lanes_mut<T: bytemuck::Pod>(register: &mut [u64], count: usize) -> &mut [T] {
    &mut bytemuck::cast_slice_mut::<u64, T>(register)[..count]
}

#[cfg(test)]
mod tests;
