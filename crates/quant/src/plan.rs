//! How a product with quantized sides is computed. Lowering, evaluator and engines all ask here, because the choice
//! changes the numbers.
//!
//! The rules are Qwix's (`dot_general`, `conv_general_dilated`): dequantize first when one side is a wide float, a
//! qtype is not uniform, or a contracted axis has tiles smaller than [`MIN_TILE`]; otherwise multiply stored values,
//! subtract the zero point's share, multiply by the left scale, then by the right scale, sum the tiles, and convert.

use qwix_array::DType;

use crate::{ConvDims, DotDims, QType, QuantError};

/// Contracted axes with smaller tiles are dequantized before the product.
pub const MIN_TILE: usize = 128;

/// What a plan needs to know of a side.
#[derive(Clone, PartialEq, Debug)]
pub struct OperandInfo {
    /// The side's shape.
    pub shape: Vec<usize>,
    /// The array's dtype; for a quantized side the scale's, which is what it dequantizes to.
    pub dtype: DType,
    /// Present when the side is quantized.
    pub quantized: Option<QuantizedInfo>,
}

/// What a plan needs to know of a quantized side.
#[derive(Clone, PartialEq, Debug)]
pub struct QuantizedInfo {
    /// The type of the values.
    pub qtype: &'static QType,
    /// The scale's shape (and the zero point's).
    pub scale_shape: Vec<usize>,
    /// Whether there is a zero point.
    pub has_zero_point: bool,
}

impl OperandInfo {
    /// A plain array.
    pub fn array(shape: &[usize], dtype: DType) -> Self {
        OperandInfo { shape: shape.to_vec(), dtype, quantized: None }
    }

    /// The dtype that is multiplied when nothing is dequantized first.
    pub fn value_dtype(&self) -> DType {
        self.quantized.as_ref().map_or(self.dtype, |q| q.qtype.storage)
    }
}

/// How a dot is computed.
#[derive(Clone, PartialEq, Debug)]
pub enum DotPlan {
    /// Dequantize the quantized sides, then a plain dot.
    Dequantize {
        /// The result's dtype.
        result: DType,
        /// The result's shape.
        shape: Vec<usize>,
    },
    /// Multiply the stored values, then scale.
    Multiply(Box<QuantizedDot>),
}

/// A dot of stored values, and what is done to its result.
///
/// In this order: reshape each side's values to its `shape`; dot with `dims` into `accumulator`; for each zero point
/// subtract its correction; multiply by the left scale, then by the right one (generic broadcast; the product of an
/// integer and a scale is of the scale's dtype, of two floats of the wider); sum over `sum_axes`; convert to `result`.
#[derive(Clone, PartialEq, Debug)]
pub struct QuantizedDot {
    /// What is done to the left side.
    pub lhs: SidePlan,
    /// What is done to the right side.
    pub rhs: SidePlan,
    /// Dimension numbers for the reshaped sides: tiled axes are split into (count, size), the count being a batch axis.
    pub dims: DotDims,
    /// The dot's element type.
    pub accumulator: DType,
    /// The dot's shape, with the axes over tiles still there.
    pub product_shape: Vec<usize>,
    /// Axes of the product that run over tiles.
    pub sum_axes: Vec<usize>,
    /// The result's dtype.
    pub result: DType,
    /// The result's shape.
    pub shape: Vec<usize>,
}

/// What is done to one side of a dot of stored values.
#[derive(Clone, PartialEq, Debug)]
pub struct SidePlan {
    /// The values' shape, tiled contracted axes split.
    pub shape: Vec<usize>,
    /// How the scale meets the product; `None` for a plain array.
    pub scale: Option<ScalePlan>,
    /// How the zero point is corrected for.
    pub zero_point: Option<ZeroPointPlan>,
}

/// `scale.reshape(split).transpose(permutation).reshape(shape)` is what the product is multiplied by, by generic broadcast.
#[derive(Clone, PartialEq, Debug)]
pub struct ScalePlan {
    /// The scale with contracted axes (of size 1) dropped.
    pub split: Vec<usize>,
    /// Into the product's order.
    pub permutation: Vec<usize>,
    /// The product's rank again: 1 where the other side's axes are.
    pub shape: Vec<usize>,
}

/// `zero_point.reshape(split)`, broadcast to `broadcast`, times the other side's values with the same dimension numbers
/// and accumulator is subtracted from the product, by generic broadcast.
#[derive(Clone, PartialEq, Debug)]
pub struct ZeroPointPlan {
    /// The zero point with tiled contracted axes split.
    pub split: Vec<usize>,
    /// Contracted and batch axes take the values' sizes, the others stay as they are.
    pub broadcast: Vec<usize>,
    /// The shape of the correction.
    pub correction_shape: Vec<usize>,
}

/// How a convolution is computed.
#[derive(Clone, PartialEq, Debug)]
pub enum ConvPlan {
    /// Dequantize the quantized sides, then a plain convolution.
    Dequantize {
        /// The result's dtype.
        result: DType,
        /// The result's shape.
        shape: Vec<usize>,
    },
    /// Convolve the stored values, then scale.
    Multiply(QuantizedConv),
}

/// A convolution of stored values, and what is done to its result: subtract the convolution of the input's zero point
/// (broadcast to the input's shape) when there is one, multiply by the input's scale, by the kernel's, convert to `result`.
#[derive(Clone, PartialEq, Debug)]
pub struct QuantizedConv {
    /// The convolution's element type.
    pub accumulator: DType,
    /// How the input's scale meets the product; `None` for a plain array.
    pub lhs_scale: Option<ScalePlan>,
    /// How the kernel's scale meets the product; `None` for a plain array.
    pub rhs_scale: Option<ScalePlan>,
    /// Whether the input has a zero point.
    pub lhs_zero_point: bool,
    /// The result's dtype.
    pub result: DType,
    /// The result's shape.
    pub shape: Vec<usize>,
}

/// Shapes in which generic broadcast is plain broadcast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BroadcastViews {
    /// `x` reshaped; of the same rank as `y`.
    pub x: Vec<usize>,
    /// `y` reshaped; each size is x's or 1 on one of them.
    pub y: Vec<usize>,
    /// The result's shape, once reshaped back.
    pub output: Vec<usize>,
}

/// Generic broadcast: sizes are equal, or 1 on one side, or one divides the other and each of its entries serves a
/// tile. The tiled axis is split into (count, size) on both sides.
///
/// # Errors
/// When the ranks differ or a size divides neither way.
pub fn broadcast_views(x: &[usize], y: &[usize]) -> Result<BroadcastViews, QuantError> {
    let fail = || QuantError::Invalid(format!("cannot broadcast between {x:?} and {y:?}"));
    if x.len() != y.len() {
        return Err(fail());
    }
    let mut views = BroadcastViews { x: Vec::new(), y: Vec::new(), output: Vec::new() };
    for (&a, &b) in x.iter().zip(y) {
        if a == b || a == 1 || b == 1 {
            views.x.push(a);
            views.y.push(b);
            views.output.push(if a == 1 { b } else { a });
        } else if b != 0 && a % b == 0 {
            views.x.extend([b, a / b]);
            views.y.extend([b, 1]);
            views.output.push(a);
        } else if a != 0 && b % a == 0 {
            views.x.extend([a, 1]);
            views.y.extend([a, b / a]);
            views.output.push(b);
        } else {
            return Err(fail());
        }
    }
    Ok(views)
}

/// The dtypes of product and result: the result's is the promotion of what the sides dequantize to (or what the
/// caller prefers); the product's is the same, except that integers accumulate in s32, and 16-bit integers with floats at
/// least in f32, since 16-bit floats do not hold their values.
pub fn accumulator_and_result(
    lhs: &OperandInfo,
    rhs: &OperandInfo,
    preferred: Option<DType>,
) -> (DType, DType) {
    let widen = |dtype: DType| match dtype.bits() {
        ..=8 if dtype.is_int() => DType::S32,
        ..=8 => DType::BF16,
        _ => dtype,
    };
    let result = preferred.unwrap_or_else(|| promote(widen(lhs.dtype), widen(rhs.dtype)));
    let (l, r) = (lhs.value_dtype(), rhs.value_dtype());
    let accumulator = if l.is_int() && r.is_int() {
        DType::S32
    } else if [l, r].contains(&DType::S16) && result.bits() <= 16 {
        DType::F32
    } else {
        result
    };
    (accumulator, result)
}

/// NumPy-like promotion as JAX does it, for the dtypes of at least 16 bits (narrower ones are widened before).
pub fn promote(a: DType, b: DType) -> DType {
    if a == b {
        return a;
    }
    match (a.is_float(), b.is_float()) {
        (true, false) => a,
        (false, true) => b,
        (true, true) if a.bits() == b.bits() => DType::F32,
        (true, true) => {
            if a.bits() > b.bits() {
                a
            } else {
                b
            }
        }
        (false, false) => promote_ints(a, b),
    }
}

fn promote_ints(a: DType, b: DType) -> DType {
    let rank = |d: DType| if d == DType::Pred { 1 } else { d.bits() };
    let (wide, narrow) = if rank(a) >= rank(b) { (a, b) } else { (b, a) };
    if narrow == DType::Pred || wide.is_signed_int() == narrow.is_signed_int() {
        return wide;
    }
    if wide.is_signed_int() && wide.bits() > narrow.bits() {
        return wide;
    }
    match wide.bits() {
        ..=8 => DType::S16,
        16 => DType::S32,
        32 => DType::S64,
        _ => DType::F32,
    }
}

/// The dtype of a dot of two arrays, XLA's rule: the larger exponent range, then the longer mantissa, then more bits;
/// any float before any integer, and signed before unsigned.
pub fn higher_precision(a: DType, b: DType) -> DType {
    let rank = |dtype: DType| match dtype {
        DType::F64 => (7, 0, true),
        DType::F32 => (6, 0, true),
        DType::BF16 => (5, 0, true),
        DType::F16 => (4, 0, true),
        DType::F8E5M2 => (3, 0, true),
        DType::F8E4M3FN => (2, 0, true),
        DType::F4E2M1FN => (1, 0, true),
        DType::Pred => (0, 1, true),
        _ => (0, dtype.bits(), dtype.is_signed_int()),
    };
    if rank(a) >= rank(b) { a } else { b }
}

/// Decides how a dot is computed.
///
/// # Errors
/// When shapes and dimension numbers do not fit, both sides have a zero point, or contracted axes are tiled differently.
pub fn dot_plan(
    lhs: &OperandInfo,
    rhs: &OperandInfo,
    dims: &DotDims,
    preferred: Option<DType>,
) -> Result<DotPlan, QuantError> {
    let shape = dims.output_shape(&lhs.shape, &rhs.shape)?;
    for side in [lhs, rhs] {
        check_scale(side)?;
    }
    if !multiplies_stored(lhs, &dims.lhs_contracting) || !multiplies_stored(rhs, &dims.rhs_contracting) {
        let result = preferred.unwrap_or_else(|| higher_precision(lhs.dtype, rhs.dtype));
        return Ok(DotPlan::Dequantize { result, shape });
    }
    let zero_point = |side: &OperandInfo| side.quantized.as_ref().is_some_and(|q| q.has_zero_point);
    if zero_point(lhs) && zero_point(rhs) {
        return Err(QuantError::Invalid(
            "dot: both sides are quantized asymmetrically; at most one may have a zero point".into(),
        ));
    }

    // A tiled axis may meet one that is not; where both are tiled, alike.
    let mut tiles = Vec::new();
    for (&l, &r) in dims.lhs_contracting.iter().zip(&dims.rhs_contracting) {
        let (lt, rt) = (tile(lhs, l), tile(rhs, r));
        match (lt, rt) {
            (Some(a), Some(b)) if a != b => {
                return Err(QuantError::Invalid(format!(
                    "dot: contracted axes {l} and {r} are in tiles of {a} on the left and {b} on the right; they must be the same"
                )));
            }
            (Some(tile), _) | (None, Some(tile)) => tiles.push((l, r, tile)),
            (None, None) => {}
        }
    }
    let lhs_tiles: Vec<(usize, usize)> = tiles.iter().map(|t| (t.0, t.2)).collect();
    let rhs_tiles: Vec<(usize, usize)> = tiles.iter().map(|t| (t.1, t.2)).collect();

    let (lhs_contracting, lhs_batch) = split_dims(&dims.lhs_contracting, &dims.lhs_batch, &lhs_tiles);
    let (rhs_contracting, rhs_batch) = split_dims(&dims.rhs_contracting, &dims.rhs_batch, &rhs_tiles);
    let sum_axes = (dims.lhs_batch.len()..lhs_batch.len()).collect();
    let operand_precision = dims.operand_precision;
    let dims = DotDims { lhs_contracting, rhs_contracting, lhs_batch, rhs_batch, operand_precision };
    let lhs_shape = split_shape(&lhs.shape, &lhs_tiles, false);
    let rhs_shape = split_shape(&rhs.shape, &rhs_tiles, false);
    let product_shape = dims.output_shape(&lhs_shape, &rhs_shape)?;

    let (lhs_free, rhs_free) = (dims.lhs_free(lhs_shape.len()), dims.rhs_free(rhs_shape.len()));
    let none = |n: usize| std::iter::repeat_n(None, n);
    let some = |axes: &[usize]| axes.iter().map(|&a| Some(a)).collect::<Vec<_>>().into_iter();
    let lhs_order: Vec<Option<usize>> =
        some(&dims.lhs_batch).chain(some(&lhs_free)).chain(none(rhs_free.len())).collect();
    let rhs_order: Vec<Option<usize>> =
        some(&dims.rhs_batch).chain(none(lhs_free.len())).chain(some(&rhs_free)).collect();

    let side =
        |info: &OperandInfo, shape: &[usize], tiles: &[(usize, usize)], order: &[Option<usize>], left| {
            let Some(q) = &info.quantized else {
                return Ok(SidePlan { shape: shape.to_vec(), scale: None, zero_point: None });
            };
            let split = split_shape(&q.scale_shape, tiles, true);
            let scale = Some(scale_plan(&split, order)?);
            let zero_point = if q.has_zero_point {
                let (contracting, batch) = if left {
                    (&dims.lhs_contracting, &dims.lhs_batch)
                } else {
                    (&dims.rhs_contracting, &dims.rhs_batch)
                };
                let mut broadcast = split.clone();
                for &a in contracting.iter().chain(batch) {
                    broadcast[a] = shape[a];
                }
                let correction_shape = if left {
                    dims.output_shape(&broadcast, &rhs_shape)?
                } else {
                    dims.output_shape(&lhs_shape, &broadcast)?
                };
                Some(ZeroPointPlan { split, broadcast, correction_shape })
            } else {
                None
            };
            Ok::<_, QuantError>(SidePlan { shape: shape.to_vec(), scale, zero_point })
        };
    let (accumulator, result) = accumulator_and_result(lhs, rhs, preferred);
    Ok(DotPlan::Multiply(Box::new(QuantizedDot {
        lhs: side(lhs, &lhs_shape, &lhs_tiles, &lhs_order, true)?,
        rhs: side(rhs, &rhs_shape, &rhs_tiles, &rhs_order, false)?,
        dims,
        accumulator,
        product_shape,
        sum_axes,
        result,
        shape,
    })))
}

/// Decides how a convolution is computed.
///
/// # Errors
/// When shapes and dimension numbers do not fit, an operand is tiled, or the kernel has a zero point.
pub fn conv_plan(
    lhs: &OperandInfo,
    rhs: &OperandInfo,
    dims: &ConvDims,
    preferred: Option<DType>,
) -> Result<ConvPlan, QuantError> {
    let shape = dims.output_shape(&lhs.shape, &rhs.shape)?;
    for side in [lhs, rhs] {
        check_scale(side)?;
    }
    // Where the batch is split into groups, its scales would have to be split among the features. Qwix does not.
    let scales_cross_groups = dims.batch_group_count > 1
        && lhs.quantized.as_ref().is_some_and(|q| q.scale_shape[dims.input_batch] > 1);
    if scales_cross_groups || !multiplies_stored(lhs, &[]) || !multiplies_stored(rhs, &[]) {
        let result = preferred.unwrap_or_else(|| higher_precision(lhs.dtype, rhs.dtype));
        return Ok(ConvPlan::Dequantize { result, shape });
    }
    if lhs.value_dtype() != rhs.value_dtype() {
        return Err(QuantError::Invalid(format!(
            "convolution: the input is stored as {} and the kernel as {}; both must be quantized to one type",
            lhs.value_dtype(),
            rhs.value_dtype()
        )));
    }
    for (name, side) in [("input", lhs), ("kernel", rhs)] {
        if let Some(axis) = (0..side.shape.len()).find(|&a| tile(side, a).is_some()) {
            return Err(QuantError::Invalid(format!(
                "convolution: axis {axis} of the {name} is tiled; a convolution takes channelwise scales only"
            )));
        }
    }
    if rhs.quantized.as_ref().is_some_and(|q| q.has_zero_point) {
        return Err(QuantError::Invalid(
            "convolution: the kernel is quantized asymmetrically; only the input may have a zero point"
                .into(),
        ));
    }
    let rank = shape.len();
    let scale = |info: &OperandInfo, to: usize, from: usize| {
        let mut order = vec![None; rank];
        order[to] = Some(from);
        info.quantized.as_ref().map(|q| scale_plan(&q.scale_shape, &order)).transpose()
    };
    let (accumulator, result) = accumulator_and_result(lhs, rhs, preferred);
    Ok(ConvPlan::Multiply(QuantizedConv {
        accumulator,
        lhs_scale: scale(lhs, dims.output_batch, dims.input_batch)?,
        rhs_scale: scale(rhs, dims.output_feature, dims.kernel_output_feature)?,
        lhs_zero_point: lhs.quantized.as_ref().is_some_and(|q| q.has_zero_point),
        result,
        shape,
    }))
}

/// Whether a side may enter a product as it is stored.
fn multiplies_stored(side: &OperandInfo, contracting: &[usize]) -> bool {
    match &side.quantized {
        None => !side.dtype.is_wide_float(),
        Some(q) => {
            q.qtype.is_uniform()
                && contracting
                    .iter()
                    .all(|&a| q.scale_shape[a] <= 1 || side.shape[a] / q.scale_shape[a] >= MIN_TILE)
        }
    }
}

/// The tile size of an axis that is neither shared nor channelwise.
fn tile(side: &OperandInfo, axis: usize) -> Option<usize> {
    let q = side.quantized.as_ref()?;
    let (size, scales) = (side.shape[axis], q.scale_shape[axis]);
    (scales != size && scales > 1).then(|| size / scales)
}

fn check_scale(side: &OperandInfo) -> Result<(), QuantError> {
    let Some(q) = &side.quantized else { return Ok(()) };
    let ok = q.scale_shape.len() == side.shape.len()
        && side.shape.iter().zip(&q.scale_shape).all(|(&d, &s)| if s == 0 { d == 0 } else { d % s == 0 });
    if ok {
        Ok(())
    } else {
        Err(QuantError::Invalid(format!(
            "a scale of shape {:?} does not divide a side of shape {:?}",
            q.scale_shape, side.shape
        )))
    }
}

/// Each tiled axis becomes two; for scales, which have an entry a tile, the second is 1.
fn split_shape(shape: &[usize], tiles: &[(usize, usize)], is_scale: bool) -> Vec<usize> {
    let mut split = Vec::with_capacity(shape.len() + tiles.len());
    for (axis, &size) in shape.iter().enumerate() {
        match tiles.iter().find(|t| t.0 == axis) {
            Some(_) if is_scale => split.extend([size, 1]),
            Some(&(_, tile)) => split.extend([size / tile, tile]),
            None => split.push(size),
        }
    }
    split
}

/// Contracted and batch axes after the split; the tile counts are the last batch axes.
fn split_dims(contracting: &[usize], batch: &[usize], tiles: &[(usize, usize)]) -> (Vec<usize>, Vec<usize>) {
    let before = |a: usize| tiles.iter().filter(|t| t.0 < a).count();
    let is_tiled = |a: usize| tiles.iter().any(|t| t.0 == a);
    let new_contracting = contracting.iter().map(|&a| a + before(a) + usize::from(is_tiled(a))).collect();
    let counts = contracting.iter().filter(|&&a| is_tiled(a)).map(|&a| a + before(a));
    let new_batch = batch.iter().map(|&a| a + before(a)).chain(counts).collect();
    (new_contracting, new_batch)
}

fn scale_plan(scale: &[usize], order: &[Option<usize>]) -> Result<ScalePlan, QuantError> {
    if let Some(axis) = (0..scale.len()).find(|&a| scale[a] > 1 && !order.contains(&Some(a))) {
        return Err(QuantError::Invalid(format!(
            "a scale of shape {scale:?} varies along axis {axis}, which the product sums over"
        )));
    }
    let used: Vec<usize> = order.iter().flatten().copied().collect();
    let mut kept = used.clone();
    kept.sort_unstable();
    Ok(ScalePlan {
        split: kept.iter().map(|&a| scale[a]).collect(),
        permutation: used.iter().map(|&a| kept.iter().filter(|&&k| k < a).count()).collect(),
        shape: order.iter().map(|a| a.map_or(1, |a| scale[a])).collect(),
    })
}
