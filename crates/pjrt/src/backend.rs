//! XLA devices as a backend.

use std::sync::Arc;

use qwix_array::Array;
use qwix_eval::{Backend, EvalError, Loader, Params, Variables, check_inputs};
use qwix_graph::{Graph, Precision};

use crate::cache::{Cache, Origin};
use crate::kernels::{Kernels, Replaced};
use crate::loader::{Compiling, XlaLoader};
use crate::lower::is_gpu;
use crate::{Buffer, Client, CompileOptions, Device, Executable, Plugin, Program, Result, XlaOption};

/// Runs graphs on a device of a PJRT plugin. Quantized types are lowered to plain HLO; parameters are uploaded once, as
/// they are stored: int8 as `s8`, int4 packed.
#[derive(Clone)]
pub struct XlaBackend {
    client: Client,
    device: Device,
    name: String,
    options: CompileOptions,
    precision: Precision,
    cache: Option<Cache>,
    kernels: Option<Arc<dyn Kernels>>,
    note: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A graph on a device.
pub struct XlaExecutable {
    pub(crate) graph: Graph,
    pub(crate) client: Client,
    pub(crate) device: Device,
    pub(crate) executable: Executable,
    /// By number of the lowered graph's parameters; none where an input goes.
    pub(crate) variables: Vec<Option<Buffer>>,
}

impl XlaBackend {
    /// The first device of a plugin.
    ///
    /// # Errors
    /// When the plugin finds no device.
    pub fn new(plugin: &Plugin) -> Result<Self> {
        Self::on(&Client::new(plugin, &[])?, 0)
    }

    /// A device of a client, by number.
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

    /// As [`Backend::load`], with the loader's own type.
    ///
    /// # Errors
    /// As [`Backend::load`].
    pub fn loader(&self, graph: &Graph) -> Result<XlaLoader, EvalError> {
        let replaced = match &self.kernels {
            Some(kernels) => Replaced::new(graph, kernels)?,
            None => Replaced::nothing(graph),
        };
        if let Some(note) = replaced.note() {
            (self.note)(note);
        }
        let lowered = replaced.lower(self.client.platform_name(), self.precision)?;
        let program = Program::new(&lowered)?;
        let backend = self.clone();
        Ok(XlaLoader {
            graph: graph.clone(),
            client: self.client.clone(),
            device: self.device.clone(),
            variables: Variables::of(graph),
            loads: replaced.loads(graph),
            compiling: Compiling::start(move || backend.compile_program(&program))?,
        })
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
    /// The bytes that the parameters take on the device.
    ///
    /// # Errors
    /// When the plugin does not say.
    pub fn device_bytes(&self) -> Result<usize> {
        self.variables.iter().flatten().map(Buffer::device_bytes).sum()
    }
}

impl qwix_eval::Executable for XlaExecutable {
    fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, EvalError> {
        check_inputs(&self.graph, inputs)?;
        let uploaded =
            inputs.iter().map(|input| self.client.upload(input, &self.device)).collect::<Result<Vec<_>>>()?;
        let mut uploaded = uploaded.iter();
        let arguments: Vec<&Buffer> = self
            .variables
            .iter()
            .filter_map(|variable| variable.as_ref().or_else(|| uploaded.next()))
            .collect();
        let results = self.executable.run(&arguments)?;
        Ok(results.iter().map(Buffer::to_array).collect::<Result<_>>()?)
    }
}
