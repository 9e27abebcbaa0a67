//! Ops that fold many elements into one.
//!
//! HLO leaves the order of a reduction open. Sums and products of floats are accumulated in f64 and rounded to the
//! dtype once, which is what every order approximates; XLA's own order cannot be had: one after the other for up to 32
//! elements, in stretches of 32 for some more, then as a library with vectors of the machine's width pleases (seen with
//! jax 0.10 on XLA:CPU). Other computations run in row-major order, rounding after each step.

use qwix_array::{Array, DType, element_count, strides};
use qwix_graph::{BinaryOp, Computation, WindowDim};

use crate::EvalError;
use crate::cells::each_index;
use crate::function::Function;
use crate::lanes::Lanes;
use crate::number::Scalar;
use crate::ops::{float, int};
use crate::run::Context;

/// n operands and n initial values.
fn halves<'a>(name: &str, operands: &'a [Array]) -> Result<(&'a [Array], &'a [Array]), EvalError> {
    let (arrays, inits) = operands.split_at(operands.len() / 2);
    let fits = operands.len().is_multiple_of(2)
        && arrays.iter().all(|a| a.shape() == arrays[0].shape())
        && inits.iter().zip(arrays).all(|(i, a)| i.rank() == 0 && i.dtype() == a.dtype());
    if arrays.is_empty() || !fits {
        return Err(EvalError::reason(format!(
            "{name} takes arrays of one shape and as many scalars, found {operands:?}"
        )));
    }
    Ok((arrays, inits))
}

/// Folds elements, one at a time, into accumulators that begin with initial values.
struct Fold<'a> {
    lanes: Vec<Lanes>,
    inits: Vec<Scalar>,
    dtypes: Vec<DType>,
    function: Function<'a>,
    one: Option<One>,
    arguments: Vec<Scalar>,
    results: Vec<Scalar>,
}

/// A fold of one operand by one op.
enum One {
    Float(fn(f64, f64) -> f64),
    Int(int::Int2, u32),
    Uint(int::Uint2, u32),
    Pred(fn(bool, bool) -> bool),
}

impl One {
    fn new(op: BinaryOp, lanes: &Lanes, dtype: DType) -> Option<One> {
        let bits = crate::number::bits(dtype);
        Some(match lanes {
            Lanes::Float(_) => One::Float(float::binary(op)?),
            Lanes::Int(_) => One::Int(int::binary_int(op)?, bits),
            Lanes::Uint(_) => One::Uint(int::binary_uint(op)?, bits),
            Lanes::Pred(_) => One::Pred(int::binary_pred(op)?),
        })
    }
}

impl<'a> Fold<'a> {
    fn new(
        arrays: &[Array],
        inits: &[Array],
        computation: &'a Computation,
        context: Context<'a>,
    ) -> Result<Self, EvalError> {
        let function = Function::new(computation, context);
        let lanes = arrays.iter().map(Lanes::read).collect::<Result<Vec<_>, _>>()?;
        let one = match (&lanes[..], function.associative()) {
            ([lanes], Some(op)) => One::new(op, lanes, arrays[0].dtype()),
            (_, _) => None,
        };
        let inits =
            inits.iter().map(|init| Ok(Lanes::read(init)?.get(0))).collect::<Result<Vec<_>, EvalError>>()?;
        let dtypes = arrays.iter().chain(arrays).map(Array::dtype).collect();
        Ok(Fold { lanes, inits, dtypes, function, one, arguments: Vec::new(), results: Vec::new() })
    }

    /// Folds the elements at some positions and adds the results to `outputs`.
    fn fold(
        &mut self,
        positions: impl Iterator<Item = usize>,
        outputs: &mut [Lanes],
    ) -> Result<(), EvalError> {
        if let (Some(one), [lanes], [init]) = (&self.one, &self.lanes[..], &self.inits[..]) {
            let value = match (one, lanes, *init) {
                (One::Float(f), Lanes::Float(v), Scalar::Float(x)) => {
                    Some(Scalar::Float(positions.fold(x, |acc, at| f(acc, v[at]))))
                }
                (One::Int(f, bits), Lanes::Int(v), Scalar::Int(x)) => {
                    Some(Scalar::Int(positions.fold(x, |acc, at| f(acc, v[at], *bits))))
                }
                (One::Uint(f, bits), Lanes::Uint(v), Scalar::Uint(x)) => {
                    Some(Scalar::Uint(positions.fold(x, |acc, at| f(acc, v[at], *bits))))
                }
                (One::Pred(f), Lanes::Pred(v), Scalar::Pred(x)) => {
                    Some(Scalar::Pred(positions.fold(x, |acc, at| f(acc, v[at]))))
                }
                (One::Float(_) | One::Int(..) | One::Uint(..) | One::Pred(_), _, _) => None,
            };
            let Some(value) = value else {
                return Err(EvalError::reason("the initial value is not of the array's dtype"));
            };
            return outputs.iter_mut().try_for_each(|o| o.push(value));
        }
        let mut accumulators = self.inits.clone();
        for at in positions {
            self.arguments.clear();
            self.arguments.extend_from_slice(&accumulators);
            self.arguments.extend(self.lanes.iter().map(|l| l.get(at)));
            self.function.call(&self.dtypes, &self.arguments, &mut self.results)?;
            if self.results.len() != accumulators.len() {
                return Err(EvalError::reason(format!(
                    "the computation yields {} values, expected {}",
                    self.results.len(),
                    accumulators.len()
                )));
            }
            accumulators.copy_from_slice(&self.results);
        }
        outputs.iter_mut().zip(accumulators).try_for_each(|(o, x)| o.push(x))
    }
}

fn write(outputs: &[Lanes], arrays: &[Array], shape: &[usize]) -> Result<Vec<Array>, EvalError> {
    outputs.iter().zip(arrays).map(|(o, a)| Ok(o.write(a.dtype(), shape)?)).collect()
}

/// Folds away some axes.
pub(crate) fn reduce(
    operands: &[Array],
    dimensions: &[usize],
    computation: &Computation,
    context: Context<'_>,
) -> Result<Vec<Array>, EvalError> {
    let (arrays, inits) = halves("reduce", operands)?;
    let shape = arrays[0].shape();
    if dimensions.iter().any(|&d| d >= shape.len()) {
        return Err(EvalError::reason(format!("reduce of {:?} along {dimensions:?}", arrays[0])));
    }
    let kept: Vec<usize> = (0..shape.len()).filter(|a| !dimensions.contains(a)).collect();
    let gone: Vec<usize> = (0..shape.len()).filter(|a| dimensions.contains(a)).collect();
    let order = [&kept[..], &gone[..]].concat();
    let moved = arrays.iter().map(|a| a.transpose(&order)).collect::<Result<Vec<_>, _>>()?;
    let result: Vec<usize> = kept.iter().map(|&a| shape[a]).collect();
    let folded: usize = gone.iter().map(|&a| shape[a]).product();
    let count = element_count(&result).ok_or_else(|| EvalError::reason("the result is too large"))?;
    let mut fold = Fold::new(&moved, inits, computation, context)?;
    let mut outputs: Vec<Lanes> = arrays.iter().map(|a| Lanes::empty(a.dtype())).collect();
    for index in 0..count {
        fold.fold(index * folded..(index + 1) * folded, &mut outputs)?;
    }
    write(&outputs, arrays, &result)
}

/// The elements of a base that windows cover, axis by axis.
struct Taps<'a> {
    window: &'a [WindowDim],
    shape: &'a [usize],
    strides: Vec<usize>,
}

impl<'a> Taps<'a> {
    fn new(window: &'a [WindowDim], shape: &'a [usize], result: &[usize]) -> Result<Self, EvalError> {
        let sizes =
            window.iter().zip(shape).map(|(w, &size)| w.output_size(size)).collect::<Option<Vec<_>>>();
        if window.len() != shape.len() || sizes.as_deref() != Some(result) {
            return Err(EvalError::reason(format!(
                "windows {window:?} over shape {shape:?} do not yield the shape {result:?}"
            )));
        }
        Ok(Taps { window, shape, strides: strides(shape) })
    }

    /// Positions of the elements that the window at an index covers, in row-major order; padding has none.
    fn at(&self, index: &[usize]) -> Vec<usize> {
        let mut positions = vec![0];
        for (axis, (&at, window)) in index.iter().zip(self.window).enumerate() {
            let places: Vec<usize> = covering(window, at, self.shape[axis])
                .filter_map(|i| input_position(window, at, i).filter(|&p| p < self.shape[axis]))
                .map(|place| place * self.strides[axis])
                .collect();
            positions = positions.iter().flat_map(|p| places.iter().map(move |q| p + q)).collect();
        }
        positions
    }
}

/// The elements of a window that may lie on the base; windows can be much larger than what they lie on.
fn covering(window: &WindowDim, at: usize, base: usize) -> std::ops::Range<usize> {
    let dilation = window.window_dilation.max(1) as i128;
    let start = i128::from(window.padding_low) - at as i128 * window.stride as i128;
    let end = start + base as i128 * window.base_dilation.max(1) as i128;
    let size = window.size as i128;
    let up = |x: i128| ((x + dilation - 1).div_euclid(dilation)).clamp(0, size) as usize;
    up(start)..up(end)
}

/// The element of the base that element `k` of the window at position `at` lies on, or `None` where there is padding
/// or a gap of dilation; it may be past the base's end.
fn input_position(window: &WindowDim, at: usize, k: usize) -> Option<usize> {
    let place = at as i128 * window.stride as i128 + k as i128 * window.window_dilation as i128
        - i128::from(window.padding_low);
    let dilation = window.base_dilation.max(1) as i128;
    if place < 0 || place % dilation != 0 {
        return None;
    }
    usize::try_from(place / dilation).ok()
}

/// Folds the elements under a moving window; padding takes no part.
pub(crate) fn reduce_window(
    operands: &[Array],
    window: &[WindowDim],
    computation: &Computation,
    result: &[usize],
    context: Context<'_>,
) -> Result<Vec<Array>, EvalError> {
    let (arrays, inits) = halves("reduce-window", operands)?;
    let taps = Taps::new(window, arrays[0].shape(), result)?;
    let mut fold = Fold::new(arrays, inits, computation, context)?;
    let mut outputs: Vec<Lanes> = arrays.iter().map(|a| Lanes::empty(a.dtype())).collect();
    each_index(result, |index| fold.fold(taps.at(index).into_iter(), &mut outputs))?;
    write(&outputs, arrays, result)
}

/// Of each window, the element that `select` keeps gets the source's value, combined by `scatter` with what it has.
pub(crate) fn select_and_scatter(
    x: &Array,
    source: &Array,
    init: &Array,
    window: &[WindowDim],
    select: &Computation,
    scatter: &Computation,
    context: Context<'_>,
) -> Result<Array, EvalError> {
    if source.dtype() != x.dtype() || init.dtype() != x.dtype() || init.rank() != 0 {
        return Err(EvalError::reason(format!("select-and-scatter of {x:?}, {source:?} and {init:?}")));
    }
    let taps = Taps::new(window, x.shape(), source.shape())?;
    let (elements, sources) = (Lanes::read(x)?, Lanes::read(source)?);
    let mut result = Lanes::read(&init.broadcast_in_dim(x.shape(), &[])?)?;
    let (mut select, mut scatter) = (Function::new(select, context), Function::new(scatter, context));
    let dtypes = [x.dtype(); 2];
    let mut answer = Vec::new();
    let mut number = 0;
    each_index(source.shape(), |index| {
        let mut chosen: Option<usize> = None;
        for candidate in taps.at(index) {
            let keeps = match chosen {
                None => false,
                Some(held) => {
                    let pair = [elements.get(held), elements.get(candidate)];
                    select.call(&dtypes, &pair, &mut answer)?;
                    answer.first() == Some(&Scalar::Pred(true))
                }
            };
            if !keeps {
                chosen = Some(candidate);
            }
        }
        if let Some(at) = chosen {
            scatter.call(&dtypes, &[result.get(at), sources.get(number)], &mut answer)?;
            let value = answer.first().ok_or_else(|| EvalError::reason("scatter yields nothing"))?;
            result.set(at, *value)?;
        }
        number += 1;
        Ok::<(), EvalError>(())
    })?;
    Ok(result.write(x.dtype(), x.shape())?)
}

/// A computation of one element of each operand, for all of them.
pub(crate) fn map(
    operands: &[Array],
    computation: &Computation,
    dtype: DType,
    context: Context<'_>,
) -> Result<Array, EvalError> {
    let Some(first) = operands.first().filter(|f| operands.iter().all(|o| o.shape() == f.shape())) else {
        return Err(EvalError::reason(format!("map takes arrays of one shape, found {operands:?}")));
    };
    let lanes = operands.iter().map(Lanes::read).collect::<Result<Vec<_>, _>>()?;
    let dtypes: Vec<DType> = operands.iter().map(Array::dtype).collect();
    let mut function = Function::new(computation, context);
    let (mut arguments, mut results) = (Vec::new(), Vec::new());
    let mut output = Lanes::empty(dtype);
    for at in 0..first.len() {
        arguments.clear();
        arguments.extend(lanes.iter().map(|l| l.get(at)));
        function.call(&dtypes, &arguments, &mut results)?;
        match results[..] {
            [value] => output.push(value)?,
            _ => return Err(EvalError::reason("the computation of a map yields several values")),
        }
    }
    Ok(output.write(dtype, first.shape())?)
}
