//! The parser.

use std::collections::HashMap;
use std::sync::Arc;

use qwix_array::DType;
use qwix_quant::{Calibration, Granularity, HowToQuantize, QType, Tile};

use super::attributes::{Attributes, braces};
use super::constant::read_constant;
use super::instruction::{Known, op_of};
use super::scan::{Fault, Scanner};
use super::signature;
use crate::import::{Marks, graph_of};
use crate::passes::inline::{MAX_CALL_DEPTH, inline_entry};
use crate::{
    ArrayType, Computation, Graph, GraphError, Metadata, Node, NodeId, Op, Parameter, QArrayType, Sharding,
    Type,
};

/// Tuples in tuples.
const MAX_TUPLE_DEPTH: usize = 32;

impl Graph {
    /// Reads HLO text: what XLA prints (`as_hlo_text()`, with or without `%`, layouts and metadata), or what
    /// [`Graph::to_text`] wrote. Of XLA's text, calls are inlined and parameters are told apart by their `op_name`, as
    /// when a module is imported; ids are the instructions' places in the text.
    ///
    /// # Errors
    /// Line and column of what cannot be read, or what of the graph does not verify.
    pub fn from_text(text: &str) -> Result<Graph, GraphError> {
        let parsed = module(&mut Scanner::new(text)).map_err(|fault| fault.locate(text))?;
        let graph = match parsed.signature {
            Some(parameters) => Graph { name: parsed.name, entry: parsed.entry, parameters },
            None => {
                return graph_of(parsed.name, inline_entry(&parsed.entry)?, &parsed.marks);
            }
        };
        graph.verify()?;
        Ok(graph)
    }
}

/// Entries of the signature with their numbers.
type Numbered = Vec<(usize, Parameter)>;

struct Module {
    name: String,
    entry: Arc<Computation>,
    /// Of our own text.
    signature: Option<Vec<Parameter>>,
    /// Of XLA's text of a module that we wrote.
    marks: Marks,
}

fn module(s: &mut Scanner<'_>) -> Result<Module, Fault> {
    if s.word() != "HloModule" {
        return Err(Scanner::fault_at(s, 0, "expected HLO text, which begins with `HloModule`".into()));
    }
    let name = s.name("the module's name")?;
    let at = s.position();
    let attributes = Attributes::scan(s, at)?;
    let ours = attributes.string_in("frontend_attributes", "qwix")?.is_some();
    let mut known = Known::new();
    let mut entry: Option<(Arc<Computation>, Numbered, Marks)> = None;
    let mut last = None;
    let mut ids = 0;
    while !s.done() {
        // Tables of source locations, which newer versions of XLA print.
        if matches!(s.peek_word(), "FileNames" | "FunctionNames" | "FileLocations" | "StackFrames") {
            s.skip_line();
            while s.peek().is_some_and(|c| c.is_ascii_digit()) {
                s.skip_line();
            }
            continue;
        }
        let at = s.position();
        let is_entry = s.peek_word() == "ENTRY";
        if is_entry {
            s.word();
        }
        let block = block(s, ours, &known, &mut ids)?;
        if is_entry {
            if entry.is_some() {
                return Err(s.fault_at(at, "a second ENTRY".into()));
            }
            entry = Some((Arc::clone(&block.computation), block.signature, block.marks));
        }
        last = Some(Arc::clone(&block.computation));
        if known.insert(block.label.clone(), (block.computation, block.height)).is_some() {
            return Err(s.fault_at(at, format!("a second computation is called `{}`", block.label)));
        }
    }
    let (entry, parameters, marks) = match (entry, last) {
        (Some(entry), _) => entry,
        // A module of one computation needs no mark.
        (None, Some(only)) if known.len() == 1 && !ours => (only, Vec::new(), Marks::default()),
        (None, _) => return Err(s.expected("a computation marked ENTRY")),
    };
    let signature = if ours { Some(in_order(s, &entry, parameters)?) } else { None };
    Ok(Module { name, entry, signature, marks })
}

/// The signature's entries by number.
fn in_order(s: &Scanner<'_>, entry: &Computation, mut parameters: Numbered) -> Result<Vec<Parameter>, Fault> {
    parameters.sort_by_key(|p| p.0);
    let count = entry.nodes.iter().filter(|n| matches!(n.op, Op::Parameter(_))).count();
    if parameters.len() != count || !parameters.iter().map(|p| p.0).eq(0..count) {
        return Err(s.fault(format!("the entry's parameters are not numbered 0 to {count}")));
    }
    Ok(parameters.into_iter().map(|p| p.1).collect())
}

struct Block {
    /// What the text calls it.
    label: String,
    computation: Arc<Computation>,
    signature: Numbered,
    marks: Marks,
    height: usize,
}

fn block(s: &mut Scanner<'_>, ours: bool, known: &Known, ids: &mut u64) -> Result<Block, Fault> {
    let at = s.position();
    let label = s.name("a computation's name")?;
    if s.peek() == Some('(') {
        s.value()?;
    }
    if s.eat_text("->") {
        ty(s, false, 0)?;
    }
    s.drop_note();
    s.expect('{')?;
    let name = match s.take_note() {
        Some((at, note)) if note.starts_with("name=") => {
            s.part(at + "name=".len(), at + note.len()).text_string()?
        }
        _ => label.clone(),
    };
    let mut nodes: Vec<Node> = Vec::new();
    let mut places: HashMap<String, NodeId> = HashMap::new();
    let mut root = None;
    let mut height = 0;
    let mut parameters = Vec::new();
    let mut marks = Marks::default();
    while !s.eat('}') {
        let at = s.position();
        let is_root = s.peek_word() == "ROOT" && {
            s.word();
            true
        };
        let id = NodeId(nodes.len() as u32);
        *ids += 1;
        let found = instruction(s, &nodes, &places, known)?;
        let mut node = found.node;
        if let Some((at, note)) = s.take_note()
            && let Some(number) = note.strip_prefix("id=")
        {
            node.metadata.id =
                number.parse().map_err(|_| s.fault_at(at, format!("`{number}` is no instruction id")))?;
        } else if !ours {
            node.metadata.id = *ids;
        }
        if let Op::Parameter(number) = node.op {
            if ours {
                parameters.push((number, found.parameter));
            } else {
                marks.add(number, found.texts.iter().map(|(&key, text)| (key, text.as_str())));
            }
        }
        height = height.max(found.height);
        if is_root && root.replace(id).is_some() {
            return Err(s.fault_at(at, "a second ROOT in this computation".into()));
        }
        if places.insert(node.name.clone(), id).is_some() {
            return Err(s.fault_at(at, format!("a second instruction is called `{}`", node.name)));
        }
        nodes.push(node);
    }
    if nodes.is_empty() {
        return Err(s.fault_at(at, format!("the computation `{label}` is empty")));
    }
    if height > MAX_CALL_DEPTH {
        return Err(s.fault_at(at, format!("computations call one another more than {MAX_CALL_DEPTH} deep")));
    }
    // Attributes of a computation: the thread that it runs on.
    Attributes::scan(s, at)?;
    let root = root.unwrap_or(NodeId(nodes.len() as u32 - 1));
    let signature = parameters.into_iter().filter_map(|(n, p)| p.map(|p| (n, p))).collect();
    let computation = Arc::new(Computation { name, nodes, root });
    Ok(Block { label, computation, signature, marks, height })
}

struct Instruction<'a> {
    node: Node,
    /// Its `frontend_attributes`.
    texts: HashMap<&'a str, String>,
    height: usize,
    /// What our text says of a parameter of the entry.
    parameter: Option<Parameter>,
}

fn instruction<'a>(
    s: &mut Scanner<'a>,
    nodes: &[Node],
    places: &HashMap<String, NodeId>,
    known: &Known,
) -> Result<Instruction<'a>, Fault> {
    let at = s.position();
    let name = s.name("an instruction")?;
    s.expect('=')?;
    let ty = ty(s, true, 0)?;
    let opcode = s.expect_word("an op")?;
    s.expect('(')?;
    let mut operands = Vec::new();
    let mut literal = None;
    match (opcode, &ty) {
        ("parameter", _) => literal = Some(Op::Parameter(s.count()?)),
        ("constant", Type::Array(ty)) => literal = Some(Op::Constant(read_constant(s, ty)?)),
        ("constant", _) => {
            while s.peek().is_some_and(|c| c != ')') {
                s.value()?;
                s.eat(',');
            }
        }
        _ => {
            while s.peek() != Some(')') {
                if !operands.is_empty() {
                    s.expect(',')?;
                }
                operands.push(operand(s, places)?);
            }
        }
    }
    s.expect(')')?;
    s.drop_note();
    let attributes = Attributes::scan(s, at)?;
    let types: Vec<&Type> = operands.iter().filter_map(|id| nodes.get(id.index())).map(|n| &n.ty).collect();
    let (op, height) = match literal {
        Some(op) if attributes.get("unsupported").is_none() => (op, 0),
        _ => op_of(opcode, &ty, &types, &attributes, known)?,
    };
    let texts = attributes.strings("frontend_attributes")?;
    let text = |key: &str| texts.get(key).map(String::as_str);
    let parameter = signature::parameter(text, &ty).map_err(|reason| attributes.fault(reason))?;
    let op_name = attributes.string_in("metadata", "op_name")?.unwrap_or_default();
    let sharding = attributes.raw("sharding").map(|text| text.parse::<Sharding>());
    let sharding = sharding.transpose().map_err(|reason| attributes.fault(reason))?;
    let node = Node { name, op, operands, ty, metadata: Metadata { op_name, id: 0 }, sharding };
    Ok(Instruction { node, texts, height, parameter })
}

/// `%name`, or with its type before it.
fn operand(s: &mut Scanner<'_>, places: &HashMap<String, NodeId>) -> Result<NodeId, Fault> {
    let mut ahead = s.clone();
    let word = ahead.word();
    if ahead.peek() == Some('[') && !word.is_empty() || s.peek() == Some('(') {
        ty(s, true, 0)?;
    }
    let at = s.position();
    let name = s.name("an operand")?;
    places.get(&name).copied().ok_or_else(|| {
        s.fault_at(at, format!("the instruction `{name}` does not stand above, in the same computation"))
    })
}

/// A type, with its layout when there may be one.
pub(super) fn ty(s: &mut Scanner<'_>, with_layout: bool, depth: usize) -> Result<Type, Fault> {
    let at = s.position();
    if s.eat('(') {
        if depth == MAX_TUPLE_DEPTH {
            return Err(s.fault_at(at, format!("tuples more than {MAX_TUPLE_DEPTH} deep")));
        }
        let mut elements = Vec::new();
        while !s.eat(')') {
            if !elements.is_empty() {
                s.expect(',')?;
            }
            elements.push(ty(s, with_layout, depth + 1)?);
        }
        return Ok(Type::Tuple(elements));
    }
    let name = s.expect_word("a type")?;
    if name == "q" {
        return Ok(Type::QArray(quantized(s)?));
    }
    let shape = shape(s)?;
    if with_layout && s.peek() == Some('{') {
        s.value()?;
    }
    Ok(match name.parse::<DType>() {
        Ok(dtype) if dtype.name() == name => Type::array(dtype, shape),
        _ if name == "token" => Type::Token,
        _ => {
            let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
            Type::Opaque(format!("{name}[{}]", sizes.join(",")))
        }
    })
}

/// `[2,3]`.
fn shape(s: &mut Scanner<'_>) -> Result<Vec<usize>, Fault> {
    s.expect('[')?;
    let mut sizes = Vec::new();
    while !s.eat(']') {
        if !sizes.is_empty() {
            s.expect(',')?;
        }
        if s.eat_text("<=") {
            return Err(s.fault("sizes that are known only when the model runs are not supported".into()));
        }
        sizes.push(s.count()?);
    }
    Ok(sizes)
}

pub(super) fn array_type(s: &mut Scanner<'_>) -> Result<ArrayType, Fault> {
    let at = s.position();
    match ty(s, false, 0)? {
        Type::Array(array) => Ok(array),
        other => Err(s.fault_at(at, format!("expected an array type, found {other}"))),
    }
}

/// What follows the `q` of `q[int8 f32[8,16] {channelwise,_} absmax]`.
fn quantized(s: &mut Scanner<'_>) -> Result<QArrayType, Fault> {
    s.expect('[')?;
    let at = s.position();
    let qtype = QType::by_name(s.word()).map_err(|error| s.fault_at(at, error.to_string()))?;
    let array = array_type(s)?;
    let granularity = braces(s, |s| {
        let at = s.position();
        match s.word() {
            "_" => Ok(Granularity::Shared),
            "channelwise" => Ok(Granularity::Channelwise),
            "tile" => {
                let number = s.expect_word("a tile")?;
                let tile = match number.strip_suffix('x') {
                    Some(fraction) => fraction.parse().ok().map(Tile::Fraction),
                    None => number.parse().ok().map(Tile::Size),
                };
                tile.map(Granularity::Tiled).ok_or_else(|| s.fault_at(at, format!("`{number}` is no tile")))
            }
            other => Err(s.fault_at(at, format!("expected `_`, channelwise or tile, found `{other}`"))),
        }
    })?;
    let at = s.position();
    let mut method = String::new();
    while s.peek().is_some_and(|c| c != ']') {
        method += s.expect_word("a calibration method")?;
        if s.eat(',') {
            method.push(',');
        }
    }
    s.expect(']')?;
    let calibration: Calibration = method.parse().map_err(|error| s.fault_at(at, format!("{error}")))?;
    Ok(QArrayType { array, how: HowToQuantize { qtype, granularity, calibration } })
}
