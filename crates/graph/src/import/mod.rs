//! `HloModuleProto` → [`Graph`].
//!
//! Only what the entry computation reaches is read. Each computation's instructions are put into an order in which
//! operands come first, by instruction id as far as that goes; then calls are inlined.

mod error;
mod instruction;
mod literal;
#[cfg(test)]
mod mutations;
mod parameters;
mod shape;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use prost::Message as _;

pub use error::ImportError;
use error::quoted;

pub(crate) use parameters::role_of;
pub(crate) use shape::{TOKEN, TUPLE, primitive_of};
use wire::Fields;

use crate::passes::inline::{self, MAX_CALL_DEPTH};
use crate::proto::HloInstructionProto;
use crate::{Computation, Graph, Metadata, Node, NodeId, Op, Type, sharding};

impl Graph {
    /// Reads a serialized `HloModuleProto`, as `as_serialized_hlo_module_proto()` returns it, or an `HloProto` around
    /// one.
    ///
    /// Calls are inlined and parameters named by their key paths. An op or a type that is not known becomes
    /// [`Op::Unsupported`] or [`Type::Opaque`]: such a graph can be looked at.
    ///
    /// # Errors
    /// When the bytes are no such message, or what they describe is no graph.
    pub fn from_hlo_proto(bytes: &[u8]) -> Result<Graph, ImportError> {
        let module = Module::read(module_bytes(bytes)?)?;
        let entry = Builder::new(&module).build_entry()?;
        let entry = inline::inline_entry(&entry)?;
        let parameters = parameters::signature(&entry);
        let graph = Graph { name: inline::plain_name(module.name), entry: Arc::new(entry), parameters };
        graph.verify()?;
        Ok(graph)
    }
}

/// The module's bytes: all of them, or those inside an `HloProto`.
///
/// An `HloProto` has fields 1 (the module) and 3 (buffers) and no others; a module has its entry computation's name or
/// id, fields 2 and 6, as well.
fn module_bytes(bytes: &[u8]) -> Result<&[u8], ImportError> {
    let not_hlo = |reason: String| ImportError::NotHlo { reason };
    if bytes.is_empty() {
        return Err(not_hlo("it is empty".to_owned()));
    }
    let mut inner = None;
    for field in Fields::new(bytes) {
        match field.map_err(not_hlo)? {
            (1, wire::Value::Bytes(module)) => inner = Some(module),
            (3, _) => {}
            _ => return Ok(bytes),
        }
    }
    inner.ok_or_else(|| not_hlo("it has no module".to_owned()))
}

/// A module whose computations are not decoded yet.
struct Module<'a> {
    name: &'a str,
    computations: Vec<RawComputation<'a>>,
    by_id: HashMap<i64, usize>,
    entry: usize,
}

struct RawComputation<'a> {
    name: &'a str,
    id: i64,
    root: i64,
    instructions: Vec<&'a [u8]>,
}

impl<'a> Module<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ImportError> {
        let (mut name, mut entry_name, mut entry_id) = ("", "", None);
        let mut computations = Vec::new();
        for field in Fields::new(bytes) {
            field
                .and_then(|(number, value)| {
                    match number {
                        1 => name = value.text()?,
                        2 => entry_name = value.text()?,
                        3 => computations.push(RawComputation::read(value.bytes()?)?),
                        6 => entry_id = Some(value.int()?),
                        _ => {}
                    }
                    Ok(())
                })
                .map_err(|reason| ImportError::NotHlo { reason })?;
        }
        let wrong = |reason| ImportError::Module { module: quoted(name), reason };
        if computations.is_empty() {
            return Err(wrong("it has no computations".to_owned()));
        }
        let mut by_id = HashMap::new();
        for (index, computation) in computations.iter().enumerate() {
            if let Some(other) = by_id.insert(computation.id, index) {
                return Err(wrong(format!(
                    "computations `{}` and `{}` have the same id {}",
                    quoted(computations[other].name),
                    quoted(computation.name),
                    computation.id
                )));
            }
        }
        let entry = match entry_id {
            Some(id) => by_id.get(&id).copied(),
            None => computations.iter().position(|computation| computation.name == entry_name),
        };
        let entry = entry.ok_or_else(|| {
            wrong(format!(
                "its entry computation `{}` (id {}) is not among its {} computations",
                quoted(entry_name),
                entry_id.unwrap_or(0),
                computations.len()
            ))
        })?;
        Ok(Module { name, computations, by_id, entry })
    }
}

impl<'a> RawComputation<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut computation = RawComputation { name: "", id: 0, root: 0, instructions: Vec::new() };
        for field in Fields::new(bytes) {
            let mut read = |(number, value): (u32, wire::Value<'a>)| {
                match number {
                    1 => computation.name = value.text()?,
                    2 => computation.instructions.push(value.bytes()?),
                    5 => computation.id = value.int()?,
                    6 => computation.root = value.int()?,
                    _ => {}
                }
                Ok(())
            };
            field
                .and_then(&mut read)
                .map_err(|reason: String| format!("computation `{}`: {reason}", quoted(computation.name)))?;
        }
        Ok(computation)
    }
}

/// A computation that is being built or has been built.
enum State {
    Building,
    /// The computation, and how deep calls go below it.
    Built(Arc<Computation>, usize),
}

struct Builder<'m, 'a> {
    module: &'m Module<'a>,
    states: HashMap<usize, State>,
}

impl<'m, 'a> Builder<'m, 'a> {
    fn new(module: &'m Module<'a>) -> Self {
        Builder { module, states: HashMap::new() }
    }

    fn build_entry(mut self) -> Result<Arc<Computation>, ImportError> {
        Ok(self.build(self.module.entry, 0)?.0)
    }

    /// The computation of an index, and how deep calls go below it.
    fn build(&mut self, index: usize, depth: usize) -> Result<(Arc<Computation>, usize), ImportError> {
        let raw = &self.module.computations[index];
        let wrong = |reason| ImportError::Computation { computation: quoted(raw.name), reason };
        match self.states.get(&index) {
            Some(State::Built(computation, height)) => return Ok((Arc::clone(computation), *height)),
            Some(State::Building) => return Err(wrong("it calls itself".to_owned())),
            None => {}
        }
        if depth > MAX_CALL_DEPTH {
            return Err(wrong(format!("calls are nested more than {MAX_CALL_DEPTH} deep")));
        }
        self.states.insert(index, State::Building);
        let instructions = decode(raw)?;
        let mut height = 0;
        let mut called = Vec::with_capacity(instructions.len());
        for instruction in &instructions {
            let (computations, below) = self.called(raw, instruction, depth)?;
            height = height.max(below);
            called.push(computations);
        }
        if depth + height > MAX_CALL_DEPTH {
            return Err(wrong(format!("calls are nested more than {MAX_CALL_DEPTH} deep")));
        }
        let computation = Arc::new(self.convert(raw, instructions, called)?);
        self.states.insert(index, State::Built(Arc::clone(&computation), height));
        Ok((computation, height))
    }

    /// The computations that an instruction calls, and how deep calls go from it.
    fn called(
        &mut self,
        raw: &RawComputation,
        instruction: &HloInstructionProto,
        depth: usize,
    ) -> Result<(Vec<Arc<Computation>>, usize), ImportError> {
        let Some(wanted) = instruction::called_count(&instruction.opcode) else { return Ok((Vec::new(), 0)) };
        let ids = &instruction.called_computation_ids;
        if !wanted.contains(&ids.len()) {
            let wanted = if wanted.end() == wanted.start() {
                wanted.start().to_string()
            } else {
                format!("{} or more", wanted.start())
            };
            let reason = format!("it calls {} computations, expected {wanted}", ids.len());
            return Err(at(raw, instruction, reason));
        }
        let mut computations = Vec::with_capacity(ids.len());
        let mut height = 0;
        for id in ids {
            let Some(&index) = self.module.by_id.get(id) else {
                return Err(at(
                    raw,
                    instruction,
                    format!("it calls computation {id}, which the module does not have"),
                ));
            };
            let (computation, below) = self.build(index, depth + 1)?;
            height = height.max(below + 1);
            computations.push(computation);
        }
        Ok((computations, height))
    }

    fn convert(
        &self,
        raw: &RawComputation,
        instructions: Vec<HloInstructionProto>,
        called: Vec<Vec<Arc<Computation>>>,
    ) -> Result<Computation, ImportError> {
        let wrong = |reason| ImportError::Computation { computation: quoted(raw.name), reason };
        let operands = operand_indices(raw, &instructions)?;
        let order = topological(raw, &instructions, &operands)?;
        let mut place = vec![NodeId(0); instructions.len()];
        for (position, &index) in order.iter().enumerate() {
            place[index] = NodeId(
                u32::try_from(position)
                    .map_err(|_| wrong(format!("found {} instructions, too many", order.len())))?,
            );
        }
        let root = instructions
            .iter()
            .position(|instruction| instruction.id == raw.root)
            .ok_or_else(|| wrong(format!("its root is instruction {}, which it does not have", raw.root)))?;

        let mut instructions: Vec<_> = instructions.into_iter().zip(called).map(Some).collect();
        let mut nodes: Vec<Node> = Vec::with_capacity(order.len());
        let mut names = inline::Names::default();
        for index in order {
            // The order holds every index once.
            let Some((mut instruction, called)) = instructions[index].take() else { continue };
            let operands: Vec<NodeId> = operands[index].iter().map(|&operand| place[operand]).collect();
            let context = Context {
                computation: raw.name,
                instruction: instruction.name.clone(),
                opcode: instruction.opcode.clone(),
            };
            let ty = instruction.shape.take().ok_or_else(|| context.error("it has no shape".to_owned()))?;
            let ty = shape::type_of(&ty).map_err(|reason| context.error(reason))?;
            let operand_types: Vec<&Type> = operands.iter().map(|id| &nodes[id.index()].ty).collect();
            let called_names =
                instruction.called_computation_ids.iter().map(|id| self.name_of(*id)).collect();
            let metadata = Metadata {
                op_name: instruction.metadata.take().map_or_else(String::new, |metadata| metadata.op_name),
                id: instruction.id as u64,
            };
            let sharding = instruction.sharding.take().and_then(|sharding| sharding::text_of(&sharding));
            let name = names.unique(&instruction.name);
            let op = instruction::op_of(instruction, &ty, &operand_types, called, called_names)
                .map_err(|reason| context.error(reason))?;
            nodes.push(Node { name, op, operands, ty, metadata, sharding });
        }
        let computation = Computation { name: inline::plain_name(raw.name), nodes, root: place[root] };
        check_parameters(&computation).map_err(wrong)?;
        Ok(computation)
    }

    fn name_of(&self, id: i64) -> String {
        match self.module.by_id.get(&id) {
            Some(&index) => self.module.computations[index].name.to_owned(),
            None => id.to_string(),
        }
    }
}

/// Where something is wrong.
struct Context<'a> {
    computation: &'a str,
    instruction: String,
    opcode: String,
}

impl Context<'_> {
    fn error(&self, reason: String) -> ImportError {
        ImportError::Instruction {
            computation: quoted(self.computation),
            instruction: quoted(&self.instruction),
            opcode: quoted(&self.opcode),
            reason,
        }
    }
}

fn at(raw: &RawComputation, instruction: &HloInstructionProto, reason: String) -> ImportError {
    Context {
        computation: raw.name,
        instruction: instruction.name.clone(),
        opcode: instruction.opcode.clone(),
    }
    .error(reason)
}

fn decode(raw: &RawComputation) -> Result<Vec<HloInstructionProto>, ImportError> {
    let mut instructions = Vec::new();
    for (index, bytes) in raw.instructions.iter().enumerate() {
        let instruction = HloInstructionProto::decode(*bytes).map_err(|error| ImportError::Computation {
            computation: quoted(raw.name),
            reason: format!("instruction {index} of {} cannot be decoded: {error}", raw.instructions.len()),
        })?;
        instructions.push(instruction);
    }
    Ok(instructions)
}

/// Operands as places in the list of instructions.
fn operand_indices(
    raw: &RawComputation,
    instructions: &[HloInstructionProto],
) -> Result<Vec<Vec<usize>>, ImportError> {
    let mut by_id = HashMap::with_capacity(instructions.len());
    for (index, instruction) in instructions.iter().enumerate() {
        if let Some(other) = by_id.insert(instruction.id, index) {
            let other: &HloInstructionProto = &instructions[other];
            let reason = format!("its id {} is also that of `{}`", instruction.id, quoted(&other.name));
            return Err(at(raw, instruction, reason));
        }
    }
    let operands = |instruction: &HloInstructionProto| {
        let find = |id: &i64| {
            by_id.get(id).copied().ok_or_else(|| {
                let reason = format!("its operand {id} is not an instruction of this computation");
                at(raw, instruction, reason)
            })
        };
        instruction.operand_ids.iter().map(find).collect()
    };
    instructions.iter().map(operands).collect()
}

/// An order in which operands come before their users; among those that are free to go next, the one with the lowest id,
/// which JAX traced first.
fn topological(
    raw: &RawComputation,
    instructions: &[HloInstructionProto],
    operands: &[Vec<usize>],
) -> Result<Vec<usize>, ImportError> {
    let mut users = vec![Vec::new(); instructions.len()];
    let mut missing: Vec<usize> = operands.iter().map(Vec::len).collect();
    for (user, operands) in operands.iter().enumerate() {
        for &operand in operands {
            users[operand].push(user);
        }
    }
    let key = |index: usize| std::cmp::Reverse((instructions[index].id as u64, index));
    let mut ready: BinaryHeap<_> = (0..instructions.len()).filter(|&i| missing[i] == 0).map(key).collect();
    let mut order = Vec::with_capacity(instructions.len());
    while let Some(std::cmp::Reverse((_, index))) = ready.pop() {
        order.push(index);
        for &user in &users[index] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(key(user));
            }
        }
    }
    if order.len() == instructions.len() {
        return Ok(order);
    }
    // From an instruction that waits, operands that wait lead around the cycle.
    let waiting = |index: &usize| missing[*index] > 0;
    let mut path = Vec::new();
    let mut seen = HashSet::new();
    let mut next = (0..instructions.len()).find(waiting);
    while let Some(index) = next {
        path.push(index);
        if !seen.insert(index) {
            break;
        }
        next = operands[index].iter().copied().find(waiting);
    }
    let start = path.iter().position(|index| Some(index) == path.last()).unwrap_or(0);
    let cycle: Vec<String> =
        path[start..].iter().take(9).map(|&i| format!("`{}`", quoted(&instructions[i].name))).collect();
    Err(ImportError::Computation {
        computation: quoted(raw.name),
        reason: format!("its instructions need each other in a circle: {}", cycle.join(" ← ")),
    })
}

/// Parameters are numbered 0, 1, … without a gap.
fn check_parameters(computation: &Computation) -> Result<(), String> {
    let mut numbers = BTreeSet::new();
    for node in &computation.nodes {
        if let Op::Parameter(number) = node.op
            && !numbers.insert(number)
        {
            return Err(format!("found two parameters with the number {number}"));
        }
    }
    match numbers.iter().enumerate().find(|(wanted, number)| *wanted != **number) {
        Some((wanted, _)) => {
            Err(format!("found {} parameters, but none with the number {wanted}", numbers.len()))
        }
        None => Ok(()),
    }
}
