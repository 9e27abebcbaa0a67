//! The CPU plugin, fetched when it is not there.
#![allow(dead_code)]

use std::sync::OnceLock;

use qwix_pjrt::{Client, Kind, OptionValue, Plugin, WHEELS, find, install};

/// The plugin. Without one, and without the means to fetch it, a test that wants it is skipped, aloud; with `CI` set
/// that is a failure.
pub fn plugin() -> Option<Plugin> {
    static PLUGIN: OnceLock<Option<Plugin>> = OnceLock::new();
    PLUGIN
        .get_or_init(|| {
            let found = find(Kind::Cpu).or_else(|_| {
                let wheel = WHEELS.iter().find(|wheel| wheel.name == "cpu").expect("a row of the table");
                install(wheel, "python3", false).map(|installed| installed.path)
            });
            match found.and_then(Plugin::load) {
                Ok(plugin) => Some(plugin),
                Err(error) if std::env::var_os("CI").is_some() => panic!("no CPU plugin: {error}"),
                Err(error) => {
                    eprintln!("skipped: no CPU plugin: {error}");
                    None
                }
            }
        })
        .clone()
}

/// A client with eight devices, one for all tests of a process.
pub fn client() -> Option<&'static Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            let devices = ("cpu_device_count", OptionValue::Int(8));
            plugin().map(|plugin| Client::new(&plugin, &[devices]).expect("a CPU is always there"))
        })
        .as_ref()
}
