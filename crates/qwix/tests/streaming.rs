//! Streaming: the same bytes as all at once, within the bound, and an end in every case.

#[path = "../../pjrt/tests/common/mod.rs"]
mod xla;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use qwix::{
    Backend, Checkpoint, CpuBackend, Error, Executable, Graph, Loaded, Loader, Loading, Model, ParamReader,
    Params, Path, Progress, PtqModel, PtqProvider, QuantizationRule, Template, TensorFile, Type, Value,
    XlaBackend, quantize_checkpoint, quantize_model, quantize_online, quantize_params,
};
use qwix_array::{Array, Buffer, DType};
use qwix_graph::{ArrayType, GraphBuilder};
use qwix_quant::DotDims;

/// These tests look at all threads of the process, so they run one by one.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts the bytes that are alive.
#[derive(Default)]
struct Meter {
    alive: AtomicU64,
    peak: AtomicU64,
    reads: AtomicU64,
}

struct Counted {
    bytes: Vec<u8>,
    meter: Arc<Meter>,
}

impl Counted {
    fn new(bytes: &[u8], meter: &Arc<Meter>) -> Self {
        let alive = meter.alive.fetch_add(bytes.len() as u64, Ordering::SeqCst) + bytes.len() as u64;
        meter.peak.fetch_max(alive, Ordering::SeqCst);
        Counted { bytes: bytes.to_vec(), meter: Arc::clone(meter) }
    }
}

impl Buffer for Counted {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.meter.alive.fetch_sub(self.bytes.len() as u64, Ordering::SeqCst);
    }
}

/// What happens when the parameter of this path is read.
enum Trouble {
    None,
    Fails(Path),
    Panics(Path),
}

/// A reader of which every byte that it hands out is counted, until the last owner drops it.
struct Instrumented {
    params: Params,
    meter: Arc<Meter>,
    trouble: Trouble,
    /// Some reads take a while.
    slow: bool,
}

impl Instrumented {
    fn new(params: &Params) -> Self {
        Instrumented { params: params.clone(), meter: Arc::default(), trouble: Trouble::None, slow: false }
    }

    fn reads(&self) -> u64 {
        self.meter.reads.load(Ordering::SeqCst)
    }
}

impl ParamReader for Instrumented {
    fn paths(&self) -> BTreeSet<Path> {
        self.params.keys().cloned().collect()
    }

    fn type_of(&self, path: &Path) -> Option<ArrayType> {
        self.params.type_of(path)
    }

    fn read(&self, path: &Path) -> qwix::Result<Array> {
        let number = self.meter.reads.fetch_add(1, Ordering::SeqCst);
        match &self.trouble {
            Trouble::Fails(at) if at == path => {
                return Err(Error::Unsupported(format!("the disk of `{path}` is gone")));
            }
            Trouble::Panics(at) if at == path => panic!("a reader that panics"),
            Trouble::None | Trouble::Fails(_) | Trouble::Panics(_) => {}
        }
        if self.slow && number % 7 == 3 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let array = self.params.read(path)?;
        let buffer = Counted::new(array.bytes(), &self.meter);
        Ok(Array::from_buffer(array.dtype(), array.shape(), Arc::new(buffer), 0..array.bytes().len())?)
    }
}

/// A chain of products whose weights have these sizes, each with a bias that stays a float.
fn chain(widths: &[usize]) -> (Graph, Params) {
    let mut b = GraphBuilder::new("chain");
    let mut params = Params::new();
    let mut x = b.input("x", Type::array(DType::F32, [2, widths[0]])).unwrap();
    for (layer, pair) in widths.windows(2).enumerate() {
        let mut variable = |name: &str, shape: Vec<usize>| {
            let path = format!("layer_{layer:03}/{name}");
            let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7 + layer as f32).sin());
            let array = Array::from_vec(&shape, values.collect()).unwrap();
            params.insert(Path::new(&path), Value::Array(array));
            b.variable(&path, Type::array(DType::F32, shape)).unwrap()
        };
        let (w, bias) = (variable("kernel", pair.to_vec()), variable("bias", vec![2, pair[1]]));
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let y = b.dot(x, w, &dims, DType::F32).unwrap();
        x = b.binary(qwix_graph::BinaryOp::Add, y, bias).unwrap();
    }
    (b.finish(x).unwrap(), params)
}

fn widths(layers: usize) -> Vec<usize> {
    (0..=layers).map(|i| 8 + i * 37 % 90).collect()
}

fn quantized(graph: &Graph) -> PtqModel {
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8")];
    quantize_model(graph, &PtqProvider::new(rules).unwrap()).unwrap()
}

fn template(graph: &Graph) -> Template {
    quantized(graph).abstract_params()
}

/// The threads of the pipeline that live; the system may list one for a moment after it was joined.
#[cfg(target_os = "linux")]
fn threads() -> usize {
    let since = Instant::now();
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("comm")).ok());
        let count = names.filter(|name| name.starts_with("qwix-")).count();
        if count == 0 || since.elapsed() > Duration::from_secs(60) {
            return count;
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn threads() -> usize {
    0
}

/// Runs it, and fails when it does not come to an end.
fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(run()).unwrap());
    let result = receiver.recv_timeout(Duration::from_secs(60)).expect("it ends");
    thread.join().unwrap();
    result
}

#[test]
fn the_bound_holds_and_the_bytes_are_the_same() {
    let _alone = alone();
    let (graph, params) = chain(&widths(60));
    let template = template(&graph);
    let whole = quantize_params(&params, &template, None).unwrap();
    let costs: Vec<u64> = template.sources().map(|path| template.float_bytes(path)).collect();
    let (largest, total) = (*costs.iter().max().unwrap(), costs.iter().sum::<u64>());
    let mut wrong = vec![];
    for bound in [1, largest / 2, largest, largest + 1000, 3 * largest, total / 3, total] {
        for threads in [1, 2, 5] {
            let mut reader = Instrumented::new(&params);
            reader.slow = true;
            let loading = Loading { float_bytes: bound, threads, ..Loading::default() };
            let mut order = vec![];
            // What comes is compared and dropped, so that all bytes that stay alive are the pipeline's.
            let loaded = quantize_checkpoint(&reader, &template, &loading, |path, value| {
                if whole.get(&path) != Some(&value) {
                    wrong.push(format!("bound {bound}, {threads} threads: {path} differs"));
                }
                order.push(path);
                Ok(())
            })
            .unwrap();
            let peak = reader.meter.peak.load(Ordering::SeqCst);
            if peak > bound.max(largest) || peak > loaded.peak_float_bytes {
                wrong.push(format!("bound {bound}, {threads} threads: {peak} bytes alive, {loaded:?}"));
            }
            if loaded.peak_float_bytes > bound.max(largest) || loaded.bytes != total {
                wrong.push(format!("bound {bound}, {threads} threads: {loaded:?}"));
            }
            if !order.iter().eq(whole.keys()) {
                wrong.push(format!("bound {bound}, {threads} threads: not in order"));
            }
            if reader.meter.alive.load(Ordering::SeqCst) != 0 {
                wrong.push(format!("bound {bound}, {threads} threads: floats are left"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(threads(), 0);
}

#[test]
fn a_device_gets_the_parameters_and_the_host_keeps_none() {
    let _alone = alone();
    let Some(client) = xla::client() else { return };
    let backend = XlaBackend::on(client, 0).unwrap();
    let (graph, params) = chain(&widths(30));
    let model = quantized(&graph);
    let template = model.abstract_params();
    let whole = quantize_params(&params, &template, None).unwrap();
    let bytes: usize = whole.values().map(Value::byte_len).sum();
    let largest = template.sources().map(|path| template.float_bytes(path)).max().unwrap();
    let inputs = [Array::from_vec(&[2, 8], (0..16).map(|i| i as f32 - 7.0).collect()).unwrap()];
    let expected = backend.compile(&model.graph, whole).unwrap().run(&inputs).unwrap();
    for bound in [1, largest, 3 * largest] {
        let reader = Instrumented::new(&params);
        let loading = Loading { float_bytes: bound, threads: 2, ..Loading::default() };
        let mut loader = backend.loader(&model.graph).unwrap();
        let put = |path: Path, value: Value| Ok(loader.put(&path, value)?);
        quantize_checkpoint(&reader, &template, &loading, put).unwrap();
        // The biases stay floats; those too are on the device now, and no longer here.
        assert_eq!(reader.meter.alive.load(Ordering::SeqCst), 0, "bound {bound}");
        let peak = reader.meter.peak.load(Ordering::SeqCst);
        assert!(peak <= bound.max(largest), "bound {bound}: {peak} bytes of floats were alive");
        let executable = loader.done().unwrap();
        assert_eq!(executable.device_bytes(), Ok(bytes), "bound {bound}");
        assert_eq!(executable.run(&inputs).unwrap(), expected, "bound {bound}");
    }
}

#[test]
fn it_reads_ahead_while_the_sink_works() {
    let _alone = alone();
    let (graph, params) = chain(&widths(10));
    let template = template(&graph);
    let reader = Instrumented::new(&params);
    let mut first = true;
    quantize_checkpoint(&reader, &template, &Loading::default(), |_, _| {
        let since = Instant::now();
        while first && reader.reads() < 5 {
            assert!(since.elapsed() < Duration::from_secs(60), "nothing is read ahead");
            std::thread::yield_now();
        }
        first = false;
        Ok(())
    })
    .unwrap();
}

/// What ended the pipeline, and how many parameters had been handed on.
fn run(reader: &Instrumented, template: &Template, sink_fails_at: Option<usize>) -> (String, usize) {
    let mut taken = 0;
    let loading = Loading { float_bytes: 40_000, threads: 3, ..Loading::default() };
    let result = quantize_checkpoint(reader, template, &loading, |path, _| {
        if sink_fails_at == Some(taken) {
            return Err(Error::Unsupported(format!("no room for `{path}`")));
        }
        taken += 1;
        Ok(())
    });
    (result.map_or_else(|e| e.to_string(), |_| "no error".to_owned()), taken)
}

#[test]
fn errors_end_it() {
    let _alone = alone();
    let (graph, params) = chain(&widths(40));
    let template = Arc::new(template(&graph));
    let paths: Vec<Path> = params.keys().cloned().collect();
    let mut wrong = vec![];
    for at in [0, 1, 17, 79] {
        let path = &paths[at];
        let mut nan = params.clone();
        let Value::Array(array) = &params[path] else { panic!("no array") };
        let mut values = array.values::<f32>().unwrap().into_owned();
        values[0] = f32::NAN;
        nan.insert(path.clone(), Value::Array(Array::from_vec(array.shape(), values).unwrap()));
        let failing = |trouble| Instrumented { trouble, ..Instrumented::new(&params) };
        let is_float = path.name() == "bias";
        let rows = [
            ("the reader", failing(Trouble::Fails(path.clone())), None, "the disk of", false),
            ("the sink", failing(Trouble::None), Some(at), "no room for", false),
            ("a NaN", Instrumented::new(&nan), None, "NaN", is_float),
        ];
        for (what, reader, sink, expected, passes) in rows {
            let (template, meter) = (Arc::clone(&template), Arc::clone(&reader.meter));
            let (said, taken) = in_time(move || run(&reader, &template, sink));
            let ended = said.contains(expected) && said.contains(path.as_str()) && taken == at;
            if passes && (said != "no error" || taken != paths.len()) || !passes && !ended {
                wrong.push(format!("{what} at {at}: `{said}` after {taken}"));
            }
            // No more is read than the bound lets in, once nothing is taken any more.
            let ahead = meter.reads.load(Ordering::SeqCst) as usize;
            if !passes && ahead > at + 60 {
                wrong.push(format!("{what} at {at}: {ahead} were read"));
            }
            if threads() != 0 || meter.alive.load(Ordering::SeqCst) != 0 {
                wrong.push(format!("{what} at {at}: threads or floats are left"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn panics_end_it() {
    let _alone = alone();
    let (graph, params) = chain(&widths(40));
    let template = Arc::new(template(&graph));
    let path = params.keys().nth(30).unwrap().clone();
    let of_reader = Arc::clone(&template);
    let reader = Instrumented { trouble: Trouble::Panics(path), ..Instrumented::new(&params) };
    assert!(in_time(move || catch_unwind(AssertUnwindSafe(|| run(&reader, &of_reader, None))).is_err()));
    let reader = Instrumented::new(&params);
    let of_sink = move || {
        let loading = Loading { float_bytes: 20_000, ..Loading::default() };
        let sink = |_, _| panic!("a sink that panics");
        catch_unwind(AssertUnwindSafe(|| quantize_checkpoint(&reader, &template, &loading, sink))).is_err()
    };
    assert!(in_time(of_sink));
    assert_eq!(threads(), 0);
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_read() {
    let _alone = alone();
    let (graph, params) = chain(&widths(4));
    let template = template(&graph);
    let change = |edit: &dyn Fn(&mut Params)| {
        let mut params = params.clone();
        edit(&mut params);
        Instrumented::new(&params)
    };
    let kernel = Path::new("layer_001/kernel");
    let renamed = |name: &'static str| {
        move |params: &mut Params| {
            let value = params[&Path::new("layer_001/kernel")].clone();
            params.insert(Path::new(name), value);
        }
    };
    let small = |params: &mut Params| drop(params.insert(kernel.clone(), Value::Array(Array::scalar(1f32))));
    let rows: Vec<(&str, Instrumented, &[&str])> = vec![
        ("missing", change(&|p| drop(p.remove(&kernel))), &["`layer_001/kernel`", "missing", "f32[45,82]"]),
        ("of another type", change(&small), &["`layer_001/kernel`", "f32[45,82]", "f32[]"]),
        ("extra", change(&renamed("layer_001/kernels")), &["`layer_001/kernels`", "mean `layer_001/kernel`"]),
        ("moved", change(&renamed("model/layer_001/kernel")), &["mean `layer_001/kernel`"]),
    ];
    let mut wrong = vec![];
    for (what, reader, expected) in rows {
        let (said, taken) = run(&reader, &template, None);
        if expected.iter().any(|e| !said.contains(e)) || taken > 0 || reader.reads() > 0 {
            wrong.push(format!("{what}: `{said}`, {taken} taken, {} read", reader.reads()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let reader = change(&renamed("head/kernel"));
    let loading = Loading { allow_extra_params: true, ..Loading::default() };
    let loaded: Loaded = quantize_checkpoint(&reader, &template, &loading, |_, _| Ok(())).unwrap();
    assert!(loaded.extra.iter().map(Path::as_str).eq(["head/kernel"]), "{loaded:?}");
    assert_eq!(reader.reads(), loaded.tensors as u64);
}

#[test]
fn online_is_the_same_as_step_by_step() {
    let _alone = alone();
    let digits = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let model = Model::load(digits.join("model.hlo.pb")).unwrap();
    let checkpoint = Checkpoint::open(digits.join("params.safetensors")).unwrap();
    let inputs = model.read_inputs(&TensorFile::open(digits.join("images.safetensors")).unwrap()).unwrap();
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")];
    let (provider, backend) = (PtqProvider::new(rules).unwrap(), CpuBackend::default());

    let seen = Mutex::new(vec![]);
    let progress = |p: &Progress<'_>| seen.lock().unwrap().push((p.path.to_string(), p.done, p.total));
    let loading = Loading { float_bytes: 100_000, progress: Some(&progress), ..Loading::default() };
    let online = quantize_online(&model, &checkpoint, &provider, &backend, &loading).unwrap();

    let ptq_model = quantize_model(&model, &provider).unwrap();
    let params =
        quantize_params(&checkpoint.read_all().unwrap(), &ptq_model.abstract_params(), None).unwrap();
    let expected = ptq_model.compile(&backend, params).unwrap().run(&inputs).unwrap();
    assert_eq!(online.executable.run(&inputs).unwrap(), expected);
    assert_eq!(online.model.graph, ptq_model.graph);

    // The largest weight takes more than the bound by itself, so it was alone.
    assert_eq!(online.loaded.peak_float_bytes, 512 * 128 * 4);
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 8);
    assert!(seen.is_sorted_by_key(|s| s.1) && seen.iter().all(|s| s.2 == online.loaded.bytes), "{seen:?}");
    assert_eq!(seen.last().unwrap().1, online.loaded.bytes);
}
