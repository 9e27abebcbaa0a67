//! Products as XLA's compilers for GPUs compute them rightly.
//!
//! Seen with jaxlib 0.11.2 on an H100, some of it through JAX itself as well: a dot of 8-bit integers or floats into
//! which other ops are fused, or whose axes are no multiples of 16, gives wrong numbers or NaN; so does a conversion of
//! integers narrower than a byte that is fused into a product; products of 4-bit floats, convolutions of integers with
//! 32-bit results and convolutions of 8-bit floats are not compiled, or give NaN. Each is written here in another way that
//! gives the same numbers.

use qwix_array::{Array, DType};
use qwix_graph::passes::widened;
use qwix_graph::{ArrayType, Computation, ConvDims, DotDims, Node, NodeId, Op, PadDim, Precision, SliceDim};

/// The axes of matrices of 8-bit numbers are filled up with zeros to a multiple of this.
const MULTIPLE: usize = 16;

/// Writes a node whose operands are at `operands` already, if it has to be written otherwise.
pub(crate) fn write(computation: &mut Computation, node: &Node, operands: &[NodeId]) -> Option<NodeId> {
    let mut emit = Emit { computation, node };
    match (&node.op, operands) {
        (Op::Convert, &[x]) => {
            let target = node.ty.as_array()?.dtype;
            let x = emit.widened(x)?;
            Some(emit.convert(x, target))
        }
        (Op::Dot(dims), &[lhs, rhs]) => emit.dot(dims, lhs, rhs),
        (Op::Convolution(dims), &[input, kernel]) => emit.convolution(dims, input, kernel),
        _ => None,
    }
}

fn is_fp8(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3FN | DType::F8E5M2)
}

/// Adds nodes in place of one.
struct Emit<'a> {
    computation: &'a mut Computation,
    node: &'a Node,
}

impl Emit<'_> {
    fn add(&mut self, op: Op, operands: Vec<NodeId>, ty: ArrayType) -> NodeId {
        let id = NodeId(self.computation.nodes.len() as u32);
        let name = format!("{}.{}.{}", self.node.name, op.name(), id.0);
        let metadata = self.node.metadata.clone();
        self.computation.nodes.push(Node { name, op, operands, ty: ty.into(), metadata, sharding: None });
        id
    }

    fn ty(&self, id: NodeId) -> Option<ArrayType> {
        self.computation.nodes.get(id.index())?.ty.as_array().cloned()
    }

    fn convert(&mut self, x: NodeId, dtype: DType) -> NodeId {
        match self.ty(x) {
            Some(ty) if ty.dtype != dtype => self.add(Op::Convert, vec![x], ArrayType::new(dtype, ty.shape)),
            Some(_) | None => x,
        }
    }

    /// A narrow array in 8 bits, out of the reach of the fusions that read it wrongly; none where it is not narrow.
    fn widened(&mut self, x: NodeId) -> Option<NodeId> {
        let ty = self.ty(x)?;
        let wide = ArrayType::new(widened(ty.dtype)?, ty.shape);
        let x = self.add(Op::Convert, vec![x], wide);
        self.barrier(x)
    }

    /// The same array, in memory: nothing before is fused with what comes after.
    fn barrier(&mut self, x: NodeId) -> Option<NodeId> {
        let ty = self.ty(x)?;
        Some(self.add(Op::OptimizationBarrier, vec![x], ty))
    }

    fn dot(&mut self, dims: &DotDims, lhs: NodeId, rhs: NodeId) -> Option<NodeId> {
        let result = self.node.ty.as_array()?.clone();
        let (l, r) = (self.widened(lhs).unwrap_or(lhs), self.widened(rhs).unwrap_or(rhs));
        let is_byte = |ty: ArrayType| matches!(ty.dtype, DType::S8 | DType::U8) || is_fp8(ty.dtype);
        if is_byte(self.ty(l)?) && is_byte(self.ty(r)?) {
            return self.dot_of_bytes(dims.clone(), l, r, result);
        }
        ((l, r) != (lhs, rhs)).then(|| self.add(Op::Dot(dims.clone()), vec![l, r], result))
    }

    /// A dot of 8-bit numbers: of whole blocks, and apart from what stands around it.
    fn dot_of_bytes(&mut self, mut dims: DotDims, lhs: NodeId, rhs: NodeId, ty: ArrayType) -> Option<NodeId> {
        let (mut l, mut r) = (lhs, rhs);
        let (mut l_ty, mut r_ty) = (self.ty(l)?, self.ty(r)?);
        if is_fp8(l_ty.dtype) && is_fp8(r_ty.dtype) {
            // Otherwise tensor cores add up in fewer bits than f32 has.
            dims.operand_precision = [Precision::Highest; 2];
        }
        if dims.lhs_contracting.is_empty() {
            // Nothing is summed: over one axis of size 1, then.
            (dims.lhs_contracting, dims.rhs_contracting) = (vec![l_ty.shape.len()], vec![r_ty.shape.len()]);
            l_ty.shape.push(1);
            r_ty.shape.push(1);
            l = self.add(Op::Reshape, vec![l], l_ty);
            r = self.add(Op::Reshape, vec![r], r_ty);
        }
        l = self.filled(l, &dims.lhs_batch)?;
        r = self.filled(r, &dims.rhs_batch)?;
        let (l, r) = (self.barrier(l)?, self.barrier(r)?);
        let full = dims.output_shape(&self.ty(l)?.shape, &self.ty(r)?.shape).ok()?;
        let product = self.add(Op::Dot(dims), vec![l, r], ArrayType::new(ty.dtype, full.clone()));
        let product = self.barrier(product)?;
        if full == ty.shape {
            return Some(product);
        }
        let slice = ty.shape.iter().map(|&size| SliceDim { start: 0, limit: size, stride: 1 }).collect();
        Some(self.add(Op::Slice(slice), vec![product], ty))
    }

    /// Zeros at the end of every axis but some, up to a multiple.
    fn filled(&mut self, x: NodeId, but: &[usize]) -> Option<NodeId> {
        let mut ty = self.ty(x)?;
        let mut dims = vec![PadDim { low: 0, high: 0, interior: 0 }; ty.shape.len()];
        for axis in (0..ty.shape.len()).filter(|axis| !but.contains(axis)) {
            let full = ty.shape[axis].checked_next_multiple_of(MULTIPLE)?;
            dims[axis].high = (full - ty.shape[axis]) as i64;
            ty.shape[axis] = full;
        }
        if dims.iter().all(|dim| dim.high == 0) {
            return Some(x);
        }
        self.pad(x, dims, ty)
    }

    fn pad(&mut self, x: NodeId, dims: Vec<PadDim>, ty: ArrayType) -> Option<NodeId> {
        let zero = Array::zeros(ty.dtype, &[]).ok()?;
        let zero = self.add(Op::Constant(zero), vec![], ArrayType::new(ty.dtype, []));
        Some(self.add(Op::Pad(dims), vec![x, zero], ty))
    }

    fn convolution(&mut self, dims: &ConvDims, input: NodeId, kernel: NodeId) -> Option<NodeId> {
        let result = self.node.ty.as_array()?.clone();
        let dtypes = (self.ty(input)?.dtype, self.ty(kernel)?.dtype);
        let narrow_float = |dtype| is_fp8(dtype) || dtype == DType::F4E2M1FN;
        if narrow_float(dtypes.0) || narrow_float(dtypes.1) {
            let input = self.widened(input).unwrap_or(input);
            let kernel = self.widened(kernel).unwrap_or(kernel);
            // Behind barriers, or the compiler makes it a convolution of 8-bit floats again.
            let operands = [input, kernel].map(|x| self.convert(x, DType::F32)).map(|x| self.barrier(x));
            let operands = operands.into_iter().collect::<Option<Vec<_>>>()?;
            let wide = ArrayType::new(DType::F32, result.shape);
            let product = self.add(Op::Convolution(dims.clone()), operands, wide);
            return Some(self.convert(product, result.dtype));
        }
        let is_int = |dtype: DType| dtype.is_int() && dtype.bits() <= 8;
        if !is_int(dtypes.0) || !is_int(dtypes.1) || dims.batch_group_count != 1 {
            return None;
        }
        let input = self.widened(input).unwrap_or(input);
        let kernel = self.widened(kernel).unwrap_or(kernel);
        self.as_dot(dims, input, kernel, &result)
    }

    /// A convolution as one dot: for each element of the window the part of the input that it meets, beside each other.
    fn as_dot(
        &mut self,
        dims: &ConvDims,
        input: NodeId,
        kernel: NodeId,
        result: &ArrayType,
    ) -> Option<NodeId> {
        let (x, k) = (self.ty(input)?, self.ty(kernel)?);
        let groups = dims.feature_group_count;
        let (batch, in_group) = (x.shape[dims.input_batch], k.shape[dims.kernel_input_feature]);
        let features = k.shape[dims.kernel_output_feature];
        let positions: Vec<usize> = dims.output_spatial.iter().map(|&axis| result.shape[axis]).collect();
        if result.shape.contains(&0) || dims.window.iter().any(|w| w.size == 0) || in_group == 0 {
            return None;
        }

        // [batch, spatial…, features], with its edges and gaps.
        let order = [&[dims.input_batch][..], &dims.input_spatial, &[dims.input_feature]].concat();
        let input = self.transpose(input, &order)?;
        let mut padding = vec![PadDim { low: 0, high: 0, interior: 0 }; order.len()];
        let mut padded = self.ty(input)?;
        for (i, w) in dims.window.iter().enumerate() {
            padding[i + 1] =
                PadDim { low: w.padding_low, high: w.padding_high, interior: w.base_dilation - 1 };
            let size = padded.shape[i + 1];
            let dilated =
                if size == 0 { 0 } else { (size - 1).checked_mul(w.base_dilation)?.checked_add(1)? };
            let size =
                i64::try_from(dilated).ok()?.checked_add(w.padding_low)?.checked_add(w.padding_high)?;
            padded.shape[i + 1] = usize::try_from(size).ok()?;
        }
        let input = self.pad(input, padding, padded.clone())?;

        // [batch, positions…, window, groups, features of a group] → [groups, batch, positions…, contracted].
        let window: usize = dims.window.iter().map(|w| w.size).product();
        let contracted = window.checked_mul(in_group)?;
        let mut parts = Vec::with_capacity(window);
        for element in 0..window {
            let mut rest = element;
            let whole = |&size: &usize| SliceDim { start: 0, limit: size, stride: 1 };
            let mut slice: Vec<SliceDim> = padded.shape.iter().map(whole).collect();
            for (i, w) in dims.window.iter().enumerate().rev() {
                let at = rest % w.size;
                rest /= w.size;
                let at = if w.reversal { w.size - 1 - at } else { at };
                let (start, stride) = (at * w.window_dilation, w.stride);
                slice[i + 1] = SliceDim { start, limit: start + (positions[i] - 1) * stride + 1, stride };
            }
            let shape = [&[batch][..], &positions, &[groups * in_group]].concat();
            let part = self.add(Op::Slice(slice), vec![input], ArrayType::new(x.dtype, shape));
            parts.push(self.reshape(part, [&[batch][..], &positions, &[1, groups, in_group]].concat())?);
        }
        let axis = positions.len() + 1;
        let input = match parts[..] {
            [part] => part,
            _ => {
                let shape = [&[batch][..], &positions, &[window, groups, in_group]].concat();
                self.add(Op::Concatenate { dimension: axis }, parts, ArrayType::new(x.dtype, shape))
            }
        };
        let order: Vec<usize> = [axis + 1].into_iter().chain(0..=axis).chain([axis + 2]).collect();
        let input = self.transpose(input, &order)?;
        let input = self.reshape(input, [&[groups, batch][..], &positions, &[contracted]].concat())?;

        // [window, features of a group, groups, output features of a group] → [groups, contracted, output features].
        let spatial = &dims.kernel_spatial[..];
        let order = [spatial, &[dims.kernel_input_feature, dims.kernel_output_feature]].concat();
        let kernel = self.transpose(kernel, &order)?;
        let kernel = self.reshape(kernel, vec![contracted, groups, features / groups])?;
        let kernel = self.transpose(kernel, &[1, 0, 2])?;

        let dot = DotDims {
            lhs_contracting: vec![positions.len() + 2],
            rhs_contracting: vec![1],
            lhs_batch: vec![0],
            rhs_batch: vec![0],
            ..DotDims::default()
        };
        let shape = [&[groups, batch][..], &positions, &[features / groups]].concat();
        let product = self.dot_of_bytes(dot, input, kernel, ArrayType::new(result.dtype, shape))?;

        // [groups, batch, positions…, features of a group] → [batch, positions…, features], then as the result has it.
        let last = positions.len() + 2;
        let order: Vec<usize> = (1..last).chain([0, last]).collect();
        let product = self.transpose(product, &order)?;
        let product = self.reshape(product, [&[batch][..], &positions, &[features]].concat())?;
        let from = [&[dims.output_batch][..], &dims.output_spatial, &[dims.output_feature]].concat();
        let order: Vec<usize> =
            (0..from.len()).filter_map(|axis| from.iter().position(|&f| f == axis)).collect();
        self.transpose(product, &order)
    }

    fn reshape(&mut self, x: NodeId, shape: Vec<usize>) -> Option<NodeId> {
        let ty = self.ty(x)?;
        Some(if ty.shape == shape {
            x
        } else {
            self.add(Op::Reshape, vec![x], ArrayType::new(ty.dtype, shape))
        })
    }

    fn transpose(&mut self, x: NodeId, permutation: &[usize]) -> Option<NodeId> {
        let ty = self.ty(x)?;
        if permutation.is_sorted() {
            return Some(x);
        }
        let shape: Vec<usize> = permutation.iter().map(|&axis| ty.shape[axis]).collect();
        let op = Op::Transpose { permutation: permutation.to_vec() };
        Some(self.add(op, vec![x], ArrayType::new(ty.dtype, shape)))
    }
}
