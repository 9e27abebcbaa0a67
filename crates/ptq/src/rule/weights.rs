//! Rules for parameters whose graph is not at hand: they name paths of parameters, and the axes that products contract.

use qwix_graph::{ArrayType, Parameter, Path, QArrayType, Role, Slot, Type, WeightSlot, nearest};
use qwix_quant::{Granularity, HowToQuantize};
use serde::Serialize;
use serde_json::Value;

use super::read::{kind, list, tile_size, value_of_json, value_of_toml};
use super::{QuantizationRule, TileSize, check};
use crate::rule::regex::FullMatch;
use crate::{PtqError, Template, Warning};

const FIELDS: [&str; 5] =
    ["param_path", "weight_qtype", "tile_size", "contracting_axes", "weight_calibration_method"];

/// How a framework lays out the matrices of its checkpoints: which axis a product contracts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WeightLayout {
    /// `[…, in, out]`: the second to last axis.
    #[default]
    Flax,
    /// `[…, out, in]`, as PyTorch and so Hugging Face have them: the last axis.
    HuggingFace,
}

impl WeightLayout {
    /// The axis that is contracted, counted from the end.
    fn contracting_axis(self) -> i64 {
        match self {
            WeightLayout::Flax => -2,
            WeightLayout::HuggingFace => -1,
        }
    }
}

/// Which parameters, and how to quantize them. Of the rules that match, the first counts.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WeightRule {
    /// A Python regular expression that matches the whole path of a parameter. `.*` unless given.
    pub param_path: String,
    /// The type to quantize to; without one, what matches stays as it is.
    pub weight_qtype: Option<String>,
    /// Scales for tiles of the last contracted axis instead of one for the whole axis.
    pub tile_size: Option<TileSize>,
    /// The axes that products contract, negative ones counted from the end; the layout's unless given. All others have a
    /// scale for every index.
    pub contracting_axes: Option<Vec<i64>>,
    /// How the range is found; `absmax` unless given.
    pub weight_calibration_method: String,
}

impl WeightRule {
    /// A rule for the parameters whose path matches; it changes nothing until it has a type.
    pub fn new(param_path: &str) -> Self {
        WeightRule {
            param_path: param_path.to_owned(),
            weight_qtype: None,
            tile_size: None,
            contracting_axes: None,
            weight_calibration_method: "absmax".to_owned(),
        }
    }

    /// Sets the type.
    pub fn weight_qtype(mut self, name: &str) -> Self {
        self.weight_qtype = Some(name.to_owned());
        self
    }

    /// Sets the tile: an integer for elements, a float for the fraction of the axis.
    pub fn tile_size(mut self, tile: impl Into<TileSize>) -> Self {
        self.tile_size = Some(tile.into());
        self
    }

    /// Sets the axes that products contract.
    pub fn contracting_axes(mut self, axes: impl IntoIterator<Item = i64>) -> Self {
        self.contracting_axes = Some(axes.into_iter().collect());
        self
    }

    /// Sets how the range is found.
    pub fn weight_calibration_method(mut self, method: &str) -> Self {
        self.weight_calibration_method = method.to_owned();
        self
    }

    /// Rules from JSON: a list of objects with these field names, or `{"rules": […]}`.
    ///
    /// # Errors
    /// Names the rule and the field that cannot be read.
    pub fn from_json(text: &str) -> Result<Vec<Self>, PtqError> {
        list(value_of_json(text)?, &FIELDS, one)
    }

    /// Rules from TOML: `[[rules]]` tables with these field names.
    ///
    /// # Errors
    /// Names the rule and the field that cannot be read.
    pub fn from_toml(text: &str) -> Result<Vec<Self>, PtqError> {
        list(value_of_toml(text)?, &FIELDS, one)
    }
}

fn one(index: usize, value: Value) -> Result<WeightRule, PtqError> {
    let Value::Object(object) = value else {
        return Err(PtqError::Rules {
            reason: format!("rules[{index}] should be an object, found {}", kind(&value)),
        });
    };
    let mut rule = WeightRule::new(".*");
    for (field, value) in object {
        let wrong = |wanted: &str| PtqError::Rule {
            index,
            field: field.clone(),
            reason: format!("expected {wanted}, found {}", kind(&value)),
        };
        let text = |wanted: &str| value.as_str().map(str::to_owned).ok_or_else(|| wrong(wanted));
        match field.as_str() {
            "param_path" => rule.param_path = text("a pattern in quotes")?,
            "weight_qtype" if value.is_null() => rule.weight_qtype = None,
            "weight_qtype" => rule.weight_qtype = Some(text("the name of a type in quotes")?),
            "tile_size" => rule.tile_size = tile_size(&value).ok_or_else(|| wrong("a number"))?,
            "contracting_axes" if value.is_null() => rule.contracting_axes = None,
            "contracting_axes" => {
                let axes = value.as_array().and_then(|axes| axes.iter().map(Value::as_i64).collect());
                rule.contracting_axes = Some(axes.ok_or_else(|| wrong("a list of axes"))?);
            }
            "weight_calibration_method" => rule.weight_calibration_method = text("a method in quotes")?,
            "module_path" => {
                return Err(PtqError::Rule {
                    index,
                    field,
                    reason: "without a model there are no modules; name parameters with `param_path`, as \
                             `Dense_0/kernel`"
                        .to_owned(),
                });
            }
            unknown => {
                let hint = match nearest(unknown, FIELDS) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("fields are {}", FIELDS.join(", ")),
                };
                return Err(PtqError::Rule {
                    index,
                    field: unknown.to_owned(),
                    reason: format!("a rule for parameters has no such field; {hint}"),
                });
            }
        }
    }
    Ok(rule)
}

/// The template of a checkpoint without a graph: each float matrix whose path a rule with a type matches is quantized,
/// everything else stays as it is. A matrix has two axes or more.
///
/// # Errors
/// Names the rule that cannot be understood or that no matrix is quantized by, and the parameter that cannot be quantized
/// as its rule says.
pub fn weights_only<'a>(
    params: impl IntoIterator<Item = (&'a Path, &'a ArrayType)>,
    rules: &[WeightRule],
    layout: WeightLayout,
) -> Result<(Template, Vec<Warning>), PtqError> {
    let mut warnings = Vec::new();
    let mut checked = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        // What both kinds of rules have is checked by the same code.
        let common = QuantizationRule {
            module_path: rule.param_path.clone(),
            weight_qtype: rule.weight_qtype.clone(),
            tile_size: rule.tile_size,
            weight_calibration_method: rule.weight_calibration_method.clone(),
            ..QuantizationRule::default()
        };
        let renamed = |error| match error {
            PtqError::Rule { index, field, reason } if field == "module_path" => {
                PtqError::Rule { index, field: "param_path".to_owned(), reason }
            }
            other => other,
        };
        checked.push(check(index, common, &mut warnings).map_err(renamed)?);
    }
    let mut used = vec![0usize; rules.len()];
    let mut parameters = Vec::new();
    for (path, ty) in params {
        let mut matched = None;
        for (index, rule) in checked.iter().enumerate() {
            let found = matches(&rule.module_path, path).map_err(|reason| PtqError::Rule {
                index,
                field: "param_path".to_owned(),
                reason: format!("`{}` on the path `{path}`: {reason}", rule.rule.module_path),
            })?;
            if found {
                matched = Some((index, rule));
                break;
            }
        }
        let mut parameter = Parameter {
            path: path.clone(),
            key_path: None,
            role: Role::Variable,
            ambiguous: false,
            ty: Type::Array(ty.clone()),
            slot: None,
        };
        if let Some((index, rule)) = matched
            && let Some(side) = rule.weight
            && ty.shape.len() >= 2
            && ty.dtype.is_wide_float()
        {
            let axes = contracted(index, &rules[index], layout, path, ty)?;
            let last = axes.iter().copied().max();
            let granularity = (0..ty.shape.len()).map(|axis| {
                match rule.tile.or(side.qtype.tile.map(qwix_quant::Tile::Size)) {
                    _ if !axes.contains(&axis) => Granularity::Channelwise,
                    Some(tile) if Some(axis) == last => Granularity::Tiled(tile),
                    Some(_) | None => Granularity::Shared,
                }
            });
            let fail = |error| PtqError::Param { path: path.clone(), error };
            let how =
                HowToQuantize::new(side.qtype, granularity.collect(), side.calibration).map_err(fail)?;
            how.validate(&ty.shape).map_err(fail)?;
            used[index] += 1;
            parameter.slot = Some(Slot::Weight(WeightSlot {
                source: path.clone(),
                source_type: ty.clone(),
                prep: vec![],
                how: how.clone(),
            }));
            parameter.ty = Type::QArray(QArrayType { array: ty.clone(), how });
        } else if let Some((index, rule)) = matched
            && rule.weight.is_none()
        {
            used[index] += 1;
        }
        parameters.push(parameter);
    }
    if !parameters.iter().any(|p| p.slot.is_some()) {
        let paths = parameters.iter().map(|p| p.path.as_str());
        let patterns: Vec<String> = rules.iter().map(|r| format!("`{}`", r.param_path)).collect();
        let near = rules.first().and_then(|rule| nearest(&rule.param_path, paths.clone()));
        let example = near.or_else(|| paths.clone().next());
        return Err(PtqError::Rules {
            reason: format!(
                "no float matrix matches {}, so nothing is quantized; a pattern matches the whole path{}",
                patterns.join(", "),
                example.map(|path| format!(", such as `{path}`")).unwrap_or_default()
            ),
        });
    }
    for (rule, _) in rules.iter().zip(&used).filter(|(_, used)| **used == 0) {
        let message = "matches no parameter that it could change and no rule before it took".to_owned();
        warnings.push(Warning { about: format!("the rule for `{}`", rule.param_path), message });
    }
    Ok((Template::of_parameters(&parameters), warnings))
}

fn matches(pattern: &FullMatch, path: &Path) -> Result<bool, String> {
    pattern.is_match(path.as_str())
}

/// The contracted axes of a matrix.
fn contracted(
    index: usize,
    rule: &WeightRule,
    layout: WeightLayout,
    path: &Path,
    ty: &ArrayType,
) -> Result<Vec<usize>, PtqError> {
    let rank = ty.shape.len();
    let given = rule.contracting_axes.clone().unwrap_or_else(|| vec![layout.contracting_axis()]);
    let wrong = |reason: String| PtqError::Rule { index, field: "contracting_axes".to_owned(), reason };
    if given.is_empty() {
        return Err(wrong("names no axis; leave it out for the layout's".to_owned()));
    }
    let mut axes = Vec::new();
    for axis in given {
        let from_the_start = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        let found = usize::try_from(from_the_start).ok().filter(|&axis| axis < rank);
        let found = found.ok_or_else(|| {
            wrong(format!(
                "`{path}` is {ty}, which has no axis {axis}; give axes from {} to {}",
                -(rank as i64),
                rank - 1
            ))
        })?;
        if axes.contains(&found) {
            return Err(wrong(format!("names axis {found} of `{path}` twice")));
        }
        axes.push(found);
    }
    Ok(axes)
}
