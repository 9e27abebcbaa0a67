//! Graphs as HLO text.
//!
//! [`Graph::to_text`](crate::Graph::to_text) writes what XLA would print of the module, with these additions, which [`Graph::from_text`](crate::Graph::from_text) reads
//! back, so that a graph survives the way through text whole:
//! - The module's line ends with `frontend_attributes={qwix="1"}`: calls are left as they are, and the signature is in
//!   the parameters' `frontend_attributes`: `path`, `role` (`variable` or `input`), `ambiguous`, `key` (argument and
//!   keys between `/`), of a quantized parameter `source`, `source_type` and `prep`, and of one made from statistics
//!   `statistics` (their path) and `part` (`scale int8 symmetric`, `zero_point int8`, `count`, `sum_of_absmax`, …).
//! - A quantized type is `q[int8 f32[8,16] {channelwise,_} absmax]`: the qtype, the array that it stands for, for each
//!   axis `_` (shared), `channelwise`, `tile 32` or `tile 0.25x` (a fraction of the axis), and the calibration method as
//!   rules write it. The ops are `quantize` and `dequantize`; how `quantize` works is what its type says.
//! - Comments: `/*id=7*/` after an instruction is its id in the module that it came from; `/*name="x"*/` after a
//!   computation's brace its name, when another computation has the same.
//! - `unsupported="reason"` marks an instruction that was read but not understood.
//! - A name that HLO text cannot have stands in quotes.
//!
//! Of a module that [`Graph::to_hlo_proto`](crate::Graph::to_hlo_proto) wrote, XLA's text is read back as the module is: our composites and the
//! `qwix.` attributes of parameters, which have the names above, give the quantized graph.

mod attributes;
mod constant;
mod instruction;
mod parse;
mod print;
mod scan;
pub(crate) mod signature;
mod single;

pub use print::TextOptions;
pub(crate) use single::{op_text, read_dictionary, read_op, read_quantized};
