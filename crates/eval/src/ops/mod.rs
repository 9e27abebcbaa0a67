//! The ops, a family a file, as in `qwix_graph::Op`.

pub(crate) mod control;
pub(crate) mod elementwise;
pub(crate) mod float;
pub(crate) mod int;
pub(crate) mod shape;
