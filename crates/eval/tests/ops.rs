//! Every op against XLA:CPU, by the goldens of `goldens/ops`.

mod common;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use common::{Tensors, difference, goldens};
use qwix_eval::{Backend, Limits, Params, ReferenceBackend};
use qwix_graph::{Graph, Op, Role, Type};
use serde_json::Value as Json;

/// Where this evaluator and XLA:CPU differ by more than the golden allows, how far they may, and why.
const DIFFERENT: &[(&str, &str, Allowed, &str)] = &[
    (
        "denormals_f32",
        "is_zero",
        Allowed::Elements(&[0, 1, 2, 4]),
        "XLA:CPU takes subnormal numbers for zeros; here they are kept",
    ),
    (
        "convert_f4e2m1fn*",
        "*",
        Allowed::Elements(&[7, 15]),
        "XLA:CPU takes ±6 for out of every integer's range, because it looks for the range's end in fp4",
    ),
    ("reduce_bf16", "init", Allowed::Ulp(2), "XLA:CPU rounds each partial sum to bf16"),
    ("activations", "gelu", Allowed::Relative(1e-7), "1 + tanh(x) near −1 magnifies the error of XLA's tanh"),
    (
        "activations",
        "hard_swish",
        Allowed::Ulp(2),
        "XLA:CPU multiplies by f32(1/6) where the graph divides by 6",
    ),
    (
        "quantize_like_qwix",
        "0",
        Allowed::Elements(&[0, 20]),
        "XLA:CPU multiplies by reciprocals where the graph divides, which shows on ties; lowering writes the products out",
    ),
];

#[derive(Clone, Copy)]
enum Allowed {
    Ulp(u64),
    Relative(f64),
    /// These elements may be anything; the others are what the golden says.
    Elements(&'static [usize]),
}

/// Whether a name is a pattern, or begins with it when that ends in `*`.
fn is(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |head| name.starts_with(head))
}

/// How far the outputs of a golden may be away.
struct Bound {
    names: Vec<String>,
    ulp: Vec<u64>,
    relative: f64,
}

impl Bound {
    fn new(entry: &Json, outputs: usize) -> Bound {
        let numbers = |json: &Json| match json {
            Json::Array(list) => list.iter().map(|n| n.as_u64().unwrap()).collect(),
            Json::Number(n) => vec![n.as_u64().unwrap(); outputs],
            _ => vec![0; outputs],
        };
        let name = |i: usize| entry["outputs"][i].as_str().map_or(i.to_string(), str::to_owned);
        Bound {
            names: (0..outputs).map(name).collect(),
            ulp: numbers(&entry["ulp"]),
            relative: entry["rel"].as_f64().unwrap_or(0.0),
        }
    }
}

fn outputs(ty: &Type) -> Vec<&Type> {
    match ty {
        Type::Tuple(types) => types.iter().flat_map(outputs).collect(),
        ty => vec![ty],
    }
}

#[test]
fn ops_agree_with_xla() {
    let folder = goldens().join("ops");
    let index: serde_json::Map<String, Json> =
        serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let mut wrong = String::new();
    let mut table = String::new();
    let mut count = 0;
    let mut needed = [false; DIFFERENT.len()];
    for (name, entry) in &index {
        match golden(&folder.join(name), name, entry) {
            Ok(rows) => {
                for row in rows {
                    count += 1;
                    if let Some(excuse) = row.excuse {
                        needed[excuse] = true;
                    }
                    if let Some(complaint) = row.complaint {
                        writeln!(wrong, "{name}/{}: {complaint}", row.output).unwrap();
                    }
                    writeln!(table, "{name}/{}\t{}", row.output, row.measured).unwrap();
                }
            }
            Err(error) => writeln!(wrong, "{name}: {error}").unwrap(),
        }
    }
    for (row, _) in DIFFERENT.iter().zip(needed).filter(|(_, needed)| !needed) {
        writeln!(wrong, "{}/{}: within its bound, without the exception", row.0, row.1).unwrap();
    }
    // For whoever asks: how far each output is away.
    if let Ok(path) = std::env::var("QWIX_OP_ERRORS") {
        std::fs::write(path, table).unwrap();
    }
    assert!(wrong.is_empty(), "of {count} outputs:\n{wrong}");
    assert!(count > 0, "no goldens in {}", folder.display());
}

/// Leaves out the outputs that depend on a dtype that this library does not have (u2); the numbers of those that stay,
/// or `None` when an input is of such a dtype.
fn without_opaque(graph: &mut Graph) -> Option<Vec<usize>> {
    if graph.parameters.iter().any(|p| matches!(p.ty, Type::Opaque(_))) {
        return None;
    }
    let mut entry = (*graph.entry).clone();
    let mut tainted: Vec<bool> = Vec::new();
    let root = entry.root.index();
    for (i, node) in entry.nodes.iter().enumerate() {
        let own = matches!(node.ty, Type::Opaque(_));
        tainted.push(i != root && (own || node.operands.iter().any(|o| tainted[o.index()])));
    }
    let node = &mut entry.nodes[root];
    let Type::Tuple(types) = &node.ty else { return Some(vec![0]) };
    if node.op != Op::Tuple || !node.operands.iter().any(|o| tainted[o.index()]) {
        return Some((0..outputs(&node.ty).len()).collect());
    }
    let kept: Vec<usize> = (0..types.len()).filter(|&i| !tainted[node.operands[i].index()]).collect();
    node.ty = Type::Tuple(kept.iter().map(|&i| types[i].clone()).collect());
    node.operands = kept.iter().map(|&i| node.operands[i]).collect();
    graph.entry = Arc::new(entry);
    *graph = qwix_graph::passes::eliminate_dead_code(graph);
    Some(kept)
}

struct Row {
    output: String,
    measured: String,
    complaint: Option<String>,
    /// The exception that it needed.
    excuse: Option<usize>,
}

fn golden(path: &Path, name: &str, entry: &Json) -> Result<Vec<Row>, String> {
    let bytes = std::fs::read(path.with_extension("hlo.pb")).map_err(|e| e.to_string())?;
    let mut graph = Graph::from_hlo_proto(&bytes).map_err(|e| format!("import: {e}"))?;
    for parameter in &mut graph.parameters {
        parameter.role = Role::Input;
    }
    let Some(kept) = without_opaque(&mut graph) else { return Ok(Vec::new()) };
    let tensors = Tensors::open(&path.with_extension("safetensors"));
    let inputs: Vec<_> =
        graph.parameters.iter().enumerate().map(|(i, p)| tensors.array(&format!("in/{i}"), &p.ty)).collect();
    let backend = ReferenceBackend { limits: Limits { max_iterations: Some(100_000), max_elements: None } };
    let found = backend
        .compile(&graph, Params::new())
        .and_then(|model| model.run(&inputs))
        .map_err(|e| format!("run: {e}"))?;
    let root = &graph.entry.node(graph.entry.root).ty;
    let types = outputs(root);
    let bound = Bound::new(entry, entry["outputs"].as_array().map_or(types.len(), Vec::len));
    let mut rows = Vec::new();
    for ((ty, found), i) in types.iter().zip(&found).zip(kept) {
        let want = tensors.array(&format!("out/{i}"), ty);
        let d = difference(found, &want);
        let allowed = bound.ulp.get(i).copied().unwrap_or(0);
        let good = d.kind == 0 && (d.ulp <= allowed || d.relative <= bound.relative);
        let output = bound.names[i].clone();
        let exception = DIFFERENT.iter().position(|row| is(name, row.0) && is(&output, row.1));
        let excused = match exception.map(|row| DIFFERENT[row].2) {
            None => false,
            Some(Allowed::Ulp(ulp)) => d.kind == 0 && d.ulp <= ulp,
            Some(Allowed::Relative(relative)) => d.kind == 0 && d.relative <= relative,
            Some(Allowed::Elements(excused)) => {
                let (found, want) = (found.to_f64_vec(), want.to_f64_vec());
                let same = |i: usize| excused.contains(&i) || found[i].to_bits() == want[i].to_bits();
                (0..found.len()).all(same)
            }
        };
        let show = |a: &qwix_array::Array| a.to_f64_vec().get(d.at).copied();
        rows.push(Row {
            output,
            measured: format!("{}\t{}\t{:e}", found.dtype(), d.ulp, d.relative),
            excuse: exception.filter(|_| !good && excused),
            complaint: (!good && !excused).then(|| {
                format!(
                    "{ty} element {}: found {:?}, expected {:?} ({} ulp of {allowed}, relative {:e} of {:e}, {} of another kind)",
                    d.at,
                    show(found),
                    show(&want),
                    d.ulp,
                    d.relative,
                    bound.relative,
                    d.kind
                )
            }),
        });
    }
    Ok(rows)
}
