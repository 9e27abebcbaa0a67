//! Kernels over slices, in the widest vectors that the machine has.
//!
//! Nothing here knows of graphs or starts threads: a caller hands in slices and ranges and runs as many calls side by
//! side as it likes. What the CPU can do is asked when the program runs; a portable version is always there, and every
//! version of a kernel gives the same bits, floats included, unless its documentation says otherwise: products are never fused
//! with sums behind the author's back, and sums keep one order. The float [`gemm_f32()`] is the exception, it belongs to a library.

mod convert;
mod encode;
mod gemm;
pub mod math;
mod qgemm;
mod quantize;
mod reduce;
mod versions;
pub mod vm;

pub use convert::{
    decode_bytes, decode_nibbles, f32_to_bf16, f32_to_f16, round_to_bf16, round_to_f16, widen_bf16, widen_f16,
};
pub use encode::{
    count_above, largest_magnitude_16, largest_magnitude_32, largest_magnitudes_16, largest_magnitudes_32,
    pack_nibbles, scale_f32,
};
pub use gemm::{MatMut, MatRef, gemm_f32};
pub use qgemm::{Kernel, PANEL, Packed, PackedB, Rows, Workspace, best, kernels, multiply};
pub use quantize::{
    absmax_f32, absmax_rows_f32, axpy_i32, minmax_f32, multiply_add_f32, multiply_add_i8, multiply_f32,
    quantize_columns_i8, quantize_i8, rescale_i32, widen_i8,
};
pub use reduce::{Fold, fold_rows_f32, reduce_f32};
