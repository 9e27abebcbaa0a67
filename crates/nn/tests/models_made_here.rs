//! What holds of models written in Rust that no exported one shows.

use qwix_eval::{Backend, ReferenceBackend, Value};
use qwix_graph::Graph;
use qwix_graph::text::TextOptions;
use qwix_nn::*;
use qwix_ptq::find_sites;

/// Layers called twice, a sequence in a model and one of its own, a named scope, another class name.
struct Net;

impl Module for Net {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let shared = scope.child(Dense::new(4))?;
        let layers = || Sequential::new().layer(Dense::new(4)).function(relu).layer(LayerNorm::new());
        let sequence = scope.child(layers())?;
        let x = shared.call(sequence.call(shared.call(sequence.call(x)?)?)?)?;
        let x = scope.call_as("own", layers().own_layers(), x)?;
        scope.named_scope("tail", || scope.call(Renamed, x))
    }
}

struct Renamed;

impl Module for Renamed {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        scope.call(Box::new(Dense::new(2)) as Box<dyn Module>, x)
    }

    fn class_name(&self) -> String {
        "Head".to_owned()
    }
}

fn x() -> [ArrayType; 1] {
    [ArrayType::new(DType::F32, [3, 4])]
}

#[test]
fn names_and_sharing() {
    let shapes = abstract_init(&Net, &x()).unwrap();
    let found: Vec<String> = shapes.iter().map(|(path, ty)| format!("{path} {ty}")).collect();
    let wanted = [
        "Dense_0/bias f32[4]",
        "Dense_0/kernel f32[4,4]",
        "Dense_1/bias f32[4]",
        "Dense_1/kernel f32[4,4]",
        "Head_0/Dense_0/bias f32[2]",
        "Head_0/Dense_0/kernel f32[4,2]",
        "LayerNorm_0/bias f32[4]",
        "LayerNorm_0/scale f32[4]",
        "own/layers_0/bias f32[4]",
        "own/layers_0/kernel f32[4,4]",
        "own/layers_2/bias f32[4]",
        "own/layers_2/scale f32[4]",
    ];
    assert_eq!(found, wanted);
    let sites = find_sites(&trace(&Net, &x()).unwrap());
    let found: Vec<String> = sites.iter().map(|s| format!("{} {}", s.module_path, s.op_id)).collect();
    let wanted = [
        "Dense_1 dot_general0",
        "Dense_0 dot_general0",
        "Dense_1 dot_general1",
        "Dense_0 dot_general1",
        "own/layers_0 dot_general0",
        "Head_0/Dense_0 dot_general0",
    ];
    assert_eq!(found, wanted);
}

/// One name in several collections, and a collection that Flax does not know.
#[test]
fn collections() {
    struct Statistics;
    impl Module for Statistics {
        fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
            let a = scope.param("a", &[4], DType::F32, &initializers::ones())?;
            let b = scope.variable("batch_stats", "a", &[4], DType::F32, &initializers::zeros())?;
            let c = scope.variable("batch_stats", "b", &[4], DType::F32, &initializers::zeros())?;
            let d = scope.variable("mine", "c", &[4], DType::F32, &initializers::zeros())?;
            (x * a + b + c + d).ok()
        }
    }
    let shapes = abstract_init(&Statistics, &x()).unwrap();
    let found: Vec<&str> = shapes.keys().map(|path| path.as_str()).collect();
    assert_eq!(found, ["a", "b", "batch_stats/a", "mine/c"]);
    let graph = trace(&Statistics, &x()).unwrap();
    let again = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
    let paths =
        |graph: &Graph| -> Vec<String> { graph.variables().map(|(_, p)| p.path.to_string()).collect() };
    assert_eq!(paths(&again), paths(&graph));
}

#[test]
fn op_names_are_written_as_jax_writes_them() {
    struct Attending;
    impl Module for Attending {
        fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
            let embed = scope.child(Embed::new(7, 4))?;
            scope.call(Einsum::new([7, 2], "sd, dk -> sk"), relu(&embed.attend(&x)?))
        }
    }
    let graph = trace(&Attending, &x()).unwrap();
    let names: Vec<&str> = graph
        .entry
        .nodes
        .iter()
        .map(|n| n.metadata.op_name.as_str())
        .filter(|name| name.ends_with("dot_general") || name.ends_with("max") || name.contains('['))
        .collect();
    let wanted = [
        "variables['params']['Einsum_0']['bias']",
        "variables['params']['Einsum_0']['kernel']",
        "variables['params']['Embed_0']['embedding']",
        "jit(apply)/Attending/Embed_0.attend/dot_general",
        "jit(apply)/Attending/jit(relu)/max",
        "jit(apply)/Attending/Einsum_0/sd,dk->sk/dot_general",
    ];
    assert_eq!(names, wanted);
}

#[test]
fn a_traced_graph_is_written_and_read() {
    let graph = trace(&Net, &x()).unwrap();
    let sites = |graph: &Graph| -> Vec<String> {
        find_sites(graph).iter().map(|s| format!("{} {} {:?}", s.module_path, s.op_id, s.product)).collect()
    };
    let params = init(&Net, Key::new(3), &x()).unwrap();
    let input = Array::from_vec(&[3, 4], (0..12).map(|i| i as f32 / 5.0 - 1.0).collect()).unwrap();
    let run = |graph: &Graph| {
        let backend = ReferenceBackend::default();
        backend.compile(graph, params.clone()).unwrap().run(std::slice::from_ref(&input)).unwrap()
    };
    let proto = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
    let text = Graph::from_text(&graph.to_text(TextOptions::default())).unwrap();
    for again in [proto, text] {
        let parameters = |graph: &Graph| -> Vec<String> {
            graph.parameters.iter().map(|p| format!("{} {:?} {}", p.path, p.role, p.ty)).collect()
        };
        assert_eq!(parameters(&again), parameters(&graph));
        assert_eq!(sites(&again), sites(&graph));
        assert_eq!(run(&again), run(&graph));
    }
}

/// Parameters of four terabytes: shapes cost nothing.
#[test]
fn shapes_of_any_size() {
    struct Large;
    impl Module for Large {
        fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
            let x = scope.call(Dense::new(1 << 20), x)?;
            scope.call(MultiHeadDotProductAttention::new(1 << 10), x)
        }
    }
    let x = [ArrayType::new(DType::F32, [1, 64, 1 << 20])];
    let shapes = abstract_init(&Large, &x).unwrap();
    let bytes: usize = shapes.values().map(|ty| ty.byte_len().unwrap()).sum();
    assert!(bytes > 20 << 40, "{bytes}");
    assert_eq!(trace(&Large, &x).unwrap().variables().count(), shapes.len());
}

struct Causal;

impl Module for Causal {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let mask = make_causal_mask(scope, &x.index(-1, 0))?;
        scope.call(MultiHeadDotProductAttention::new(2), AttentionInputs::new(&x).mask(&mask))
    }
}

struct Decoding;

impl Module<(Tensor, KvCache, Tensor), (Tensor, KvCache)> for Decoding {
    fn call(&self, scope: &Scope, inputs: (Tensor, KvCache, Tensor)) -> Result<(Tensor, KvCache)> {
        let (x, cache, index) = inputs;
        scope.child(MultiHeadDotProductAttention::new(2))?.decode(&x, &cache, &index, None)
    }
}

/// A prompt at once and then token by token gives what attention under a causal mask gives for all at once.
#[test]
fn a_cache_changes_nothing_but_the_work() {
    let (length, prompt, heads, dim) = (7, 4, 2, 4);
    let values: Vec<f32> = (0..length * 8).map(|i| ((i * 37 % 29) as f32 - 14.0) / 9.0).collect();
    let whole = Array::from_vec(&[1, length, 8], values).unwrap();
    let types = [ArrayType::new(DType::F32, [1, length, 8])];
    let params = init(&Causal, Key::new(2), &types).unwrap();
    let backend = ReferenceBackend::default();
    let wanted = apply(&Causal, &params, std::slice::from_ref(&whole), &backend).unwrap().remove(0);

    let mut cache = vec![Array::zeros(DType::F32, &[1, 9, heads, dim]).unwrap(); 2];
    let mut found = vec![];
    let mut position = 0;
    for size in [prompt, 1, 1, 1] {
        let x = whole.slice(&[0, position, 0], &[1, position + size, 8], &[1, 1, 1]).unwrap();
        let inputs = [x, cache[0].clone(), cache[1].clone(), Array::scalar(position as i32)];
        let mut outputs = apply(&Decoding, &params, &inputs, &backend).unwrap();
        found.extend(outputs.remove(0).to_f64_vec());
        cache = outputs;
        position += size;
    }
    assert_eq!(position, length);
    let off = found.iter().zip(wanted.to_f64_vec()).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(off < 1e-6, "{off}");
    assert!(params.values().all(|v| matches!(v, Value::Array(_))));
}
