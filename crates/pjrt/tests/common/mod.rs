//! The plugin that the tests run on.
//!
//! It is that of CPUs, fetched when it is not there. `QWIX_TEST_XLA=cuda` (or `rocm`, `tpu`) has the same tests run on
//! another kind of device, whose plugin must be there; `docs/xla.md` says how.
#![allow(dead_code)]

use std::sync::OnceLock;

use qwix_array::DType;
use qwix_pjrt::{Client, Device, Kind, OptionValue, Plugin, WHEELS, find, install};

/// The kind of device.
pub fn kind() -> Kind {
    let name = std::env::var("QWIX_TEST_XLA").unwrap_or_default();
    match Kind::ALL.into_iter().find(|kind| kind.name() == name) {
        Some(kind) => kind,
        None if name.is_empty() => Kind::Cpu,
        None => panic!("QWIX_TEST_XLA is `{name}`, expected cpu, cuda, rocm or tpu"),
    }
}

pub fn is_cpu() -> bool {
    kind() == Kind::Cpu
}

/// Whether a test that is about XLA's CPU alone is to run; where not, it says so.
pub fn only_on_cpu(what: &str) -> bool {
    if !is_cpu() {
        eprintln!("skipped on {}: {what}", kind().name());
    }
    is_cpu()
}

/// The plugin. Without that of CPUs, and without the means to fetch it, a test that wants it is skipped, aloud; with `CI`
/// set that is a failure. One that was asked for must be there.
pub fn plugin() -> Option<Plugin> {
    static PLUGIN: OnceLock<Option<Plugin>> = OnceLock::new();
    PLUGIN
        .get_or_init(|| {
            let found =
                find(kind()).or_else(|error| match WHEELS.iter().find(|wheel| wheel.kind == kind()) {
                    Some(wheel) if is_cpu() => {
                        install(wheel, "python3", false).map(|installed| installed.path)
                    }
                    _ => Err(error),
                });
            match found.and_then(Plugin::load) {
                Ok(plugin) => Some(plugin),
                Err(error) if std::env::var_os("CI").is_some() || !is_cpu() => {
                    panic!("no plugin for {}: {error}", kind().name())
                }
                Err(error) => {
                    eprintln!("skipped: no CPU plugin: {error}");
                    None
                }
            }
        })
        .clone()
}

/// Options of a client: so many devices of the CPU; of a GPU no more memory than is used.
pub fn options(devices: i64) -> Vec<(&'static str, OptionValue)> {
    match kind() {
        Kind::Cpu => vec![("cpu_device_count", OptionValue::Int(devices))],
        Kind::Cuda | Kind::Rocm => vec![("preallocate", OptionValue::Bool(false))],
        Kind::Tpu => vec![],
    }
}

/// A client, one for all tests of a process: of eight devices of the CPU, or of those that there are.
pub fn client() -> Option<&'static Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    CLIENT
        .get_or_init(|| plugin().map(|plugin| Client::new(&plugin, &options(8)).expect("there is a device")))
        .as_ref()
}

/// A device of a client by number; where there are fewer, one of them.
pub fn device(client: &Client, number: usize) -> &Device {
    &client.devices()[number % client.devices().len()]
}

/// How far an output may be from another engine's, relative to its largest value, on a device that is no CPU. Sums are
/// made in another order, divisions and transcendental functions are good to some units in the last place, and a
/// type narrower than f32 is rounded after other steps.
pub fn device_budget(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-6),
        DType::F16 => 2f64.powi(-9),
        _ => 1e-4,
    }
}
