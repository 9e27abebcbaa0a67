//! Shardings through files, passes and quantized types.

use std::path::PathBuf;

use qwix_graph::passes::{lower_quant, without_shardings};
use qwix_graph::{Graph, Op, Sharding};

fn golden(model: &str, spread: &str) -> Graph {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/sharded");
    let bytes = std::fs::read(root.join(model).join(format!("{spread}.hlo.pb"))).unwrap();
    Graph::from_hlo_proto(&bytes).unwrap()
}

fn constraints(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let of = |node: &qwix_graph::Node| match &node.op {
        Op::Sharding { open } => {
            Some((node.sharding.as_ref().map(Sharding::to_string).unwrap_or_default(), open.clone()))
        }
        _ => None,
    };
    graph.entry.nodes.iter().filter_map(of).collect()
}

#[test]
fn both_of_jaxs_partitioners_are_read_alike_and_written() {
    let constrained = [
        ("{devices=[2,4]<=[8]}".to_owned(), vec![]),
        ("{devices=[2,1,4]<=[8] last_tile_dim_replicate}".to_owned(), vec![1]),
    ];
    for spread in ["both8", "gspmd8"] {
        let graph = golden("mlp", spread);
        assert_eq!(graph.device_count().unwrap(), Some(8), "{spread}");
        assert_eq!(constraints(&graph), constrained, "{spread}");
        let text = graph.to_text(Default::default());
        let read = Graph::from_text(&text).unwrap();
        let written = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
        // Ids are given anew.
        let said = |graph: &Graph| -> Vec<_> {
            let nodes = graph.entry.nodes.iter();
            nodes.map(|node| (node.name.clone(), node.op.clone(), node.sharding.clone())).collect()
        };
        assert!(said(&read) == said(&graph), "{spread}");
        assert!(said(&written) == said(&graph), "{spread}");
    }
}

#[test]
fn without_shardings_nothing_is_left_of_them() {
    for (model, spread) in [("mlp", "tp4"), ("decoder", "both8"), ("stack", "tp8")] {
        let graph = golden(model, spread);
        let plain = without_shardings(&graph);
        plain.verify().unwrap();
        assert_eq!(plain.device_count().unwrap(), None, "{model}");
        let text = plain.to_text(Default::default());
        assert!(!text.contains("harding="), "{model}: {text}");
        assert!(!text.contains("custom_call_target=\"Sharding\""), "{model}: {text}");
        let types = |graph: &Graph| graph.entry.node(graph.entry.root).ty.clone();
        assert_eq!(types(&plain), types(&graph), "{model}");
    }
}

#[test]
fn parts_of_quantized_arrays_get_what_fits_them() {
    let q = "q[int4 f32[8,6] {tile 2,channelwise} minmax]";
    let text = format!(
        "HloModule m

ENTRY main {{
  x = f32[4,8] parameter(0)
  w = {q} parameter(1), sharding={{devices=[4,2]<=[8]}}
  t = (f32[4,8], {q}) tuple(x, w), sharding={{{{replicated}}, {{devices=[8,1]<=[8]}}}}
  g = {q} get-tuple-element(t), index=1
  s = {q} custom-call(g), custom_call_target=\"Sharding\", sharding={{devices=[2,2,2]<=[8] last_tile_dim_replicate}}
  d = f32[8,6] dequantize(s), sharding={{devices=[8,1]<=[8]}}
  a = q[int4 f32[4,6] {{tile 2,channelwise}} minmax] slice(w), slice={{[0:4], [0:6]}}, sharding={{devices=[1,2,4]<=[8] last_tile_dim_replicate}}
  y = f32[4,6] dot(x, s), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, sharding={{devices=[4,2]<=[8]}}
  ROOT r = (f32[4,6], f32[8,6]) tuple(y, d)
}}
"
    );
    let graph = Graph::from_text(&text).unwrap();
    let again = Graph::from_text(&graph.to_text(Default::default())).unwrap();
    assert_eq!(again.to_text(Default::default()), graph.to_text(Default::default()));
    let lowered = lower_quant(&graph).unwrap();
    assert_eq!(lowered.device_count().unwrap(), Some(8));
    let sharding = |name: &str| {
        let node = lowered.entry.nodes.iter().find(|node| node.name == name).expect(name);
        (node.ty.to_string(), node.sharding.as_ref().map(ToString::to_string).unwrap_or_default())
    };
    let tiles = "{devices=[4,2]<=[8]}";
    // Four scales do not divide by eight: they are whole.
    let tuple = "{{replicated}, {devices=[8,1]<=[8]}, {replicated}, {replicated}}";
    let rows = [
        ("w.qvalue", "s4[8,6]", tiles),
        ("w.scale", "f32[4,6]", tiles),
        ("w.zero_point", "s4[4,6]", tiles),
        ("t", "(f32[4,8], (s4[8,6], f32[4,6], s4[4,6]))", tuple),
        ("y", "f32[4,6]", tiles),
        ("d", "f32[8,6]", "{devices=[8,1]<=[8]}"),
    ];
    for (name, ty, expected) in rows {
        assert_eq!(sharding(name), (ty.to_owned(), expected.to_owned()), "{name}");
    }
    let constrained = "{devices=[2,2,2]<=[8] last_tile_dim_replicate}".to_owned();
    assert_eq!(constraints(&lowered), vec![(constrained, vec![]); 3]);
    let slices = lowered.entry.nodes.iter().filter(|node| matches!(node.op, Op::Slice(_)));
    let slices: Vec<_> = slices.map(|node| node.sharding.as_ref().map(ToString::to_string)).collect();
    assert_eq!(slices, vec![Some("{devices=[1,2,4]<=[8] last_tile_dim_replicate}".to_owned()); 3]);
}

#[test]
fn a_constraint_of_axes_that_are_not_there_is_refused() {
    let text = "HloModule m

ENTRY main {
  x = f32[4] parameter(0)
  ROOT y = f32[4] custom-call(x), custom_call_target=\"Sharding\", backend_config=\"unspecified_dims=[1]\", sharding={replicated}
}
";
    let error = Graph::from_text(text).unwrap_err().to_string();
    assert!(error.contains("axis 1 of f32[4]"), "{error}");
}
