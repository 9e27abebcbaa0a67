//! One command a file.

pub mod compare;
pub mod dump;
pub mod explain;
pub mod inspect;
pub mod quantize;
pub mod run;
