//! Statistics of activations from forward passes.

use std::error::Error;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Executable, Params, Value};
use qwix_graph::{ArrayType, Graph, Role, Slot, StatisticPart, StatisticSlot, Sum, Type};
use qwix_quant::check_finite;

use crate::{PtqError, PtqModel, QuantStats, QuantizeParams, Stats, Sums, Template, quantize_params_with};

/// Runs the batches through a model that was quantized with [`QtProvider`](crate::QtProvider) and keeps the statistics
/// that static ranges are made from. The model is compiled once, and the batches are taken one by one.
///
/// A batch is the model's inputs, in their order, or why it could not be read.
///
/// # Errors
/// What [`Calibrator::new`] and [`Calibrator::step`] return, a batch that could not be read, or no batch at all. The error
/// carries the statistics of the batches before it.
pub fn calibrate<E: Into<Box<dyn Error + Send + Sync>>>(
    qt_model: &PtqModel,
    params: &Params,
    batches: impl IntoIterator<Item = Result<Vec<Array>, E>>,
    backend: &dyn Backend,
) -> Result<QuantStats, CalibrateError> {
    let first = |error| CalibrateError { error: Box::new(error), stats: QuantStats::new() };
    let mut calibrator = Calibrator::new(qt_model, params, backend, None).map_err(first)?;
    for batch in batches {
        let number = calibrator.batches;
        let done = match batch {
            Ok(batch) => calibrator.step(&batch).map(drop),
            Err(error) => Err(PtqError::Batch { batch: number, reason: error.into().to_string() }),
        };
        if let Err(error) = done {
            return Err(CalibrateError { error: Box::new(error), stats: calibrator.finish() });
        }
    }
    if calibrator.batches == 0 {
        return Err(first(PtqError::Calibration { reason: "there are no batches".to_owned() }));
    }
    Ok(calibrator.finish())
}

/// Why calibration stopped, and what it had by then.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{error}")]
pub struct CalibrateError {
    /// Why.
    #[source]
    pub error: Box<PtqError>,
    /// The statistics of the batches before; to go on from, see [`Calibrator::new`].
    pub stats: QuantStats,
}

/// A model that collects statistics, batch by batch.
pub struct Calibrator {
    executable: Box<dyn Executable>,
    /// The model's own inputs: name and type.
    inputs: Vec<(String, Type)>,
    /// The statistics, in the order of the inputs that follow the model's own.
    state: Vec<(StatisticSlot, Array)>,
    batches: u64,
}

impl Calibrator {
    /// Compiles the model's calibration with float parameters; `so_far` are earlier statistics of the same model, to go
    /// on from.
    ///
    /// # Errors
    /// When the model was not quantized with [`QtProvider`](crate::QtProvider), no activation of it has a static range,
    /// the parameters or the statistics are not the model's, or the backend cannot run it.
    pub fn new(
        qt_model: &PtqModel,
        params: &Params,
        backend: &dyn Backend,
        so_far: Option<&QuantStats>,
    ) -> Result<Self, PtqError> {
        let refuse = |reason: &str| PtqError::Calibration { reason: reason.to_owned() };
        let graph = qt_model.calibration.as_ref().ok_or_else(|| {
            refuse("it was quantized without a calibration; quantize the float model with QtProvider")
        })?;
        let mut calibrated = statistics_as_variables(graph);
        calibrated.parameters.retain(|p| matches!(p.slot, Some(Slot::Statistic(_))));
        let template = Template::of(&calibrated);
        if template.statistics().next().is_none() {
            return Err(refuse(
                "no activation has a static range; set act_static_scale in a rule that matches a site",
            ));
        }
        let zeros = QuantStats::zeros(&template);
        let start = so_far.filter(|stats| !stats.is_empty()).unwrap_or(&zeros);
        let start_params = crate::quantize_stats(start, &template)?;
        let (mut inputs, mut state) = (vec![], vec![]);
        for (_, parameter) in graph.inputs() {
            match &parameter.slot {
                Some(Slot::Statistic(slot)) => match start_params.get(&parameter.path) {
                    Some(Value::Array(array)) => state.push((slot.clone(), array.clone())),
                    Some(_) | None => return Err(refuse("its statistics have no start")),
                },
                Some(Slot::Weight(_)) | None => {
                    inputs.push((parameter.path.to_string(), parameter.ty.clone()))
                }
            }
        }
        let params = quantize_params_with(params, &Template::of(graph), QuantizeParams::default())?;
        let executable = backend.compile(graph, params).map_err(|e| PtqError::Eval(Box::new(e)))?;
        Ok(Calibrator { executable, inputs, state, batches: 0 })
    }

    /// How many batches it has seen; earlier statistics not counted.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Adds a batch: the model's inputs, in their order. What the model returns, as it computes while it is calibrated.
    ///
    /// # Errors
    /// When the inputs are not the model's, the model cannot run, or the range of an activation is not finite. The
    /// statistics stay as they were before.
    pub fn step(&mut self, batch: &[Array]) -> Result<Vec<Array>, PtqError> {
        let number = self.batches;
        let fail = |reason: String| PtqError::Batch { batch: number, reason };
        if batch.len() != self.inputs.len() {
            return Err(fail(format!("the model takes {} inputs, found {}", self.inputs.len(), batch.len())));
        }
        for (i, (array, (name, ty))) in batch.iter().zip(&self.inputs).enumerate() {
            if !Value::Array(array.clone()).is_of(ty) {
                let found = ArrayType::new(array.dtype(), array.shape());
                return Err(fail(format!("input {i} `{name}`: expected {ty}, found {found}")));
            }
        }
        let state = self.state.iter().map(|(_, array)| array.clone());
        let inputs: Vec<Array> = batch.iter().cloned().chain(state).collect();
        let mut outputs = self.executable.run(&inputs).map_err(|e| fail(e.to_string()))?;
        let own = outputs.len().checked_sub(self.state.len());
        let own = own.ok_or_else(|| fail("the engine returned no statistics".to_owned()))?;
        let new = outputs.split_off(own);
        for ((slot, _), array) in self.state.iter().zip(&new) {
            let Err(error) = check_finite(array) else { continue };
            let cause = batch.iter().zip(&self.inputs).find_map(|(input, (name, _))| {
                check_finite(input).err().map(|e| format!("; input `{name}`: {e}"))
            });
            return Err(fail(format!(
                "the range of `{}` is not finite: {error}{}",
                slot.source,
                cause.unwrap_or_default()
            )));
        }
        for ((slot, old), array) in self.state.iter().zip(&new) {
            let ty = Type::array(old.dtype(), old.shape());
            if !Value::Array(array.clone()).is_of(&ty) {
                return Err(fail(format!("the engine returned other statistics for `{}`", slot.source)));
            }
            if slot.part == StatisticPart::Count && array.values::<i32>().is_ok_and(|v| v.first() < Some(&1))
            {
                return Err(fail(format!("`{}` has seen as many batches as can be counted", slot.source)));
            }
        }
        for ((_, old), array) in self.state.iter_mut().zip(new) {
            *old = array;
        }
        self.batches += 1;
        Ok(outputs)
    }

    /// The statistics so far.
    pub fn stats(&self) -> QuantStats {
        let part = |slot: &StatisticSlot, wanted: StatisticPart| {
            let same = |s: &StatisticSlot| s.source == slot.source && s.part == wanted;
            self.state.iter().find(|(s, _)| same(s)).map(|(_, array)| array.clone())
        };
        self.state
            .iter()
            .filter(|(slot, _)| slot.part == StatisticPart::Count)
            .filter_map(|(slot, count)| {
                let count = count.values::<i32>().ok()?.first().copied()?;
                let sums = match part(slot, StatisticPart::Sum(Sum::AbsMax)) {
                    Some(absmax) => Sums::AbsMax(absmax),
                    None => Sums::MinMax {
                        min: part(slot, StatisticPart::Sum(Sum::Min))?,
                        max: part(slot, StatisticPart::Sum(Sum::Max))?,
                    },
                };
                Some((slot.source.clone(), Stats { count, sums }))
            })
            .collect()
    }

    /// The statistics.
    pub fn finish(self) -> QuantStats {
        self.stats()
    }
}

/// The graph's signature with the statistics among the variables, which templates are made of.
fn statistics_as_variables(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    for parameter in &mut graph.parameters {
        if let Some(Slot::Statistic(_)) = parameter.slot {
            parameter.role = Role::Variable;
        }
    }
    graph
}

impl QuantStats {
    /// Statistics of no batch for every activation of a template: where calibration starts.
    pub fn zeros(template: &Template) -> QuantStats {
        let zeros = |shape: &[usize]| Array::zeros(DType::F32, shape).ok();
        let mut stats = QuantStats::new();
        for parameter in template.parameters().values() {
            let (Some(Slot::Statistic(slot)), Some(array)) = (&parameter.slot, parameter.ty.as_array())
            else {
                continue;
            };
            let asymmetric = match slot.part {
                StatisticPart::Count => continue,
                StatisticPart::Sum(sum) => sum != Sum::AbsMax,
                StatisticPart::Scale { asymmetric, .. } => asymmetric,
                StatisticPart::ZeroPoint { .. } => true,
            };
            let Some(zeros) = zeros(&array.shape) else { continue };
            let sums = match asymmetric {
                true => Sums::MinMax { min: zeros.clone(), max: zeros },
                false => Sums::AbsMax(zeros),
            };
            stats.insert(slot.source.clone(), Stats { count: 0, sums });
        }
        stats
    }
}
