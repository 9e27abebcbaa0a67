//! Rules that quantize as parameters that are there are quantized: Qwix's `restore_quantization_rules`.

use std::collections::BTreeMap;

use qwix_graph::{ArrayType, Path, QArrayType};
use qwix_quant::{Calibration, Granularity, HowToQuantize, QArray, QType, Tile};

use crate::{PtqError, QuantizationRule, TileSize};

/// What activations are quantized to in restored rules.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum RestoredActs {
    /// To the type of the weight, which is Qwix's default.
    #[default]
    AsWeights,
    /// Not at all: weight-only.
    Float,
    /// To a type by name.
    Qtype(String),
}

/// What [`restore_quantization_rules`] is told beside the parameters.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct RestoreRules {
    /// The tile of every rule, which Qwix has to be told; unless given, each rule's comes from the scales.
    pub tile_size: Option<TileSize>,
    /// The type of activations.
    pub act_qtype: RestoredActs,
}

/// The type of a quantized array, read off its parts. Where one scale serves a whole axis, the axis counts as shared
/// unless the qtype asks for tiles of just that size; a zero point reads as `minmax`.
pub fn type_of_qarray(q: &QArray) -> QArrayType {
    type_of_parts(
        q.qtype(),
        ArrayType::new(q.dtype(), q.shape()),
        q.scale().shape(),
        q.zero_point().is_some(),
    )
}

/// As [`type_of_qarray`], of an array that is not there: its qtype, what it stands for, the shape of its scales and
/// whether it has a zero point.
pub fn type_of_parts(
    qtype: &'static QType,
    array: ArrayType,
    scale_shape: &[usize],
    zero_point: bool,
) -> QArrayType {
    let granularity = array.shape.iter().zip(scale_shape).map(|(&size, &count)| {
        let tile = size.checked_div(count).unwrap_or(1);
        match () {
            () if qtype.tile == Some(tile) => Granularity::Tiled(Tile::Size(tile)),
            () if count == 1 => Granularity::Shared,
            () if tile <= 1 => Granularity::Channelwise,
            () => Granularity::Tiled(Tile::Size(tile)),
        }
    });
    let granularity = granularity.collect();
    let calibration = match zero_point {
        false => Calibration::AbsMax { scale: None },
        true => Calibration::MinMax { scale: None },
    };
    QArrayType { array, how: HowToQuantize { qtype, granularity, calibration } }
}

/// Rules that quantize weights as these are quantized: a rule a module, with the weight's type, its calibration
/// (`minmax` where there is a zero point) and its tile. A number in a path (a layer of a list) becomes `[^/]+`.
///
/// Where modules that differ only in such a number are quantized differently, each gets a rule of its own; Qwix keeps
/// the last one for all.
///
/// # Errors
/// Names the parameter whose scales have tiles of several sizes, where no tile is given.
pub fn restore_quantization_rules<'a>(
    params: impl IntoIterator<Item = (&'a Path, &'a QArrayType)>,
    options: &RestoreRules,
) -> Result<Vec<QuantizationRule>, PtqError> {
    // Pattern → literal path → rule, patterns in the order in which they first appear.
    let mut patterns: Vec<(String, BTreeMap<String, QuantizationRule>)> = vec![];
    for (path, ty) in params {
        // Qwix's models keep a quantized weight in a field `array` of the parameter.
        let parameter = if path.name() == "array" { path.parent() } else { path.clone() };
        let module = parameter.parent();
        let segments = || module.segments();
        let join = |segments: Vec<String>| segments.join("/");
        let numbered = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let pattern =
            join(segments().map(|s| if numbered(s) { "[^/]+".to_owned() } else { literal(s) }).collect());
        let rule = rule(path, ty, options)?;
        let exact = join(segments().map(literal).collect());
        match patterns.iter_mut().find(|(known, _)| *known == pattern) {
            Some((_, rules)) => drop(rules.insert(exact, rule)),
            None => patterns.push((pattern, BTreeMap::from([(exact, rule)]))),
        }
    }
    let mut restored = vec![];
    for (pattern, rules) in patterns {
        let named =
            |module_path: String, rule: &QuantizationRule| QuantizationRule { module_path, ..rule.clone() };
        match rules.values().next() {
            Some(first) if rules.values().all(|rule| rule == first) => restored.push(named(pattern, first)),
            Some(_) | None => restored.extend(rules.iter().map(|(exact, rule)| named(exact.clone(), rule))),
        }
    }
    Ok(restored)
}

fn rule(path: &Path, ty: &QArrayType, options: &RestoreRules) -> Result<QuantizationRule, PtqError> {
    let qtype = ty.how.qtype.name;
    let mut rule = QuantizationRule::new("").weight_qtype(qtype);
    rule.weight_calibration_method = if ty.has_zero_point() { "minmax" } else { "absmax" }.to_owned();
    rule.act_qtype = match &options.act_qtype {
        RestoredActs::AsWeights => Some(qtype.to_owned()),
        RestoredActs::Float => None,
        RestoredActs::Qtype(name) => Some(name.clone()),
    };
    rule.tile_size = match options.tile_size {
        Some(tile) => Some(tile),
        None => tile_of(path, ty)?.map(|tile| TileSize::Elements(tile as i64)),
    };
    Ok(rule)
}

/// The tile that the scales show: of one size, whichever axes have it. A scale for every element is a tile of one.
fn tile_of(path: &Path, ty: &QArrayType) -> Result<Option<usize>, PtqError> {
    let mut tiles = vec![];
    for (granularity, &size) in ty.how.granularity.iter().zip(&ty.array.shape) {
        match *granularity {
            Granularity::Tiled(Tile::Size(tile)) => tiles.push(tile),
            Granularity::Tiled(Tile::Fraction(fraction)) => {
                tiles.push((size as f64 * fraction).round_ties_even() as usize);
            }
            Granularity::Shared | Granularity::Channelwise => {}
        }
    }
    tiles.sort_unstable();
    tiles.dedup();
    let each = ty.array.shape.len() > 1 && ty.how.granularity.iter().all(|g| *g == Granularity::Channelwise);
    match tiles[..] {
        [] if each => Ok(Some(1)),
        [] => Ok(None),
        [tile] => Ok(Some(tile)),
        _ => Err(PtqError::WrongParam {
            path: path.clone(),
            expected: "tiles of one size, as a rule has one".to_owned(),
            found: format!("{}; give `tile_size`", ty),
        }),
    }
}

/// A segment as a pattern that matches it alone.
fn literal(segment: &str) -> String {
    let mut pattern = String::with_capacity(segment.len());
    for c in segment.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
