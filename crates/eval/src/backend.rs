//! What can run a graph.

use qwix_array::Array;
use qwix_graph::Graph;

use crate::{EvalError, Params};

/// Something that compiles graphs: an engine or a device.
pub trait Backend {
    /// Its name on the command line.
    fn name(&self) -> &str;

    /// Prepares a graph and its variables for running; takes the variables, so that they can be packed or uploaded
    /// once.
    ///
    /// # Errors
    /// When a variable is missing, unknown or of another type than the graph's, or the graph has an op that cannot run.
    fn compile(&self, graph: &Graph, params: Params) -> Result<Box<dyn Executable>, EvalError>;
}

/// A compiled graph with its variables.
pub trait Executable: Send + Sync {
    /// Runs on the inputs, in the order of [`Graph::inputs`]; a tuple result comes as one array an element, flattened.
    ///
    /// # Errors
    /// When the inputs' number, dtypes or shapes are not the graph's.
    fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, EvalError>;
}
