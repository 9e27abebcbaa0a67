//! The parser.

use std::collections::HashMap;
use std::sync::Arc;

use qwix_array::DType;
use qwix_quant::{Calibration, Granularity, HowToQuantize, QType, Tile};

use super::attributes::{Attributes, braces, counts};
use super::constant::read_constant;
use super::instruction::{Known, op_of};
use super::scan::{Fault, Scanner};
use crate::import::signature;
use crate::passes::inline::{MAX_CALL_DEPTH, inline_entry};
use crate::{
    ArrayType, Computation, Graph, GraphError, KeyPath, Metadata, Node, NodeId, Op, Parameter, Path, Prep,
    QArrayType, Role, Sharding, SliceDim, Slot, StatisticSlot, Type, WeightSlot,
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
                let entry = inline_entry(&parsed.entry)?;
                let parameters = signature(&entry);
                Graph { name: parsed.name, entry: Arc::new(entry), parameters }
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
    let mut entry: Option<(Arc<Computation>, Numbered)> = None;
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
            entry = Some((Arc::clone(&block.computation), block.signature));
        }
        last = Some(Arc::clone(&block.computation));
        if known.insert(block.label.clone(), (block.computation, block.height)).is_some() {
            return Err(s.fault_at(at, format!("a second computation is called `{}`", block.label)));
        }
    }
    let (entry, parameters) = match (entry, last) {
        (Some(entry), _) => entry,
        // A module of one computation needs no mark.
        (None, Some(only)) if known.len() == 1 && !ours => (only, Vec::new()),
        (None, _) => return Err(s.expected("a computation marked ENTRY")),
    };
    let signature = if ours { Some(in_order(s, &entry, parameters)?) } else { None };
    Ok(Module { name, entry, signature })
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
        if ours && let Op::Parameter(number) = node.op {
            parameters.push((number, found.parameter));
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
    Ok(Block { label, computation: Arc::new(Computation { name, nodes, root }), signature, height })
}

struct Instruction {
    node: Node,
    height: usize,
    /// What our text says of a parameter of the entry.
    parameter: Option<Parameter>,
}

fn instruction(
    s: &mut Scanner<'_>,
    nodes: &[Node],
    places: &HashMap<String, NodeId>,
    known: &Known,
) -> Result<Instruction, Fault> {
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
    let parameter = parameter(&attributes, &ty)?;
    let op_name = attributes.string_in("metadata", "op_name")?.unwrap_or_default();
    let sharding = attributes.raw("sharding").map(|text| text.parse::<Sharding>());
    let sharding = sharding.transpose().map_err(|reason| attributes.fault(reason))?;
    let node = Node { name, op, operands, ty, metadata: Metadata { op_name, id: 0 }, sharding };
    Ok(Instruction { node, height, parameter })
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
fn ty(s: &mut Scanner<'_>, with_layout: bool, depth: usize) -> Result<Type, Fault> {
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

fn array_type(s: &mut Scanner<'_>) -> Result<ArrayType, Fault> {
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

/// The entry of the signature that `frontend_attributes` describe.
fn parameter(attributes: &Attributes<'_>, ty: &Type) -> Result<Option<Parameter>, Fault> {
    let text = |key: &str| attributes.string_in("frontend_attributes", key);
    let Some(path) = text("path")? else { return Ok(None) };
    let role = match text("role")?.as_deref() {
        Some("variable") => Role::Variable,
        Some("input") => Role::Input,
        other => {
            return Err(attributes.fault(format!(
                "`role` should be variable or input, found `{}`",
                other.unwrap_or("nothing")
            )));
        }
    };
    let statistics = match text("statistics")? {
        None => None,
        Some(source) => {
            let part = text("part")?.unwrap_or_default();
            let part =
                part.parse().map_err(|reason: String| attributes.fault(format!("`part`: {reason}")))?;
            Some(Slot::Statistic(StatisticSlot { source: Path::new(&source), part }))
        }
    };
    let slot = match (text("source")?, ty) {
        (Some(_), _) if statistics.is_some() => {
            return Err(attributes.fault("has both a `source` and `statistics`".into()));
        }
        (None, _) => statistics,
        (Some(source), Type::QArray(q)) => {
            let source_type = match text("source_type")? {
                Some(text) => {
                    let located = |fault: Fault| attributes.fault(fault.locate(&text).to_string());
                    array_type(&mut Scanner::new(&text)).map_err(located)?
                }
                None => return Err(attributes.fault("`source_type` is missing".into())),
            };
            let prep = match text("prep")? {
                Some(text) => prep(&mut Scanner::new(&text))
                    .map_err(|fault| attributes.fault(fault.locate(&text).to_string()))?,
                None => Vec::new(),
            };
            Some(Slot::Weight(WeightSlot {
                source: Path::new(&source),
                source_type,
                prep,
                how: q.how.clone(),
            }))
        }
        (Some(_), other) => {
            return Err(attributes.fault(format!("has a `source`, but its type is {other}")));
        }
    };
    Ok(Some(Parameter {
        path: Path::new(&path),
        key_path: text("key")?.map(|text| key_path(&text)),
        role,
        ambiguous: text("ambiguous")?.as_deref() == Some("true"),
        ty: ty.clone(),
        slot,
    }))
}

/// `argument/key/key`, where `\/` is a slash in a key.
fn key_path(text: &str) -> KeyPath {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '/' => parts.push(String::new()),
            '\\' => parts[last].extend(chars.next()),
            other => parts[last].push(other),
        }
    }
    let argument = parts.remove(0);
    KeyPath { argument, keys: parts }
}

/// `reshape{2,3} transpose{1,0} slice{0:2:1}`.
fn prep(s: &mut Scanner<'_>) -> Result<Vec<Prep>, Fault> {
    let mut steps = Vec::new();
    while !s.done() {
        let at = s.position();
        steps.push(match s.word() {
            "reshape" => Prep::Reshape(counts(s)?),
            "transpose" => Prep::Transpose(counts(s)?),
            "slice" => Prep::Slice(braces(s, |s| {
                let start = s.count()?;
                s.expect(':')?;
                let limit = s.count()?;
                s.expect(':')?;
                Ok(SliceDim { start, limit, stride: s.count()? })
            })?),
            other => {
                return Err(s.fault_at(at, format!("expected reshape, transpose or slice, found `{other}`")));
            }
        });
    }
    Ok(steps)
}
