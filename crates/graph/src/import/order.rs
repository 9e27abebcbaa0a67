//! Which instruction needs which, and an order that respects it.

use std::collections::{BinaryHeap, HashMap, HashSet};

use super::error::{ImportError, at, quoted};
use crate::proto::InstructionHead;

/// Operands as places in the list of instructions.
pub(super) fn operand_indices(
    computation: &str,
    heads: &[InstructionHead],
) -> Result<Vec<Vec<usize>>, ImportError> {
    let mut by_id = HashMap::with_capacity(heads.len());
    for (index, head) in heads.iter().enumerate() {
        if let Some(other) = by_id.insert(head.id, index) {
            let other: &InstructionHead = &heads[other];
            let reason = format!("its id {} is also that of `{}`", head.id, quoted(&other.name));
            return Err(at(computation, head, reason));
        }
    }
    let operands = |head: &InstructionHead| {
        let find = |id: &i64| {
            by_id.get(id).copied().ok_or_else(|| {
                let reason = format!("its operand {id} is not an instruction of this computation");
                at(computation, head, reason)
            })
        };
        head.operand_ids.iter().map(find).collect()
    };
    heads.iter().map(operands).collect()
}

/// An order in which operands come before their users; among those that are free to go next, the one with the lowest id,
/// which JAX traced first.
pub(super) fn topological(
    computation: &str,
    heads: &[InstructionHead],
    operands: &[Vec<usize>],
) -> Result<Vec<usize>, ImportError> {
    let mut users = vec![Vec::new(); heads.len()];
    let mut missing: Vec<usize> = operands.iter().map(Vec::len).collect();
    for (user, operands) in operands.iter().enumerate() {
        for &operand in operands {
            users[operand].push(user);
        }
    }
    let key = |index: usize| std::cmp::Reverse((heads[index].id as u64, index));
    let mut ready: BinaryHeap<_> = (0..heads.len()).filter(|&i| missing[i] == 0).map(key).collect();
    let mut order = Vec::with_capacity(heads.len());
    while let Some(std::cmp::Reverse((_, index))) = ready.pop() {
        order.push(index);
        for &user in &users[index] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(key(user));
            }
        }
    }
    if order.len() == heads.len() {
        return Ok(order);
    }
    // From an instruction that waits, operands that wait lead around the cycle.
    let waiting = |index: &usize| missing[*index] > 0;
    let mut path = Vec::new();
    let mut seen = HashSet::new();
    let mut next = (0..heads.len()).find(waiting);
    while let Some(index) = next {
        path.push(index);
        if !seen.insert(index) {
            break;
        }
        next = operands[index].iter().copied().find(waiting);
    }
    let start = path.iter().position(|index| Some(index) == path.last()).unwrap_or(0);
    let cycle: Vec<String> =
        path[start..].iter().take(9).map(|&i| format!("`{}`", quoted(&heads[i].name))).collect();
    Err(ImportError::Computation {
        computation: quoted(computation),
        reason: format!("its instructions need each other in a circle: {}", cycle.join(" ← ")),
    })
}
