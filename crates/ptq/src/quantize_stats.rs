//! Statistics into the scales and zero points of static ranges.

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Path, Slot, StatisticPart, Type, nearest};
use qwix_quant::{QuantError, Range, average as average_of, check_finite, compute_scale_zero_point};

use crate::{PtqError, QuantStats, Stats, Sums, Template};

/// The parameters that are made from statistics: scales and zero points of static ranges, from the average of the
/// batches that calibration saw. None for a template without static ranges.
///
/// # Errors
/// Names the statistics that are missing, of no batch, not finite, of another kind or shape, or of no activation of the
/// model.
pub fn quantize_stats(stats: &QuantStats, template: &Template) -> Result<Params, PtqError> {
    for (path, _) in stats.iter() {
        if template.made_of_statistics(path).next().is_none() {
            let near = nearest(path.as_str(), template.statistics().map(Path::as_str));
            let hint = match (near, template.statistics().next()) {
                (_, None) => "; it has none, as no rule with act_static_scale matches".to_owned(),
                (Some(near), Some(_)) => format!("; did you mean `{near}`?"),
                (None, Some(_)) => String::new(),
            };
            return Err(PtqError::UnknownStats { path: path.clone(), hint });
        }
    }
    let mut made = Params::new();
    for source in template.statistics() {
        let Some(found) = stats.get(source) else {
            let hint = match stats.len() {
                0 => "; none are given".to_owned(),
                n => format!("; there are those of {n} other activations"),
            };
            return Err(PtqError::MissingStats { path: source.clone(), hint });
        };
        for parameter in template.made_of_statistics(source) {
            let Some(Slot::Statistic(slot)) = &parameter.slot else { continue };
            let value = part(source, found, slot.part, &parameter.ty)?;
            made.insert(parameter.path.clone(), Value::Array(value));
        }
    }
    Ok(made)
}

/// One parameter of statistics.
fn part(path: &Path, stats: &Stats, part: StatisticPart, ty: &Type) -> Result<Array, PtqError> {
    let wrong = |expected: String, found: String| PtqError::Stats { path: path.clone(), expected, found };
    let fail = |error: QuantError| PtqError::Param { path: path.clone(), error };
    let shape = ty.as_array().map(|a| a.shape.clone()).unwrap_or_default();
    let checked = |array: &Array| {
        if array.dtype() != DType::F32 || array.shape() != shape {
            let found = ArrayType::new(array.dtype(), array.shape());
            return Err(wrong(
                format!("sums of {}", ArrayType::new(DType::F32, shape.clone())),
                found.to_string(),
            ));
        }
        check_finite(array).map_err(fail)?;
        Ok(array.clone())
    };
    let average = |array: &Array| {
        let sum = checked(array)?;
        average_of(&sum, stats.count).map_err(fail)
    };
    let kind = |expected: &str| wrong(expected.to_owned(), stats.sums.describe());
    // Statistics of no batch have no average; where they are state of the graph itself they say so there.
    if stats.count <= 0 && matches!(part, StatisticPart::Scale { .. } | StatisticPart::ZeroPoint { .. }) {
        return Err(wrong(
            "those of one batch or more".to_owned(),
            format!("a count of {}; calibrate on some data first", stats.count),
        ));
    }
    let asymmetric = |qtype| match &stats.sums {
        Sums::MinMax { min, max } => {
            let range = Range::Asymmetric { min: average(min)?, max: average(max)? };
            compute_scale_zero_point(&range, qtype).map_err(fail)
        }
        Sums::AbsMax(_) => Err(kind("sums of min and max, as the range is asymmetric")),
    };
    match part {
        StatisticPart::Count => Ok(Array::scalar(stats.count)),
        StatisticPart::Sum(wanted) => match stats.sums.parts().into_iter().find(|(sum, _)| *sum == wanted) {
            Some((_, array)) => checked(array),
            None => Err(kind(wanted.name())),
        },
        StatisticPart::Scale { qtype, asymmetric: true } => Ok(asymmetric(qtype)?.0),
        StatisticPart::Scale { qtype, asymmetric: false } => match &stats.sums {
            Sums::AbsMax(absmax) => {
                let range = Range::Symmetric { absmax: average(absmax)? };
                Ok(compute_scale_zero_point(&range, qtype).map_err(fail)?.0)
            }
            Sums::MinMax { .. } => Err(kind("sums of absmax, as the range is symmetric")),
        },
        StatisticPart::ZeroPoint { qtype } => match asymmetric(qtype)?.1 {
            Some(zero_point) => Ok(zero_point),
            None => Err(kind("sums of min and max, as the range is asymmetric")),
        },
    }
}
