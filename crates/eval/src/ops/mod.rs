//! The ops, a family a file, as in `qwix_graph::Op`.

pub(crate) mod control;
pub(crate) mod elementwise;
pub(crate) mod float;
pub(crate) mod indexing;
pub(crate) mod int;
pub(crate) mod quant;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod shape;
pub(crate) mod sort;
