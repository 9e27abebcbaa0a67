//! One command a file.

mod backend;
pub mod calibrate;
pub mod compare;
pub mod dump;
pub mod explain;
pub mod export;
pub mod import;
pub mod inspect;
mod online;
pub mod plugin;
pub mod quantize;
pub mod run;
pub mod verify;
