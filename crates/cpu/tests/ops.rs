//! Every op on the native engine against the reference evaluator, by the graphs and inputs of `goldens/ops`.

#[path = "../../eval/tests/common/mod.rs"]
mod common;

use std::fmt::Write;

use common::{Tensors, difference, goldens};
use qwix_array::DType;
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Params, ReferenceBackend};
use qwix_graph::{Graph, Role, Type};

/// How far an output may be away: units in the last place, or else relative to the largest value. Functions of f32 are a
/// few units off by themselves; 16-bit results are rounded after each step, on either side of a tie.
fn bound(dtype: DType) -> (u64, f64) {
    match dtype {
        DType::BF16 => (1, 1.0 / 128.0),
        DType::F16 => (1, 1.0 / 1024.0),
        DType::F32 => (4, 2e-6),
        DType::F64 => (4, 1e-14),
        _ => (0, 0.0),
    }
}

#[test]
fn ops_agree_with_the_reference() {
    let folder = goldens().join("ops");
    let index: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let mut wrong = String::new();
    let mut count = 0;
    for name in index.keys() {
        let bytes = std::fs::read(folder.join(name).with_extension("hlo.pb")).unwrap();
        let mut graph = Graph::from_hlo_proto(&bytes).unwrap();
        graph.parameters.iter_mut().for_each(|p| p.role = Role::Input);
        if graph.entry.nodes.iter().any(|n| opaque(&n.ty)) {
            continue;
        }
        let tensors = Tensors::open(&folder.join(name).with_extension("safetensors"));
        let inputs: Vec<_> = graph
            .parameters
            .iter()
            .enumerate()
            .map(|(i, p)| tensors.array(&format!("in/{i}"), &p.ty))
            .collect();
        let run = |backend: &dyn Backend| {
            backend.compile(&graph, Params::new()).and_then(|model| model.run(&inputs))
        };
        let expected = run(&ReferenceBackend::default()).unwrap();
        let found = match run(&CpuBackend::default()) {
            Ok(found) => found,
            Err(error) => {
                writeln!(wrong, "{name}: {error}").unwrap();
                continue;
            }
        };
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            count += 1;
            let d = difference(found, expected);
            let (ulp, relative) = bound(found.dtype());
            // The sign of a zero is nobody's promise; NaN where there was none is wrong.
            let signs = d.kind > 0
                && d.ulp == 0
                && found
                    .to_f64_vec()
                    .iter()
                    .zip(expected.to_f64_vec())
                    .any(|(a, b)| a.is_nan() != b.is_nan());
            if signs || (d.ulp > ulp && d.relative > relative) {
                let at = |a: &qwix_array::Array| a.to_f64_vec().get(d.at).copied();
                writeln!(
                    wrong,
                    "{name}/{i} {found:?} at {}: {:?}, expected {:?}, {d:?}",
                    d.at,
                    at(found),
                    at(expected)
                )
                .unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "of {count} outputs:\n{wrong}");
    assert!(count > 0, "no goldens in {}", folder.display());
}

fn opaque(ty: &Type) -> bool {
    match ty {
        Type::Opaque(_) => true,
        Type::Tuple(types) => types.iter().any(opaque),
        Type::Array(_) | Type::QArray(_) | Type::Token => false,
    }
}
