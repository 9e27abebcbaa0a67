//! Parameters that were quantized elsewhere, made to fit the parameters of a quantized graph: Qwix's
//! `process_prequantized_params`.

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Parameter, Path, Prep, QArrayType, Slot, StatisticPart, Type, WeightSlot};
use qwix_quant::{Codec, QArray, QType, QuantError, dequantize};

use crate::{PtqError, Template};

/// What [`process_prequantized_params`] is told beside the parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProcessPrequantized {
    /// Skips parameters that the template does not know, instead of refusing them.
    pub allow_extra_params: bool,
    /// Rounds scales and floats to the template's dtype where it cannot hold them, as Qwix does unasked.
    pub allow_rounding: bool,
}

/// Makes parameters that are quantized already the parameters of a template: all, or any subtree.
///
/// - Quantized where the template is: the values are taken over as they are. Reshapes, transposes and slices between
///   the parameter and its product are done on them. A scale or zero point for a larger block is repeated for the
///   template's smaller ones, and dtypes are converted; none of this changes a number (but for
///   [`allow_rounding`](ProcessPrequantized::allow_rounding)).
/// - Quantized where the template is float: dequantized.
/// - Float in both: taken over. A single number goes for a static scale of any shape.
///
/// Qwix converts dtypes even where numbers change; here that is refused, unless it is only rounding and allowed.
///
/// # Errors
/// Names the parameter that the template does not know, or whose shape, granularity, type or zero point differ, or that
/// is float where the template is quantized.
pub fn process_prequantized_params(
    params: &Params,
    template: &Template,
    options: ProcessPrequantized,
) -> Result<Params, PtqError> {
    let mut processed = Params::new();
    for (path, value) in params {
        processed.extend(process_prequantized_param(template, path, value, options)?);
    }
    Ok(processed)
}

/// One parameter of [`process_prequantized_params`]: what the model makes of it, by path.
///
/// # Errors
/// As [`process_prequantized_params`].
pub fn process_prequantized_param(
    template: &Template,
    path: &Path,
    value: &Value,
    options: ProcessPrequantized,
) -> Result<Vec<(Path, Value)>, PtqError> {
    let mut targets: Vec<&Parameter> = template.made_of(path).collect();
    if targets.is_empty() {
        targets.extend(template.parameters().get(path));
    }
    if targets.is_empty() && !options.allow_extra_params {
        return Err(template.unknown(path, template.parameters().keys()));
    }
    let fit = |parameter: &Parameter| Fit { path, parameter, options }.value(value);
    targets.into_iter().map(|parameter| Ok((parameter.path.clone(), fit(parameter)?))).collect()
}

/// One value on its way to one parameter.
struct Fit<'a> {
    path: &'a Path,
    parameter: &'a Parameter,
    options: ProcessPrequantized,
}

impl Fit<'_> {
    fn wrong(&self, expected: impl ToString, found: impl ToString) -> PtqError {
        PtqError::WrongParam {
            path: self.path.clone(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn fail(&self, error: impl Into<QuantError>) -> PtqError {
        PtqError::Param { path: self.path.clone(), error: error.into() }
    }

    fn value(&self, value: &Value) -> Result<Value, PtqError> {
        match (value, &self.parameter.ty) {
            (Value::QArray(q), Type::QArray(ty)) => {
                let prepared = match &self.parameter.slot {
                    Some(Slot::Weight(slot)) => self.prepare(q, slot, ty)?,
                    Some(Slot::Statistic(_)) | None => q.clone(),
                };
                self.quantized(&prepared, ty).map(Value::QArray)
            }
            (Value::QArray(q), Type::Array(ty)) => {
                self.float(&dequantize(q).map_err(|e| self.fail(e))?, ty).map(Value::Array)
            }
            (Value::Array(array), Type::Array(ty)) => self.float(array, ty).map(Value::Array),
            (Value::Array(_), Type::QArray(ty)) => Err(self.wrong(
                format!("{ty}"),
                format!("{}, which is not quantized: give it to `quantize_params`", value.describe()),
            )),
            (Value::Tuple(_), _) | (_, Type::Tuple(_) | Type::Token | Type::Opaque(_)) => {
                Err(self.wrong(&self.parameter.ty, value.describe()))
            }
        }
    }

    /// The steps between a float parameter and what is quantized, done on what is quantized already.
    fn prepare(&self, q: &QArray, slot: &WeightSlot, ty: &QArrayType) -> Result<QArray, PtqError> {
        if q.shape() != slot.source_type.shape {
            // In the shape that the op computes with, which is how Qwix has it.
            let reshaped = slot.prep.iter().all(|step| matches!(step, Prep::Reshape(_)));
            if reshaped && q.shape() == ty.array.shape {
                return Ok(q.clone());
            }
            return Err(self.wrong(
                format!("{} of {}", ty.how.qtype, slot.source_type),
                Value::QArray(q.clone()).describe(),
            ));
        }
        let mut prepared = q.clone();
        for step in &slot.prep {
            prepared = match step {
                Prep::Reshape(shape) => prepared.reshape(shape),
                Prep::Transpose(permutation) => prepared.transpose(permutation),
                Prep::Slice(dims) => {
                    let mut sliced = Ok(prepared.clone());
                    for (axis, dim) in dims.iter().enumerate() {
                        sliced = sliced.and_then(|array| match dim.stride {
                            1 => array.slice(axis, dim.start, dim.limit),
                            stride => Err(QuantError::Invalid(format!(
                                "the model takes every {stride}th element of axis {axis} of it, which is not done \
                                 on quantized values"
                            ))),
                        });
                    }
                    sliced
                }
            }
            .map_err(|e| self.fail(e))?;
        }
        Ok(prepared)
    }

    /// The same numbers, as a template's type has them.
    fn quantized(&self, q: &QArray, ty: &QArrayType) -> Result<QArray, PtqError> {
        let found = || Value::QArray(q.clone()).describe();
        let scale_shape = ty.scale_shape().map_err(|e| self.fail(e))?;
        if q.shape() != ty.array.shape {
            return Err(self.wrong(ty, found()));
        }
        if q.zero_point().is_some() != ty.has_zero_point() {
            let what = if ty.has_zero_point() { "has no zero point" } else { "has a zero point" };
            return Err(self.wrong(ty, format!("{}; it {what}", found())));
        }
        let qtype = ty.how.qtype;
        let qvalue = same_codes(q, qtype)
            .ok_or_else(|| self.wrong(ty, format!("{}, with values that {qtype} does not have", found())))?;
        let expand = |part: &Array, what: &str| {
            repeated(part, &scale_shape).map_err(|e| self.fail(e))?.ok_or_else(|| {
                self.wrong(
                    ty,
                    format!("{}: {what} of {:?} cannot be made {scale_shape:?}", found(), part.shape()),
                )
            })
        };
        let scale = self.converted(&expand(q.scale(), "scales")?, ty.array.dtype, "scales")?;
        let zero_point = match q.zero_point() {
            None => None,
            Some(zero_point) => {
                let zero_point = expand(zero_point, "zero points")?;
                Some(zero_point.convert_exactly(qtype.storage).ok_or_else(|| {
                    self.wrong(ty, format!("{}, with zero points that {qtype} does not have", found()))
                })?)
            }
        };
        QArray::new(qvalue, scale, zero_point, qtype).map_err(|e| self.fail(e))
    }

    /// A float array as the template has it.
    fn float(&self, array: &Array, ty: &ArrayType) -> Result<Array, PtqError> {
        let found = || ArrayType::new(array.dtype(), array.shape());
        let is_static = self.parameter.slot.as_ref().and_then(Slot::as_statistic).is_some_and(|slot| {
            matches!(slot.part, StatisticPart::Scale { .. } | StatisticPart::ZeroPoint { .. })
        });
        let array = if is_static && array.len() == 1 {
            let scalar = array.reshape(&[]).map_err(|e| self.fail(e))?;
            &scalar.broadcast_in_dim(&ty.shape, &[]).map_err(|e| self.fail(e))?
        } else {
            array
        };
        if array.shape() != ty.shape || array.dtype().is_float() != ty.dtype.is_float() {
            return Err(self.wrong(ty, found()));
        }
        self.converted(array, ty.dtype, "values")
    }

    /// Another dtype: exactly, or rounded where that is allowed.
    fn converted(&self, array: &Array, dtype: DType, what: &str) -> Result<Array, PtqError> {
        if let Some(array) = array.convert_exactly(dtype) {
            return Ok(array);
        }
        if self.options.allow_rounding && dtype.is_float() {
            return Ok(array.convert(dtype));
        }
        Err(self.wrong(
            format!("{what} of {dtype}"),
            format!(
                "{}, which {dtype} cannot hold without rounding (`allow_rounding` rounds)",
                array.dtype()
            ),
        ))
    }
}

/// The stored values of another qtype that stand for the same numbers before scaling.
fn same_codes(q: &QArray, qtype: &'static QType) -> Option<Array> {
    if q.qtype() == qtype {
        return Some(q.qvalue().clone());
    }
    match (q.qtype().codec, qtype.codec) {
        (Codec::Int { .. }, Codec::Int { min, max }) => {
            let inside = |&x: &i64| x >= i64::from(min) && x <= i64::from(max);
            q.qvalue().to_i64_vec().iter().all(inside).then(|| q.qvalue().convert(qtype.storage))
        }
        (Codec::Float, Codec::Float) => q.qvalue().convert_exactly(qtype.storage),
        (Codec::Int { .. } | Codec::Float | Codec::Codebook(_), _) => None,
    }
}

/// Each entry of scales or zero points for a block, repeated for the smaller blocks of another shape of scales; `None`
/// when those blocks are not inside these.
fn repeated(part: &Array, shape: &[usize]) -> Result<Option<Array>, QuantError> {
    if part.shape() == shape {
        return Ok(Some(part.clone()));
    }
    let fits = part.rank() == shape.len()
        && part.shape().iter().zip(shape).all(|(&from, &to)| from > 0 && to % from == 0);
    if !fits {
        return Ok(None);
    }
    let split: Vec<usize> =
        part.shape().iter().zip(shape).flat_map(|(&from, &to)| [from, to / from]).collect();
    let axes: Vec<usize> = (0..shape.len()).map(|axis| 2 * axis).collect();
    Ok(Some(part.broadcast_in_dim(&split, &axes)?.reshape(shape)?))
}
