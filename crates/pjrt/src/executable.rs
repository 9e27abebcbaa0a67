//! Compiled programs.

use std::ptr;
use std::sync::Arc;

use crate::buffer::Buffer;
use qwix_graph::ArrayType;

use crate::client::{ClientHandle, Device};
use crate::event::Event;
use crate::ffi::{
    self, Arguments, ExecuteOptions, RawBuffer, RawExecutable, RawLoadedExecutable, RawProgram,
};
use crate::plugin::slice;
use crate::{Client, CompileOptions, PjrtError, Program, Result};

/// A program compiled for devices of a client.
pub struct Executable {
    client: Arc<ClientHandle>,
    raw: *mut RawLoadedExecutable,
    program: Program,
    /// The devices that it runs on, in the order of the lists of arguments.
    devices: Vec<Device>,
}

// SAFETY: as for `ClientHandle`, which is held here; the API allows one executable to run several times at once.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

/// What is given to an execution.
#[derive(Debug)]
pub enum Argument<'a> {
    /// A buffer that stays.
    Keep(&'a Buffer),
    /// A buffer that is used up: a result may take its memory, where the program says that the two may be one.
    Donate(Buffer),
}

/// A run that was started.
pub struct Execution {
    /// The results, a list for each device. They can be read, or given to another execution, at once.
    pub results: Vec<Vec<Buffer>>,
    done: Vec<Event>,
}

impl Execution {
    /// Whether all devices are done.
    ///
    /// # Errors
    /// When the plugin does not say.
    pub fn is_ready(&self) -> Result<bool> {
        for done in &self.done {
            if !done.is_ready()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until all devices are done; gives the results.
    ///
    /// # Errors
    /// When the run failed on a device.
    pub fn wait(self) -> Result<Vec<Vec<Buffer>>> {
        for done in &self.done {
            done.wait()?;
        }
        Ok(self.results)
    }
}

impl Client {
    /// Compiles a program.
    ///
    /// # Errors
    /// When the plugin's compiler does not take it, or the options want more devices than there are.
    pub fn compile(&self, program: &Program, options: &CompileOptions) -> Result<Executable> {
        self.check(program, options)?;
        let (format, options_bytes) = (b"hlo", options.encode());
        let raw_program = RawProgram {
            struct_size: RawProgram::SIZE,
            extension_start: ptr::null_mut(),
            code: program.bytes.as_ptr(),
            code_size: program.bytes.len(),
            format: format.as_ptr(),
            format_size: format.len(),
        };
        let mut arguments = ffi::ClientCompile {
            client: self.handle.raw,
            program: &raw_program,
            compile_options: options_bytes.as_ptr(),
            compile_options_size: options_bytes.len(),
            ..ffi::ClientCompile::new()
        };
        // SAFETY: the client is alive; program and options live through the call.
        unsafe { self.handle.plugin.call(&mut arguments)? };
        // SAFETY: the executable is new and ours.
        unsafe { self.adopt(arguments.executable, program) }
    }

    /// Loads what [`Executable::serialize`] gave for the same program and options.
    ///
    /// The bytes are code: they must be those that a plugin of the same version wrote on such a machine, unchanged. Some
    /// plugins do not survive others; `Cache` keeps a checksum for this reason.
    ///
    /// # Errors
    /// When the plugin does not take the bytes.
    pub fn deserialize(
        &self,
        bytes: &[u8],
        program: &Program,
        options: &CompileOptions,
    ) -> Result<Executable> {
        self.check(program, options)?;
        if bytes.is_empty() {
            return Err(PjrtError::invalid("serialized executable", "is empty"));
        }
        let mut arguments = ffi::ExecutableDeserializeAndLoad {
            client: self.handle.raw,
            serialized_executable: bytes.as_ptr(),
            serialized_executable_size: bytes.len(),
            ..ffi::ExecutableDeserializeAndLoad::new()
        };
        // SAFETY: the client is alive; the bytes live through the call; no options means those in the bytes.
        unsafe { self.handle.plugin.call(&mut arguments)? };
        // SAFETY: the executable is new and ours.
        unsafe { self.adopt(arguments.loaded_executable, program) }
    }

    /// # Safety
    /// The executable is this client's, and nobody else destroys it.
    unsafe fn adopt(&self, raw: *mut RawLoadedExecutable, program: &Program) -> Result<Executable> {
        let mut executable = Executable {
            client: Arc::clone(&self.handle),
            raw,
            program: program.clone(),
            devices: Vec::new(),
        };
        // What was read is kept for nothing but its types.
        executable.program.bytes = Vec::new();
        let plugin = &self.handle.plugin;
        let mut devices = ffi::LoadedExecutableAddressableDevices { executable: raw, ..Arguments::new() };
        // SAFETY: the executable is alive; the list lives as long.
        let devices = unsafe {
            plugin.call(&mut devices)?;
            slice(devices.addressable_devices, devices.num_addressable_devices)
        };
        for &device in devices {
            let known = self.devices().iter().find(|known| known.raw == device);
            let known =
                known.ok_or_else(|| PjrtError::invalid("program", "runs on a device that is not known"))?;
            executable.devices.push(known.clone());
        }
        let (found, expected) = (executable.outputs()?, program.results.len());
        if found != expected {
            let reason = format!("has {found} results once compiled, expected {expected}");
            return Err(PjrtError::invalid("program", reason));
        }
        Ok(executable)
    }
}

impl Client {
    fn check(&self, program: &Program, options: &CompileOptions) -> Result<()> {
        let devices = program.devices();
        if devices > 1 && options.partitions != devices {
            let reason =
                format!("the program's shardings are for {devices}, the options say {}", options.partitions);
            return Err(PjrtError::invalid("partitions", reason));
        }
        options.devices(self.devices().len()).map(drop)
    }
}

impl Executable {
    /// The types of the parameters, by number: of the whole arrays, where they are spread over devices.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The devices that it runs on, in the order in which [`Executable::execute`] wants their arguments.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    fn outputs(&self) -> Result<usize> {
        let inner = self.inner()?;
        let mut arguments = ffi::ExecutableNumOutputs { executable: inner.raw, ..Arguments::new() };
        // SAFETY: the executable is alive.
        unsafe { self.client.plugin.call(&mut arguments)? };
        Ok(arguments.num_outputs)
    }

    fn inner(&self) -> Result<Inner<'_>> {
        let mut arguments =
            ffi::LoadedExecutableGetExecutable { loaded_executable: self.raw, ..Arguments::new() };
        // SAFETY: the executable is alive.
        unsafe { self.client.plugin.call(&mut arguments)? };
        Ok(Inner { client: &self.client, raw: arguments.executable })
    }

    /// Runs on one device and waits.
    ///
    /// # Errors
    /// As [`Executable::execute`].
    pub fn run(&self, arguments: &[&Buffer]) -> Result<Vec<Buffer>> {
        let list = arguments.iter().map(|buffer| Argument::Keep(buffer)).collect();
        let mut results = self.execute(vec![list])?.wait()?;
        Ok(results.pop().unwrap_or_default())
    }

    /// Starts a run. Takes a list of arguments for each device, and gives a list of results for each.
    ///
    /// # Errors
    /// When the lists are not as many as the devices, or an argument is of another client, device or type than the
    /// program's; or when the plugin refuses.
    pub fn execute(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Execution> {
        if arguments.len() != self.devices.len() {
            let reason =
                format!("found {}, expected one for each of {} devices", arguments.len(), self.devices.len());
            return Err(PjrtError::invalid("lists of arguments", reason));
        }
        for (list, device) in arguments.iter().zip(&self.devices) {
            self.check(list, device)?;
        }
        // An argument that anybody keeps is not to be overwritten; the plugin has one list for all devices.
        let kept: Vec<i64> = (0..self.program.parameters.len())
            .filter(|&i| arguments.iter().any(|list| matches!(list.get(i), Some(Argument::Keep(_)))))
            .map(|i| i as i64)
            .collect();
        let raw: Vec<Vec<*mut RawBuffer>> = arguments
            .iter()
            .map(|list| list.iter().map(|argument| argument.buffer().raw).collect())
            .collect();
        let lists: Vec<*const *mut RawBuffer> = raw.iter().map(|list| list.as_ptr()).collect();
        let count = self.program.results.len();
        let mut outputs: Vec<Vec<*mut RawBuffer>> = vec![vec![ptr::null_mut(); count]; self.devices.len()];
        let output_lists: Vec<*mut *mut RawBuffer> =
            outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![ptr::null_mut(); self.devices.len()];
        let mut options = ExecuteOptions {
            struct_size: ExecuteOptions::SIZE,
            extension_start: ptr::null_mut(),
            send_callbacks: ptr::null_mut(),
            recv_callbacks: ptr::null_mut(),
            num_send_ops: 0,
            num_recv_ops: 0,
            launch_id: 0,
            non_donatable_input_indices: kept.as_ptr(),
            num_non_donatable_input_indices: kept.len(),
            context: ptr::null_mut(),
            call_location: ptr::null(),
            num_tasks: 0,
            task_ids: ptr::null_mut(),
            incarnation_ids: ptr::null_mut(),
        };
        let mut call = ffi::LoadedExecutableExecute {
            executable: self.raw,
            options: &mut options,
            argument_lists: lists.as_ptr(),
            num_devices: lists.len(),
            num_args: self.program.parameters.len(),
            output_lists: output_lists.as_ptr(),
            device_complete_events: events.as_mut_ptr(),
            ..ffi::LoadedExecutableExecute::new()
        };
        // Devices that wait for one another must get their programs in one order.
        let _in_turn = (lists.len() > 1).then(|| self.client.launches.lock());
        // SAFETY: the executable is alive. There is a list for each of its devices, each of as many live buffers as the
        // program has parameters, of its types and on that device (`check`), and room for as many results as it has.
        // Donated buffers are not used again: they are dropped below, which the plugin allows while they are in use.
        unsafe { self.client.plugin.call(&mut call)? };
        // Read through the pointers that were written through.
        drop((lists, output_lists));
        // SAFETY: the events are new and ours.
        let done = events.iter().filter_map(|&event| unsafe { Event::adopt(&self.client, event) }).collect();
        let mut execution = Execution { results: Vec::with_capacity(outputs.len()), done };
        let mut failed = None;
        for (list, device) in outputs.into_iter().zip(&self.devices) {
            let mut results = Vec::with_capacity(list.len());
            for raw in list {
                // SAFETY: the buffer, unless null, is new and ours.
                match unsafe { Buffer::adopt(&self.client, raw, device.id()) } {
                    Ok(buffer) => results.push(buffer),
                    Err(error) => failed = Some(error),
                }
            }
            execution.results.push(results);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(execution),
        }
    }

    fn check(&self, list: &[Argument<'_>], device: &Device) -> Result<()> {
        let expected = &self.program.parameters;
        if list.len() != expected.len() {
            let reason = format!("found {}, expected {}", list.len(), expected.len());
            return Err(PjrtError::invalid("arguments", reason));
        }
        for (number, (argument, expected)) in list.iter().zip(expected).enumerate() {
            let buffer = argument.buffer();
            let (found, shards) = (buffer.ty(), self.program.spread.parameters.get(number));
            let bad = |reason: String| Err(PjrtError::invalid(format!("argument {number}"), reason));
            if !buffer.is_of(&self.client) {
                return bad("is of another client".to_owned());
            }
            if buffer.device_id() != device.id() {
                return bad(format!("is on device {}, expected {}", buffer.device_id(), device.id()));
            }
            // Its part on the device, where it is spread over several.
            let shape = shards.map_or(&expected.shape, |shards| &shards.shape);
            if found.dtype != expected.dtype || found.shape != *shape {
                let part = ArrayType::new(expected.dtype, shape.clone());
                return bad(format!("is {found}, expected {part}"));
            }
        }
        Ok(())
    }

    /// The executable as bytes, for [`Client::deserialize`].
    ///
    /// # Errors
    /// When the plugin cannot.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let inner = self.inner()?;
        let mut arguments = ffi::ExecutableSerialize { executable: inner.raw, ..Arguments::new() };
        // SAFETY: the executable is alive.
        unsafe { self.client.plugin.call(&mut arguments)? };
        // SAFETY: the bytes live until the deleter below is called.
        let bytes = unsafe { slice(arguments.serialized_bytes, arguments.serialized_bytes_size) }.to_vec();
        if let Some(delete) = arguments.serialized_executable_deleter {
            // SAFETY: the bytes' owner, used no more; its deleter.
            unsafe { delete(arguments.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Argument<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Argument::Keep(buffer) => buffer,
            Argument::Donate(buffer) => buffer,
        }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        let mut arguments = ffi::LoadedExecutableDestroy { executable: self.raw, ..Arguments::new() };
        // SAFETY: the executable is ours and nothing uses it any more; runs that were started hold on to what they need.
        // There is nobody to tell of an error.
        let _ = unsafe { self.client.plugin.call(&mut arguments) };
    }
}

impl std::fmt::Debug for Executable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Executable(on {:?})", self.devices)
    }
}

/// The part of an executable that is the same on all devices.
struct Inner<'a> {
    client: &'a ClientHandle,
    raw: *mut RawExecutable,
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        let mut arguments = ffi::ExecutableDestroy { executable: self.raw, ..Arguments::new() };
        // SAFETY: it is ours and nothing uses it any more.
        let _ = unsafe { self.client.plugin.call(&mut arguments) };
    }
}
