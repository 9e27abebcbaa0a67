//! One command a file.

pub mod compare;
pub mod dump;
pub mod explain;
pub mod inspect;
mod online;
pub mod quantize;
pub mod run;
