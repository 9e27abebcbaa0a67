//! What becomes of the sharding of a weight that is quantized.

use qwix_graph::{Graph, Op};
use qwix_ptq::{Outcome, PtqProvider, QuantizationRule, explain, quantize_model};

/// x · f(w), with w of f32[8,12] over four devices, and f as given.
fn model(sharding: &str, steps: &str) -> Graph {
    let text = format!(
        "HloModule m

ENTRY main {{
  x = f32[3,6] parameter(0), metadata={{op_name=\"x\"}}
  w = f32[8,12] parameter(1), sharding={sharding}, metadata={{op_name=\"params['dense']['w']\"}}
{steps}
  ROOT y = f32[3,16] dot(x, k), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"
    );
    Graph::from_text(&text).unwrap()
}

#[test]
fn it_follows_the_steps_to_the_product_or_it_is_said_why_not() {
    let rows = [
        (
            "{devices=[4,1]<=[4]}",
            "  r = f32[16,6] reshape(w)
  k = f32[6,16] transpose(r), dimensions={1,0}",
            "{devices=[1,4]<=[4]}",
            None,
            None,
        ),
        (
            "{devices=[1,4]<=[4]}",
            "  r = f32[16,6] reshape(w)
  k = f32[6,16] transpose(r), dimensions={1,0}",
            "{replicated}",
            Some("a reshape of [8, 12] to [16, 6] cuts through the tiles of {devices=[1,4]<=[4]}"),
            None,
        ),
        // A constraint on the way goes along.
        (
            "{devices=[4,1]<=[4]}",
            "  c = f32[8,12] custom-call(w), custom_call_target=\"Sharding\", sharding={devices=[2,1,2]<=[4] last_tile_dim_replicate}
  r = f32[16,6] reshape(c)
  k = f32[6,16] transpose(r), dimensions={1,0}",
            "{devices=[1,4]<=[4]}",
            None,
            Some("{devices=[1,2,2]<=[4] last_tile_dim_replicate}"),
        ),
    ];
    for (sharding, steps, stored, warning, constraint) in rows {
        let graph = model(sharding, steps);
        let rules = r#"[{"weight_qtype": "int8", "act_qtype": "int8"}]"#;
        let provider = PtqProvider::new(QuantizationRule::from_json(rules).unwrap()).unwrap();
        let report = explain(&graph, &provider).unwrap();
        let Outcome::Quantized { lhs, rhs, .. } = &report.sites[0].outcome else {
            panic!("{:?}", report.sites[0])
        };
        assert_eq!((lhs.sharding.as_deref(), rhs.sharding.as_deref()), (None, Some(stored)), "{steps}");
        let warnings: Vec<_> = report.warnings.iter().map(ToString::to_string).collect();
        match warning {
            Some(warning) => assert!(warnings[0].contains(warning), "{warnings:?}"),
            None => assert!(warnings.is_empty(), "{warnings:?}"),
        }
        let quantized = quantize_model(&graph, &provider).unwrap().graph;
        let find = |wanted: &dyn Fn(&Op) -> bool| {
            let node = quantized.entry.nodes.iter().find(|node| wanted(&node.op));
            node.map(|node| node.sharding.as_ref().unwrap().to_string())
        };
        let weight = quantized.variables().next().unwrap().0;
        assert_eq!(find(&|op| *op == Op::Parameter(weight)).as_deref(), Some(stored), "{steps}");
        assert_eq!(find(&|op| matches!(op, Op::Sharding { .. })).as_deref(), constraint, "{steps}");
    }
}
