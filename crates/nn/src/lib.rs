//! Layers in the manner of Flax Linen, that trace to a graph.
//!
//! A model is a struct and one function. What the function does to tensors becomes a graph that can be quantized and
//! run like one exported from JAX; its parameters have the paths that Linen gives them, so that a checkpoint trained
//! in Flax fits.
//!
//! ```
//! use qwix_eval::ReferenceBackend;
//! use qwix_nn::*;
//!
//! struct Mlp;
//!
//! impl Module for Mlp {
//!     fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
//!         let x = scope.call(Dense::new(16), x)?;         // parameters Dense_0/kernel, Dense_0/bias
//!         let x = relu(&x) * 2.0;
//!         scope.call_as("head", Dense::new(4), x)         // parameters head/kernel, head/bias
//!     }
//! }
//!
//! let x = ArrayType::new(DType::F32, [3, 8]);
//! let graph  = trace(&Mlp, &[x.clone()])?;                // a Graph, for quantize_model or a backend
//! let shapes = abstract_init(&Mlp, &[x.clone()])?;        // path → type; nothing allocated
//! let params = init(&Mlp, Key::new(0), &[x])?;            // path → value, those that Flax gives for this key
//! assert_eq!(shapes.keys().next().unwrap().as_str(), "Dense_0/bias");
//! assert_eq!(graph.variables().count(), 4);
//!
//! let input = Array::zeros(DType::F32, &[3, 8])?;
//! let outputs = apply(&Mlp, &params, &[input], &ReferenceBackend::default())?;
//! assert_eq!(outputs[0].shape(), [3, 4]);
//! # Ok::<(), NnError>(())
//! ```
//!
//! | to | use |
//! | --- | --- |
//! | write a model | [`Module`], [`Scope`] |
//! | compute | [`Tensor`]: its methods and operators, [`concatenate`], [`dot_general`], activations such as [`gelu`] |
//! | use layers | [`Dense`], [`DenseGeneral`], [`Einsum`], [`Conv`], [`ConvTranspose`], [`Embed`], [`LayerNorm`], [`RMSNorm`], [`BatchNorm`], [`MultiHeadDotProductAttention`], [`Sequential`], [`Dropout`], [`max_pool`], [`avg_pool`] |
//! | make a graph, parameters or outputs | [`trace`], [`init`], [`abstract_init`], [`apply`] |
//! | start parameters in another way | [`initializers`], [`random`] |
//!
//! Each layer emits the ops that Flax and JAX lower it to, in their order, for inference: dropout does nothing, batch
//! norm uses its running averages.

#![forbid(unsafe_code)]

mod error;
pub mod initializers;
mod layers;
mod module;
mod promote;
pub mod random;
mod scope;
mod tensor;
mod trace;
mod tracer;

pub use error::{NnError, Result};
pub use initializers::Initializer;
pub use layers::*;
pub use module::{InputReader, Inputs, Module, Outputs};
pub use promote::promote_types;
pub use qwix_array::{Array, DType};
pub use qwix_graph::{ArrayType, DotDims};
pub use random::Key;
pub use scope::{Child, Scope};
pub use tensor::{Operand, Scalar, Tensor, concatenate, dot_general, stack};
pub use trace::{abstract_init, apply, init, trace};
