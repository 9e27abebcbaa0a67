//! The backends there are, by name.

use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, ReferenceBackend};

use crate::{Error, Result};

type Make = fn() -> Box<dyn Backend>;

/// Every backend: one line each.
const BACKENDS: &[(&str, Make)] =
    &[("cpu", || Box::new(CpuBackend::default())), ("reference", || Box::new(ReferenceBackend::default()))];

/// The names of the backends, the best first.
pub fn backend_names() -> impl Iterator<Item = &'static str> {
    BACKENDS.iter().map(|row| row.0)
}

/// The backend of a name.
///
/// # Errors
/// When there is none of that name.
pub fn backend(name: &str) -> Result<Box<dyn Backend>> {
    let row = BACKENDS.iter().find(|row| row.0 == name).ok_or_else(|| {
        let known = backend_names().collect::<Vec<_>>().join(", ");
        Error::Unsupported(format!("there is no backend `{name}`; known are {known}"))
    })?;
    Ok(row.1())
}
