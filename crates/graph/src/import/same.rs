//! Whether two computations do the same in the same way.

use std::sync::Arc;

use crate::{Computation, Node, NodeId, Op, Type};

/// Whether a computation is an expected one: the same ops in the same order of need. Names, metadata, shardings and the
/// order in the list do not count. Nor does how an array gets another shape with its elements in their order: on the way
/// through StableHLO, reshapes in a row become one, and a constant gets its shape at once.
///
/// `found` may be anything, and is followed only as far as `expected` goes.
pub(super) fn same(expected: &Computation, found: &Computation) -> bool {
    let types = |c: &Computation| -> Vec<Type> {
        c.parameters().into_iter().map(|id| c.node(id).ty.clone()).collect()
    };
    let mut pairs = vec![None; expected.nodes.len()];
    types(expected) == types(found) && Same { expected, found }.values(expected.root, found.root, &mut pairs)
}

struct Same<'a> {
    expected: &'a Computation,
    found: &'a Computation,
}

impl Same<'_> {
    /// Whether two nodes have the same value. `pairs` has what was compared.
    fn values(&self, expected: NodeId, found: NodeId, pairs: &mut [Option<NodeId>]) -> bool {
        if self.expected.node(expected).ty != self.found.node(found).ty {
            return false;
        }
        let (e, f) = (unshaped(self.expected, expected), unshaped(self.found, found));
        if let Some(known) = pairs[e.index()] {
            return known == f;
        }
        pairs[e.index()] = Some(f);
        let (a, b) = (self.expected.node(e), self.found.node(f));
        if let (Op::Constant(a), Op::Constant(b)) = (&a.op, &b.op) {
            return a.dtype() == b.dtype() && a.bytes() == b.bytes();
        }
        let (called, others) = (a.op.called(), b.op.called());
        a.ty == b.ty
            && a.operands.len() == b.operands.len()
            && called.len() == others.len()
            && without_called(&a.op) == without_called(&b.op)
            && called.into_iter().zip(others).all(|(a, b)| same(a, b))
            && a.operands.iter().zip(&b.operands).all(|(&a, &b)| self.values(a, b, pairs))
    }
}

fn without_called(op: &Op) -> Op {
    let mut op = op.clone();
    op.called_mut().into_iter().for_each(|called| *called = Arc::default());
    op
}

/// What a row of nodes that only give a shape begins with.
fn unshaped(c: &Computation, mut id: NodeId) -> NodeId {
    while let Some(operand) = reshaped(c, c.node(id)) {
        id = operand;
    }
    id
}

/// The operand of a node that gives it another shape, the elements in their order.
fn reshaped(c: &Computation, node: &Node) -> Option<NodeId> {
    let &[operand] = node.operands.as_slice() else { return None };
    let (Type::Array(from), Type::Array(to)) = (&c.node(operand).ty, &node.ty) else { return None };
    let is_reshape = match &node.op {
        Op::Reshape => true,
        Op::Transpose { permutation } => {
            permutation.iter().filter(|&&axis| from.shape.get(axis) != Some(&1)).is_sorted()
        }
        Op::Broadcast { dimensions } => from.byte_len() == to.byte_len() && dimensions.is_sorted(),
        _ => false,
    };
    is_reshape.then_some(operand)
}
