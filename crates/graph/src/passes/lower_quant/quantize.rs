//! `quantize` and `dequantize` in plain HLO.

use qwix_array::{Array, DType};
use qwix_quant::{Codec, QType, broadcast_views, promote};

use super::Parts;
use crate::ranges::{clamp, like, to_int};
use crate::{BinaryOp, Comparison, ComputationBuilder, GatherDims, GraphError, NodeId, Op, Type, UnaryOp};

/// Axes of size 1 repeated: a view of `broadcast_views` into the common shape.
fn spread(
    b: &mut ComputationBuilder,
    x: NodeId,
    view: &[usize],
    shape: &[usize],
) -> Result<NodeId, GraphError> {
    if view == shape {
        return b.reshape(x, view);
    }
    let kept: Vec<usize> = (0..shape.len()).filter(|&axis| view[axis] == shape[axis]).collect();
    let sizes: Vec<usize> = kept.iter().map(|&axis| view[axis]).collect();
    let x = b.reshape(x, &sizes)?;
    b.broadcast(x, shape, &kept)
}

/// An op of two arrays of one rank, each entry of the smaller serving a tile of the larger, in the wider dtype.
pub(super) fn generic(
    b: &mut ComputationBuilder,
    op: BinaryOp,
    x: NodeId,
    y: NodeId,
) -> Result<NodeId, GraphError> {
    let dtype = promote(b.dtype(x)?, b.dtype(y)?);
    let (x, y) = (b.convert(x, dtype)?, b.convert(y, dtype)?);
    let views = broadcast_views(b.shape(x)?, b.shape(y)?)?;
    let shape: Vec<usize> = views.x.iter().zip(&views.y).map(|(&x, &y)| if x == 1 { y } else { x }).collect();
    let (x, y) = (spread(b, x, &views.x, &shape)?, spread(b, y, &views.y, &shape)?);
    let result = b.binary(op, x, y)?;
    b.reshape(result, &views.output)
}

/// convert(x / scale + zero point).
pub(super) fn encode(
    b: &mut ComputationBuilder,
    x: NodeId,
    qtype: &QType,
    scale: NodeId,
    zero_point: Option<NodeId>,
) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    let mut x = if dtype == DType::BF16 || b.shape(x)? == b.shape(scale)? {
        generic(b, BinaryOp::Divide, x, scale)?
    } else {
        let one = like(b, scale, 1.0)?;
        let reciprocal = b.binary(BinaryOp::Divide, one, scale)?;
        generic(b, BinaryOp::Multiply, x, reciprocal)?
    };
    if let Some(zero_point) = zero_point {
        let zero_point = b.convert(zero_point, dtype)?;
        x = generic(b, BinaryOp::Add, x, zero_point)?;
    }
    match qtype.codec {
        Codec::Int { .. } => to_int(b, x, qtype),
        Codec::Float => {
            let x = clamp(b, x, -qtype.symmetric_bound, qtype.symmetric_bound)?;
            b.convert(x, qtype.storage)
        }
        Codec::Codebook(values) => nearest(b, x, values, qtype.storage),
    }
}

/// The index of the nearest of some values, the lowest one on a tie; in f32 for narrower floats.
fn nearest(
    b: &mut ComputationBuilder,
    x: NodeId,
    values: &[f32],
    storage: DType,
) -> Result<NodeId, GraphError> {
    let wide = if b.dtype(x)? == DType::F64 { DType::F64 } else { DType::F32 };
    let x = b.convert(x, wide)?;
    let shape = b.shape(x)?.to_vec();
    let mut best: Option<(NodeId, NodeId)> = None;
    for (index, &value) in values.iter().enumerate() {
        let value = like(b, x, value as f64)?;
        let distance = b.binary(BinaryOp::Subtract, value, x)?;
        let distance = b.unary(UnaryOp::Abs, distance)?;
        let index = b.constant(Array::scalar(index as i32))?;
        let index = b.broadcast(index, &shape, &[])?;
        best = Some(match best {
            None => (distance, index),
            Some((least, at)) => {
                let nearer = b.compare(Comparison::Lt, distance, least)?;
                (b.select(nearer, distance, least)?, b.select(nearer, index, at)?)
            }
        });
    }
    let (_, index) = best.ok_or_else(|| {
        GraphError::from(qwix_quant::QuantError::Invalid("a codebook without values".to_owned()))
    })?;
    b.convert(index, storage)
}

/// (qvalue − zero point) · scale.
pub(super) fn dequantize(
    b: &mut ComputationBuilder,
    parts: &Parts,
    qtype: &QType,
) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(parts.scale)?;
    let mut x = match qtype.codec {
        Codec::Int { .. } | Codec::Float => b.convert(parts.qvalue, dtype)?,
        Codec::Codebook(values) => {
            let x = look_up(b, parts.qvalue, values)?;
            b.convert(x, dtype)?
        }
    };
    if let Some(zero_point) = parts.zero_point {
        let zero_point = b.convert(zero_point, dtype)?;
        x = generic(b, BinaryOp::Subtract, x, zero_point)?;
    }
    generic(b, BinaryOp::Multiply, x, parts.scale)
}

/// values[index], of f32.
fn look_up(b: &mut ComputationBuilder, index: NodeId, values: &[f32]) -> Result<NodeId, GraphError> {
    let rank = b.shape(index)?.len();
    let table = b.constant(Array::from_vec(&[values.len()], values.to_vec())?)?;
    let index = b.convert(index, DType::S32)?;
    let dims = GatherDims {
        offset_dims: vec![],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        operand_batching_dims: vec![],
        start_indices_batching_dims: vec![],
        index_vector_dim: rank,
        slice_sizes: vec![1],
        indices_are_sorted: false,
    };
    b.add_as(Op::Gather(dims), &[table, index], Type::Token)
}
