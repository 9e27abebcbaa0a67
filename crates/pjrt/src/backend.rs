//! XLA devices as a backend.

use std::sync::Arc;

use qwix_array::Array;
use qwix_eval::{Backend, EvalError, Loader, Params, Variables, check_inputs};
use qwix_graph::passes::without_shardings;
use qwix_graph::{Graph, Precision};

use crate::cache::{Cache, Origin};
use crate::kernels::{Kernels, Replaced};
use crate::loader::{Compiling, XlaLoader};
use crate::lower::is_gpu;
use crate::spread::{Placed, Placement};
use crate::{
    Argument, Client, CompileOptions, Device, Executable, OptionValue, PjrtError, Plugin, Program, Result,
    XlaOption,
};

/// The most virtual devices that are made of a CPU. They share its cores; a file can name any number.
const MAX_VIRTUAL: usize = 256;

/// Runs graphs on devices of a PJRT plugin. Quantized types are lowered to plain HLO; parameters are uploaded once, as
/// they are stored: int8 as `s8`, int4 packed.
///
/// A graph without shardings runs on one device. One whose shardings name several runs on so many, as XLA's partitioner
/// spreads it: each device gets its part of each parameter and input alone. A result that the graph gives no sharding is
/// gathered by the devices; of others, each device's part is read, and they are put together here.
#[derive(Clone)]
pub struct XlaBackend {
    client: Client,
    /// Whether the client may be replaced by one with more devices.
    may_grow: bool,
    /// On how many devices graphs run, where that was told.
    devices: Option<usize>,
    device: Device,
    name: String,
    options: CompileOptions,
    precision: Precision,
    cache: Option<Cache>,
    kernels: Option<Arc<dyn Kernels>>,
    note: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A graph on a device, or on several.
pub struct XlaExecutable {
    pub(crate) graph: Graph,
    pub(crate) placement: Placement,
    pub(crate) executable: Executable,
    /// By number of the lowered graph's parameters; none where an input goes.
    pub(crate) variables: Vec<Option<Placed>>,
}

impl XlaBackend {
    /// The devices of a plugin: the first one, and as many as shardings name. CPUs have as many virtual ones as that.
    ///
    /// # Errors
    /// When the plugin finds no device.
    pub fn new(plugin: &Plugin) -> Result<Self> {
        Ok(XlaBackend { may_grow: true, ..Self::on(&Client::new(plugin, &[])?, 0)? })
    }

    /// A device of a client, by number, for graphs without shardings; others run on the client's first devices.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn on(client: &Client, device: usize) -> Result<Self> {
        let mut options = CompileOptions::default();
        if is_gpu(client.platform_name()) {
            // Otherwise a number that is rounded to a narrow type and goes on in a wide one is not rounded, and Qwix's
            // scales, many of which are such numbers, are others.
            options.xla.insert("xla_allow_excess_precision".to_owned(), XlaOption::Bool(false));
        }
        Ok(XlaBackend {
            device: client.device(device)?.clone(),
            name: format!("xla:{}", client.platform_name()),
            client: client.clone(),
            may_grow: false,
            devices: None,
            options,
            precision: Precision::Highest,
            cache: None,
            kernels: None,
            note: Arc::new(|_| {}),
        })
    }

    /// Keeps compiled programs in a cache; what is wrong with an entry is told to `note`.
    pub fn with_cache(mut self, cache: Cache, note: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.cache = Some(cache);
        self.note = Arc::new(note);
        self
    }

    /// The least precision of products of floats: [`Precision::Highest`] unless it is set, so that f32 is f32 on every
    /// device. JAX leaves it at [`Precision::Default`], with which NVIDIA's GPUs multiply in TF32, with 10 bits of
    /// fraction, and TPUs in bf16; products of the model that ask for more keep theirs.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Runs graphs on so many devices: on one without regard to their shardings, else on those that they name, which must
    /// be as many.
    pub fn with_devices(mut self, devices: usize) -> Self {
        self.devices = Some(devices);
        self
    }

    /// Lets programs call kernels of ours for the products that have one, in place of XLA's own code. `note` is told how
    /// many products of a graph have none, and why; and when the plugin cannot call any, in which case programs are as
    /// they would be without.
    pub fn with_kernels(
        mut self,
        kernels: impl Kernels + 'static,
        note: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        self.note = Arc::new(note);
        let platform = self.client.platform_name();
        let plugin = self.client.plugin();
        let registered = match platform {
            "cpu" => {
                kernels.handlers().iter().try_for_each(|h| plugin.register(h)).map_err(|e| e.to_string())
            }
            _ => Err(format!("they run on CPUs, not on {platform}")),
        };
        match registered {
            Ok(()) => self.kernels = Some(Arc::new(kernels)),
            Err(reason) => (self.note)(&format!("no kernel is used, all is lowered to plain HLO: {reason}")),
        }
        self
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The graph with calls of kernels, where there are any for it.
    fn replaced(&self, graph: &Graph) -> Result<Replaced, EvalError> {
        let Some(kernels) = &self.kernels else { return Ok(Replaced::nothing(graph)) };
        if let Some(devices) = graph.device_count()? {
            (self.note)(&format!(
                "no kernel is used, all is lowered to plain HLO: the model is spread over {devices} devices"
            ));
            return Ok(Replaced::nothing(graph));
        }
        let replaced = Replaced::new(graph, kernels)?;
        if let Some(note) = replaced.note() {
            (self.note)(note);
        }
        Ok(replaced)
    }

    /// As [`Backend::load`], with the loader's own type.
    ///
    /// # Errors
    /// As [`Backend::load`].
    pub fn loader(&self, graph: &Graph) -> Result<XlaLoader, EvalError> {
        let graph = &match self.devices {
            Some(1) => without_shardings(graph),
            Some(_) | None => graph.clone(),
        };
        let replaced = self.replaced(graph)?;
        let lowered = replaced.lower(self.client.platform_name(), self.precision)?;
        let program = Program::new(&lowered)?;
        let (client, devices) = self.devices_for(program.devices())?;
        let mut options = CompileOptions { partitions: devices.len(), ..self.options.clone() };
        if devices.len() > 1 {
            options.device_ids = devices.iter().map(Device::id).collect();
        }
        let backend = XlaBackend { client: client.clone(), options, ..self.clone() };
        Ok(XlaLoader {
            graph: graph.clone(),
            variables: Variables::of(graph),
            placement: Placement { client, devices, spread: program.spread.clone() },
            loads: replaced.loads(graph),
            compiling: Compiling::start(move || backend.compile_program(&program))?,
        })
    }

    /// A client with so many devices, and them.
    fn devices_for(&self, count: usize) -> Result<(Client, Vec<Device>)> {
        if let Some(told) = self.devices.filter(|&told| told != count) {
            let reason = format!(
                "found {told}, expected {count}, as the model's shardings say, or 1 to run it without them"
            );
            return Err(PjrtError::invalid("devices", reason));
        }
        if count == 1 {
            return Ok((self.client.clone(), vec![self.device.clone()]));
        }
        let mut client = self.client.clone();
        let virtual_ones = client.devices().len() + 1..=MAX_VIRTUAL;
        if self.may_grow && client.platform_name() == "cpu" && virtual_ones.contains(&count) {
            let option = ("cpu_device_count", OptionValue::Int(count as i64));
            client = Client::new(client.plugin(), &[option])?;
        }
        let found = client.devices().len();
        match client.devices().get(..count) {
            Some(devices) => Ok((client.clone(), devices.to_vec())),
            None => {
                let reason = format!(
                    "the model's shardings are for {count}, {} has {found}; it also runs on 1, without them",
                    self.name
                );
                Err(PjrtError::invalid("devices", reason))
            }
        }
    }

    /// As [`Backend::compile`], with the executable's own type.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub fn prepare(&self, graph: &Graph, params: Params) -> Result<XlaExecutable, EvalError> {
        let mut loader = self.loader(graph)?;
        for (path, value) in params {
            loader.put(&path, value)?;
        }
        loader.done()
    }

    /// From the cache, or anew.
    fn compile_program(&self, program: &Program) -> Result<Executable> {
        let Some(cache) = &self.cache else { return self.client.compile(program, &self.options) };
        let (executable, origin) = cache.compile(&self.client, program, &self.options)?;
        match origin {
            Origin::Cached | Origin::Compiled => {}
            Origin::Instead(reason) => (self.note)(&reason),
        }
        Ok(executable)
    }
}

impl Backend for XlaBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Loader>, EvalError> {
        Ok(Box::new(self.loader(graph)?))
    }
}

impl XlaExecutable {
    /// The bytes that the parameters take on all devices together.
    ///
    /// # Errors
    /// When the plugin does not say.
    pub fn device_bytes(&self) -> Result<usize> {
        Ok(self.bytes_by_device()?.iter().sum())
    }

    /// The bytes that the parameters take on each of the devices.
    ///
    /// # Errors
    /// When the plugin does not say.
    pub fn bytes_by_device(&self) -> Result<Vec<usize>> {
        let mut bytes = vec![0; self.placement.devices.len()];
        for placed in self.variables.iter().flatten() {
            for (sum, tile) in bytes.iter_mut().zip(placed.tiles()) {
                *sum += tile.device_bytes()?;
            }
        }
        Ok(bytes)
    }
}

impl qwix_eval::Executable for XlaExecutable {
    fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, EvalError> {
        check_inputs(&self.graph, inputs)?;
        let free = self.variables.iter().enumerate().filter(|(_, variable)| variable.is_none());
        let uploaded = free
            .zip(inputs)
            .map(|((number, _), input)| self.placement.upload(number, input))
            .collect::<Result<Vec<_>>>()?;
        let mut uploaded = uploaded.iter();
        let arguments: Vec<&Placed> = self
            .variables
            .iter()
            .filter_map(|variable| variable.as_ref().or_else(|| uploaded.next()))
            .collect();
        let on = |device: usize| {
            arguments.iter().filter_map(|placed| placed.tiles().get(device)).map(Argument::Keep).collect()
        };
        let lists = (0..self.placement.devices.len()).map(on).collect();
        let results = self.executable.execute(lists)?.wait()?;
        let whole = self.executable.program().results().iter().enumerate().map(|(number, ty)| {
            let parts: Vec<_> = results.iter().filter_map(|list| list.get(number)).collect();
            self.placement.spread.read(number, ty, &parts)
        });
        Ok(whole.collect::<Result<_>>()?)
    }
}
