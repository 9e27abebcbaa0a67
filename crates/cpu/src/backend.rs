//! The backend and what it compiles to.

use std::sync::{Arc, Mutex};

use qwix_array::Array;
use qwix_eval::{
    Backend, EvalError, Executable, Loader, Params, Value, Variables, check_inputs, check_supported, collect,
};
use qwix_graph::Graph;

use crate::buffers::Pool;
use crate::plan::{Context, Program, StepTime};
use crate::values::{aligned, fail};

/// Runs graphs on the CPU.
#[derive(Clone, Debug, Default)]
pub struct CpuBackend {
    threads: Option<usize>,
}

impl CpuBackend {
    /// An engine with so many threads of its own; `CpuBackend::default()` uses rayon's, one a core.
    pub fn with_threads(threads: usize) -> Self {
        CpuBackend { threads: Some(threads.max(1)) }
    }
}

/// A graph that [`CpuBackend`] compiled.
pub struct CpuModel {
    graph: Graph,
    program: Program,
    buffers: Arc<Pool>,
    threads: Option<rayon::ThreadPool>,
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        "cpu"
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Loader>, EvalError> {
        check(graph)?;
        let (backend, kept) = (self.clone(), graph.clone());
        Ok(collect(graph, move |variables| Ok(Box::new(backend.plan(&kept, variables)?))))
    }
}

impl CpuBackend {
    /// [`Backend::compile`], to a type that can be asked about its steps.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub fn prepare(&self, graph: &Graph, params: Params) -> Result<CpuModel, EvalError> {
        check(graph)?;
        let mut variables = Variables::of(graph);
        for (path, value) in params {
            variables.put(&path, value, Ok)?;
        }
        self.plan(graph, variables.finish()?)
    }

    /// Plans a graph that was checked. Its variables come by parameter number.
    fn plan(&self, graph: &Graph, mut variables: Vec<Option<Value>>) -> Result<CpuModel, EvalError> {
        for value in variables.iter_mut().flatten() {
            *value = aligned(value.clone())?;
        }
        let threads = self
            .threads
            .map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build())
            .transpose()
            .map_err(|e| fail(format!("no thread pool: {e}")))?;
        let buffers = Arc::new(Pool::default());
        let plan = || Program::plan(&graph.entry, variables, &Context { buffers: &buffers, times: None });
        let program = match &threads {
            Some(pool) => pool.install(plan)?,
            None => plan()?,
        };
        // The graph is kept for its signature; its constants live on in the program.
        let graph =
            Graph { name: graph.name.clone(), parameters: graph.parameters.clone(), ..Graph::default() };
        Ok(CpuModel { graph, program, buffers, threads })
    }
}

/// Kernels take the types of the graph on trust, so they are held against the ops once.
fn check(graph: &Graph) -> Result<(), EvalError> {
    graph.verify().map_err(|e| fail(e.to_string()))?;
    check_supported(graph)
}

impl CpuModel {
    /// Runs once and says how long each step took, in the order in which they ended.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub fn profile(&self, inputs: &[Array]) -> Result<(Vec<Array>, Vec<StepTime>), EvalError> {
        let times = Mutex::new(Vec::new());
        let outputs = self.run_with(inputs, Some(&times))?;
        Ok((outputs, times.into_inner().unwrap_or_default()))
    }

    fn run_with(
        &self,
        inputs: &[Array],
        times: Option<&Mutex<Vec<StepTime>>>,
    ) -> Result<Vec<Array>, EvalError> {
        check_inputs(&self.graph, inputs)?;
        let mut inputs = inputs.iter();
        let mut arguments = Vec::with_capacity(self.graph.parameters.len());
        for parameter in &self.graph.parameters {
            arguments.push(match parameter.role {
                qwix_graph::Role::Variable => None,
                qwix_graph::Role::Input => match inputs.next() {
                    Some(array) => Some(aligned(Value::Array(array.clone()))?),
                    None => return Err(fail("fewer inputs than parameters")),
                },
            });
        }
        let context = Context { buffers: &self.buffers, times };
        let result = match &self.threads {
            Some(pool) => pool.install(|| self.program.run(arguments, &context)),
            None => self.program.run(arguments, &context),
        }?;
        let mut outputs = Vec::new();
        flatten(result, &mut outputs)?;
        Ok(outputs)
    }
}

impl Executable for CpuModel {
    fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, EvalError> {
        self.run_with(inputs, None)
    }
}

fn flatten(value: Value, into: &mut Vec<Array>) -> Result<(), EvalError> {
    match value {
        Value::Array(array) => into.push(array),
        Value::Tuple(values) => values.into_iter().try_for_each(|v| flatten(v, into))?,
        Value::QArray(_) => {
            return Err(EvalError::WrongType {
                what: "the result".into(),
                expected: "arrays".into(),
                found: value.describe(),
            });
        }
    }
    Ok(())
}
