//! Reading and checking rules: what is taken, what is refused, and what is warned of.

use qwix_ptq::{Provider, PtqProvider, QuantizationRule, Rules, TileSize};

#[test]
fn json_and_toml_say_the_same() {
    let json = r#"[
        {"module_path": ".*attn.*", "op_names": ["dot_general", "einsum"], "weight_qtype": "int4", "tile_size": 32},
        {"weight_qtype": "int8", "act_qtype": "int8", "tile_size": 0.25, "act_calibration_method": "absmax,0.9",
         "weight_calibration_method": "rms,3", "act_batch_axes": [0, 1], "act_static_scale": null},
        {"module_path": "head", "weight_qtype": null}
    ]"#;
    let toml = r#"
        [[rules]]
        module_path = ".*attn.*"
        op_names = ["dot_general", "einsum"]
        weight_qtype = "int4"
        tile_size = 32
        [[rules]]
        weight_qtype = "int8"
        act_qtype = "int8"
        tile_size = 0.25
        act_calibration_method = "absmax,0.9"
        weight_calibration_method = "rms,3"
        act_batch_axes = [0, 1]
        [[rules]]
        module_path = "head"
    "#;
    let wanted = vec![
        QuantizationRule::new(".*attn.*")
            .op_names(["dot_general", "einsum"])
            .weight_qtype("int4")
            .tile_size(32),
        QuantizationRule::new(".*")
            .weight_qtype("int8")
            .act_qtype("int8")
            .tile_size(0.25)
            .act_calibration_method("absmax,0.9")
            .weight_calibration_method("rms,3")
            .act_batch_axes([0, 1]),
        QuantizationRule::new("head"),
    ];
    assert_eq!(QuantizationRule::from_json(json).unwrap(), wanted);
    assert_eq!(QuantizationRule::from_json(&format!("{{\"rules\": {json}}}")).unwrap(), wanted);
    assert_eq!(QuantizationRule::from_toml(toml).unwrap(), wanted);
    let written = serde_json::to_string(&wanted).unwrap();
    assert_eq!(QuantizationRule::from_json(&written).unwrap(), wanted, "{written}");
}

/// Each text with the words that its error must have.
#[test]
fn errors_of_reading_name_the_place() {
    let mut failures = vec![];
    for (text, words) in [
        (r#"[{"weight_qtyp": "int8"}]"#, &["rules[0].weight_qtyp", "weight_qtype"][..]),
        (r#"[{}, {"modulepath": "a"}]"#, &["rules[1].modulepath", "module_path"]),
        (r#"[{"zzzzzzzz": 1}]"#, &["rules[0].zzzzzzzz", "fields are"]),
        (r#"[{"op_names": "einsum"}]"#, &["rules[0].op_names", "a list"]),
        (r#"[{"op_names": [1]}]"#, &["rules[0].op_names"]),
        (r#"[{"tile_size": "32"}]"#, &["rules[0].tile_size", "a number"]),
        (r#"[{"tile_size": true}]"#, &["rules[0].tile_size", "a number", "true"]),
        (r#"[{"act_static_scale": 1}]"#, &["rules[0].act_static_scale", "true or false"]),
        (r#"[{"act_batch_axes": [0.5]}]"#, &["rules[0].act_batch_axes"]),
        (r#"[{"weight_qtype": 8}]"#, &["rules[0].weight_qtype", "found 8"]),
        (r#"[{"weight_qtype": "int8", "weight_qtype": "int4"}]"#, &["weight_qtype", "twice", "[0]"]),
        (r#"[1]"#, &["rules[0]", "an object"]),
        (r#"{"rule": []}"#, &["`rule`", "`rules`"]),
        (r#"{"weight_qtype": "int8"}"#, &["`weight_qtype`", "list"]),
        (r#"{}"#, &["rules"]),
        (r#""int8""#, &["a list of rules"]),
        (r#"[{"a": }]"#, &["line 1"]),
        ("", &["EOF"]),
    ] {
        match QuantizationRule::from_json(text) {
            Ok(rules) => failures.push(format!("{text} was taken as {rules:?}")),
            Err(e) => {
                let message = e.to_string();
                failures.extend(
                    words
                        .iter()
                        .filter(|w| !message.contains(*w))
                        .map(|w| format!("{text}: no {w:?} in {message:?}")),
                );
            }
        }
    }
    for (text, words) in [
        ("rules = 1", &["a list", "1"][..]),
        ("[[rules]]\nweight_qtyp = 'int8'", &["rules[0].weight_qtyp", "weight_qtype"]),
        ("[[rules]]\ntile_size = nan", &["NaN"]),
        ("[[rules]]\ntile_size = inf", &["inf"]),
        ("[[rules]]\nmodule_path = 2020-01-01", &["2020-01-01"]),
        ("[[rules]]\nmodule_path = 'a\n", &["line 2"]),
        ("[[rules]]\na = 1\na = 2", &["line 3"]),
    ] {
        match QuantizationRule::from_toml(text) {
            Ok(rules) => failures.push(format!("{text} was taken as {rules:?}")),
            Err(e) => {
                let message = e.to_string();
                failures.extend(
                    words
                        .iter()
                        .filter(|w| !message.contains(*w))
                        .map(|w| format!("{text}: no {w:?} in {message:?}")),
                );
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn w8() -> QuantizationRule {
    QuantizationRule::new(".*").weight_qtype("int8")
}

#[test]
fn nonsense_is_refused() {
    let rows: Vec<(QuantizationRule, &[&str])> = vec![
        (QuantizationRule::new(".*").weight_qtype("uint8"), &["rules[1].weight_qtype", "uint8", "unsigned"]),
        (QuantizationRule::new(".*").weight_qtype("float8_e8m0fnu"), &["weight_qtype", "e8m0"]),
        (w8().act_qtype("bfloat16"), &["rules[1].act_qtype", "leave the field out"]),
        (w8().act_qtype("bf16"), &["rules[1].act_qtype"]),
        (QuantizationRule::new(".*").weight_qtype("int9"), &["weight_qtype", "int9", "did you mean"]),
        (QuantizationRule::new("(").weight_qtype("int8"), &["rules[1].module_path", "`(`"]),
        (w8().tile_size(0), &["rules[1].tile_size", "0"]),
        (w8().tile_size(-32), &["tile_size", "-32"]),
        (w8().tile_size(0.0), &["tile_size", "0.0"]),
        (w8().tile_size(1.5), &["tile_size", "1.5"]),
        (w8().tile_size(-0.5), &["tile_size"]),
        (w8().tile_size(f64::NAN), &["tile_size", "NaN"]),
        (w8().tile_size(f64::INFINITY), &["tile_size"]),
        (w8().weight_calibration_method("max"), &["weight_calibration_method", "max"]),
        (w8().weight_calibration_method("rms"), &["weight_calibration_method", "rms"]),
        (w8().weight_calibration_method("absmax,nan"), &["weight_calibration_method"]),
        (w8().weight_calibration_method("fixed,1,2"), &["weight_calibration_method"]),
        (w8().act_qtype("int8").act_calibration_method("percentile,99"), &["act_calibration_method"]),
        (w8().act_static_scale(true), &["act_static_scale", "act_qtype"]),
        (w8().act_static_scale(false), &["act_static_scale", "act_qtype"]),
        (
            w8().act_qtype("int8").act_static_scale(true).act_batch_axes([0, 1, 0]),
            &["act_batch_axes", "twice"],
        ),
        (
            QuantizationRule::new(".*").weight_qtype("nf4").weight_calibration_method("minmax"),
            &["weight_calibration_method", "nf4", "asymmetric"],
        ),
        (QuantizationRule::new(".*").weight_qtype("mxfp8").tile_size(64), &["tile_size", "32", "64"]),
    ];
    let mut failures = vec![];
    for (rule, words) in rows {
        match Rules::new(vec![w8(), rule.clone()]) {
            Ok(_) => failures.push(format!("taken: {rule:?}")),
            Err(e) => {
                let message = e.to_string();
                failures.extend(
                    words
                        .iter()
                        .filter(|w| !message.contains(*w))
                        .map(|w| format!("no {w:?} in {message:?}")),
                );
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_has_no_effect_is_warned_of() {
    let rows: Vec<(QuantizationRule, &[&str])> = vec![
        (w8(), &[]),
        (w8().act_qtype("int8").act_static_scale(false), &[]),
        (w8().tile_size(1), &[]),
        (w8().tile_size(1.0), &[]),
        (QuantizationRule::new(".*"), &[]),
        (QuantizationRule::new(".*").weight_qtype("mxfp4"), &[]),
        (QuantizationRule::new(".*").act_qtype("int8"), &["rules[0].act_qtype"]),
        (QuantizationRule::new(".*").tile_size(32), &["rules[0].tile_size"]),
        (
            QuantizationRule::new(".*").weight_calibration_method("rms,3"),
            &["rules[0].weight_calibration_method"],
        ),
        (w8().act_calibration_method("minmax"), &["rules[0].act_calibration_method"]),
        (w8().act_qtype("int8").act_batch_axes([0, 1]), &["rules[0].act_batch_axes"]),
        (w8().op_names(["conv"]), &["rules[0].op_names"]),
    ];
    let mut failures = vec![];
    for (rule, wanted) in rows {
        match PtqProvider::new(vec![rule.clone()]) {
            Err(e) => failures.push(e.to_string()),
            Ok(provider) => {
                let about: Vec<&str> = provider.rules().warnings().iter().map(|w| w.about.as_str()).collect();
                if about != wanted {
                    failures.push(format!("{rule:?}: {about:?}, not {wanted:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(Rules::new(vec![]).unwrap().warnings().len(), 1);
}

#[test]
fn the_first_rule_that_matches_goes() {
    let rules = Rules::new(vec![
        QuantizationRule::new(r"layers_\d/.*").op_names(["einsum"]).weight_qtype("int8"),
        QuantizationRule::new(r"(?!.*head).*").weight_qtype("int4"),
    ])
    .unwrap();
    for (path, op, wanted) in [
        ("layers_0/attn", "einsum", Some(0)),
        ("layers_0/attn", "dot_general", Some(1)),
        ("layers_10/attn", "einsum", Some(1)),
        ("head", "einsum", None),
        ("", "dot_general", Some(1)),
    ] {
        assert_eq!(rules.find(path, op).unwrap(), wanted, "{path} {op}");
    }
    let endless = Rules::new(vec![QuantizationRule::new(r"(?!x)((a+)+)\2b").weight_qtype("int8")]).unwrap();
    let message = endless.find(&"a".repeat(64), "einsum").unwrap_err().to_string();
    assert!(message.contains("rules[0].module_path") && message.contains("backtracks"), "{message}");
    assert_eq!(TileSize::from(3), TileSize::Elements(3));
}
