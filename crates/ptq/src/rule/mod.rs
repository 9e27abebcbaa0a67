//! Rules: which ops are quantized, and how.

mod read;
mod regex;
mod weights;

use std::fmt;

use qwix_graph::nearest;
use qwix_quant::{Calibration, QType, Tile};
use serde::Serialize;

use crate::{PtqError, Warning};
use regex::FullMatch;
pub use weights::{WeightLayout, WeightRule, weights_only};

/// The names that ops have in rules.
pub const OP_NAMES: [&str; 3] = ["dot_general", "einsum", "conv_general_dilated"];

/// A tile size as a rule gives it: elements, or the fraction of the axis that one tile takes.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum TileSize {
    /// So many elements of the last contracted axis.
    Elements(i64),
    /// "1 / number of tiles": a tile has round(axis · fraction) elements.
    Fraction(f64),
}

impl From<i32> for TileSize {
    fn from(size: i32) -> Self {
        TileSize::Elements(size.into())
    }
}

impl From<i64> for TileSize {
    fn from(size: i64) -> Self {
        TileSize::Elements(size)
    }
}

impl From<f64> for TileSize {
    fn from(fraction: f64) -> Self {
        TileSize::Fraction(fraction)
    }
}

impl fmt::Display for TileSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TileSize::Elements(size) => write!(f, "{size}"),
            TileSize::Fraction(fraction) => write!(f, "{fraction:?}"),
        }
    }
}

/// Which ops, and how to quantize them. Fields, names and defaults are Qwix's.
///
/// A rule is only checked when a provider takes it, so that building one never fails.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct QuantizationRule {
    /// A Python regular expression that matches the whole path of the op's module. `.*` unless given.
    pub module_path: String,
    /// The ops that the rule is for (see [`OP_NAMES`]); all when empty.
    pub op_names: Vec<String>,
    /// The type of quantized weights; without one the op stays as it is.
    pub weight_qtype: Option<String>,
    /// The type of quantized activations; without one they stay floats.
    pub act_qtype: Option<String>,
    /// Scales for tiles of the last contracted axis instead of one for the whole axis.
    pub tile_size: Option<TileSize>,
    /// Scales of activations from calibration instead of from each batch.
    pub act_static_scale: Option<bool>,
    /// How the range of a weight is found; `absmax` unless given.
    pub weight_calibration_method: String,
    /// How the range of an activation is found; `absmax` unless given.
    pub act_calibration_method: Option<String>,
    /// Axes over which calibration takes the mean of its statistics; `[0]` unless given.
    pub act_batch_axes: Vec<i64>,
    /// One scale for all channels, in `QtProvider`; Qwix has this in `QtRule`.
    pub disable_channelwise_axes: bool,
    /// Names of fields of Qwix's `QtRule` that were given and say how gradients are quantized: they have no effect here.
    #[serde(skip)]
    pub of_training: Vec<String>,
}

impl Default for QuantizationRule {
    fn default() -> Self {
        QuantizationRule {
            module_path: ".*".to_owned(),
            op_names: vec![],
            weight_qtype: None,
            act_qtype: None,
            tile_size: None,
            act_static_scale: None,
            weight_calibration_method: "absmax".to_owned(),
            act_calibration_method: None,
            act_batch_axes: vec![0],
            disable_channelwise_axes: false,
            of_training: vec![],
        }
    }
}

impl QuantizationRule {
    /// A rule for the modules whose path matches; it changes nothing until it has a `weight_qtype`.
    pub fn new(module_path: &str) -> Self {
        QuantizationRule { module_path: module_path.to_owned(), ..Self::default() }
    }

    /// Only for ops of these names.
    pub fn op_names<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.op_names = names.into_iter().map(str::to_owned).collect();
        self
    }

    /// Sets the type of weights.
    pub fn weight_qtype(mut self, name: &str) -> Self {
        self.weight_qtype = Some(name.to_owned());
        self
    }

    /// Sets the type of activations.
    pub fn act_qtype(mut self, name: &str) -> Self {
        self.act_qtype = Some(name.to_owned());
        self
    }

    /// Sets the tile: an integer for elements, a float for the fraction of the axis.
    pub fn tile_size(mut self, tile: impl Into<TileSize>) -> Self {
        self.tile_size = Some(tile.into());
        self
    }

    /// Whether scales of activations come from calibration.
    pub fn act_static_scale(mut self, fixed: bool) -> Self {
        self.act_static_scale = Some(fixed);
        self
    }

    /// Sets how the range of weights is found.
    pub fn weight_calibration_method(mut self, method: &str) -> Self {
        self.weight_calibration_method = method.to_owned();
        self
    }

    /// Sets how the range of activations is found.
    pub fn act_calibration_method(mut self, method: &str) -> Self {
        self.act_calibration_method = Some(method.to_owned());
        self
    }

    /// Sets the axes that calibration takes the mean over.
    pub fn act_batch_axes(mut self, axes: impl IntoIterator<Item = i64>) -> Self {
        self.act_batch_axes = axes.into_iter().collect();
        self
    }

    /// Whether `QtProvider` uses one scale for all channels.
    pub fn disable_channelwise_axes(mut self, disable: bool) -> Self {
        self.disable_channelwise_axes = disable;
        self
    }
}

/// What a checked rule says of one side of a product.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SideRule {
    /// The type.
    pub qtype: &'static QType,
    /// How the range is found.
    pub calibration: Calibration,
}

/// A rule that has been checked.
#[derive(Clone, Debug)]
pub struct CheckedRule {
    /// As the user wrote it.
    pub rule: QuantizationRule,
    /// How weights are quantized; `None` leaves the op as it is.
    pub weight: Option<SideRule>,
    /// How activations are quantized; `None` leaves them as they are.
    pub act: Option<SideRule>,
    /// The tile of the last contracted axis.
    pub tile: Option<Tile>,
    module_path: FullMatch,
}

/// Rules in order of precedence, checked.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<CheckedRule>,
    warnings: Vec<Warning>,
}

impl Rules {
    /// Checks rules.
    ///
    /// # Errors
    /// Names the rule, the field and what is wrong with it.
    pub fn new(rules: Vec<QuantizationRule>) -> Result<Self, PtqError> {
        let mut warnings = vec![];
        if rules.is_empty() {
            warnings.push(Warning {
                about: "rules".to_owned(),
                message: "there are none, so nothing is quantized".to_owned(),
            });
        }
        let rules = rules
            .into_iter()
            .enumerate()
            .map(|(index, rule)| check(index, rule, &mut warnings))
            .collect::<Result<_, _>>()?;
        Ok(Rules { rules, warnings })
    }

    /// The rules, first the one that goes first.
    pub fn as_slice(&self) -> &[CheckedRule] {
        &self.rules
    }

    /// What the rules say without effect.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The first rule that matches an op: its number.
    ///
    /// # Errors
    /// When a pattern backtracks without end on this path.
    pub fn find(&self, module_path: &str, op_name: &str) -> Result<Option<usize>, PtqError> {
        for index in 0..self.rules.len() {
            if self.matches(index, module_path, op_name)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Whether one rule matches an op, whatever stands before it.
    ///
    /// # Errors
    /// When its pattern backtracks without end on this path.
    pub fn matches(&self, index: usize, module_path: &str, op_name: &str) -> Result<bool, PtqError> {
        let Some(rule) = self.rules.get(index) else { return Ok(false) };
        let names = &rule.rule.op_names;
        if !names.is_empty() && !names.iter().any(|name| name == op_name) {
            return Ok(false);
        }
        rule.module_path.is_match(module_path).map_err(|reason| PtqError::Rule {
            index,
            field: "module_path".to_owned(),
            reason: format!("`{}` on the path `{module_path}`: {reason}", rule.rule.module_path),
        })
    }
}

fn check(index: usize, rule: QuantizationRule, warnings: &mut Vec<Warning>) -> Result<CheckedRule, PtqError> {
    let wrong = |field: &str, reason: String| PtqError::Rule { index, field: field.to_owned(), reason };
    let mut warn = |field: &str, message: String| {
        warnings.push(Warning { about: format!("rules[{index}].{field}"), message });
    };

    let module_path = FullMatch::new(&rule.module_path)
        .map_err(|reason| wrong("module_path", format!("the pattern `{}`: {reason}", rule.module_path)))?;
    for name in &rule.op_names {
        if !OP_NAMES.contains(&name.as_str()) {
            let hint = nearest(name, OP_NAMES).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            let known = OP_NAMES.join(", ");
            warn("op_names", format!("no op is named `{name}`; there are {known}{hint}"));
        }
    }

    let weight_qtype = qtype(rule.weight_qtype.as_deref()).map_err(|r| wrong("weight_qtype", r))?;
    let act_qtype = qtype(rule.act_qtype.as_deref()).map_err(|r| wrong("act_qtype", r))?;
    let weight_calibration =
        calibration(&rule.weight_calibration_method).map_err(|r| wrong("weight_calibration_method", r))?;
    let act_calibration = calibration(rule.act_calibration_method.as_deref().unwrap_or("absmax"))
        .map_err(|r| wrong("act_calibration_method", r))?;
    let side = |field: &str, qtype: Option<&'static QType>, calibration: Calibration| match qtype {
        None => Ok(None),
        Some(q) if calibration.is_asymmetric() && q.asymmetric_bounds.is_none() => Err(wrong(
            field,
            format!(
                "an asymmetric range needs a type with a zero point (int4, int8, int16), and {q} has none"
            ),
        )),
        Some(qtype) => Ok(Some(SideRule { qtype, calibration })),
    };
    let weight = side("weight_calibration_method", weight_qtype, weight_calibration)?;
    let act = side("act_calibration_method", act_qtype, act_calibration)?;
    if let (Some(w), Some(a)) = (weight, act)
        && w.calibration.is_asymmetric()
        && a.calibration.is_asymmetric()
        && w.qtype.is_uniform()
        && a.qtype.is_uniform()
    {
        warn(
            "act_calibration_method",
            "weights and activations both get a zero point; products of two such sides are only possible where \
             they are dequantized first"
                .to_owned(),
        );
    }

    let tile = match rule.tile_size {
        None => None,
        Some(TileSize::Elements(size)) => {
            let size = usize::try_from(size).ok().filter(|&s| s > 0);
            Some(Tile::Size(size.ok_or_else(|| {
                wrong(
                    "tile_size",
                    format!(
                        "{} is not a number of elements; leave it out for no tiles",
                        rule.tile_size.map_or_else(String::new, |t| t.to_string())
                    ),
                )
            })?))
        }
        Some(TileSize::Fraction(fraction)) => {
            if !(fraction > 0.0 && fraction <= 1.0) {
                return Err(wrong(
                    "tile_size",
                    format!(
                        "a float is the fraction of the axis that one tile takes, above 0 and at most 1; found \
                         {fraction:?}"
                    ),
                ));
            }
            Some(Tile::Fraction(fraction))
        }
    };
    for (field, side) in [("weight_qtype", weight), ("act_qtype", act)] {
        if let Some(SideRule { qtype, .. }) = side
            && let Some(wanted) = qtype.tile
            && let Some(given) = tile
            && given != Tile::Size(wanted)
        {
            return Err(wrong("tile_size", format!("{field} {qtype} has tiles of {wanted}, found {given}")));
        }
    }

    if rule.act_static_scale.is_some() && act.is_none() {
        return Err(wrong(
            "act_static_scale",
            "it says how activations are quantized, and without act_qtype they are not; set act_qtype, or leave \
             act_static_scale out"
                .to_owned(),
        ));
    }
    let fixed = rule.act_static_scale == Some(true);
    for (i, axis) in rule.act_batch_axes.iter().enumerate() {
        if fixed && rule.act_batch_axes[..i].contains(axis) {
            return Err(wrong("act_batch_axes", format!("the axis {axis} stands in it twice")));
        }
    }
    for name in &rule.of_training {
        warn(
            name,
            "it says how gradients are quantized; only the forward pass is computed here, and it is ignored"
                .to_owned(),
        );
    }
    if weight.is_none() {
        for (field, set) in [
            ("act_qtype", act.is_some()),
            ("tile_size", tile.is_some()),
            ("weight_calibration_method", rule.weight_calibration_method != "absmax"),
        ] {
            if set {
                warn(field, "without weight_qtype the op stays as it is, and this is ignored".to_owned());
            }
        }
    }
    if act.is_none() && rule.act_calibration_method.is_some() {
        warn("act_calibration_method", "without act_qtype this is ignored".to_owned());
    }
    if rule.act_batch_axes != [0] && !fixed {
        warn("act_batch_axes", "only static scales use this; it is ignored".to_owned());
    }
    Ok(CheckedRule { rule, weight, act, tile, module_path })
}

fn qtype(name: Option<&str>) -> Result<Option<&'static QType>, String> {
    let Some(name) = name else { return Ok(None) };
    let why = match name {
        "uint8" | "uint4" | "uint2" | "uint16" | "uint32" | "u8" | "u4" => {
            "scales are symmetric around zero, so unsigned integers would lose every negative value; use the signed type"
        }
        "float8_e8m0fnu" | "e8m0" | "e8m0fnu" => {
            "e8m0 has powers of two only, neither a sign nor a zero: it is a type for scales; use mxfp8 or mxfp4"
        }
        "bf16" | "bfloat16" | "f16" | "float16" | "f32" | "float32" | "f64" | "float64" => {
            "this is a float type that models compute in, not one to quantize to; leave the field out to stay in float"
        }
        "int32" | "int64" => "types wider than 16 bits save nothing",
        "bool" => "one bit cannot hold a sign and a value; int2 is the narrowest type",
        _ => "",
    };
    if !why.is_empty() {
        return Err(format!("`{name}` is refused: {why}"));
    }
    QType::by_name(name).map(Some).map_err(|e| {
        let hint = nearest(name, QType::all().iter().map(|q| q.name));
        format!("{e}{}", hint.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())
    })
}

fn calibration(text: &str) -> Result<Calibration, String> {
    text.parse::<Calibration>().map_err(|e| e.to_string())
}
