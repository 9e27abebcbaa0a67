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
//! # From Flax to Rust
//!
//! | in Flax | here |
//! | --- | --- |
//! | `nn.Dense(8)(x)` | `scope.call(Dense::new(8), x)?` |
//! | `nn.Dense(8, name='up')(x)` | `scope.call_as("up", Dense::new(8), x)?` |
//! | `embed = nn.Embed(9, 4); embed(i); embed.attend(x)` | `let embed = scope.child(Embed::new(9, 4))?; embed.call(i)?; embed.attend(&x)?` |
//! | `self.param('w', init, (3, 4))` | `scope.param("w", &[3, 4], DType::F32, &init)?` |
//! | `jnp.einsum('ij,jk->ik', a, b)` | `a.einsum("ij,jk->ik", &b)` |
//! | `jnp.where(mask, a, -1e9)` | `mask.select(a, -1e9)` |
//! | `x[:, 2:5]`, `x[:, -1]` | `x.slice(1, 2..5)`, `x.index(1, -1)` |
//! | `x.mean(-1, keepdims=True)` | `x.mean_keepdims(&[-1])` |
//! | `model.init(key, x)`, `jax.eval_shape(model.init, key, x)` | [`init`], [`abstract_init`] |
//! | `jax.jit(model.apply).lower(variables, x)` | [`trace`] |
//! | `variables['cache']` and `mutable=['cache']` | an input and an output, such as [`KvCache`] |
//!
//! # When something is wrong
//!
//! Ops on tensors never panic and need no `?`: a wrong one gives a tensor that carries the error to whatever asks next,
//! with the module and the op in which it arose.
//!
//! ```
//! use qwix_nn::*;
//!
//! struct Wrong;
//!
//! impl Module for Wrong {
//!     fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
//!         let y = &x + x.slice(1, 0..2);                  // [3, 8] and [3, 2]
//!         scope.call(Dense::new(4), tanh(&y) * 0.5)
//!     }
//! }
//!
//! let error = trace(&Wrong, &[ArrayType::new(DType::F32, [3, 8])]).unwrap_err();
//! assert_eq!(error.to_string(), "in `Wrong`: add: f32[3,8] and f32[3,2] do not broadcast to one shape");
//! ```
//!
//! # What is computed
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
