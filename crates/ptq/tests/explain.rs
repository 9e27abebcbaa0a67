//! The report of what rules do, on every model of the goldens.

mod common;

use qwix_graph::{Computation, Op};
use qwix_ptq::{Outcome, PtqProvider, QuantizationRule, bytes_of_variables, explain, quantize_model};

fn products(computation: &Computation) -> usize {
    computation
        .nodes
        .iter()
        .map(|node| {
            usize::from(matches!(node.op, Op::Dot(_) | Op::Convolution(_)))
                + node.op.called().into_iter().map(|c| products(c)).sum::<usize>()
        })
        .sum()
}

#[test]
fn every_product_has_a_verdict() {
    let mut failures = vec![];
    let rules = [
        vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")],
        vec![QuantizationRule::new(".*").weight_qtype("int4")],
        vec![QuantizationRule::new(".*").weight_qtype("mxfp8").act_qtype("mxfp8")],
        vec![QuantizationRule::new("nothing is called so").weight_qtype("int8")],
        vec![],
    ];
    for (name, _) in common::folders("models") {
        let graph = match common::model(&name) {
            Ok(graph) => graph,
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        for rules in &rules {
            let provider = PtqProvider::new(rules.clone()).unwrap();
            let report = match explain(&graph, &provider) {
                Ok(report) => report,
                Err(e) => {
                    failures.push(format!("{name}: {e}"));
                    continue;
                }
            };
            let mut fail = |what: String| failures.push(format!("{name} {rules:?}: {what}"));
            if report.sites.len() != products(&graph.entry) {
                fail(format!("{} verdicts for {} products", report.sites.len(), products(&graph.entry)));
            }
            let count = |f: fn(&Outcome) -> bool| report.sites.iter().filter(|s| f(&s.outcome)).count();
            let quantized = count(|o| matches!(o, Outcome::Quantized { .. }));
            let failed = count(|o| matches!(o, Outcome::Failed { .. }));
            if (quantized, failed) != (report.quantized, report.failed) {
                fail(format!(
                    "{quantized} and {failed} are counted as {} and {}",
                    report.quantized, report.failed
                ));
            }
            if report.bytes_before != bytes_of_variables(&graph) || report.bytes_after > report.bytes_before {
                fail(format!("{} bytes become {}", report.bytes_before, report.bytes_after));
            }
            // What the report says and what is done are one.
            match quantize_model(&graph, &provider) {
                Ok(model) => {
                    if failed > 0 || model.verdicts != report.sites {
                        fail("the quantized model is another".to_owned());
                    }
                    if bytes_of_variables(&model.graph) != report.bytes_after {
                        fail("the quantized model has another size".to_owned());
                    }
                }
                Err(e) if failed == 0 => fail(format!("no site fails, but {e}")),
                Err(_) => {}
            }
            let text = serde_json::to_string(&report).unwrap();
            let again: serde_json::Value = serde_json::from_str(&text).unwrap();
            if again["sites"].as_array().map(Vec::len) != Some(report.sites.len()) {
                fail(format!("as JSON: {text}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn unused_and_shadowed_rules_are_told_apart() {
    let graph = common::model("linen_mlp").unwrap();
    let rules = vec![
        QuantizationRule::new("Dense_0").weight_qtype("int8"),
        QuantizationRule::new("Dense_[01]").weight_qtype("int4"),
        QuantizationRule::new("Dense_1").weight_qtype("nf4"),
        QuantizationRule::new("Conv.*").weight_qtype("int8"),
    ];
    let report = explain(&graph, &PtqProvider::new(rules.clone()).unwrap()).unwrap();
    let unused: Vec<_> = report.unused_rules.iter().map(|r| (r.rule, r.shadowed_by.as_slice())).collect();
    assert_eq!(unused, [(2, &[1][..]), (3, &[][..])]);
    let model = quantize_model(&graph, &PtqProvider::new(rules.clone()).unwrap()).unwrap();
    assert_eq!(model.get_unused_rules(), [&rules[2], &rules[3]]);
    let which: Vec<_> = report.sites.iter().map(|s| s.rule).collect();
    assert_eq!(which, [Some(0), Some(1), None]);
}

/// Whatever a damaged file still reads as, the report is one or an error.
#[test]
fn damaged_models_do_no_harm() {
    let provider = PtqProvider::new(vec![
        QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8").tile_size(2),
    ])
    .unwrap();
    let (mut state, mut read) = (1u64, 0);
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for name in ["linen_mlp", "scan_layers", "linen_conv1d", "einsums", "weight_stack", "rnn"] {
        let bytes = std::fs::read(common::goldens().join("models").join(name).join("model.hlo.pb")).unwrap();
        for _ in 0..400 {
            let mut damaged = bytes.clone();
            for _ in 0..=next(3) {
                let at = next(damaged.len());
                damaged[at] = match next(3) {
                    0 => damaged[at].wrapping_add(1),
                    1 => damaged[at] ^ (1 << next(8)),
                    _ => next(256) as u8,
                };
            }
            if let Ok(graph) = qwix_graph::Graph::from_hlo_proto(&damaged) {
                read += 1;
                if let Ok(report) = explain(&graph, &provider) {
                    assert_eq!(report.sites.len(), products(&graph.entry), "{name}");
                }
            }
        }
    }
    assert!(read > 200, "only {read} damaged models could be read");
}
