//! f32 to integers of a byte, with scales and zero points that are known before: bit for bit what
//! `qwix_quant::quantize_with_scale_zero_point` gives.

use qwix_array::DType;
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op};
use qwix_quant::{Codec, HowToQuantize, QArray};
use qwix_simd::{quantize_columns_i8, quantize_i8};

use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::quantize::reciprocal;
use crate::values::{fail, operand};

struct QuantizeStatic {
    how: HowToQuantize,
    scale_shape: Vec<usize>,
    /// Elements that lie together and share a scale, or that have one each.
    run: usize,
    /// Whether the elements of a run share a scale.
    shared: bool,
    /// For each run, where its scales begin.
    starts: Vec<u32>,
    low: f32,
    high: f32,
}

impl QuantizeStatic {
    fn new(how: &HowToQuantize, dtype: DType, shape: &[usize], zero_point: bool) -> Option<Self> {
        let Codec::Int { min, max } = how.qtype.codec else { return None };
        let scale_shape = how.scale_shape(shape).ok()?;
        if dtype != DType::F32 || how.qtype.storage != DType::S8 || scale_shape == shape || shape.contains(&0)
        {
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
        let (run, shared) = axes.pop().unwrap_or((1, true));
        if zero_point && !shared {
            return None;
        }
        let mut starts = vec![0u32];
        let mut stride: usize = if shared { 1 } else { run };
        for &(size, shared) in axes.iter().rev() {
            let step = if shared { 0 } else { u32::try_from(stride).ok()? };
            // The outermost axis counts last: what is there is repeated for each of its indices.
            let inner = std::mem::take(&mut starts);
            for index in 0..u32::try_from(size).ok()? {
                starts.extend(inner.iter().map(|&start| start + index * step));
            }
            if !shared {
                stride *= size;
            }
        }
        Some(QuantizeStatic {
            how: how.clone(),
            scale_shape,
            run,
            shared,
            starts,
            low: min as f32,
            high: max as f32,
        })
    }
}

impl Step for QuantizeStatic {
    fn name(&self) -> &'static str {
        "quantize-static"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let (array, scale) = (operand(&operands, 0)?, operand(&operands, 1)?);
        let zero_point = if operands.len() > 2 { Some(operand(&operands, 2)?) } else { None };
        let values = array.values::<f32>()?;
        if values.len() != self.run * self.starts.len() || scale.shape() != self.scale_shape {
            return Err(fail("the operands have not their types' sizes"));
        }
        let reciprocals: Vec<f32> = scale.values::<f32>()?.iter().map(|&s| reciprocal(s)).collect();
        let offsets: Vec<f32> = match zero_point {
            Some(zero_point) if zero_point.shape() == self.scale_shape => {
                zero_point.values::<i8>()?.iter().map(|&z| z.into()).collect()
            }
            Some(_) => return Err(fail("the zero point has not the scale's shape")),
            None => vec![0.0; if self.shared { reciprocals.len() } else { 0 }],
        };
        let mut codes = context.buffers.for_array(DType::S8, array.shape())?;
        let run = self.run;
        // Runs that share a scale can be cut anywhere.
        let unit = [256, 64].into_iter().find(|unit| self.shared && run.is_multiple_of(*unit)).unwrap_or(run);
        parallel::fill(codes.bytes_mut(), unit, 4, |start, out| {
            let mut rest = bytemuck::cast_slice_mut::<u8, i8>(out);
            let mut at = start * unit;
            while !rest.is_empty() {
                let first = self.starts[at / run] as usize;
                let count = (run - at % run).min(rest.len());
                let (out, after) = rest.split_at_mut(count);
                let values = &values[at..at + count];
                if self.shared {
                    quantize_i8(values, reciprocals[first], offsets[first], self.low, self.high, out);
                } else {
                    quantize_columns_i8(values, &reciprocals[first..first + run], self.low, self.high, out);
                }
                (rest, at) = (after, at + count);
            }
            Ok::<(), EvalError>(())
        })?;
        let qvalue = codes.into_array(DType::S8, array.shape())?;
        Ok(Value::QArray(QArray::new(qvalue, scale.clone(), zero_point.cloned(), self.how.qtype)?))
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Quantize(how) = &node.op else { return None };
    let zero_point = match node.operands.len() {
        2 => false,
        3 => true,
        _ => return None,
    };
    let ty = planning.array_type(*node.operands.first()?)?;
    Planned::of(node, QuantizeStatic::new(how, ty.dtype, &ty.shape, zero_point)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use qwix_array::Array;
    use qwix_quant::{Granularity, QType, Tile, quantize_with_scale_zero_point};

    use super::*;
    use crate::buffers::Pool;

    fn numbers(count: usize, seed: u32) -> impl Iterator<Item = f32> {
        (0..count as u32).map(move |i| ((i + seed).wrapping_mul(2654435761) >> 8) as f32 / 8388608.0 - 1.0)
    }

    #[test]
    fn is_bit_for_bit_what_the_quant_crate_gives() {
        use Granularity::{Channelwise, Shared, Tiled};
        let shape = [4, 6, 64];
        let ways: [[Granularity; 3]; 8] = [
            [Channelwise, Channelwise, Shared],
            [Channelwise, Shared, Channelwise],
            [Shared, Channelwise, Channelwise],
            [Shared, Shared, Shared],
            [Channelwise, Shared, Shared],
            [Shared, Channelwise, Shared],
            [Channelwise, Channelwise, Tiled(Tile::Size(16))],
            [Shared, Shared, Channelwise],
        ];
        let pool = Arc::new(Pool::default());
        let context = Context { buffers: &pool, times: None };
        let (mut wrong, mut unplanned) = (Vec::new(), Vec::new());
        for qtype in ["int8", "int7", "int5"] {
            for granularity in ways {
                for asymmetric in [false, true] {
                    let qtype = QType::by_name(qtype).unwrap();
                    let calibration = if asymmetric { "minmax" } else { "absmax" }.parse().unwrap();
                    let how = HowToQuantize { qtype, granularity: granularity.to_vec(), calibration };
                    let case = format!("{qtype} {granularity:?} {asymmetric}");
                    let Some(step) = QuantizeStatic::new(&how, DType::F32, &shape, asymmetric) else {
                        unplanned.push(case);
                        continue;
                    };
                    let scale_shape = how.scale_shape(&shape).unwrap();
                    let count = scale_shape.iter().product();
                    // A scale whose reciprocal is flushed among them.
                    let mut scales: Vec<f32> = numbers(count, 5).map(|s| s.abs() / 50.0 + 1e-3).collect();
                    scales[0] = if count > 1 { 1e38 } else { scales[0] };
                    let scale = Array::from_vec(&scale_shape, scales).unwrap();
                    let zeros = numbers(count, 77).map(|z| (z * 100.0) as i8).collect();
                    let zero_point = asymmetric.then(|| Array::from_vec(&scale_shape, zeros).unwrap());
                    let x: Vec<f32> = numbers(shape.iter().product(), 0).map(|x| x * 3.0).collect();
                    let x = Array::from_vec(&shape, x).unwrap();
                    let expected =
                        quantize_with_scale_zero_point(&x, qtype, &scale, zero_point.as_ref()).unwrap();
                    let operands =
                        [Some(x), Some(scale), zero_point].into_iter().flatten().map(Value::Array).collect();
                    if step.run(operands, &context).unwrap() != Value::QArray(expected) {
                        wrong.push(case);
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        // A zero point for each of neighbouring elements has no kernel; no activation of a dot's left side has that.
        assert!(unplanned.iter().all(|case| case.ends_with("Channelwise] true")), "{unplanned:#?}");
    }
}
