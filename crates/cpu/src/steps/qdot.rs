//! Products with quantized sides. How one is computed, [`dot_plan`] says; here integers of a byte go to the int8 kernels, and a
//! weight that is dequantized first is so a panel at a time, so that it is never held in float as a whole.

use std::borrow::Cow;

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{DotDims, NodeId, Op, Type};
use qwix_quant::{DotPlan, OperandInfo, QArray, QuantizedDot, QuantizedInfo, SidePlan, dot_plan};
use qwix_simd::{Packed, PackedB, Rows, Workspace, best, multiply};

use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::dot::{FloatSide, Side, Sizes, axes, from_f32, product, run_tasks, sizes};
use crate::steps::integers::{self, Integers, Left};
use crate::steps::moves::copy_walk;
use crate::steps::scales::{Rounding, dense_scales, dense_zero_points, put};
use crate::steps::weights::Weight;
use crate::steps::wide;
use crate::values::fail;
use crate::view::View;

/// What plans need to know of an operand; quantized ones by their types, which values are held against.
pub(crate) fn info(planning: &Planning<'_>, id: NodeId) -> Option<OperandInfo> {
    match &planning.node(id).ty {
        Type::Array(ty) => Some(OperandInfo::array(&ty.shape, ty.dtype)),
        Type::QArray(ty) => Some(OperandInfo {
            shape: ty.array.shape.clone(),
            dtype: ty.array.dtype,
            quantized: Some(QuantizedInfo {
                qtype: ty.how.qtype,
                scale_shape: ty.scale_shape().ok()?,
                has_zero_point: ty.has_zero_point(),
            }),
        }),
        Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
    }
}

/// The stored values of an operand.
pub(crate) fn stored(value: &Value) -> Result<&Array, EvalError> {
    match value {
        Value::Array(array) => Ok(array),
        Value::QArray(q) => Ok(q.qvalue()),
        Value::Tuple(_) => Err(fail("a product takes arrays")),
    }
}

pub(crate) fn scale(value: &Value) -> Option<&Array> {
    match value {
        Value::QArray(q) => Some(q.scale()),
        Value::Array(_) | Value::Tuple(_) => None,
    }
}

pub(crate) fn zero_point(value: &Value) -> Option<&Array> {
    match value {
        Value::QArray(q) => q.zero_point(),
        Value::Array(_) | Value::Tuple(_) => None,
    }
}

/// Whether a run-time value has the scales that the plan was made for.
pub(crate) fn check(value: &Value, info: &OperandInfo) -> Result<(), EvalError> {
    let fits = match (value, &info.quantized) {
        (Value::QArray(q), Some(expected)) => {
            q.scale().shape() == expected.scale_shape
                && q.shape() == info.shape
                && q.qtype() == expected.qtype
        }
        (Value::Array(array), None) => array.shape() == info.shape,
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(fail(format!("an operand is {}, which the plan is not for", value.describe())))
    }
}

/// The bytes of a stored array of integers of at most eight bits.
pub(crate) fn bytes_of(array: &Array) -> Result<Cow<'_, [i8]>, EvalError> {
    match array.dtype() {
        DType::S8 => Ok(array.values::<i8>()?),
        _ => Ok(Cow::Owned(array.unpack_i8()?)),
    }
}

/// Whether a stored dtype goes into the int8 kernels.
pub(crate) fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::S8 | DType::S4 | DType::S2 | DType::U4)
}

/// One side's bytes: as they lie, or copied in the order batch, free, contracted.
pub(crate) struct ByteSide {
    side: Option<Side>,
    order: View,
    dense: Side,
}

impl ByteSide {
    /// `rows`: whether values of a row must lie together.
    pub(crate) fn new(
        shape: &[usize],
        own: &Axes<'_>,
        sizes: (usize, usize, usize),
        rows: bool,
    ) -> Option<Self> {
        let free = axes(shape.len(), own.batch, own.contracted);
        let order: Vec<usize> = own.batch.iter().chain(&free).chain(own.contracted).copied().collect();
        let view = View::dense(shape);
        let together = |side: &Side| !rows || side.contracted() == 1 || sizes.2 <= 1;
        Some(ByteSide {
            side: Side::new(&view, own.batch, &free, own.contracted).filter(together),
            order: view.transpose(&order)?.merged(),
            dense: Side::dense(sizes.0, sizes.1, sizes.2),
        })
    }

    fn read<'a>(&'a self, array: &'a Array) -> Result<(Cow<'a, [i8]>, &'a Side), EvalError> {
        let values = bytes_of(array)?;
        if let Some(side) = &self.side {
            return Ok((values, side));
        }
        let mut copy = vec![0i8; values.len()];
        copy_walk(&self.order, bytemuck::cast_slice(&values), 1, bytemuck::cast_slice_mut(&mut copy))?;
        Ok((Cow::Owned(copy), &self.dense))
    }
}

/// The right side.
enum Right {
    /// Of a weight: packed when the step is prepared.
    Fixed { panels: Panels, scales: Vec<f32>, zero_points: Option<Vec<i32>> },
    /// Of an operand: packed on each run.
    Dynamic,
}

/// A weight that is packed when its step is prepared.
enum Panels {
    Stored(Array),
    Packed(Vec<PackedB>),
}

impl Panels {
    fn prepare(&mut self, side: &ByteSide, sizes: Sizes) -> Result<(), EvalError> {
        if let Panels::Stored(array) = self {
            *self = Panels::Packed(pack(array, side, sizes)?);
        }
        Ok(())
    }

    fn get(&self) -> Result<&[PackedB], EvalError> {
        match self {
            Panels::Packed(panels) => Ok(panels),
            Panels::Stored(_) => Err(fail("a weight was not prepared")),
        }
    }
}

/// Integers by integers.
struct IntegerDot {
    plan: QuantizedDot,
    lhs: OperandInfo,
    rhs: OperandInfo,
    lhs_side: ByteSide,
    rhs_side: ByteSide,
    sizes: Sizes,
    tiles: usize,
    rounding: Rounding,
    right: Right,
    result: DType,
    dtype: DType,
}

/// The product's axes of each side: batch and its own free ones.
fn product_axes(plan: &QuantizedDot) -> (Vec<usize>, Vec<usize>) {
    let batch = plan.dims.lhs_batch.len();
    let lhs_free = plan.lhs.shape.len() - batch - plan.dims.lhs_contracting.len();
    let rank = plan.product_shape.len();
    let left = (0..batch + lhs_free).collect();
    let right = (0..batch).chain(batch + lhs_free..rank).collect();
    (left, right)
}

pub(crate) fn pack(array: &Array, side: &ByteSide, sizes: Sizes) -> Result<Vec<PackedB>, EvalError> {
    let (values, side) = side.read(array)?;
    side.starts(sizes.batch)
        .into_iter()
        .map(|start| {
            let values = values.get(start..).unwrap_or_default();
            PackedB::new(values, sizes.depth, sizes.columns, side.contracted() as usize, side.free() as usize)
                .ok_or_else(|| fail("an operand is smaller than its type"))
        })
        .collect()
}

/// Scales and zero points of one side, in the order of the batch and its free axes.
type Scales = (Vec<f32>, Option<Vec<i32>>);

/// The scales of the left side, one for each batch entry and row.
pub(crate) fn left_scales(plan: &QuantizedDot, sizes: Sizes, value: &Value) -> Result<Scales, EvalError> {
    let own = left_axes(&plan.dims);
    side_scales(plan, &plan.lhs, &own, &product_axes(plan).0, sizes.batch * sizes.rows, value)
}

/// The scales of the right side, one for each batch entry and column.
pub(crate) fn right_scales(plan: &QuantizedDot, sizes: Sizes, value: &Value) -> Result<Scales, EvalError> {
    let own = right_axes(&plan.dims);
    side_scales(plan, &plan.rhs, &own, &product_axes(plan).1, sizes.batch * sizes.columns, value)
}

fn side_scales(
    plan: &QuantizedDot,
    side: &SidePlan,
    own: &Axes<'_>,
    in_product: &[usize],
    count: usize,
    value: &Value,
) -> Result<Scales, EvalError> {
    let scales = match (scale(value), &side.scale) {
        (Some(scale), Some(how)) => dense_scales(scale, how, &plan.product_shape, in_product)?,
        _ => vec![1.0; count],
    };
    let zero_points = match (zero_point(value), &side.zero_point) {
        (Some(z), Some(how)) => {
            let free = axes(side.shape.len(), own.batch, own.contracted);
            let order: Vec<usize> = own.batch.iter().chain(&free).copied().collect();
            let to: Vec<usize> = order.iter().map(|&a| side.shape[a]).collect();
            Some(dense_zero_points(z, &how.split, &order, &to)?)
        }
        _ => None,
    };
    Ok((scales, zero_points))
}

impl Step for IntegerDot {
    fn name(&self) -> &'static str {
        "int8-dot"
    }

    fn prepare(&mut self) -> Result<(), EvalError> {
        match &mut self.right {
            Right::Fixed { panels, .. } => panels.prepare(&self.rhs_side, self.sizes),
            Right::Dynamic => Ok(()),
        }
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let left = operands.first().ok_or_else(|| fail("an operand is missing"))?;
        check(left, &self.lhs)?;
        let packed;
        let (panels, right_scales, right_zero_points) = match &self.right {
            Right::Fixed { panels, scales, zero_points } => {
                (panels.get()?, Cow::Borrowed(scales), zero_points.clone())
            }
            Right::Dynamic => {
                let right = operands.get(1).ok_or_else(|| fail("an operand is missing"))?;
                check(right, &self.rhs)?;
                packed = pack(stored(right)?, &self.rhs_side, self.sizes)?;
                let (scales, zero_points) = right_scales(&self.plan, self.sizes, right)?;
                (&packed[..], Cow::Owned(scales), zero_points)
            }
        };
        let (values, side) = self.lhs_side.read(stored(left)?)?;
        let (left_scales, left_zero_points) = left_scales(&self.plan, self.sizes, left)?;
        let starts = side.starts(self.sizes.batch);
        let panels: Vec<Packed<'_>> = panels.iter().map(PackedB::view).collect();
        let integers = Integers {
            left: Left {
                values: &values,
                starts: &starts,
                stride: side.free() as usize,
                scales: &left_scales,
                zero_points: left_zero_points.as_deref(),
            },
            right: integers::Right {
                panels: &panels,
                scales: &right_scales,
                zero_points: right_zero_points.as_deref(),
            },
            sizes: self.sizes,
            tiles: self.tiles,
            rounding: self.rounding,
        };
        let mut out = context.buffers.for_array(DType::F32, &self.plan.shape)?;
        integers.multiply(out.values_mut())?;
        finish(out, self.result, self.dtype, &self.plan.shape, context)
    }
}

/// Rounds to what the product's own dtype holds, then to the node's.
fn finish(
    mut out: crate::buffers::Block,
    result: DType,
    dtype: DType,
    shape: &[usize],
    context: &Context<'_>,
) -> Result<Value, EvalError> {
    crate::steps::scales::round(out.values_mut(), result);
    Ok(Value::Array(from_f32(out, dtype, shape, context)?))
}

/// Stored floats by stored numbers, multiplied in f32.
struct FloatDot {
    plan: QuantizedDot,
    infos: [OperandInfo; 2],
    lhs: FloatSide,
    rhs: FloatSide,
    sizes: Sizes,
    tiles: usize,
    rounding: Rounding,
    dtype: DType,
}

impl Step for FloatDot {
    fn name(&self) -> &'static str {
        "stored-dot"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let [left, right] = &operands[..] else { return Err(fail("an operand is missing")) };
        check(left, &self.infos[0])?;
        check(right, &self.infos[1])?;
        let wide = |value| Ok::<_, EvalError>(stored(value)?.convert(DType::F32));
        let (a, b) = (wide(left)?, wide(right)?);
        let mut sums = product(&self.lhs, &self.rhs, &a, &b, self.sizes, &self.plan.product_shape, context)?;
        let (left_axes, right_axes) = product_axes(&self.plan);
        let scales = |value: &Value, plan: &Option<_>, axes: &[usize], count| match (scale(value), plan) {
            (Some(scale), Some(plan)) => dense_scales(scale, plan, &self.plan.product_shape, axes),
            _ => Ok(vec![1.0; count]),
        };
        let Sizes { batch, rows, columns, .. } = self.sizes;
        let left = scales(left, &self.plan.lhs.scale, &left_axes, batch * rows)?;
        let right = scales(right, &self.plan.rhs.scale, &right_axes, batch * columns)?;
        let mut out = context.buffers.for_array(DType::F32, &self.plan.shape)?;
        let result = out.values_mut::<f32>();
        result.fill(0.0);
        for (i, row) in sums.values_mut::<f32>().chunks_exact_mut(columns.max(1)).enumerate() {
            let (b, r) = (i / rows, i % rows);
            crate::steps::scales::round(row, self.plan.accumulator);
            self.rounding.floats(row, left[i], &right[b * columns..][..columns]);
            let (o, t) = (b / self.tiles, b % self.tiles);
            put(row, t > 0, &mut result[(o * rows + r) * columns..][..columns]);
        }
        finish(out, self.plan.result, self.dtype, &self.plan.shape, context)
    }
}

/// A float side by a weight that is dequantized a panel at a time.
struct WeightOnly {
    lhs: FloatSide,
    weight: Weight,
    sizes: Sizes,
    result: DType,
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for WeightOnly {
    fn name(&self) -> &'static str {
        "weight-only-dot"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let Some(Value::Array(a)) = operands.first() else { return Err(fail("an operand is missing")) };
        let Sizes { batch, rows, depth, .. } = self.sizes;
        let (values, side) = self.lhs.read(a, (batch, rows, depth))?;
        let mut out = context.buffers.for_array(DType::F32, &self.shape)?;
        let weight = self.weight.view().ok_or_else(|| fail("a weight's codes have no table"))?;
        weight.multiply(&values, &side, self.sizes, out.values_mut())?;
        finish(out, self.result, self.dtype, &self.shape, context)
    }
}

/// Dequantizes what is quantized, whole, then multiplies floats.
struct Dequantized {
    lhs: FloatSide,
    rhs: FloatSide,
    /// A side that does not depend on the call.
    known: [Option<QArray>; 2],
    sizes: Sizes,
    result: DType,
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for Dequantized {
    fn name(&self) -> &'static str {
        "dequantized-dot"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let mut rest = operands.into_iter();
        let mut side = |known: &Option<QArray>| match known {
            Some(q) => Ok(qwix_quant::dequantize(q)?),
            None => match rest.next() {
                Some(Value::QArray(q)) => Ok(qwix_quant::dequantize(&q)?),
                Some(Value::Array(array)) => Ok(array),
                Some(Value::Tuple(_)) | None => Err(fail("an operand is missing")),
            },
        };
        let (a, b) = (side(&self.known[0])?, side(&self.known[1])?);
        let out = product(&self.lhs, &self.rhs, &a, &b, self.sizes, &self.shape, context)?;
        finish(out, self.result, self.dtype, &self.shape, context)
    }
}

/// The axes of one side.
pub(crate) struct Axes<'a> {
    batch: &'a [usize],
    contracted: &'a [usize],
}

fn left_axes(dims: &DotDims) -> Axes<'_> {
    Axes { batch: &dims.lhs_batch, contracted: &dims.lhs_contracting }
}

pub(crate) fn right_axes(dims: &DotDims) -> Axes<'_> {
    Axes { batch: &dims.rhs_batch, contracted: &dims.rhs_contracting }
}

fn float_side(shape: &[usize], axes: Axes<'_>) -> Option<FloatSide> {
    FloatSide::new(&View::dense(shape), axes.batch, axes.contracted)
}

pub(crate) fn in_place(shape: &[usize], own: &Axes<'_>) -> Option<Side> {
    let free = axes(shape.len(), own.batch, own.contracted);
    Side::new(&View::dense(shape), own.batch, &free, own.contracted)
}

fn known<'a>(planning: &'a Planning<'_>, id: NodeId) -> Option<&'a Value> {
    planning.known[id.index()].as_ref()
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Dot(dims) = &node.op else { return None };
    let &[a, b] = &node.operands[..] else { return None };
    let dtype = planning.array_type(id)?.dtype;
    if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16 | DType::S32) {
        return None;
    }
    let (lhs, rhs) = (info(planning, a)?, info(planning, b)?);
    // Plain arrays of floats are the float step's.
    if lhs.quantized.is_none() && rhs.quantized.is_none() {
        return plain(planning, id, dims, lhs, rhs);
    }
    match dot_plan(&lhs, &rhs, dims, None).ok()? {
        DotPlan::Dequantize { result, shape } => {
            dequantize_first(planning, [a, b], dims, [lhs, rhs], result, dtype, shape)
        }
        DotPlan::Multiply(plan) => {
            let tiles = plan.sum_axes.iter().map(|&axis| plan.product_shape[axis]).product();
            let rounding = Rounding::new(
                plan.accumulator,
                lhs.quantized.as_ref().map(|_| lhs.dtype),
                rhs.quantized.as_ref().map(|_| rhs.dtype),
            )?;
            if is_byte(lhs.value_dtype()) && is_byte(rhs.value_dtype()) && plan.accumulator == DType::S32 {
                return integers(planning, [a, b], *plan, [lhs, rhs], tiles, rounding, dtype);
            }
            if plan.accumulator == DType::S32 && dtype != DType::S32 {
                return wide::quantized(planning, [a, b], *plan, [lhs, rhs], tiles, rounding, dtype);
            }
            if plan.accumulator == DType::S32
                || plan.lhs.zero_point.is_some()
                || plan.rhs.zero_point.is_some()
            {
                return None;
            }
            let sizes = sizes(&plan.dims, &plan.lhs.shape, &plan.rhs.shape);
            let step = FloatDot {
                lhs: float_side(&plan.lhs.shape, left_axes(&plan.dims))?,
                rhs: float_side(&plan.rhs.shape, right_axes(&plan.dims))?,
                plan: *plan,
                infos: [lhs, rhs],
                sizes,
                tiles,
                rounding,
                dtype,
            };
            Planned::of(node, step)
        }
    }
}

fn integers(
    planning: &Planning<'_>,
    [a, b]: [NodeId; 2],
    plan: QuantizedDot,
    [lhs, rhs]: [OperandInfo; 2],
    tiles: usize,
    rounding: Rounding,
    dtype: DType,
) -> Option<Planned> {
    if dtype == DType::S32 {
        return None;
    }
    let sizes = sizes(&plan.dims, &plan.lhs.shape, &plan.rhs.shape);
    let Sizes { batch, rows, depth, columns } = sizes;
    let lhs_side = ByteSide::new(&plan.lhs.shape, &left_axes(&plan.dims), (batch, rows, depth), true)?;
    let rhs_side = ByteSide::new(&plan.rhs.shape, &right_axes(&plan.dims), (batch, columns, depth), false)?;
    let mut step = IntegerDot {
        result: plan.result,
        plan,
        lhs,
        rhs,
        lhs_side,
        rhs_side,
        sizes,
        tiles,
        rounding,
        right: Right::Dynamic,
        dtype,
    };
    let mut operands = vec![a, b];
    if let Some(value) = known(planning, b) {
        check(value, &step.rhs).ok()?;
        let panels = Panels::Stored(stored(value).ok()?.clone());
        let (scales, zero_points) = right_scales(&step.plan, sizes, value).ok()?;
        step.right = Right::Fixed { panels, scales, zero_points };
        operands.pop();
    }
    Some(Planned { step: Box::new(step), operands })
}

fn dequantize_first(
    planning: &Planning<'_>,
    [a, b]: [NodeId; 2],
    dims: &DotDims,
    [lhs, rhs]: [OperandInfo; 2],
    result: DType,
    dtype: DType,
    shape: Vec<usize>,
) -> Option<Planned> {
    let narrow = |dtype| matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
    if !narrow(lhs.dtype) || !narrow(rhs.dtype) || !narrow(result) || !narrow(dtype) {
        return None;
    }
    let sizes = sizes(dims, &lhs.shape, &rhs.shape);
    let left = float_side(&lhs.shape, left_axes(dims))?;
    if lhs.quantized.is_none()
        && let Some(Value::QArray(q)) = known(planning, b)
        && let Some(side) = in_place(&rhs.shape, &right_axes(dims))
        && let Some(weight) = Weight::new(q, side, &right_axes_of(dims, rhs.shape.len()), sizes)
    {
        let step = WeightOnly { lhs: left, weight, sizes, result, dtype, shape };
        return Some(Planned { step: Box::new(step), operands: vec![a] });
    }
    let fixed = |id| match known(planning, id) {
        Some(Value::QArray(q)) => Some(q.clone()),
        _ => None,
    };
    let known = [fixed(a), fixed(b)];
    let operands = [a, b].into_iter().zip(&known).filter(|(_, k)| k.is_none()).map(|(id, _)| id).collect();
    let right = float_side(&rhs.shape, right_axes(dims))?;
    let step = Dequantized { lhs: left, rhs: right, known, sizes, result, dtype, shape };
    Some(Planned { step: Box::new(step), operands })
}

/// Batch, contracted and free axes of the right side.
pub(crate) fn right_axes_of(dims: &DotDims, rank: usize) -> [Vec<usize>; 3] {
    [dims.rhs_batch.clone(), dims.rhs_contracting.clone(), axes(rank, &dims.rhs_batch, &dims.rhs_contracting)]
}

/// A dot of plain bytes to int32, as lowered graphs have it.
struct PlainIntegers {
    lhs: ByteSide,
    rhs: ByteSide,
    sizes: Sizes,
    packed: Option<Panels>,
    shape: Vec<usize>,
}

impl Step for PlainIntegers {
    fn name(&self) -> &'static str {
        "int8-product"
    }

    fn prepare(&mut self) -> Result<(), EvalError> {
        match &mut self.packed {
            Some(panels) => panels.prepare(&self.rhs, self.sizes),
            None => Ok(()),
        }
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let Sizes { rows, depth, columns, .. } = self.sizes;
        let missing = || fail("an operand is missing");
        let (left, side) = self.lhs.read(stored(operands.first().ok_or_else(missing)?)?)?;
        let starts = side.starts(self.sizes.batch);
        let stride = side.free() as usize;
        let own;
        let panels = match &self.packed {
            Some(panels) => panels.get()?,
            None => {
                own = pack(stored(operands.get(1).ok_or_else(missing)?)?, &self.rhs, self.sizes)?;
                &own[..]
            }
        };
        let mut out = context.buffers.for_array(DType::S32, &self.shape)?;
        let kernel = best();
        let mut tasks = Vec::new();
        if rows * columns > 0 {
            let piece = 48 * columns;
            for (b, out) in out.values_mut::<i32>().chunks_exact_mut(rows * columns).enumerate() {
                tasks.extend(out.chunks_mut(piece).enumerate().map(|(i, out)| (b, i * 48, out)));
            }
        }
        run_tasks(tasks, self.sizes, |(b, row, out)| {
            let count = out.len() / columns;
            let left = left.get(starts[b] + row * stride..).unwrap_or_default();
            if let Some(left) = Rows::new(left, count, depth, stride) {
                multiply(kernel, left, panels[b].view(), 0..columns, out, &mut Workspace::default());
            }
        });
        Ok(Value::Array(out.into_array(DType::S32, &self.shape)?))
    }
}

fn plain(
    planning: &Planning<'_>,
    id: NodeId,
    dims: &DotDims,
    lhs: OperandInfo,
    rhs: OperandInfo,
) -> Option<Planned> {
    let ty = planning.array_type(id)?;
    let byte = |dtype| matches!(dtype, DType::S8 | DType::S4 | DType::S2);
    if ty.dtype != DType::S32 || !byte(lhs.dtype) || !byte(rhs.dtype) {
        return None;
    }
    let sizes = sizes(dims, &lhs.shape, &rhs.shape);
    let Sizes { batch, rows, depth, columns } = sizes;
    let left = ByteSide::new(&lhs.shape, &left_axes(dims), (batch, rows, depth), true)?;
    let right = ByteSide::new(&rhs.shape, &right_axes(dims), (batch, columns, depth), false)?;
    let &[a, b] = &planning.node(id).operands[..] else { return None };
    let (packed, operands) = match planning.known_array(b) {
        Some(array) => (Some(Panels::Stored(array.clone())), vec![a]),
        None => (None, vec![a, b]),
    };
    let step = PlainIntegers { lhs: left, rhs: right, sizes, packed, shape: ty.shape.clone() };
    Some(Planned { step: Box::new(step), operands })
}
