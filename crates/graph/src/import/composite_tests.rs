//! Files of quantized graphs: what comes back, and what is refused by name when somebody changed them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prost::Message as _;

use super::mutations::{Random, change};
use crate::passes::lower_quant;
use crate::proto::*;
use crate::{Graph, Op};

/// One of each: parameters of both kinds, static and found ranges, products on both sides, a loop over a stack, data
/// movement.
const QUANTIZED: &str = r#"HloModule m, frontend_attributes={qwix="1"}

%body (s: (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax])) -> (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax]) {
  s = (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax]) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  x = f32[2,4] get-tuple-element(s), index=1
  w = q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax] get-tuple-element(s), index=2
  zero = s32[] constant(0)
  one = s32[] constant(1)
  cut = q[int8 f32[1,4,4] {channelwise,_,channelwise} absmax] dynamic-slice(w, i, zero, zero), dynamic_slice_sizes={1,4,4}
  flat = q[int8 f32[4,4] {_,channelwise} absmax] reshape(cut)
  q = q[int8 f32[2,4] {channelwise,_} absmax] quantize(x)
  y = f32[2,4] dot(q, flat), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  j = s32[] add(i, one)
  ROOT next = (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax]) tuple(j, y, w)
}

%cond (t: (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax])) -> pred[] {
  t = (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax]) parameter(0)
  k = s32[] get-tuple-element(t), index=0
  three = s32[] constant(3)
  ROOT less = pred[] compare(k, three), direction=LT
}

ENTRY e {
  x = f32[2,8] parameter(0), frontend_attributes={path="x",role="input",ambiguous="true"}, metadata={op_name="p['x']"}
  w = q[int8 f32[8,4] {_,channelwise} minmax] parameter(1), frontend_attributes={path="Dense_0/kernel",role="variable",key="variables/params/Dense_0/kernel",source="Dense_0/kernel",source_type="f32[4,8]",prep="transpose{1,0}"}, metadata={op_name="variables['params']['Dense_0']['kernel']"}
  s = f32[2,1] parameter(2), frontend_attributes={path="Dense_0/dot_general0_lhs_scale",role="variable",statistics="Dense_0/dot_general0_lhs",part="scale int8 symmetric"}
  stack = q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax] parameter(3), frontend_attributes={path="stack",role="variable",source="stack",source_type="f32[3,4,4]"}
  n = q[nf4 f32[4,6] {tile 2,channelwise} absmax] parameter(4), frontend_attributes={path="n",role="variable",source="n",source_type="f32[4,6]"}
  a = q[int8 f32[2,8] {channelwise,_} absmax] quantize(x, s), metadata={op_name="jit(f)/Dense_0/dot_general"}
  b = f32[2,4] dot(a, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/Dense_0/dot_general"}
  zero = s32[] constant(0)
  state = (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax]) tuple(zero, b, stack)
  loop = (s32[], f32[2,4], q[int8 f32[3,4,4] {channelwise,_,channelwise} absmax]) while(state), condition=%cond, body=%body
  c = f32[2,4] get-tuple-element(loop), index=1
  d = q[int8 f32[2,4] {channelwise,_} minmax] quantize(c)
  e = f32[2,4] dequantize(d)
  f = q[nf4 f32[2,6] {tile 1,channelwise} absmax] slice(n), slice={[0:2], [0:6]}
  g = f32[2,6] dequantize(f)
  h = f32[2,6] dot(e, n), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT r = f32[2,6] add(g, h)
}
"#;

fn quantized() -> Graph {
    // `f` keeps tiles of the size that they had.
    let text = QUANTIZED.replace("f32[2,6] {tile 1,", "f32[2,6] {tile 2,");
    Graph::from_text(&text).unwrap()
}

fn written(graph: &Graph) -> HloModuleProto {
    HloModuleProto::decode(&*graph.to_hlo_proto().unwrap()).unwrap()
}

fn read(module: &HloModuleProto) -> Result<Graph, String> {
    Graph::from_hlo_proto(&module.encode_to_vec()).map_err(|error| error.to_string())
}

fn instructions(module: &mut HloModuleProto) -> impl Iterator<Item = &mut HloInstructionProto> {
    module.computations.iter_mut().flat_map(|computation| &mut computation.instructions)
}

fn attributes(instruction: &mut HloInstructionProto) -> Option<&mut BTreeMap<String, String>> {
    instruction.frontend_attributes.as_mut().map(|attributes| &mut attributes.map)
}

/// The attributes of the first composite of a name, or of the parameter that has a text.
fn of<'m>(module: &'m mut HloModuleProto, text: &str) -> &'m mut BTreeMap<String, String> {
    let mut found = instructions(module).filter_map(attributes);
    found.find(|map| map.values().any(|value| value == text)).unwrap()
}

#[test]
fn a_quantized_graph_comes_back() {
    let graph = quantized();
    let back = read(&written(&graph)).unwrap();
    assert_eq!(back.parameters, graph.parameters);
    let text = |graph: &Graph| graph.to_text(crate::text::TextOptions::default());
    // Names that are unique in the module, and no ids: else the same.
    let plain = |text: String| {
        let lines = text.lines().map(|line| line.split(" /*id=").next().unwrap_or_default().to_owned());
        lines.collect::<Vec<_>>()
    };
    let (found, expected) = (plain(text(&back)), plain(text(&graph)));
    assert_eq!(found.len(), expected.len(), "{}", text(&back));
    let quantized = |lines: &[String]| {
        let ops = ["quantize(", "dequantize(", "dot(", "slice(", "reshape(", "parameter(", "while("];
        let count = |op: &str| lines.iter().filter(|line| line.contains(op)).count();
        ops.map(count)
    };
    assert_eq!(quantized(&found), quantized(&expected), "{}", text(&back));
    assert_eq!(written(&back), written(&graph));
}

#[test]
fn without_our_attributes_it_is_plain_hlo() {
    let graph = quantized();
    let mut module = written(&graph);
    for instruction in instructions(&mut module) {
        instruction.is_composite = false;
        instruction.frontend_attributes = None;
    }
    let plain = read(&module).unwrap();
    let lowered = lower_quant(&graph).unwrap();
    let signature = |graph: &Graph| -> Vec<String> {
        graph.parameters.iter().map(|p| format!("{:?} {} {}", p.role, p.path, p.ty)).collect()
    };
    assert_eq!(signature(&plain)[1..], signature(&lowered)[1..]);
    assert!(plain.parameters.iter().all(|p| p.slot.is_none()));
}

#[test]
fn composites_of_others_are_calls() {
    let mut module = written(&quantized());
    for instruction in instructions(&mut module) {
        if let Some(map) = attributes(instruction) {
            map.retain(|key, _| !key.starts_with("qwix."));
            if let Some(name) = map.get_mut("composite.name") {
                *name = name.replace("qwix.", "theirs.");
            }
        }
    }
    let graph = read(&module).unwrap();
    assert!(!graph.entry.nodes.iter().any(|node| matches!(node.op, Op::Call { .. })));
}

type Change = fn(&mut HloModuleProto);

#[test]
fn what_was_changed_is_refused_by_name() {
    let set = |module: &mut HloModuleProto, of_text: &str, key: &str, value: &str| {
        of(module, of_text).insert(key.to_owned(), value.to_owned());
    };
    const DOT: &str = "qwix.dot";
    const ATTRIBUTES: &str = "composite.attributes";
    let edits: Vec<(&str, &str, &str, &str)> = vec![
        (DOT, "composite.version", "2", "`qwix.dot` is of version 2, this program reads version 1"),
        (DOT, "composite.version", "0", "is of version 0"),
        (DOT, "composite.version", "-1", "expected a number that is not negative"),
        (DOT, "composite.version", "99999999999999999999999", "expected a number that is not negative"),
        (DOT, "composite.name", "qwix.frobnicate", "`qwix.frobnicate` stands for"),
        (DOT, "composite.name", "qwix.dequantize", "which is no such op"),
        (DOT, ATTRIBUTES, "{}", "the attribute `instruction` is missing"),
        (DOT, ATTRIBUTES, "", "`attributes`: line 1"),
        (DOT, ATTRIBUTES, "{instruction = \"", "the string does not end"),
        (DOT, ATTRIBUTES, "{instruction = \"nothing\"}", "`instruction`: line 1"),
        (DOT, ATTRIBUTES, "{instruction = \"f32[2,4] dot(f32[2,8], f32[8,4])\"}", "which is no such op"),
        (DOT, ATTRIBUTES, "{instruction = \"f32[] call(), to_apply=%x\"}", "does not stand above"),
        (DOT, ATTRIBUTES, "{n = 1 : i32}", "expected"),
        (DOT, ATTRIBUTES, "{m = \"1\"}", "`qwix.dot` has no attribute `m`"),
        ("Dense_0/kernel", "qwix.new", "1", "the attribute `qwix.new` is none that this program knows"),
        ("Dense_0/kernel", "qwix.role", "none", "`role` should be variable or input"),
        (
            "Dense_0/kernel",
            "qwix.quantized",
            "q[int8 f32[8,4] {_,_} minmax]",
            "its scale, parameter 2, should be f32[1,1]",
        ),
        ("Dense_0/kernel", "qwix.quantized", "q[int4 f32[8,4] {_,channelwise} minmax]", "should be s4[8,4]"),
        ("Dense_0/kernel", "qwix.quantized", "f32[8,4]", "expected a quantized type"),
        ("Dense_0/kernel", "qwix.quantized", "q[int8 f32[8,4] {tile 3,_} minmax]", "tile"),
        ("Dense_0/kernel", "qwix.quantized", "q[int99 f32[8,4] {_,_} minmax]", "int99"),
        (
            "Dense_0/kernel",
            "qwix.quantized_part",
            "scale",
            "says `qwix.quantized_part` = \"scale\", expected \"qvalue\"",
        ),
        ("Dense_0/kernel", "qwix.source_type", "f32[5,5]", "Dense_0/kernel"),
        ("Dense_0/kernel", "qwix.prep", "somersault", "expected reshape, transpose or slice"),
        ("Dense_0/dot_general0_lhs", "qwix.part", "half", "`part`: expected count"),
        ("x", "qwix.quantized", "q[int8 f32[2,8] {_,_} absmax]", "`qwix.quantized_part` is missing"),
        (
            "x",
            "qwix.quantized_part",
            "scale",
            "is the scale of a quantized parameter, which does not begin with it",
        ),
        ("x", "qwix.path", "stack", ""),
    ];
    let others: Vec<(Change, &str)> = vec![
        (
            |m| drop(of(m, "Dense_0/kernel").remove("qwix.path")),
            "says `qwix.path` = \"Dense_0/kernel\", expected \"nothing\"",
        ),
        (|m| of(m, "x").clear(), "the attribute `qwix.path` is missing, which other parameters have"),
        (|m| drop(of(m, "Dense_0/kernel").remove("qwix.quantized_part")), "`qwix.quantized_part` is missing"),
        // The dot says that it takes another type than it is given, with the same parts.
        (
            |m| {
                for map in instructions(m).filter_map(attributes) {
                    if map.get("composite.name").is_some_and(|name| name == "qwix.dot")
                        && let Some(text) = map.get_mut("composite.attributes")
                    {
                        *text = text.replace("absmax", "rms,3");
                    }
                }
            },
            "`qwix.dot` says that it takes",
        ),
        (
            |m| {
                let text = of(m, "qwix.dot").get_mut("composite.attributes").unwrap();
                *text = text.replace("f32[2,4] dot", "bf16[2,4] dot");
            },
            "is not what version 1 of `qwix.dot` computes",
        ),
        (
            |m| {
                let body = m.computations.iter_mut().find(|c| c.name.starts_with("qwix_dot")).unwrap();
                let add = body.instructions.iter_mut().find(|i| i.opcode == "subtract").unwrap();
                add.opcode = "add".to_owned();
            },
            "the file was changed after it was written",
        ),
        (
            |m| {
                let mut calls = instructions(m).filter(|i| i.opcode == "call" && i.operand_ids.len() == 5);
                let dot = calls.find(|i| i.name == "b").unwrap();
                dot.operand_ids.swap(3, 4);
            },
            "takes (s8[2,8], f32[2,1], s8[8,4], f32[1,4], s8[1,4]), given",
        ),
        (
            |m| {
                // The qvalue goes elsewhere, too.
                let entry = m.computations.last_mut().unwrap();
                let qvalue =
                    entry.instructions.iter().find(|i| i.name.ends_with("w.qvalue")).unwrap().clone();
                let id = entry.instructions.iter().map(|i| i.id).max().unwrap() + 1;
                let mut convert = qvalue.clone();
                convert.name = "stray".to_owned();
                convert.opcode = "convert".to_owned();
                convert.operand_ids = vec![qvalue.id];
                convert.id = id;
                entry.instructions.push(convert);
            },
            "`w.qvalue` is the qvalue of a quantized array",
        ),
        (
            |m| {
                // The scale of another array.
                let entry = m.computations.last_mut().unwrap();
                let other = entry.instructions.iter().find(|i| i.parameter_number == 4).unwrap().id;
                entry.instructions.iter_mut().find(|i| i.name == "e").unwrap().operand_ids[1] = other;
            },
            "are not the parts of one quantized array",
        ),
    ];
    let mut wrong = Vec::new();
    let mut check = |what: String, module: &HloModuleProto, expected: &str| match read(module) {
        Ok(_) if expected.is_empty() => {}
        Ok(_) => wrong.push(format!("{what}: is read")),
        Err(error) if error.contains(expected) && !error.contains('\n') => {}
        Err(error) => wrong.push(format!("{what}: found `{error}`, expected `{expected}`")),
    };
    let original = written(&quantized());
    for (of_text, key, value, expected) in edits {
        let mut module = original.clone();
        set(&mut module, of_text, key, value);
        check(format!("{of_text}: {key} = {value}"), &module, expected);
    }
    for (number, (edit, expected)) in others.into_iter().enumerate() {
        let mut module = original.clone();
        edit(&mut module);
        check(format!("edit {number}"), &module, expected);
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A text with a character more, less or another, or a piece of another text in it.
fn changed(text: &str, other: &str, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = random.below(bytes.len() + 1);
    match random.below(4) {
        0 => drop(bytes.drain(at..(at + 1 + random.below(4)).min(text.len()).max(at))),
        1 => bytes.insert(at, b"0123456789{}[](),\"= qf_x-"[random.below(24)]),
        2 => {
            let from = random.below(other.len() + 1);
            let piece = other.as_bytes()[from..(from + random.below(24)).min(other.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => return other.to_owned(),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn files_changed_at_random() {
    let original = written(&quantized());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut refused, mut wrong) = (0, 0, Vec::new());
    for round in 0..3000 {
        let mut module = original.clone();
        for _ in 0..=random.below(2) {
            if random.below(3) == 0 {
                let at = random.below(module.computations.len());
                let instructions = &mut module.computations[at].instructions;
                let other = instructions[random.below(instructions.len())].clone();
                let at = random.below(instructions.len());
                change(&mut instructions[at], &other, &mut random);
                continue;
            }
            let mut maps: Vec<_> = instructions(&mut module).filter_map(attributes).collect();
            let texts: Vec<String> = maps[random.below(maps.len())].values().cloned().collect();
            let at = random.below(maps.len());
            let count = maps[at].len();
            let Some(text) = maps[at].values_mut().nth(random.below(count)) else { continue };
            *text = changed(text, &texts[random.below(texts.len())], &mut random);
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            let graph = read(&module)?;
            let again = graph.to_hlo_proto().map_err(|error| error.to_string());
            again.and_then(|bytes| Graph::from_hlo_proto(&bytes).map_err(|e| format!("written again: {e}")))
        }));
        match result {
            Ok(Ok(_)) => accepted += 1,
            Ok(Err(error)) if error.contains('\n') || error.starts_with("written again") => {
                wrong.push(format!("round {round}: {error}"))
            }
            Ok(Err(_)) => refused += 1,
            Err(_) => wrong.push(format!("round {round}: panics")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(accepted > 50 && refused > 1000, "{accepted} accepted, {refused} refused");
}
