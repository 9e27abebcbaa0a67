//! Reports: numbers that can be counted by hand, pages that need nothing, and nothing that depends on how the work went.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use qwix::{
    Array, Checkpoint, Graph, Loading, Params, Path, PtqModel, PtqProvider, QuantizationRule, Report,
    ReportBuilder, quantize_checkpoint, quantize_model,
};

/// A model of products, a line of `path rows columns` each.
fn model(weights: &[(&str, usize, usize)], rules: Vec<QuantizationRule>) -> PtqModel {
    let rows = weights[0].1;
    let mut text = format!(
        "HloModule m\n\nENTRY main {{\n  x0 = f32[1,{rows}] parameter(0), metadata={{op_name=\"x\"}}\n"
    );
    for (i, (path, rows, columns)) in weights.iter().enumerate() {
        let keys: String = path.split('/').map(|key| format!("['{key}']")).collect();
        let next = i + 1;
        let root = if next == weights.len() { "ROOT " } else { "" };
        text += &format!(
            "  w{i} = f32[{rows},{columns}] parameter({next}), metadata={{op_name=\"variables['params']{keys}\"}}\n  \
             {root}x{next} = f32[1,{columns}] dot(x{i}, w{i}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n"
        );
    }
    quantize_model(&Graph::from_text(&(text + "}\n")).unwrap(), &PtqProvider::new(rules).unwrap()).unwrap()
}

fn report(model: &PtqModel, params: &Params, threads: usize, float_bytes: u64) -> Report {
    let template = model.abstract_params();
    let builder = ReportBuilder::new(&template);
    let made = |float: &Array, made: &[_]| builder.see(float, made);
    let loading = Loading { threads, float_bytes, made: Some(&made), ..Loading::default() };
    quantize_checkpoint(params, &template, &loading, |_, _| Ok(())).unwrap();
    builder.finish().unwrap()
}

fn values(seed: usize, rows: usize, columns: usize) -> Array {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0;
    Array::from_vec(&[rows, columns], (0..rows * columns).map(value).collect()).unwrap()
}

#[test]
fn numbers_are_those_counted_by_hand() {
    let rules = vec![
        QuantizationRule::new("a").weight_qtype("int4").tile_size(2),
        QuantizationRule::new("b").weight_qtype("int8"),
        QuantizationRule::new("c"),
    ];
    let model = model(&[("a/w", 4, 2), ("b/w", 2, 3), ("c/w", 3, 1)], rules);
    let array = |rows, columns, v: &[f32]| Array::from_vec(&[rows, columns], v.to_vec()).unwrap().into();
    let params = Params::from([
        // Pairs of a column have a scale: its largest value / 7.5. The scale is 1, the values 7.5 and what is left off.
        (Path::new("a/w"), array(4, 2, &[7.5, 7.5, 3.0, 3.0, 7.5, 7.5, 3.0, 4.0])),
        (Path::new("b/w"), array(2, 3, &[0.0; 6])),
        (Path::new("c/w"), array(3, 1, &[1.0, 2.0, 3.0])),
    ]);
    let report = report(&model, &params, 1, u64::MAX);
    let rows: BTreeMap<&str, _> = report.tensors().iter().map(|t| (t.path.as_str(), t)).collect();
    assert_eq!(rows.len(), 3);

    // 8 codes of half a byte and 4 scales of 4 bytes. 7.5 becomes 7, the largest code: 4 · 0.5² of noise.
    let a = rows["a/w"];
    assert_eq!((a.qtype, a.weights, a.bytes_before, a.bytes_after), (Some("int4"), 8, 32, 4 + 16));
    assert_eq!((a.bits_per_weight, a.sampled), (Some(20.0), 8));
    let signal = 4.0 * 7.5f64.powi(2) + 3.0 * 9.0 + 16.0;
    let expected = 10.0 * (signal / 1.0).log10();
    assert!((a.sqnr_db.unwrap() - expected).abs() < 1e-9, "{:?}, expected {expected}", a.sqnr_db);

    // Nothing is lost of zeros. A byte each, and 3 scales.
    let b = rows["b/w"];
    assert_eq!((b.bytes_before, b.bytes_after, b.sqnr_db), (24, 6 + 12, Some(f64::INFINITY)));
    let c = rows["c/w"];
    assert_eq!((c.qtype, c.bytes_before, c.bytes_after, c.sqnr_db), (None, 12, 12, None));
    assert_eq!((c.sampled, &c.histogram), (0, &None));

    let totals = report.totals();
    assert_eq!((totals.tensors, totals.weights, totals.bytes_before, totals.bytes_after), (3, 17, 68, 50));
    assert_eq!(totals.bits_per_weight, Some(50.0 * 8.0 / 17.0));
    let by_qtype: Vec<_> = report.by_qtype().into_iter().map(|(name, t)| (name, t.bytes_after)).collect();
    assert_eq!(by_qtype, [(Some("int4"), 20), (Some("int8"), 18), (None, 12)]);
    let worst: Vec<&str> = report.worst_first().into_iter().map(|t| t.path.as_str()).collect();
    assert_eq!(worst, ["a/w", "b/w"]);

    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["totals"]["bytes_after"], 50);
    assert_eq!(json["tensors"][1]["sqnr_db"], "exact");
    assert_eq!(json["tensors"][2]["qtype"], serde_json::Value::Null);
    assert_eq!(json["tensors"][0]["source"], "f32[4,2]");
}

#[test]
fn reports_do_not_depend_on_threads_or_memory() {
    let weights: Vec<(String, usize, usize)> = (0..12).map(|i| (format!("layers/{i}/w"), 320, 320)).collect();
    let weights: Vec<_> =
        weights.iter().map(|(path, rows, columns)| (path.as_str(), *rows, *columns)).collect();
    let model = model(&weights, vec![QuantizationRule::new(".*").weight_qtype("int4").tile_size(32)]);
    let params: Params =
        (0..12).map(|i| (Path::new(&format!("layers/{i}/w")), values(i, 320, 320).into())).collect();
    let first = report(&model, &params, 1, u64::MAX);
    assert!(first.tensors().iter().all(|t| t.sampled == qwix::SAMPLED as u64));
    for (threads, float_bytes) in [(1, 1), (4, u64::MAX), (3, 1_000_000)] {
        let other = report(&model, &params, threads, float_bytes);
        assert_eq!(other, first);
        assert_eq!(other.to_html(), first.to_html());
    }
    let order: Vec<_> = first.tensors().iter().filter_map(qwix::TensorReport::layer).collect();
    assert!(order.iter().copied().eq(0..12), "{order:?}");
    assert_eq!(first.kinds().len(), 1);
}

#[test]
fn a_page_needs_nothing_and_runs_nothing_of_the_model() {
    let hostile = ["<script>alert(1)", "a\"onload=\"x", "b&lt;'c'", "d\u{202e}e\u{7}"];
    let paths: Vec<String> = hostile.iter().enumerate().map(|(i, name)| format!("{name}/{i}/w")).collect();
    // Names that HLO's text cannot quote are put in afterwards.
    let names = ["p0/0/w", "p1/1/w", "p2/2/w", "p3/3/w"];
    let weights: Vec<_> = names.iter().map(|&path| (path, 4, 4)).collect();
    let mut model = model(&weights, vec![QuantizationRule::new(".*").weight_qtype("int8")]);
    let mut params = Params::new();
    for (i, (name, path)) in names.iter().zip(&paths).enumerate() {
        for parameter in model.graph.parameters.iter_mut().filter(|p| p.path == Path::new(name)) {
            parameter.path = Path::new(path);
            if let Some(qwix_graph::Slot::Weight(slot)) = &mut parameter.slot {
                slot.source = Path::new(path);
            }
        }
        params.insert(Path::new(path), values(i, 4, 4).into());
    }
    let page = report(&model, &params, 1, u64::MAX).to_html();
    assert!(
        page.contains("&lt;script&gt;alert(*)/*/w") && page.contains("&lt;script&gt;alert(1)/0/w"),
        "{page}"
    );
    let mut wrong = Vec::new();
    for (what, count) in
        [("<script", 1), ("</script", 1), ("http", 0), ("src=", 0), ("url(", 0), ("import", 0)]
    {
        if page.matches(what).count() != count {
            wrong.push(format!("`{what}` stands {} times", page.matches(what).count()));
        }
    }
    for raw in ["\"onload", "lt;'c'", "\u{202e}", "\u{7}"] {
        if page.contains(raw) {
            wrong.push(format!("{raw:?} stands there as it is"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_report_of_the_digits_is_whole() {
    let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let float = qwix::Model::load(folder.join("model.hlo.pb")).unwrap();
    let params = Checkpoint::open(folder.join("params.safetensors")).unwrap().read_all().unwrap();
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")];
    let model = quantize_model(&float, &PtqProvider::new(rules).unwrap()).unwrap();
    let report = report(&model, &params, 2, u64::MAX);
    assert_eq!(report.totals().bytes_before, qwix::bytes_of_variables(&float));
    assert_eq!(report.totals().bytes_after, qwix::bytes_of_variables(&model.graph));
    let template = model.abstract_params();
    let unseen = ReportBuilder::new(&template).finish().unwrap();
    assert_eq!((unseen.unseen(), unseen.totals()), (4, report.totals()));
    assert!(
        unseen.worst_first().is_empty()
            && unseen.to_html().contains("4 quantized parameters were not looked at")
    );
}
