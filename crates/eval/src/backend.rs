//! What can run a graph.

use qwix_array::Array;
use qwix_graph::{Graph, Path};

use crate::signature::Variables;
use crate::{EvalError, Params, Value};

/// Something that compiles graphs: an engine or a device.
pub trait Backend {
    /// Its name on the command line.
    fn name(&self) -> &str;

    /// Begins to prepare a graph for running. Its variables are then handed on one by one, so that each can be packed or
    /// uploaded, and dropped here, before the next one is read.
    ///
    /// # Errors
    /// When the graph has an op that cannot run; a backend may say so as late as in [`Loader::finish`].
    fn load(&self, graph: &Graph) -> Result<Box<dyn Loader>, EvalError>;

    /// Prepares a graph whose variables are all here already.
    ///
    /// # Errors
    /// As [`Backend::load`] and [`Loader`].
    fn compile(&self, graph: &Graph, params: Params) -> Result<Box<dyn Executable>, EvalError> {
        let mut loader = self.load(graph)?;
        for (path, value) in params {
            loader.put(&path, value)?;
        }
        loader.finish()
    }
}

/// A graph on its way to a backend, which takes its variables in any order. It may be filled by another thread than the
/// one that began it.
pub trait Loader: Send {
    /// Takes a variable.
    ///
    /// # Errors
    /// When the graph does not have it, it was given already, it is of another type than the graph's, or the device has
    /// no room for it. The variable is not taken then; what was taken before stays.
    fn put(&mut self, path: &Path, value: Value) -> Result<(), EvalError>;

    /// What runs, once all variables are there.
    ///
    /// # Errors
    /// When a variable is missing, or the graph cannot be compiled.
    fn finish(self: Box<Self>) -> Result<Box<dyn Executable>, EvalError>;
}

/// A compiled graph with its variables.
pub trait Executable: Send + Sync {
    /// Runs on the inputs, in the order of [`Graph::inputs`]; a tuple result comes as one array an element, flattened.
    ///
    /// # Errors
    /// When the inputs' number, dtypes or shapes are not the graph's.
    fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, EvalError>;
}

/// A loader for engines that run in this process's memory: it keeps the variables, and `make` gets them all, by
/// parameter number, with `None` where an input goes.
pub fn collect<M>(graph: &Graph, make: M) -> Box<dyn Loader>
where
    M: FnOnce(Vec<Option<Value>>) -> Result<Box<dyn Executable>, EvalError> + Send + 'static,
{
    Box::new(Collecting { variables: Variables::of(graph), make })
}

struct Collecting<M> {
    variables: Variables<Value>,
    make: M,
}

impl<M> Loader for Collecting<M>
where
    M: FnOnce(Vec<Option<Value>>) -> Result<Box<dyn Executable>, EvalError> + Send,
{
    fn put(&mut self, path: &Path, value: Value) -> Result<(), EvalError> {
        self.variables.put(path, value, Ok)
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn Executable>, EvalError> {
        (self.make)(self.variables.finish()?)
    }
}
