//! The backends there are, by name.

use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, ReferenceBackend};
use qwix_pjrt::{Plugin, XlaBackend};

use crate::{Error, Result};

/// One backend.
struct Row {
    name: &'static str,
    /// What may stand after the name and a colon.
    argument: &'static str,
    /// Takes what stands there, or nothing.
    make: fn(&str) -> Result<Box<dyn Backend>>,
}

/// Every backend: one row each.
const BACKENDS: &[Row] = &[
    Row { name: "cpu", argument: "", make: |_| Ok(Box::new(CpuBackend::default())) },
    Row { name: "reference", argument: "", make: |_| Ok(Box::new(ReferenceBackend::default())) },
    Row {
        name: "xla",
        argument: "cpu|cuda|rocm|tpu|PATH",
        make: |plugin| Ok(Box::new(xla_backend(plugin)?)),
    },
];

/// The backends as they are written on a command line, the best first: `cpu`, `reference`,
/// `xla[:cpu|cuda|rocm|tpu|PATH]`.
pub fn backend_names() -> impl Iterator<Item = String> {
    BACKENDS.iter().map(|row| match row.argument {
        "" => row.name.to_owned(),
        argument => format!("{}[:{argument}]", row.name),
    })
}

/// Whether a text names a backend: nothing is loaded, so it need not be there.
///
/// # Errors
/// Says which there are.
pub fn check_backend_name(name: &str) -> Result<()> {
    row(name).map(|_| ())
}

/// The backend of a name.
///
/// # Errors
/// When there is none of that name, or its plugin cannot be found or loaded.
pub fn backend(name: &str) -> Result<Box<dyn Backend>> {
    let (row, argument) = row(name)?;
    (row.make)(argument)
}

/// The devices of a PJRT plugin, as many as a model's shardings name: of a kind (`cpu`, `cuda`, `rocm`, `tpu`; nothing means `cpu`) or of the library at
/// a path.
///
/// # Errors
/// When the plugin cannot be found or loaded, or finds no device.
pub fn xla_backend(plugin: &str) -> Result<XlaBackend> {
    Ok(XlaBackend::new(&Plugin::load(qwix_pjrt::resolve(plugin)?)?)?)
}

/// The row of a name, and what stands after its colon.
fn row(name: &str) -> Result<(&'static Row, &str)> {
    let (head, argument) = name.split_once(':').unwrap_or((name, ""));
    let fits = |row: &&Row| row.name == head && (!row.argument.is_empty() || head == name);
    let row = BACKENDS.iter().find(fits).ok_or_else(|| {
        let known = backend_names().collect::<Vec<_>>().join(", ");
        Error::Unsupported(format!("there is no backend `{name}`; known are {known}"))
    })?;
    Ok((row, argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_not() {
        let rows = [
            ("cpu", true),
            ("reference", true),
            ("xla", true),
            ("xla:cuda", true),
            ("xla:/some/where/plugin.so", true),
            ("cpu:0", false),
            ("cpu:", false),
            ("xl", false),
            ("", false),
        ];
        for (name, known) in rows {
            assert_eq!(check_backend_name(name).is_ok(), known, "{name}");
        }
    }
}
