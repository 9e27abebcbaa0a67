//! The native engine: plans a graph once and runs it on the CPU.
//!
//! [`CpuBackend`] turns a graph into steps, each a kernel over whole arrays; what no kernel takes, the reference
//! evaluator does. Weights are folded and packed when the graph is compiled. Results do not depend on the number of
//! threads.

#![forbid(unsafe_code)]

mod backend;
mod buffers;
mod fuse;
pub mod kernels;
mod parallel;
mod plan;
mod steps;
mod values;
mod view;

pub use backend::{CpuBackend, CpuModel};
pub use plan::StepTime;
