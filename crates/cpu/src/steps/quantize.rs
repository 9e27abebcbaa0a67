//! Quantizing activations while the model runs, and quantized arrays back to floats.

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op};
use qwix_quant::{Calibration, Codec, HowToQuantize, QArray, ScaleFactor, scale_factors};
use qwix_simd::{absmax_f32, absmax_rows_f32, quantize_columns_i8, quantize_i8};

use crate::buffers::Block;
use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::values::{fail, operand};

/// f32 to an integer type of a byte, by the largest magnitude of each slice: bit for bit what `qwix_quant::quantize_as` gives
/// for compiled graphs.
struct Quantize {
    how: HowToQuantize,
    /// The shape seen as slices with a scale each: [outer, depth, inner], where `depth` shares a scale.
    outer: usize,
    depth: usize,
    inner: usize,
    scale_shape: Vec<usize>,
    factors: Vec<ScaleFactor>,
    low: f32,
    high: f32,
}

/// The root of the smallest normal f32: below it a scale becomes 1.
const SMALLEST: f32 = 1.084_202_2e-19;

/// What values are multiplied by: subnormal reciprocals are 0, as XLA:CPU flushes them.
pub(super) fn reciprocal(scale: f32) -> f32 {
    let reciprocal = 1.0 / scale;
    if reciprocal.abs() < f32::MIN_POSITIVE { 0.0 } else { reciprocal }
}

impl Quantize {
    /// The scale of a largest magnitude.
    fn scale(&self, absmax: f32) -> f32 {
        let scale = self.factors.iter().fold(absmax, |x, factor| match *factor {
            ScaleFactor::Multiply(by) => x * by as f32,
            ScaleFactor::Divide(by) => x / by as f32,
        });
        if scale < SMALLEST { 1.0 } else { scale }
    }

    /// Slices that lie together.
    fn rows(&self, values: &[f32], scales: &mut Block, codes: &mut Block) -> Result<(), EvalError> {
        let depth = self.depth;
        parallel::fill(scales.bytes_mut(), 4, depth, |start, out| {
            for (i, scale) in bytemuck::cast_slice_mut::<u8, f32>(out).iter_mut().enumerate() {
                *scale = self.scale(absmax_f32(&values[(start + i) * depth..][..depth]));
            }
            Ok::<(), EvalError>(())
        })?;
        let scales = scales.values::<f32>();
        parallel::fill(codes.bytes_mut(), depth, 4, |start, out| {
            let rows = bytemuck::cast_slice_mut::<u8, i8>(out).chunks_exact_mut(depth);
            for (i, out) in rows.enumerate() {
                let row = start + i;
                let reciprocal = reciprocal(scales[row]);
                quantize_i8(&values[row * depth..][..depth], reciprocal, 0.0, self.low, self.high, out);
            }
            Ok(())
        })
    }

    /// Slices that run across rows.
    fn columns(&self, values: &[f32], scales: &mut Block, codes: &mut Block) -> Result<(), EvalError> {
        let (depth, inner) = (self.depth, self.inner);
        let slab = depth * inner;
        let mut reciprocals = vec![0.0f32; self.outer * inner];
        for (o, (scales, reciprocals)) in scales
            .values_mut::<f32>()
            .chunks_exact_mut(inner)
            .zip(reciprocals.chunks_exact_mut(inner))
            .enumerate()
        {
            scales.fill(0.0);
            for row in values[o * slab..][..slab].chunks_exact(inner) {
                absmax_rows_f32(scales, row);
            }
            for (scale, factor) in scales.iter_mut().zip(reciprocals) {
                *scale = self.scale(*scale);
                *factor = reciprocal(*scale);
            }
        }
        parallel::fill(codes.bytes_mut(), inner, 4, |start, out| {
            let rows = bytemuck::cast_slice_mut::<u8, i8>(out).chunks_exact_mut(inner);
            for (i, out) in rows.enumerate() {
                let row = start + i;
                let reciprocals = &reciprocals[row / depth * inner..][..inner];
                quantize_columns_i8(&values[row * inner..][..inner], reciprocals, self.low, self.high, out);
            }
            Ok(())
        })
    }
}

impl Step for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let array = operand(&operands, 0)?;
        let values = array.values::<f32>()?;
        if values.len() != self.outer * self.depth * self.inner {
            return Err(fail("the operand has not its type's size"));
        }
        let mut scales = context.buffers.for_array(DType::F32, &self.scale_shape)?;
        let mut codes = context.buffers.for_array(DType::S8, array.shape())?;
        if self.inner == 1 {
            self.rows(&values, &mut scales, &mut codes)?;
        } else {
            self.columns(&values, &mut scales, &mut codes)?;
        }
        let scale = scales.into_array(DType::F32, &self.scale_shape)?;
        let qvalue = codes.into_array(DType::S8, array.shape())?;
        Ok(Value::QArray(QArray::new(qvalue, scale, None, self.how.qtype)?))
    }
}

/// All other ways to quantize.
struct General(HowToQuantize);

impl Step for General {
    fn name(&self) -> &'static str {
        "quantize-general"
    }

    fn run(&self, operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        let (x, qtype) = (operand(&operands, 0)?, self.0.qtype);
        let with = |scale: &Array, zero_point: Option<&Array>| {
            qwix_quant::quantize_with_scale_zero_point(x, qtype, scale, zero_point)
        };
        Ok(Value::QArray(match operands.len() {
            1 => qwix_quant::quantize_as(x, &self.0, qwix_quant::Arithmetic::Compiled)?,
            2 => with(operand(&operands, 1)?, None)?,
            _ => with(operand(&operands, 1)?, Some(operand(&operands, 2)?))?,
        }))
    }
}

struct Dequantize;

impl Step for Dequantize {
    fn name(&self) -> &'static str {
        "dequantize"
    }

    fn run(&self, operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        match operands.first() {
            Some(Value::QArray(q)) => Ok(Value::Array(qwix_quant::dequantize(q)?)),
            _ => Err(fail("takes a quantized array")),
        }
    }
}

fn fast(how: &HowToQuantize, dtype: DType, shape: &[usize]) -> Option<Quantize> {
    let Calibration::AbsMax { scale: factor } = how.calibration else { return None };
    let Codec::Int { min, max } = how.qtype.codec else { return None };
    let scale_shape = how.scale_shape(shape).ok()?;
    if dtype != DType::F32 || how.qtype.storage != DType::S8 || scale_shape == shape || shape.contains(&0) {
        return None;
    }
    // Tiles are scales of their own, side by side with what they share.
    let mut axes: Vec<(usize, bool)> = Vec::new();
    for (&size, &scales) in shape.iter().zip(&scale_shape) {
        for (size, shared) in [(scales, false), (size / scales, true)] {
            match axes.last_mut() {
                _ if size == 1 => {}
                Some(last) if last.1 == shared => last.0 *= size,
                _ => axes.push((size, shared)),
            }
        }
    }
    let (outer, depth, inner) = match axes[..] {
        [(depth, true)] => (1, depth, 1),
        [(outer, false), (depth, true)] => (outer, depth, 1),
        [(depth, true), (inner, false)] => (1, depth, inner),
        [(outer, false), (depth, true), (inner, false)] => (outer, depth, inner),
        _ => return None,
    };
    Some(Quantize {
        factors: scale_factors(how.qtype, dtype, factor),
        how: how.clone(),
        outer,
        depth,
        inner,
        scale_shape,
        low: min as f32,
        high: max as f32,
    })
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    match &node.op {
        Op::Quantize(how) => {
            let ty = planning.array_type(*node.operands.first()?)?;
            match fast(how, ty.dtype, &ty.shape).filter(|_| node.operands.len() == 1) {
                Some(step) => Planned::of(node, step),
                None => Planned::of(node, General(how.clone())),
            }
        }
        Op::Dequantize => Planned::of(node, Dequantize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use qwix_quant::{Arithmetic, Granularity, QType, Tile};

    use super::*;
    use crate::buffers::Pool;

    #[test]
    fn is_bit_for_bit_what_the_quant_crate_gives() {
        use Granularity::{Channelwise, Shared, Tiled};
        let shape = [4, 6, 10];
        let ways: [[Granularity; 3]; 7] = [
            [Channelwise, Channelwise, Shared],
            [Channelwise, Shared, Channelwise],
            [Shared, Channelwise, Channelwise],
            [Shared, Shared, Shared],
            [Channelwise, Shared, Shared],
            [Channelwise, Channelwise, Tiled(Tile::Size(5))],
            [Shared, Shared, Channelwise],
        ];
        let mut values: Vec<f32> =
            (0..240u32).map(|i| ((i.wrapping_mul(2654435761) >> 8) as f32 / 8388608.0 - 1.0) * 3.0).collect();
        // A slice of zeros, one of tiny numbers, one with a huge one, and ties by construction.
        values[..10].fill(0.0);
        values[10..20].fill(1e-30);
        values[20] = 1e30;
        let pool = Arc::new(Pool::default());
        let context = Context { buffers: &pool, times: None };
        let mut wrong = Vec::new();
        for qtype in ["int8", "int7", "int5"] {
            for granularity in ways {
                for scale in [None, Some(0.93)] {
                    let how = HowToQuantize {
                        qtype: QType::by_name(qtype).unwrap(),
                        granularity: granularity.to_vec(),
                        calibration: Calibration::AbsMax { scale },
                    };
                    let x = Array::from_vec(&shape, values.clone()).unwrap();
                    let expected = qwix_quant::quantize_as(&x, &how, Arithmetic::Compiled).unwrap();
                    let Some(step) = fast(&how, DType::F32, &shape) else {
                        wrong.push(format!("{qtype} {granularity:?} is not planned"));
                        continue;
                    };
                    if step.run(vec![x.into()], &context).unwrap() != Value::QArray(expected) {
                        wrong.push(format!("{qtype} {granularity:?} {scale:?}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
