//! Kernels of ours in XLA's programs: custom calls that come back here through XLA's typed FFI.
//!
//! A [`Kernel`] is a function over buffers that programs call by its target. [`Kernels`] says for which products with
//! quantized weights there is one; [`XlaBackend::with_kernels`](crate::XlaBackend::with_kernels) then lets programs call
//! it in place of what [`lower`](crate::lower()) would write. XLA calls kernels from its own threads, several at once.
//!
//! The custom call of a product takes the left side as the engine for which it is meant would see it, and then what
//! [`Kernels::pack`] made of the weight; it yields f32 of [batch, rows, columns], tiles summed. With `sizes` those of the
//! product's [`dot_plan`](qwix_quant::dot_plan), row-major, the left side is
//! - for stored values: values `s8[batch,rows,depth]`, scales `f32[batch,rows]`, and zero points `s32[batch,rows]` where
//!   it has some;
//! - for a weight that is dequantized first: `f32[batch,rows,depth]`.

mod expand;
mod handler;
mod register;
mod replace;
mod view;

use std::any::TypeId;

use qwix_graph::{ArrayType, DotDims};
use qwix_quant::{OperandInfo, QArray};

use crate::ffi::{CallFrame, XlaError};

pub(crate) use replace::{Loads, Replaced};
pub use view::{Attributes, BufferView, BufferViewMut};

/// A function that programs call.
pub trait Kernel: 'static {
    /// The target of the custom calls that reach it: unique in the process.
    const TARGET: &'static str;

    /// Fills the results. Runs on a thread of XLA's, several times at once; what it returns or panics with becomes the
    /// error of the program's run.
    ///
    /// # Errors
    /// When the operands are not what it takes.
    fn run(
        operands: &[BufferView<'_>],
        results: &mut [BufferViewMut<'_>],
        attributes: &Attributes<'_>,
    ) -> Result<(), String>;
}

/// A kernel as it is made known to a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    target: &'static str,
    kernel: TypeId,
    function: unsafe extern "C" fn(*mut CallFrame) -> *mut XlaError,
}

impl Handler {
    /// The handler of a kernel.
    pub fn of<K: Kernel>() -> Self {
        Handler { target: K::TARGET, kernel: TypeId::of::<K>(), function: handler::handle::<K> }
    }

    /// The target of the custom calls that reach it.
    pub fn target(&self) -> &'static str {
        self.target
    }
}

/// A product with a quantized weight on the right.
#[derive(Clone, PartialEq, Debug)]
pub struct Product {
    /// The left side.
    pub lhs: OperandInfo,
    /// The right side: a variable.
    pub weight: OperandInfo,
    /// Which axes are contracted, and which are the batch.
    pub dims: DotDims,
}

/// How a kernel is called for a product.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// The kernel's target.
    pub target: &'static str,
    /// What it is told besides its operands.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// The types of what [`Kernels::pack`] makes of the weight.
    pub packed: Vec<ArrayType>,
}

/// Something that a kernel is told when the program is compiled.
#[derive(Clone, PartialEq, Debug)]
pub enum Attribute {
    /// A number.
    Int(i64),
    /// A text.
    Text(String),
}

/// Somebody's kernels for products with quantized weights.
pub trait Kernels: Send + Sync {
    /// The kernels.
    fn handlers(&self) -> Vec<Handler>;

    /// How a product is computed.
    ///
    /// # Errors
    /// Says why there is no kernel for it; the product is then lowered to plain HLO.
    fn plan(&self, product: &Product) -> Result<Call, String>;

    /// What the product's kernel reads in place of the weight. It is made once, when a program is compiled, and stays
    /// on the device.
    ///
    /// # Errors
    /// When the weight is not what was planned for.
    fn pack(&self, product: &Product, weight: &QArray) -> Result<Vec<qwix_array::Array>, String>;
}
