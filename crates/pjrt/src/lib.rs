//! XLA devices through PJRT plugins: a small client of the PJRT C API, and a backend that runs graphs with it.
//!
//! A plugin is a shared library with the single symbol `GetPjrtApi`; none is part of this crate. [`Plugin`] loads one,
//! [`Client`] connects to its devices, [`Program`] is what it compiles to an [`Executable`], and a [`Buffer`] is an
//! array on a device.
//!
//! Everything unsafe is behind these types: handles are destroyed once and in order (buffers and executables hold the
//! client), errors become [`PjrtError`]s, a function that a plugin lacks is an error, and what is known to end a
//! plugin's process is refused before the plugin sees it.

mod backend;
mod buffer;
mod cache;
mod client;
mod error;
mod event;
mod executable;
mod ffi;
mod gpu;
mod install;
pub mod kernels;
mod loader;
mod lower;
mod nvidia;
mod options;
mod plugin;
mod plugins;
mod program;
mod spread;

pub use backend::{XlaBackend, XlaExecutable};
pub use buffer::Buffer;
pub use cache::{Cache, Origin};
pub use client::{Client, Device, MemoryStats, OptionValue};
pub use error::{Code, PjrtError, Result};
pub use executable::{Argument, Executable, Execution};
pub use install::{Installed, install};
pub use loader::XlaLoader;
pub use lower::{lower, portable};
pub use options::{CompileOptions, XlaOption};
pub use plugin::{Attribute, Plugin};
pub use plugins::{Kind, Source, WHEELS, Wheel, candidates, find, plugins_dir, resolve};
pub use program::Program;
