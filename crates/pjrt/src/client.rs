//! A client of a plugin, and its devices.

use std::ptr;
use std::sync::{Arc, Mutex};

use crate::ffi::{self, Arguments, NamedValue, RawClient, RawDevice, Scalar};
use crate::plugin::{slice, text};
use crate::{Code, PjrtError, Plugin, Result};

/// The value of an option of a client.
#[derive(Clone, Debug, PartialEq)]
pub enum OptionValue {
    /// A text.
    Text(String),
    /// A number.
    Int(i64),
    /// Several numbers.
    Ints(Vec<i64>),
    /// A number that need not be whole.
    Float(f32),
    /// Yes or no.
    Bool(bool),
}

/// A connection to the devices of a plugin. Clones share it; it is closed when the last handle that came from it is gone.
#[derive(Clone)]
pub struct Client {
    pub(crate) handle: Arc<ClientHandle>,
    devices: Vec<Device>,
    platform_name: String,
    platform_version: String,
}

/// The plugin's client, destroyed when nothing uses it any more.
pub(crate) struct ClientHandle {
    pub(crate) plugin: Plugin,
    pub(crate) raw: *mut RawClient,
    /// Held while a program is started on several devices.
    pub(crate) launches: Mutex<()>,
}

// SAFETY: the C API allows a client, and whatever is made by it, to be used from any thread, several at once.
unsafe impl Send for ClientHandle {}
// SAFETY: as above.
unsafe impl Sync for ClientHandle {}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        let mut arguments = ffi::ClientDestroy { client: self.raw, ..ffi::ClientDestroy::new() };
        // SAFETY: buffers, executables and events hold an `Arc` of this, so they are gone. There is nobody to tell
        // of an error.
        let _ = unsafe { self.plugin.call(&mut arguments) };
    }
}

/// A device that this process can use.
#[derive(Clone)]
pub struct Device {
    /// Keeps the device's client, which owns the device.
    pub(crate) client: Arc<ClientHandle>,
    pub(crate) raw: *mut RawDevice,
    id: i32,
    kind: String,
    name: String,
}

// SAFETY: as for `ClientHandle`, which owns the device and is held here.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// How much of a device's memory is used, in bytes; `None` where the plugin does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryStats {
    /// Used now.
    pub in_use: u64,
    /// The most that was ever used.
    pub peak: Option<u64>,
    /// The most that can be used.
    pub limit: Option<u64>,
    /// The largest block that is free.
    pub largest_free: Option<u64>,
}

impl Client {
    /// Connects to a plugin's devices. Options are the plugin's: `cpu_device_count` of CPUs (so many virtual devices),
    /// `memory_fraction`, `preallocate`, `visible_devices` and others of GPUs.
    ///
    /// # Errors
    /// When the plugin does not know an option or finds no device, or a count is not positive.
    pub fn new(plugin: &Plugin, options: &[(&str, OptionValue)]) -> Result<Self> {
        for (name, value) in options {
            let bad = |reason: &str| Err(PjrtError::invalid(format!("option `{name}`"), reason));
            match value {
                _ if name.is_empty() => return bad("has no name"),
                OptionValue::Int(count) if name.ends_with("count") && *count < 1 => {
                    return bad(&format!("found {count}, expected a positive number"));
                }
                OptionValue::Float(value) if !value.is_finite() => {
                    return bad(&format!("found {value}, expected a finite number"));
                }
                OptionValue::Text(_)
                | OptionValue::Int(_)
                | OptionValue::Ints(_)
                | OptionValue::Float(_)
                | OptionValue::Bool(_) => {}
            }
        }
        let named: Vec<NamedValue> = options.iter().map(|(name, value)| named_value(name, value)).collect();
        let mut arguments = ffi::ClientCreate {
            create_options: named.as_ptr(),
            num_options: named.len(),
            ..ffi::ClientCreate::new()
        };
        // SAFETY: the options, and the texts and lists they point to, live through the call; a single process needs
        // no key-value store, so its functions are null.
        unsafe { plugin.call(&mut arguments)? };
        let handle = Arc::new(ClientHandle {
            plugin: plugin.clone(),
            raw: arguments.client,
            launches: Mutex::new(()),
        });
        let mut client = Client {
            devices: Vec::new(),
            platform_name: platform_name(&handle)?,
            platform_version: platform_version(&handle)?,
            handle,
        };
        client.devices = client.find_devices()?;
        if client.devices.is_empty() {
            return Err(PjrtError::plugin(plugin.path(), "has no device that this process can use"));
        }
        Ok(client)
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.handle.plugin
    }

    /// The kind of devices: `cpu`, `cuda`, `tpu`, …
    pub fn platform_name(&self) -> &str {
        &self.platform_name
    }

    /// The version of the platform, in the plugin's words.
    pub fn platform_version(&self) -> &str {
        &self.platform_version
    }

    /// The devices that this process can use, by number; at least one.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// A device by its number.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn device(&self, number: usize) -> Result<&Device> {
        self.devices.get(number).ok_or_else(|| {
            PjrtError::invalid(
                format!("device {number}"),
                format!("there are {}, from 0 on", self.devices.len()),
            )
        })
    }

    fn find_devices(&self) -> Result<Vec<Device>> {
        let mut arguments =
            ffi::ClientAddressableDevices { client: self.handle.raw, ..ffi::ClientAddressableDevices::new() };
        // SAFETY: the client is alive.
        unsafe { self.handle.plugin.call(&mut arguments)? };
        // SAFETY: the plugin gives so many pointers, which live as long as the client.
        let raw = unsafe { slice(arguments.addressable_devices, arguments.num_addressable_devices) };
        raw.iter().map(|&raw| Device::new(&self.handle, raw)).collect()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({}, {} devices)", self.platform_name, self.devices.len())
    }
}

fn platform_name(client: &ClientHandle) -> Result<String> {
    let mut arguments = ffi::ClientPlatformName { client: client.raw, ..ffi::ClientPlatformName::new() };
    // SAFETY: the client is alive.
    unsafe { client.plugin.call(&mut arguments)? };
    // SAFETY: the text has so many bytes and lives as long as the client.
    Ok(unsafe { text(arguments.platform_name, arguments.platform_name_size) })
}

fn platform_version(client: &ClientHandle) -> Result<String> {
    let mut arguments =
        ffi::ClientPlatformVersion { client: client.raw, ..ffi::ClientPlatformVersion::new() };
    // SAFETY: the client is alive.
    unsafe { client.plugin.call(&mut arguments)? };
    // SAFETY: the text has so many bytes and lives as long as the client.
    Ok(unsafe { text(arguments.platform_version, arguments.platform_version_size) })
}

fn named_value(name: &str, value: &OptionValue) -> NamedValue {
    let (kind, value, value_size) = match value {
        OptionValue::Text(text) => (NamedValue::STRING, Scalar { string: text.as_ptr() }, text.len()),
        OptionValue::Int(number) => (NamedValue::INT64, Scalar { int64: *number }, 1),
        OptionValue::Ints(numbers) => {
            (NamedValue::INT64_LIST, Scalar { int64_list: numbers.as_ptr() }, numbers.len())
        }
        OptionValue::Float(number) => (NamedValue::FLOAT, Scalar { float: *number }, 1),
        OptionValue::Bool(yes) => (NamedValue::BOOL, Scalar { boolean: u8::from(*yes) }, 1),
    };
    NamedValue {
        struct_size: NamedValue::SIZE,
        extension_start: ptr::null_mut(),
        name: name.as_ptr(),
        name_size: name.len(),
        kind,
        value,
        value_size,
    }
}

impl Device {
    fn new(client: &Arc<ClientHandle>, raw: *mut RawDevice) -> Result<Self> {
        let plugin = &client.plugin;
        let mut description = ffi::DeviceGetDescription { device: raw, ..ffi::DeviceGetDescription::new() };
        // SAFETY: the device is the client's, which is alive.
        unsafe { plugin.call(&mut description)? };
        let device_description = description.device_description;
        let mut id = ffi::DescriptionId { device_description, ..ffi::DescriptionId::new() };
        let mut kind = ffi::DescriptionKind { device_description, ..ffi::DescriptionKind::new() };
        let mut name = ffi::DescriptionToString { device_description, ..ffi::DescriptionToString::new() };
        // SAFETY: the description is the device's and lives as long; so do the texts, which have so many bytes.
        let (kind, name) = unsafe {
            plugin.call(&mut id)?;
            plugin.call(&mut kind)?;
            plugin.call(&mut name)?;
            (text(kind.device_kind, kind.device_kind_size), text(name.to_string, name.to_string_size))
        };
        Ok(Device { client: Arc::clone(client), raw, id: id.id, kind, name })
    }

    /// Its number among all devices of all processes.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// What it is, in the vendor's words.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// How it stands in the plugin's messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much of its memory is used; `None` where the plugin does not say, as that of CPUs.
    ///
    /// # Errors
    /// When the plugin fails otherwise.
    pub fn memory_stats(&self) -> Result<Option<MemoryStats>> {
        let mut stats = ffi::DeviceMemoryStats { device: self.raw, ..ffi::DeviceMemoryStats::new() };
        // SAFETY: the device's client is held.
        match unsafe { self.client.plugin.call(&mut stats) } {
            Ok(()) => {}
            Err(PjrtError::Missing { .. } | PjrtError::Call { code: Code::Unimplemented, .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let known = |count: i64, is_set: u8| (is_set != 0).then(|| bytes(count));
        Ok(Some(MemoryStats {
            in_use: bytes(stats.bytes_in_use),
            peak: known(stats.peak_bytes_in_use, stats.peak_bytes_in_use_is_set),
            limit: known(stats.bytes_limit, stats.bytes_limit_is_set),
            largest_free: known(stats.largest_free_block_bytes, stats.largest_free_block_bytes_is_set),
        }))
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}
