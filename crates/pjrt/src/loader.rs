//! Parameters on their way to a device.

use std::thread::{self, JoinHandle};

use qwix_array::Array;
use qwix_eval::{EvalError, Loader, Value, Variables};
use qwix_graph::{Graph, Path};

use crate::kernels::Loads;
use crate::{Buffer, Client, Device, Executable, PjrtError, Result, XlaExecutable};

/// A graph on its way to a device: its variables are uploaded as they come, while the plugin compiles.
pub struct XlaLoader {
    pub(crate) graph: Graph,
    pub(crate) client: Client,
    pub(crate) device: Device,
    pub(crate) variables: Variables<Vec<Buffer>>,
    pub(crate) loads: Loads,
    pub(crate) compiling: Compiling,
}

impl XlaLoader {
    /// As [`Loader::finish`], with the executable's own type.
    ///
    /// # Errors
    /// As [`Loader::finish`].
    pub fn done(self) -> Result<XlaExecutable, EvalError> {
        let XlaLoader { graph, client, device, variables, compiling, .. } = self;
        let variables = variables.finish()?;
        let executable = compiling.wait()?;
        Ok(XlaExecutable { graph, client, device, executable, variables: flat(variables) })
    }
}

impl Loader for XlaLoader {
    fn put(&mut self, path: &Path, value: Value) -> Result<(), EvalError> {
        // What cannot be compiled is not filled.
        self.compiling.check()?;
        let (client, device, loads) = (&self.client, &self.device, &self.loads);
        self.variables.put(path, value, |value| upload(client, device, loads.parts(path, value)?))
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn qwix_eval::Executable>, EvalError> {
        Ok(Box::new(self.done()?))
    }
}

/// Puts a variable on a device, a buffer for each parameter that it is in the lowered graph; each part is dropped once it
/// is there.
fn upload(client: &Client, device: &Device, parts: Vec<Array>) -> Result<Vec<Buffer>, EvalError> {
    let uploaded = parts.into_iter().map(|part| client.upload(&part, device));
    Ok(uploaded.collect::<Result<_>>()?)
}

/// By number of the lowered graph's parameters; none where an input goes.
fn flat(variables: Vec<Option<Vec<Buffer>>>) -> Vec<Option<Buffer>> {
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
        match thread::Builder::new().name("qwix-xla".to_owned()).spawn(compile) {
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
