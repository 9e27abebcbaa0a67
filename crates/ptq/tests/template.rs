//! Templates: how they print, that they cost no memory, and what they say of parameters that are not all there.

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::{Graph, GraphBuilder, Path, Type};
use qwix_ptq::{
    PtqError, PtqProvider, QuantizationRule, Template, Unfinished, quantize_model, quantize_param,
    quantize_params,
};
use qwix_quant::DotDims;

fn template(graph: &Graph, rules: Vec<QuantizationRule>) -> Template {
    quantize_model(graph, &PtqProvider::new(rules).unwrap()).unwrap().abstract_params()
}

fn w8() -> Vec<QuantizationRule> {
    vec![QuantizationRule::new(".*").weight_qtype("int8")]
}

/// `layers` products of `width` × `width`.
fn chain(layers: usize, width: usize) -> Graph {
    let mut b = GraphBuilder::new("chain");
    let mut x = b.input("x", Type::array(DType::F32, [2, width])).unwrap();
    for layer in 0..layers {
        let ty = Type::array(DType::F32, [width, width]);
        let w = b.variable(&format!("layers/{layer}/kernel"), ty).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        x = b.dot(x, w, &dims, DType::F32).unwrap();
    }
    b.finish(x).unwrap()
}

#[test]
fn a_template_prints_as_a_tree() {
    let rules = vec![
        QuantizationRule::new("Dense_1")
            .weight_qtype("int4")
            .tile_size(8)
            .weight_calibration_method("minmax"),
        QuantizationRule::new("Dense_2"),
        QuantizationRule::new(".*").weight_qtype("int8"),
    ];
    let text = template(&common::model("linen_mlp").unwrap(), rules).to_string();
    let wanted = "\
Dense_0
  bias    f32[32]                                             128 B
  kernel  int8[16,32]  scale f32[1,32]                        640 B  {_,channelwise} absmax
Dense_1
  bias    f32[32]                                             128 B
  kernel  int4[32,32]  scale f32[4,32]  zero point s4[4,32]  1.1 kB  {tile 8,channelwise} minmax
Dense_2
  bias    f32[8]                                               32 B
  kernel  f32[32,8]                                          1.0 kB
2 of 6 parameters quantized, 3.0 kB, made from 7.5 kB
";
    assert_eq!(text, wanted, "found:\n{text}");
    let tied = template(&common::model("decoder_step").unwrap(), w8()).to_string();
    let line = tied.lines().find(|l| l.contains("embedding@dot_general0")).unwrap();
    assert!(line.contains("int8[16,24]") && line.ends_with("from embedder/embedding f32[24,16]"), "{line}");
}

/// A hundred matrices of four terabytes each: whatever allocated one of them would fail.
#[test]
fn a_template_costs_no_memory() {
    let template = template(&chain(100, 1 << 20), w8());
    assert_eq!(template.parameters().len(), 100);
    let text = template.to_string();
    assert!(text.contains("int8[1048576,1048576]") && text.contains("1.1 TB"), "{}", &text[..200]);
    assert!(text.ends_with("100 of 100 parameters quantized, 110.0 TB, made from 439.8 TB\n"), "{text}");
    assert_eq!(template.float_bytes(&Path::new("layers/7/kernel")), 4 << 40);
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak: u64 = peak.unwrap().trim().parse().unwrap();
        assert!(peak < 500_000, "{peak} kB");
    }
}

/// Copies count where data is moved before it is quantized.
#[test]
fn float_bytes_count_the_copies() {
    let template = template(&common::model("weight_views").unwrap(), w8());
    let mut wrong = vec![];
    for path in template.sources() {
        let own = template.source_type(path).unwrap().byte_len().unwrap() as u64;
        let moved = template
            .made_of(path)
            .filter_map(|p| p.slot.as_ref()?.as_weight())
            .any(|slot| slot.prep.iter().any(|p| !matches!(p, qwix_graph::Prep::Reshape(_))));
        let found = template.float_bytes(path);
        if (found > own) != moved || found > 3 * own {
            wrong.push(format!("{path}: {found} for {own}, moved: {moved}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let moved: Vec<u64> = template.sources().map(|p| template.float_bytes(p)).collect();
    assert!(moved.iter().sum::<u64>() > 0);
}

#[test]
fn finish_lists_what_is_missing() {
    let template = template(&common::model("linen_mlp").unwrap(), w8());
    let all = quantize_params(&common::params("linen_mlp"), &template, None).unwrap();
    assert_eq!(template.finish(all.clone()).unwrap(), all);

    let without = |paths: &[&str]| {
        let mut params = all.clone();
        params.retain(|path, _| !paths.contains(&path.as_str()));
        params
    };
    let rows: Vec<(Params, &str)> = vec![
        (without(&["Dense_1/bias"]), "1 of 6 parameters missing: `Dense_1/bias`"),
        (
            without(&["Dense_1/bias", "Dense_1/kernel", "Dense_2/kernel"]),
            "3 of 6 parameters missing: `Dense_1` (2 parameters), `Dense_2/kernel`",
        ),
        (
            Params::new(),
            "6 of 6 parameters missing: `Dense_0` (2 parameters), `Dense_1` (2 parameters), `Dense_2` (2 parameters)",
        ),
        (common::params("linen_mlp"), "parameter `Dense_0/kernel`: expected q[int8"),
        (
            without(&[]).into_iter().map(|(p, v)| (Path::new("params").join(p.as_str()), v)).collect(),
            "parameter `params/Dense_0/bias` is not one of the model's; did you mean `Dense_0/bias`?",
        ),
    ];
    let mut wrong = vec![];
    for (params, expected) in rows {
        match template.finish(params.clone()) {
            Ok(_) => wrong.push(format!("{expected}: taken")),
            Err(Unfinished { params: back, reason }) => {
                if back != params {
                    wrong.push(format!("{expected}: the parameters were lost"));
                }
                if !reason.to_string().starts_with(expected) {
                    wrong.push(format!("expected {expected}\nfound    {reason}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn thousands_of_missing_parameters_fit_a_line() {
    let template = template(&chain(5000, 4), w8());
    let message = template.finish(Params::new()).unwrap_err().to_string();
    assert_eq!(message, "5000 of 5000 parameters missing: `layers` (5000 parameters)");

    // Every second layer: no module lacks all.
    let made = template.sources().step_by(2).map(|path| {
        let weight = Array::from_vec(&[4, 4], vec![0.5f32; 16]).unwrap();
        quantize_param(&template, path, &weight).unwrap()
    });
    let half: Params = made.flatten().collect();
    let unfinished = template.finish(half).unwrap_err();
    let message = unfinished.to_string();
    assert!(message.starts_with("2500 of 5000 parameters missing: `layers/1/kernel`, "), "{message}");
    assert!(message.ends_with("and 2492 elsewhere") && message.len() < 300, "{message}");
    let PtqError::MissingParams { missing, .. } = *unfinished.reason else { panic!("{message}") };
    assert_eq!(missing.len(), 2500);
}

/// Tensor by tensor backwards, and module by module, over every golden case: the same bytes as all at once.
#[test]
fn parts_in_any_order_are_the_whole() {
    let (mut cases, mut wrong) = (0, vec![]);
    for (name, folder) in common::folders("cases") {
        let case = common::json(&folder.join("case.json"));
        let model = case["model"].as_str().unwrap();
        let rules = std::fs::read_to_string(folder.join("rules.json")).unwrap();
        let rules = QuantizationRule::from_json(&rules).unwrap();
        let mut graph = common::model(model).unwrap();
        let params = common::params(model);
        graph.resolve_roles(&params.keys().cloned().collect());
        let Ok(quantized) = quantize_model(&graph, &PtqProvider::new(rules).unwrap()) else { continue };
        cases += 1;
        let template = quantized.abstract_params();
        let whole = quantize_params(&params, &template, None).unwrap();

        let mut backwards = Params::new();
        for (path, value) in params.iter().rev() {
            let Value::Array(array) = value else { panic!("{name}: {path} is no array") };
            backwards.extend(quantize_param(&template, path, array).unwrap());
        }
        let mut by_module = Params::new();
        let modules: std::collections::BTreeSet<Path> = params.keys().map(Path::parent).collect();
        for module in modules.iter().rev() {
            let subtree = params.iter().filter(|(p, _)| p.parent() == *module);
            let subtree: Params = subtree.map(|(p, v)| (p.clone(), v.clone())).collect();
            by_module.extend(quantize_params(&subtree, &template, None).unwrap());
        }
        for (how, parts) in [("tensor by tensor", backwards), ("module by module", by_module)] {
            if template.finish(parts).as_ref() != Ok(&whole) {
                wrong.push(format!("{name}, {how}"));
            }
        }
    }
    assert!(cases > 100, "only {cases} cases");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
