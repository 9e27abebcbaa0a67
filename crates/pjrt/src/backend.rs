//! XLA devices as a backend.

use std::sync::Arc;

use qwix_array::Array;
use qwix_eval::{Backend, EvalError, Params, Value, bind_variables, check_inputs};
use qwix_graph::Graph;

use crate::cache::{Cache, Origin};
use crate::lower::lower;
use crate::{Buffer, Client, CompileOptions, Device, Executable, Plugin, Program, Result};

/// Runs graphs on a device of a PJRT plugin. Quantized types are lowered to plain HLO; parameters are uploaded once, as
/// they are stored: int8 as `s8`, int4 packed.
#[derive(Clone)]
pub struct XlaBackend {
    client: Client,
    device: Device,
    name: String,
    options: CompileOptions,
    cache: Option<Cache>,
    note: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A graph on a device.
pub struct XlaExecutable {
    graph: Graph,
    client: Client,
    device: Device,
    executable: Executable,
    /// By number of the lowered graph's parameters; none where an input goes.
    variables: Vec<Option<Buffer>>,
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
        Ok(XlaBackend {
            device: client.device(device)?.clone(),
            name: format!("xla:{}", client.platform_name()),
            client: client.clone(),
            options: CompileOptions::default(),
            cache: None,
            note: Arc::new(|_| {}),
        })
    }

    /// Keeps compiled programs in a cache; what is wrong with an entry is told to `note`.
    pub fn with_cache(mut self, cache: Cache, note: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.cache = Some(cache);
        self.note = Arc::new(note);
        self
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// As [`Backend::compile`], with the executable's own type.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub fn prepare(&self, graph: &Graph, params: Params) -> Result<XlaExecutable, EvalError> {
        let bound = bind_variables(graph, params)?;
        let lowered = lower(graph, self.client.platform_name())?;
        let program = Program::new(&lowered)?;
        let executable = match &self.cache {
            None => self.client.compile(&program, &self.options)?,
            Some(cache) => {
                let (executable, origin) = cache.compile(&self.client, &program, &self.options)?;
                match origin {
                    Origin::Cached | Origin::Compiled => {}
                    Origin::Instead(reason) => (self.note)(&reason),
                }
                executable
            }
        };
        // Each is dropped here once it is there.
        let mut variables = Vec::with_capacity(program.parameters().len());
        for value in bound {
            match value {
                None => variables.push(None),
                Some(Value::Array(array)) => variables.push(Some(self.client.upload(&array, &self.device)?)),
                Some(Value::QArray(q)) => {
                    for part in [Some(q.qvalue()), Some(q.scale()), q.zero_point()].into_iter().flatten() {
                        variables.push(Some(self.client.upload(part, &self.device)?));
                    }
                }
                Some(tuple @ Value::Tuple(_)) => {
                    return Err(EvalError::WrongType {
                        what: "a parameter".to_owned(),
                        expected: "an array".to_owned(),
                        found: tuple.describe(),
                    });
                }
            }
        }
        let (client, device) = (self.client.clone(), self.device.clone());
        Ok(XlaExecutable { graph: graph.clone(), client, device, executable, variables })
    }
}

impl Backend for XlaBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn compile(&self, graph: &Graph, params: Params) -> Result<Box<dyn qwix_eval::Executable>, EvalError> {
        Ok(Box::new(self.prepare(graph, params)?))
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
