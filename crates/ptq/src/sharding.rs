//! How quantized weights are spread over devices.

use qwix_graph::{Graph, Op, Sharding};

use crate::{Storage, Weight};

/// The sharding of the quantized form of a weight, where its variable has one; and why it is whole on each device although
/// the variable is not. It is that of the variable, followed through the steps that are taken when the weight is quantized.
pub(crate) fn stored(graph: &Graph, weight: &Weight) -> Option<(Sharding, Option<String>)> {
    let is_variable = |op: &Op| matches!(op, Op::Parameter(number) if *number == weight.parameter);
    let node = graph.entry.nodes.iter().find(|node| is_variable(&node.op))?;
    let (sharding, array) = (node.sharding.as_ref()?, node.ty.as_array()?);
    match &weight.storage {
        Storage::Folded { prep } => Some(match sharding.followed(&array.shape, prep) {
            Ok(sharding) => (sharding, None),
            Err(reason) => (Sharding::Replicated, Some(reason)),
        }),
        Storage::InPlace { .. } | Storage::EachRun { .. } => Some((sharding.clone(), None)),
    }
}
