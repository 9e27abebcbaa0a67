//! Calls replaced by what they call.
//!
//! JAX lowers a nested `jit` once and calls it from every scope that uses it; the names inside are relative to the call's
//! scope. (Inside a loop's body they are relative to the function that the loop stands in, so that they get the same
//! prefix as the loop.) Nothing after this pass knows calls.
//!
//! Ids ([`Metadata::id`]) are given anew, from 1: a node comes after all that it calls, an inlined body stands where its
//! call stood, and at each level the old ids decide. Sorting all nodes of a graph, loops' bodies included, by id gives the
//! order in which JAX traced them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::lower_quant::composite::is_ours;
use crate::{Computation, Graph, GraphError, Metadata, Node, NodeId, Op, Sharding, Type};

/// How deep computations may call each other before calls are inlined.
pub(crate) const MAX_CALL_DEPTH: usize = 100;

/// How many nodes a graph may have after inlining, those of called computations included.
pub(crate) const MAX_NODES: u64 = 1 << 20;

/// How much memory its nodes may take, roughly.
const MAX_BYTES: u64 = 1 << 29;

/// The graph without [`Op::Call`]: bodies stand where their calls stood, scopes are prefixed, ids are given anew. Only
/// composites of the name space `qwix` stay.
///
/// # Errors
/// When a call does not fit the computation that it calls, or the result would be too large.
pub fn inline_calls(graph: &Graph) -> Result<Graph, GraphError> {
    let entry = Arc::new(inline_entry(&graph.entry)?);
    Ok(Graph { name: graph.name.clone(), entry, parameters: graph.parameters.clone() })
}

/// The same for a computation that nothing calls.
pub(crate) fn inline_entry(entry: &Arc<Computation>) -> Result<Computation, GraphError> {
    let mut inliner = Inliner { sizes: HashMap::new() };
    let size = inliner.measure(entry, 0)?;
    if size.nodes > MAX_NODES || size.bytes > MAX_BYTES {
        return Err(GraphError::Invalid {
            computation: entry.name.clone(),
            reason: format!(
                "with calls inlined it would have {} nodes of {} bytes, expected at most {MAX_NODES} of {MAX_BYTES}",
                size.nodes, size.bytes
            ),
        });
    }
    inliner.computation(entry, "", 1)
}

/// What a computation would be with everything in it that it calls.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: u64,
    /// Without the prefix of the scope that it is called from, of which each node gets one.
    bytes: u64,
}

struct Inliner {
    sizes: HashMap<*const Computation, Size>,
}

/// A computation that is being written.
#[derive(Default)]
struct Draft {
    nodes: Vec<Node>,
    names: Names,
    /// Tuples that calls returned: whoever takes an element apart gets the element itself.
    returned: HashSet<NodeId>,
}

impl Inliner {
    fn measure(&mut self, computation: &Arc<Computation>, depth: usize) -> Result<Size, GraphError> {
        if let Some(&size) = self.sizes.get(&Arc::as_ptr(computation)) {
            return Ok(size);
        }
        if depth > MAX_CALL_DEPTH {
            return Err(GraphError::Invalid {
                computation: computation.name.clone(),
                reason: format!("calls are nested more than {MAX_CALL_DEPTH} deep"),
            });
        }
        let mut size = Size::default();
        for node in &computation.nodes {
            size.nodes = size.nodes.saturating_add(1);
            size.bytes = size.bytes.saturating_add(weight(node));
            let called = if is_kept(&node.op) { Vec::new() } else { node.op.called() };
            for called in called {
                let inner = self.measure(called, depth + 1)?;
                let prefix = match node.op {
                    Op::Call { .. } => inner.nodes.saturating_mul(node.metadata.op_name.len() as u64 + 1),
                    _ => 0,
                };
                size.nodes = size.nodes.saturating_add(inner.nodes);
                size.bytes = size.bytes.saturating_add(inner.bytes).saturating_add(prefix);
            }
        }
        self.sizes.insert(Arc::as_ptr(computation), size);
        Ok(size)
    }

    /// How many ids a computation takes.
    fn span(&self, computation: &Arc<Computation>) -> u64 {
        self.sizes.get(&Arc::as_ptr(computation)).map_or(0, |size| size.nodes)
    }

    /// A computation that stays one.
    fn computation(
        &self,
        computation: &Computation,
        scope: &str,
        first_id: u64,
    ) -> Result<Computation, GraphError> {
        let mut draft = Draft::default();
        let root = self.copy(computation, None, scope, first_id, &mut draft)?;
        Ok(draft.finish(&computation.name, root))
    }

    /// Copies a computation's nodes, with arguments in place of its parameters when it is inlined; returns its root.
    fn copy(
        &self,
        computation: &Computation,
        arguments: Option<&[NodeId]>,
        scope: &str,
        first_id: u64,
        draft: &mut Draft,
    ) -> Result<NodeId, GraphError> {
        let first_ids = self.first_ids(computation, first_id);
        let mut copies: Vec<NodeId> = Vec::with_capacity(computation.nodes.len());
        for (node, mut id) in computation.nodes.iter().zip(first_ids) {
            let operands: Vec<NodeId> = node.operands.iter().map(|operand| copies[operand.index()]).collect();
            let op_name = prefixed(scope, &node.metadata.op_name);
            let copy = match (&node.op, arguments) {
                (Op::Parameter(number), Some(arguments)) => arguments[*number],
                (Op::Call { computation: body, .. }, _) if !is_kept(&node.op) => {
                    check_call(computation, node, &operands, body, draft)?;
                    // A call without a name adds nothing to the scope.
                    let inner = if op_name.is_empty() { scope } else { first_of(&op_name) };
                    let root = self.copy(body, Some(&operands), inner, id, draft)?;
                    let value = &mut draft.nodes[root.index()];
                    if value.sharding.is_none() && !matches!(value.op, Op::Parameter(_)) {
                        value.sharding.clone_from(&node.sharding);
                    }
                    if draft.nodes[root.index()].op == Op::Tuple {
                        draft.returned.insert(root);
                    }
                    root
                }
                (Op::GetTupleElement(index), _) if draft.element(&operands, *index).is_some() => {
                    draft.element(&operands, *index).unwrap_or_default()
                }
                _ => {
                    let mut op = node.op.clone();
                    let inner = if is_kept(&op) { Vec::new() } else { op.called_mut() };
                    for called in inner {
                        let span = self.span(called);
                        *called = Arc::new(self.computation(called, scope, id)?);
                        id += span;
                    }
                    let copy = NodeId(draft.nodes.len() as u32);
                    let name = draft.names.unique(&node.name);
                    let metadata = Metadata { op_name, id };
                    let (ty, sharding) = (node.ty.clone(), node.sharding.clone());
                    draft.nodes.push(Node { name, op, operands, ty, metadata, sharding });
                    copy
                }
            };
            copies.push(copy);
        }
        Ok(copies[computation.root.index()])
    }

    /// The first id of each node's span: what it calls comes first, then itself. Old ids decide the order.
    fn first_ids(&self, computation: &Computation, first_id: u64) -> Vec<u64> {
        let mut order: Vec<usize> = (0..computation.nodes.len()).collect();
        order.sort_by_key(|&index| (computation.nodes[index].metadata.id, index));
        let mut ids = vec![0; order.len()];
        let mut next = first_id;
        for index in order {
            ids[index] = next;
            let called = computation.nodes[index].op.called();
            next += 1 + called.into_iter().map(|called| self.span(called)).sum::<u64>();
        }
        ids
    }
}

impl Draft {
    /// The element of a tuple that an inlined call returned.
    fn element(&self, operands: &[NodeId], index: usize) -> Option<NodeId> {
        let tuple = operands.first().filter(|tuple| self.returned.contains(tuple))?;
        self.nodes[tuple.index()].operands.get(index).copied()
    }

    /// The computation, less the calls' tuples that everybody took apart.
    fn finish(mut self, name: &str, root: NodeId) -> Computation {
        let mut uses = vec![0usize; self.nodes.len()];
        uses[root.index()] += 1;
        for operand in self.nodes.iter().flat_map(|node| &node.operands) {
            uses[operand.index()] += 1;
        }
        let mut dropped = vec![false; self.nodes.len()];
        for index in (0..self.nodes.len()).rev() {
            if uses[index] == 0 && self.returned.contains(&NodeId(index as u32)) {
                dropped[index] = true;
                for operand in &self.nodes[index].operands {
                    uses[operand.index()] -= 1;
                }
            }
        }
        let mut kept = 0;
        let places: Vec<NodeId> = dropped
            .iter()
            .map(|&dropped| {
                let place = NodeId(kept);
                kept += u32::from(!dropped);
                place
            })
            .collect();
        let mut index = 0;
        self.nodes.retain_mut(|node| {
            for operand in &mut node.operands {
                *operand = places[operand.index()];
            }
            index += 1;
            !dropped[index - 1]
        });
        Computation { name: name.to_owned(), nodes: self.nodes, root: places[root.index()] }
    }
}

/// Whether an op is a call that stays: a quantized op, which is read for what it stands for.
fn is_kept(op: &Op) -> bool {
    matches!(op, Op::Call { composite, .. } if is_ours(composite.as_ref()))
}

/// A call's operands and type are those of the computation: after inlining nobody could tell any more.
fn check_call(
    computation: &Computation,
    call: &Node,
    operands: &[NodeId],
    body: &Computation,
    draft: &Draft,
) -> Result<(), GraphError> {
    let wrong = |reason| {
        Err(GraphError::Instruction {
            computation: computation.name.clone(),
            instruction: call.name.clone(),
            opcode: call.op.name().to_owned(),
            reason,
        })
    };
    let parameters = body.parameters();
    if parameters.len() != operands.len() {
        return wrong(format!(
            "found {} operands, expected {}, as `{}` has",
            operands.len(),
            parameters.len(),
            body.name
        ));
    }
    for (number, (operand, parameter)) in operands.iter().zip(parameters).enumerate() {
        let (found, expected) = (&draft.nodes[operand.index()].ty, body.node(parameter));
        if expected.op != Op::Parameter(number) {
            return wrong(format!("`{}` has no parameter {number}", body.name));
        }
        if *found != expected.ty {
            return wrong(format!(
                "operand {number} is {found}, expected {}, as in `{}`",
                expected.ty, body.name
            ));
        }
    }
    let result = &body.node(body.root).ty;
    if *result != call.ty {
        return wrong(format!("its type is {}, expected {result}, which `{}` returns", call.ty, body.name));
    }
    Ok(())
}

/// An op_name under a scope. Fused locations stand side by side, `;` between them; each gets the scope.
fn prefixed(scope: &str, op_name: &str) -> String {
    if scope.is_empty() || op_name.is_empty() {
        return op_name.to_owned();
    }
    let parts: Vec<String> = op_name
        .split(';')
        .map(|part| match part.strip_prefix(scope) {
            // Older JAX writes the whole scope inside calls, too.
            Some(rest) if rest.starts_with('/') => part.to_owned(),
            _ => format!("{scope}/{part}"),
        })
        .collect();
    parts.join(";")
}

fn first_of(op_name: &str) -> &str {
    op_name.split(';').next().unwrap_or_default()
}

/// Roughly the bytes that a copy of a node takes.
fn weight(node: &Node) -> u64 {
    fn of_type(ty: &Type) -> usize {
        const NODE: usize = size_of::<Type>();
        match ty {
            Type::Array(array) => NODE + 8 * array.shape.len(),
            Type::QArray(q) => NODE + 40 * q.array.shape.len(),
            Type::Tuple(elements) => NODE + elements.iter().map(of_type).sum::<usize>(),
            Type::Token => NODE,
            Type::Opaque(text) => NODE + text.len(),
        }
    }
    // Other ops' attributes are a few numbers an axis.
    let attributes = if let Op::CustomCall(call) = &node.op {
        call.target.len() + call.config.len() + call.called.iter().map(|name| name.len() + 24).sum::<usize>()
    } else if let Op::Unsupported(op) = &node.op {
        op.opcode.len() + op.reason.len()
    } else {
        0
    };
    let text =
        node.name.len() + node.metadata.op_name.len() + node.sharding.as_ref().map_or(0, Sharding::weight);
    (size_of::<Node>() + of_type(&node.ty) + attributes + 2 * text + 8 * node.operands.len()) as u64
}

/// Names that are unique in a computation, of characters that HLO text allows.
#[derive(Default)]
pub(crate) struct Names {
    used: HashSet<String>,
    next: HashMap<String, u64>,
}

impl Names {
    /// The name itself, or with another number when it is taken.
    pub(crate) fn unique(&mut self, name: &str) -> String {
        let name = plain_name(name);
        if self.used.insert(name.clone()) {
            return name;
        }
        let stem = match name.rsplit_once('.') {
            Some((stem, number)) if number.bytes().all(|b| b.is_ascii_digit()) => stem,
            _ => &name,
        };
        let next = self.next.entry(stem.to_owned()).or_insert(0);
        loop {
            *next += 1;
            let name = format!("{stem}.{next}");
            if self.used.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// A name as HLO text can have it: other characters become `_`, as XLA does.
pub(crate) fn plain_name(name: &str) -> String {
    if name.is_empty() {
        return "unnamed".to_owned();
    }
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' })
        .collect()
}
