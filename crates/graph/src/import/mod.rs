//! `HloModuleProto` → [`Graph`].
//!
//! Only what the entry computation reaches is read. Each computation's instructions are put into an order in which
//! operands come first, by instruction id as far as that goes; then calls are inlined.

mod composite;
#[cfg(test)]
mod composite_tests;
mod error;
mod instruction;
mod literal;
mod marks;
mod module;
#[cfg(test)]
mod mutations;
mod order;
mod parameters;
mod same;
mod shape;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use error::ImportError;
use error::{at, quoted};
use module::{Module, RawComputation, module_bytes};

pub(crate) use composite::graph_of;
pub(crate) use instruction::{annotation, carries_any_type};
pub(crate) use marks::Marks;
pub(crate) use parameters::{role_of, signature};
pub(crate) use shape::{TOKEN, TUPLE, opaque_part, primitive_of};

use crate::passes::inline::{self, MAX_CALL_DEPTH};
use crate::proto::InstructionHead;
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
        let (entry, marks) = Builder::new(&module).build_entry()?;
        let entry = inline::inline_entry(&entry)?;
        Ok(graph_of(inline::plain_name(module.name), entry, &marks)?)
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
    marks: Marks,
}

impl<'m, 'a> Builder<'m, 'a> {
    fn new(module: &'m Module<'a>) -> Self {
        Builder { module, states: HashMap::new(), marks: Marks::default() }
    }

    /// The entry, and what the file says of its parameters.
    fn build_entry(mut self) -> Result<(Arc<Computation>, Marks), ImportError> {
        let (entry, _) = self.build(self.module.entry, 0)?;
        Ok((entry, self.marks))
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
        let heads = raw.heads()?;
        let mut height = 0;
        let mut called = Vec::with_capacity(heads.len());
        for head in &heads {
            let (computations, below) = self.called(raw, head, depth)?;
            height = height.max(below);
            called.push(computations);
        }
        if depth + height > MAX_CALL_DEPTH {
            return Err(wrong(format!("calls are nested more than {MAX_CALL_DEPTH} deep")));
        }
        let is_entry = index == self.module.entry;
        let computation = Arc::new(self.convert(raw, &heads, called, is_entry)?);
        self.states.insert(index, State::Built(Arc::clone(&computation), height));
        Ok((computation, height))
    }

    /// The computations that an instruction calls, and how deep calls go from it.
    fn called(
        &mut self,
        raw: &RawComputation,
        head: &InstructionHead,
        depth: usize,
    ) -> Result<(Vec<Arc<Computation>>, usize), ImportError> {
        let Some(wanted) = instruction::called_count(&head.opcode) else { return Ok((Vec::new(), 0)) };
        let ids = &head.called_computation_ids;
        if !wanted.contains(&ids.len()) {
            let wanted = if wanted.end() == wanted.start() {
                wanted.start().to_string()
            } else {
                format!("{} or more", wanted.start())
            };
            let reason = format!("it calls {} computations, expected {wanted}", ids.len());
            return Err(at(raw.name, head, reason));
        }
        let mut computations = Vec::with_capacity(ids.len());
        let mut height = 0;
        for id in ids {
            let Some(&index) = self.module.by_id.get(id) else {
                return Err(at(
                    raw.name,
                    head,
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
        &mut self,
        raw: &RawComputation,
        heads: &[InstructionHead],
        mut called: Vec<Vec<Arc<Computation>>>,
        is_entry: bool,
    ) -> Result<Computation, ImportError> {
        let wrong = |reason| ImportError::Computation { computation: quoted(raw.name), reason };
        let operands = order::operand_indices(raw.name, heads)?;
        let order = order::topological(raw.name, heads, &operands)?;
        let mut places = vec![NodeId(0); heads.len()];
        for (place, &index) in order.iter().enumerate() {
            // There are far fewer than 2^32.
            places[index] = NodeId(place as u32);
        }
        let root = heads
            .iter()
            .position(|head| head.id == raw.root)
            .ok_or_else(|| wrong(format!("its root is instruction {}, which it does not have", raw.root)))?;

        let mut nodes: Vec<Node> = Vec::with_capacity(order.len());
        let mut names = inline::Names::default();
        for index in order {
            let head = &heads[index];
            let here = |reason| at(raw.name, head, reason);
            let mut instruction = raw.instruction(index)?;
            let operands: Vec<NodeId> = operands[index].iter().map(|&operand| places[operand]).collect();
            let ty = instruction.shape.take().ok_or_else(|| here("it has no shape".to_owned()))?;
            let ty = shape::type_of(&ty).map_err(here)?;
            let operand_types: Vec<&Type> = operands.iter().map(|id| &nodes[id.index()].ty).collect();
            let called_names = head.called_computation_ids.iter().map(|id| self.name_of(*id)).collect();
            let metadata = Metadata {
                op_name: instruction.metadata.take().map_or_else(String::new, |metadata| metadata.op_name),
                id: head.id as u64,
            };
            let sharding = instruction.sharding.take();
            let sharding = sharding.map(|s| sharding::from_proto(&s)).transpose().map_err(here)?;
            let called = std::mem::take(&mut called[index]);
            let marks = match &mut instruction.frontend_attributes {
                Some(attributes) if is_entry && head.opcode == "parameter" => {
                    std::mem::take(&mut attributes.map)
                }
                _ => BTreeMap::new(),
            };
            let op =
                instruction::op_of(instruction, &ty, &operand_types, called, called_names).map_err(here)?;
            if let Op::Parameter(number) = op {
                self.marks.add(number, marks.iter().map(|(key, text)| (key.as_str(), text.as_str())));
            }
            nodes.push(Node { name: names.unique(&head.name), op, operands, ty, metadata, sharding });
        }
        let computation = Computation { name: inline::plain_name(raw.name), nodes, root: places[root] };
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
