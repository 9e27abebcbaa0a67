//! The shape of lowered graphs: signature, names, and what is refused. That they compute the same is tested with the
//! evaluator.

use qwix_array::DType;
use qwix_graph::passes::lower_quant;
use qwix_graph::*;

fn lowered(body: &str) -> Result<Graph, GraphError> {
    let graph = Graph::from_text(&format!(
        "HloModule m, frontend_attributes={{qwix=\"1\"}}\nENTRY e {{\n{body}\n}}\n"
    ))?;
    lower_quant(&graph)
}

#[test]
fn a_quantized_parameter_becomes_its_parts() {
    let graph = lowered(
        r#"
        w = q[int8 f32[8,4] {_,channelwise} minmax] parameter(1), frontend_attributes={path="Dense_0/kernel",role="variable",source="Dense_0/kernel",source_type="f32[8,4]"}
        x = f32[2,8] parameter(0), frontend_attributes={path="x",role="input"}
        b = f32[4] parameter(2), frontend_attributes={path="Dense_0/bias",role="variable"}
        q = q[int8 f32[2,8] {channelwise,_} absmax] quantize(x), metadata={op_name="jit(f)/Dense_0/dot_general"}
        y = f32[2,4] dot(q, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/Dense_0/dot_general"} /*id=5*/
        c = f32[2,4] broadcast(b), dimensions={1}
        ROOT z = f32[2,4] add(y, c)"#,
    )
    .unwrap();
    let signature: Vec<String> =
        graph.parameters.iter().map(|p| format!("{:?} {} {}", p.role, p.path, p.ty)).collect();
    assert_eq!(
        signature,
        [
            "Input x f32[2,8]",
            "Variable Dense_0/kernel/qvalue s8[8,4]",
            "Variable Dense_0/kernel/scale f32[1,4]",
            "Variable Dense_0/kernel/zero_point s8[1,4]",
            "Variable Dense_0/bias f32[4]",
        ]
    );
    // What had a name keeps it, with its id; what is new has the scope of what it is for.
    let y = graph.entry.nodes.iter().find(|n| n.name == "y").unwrap();
    assert_eq!((y.ty.to_string(), y.metadata.id), ("f32[2,4]".to_owned(), 5));
    let dots: Vec<&Node> = graph.entry.nodes.iter().filter(|n| matches!(n.op, Op::Dot(_))).collect();
    assert_eq!(dots.len(), 2, "the product and the zero point's share");
    for dot in dots {
        assert_eq!(dot.ty, Type::array(DType::S32, [2, 4]));
        assert_eq!(dot.metadata.op_name, "jit(f)/Dense_0/dot_general");
    }
}

#[test]
fn a_graph_without_quantized_types_stays_as_it_is() {
    let graph = Graph::from_text(
        "HloModule m\nENTRY e {\n x = f32[2] parameter(0)\n t = (f32[2], f32[2]) tuple(x, x)\n ROOT y = f32[2] get-tuple-element(t), index=1\n}\n",
    )
    .unwrap();
    assert_eq!(lower_quant(&graph).unwrap(), graph);
}

#[test]
fn products_that_cannot_be_are_refused_by_name() {
    let error = lowered(
        r#"
        x = f32[2,8] parameter(0), frontend_attributes={path="x",role="input"}
        w = f32[8,4] parameter(1), frontend_attributes={path="w",role="variable"}
        p = q[int8 f32[2,8] {channelwise,_} minmax] quantize(x)
        q = q[int8 f32[8,4] {_,channelwise} minmax] quantize(w)
        ROOT y = f32[2,4] dot(p, q), lhs_contracting_dims={1}, rhs_contracting_dims={0}"#,
    )
    .unwrap_err()
    .to_string();
    assert!(error.starts_with("`y` (dot) in `e`: dot: both sides are quantized asymmetrically"), "{error}");
}
