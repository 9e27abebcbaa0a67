//! Models that JAX spread over several devices, on virtual ones of XLA's CPU: against one device, the native engine and
//! JAX.

mod common;
#[path = "../../ptq/tests/common/mod.rs"]
mod goldens;

use std::path::PathBuf;

use qwix_array::Array;
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Executable, Params, Value};
use qwix_graph::passes::lower_quant;
use qwix_graph::{Graph, Op, Path, Precision};
use qwix_pjrt::{Client, CompileOptions, OptionValue, Program, XlaBackend, lower, portable};
use qwix_ptq::{Calibrator, PtqProvider, QtProvider, QuantizationRule, quantize_model, quantize_params};

/// Ways to spread a model: tensor-parallel, data-parallel, both; with the number of devices.
const SPREADS: [(&str, usize); 6] =
    [("tp4", 4), ("tp8", 8), ("dp4", 4), ("dp8", 8), ("both8", 8), ("gspmd8", 8)];

/// Names and rules of quantized versions; no rules, the float model. No range has its largest value on a rounding tie.
const RULES: [(&str, &str); 7] = [
    ("float", ""),
    ("int8", r#"[{"weight_qtype": "int8", "act_qtype": "int8", "act_calibration_method": "absmax,0.93"}]"#),
    ("int8 weights", r#"[{"weight_qtype": "int8"}]"#),
    ("int4 in tiles", r#"[{"weight_qtype": "int4", "tile_size": 4}]"#),
    // Four scales, which do not divide by eight devices.
    ("int4 in quarters", r#"[{"weight_qtype": "int4", "tile_size": 0.25}]"#),
    (
        "int8 asymmetric",
        // A product of two activations cannot have two zero points.
        r#"[{"op_names": ["einsum"]},
            {"weight_qtype": "int8", "act_qtype": "int8", "act_calibration_method": "minmax"}]"#,
    ),
    ("int8 static", r#"[{"weight_qtype": "int8", "act_qtype": "int8", "act_static_scale": true}]"#),
];

struct Case {
    graph: Graph,
    params: Params,
    inputs: Vec<Array>,
}

/// A client of eight devices.
fn client() -> Option<&'static Client> {
    common::only_on_cpu("tests of eight devices, of which a CPU has virtual ones").then(common::client)?
}

fn folder(model: &str) -> PathBuf {
    goldens::goldens().join("sharded").join(model)
}

fn graph(model: &str, spread: &str) -> Graph {
    let bytes = std::fs::read(folder(model).join(format!("{spread}.hlo.pb"))).unwrap();
    Graph::from_hlo_proto(&bytes).unwrap()
}

fn case(model: &str, spread: &str, rules: &str) -> Case {
    let graph = graph(model, spread);
    let params = goldens::tensors(&folder(model).join("params.safetensors"));
    let params = params.into_iter().map(|(path, array)| (Path::new(&path), Value::Array(array)));
    let params: Params = params.collect();
    let inputs = goldens::numbered(&folder(model).join("inputs.safetensors"));
    if rules.is_empty() {
        return Case { graph, params, inputs };
    }
    let rules = QuantizationRule::from_json(rules).unwrap();
    let mut stats = None;
    if rules[0].act_static_scale == Some(true) {
        let qt = quantize_model(&graph, &QtProvider::new(rules.clone()).unwrap()).unwrap();
        let mut calibrator = Calibrator::new(&qt, &params, &CpuBackend::default(), None).unwrap();
        calibrator.step(&inputs).unwrap();
        stats = Some(calibrator.finish());
    }
    let quantized = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
    let params = quantize_params(&params, &quantized.abstract_params(), stats.as_ref()).unwrap();
    Case { graph: quantized.graph, params, inputs }
}

fn run(backend: &dyn Backend, case: &Case) -> Array {
    let model = backend.compile(&case.graph, case.params.clone()).unwrap();
    model.run(&case.inputs).unwrap().pop().unwrap()
}

/// How far apart two arrays are, relative to the second's largest value; NaN where one holds a NaN.
fn apart(a: &Array, b: &Array) -> f64 {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let largest = b.iter().fold(1e-30, |m: f64, v| v.abs().max(m));
    let far = |m: f64, (a, b): (&f64, &f64)| {
        if (a - b).is_nan() || m.is_nan() { f64::NAN } else { m.max((a - b).abs()) }
    };
    a.iter().zip(&b).fold(0.0, far) / largest
}

/// Runs a model in all ways to quantize it and to spread it.
fn compare(model: &str) {
    let Some(client) = client() else { return };
    let many = XlaBackend::on(client, 0).unwrap();
    let one = many.clone().with_devices(1);
    let jax = goldens::numbered(&folder(model).join("float.safetensors")).pop().unwrap();
    let mut wrong = Vec::new();
    for (name, rules) in RULES {
        if model == "stack" && name == "int8 static" {
            // A static range inside a loop is an error.
            continue;
        }
        let first = case(model, SPREADS[0].0, rules);
        let expected = [("one device", run(&one, &first)), ("native", run(&CpuBackend::default(), &first))];
        for (spread, devices) in SPREADS {
            // It compiles for long; the other ways have nothing of their own.
            if model == "decoder" && !matches!(name, "float" | "int8") && !matches!(spread, "tp8" | "both8") {
                continue;
            }
            let case = case(model, spread, rules);
            let executable = many.prepare(&case.graph, case.params.clone()).unwrap();
            assert_eq!(executable.bytes_by_device().unwrap().len(), devices, "{model} {spread} {name}");
            let found = executable.run(&case.inputs).unwrap().pop().unwrap();
            let mut others: Vec<_> = expected.iter().map(|(what, array)| (*what, array)).collect();
            if rules.is_empty() {
                others.push(("JAX", &jax));
            }
            for (what, other) in others {
                let apart = apart(&found, other);
                // Only sums of floats depend on how many devices there are; integer products are exact, and this model
                // does all else an element at a time.
                let exact = what == "one device"
                    && model == "mlp"
                    && matches!(name, "int8" | "int8 asymmetric" | "int8 static");
                if apart.is_nan() || apart > if exact { 0.0 } else { 1e-6 } {
                    wrong.push(format!("{model} {spread} {name}: {apart:.1e} from {what}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_mlp_on_several_devices_is_as_on_one() {
    compare("mlp");
}

#[test]
fn a_decoder_on_several_devices_is_as_on_one() {
    compare("decoder");
}

#[test]
fn a_loop_over_layers_on_several_devices_is_as_on_one() {
    compare("stack");
}

/// The bytes on one device: of the MLP, whose sizes are 32, 64, 64 and 16, and of three layers of 32 by 32.
#[test]
fn each_device_holds_its_share_of_the_parameters() {
    let Some(client) = client() else { return };
    let backend = XlaBackend::on(client, 0).unwrap();
    let biases = |n: usize| (64 / n + 64 + 16) * 4;
    let whole_biases = (64 + 64 + 16) * 4;
    let rows: [(&str, &str, &str, usize); 8] = [
        ("mlp", "float", "tp8", (32 * 64 + 64 * 64 + 64 * 16) / 8 * 4 + biases(8)),
        ("mlp", "float", "dp8", (32 * 64 + 64 * 64 + 64 * 16) * 4 + whole_biases),
        ("mlp", "float", "both8", (32 * 64 + 64 * 64 + 64 * 16) / 4 * 4 + biases(4)),
        // Scales of columns are spread with them; those of a matrix in rows are whole on each device.
        ("mlp", "int8", "tp8", (32 * 64 + 64 * 64 + 64 * 16) / 8 + (64 / 8 + 64 + 16 / 8) * 4 + biases(8)),
        ("mlp", "int8", "dp4", 32 * 64 + 64 * 64 + 64 * 16 + (64 + 64 + 16) * 4 + whole_biases),
        // A scale for four elements of a row: 8, 16 and 16 in a column. They stay with their elements.
        (
            "mlp",
            "int4 in tiles",
            "tp8",
            (32 * 64 + 64 * 64 + 64 * 16) / 8 / 2 + (8 * 64 / 8 + 16 / 8 * 64 + 16 * 16 / 8) * 4 + biases(8),
        ),
        // Four scales in a column do not divide by eight.
        (
            "mlp",
            "int4 in quarters",
            "tp8",
            (32 * 64 + 64 * 64 + 64 * 16) / 8 / 2 + (4 * 64 / 8 + 4 * 64 + 4 * 16 / 8) * 4 + biases(8),
        ),
        ("stack", "int8", "tp8", 3 * 32 * 32 / 8 + 3 * 32 / 8 * 4),
    ];
    let mut wrong = Vec::new();
    for (model, name, spread, expected) in rows {
        let rules = RULES.iter().find(|row| row.0 == name).unwrap().1;
        let Case { graph, params, .. } = case(model, spread, rules);
        let found = backend.prepare(&graph, params).unwrap().bytes_by_device().unwrap();
        if found.iter().any(|&bytes| bytes != expected) {
            wrong.push(format!("{model} {spread} {name}: {found:?}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The shardings of the decoder's parameters, tensor-parallel on four devices.
#[test]
fn shardings_follow_weights_and_their_parts() {
    let quantized = case("decoder", "tp4", RULES[3].1).graph;
    let lowered = lower_quant(&quantized).unwrap();
    let sharding = |path: &str| {
        let number = lowered.parameters.iter().position(|p| p.path.as_str() == path).expect(path);
        let node = lowered.entry.nodes.iter().find(|node| node.op == Op::Parameter(number)).unwrap();
        (node.ty.to_string(), node.sharding.as_ref().map(ToString::to_string).unwrap_or_default())
    };
    let rows = [
        ("Block_0/up/kernel/qvalue", "s4[32,64]", "{devices=[1,4]<=[4]}"),
        ("Block_0/up/kernel/scale", "f32[8,64]", "{devices=[1,4]<=[4]}"),
        ("Block_0/down/kernel/qvalue", "s4[64,32]", "{devices=[4,1]<=[4]}"),
        ("Block_0/down/kernel/scale", "f32[16,32]", "{devices=[4,1]<=[4]}"),
        ("Block_0/query/kernel/qvalue", "s4[32,8,4]", "{devices=[1,4,1]<=[4]}"),
        ("Block_0/query/kernel/scale", "f32[8,8,4]", "{devices=[1,4,1]<=[4]}"),
        ("Block_0/out/kernel/qvalue", "s4[8,4,32]", "{devices=[4,1,1]<=[4]}"),
        // One scale for all heads.
        ("Block_0/out/kernel/scale", "f32[1,1,32]", "{replicated}"),
        // Stored as the product wants it.
        ("Embed_0/embedding@dot_general0/qvalue", "s4[32,64]", "{devices=[1,4]<=[4]}"),
        ("Embed_0/embedding", "f32[64,32]", "{devices=[4,1]<=[4]}"),
    ];
    for (path, ty, expected) in rows {
        assert_eq!(sharding(path), (ty.to_owned(), expected.to_owned()), "{path}");
    }
    // The table is constrained again before its product, and so is an activation.
    let constraints = |graph: &Graph| {
        graph.entry.nodes.iter().filter(|node| matches!(node.op, Op::Sharding { .. })).count()
    };
    assert_eq!((constraints(&quantized), constraints(&lowered)), (2, 3));
}

#[test]
fn what_is_written_runs_on_several_devices() {
    let Some(client) = client() else { return };
    let graph = case("mlp", "both8", RULES[1].1).graph;
    // As text, in a package.
    let read: Graph = Graph::from_text(&graph.to_text(Default::default())).unwrap();
    assert_eq!(read, graph);
    // As a module.
    let lowered = lower(&graph, "cpu", Precision::Default).unwrap();
    let bytes = lowered.to_hlo_proto().unwrap();
    let program = Program::from_hlo_proto(bytes).unwrap();
    assert_eq!(program.devices(), 8);
    let options = CompileOptions { partitions: 8, ..CompileOptions::default() };
    client.compile(&program, &options).unwrap();
    let error = client.compile(&program, &CompileOptions::default()).unwrap_err().to_string();
    assert!(error.contains("for 8, the options say 1"), "{error}");
}

#[test]
fn what_is_exported_is_spread_as_before() {
    let Some(client) = client() else { return };
    let backend = XlaBackend::on(client, 0).unwrap();
    for (name, rules) in &RULES[1..4] {
        let mut case = case("mlp", "both8", rules);
        let before = run(&backend, &case);
        let exported = portable(&case.graph).unwrap();
        assert_eq!(Program::new(&exported).unwrap().devices(), 8, "{name}");
        case.graph = Graph::from_hlo_proto(&exported.to_hlo_proto().unwrap()).unwrap();
        let after = run(&backend, &case);
        // Its result is whole on each device, which may lead the partitioner to sum in another order.
        assert!(apart(&after, &before) <= 1e-6, "{name}: {}", apart(&after, &before));
        let executable = backend.prepare(&case.graph, case.params.clone()).unwrap();
        let bytes = executable.bytes_by_device().unwrap();
        let whole: usize = case.params.values().map(Value::byte_len).sum();
        assert!(bytes.iter().all(|&bytes| bytes < whole), "{name}: {bytes:?} of {whole}");
    }
}

#[test]
fn uneven_tiles_are_filled_up() {
    let Some(client) = client() else { return };
    let backend = XlaBackend::on(client, 0).unwrap();
    let text = "HloModule uneven

ENTRY main {
  x = f32[5,3] parameter(0), sharding={devices=[4,1]<=[4]}
  w = f32[3,7] parameter(1), sharding={devices=[1,4]<=[4]}
  y = f32[5,7] dot(x, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  z = f32[7,7] dot(y, y), lhs_contracting_dims={0}, rhs_contracting_dims={0}, sharding={devices=[2,2]<=[4]}
  ROOT t = (f32[5,7], f32[7,7]) tuple(y, z)
}
";
    let graph = Graph::from_text(text).unwrap();
    let array = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        Array::from_vec(shape, (0..count).map(|i| (i * i % 11) as f32).collect()).unwrap()
    };
    let inputs = [array(&[5, 3]), array(&[3, 7])];
    let found = backend.compile(&graph, Params::new()).unwrap().run(&inputs).unwrap();
    let expected = CpuBackend::default().compile(&graph, Params::new()).unwrap().run(&inputs).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_run_is_named() {
    let Some(client) = client() else { return };
    let plugin = client.plugin();
    let four = Client::new(plugin, &[("cpu_device_count", OptionValue::Int(4))]).unwrap();
    let four = XlaBackend::on(&four, 0).unwrap();
    let with = |x: &str, y: &str| {
        format!(
            "HloModule m

ENTRY main {{
  x = f32[8,8] parameter(0){x}
  ROOT y = f32[8,8] negate(x){y}
}}
"
        )
    };
    let two = ", sharding={devices=[2,1]<=[2]}";
    let rows = [
        (None, with(", sharding={devices=[8,1]<=[8]}", ""), "are for 8, xla:cpu has 4"),
        (None, with(two, ", sharding={devices=[4,1]<=[4]}"), "is for 4 devices, that of `x` for 2"),
        (None, with(", sharding={devices=[2]<=[2]}", ""), "`x`"),
        (None, with(", sharding={devices=[2]<=[2]}", ""), "rank 1, found f32[8,8]"),
        (None, with(two, ", sharding={maximal device=1}"), "one of several devices"),
        (None, with(two, ", sharding={devices=[1,1,2]<=[2] last_tile_dims={manual}}"), "shard_map"),
        (None, with(two, ", sharding={mesh['a'=2], [{'a'}, {}]}"), "not known"),
        (Some(3), with(two, ""), "found 3, expected 2"),
        (Some(2), with("", ""), "found 2, expected 1"),
    ];
    let mut wrong = Vec::new();
    for (devices, text, expected) in rows {
        let graph = Graph::from_text(&text).unwrap();
        let backend = devices.map_or(four.clone(), |devices| four.clone().with_devices(devices));
        match backend.compile(&graph, Params::new()) {
            Err(error) if error.to_string().contains(expected) => {}
            other => {
                wrong.push(format!("{text}: {:?}, expected {expected}", other.err().map(|e| e.to_string())))
            }
        }
        // One device does not mind.
        four.clone().with_devices(1).compile(&graph, Params::new()).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_backend_of_its_own_gets_the_devices_that_it_needs() {
    let Some(client) = client() else { return };
    let backend = XlaBackend::new(client.plugin()).unwrap();
    let case = case("mlp", "tp8", "");
    let executable = backend.prepare(&case.graph, case.params).unwrap();
    assert_eq!(executable.bytes_by_device().unwrap().len(), 8);
    // Devices wait for one another: runs that are started at once must not wait for each other.
    let first = executable.run(&case.inputs).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(executable.run(&case.inputs).unwrap(), first);
                }
            });
        }
    });
}
