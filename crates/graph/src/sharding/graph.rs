//! The shardings of a whole graph.

use std::collections::HashSet;
use std::sync::Arc;

use crate::{Graph, GraphError, Node, Op};

impl Graph {
    /// Over how many devices the graph's shardings spread it; `None` when they name no more than one.
    ///
    /// # Errors
    /// When they are for different numbers of devices, do not fit their values, or are of a kind that XLA's partitioner
    /// does not act upon as it should: names the instruction.
    pub fn device_count(&self) -> Result<Option<usize>, GraphError> {
        let mut first: Option<(usize, &Node)> = None;
        let mut sharded = Vec::new();
        let mut pending = vec![&*self.entry];
        let mut seen = HashSet::new();
        while let Some(computation) = pending.pop() {
            for node in &computation.nodes {
                let called = node.op.called().into_iter();
                pending.extend(called.filter(|c| seen.insert(Arc::as_ptr(c))).map(Arc::as_ref));
                let wrong = |reason| Err(computation.error(node, reason));
                let Some(sharding) = &node.sharding else {
                    if let Op::Sharding { .. } = node.op {
                        return wrong("it says no sharding".to_owned());
                    }
                    continue;
                };
                match (sharding.device_count(), first) {
                    (Err(reason), _) => return wrong(reason),
                    (Ok(None | Some(1)), _) => {}
                    (Ok(Some(count)), None) => first = Some((count, node)),
                    (Ok(Some(count)), Some((other, node))) if count != other => {
                        return wrong(format!(
                            "the sharding {sharding} is for {count} devices, that of `{}` for {other}",
                            node.name
                        ));
                    }
                    (Ok(Some(_)), Some(_)) => {}
                }
                sharded.push((computation, node, sharding));
            }
        }
        let Some((count, _)) = first else { return Ok(None) };
        for (computation, node, sharding) in sharded {
            let fits = match sharding.device_count() {
                Ok(Some(1)) => {
                    Err(format!("the sharding {sharding} is for 1 device, others are for {count}"))
                }
                Ok(Some(_) | None) => sharding.check(&node.ty),
                Err(reason) => Err(reason),
            };
            fits.map_err(|reason| computation.error(node, reason))?;
        }
        Ok(Some(count))
    }
}
