//! Checkpoints that are quantized tensor by tensor: read ahead on a thread, quantized on several, handed on in order,
//! with a bound on the floats in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use qwix_array::Array;
use qwix_eval::{Backend, EvalError, Executable, Params, Value};
use qwix_graph::{ArrayType, Path};
use qwix_ptq::{
    Provider, PtqError, PtqModel, QuantStats, Template, quantize_model, quantize_param, quantize_stats,
};

use crate::files::available_threads;
use crate::{Checkpoint, Error, Model, Result};

/// Something that holds float parameters and reads them one by one; from another thread than the one that uses them.
pub trait ParamReader: Sync {
    /// The parameters that it has.
    fn paths(&self) -> BTreeSet<Path>;

    /// A parameter's type, without reading it; none when it does not have it.
    fn type_of(&self, path: &Path) -> Option<ArrayType>;

    /// Reads a parameter. It may not keep it, or the bound on the bytes in memory does not hold.
    ///
    /// # Errors
    /// When it cannot be read; nothing more is read then.
    fn read(&self, path: &Path) -> Result<Array>;

    /// Where it lies: parameters are read in this order, and equal ones in the order of their paths.
    fn place(&self, path: &Path) -> (usize, u64) {
        let _ = path;
        (0, 0)
    }
}

impl ParamReader for Checkpoint {
    fn paths(&self) -> BTreeSet<Path> {
        Checkpoint::paths(self)
    }

    fn type_of(&self, path: &Path) -> Option<ArrayType> {
        Checkpoint::type_of(self, path).cloned()
    }

    fn read(&self, path: &Path) -> Result<Array> {
        Checkpoint::read(self, path)
    }

    fn place(&self, path: &Path) -> (usize, u64) {
        Checkpoint::place(self, path).unwrap_or_default()
    }
}

/// Parameters that are in memory already. What is no plain array is not there to be quantized.
impl ParamReader for Params {
    fn paths(&self) -> BTreeSet<Path> {
        self.keys().cloned().collect()
    }

    fn type_of(&self, path: &Path) -> Option<ArrayType> {
        match self.get(path) {
            Some(Value::Array(array)) => Some(ArrayType::new(array.dtype(), array.shape())),
            Some(Value::QArray(_) | Value::Tuple(_)) | None => None,
        }
    }

    fn read(&self, path: &Path) -> Result<Array> {
        match self.get(path) {
            Some(Value::Array(array)) => Ok(array.clone()),
            found => Err(Error::Unsupported(format!(
                "parameter `{path}` should be a float array, found {}",
                found.map_or("nothing".to_owned(), Value::describe)
            ))),
        }
    }
}

/// How [`quantize_checkpoint`] works.
#[derive(Clone, Copy)]
pub struct Loading<'a> {
    /// The most bytes of floats that are in memory at once: read, waiting, being quantized (copies included that a
    /// transposed or sliced weight needs), or left in float and not yet handed on. A parameter that takes more by itself
    /// is loaded all the same, alone; [`Loaded::peak_float_bytes`] says what was used.
    pub float_bytes: u64,
    /// Threads that quantize, beside the one that reads; 0: as many as the machine has cores.
    pub threads: usize,
    /// Skips parameters that the template does not know, instead of refusing them.
    pub allow_extra_params: bool,
    /// Statistics for the static scales of activations.
    pub quant_stats: Option<&'a QuantStats>,
    /// Is told of every parameter that was handed on, on the caller's thread.
    pub progress: Option<&'a dyn Fn(&Progress<'_>)>,
    /// Is shown every float parameter and what was made of it, on the thread that made it, in any order.
    pub made: Option<&'a Made<'a>>,
}

/// What [`Loading::made`] is shown: a float parameter, and what it became, by path.
pub type Made<'a> = dyn Fn(&Array, &[(Path, Value)]) + Sync + 'a;

impl Default for Loading<'_> {
    /// A gibibyte of floats, all cores.
    fn default() -> Self {
        Loading {
            float_bytes: 1 << 30,
            threads: 0,
            allow_extra_params: false,
            quant_stats: None,
            progress: None,
            made: None,
        }
    }
}

/// How far loading is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The float parameter that was handed on last.
    pub path: &'a Path,
    /// Bytes of the float parameters handed on, as they are in the checkpoint.
    pub done: u64,
    /// Of all that are to be loaded.
    pub total: u64,
}

/// What [`quantize_checkpoint`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// Float parameters that were read.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The most bytes of floats that were in memory at once: at most [`Loading::float_bytes`], or what the largest
    /// parameter takes.
    pub peak_float_bytes: u64,
    /// Parameters that were skipped, as the template does not know them.
    pub extra: BTreeSet<Path>,
}

/// Reads a checkpoint, quantizes it as the template says, and hands on the parameters one by one: always in the same
/// order, that of the files, after what statistics make. Reading, quantizing and `sink` run at the same time, on threads that have ended when this
/// returns; `sink` is called on the caller's. Fewer floats are in memory than [`Loading::float_bytes`].
///
/// # Errors
/// The first that occurs, in the order of the parameters: one that is missing, too many or of another type, statistics that do
/// not fit (all found before anything is read), that cannot be read or quantized, or that the sink refuses. Nothing is handed on after an error.
pub fn quantize_checkpoint(
    reader: &dyn ParamReader,
    template: &Template,
    loading: &Loading<'_>,
    mut sink: impl FnMut(Path, Value) -> Result<()>,
) -> Result<Loaded> {
    let mut extra = reader.paths();
    let mut items = Vec::new();
    for path in template.sources() {
        extra.remove(path);
        items.push(Item::of(reader, template, path)?);
    }
    if let Some(path) = extra.first()
        && !loading.allow_extra_params
    {
        // Says which one is probably meant.
        return Err(template.unknown_source(path).into());
    }
    items.sort_by_key(|item| reader.place(&item.path));
    let none = QuantStats::new();
    let statistics = quantize_stats(loading.quant_stats.unwrap_or(&none), template)?;
    let total = items.iter().fold(0u64, |sum, item| sum.saturating_add(item.bytes));
    let mut loaded = Loaded { tensors: items.len(), bytes: total, peak_float_bytes: 0, extra };

    let (pipeline, bound, show) = (Pipeline::default(), loading.float_bytes, loading.made);
    thread::scope(|scope| {
        // Whatever happens below, the threads come to an end, and so does the scope.
        let end = EndOnDrop(&pipeline);
        let threads = available_threads(loading.threads);
        let start = |work: &'static str| thread::Builder::new().name(format!("qwix-{work}"));
        let failed = |e| Error::Unsupported(format!("cannot start a thread: {e}"));
        let read = || pipeline.read(reader, &items, bound);
        let mut started = vec![start("read").spawn_scoped(scope, read).map_err(failed)?];
        for _ in 0..threads.min(items.len()) {
            let quantize = || pipeline.quantize(template, &items, show);
            started.push(start("quantize").spawn_scoped(scope, quantize).map_err(failed)?);
        }
        let mut done = 0;
        let hand_on = || {
            for (path, value) in statistics {
                sink(path, value)?;
            }
            for (number, item) in items.iter().enumerate() {
                for (path, value) in pipeline.take(number)? {
                    sink(path, value)?;
                }
                pipeline.release(item.cost);
                done = item.bytes.saturating_add(done);
                if let Some(progress) = loading.progress {
                    progress(&Progress { path: &item.path, done, total });
                }
            }
            Ok::<(), Error>(())
        };
        let handed_on = hand_on();
        drop(end);
        for thread in started {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        handed_on
    })?;
    loaded.peak_float_bytes = pipeline.lock().peak;
    Ok(loaded)
}

/// A float parameter to be loaded.
struct Item {
    path: Path,
    /// Its bytes in the checkpoint.
    bytes: u64,
    /// Bytes of floats while it is quantized.
    cost: u64,
}

impl Item {
    fn of(reader: &dyn ParamReader, template: &Template, path: &Path) -> Result<Self> {
        let Some(expected) = template.source_type(path) else {
            let reason = format!("parameter `{path}` is no array, and cannot come from a checkpoint");
            return Err(Error::Unsupported(reason));
        };
        let found = reader
            .type_of(path)
            .ok_or_else(|| EvalError::MissingParam { path: path.clone(), expected: expected.to_string() })?;
        if found != *expected {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(PtqError::WrongParam { path: path.clone(), expected, found }.into());
        }
        let bytes = expected.byte_len().unwrap_or(usize::MAX) as u64;
        Ok(Item { path: path.clone(), bytes, cost: template.float_bytes(path) })
    }
}

/// What the threads share. All waiting is on one condition: there are few parameters, and each is much work.
#[derive(Default)]
struct Pipeline {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Read and waiting to be quantized, by number.
    read: VecDeque<(usize, Array)>,
    /// Quantized, or failed, and waiting to be handed on.
    quantized: BTreeMap<usize, Result<Vec<(Path, Value)>>>,
    /// Cost of what has been read, or is being read, and was not handed on yet.
    alive: u64,
    peak: u64,
    /// Whether nothing more will be read.
    all_read: bool,
    /// Whether the threads are to end.
    ended: bool,
}

impl Pipeline {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader's thread.
    fn read(&self, reader: &dyn ParamReader, items: &[Item], bound: u64) {
        let _end = EndOnPanic(self);
        for (number, item) in items.iter().enumerate() {
            let mut state = self.lock();
            // Alone, a parameter of any size may come in; the one that the sink waits for never waits for later ones.
            while !state.ended && state.alive > 0 && state.alive.saturating_add(item.cost) > bound {
                state = self.wait(state);
            }
            if state.ended {
                return;
            }
            state.alive = state.alive.saturating_add(item.cost);
            state.peak = state.peak.max(state.alive);
            drop(state);
            match reader.read(&item.path) {
                Ok(array) => self.lock().read.push_back((number, array)),
                Err(error) => {
                    let mut state = self.lock();
                    state.quantized.insert(number, Err(error));
                    state.all_read = true;
                    drop(state);
                    self.changed.notify_all();
                    return;
                }
            }
            self.changed.notify_all();
        }
        self.lock().all_read = true;
        self.changed.notify_all();
    }

    /// A quantizing thread.
    fn quantize(&self, template: &Template, items: &[Item], show: Option<&Made<'_>>) {
        let _end = EndOnPanic(self);
        loop {
            let mut state = self.lock();
            let (number, array) = loop {
                if state.ended {
                    return;
                }
                match state.read.pop_front() {
                    Some(next) => break next,
                    None if state.all_read => return,
                    None => state = self.wait(state),
                }
            };
            drop(state);
            let Some(item) = items.get(number) else { return };
            let made = quantize_param(template, &item.path, &array).map_err(Error::from);
            if let (Some(show), Ok(made)) = (show, &made) {
                show(&array, made);
            }
            drop(array);
            self.lock().quantized.insert(number, made);
            self.changed.notify_all();
        }
    }

    /// What was made of the parameter of this number, once it is there.
    fn take(&self, number: usize) -> Result<Vec<(Path, Value)>> {
        let mut state = self.lock();
        loop {
            if let Some(made) = state.quantized.remove(&number) {
                return made;
            }
            if state.ended {
                // A thread has panicked, and will be joined.
                return Err(Error::Unsupported("loading was given up".to_owned()));
            }
            state = self.wait(state);
        }
    }

    /// Lets others in where a parameter has been handed on.
    fn release(&self, cost: u64) {
        let mut state = self.lock();
        state.alive = state.alive.saturating_sub(cost);
        drop(state);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

struct EndOnDrop<'a>(&'a Pipeline);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A thread that panics takes the others with it; otherwise they would wait for it for ever.
struct EndOnPanic<'a>(&'a Pipeline);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
        }
    }
}

/// A model that was quantized while its checkpoint was read, ready to run.
pub struct Online {
    /// The quantized graph, and what the rules did.
    pub model: PtqModel,
    /// What runs it.
    pub executable: Box<dyn Executable>,
    /// What was read.
    pub loaded: Loaded,
}

/// From a float model, a float checkpoint and rules to what runs, in one call; the float parameters are never all in
/// memory (see [`Loading::float_bytes`]), and each quantized one goes to the backend as soon as it is made.
///
/// # Errors
/// As [`Model::check_params`], [`quantize_model`], [`quantize_checkpoint`] and [`Backend::load`].
pub fn quantize_online(
    model: &Model,
    checkpoint: &Checkpoint,
    provider: &dyn Provider,
    backend: &dyn Backend,
    loading: &Loading<'_>,
) -> Result<Online> {
    let mut model = model.clone();
    model.resolve_roles(checkpoint);
    model.check_params(checkpoint, loading.allow_extra_params)?;
    let model = quantize_model(&model, provider)?;
    let mut loader = backend.load(&model.graph)?;
    let loaded = quantize_checkpoint(checkpoint, &model.abstract_params(), loading, |path, value| {
        Ok(loader.put(&path, value)?)
    })?;
    let executable = loader.finish()?;
    Ok(Online { model, executable, loaded })
}
