//! Parameters on their way to a device.

use std::thread::{self, JoinHandle};

use qwix_array::Array;
use qwix_eval::{EvalError, Loader, Value, Variables};
use qwix_graph::{Graph, Path};

use crate::kernels::Loads;
use crate::spread::{Placed, Placement};
use crate::{Executable, PjrtError, Result, XlaExecutable};

/// A graph on its way to a device: its variables are uploaded as they come, while the plugin compiles.
pub struct XlaLoader {
    pub(crate) graph: Graph,
    pub(crate) placement: Placement,
    pub(crate) variables: Variables<Vec<Placed>>,
    pub(crate) loads: Loads,
    pub(crate) compiling: Compiling,
}

impl XlaLoader {
    /// As [`Loader::finish`], with the executable's own type.
    ///
    /// # Errors
    /// As [`Loader::finish`].
    pub fn done(self) -> Result<XlaExecutable, EvalError> {
        let XlaLoader { graph, placement, variables, compiling, .. } = self;
        let variables = variables.finish()?;
        let executable = compiling.wait()?;
        Ok(XlaExecutable { graph, placement, executable, variables: flat(variables) })
    }
}

impl Loader for XlaLoader {
    fn put(&mut self, path: &Path, value: Value) -> Result<(), EvalError> {
        // What cannot be compiled is not filled.
        self.compiling.check()?;
        let (placement, loads) = (&self.placement, &self.loads);
        self.variables.put(path, value, |value| {
            let (first, parts) = loads.parts(path, value)?;
            upload(placement, first, parts)
        })
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn qwix_eval::Executable>, EvalError> {
        Ok(Box::new(self.done()?))
    }
}

/// Puts a variable on the devices, a buffer for each parameter that it is in the lowered graph, from number `first` on;
/// each part is dropped once it is there.
fn upload(placement: &Placement, first: usize, parts: Vec<Array>) -> Result<Vec<Placed>, EvalError> {
    let uploaded = (first..).zip(parts).map(|(number, part)| placement.upload(number, &part));
    Ok(uploaded.collect::<Result<_>>()?)
}

/// By number of the lowered graph's parameters; none where an input goes.
fn flat(variables: Vec<Option<Vec<Placed>>>) -> Vec<Option<Placed>> {
    let flat = variables.into_iter().flat_map(|variable| match variable {
        None => vec![None],
        Some(parts) => parts.into_iter().map(Some).collect(),
    });
    flat.collect()
}

/// A program that is being compiled on a thread, which has ended when this is gone: a process that ends under a plugin's
/// compiler may not survive it.
pub(crate) struct Compiling {
    thread: Option<JoinHandle<Result<Executable>>>,
    ended: Option<Result<Executable>>,
}

impl Compiling {
    /// Starts the thread.
    pub(crate) fn start(compile: impl FnOnce() -> Result<Executable> + Send + 'static) -> Result<Self> {
        match thread::Builder::new().name("xla-compile".to_owned()).spawn(compile) {
            Ok(thread) => Ok(Compiling { thread: Some(thread), ended: None }),
            Err(error) => Err(PjrtError::invalid("compiling", format!("cannot start a thread: {error}"))),
        }
    }

    /// # Errors
    /// When it has failed already.
    fn check(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join();
        }
        match &self.ended {
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn wait(mut self) -> Result<Executable> {
        self.join();
        let lost = || Err(PjrtError::invalid("compiling", "its thread ended without a result"));
        self.ended.take().unwrap_or_else(lost)
    }

    fn join(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // A panic's message is on standard error already; `wait` says that there is no result.
        self.ended = thread.join().ok();
    }
}

impl Drop for Compiling {
    fn drop(&mut self) {
        self.join();
    }
}
