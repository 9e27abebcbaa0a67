//! HLO's ops, in families, and two of ours.

mod composite;
mod elementwise;
mod indexing;
mod walk;

use std::sync::Arc;

use qwix_array::Array;
use qwix_quant::{ConvDims, DotDims, HowToQuantize, WindowDim};

use crate::Computation;
pub use composite::Composite;
pub use elementwise::{BinaryOp, CompareOrder, Comparison, UnaryOp};
pub use indexing::{GatherDims, PadDim, ScatterDims, SliceDim};

/// What a node does, with its attributes. Operands are the node's, in HLO's order.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// A parameter of the computation, by number.
    Parameter(usize),
    /// An array known when the graph is made.
    Constant(Array),
    /// Counts along one axis.
    Iota {
        /// The axis.
        dimension: usize,
    },

    /// One operand, element by element.
    Unary(UnaryOp),
    /// Two operands of one shape, element by element.
    Binary(BinaryOp),
    /// Two operands of one shape, to pred.
    Compare {
        /// Which comparison.
        comparison: Comparison,
        /// Which order of floats.
        order: CompareOrder,
    },
    /// pred, on true, on false.
    Select,
    /// minimum, operand, maximum; the bounds may be scalars.
    Clamp,
    /// To the node's dtype, by value.
    Convert,
    /// To the node's dtype, by bits; a last axis appears or goes when the widths differ.
    BitcastConvert,
    /// Rounds as if to a narrower float, keeping the dtype.
    ReducePrecision {
        /// Bits of the exponent.
        exponent_bits: u32,
        /// Bits of the mantissa.
        mantissa_bits: u32,
    },

    /// Operand axis i becomes result axis `dimensions[i]`; other result axes repeat.
    Broadcast {
        /// One entry an axis of the operand.
        dimensions: Vec<usize>,
    },
    /// The same elements in the node's shape.
    Reshape,
    /// Result axis i is operand axis `permutation[i]`.
    Transpose {
        /// One entry an axis.
        permutation: Vec<usize>,
    },
    /// Static bounds.
    Slice(Vec<SliceDim>),
    /// operand, then a scalar start for each axis (clamped so that the slice fits).
    DynamicSlice {
        /// The slice's shape.
        sizes: Vec<usize>,
    },
    /// operand, update, then a scalar start for each axis.
    DynamicUpdateSlice,
    /// Any number of operands, along one axis.
    Concatenate {
        /// The axis.
        dimension: usize,
    },
    /// operand, padding value.
    Pad(Vec<PadDim>),
    /// Backwards along these axes.
    Reverse {
        /// The axes.
        dimensions: Vec<usize>,
    },
    /// operand, indices.
    Gather(GatherDims),
    /// operands, indices, updates (as many as operands).
    Scatter {
        /// Which axis is which.
        dims: ScatterDims,
        /// Combines old and new.
        update: Arc<Computation>,
    },

    /// lhs, rhs; either may be quantized.
    Dot(DotDims),
    /// input, kernel; either may be quantized.
    Convolution(ConvDims),

    /// n operands, then n initial values.
    Reduce {
        /// The axes that go.
        dimensions: Vec<usize>,
        /// Takes n accumulators and n elements.
        computation: Arc<Computation>,
    },
    /// n operands, then n initial values.
    ReduceWindow {
        /// One entry an axis.
        window: Vec<WindowDim>,
        /// Takes n accumulators and n elements.
        computation: Arc<Computation>,
    },
    /// operand, source, initial value.
    SelectAndScatter {
        /// One entry an axis.
        window: Vec<WindowDim>,
        /// Chooses an element of each window.
        select: Arc<Computation>,
        /// Combines what lands on one element.
        scatter: Arc<Computation>,
    },
    /// n operands, sorted together.
    Sort {
        /// The axis.
        dimension: usize,
        /// Whether equal elements keep their order.
        stable: bool,
        /// Takes a pair of each operand's elements.
        comparator: Arc<Computation>,
    },
    /// The k largest (or smallest) along the last axis, and their indices.
    TopK {
        /// How many.
        k: usize,
        /// Largest or smallest.
        largest: bool,
    },
    /// A computation for every element of n operands.
    Map {
        /// Takes one element of each.
        computation: Arc<Computation>,
    },

    /// Any number of operands, as one value.
    Tuple,
    /// One element of a tuple.
    GetTupleElement(usize),
    /// One operand, carried while the condition holds.
    While {
        /// State to pred.
        condition: Arc<Computation>,
        /// State to state.
        body: Arc<Computation>,
    },
    /// An index (or pred: true takes branch 0), then one operand a branch.
    Conditional {
        /// One computation a branch.
        branches: Vec<Arc<Computation>>,
    },
    /// A computation that was not inlined.
    Call {
        /// What is called.
        computation: Arc<Computation>,
        /// What the call stands for, when the computation is only one way to do it.
        composite: Option<Arc<Composite>>,
    },
    /// State to new state and random bits.
    RngBitGenerator(RngAlgorithm),
    /// Passes its operands on: barriers and annotations without an effect on values.
    OptimizationBarrier,
    /// Passes its operand on; the node's sharding says how a partitioner is to spread it there (JAX's
    /// `with_sharding_constraint`).
    Sharding {
        /// The axes that the sharding says nothing about: the partitioner's choice.
        open: Vec<usize>,
    },
    /// A function outside HLO, by name.
    CustomCall(CustomCall),
    /// An op that is read but has no meaning here; running it is an error that names it.
    Unsupported(Unsupported),

    /// Array → QArray: x, or x and its static scale, or x, scale and zero point.
    Quantize(HowToQuantize),
    /// QArray → Array.
    Dequantize,
}

/// Algorithms of `rng-bit-generator`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RngAlgorithm {
    /// The implementation's choice: Philox here, as on XLA:CPU.
    Default,
    /// ThreeFry-2x32.
    ThreeFry,
    /// Philox-4x32.
    Philox,
}

/// A call of a function that HLO does not define.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CustomCall {
    /// The function's name.
    pub target: String,
    /// Its `backend_config`, as it came.
    pub config: Vec<u8>,
    /// The computations it calls, by position.
    pub called: Vec<String>,
    /// Whether it goes through XLA's typed FFI and this is all there is to say: no side effects, no results in operands'
    /// places, all arrays row-major. Of another call not everything is kept, so that it cannot be written.
    pub typed: bool,
}

/// An instruction that was read but not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsupported {
    /// HLO's name of the op.
    pub opcode: String,
    /// Why it has no meaning here, when the op itself is known.
    pub reason: String,
}
