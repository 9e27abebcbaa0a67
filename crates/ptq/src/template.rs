//! What the parameters of a quantized graph are, and what they are made from.

use std::collections::BTreeMap;
use std::fmt;

use qwix_eval::Params;
use qwix_graph::{ArrayType, Graph, Parameter, Path, Prep, Slot, Type, WeightSlot, nearest};

use crate::{PtqError, bytes_of};

/// The parameters of a graph: what each is, and what it is made from. Holds no values, so that a model of any size
/// has one.
///
/// Printed, it is a tree: a line a module, and below it a line a parameter.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Template {
    parameters: BTreeMap<Path, Parameter>,
    /// For the path of a float parameter, the parameters made from it.
    made_from: BTreeMap<Path, Vec<Path>>,
    /// For the path of statistics, the parameters made from them.
    made_from_statistics: BTreeMap<Path, Vec<Path>>,
}

/// Parameters that are not all that a template wants, given back with the reason.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unfinished {
    /// The parameters, as they were given.
    pub params: Params,
    /// What is missing, unknown or of another type.
    pub reason: Box<PtqError>,
}

impl From<Unfinished> for PtqError {
    fn from(unfinished: Unfinished) -> Self {
        *unfinished.reason
    }
}

impl Template {
    /// The template of a graph's variables.
    pub fn of(graph: &Graph) -> Self {
        Self::of_parameters(graph.variables().map(|(_, parameter)| parameter))
    }

    /// The template of variables that belong to no graph.
    pub fn of_parameters<'a>(variables: impl IntoIterator<Item = &'a Parameter>) -> Self {
        let mut template = Template::default();
        for parameter in variables {
            let (made_from, source) = match &parameter.slot {
                None => (&mut template.made_from, &parameter.path),
                Some(Slot::Weight(slot)) => (&mut template.made_from, &slot.source),
                Some(Slot::Statistic(slot)) => (&mut template.made_from_statistics, &slot.source),
            };
            made_from.entry(source.clone()).or_default().push(parameter.path.clone());
            template.parameters.insert(parameter.path.clone(), parameter.clone());
        }
        template
    }

    /// The parameters, by path.
    pub fn parameters(&self) -> &BTreeMap<Path, Parameter> {
        &self.parameters
    }

    /// The paths of the float parameters that it takes.
    pub fn sources(&self) -> impl Iterator<Item = &Path> + Clone {
        self.made_from.keys()
    }

    /// The type of a float parameter that it takes; none when it takes no float array of this path.
    pub fn source_type(&self, path: &Path) -> Option<&ArrayType> {
        let parameter = self.made_of(path).next()?;
        match (&parameter.slot, &parameter.ty) {
            (Some(Slot::Weight(slot)), _) => Some(&slot.source_type),
            (Some(Slot::Statistic(_)), _) => None,
            (None, Type::Array(array)) => Some(array),
            (None, Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_)) => None,
        }
    }

    /// The parameters that are made from a float parameter.
    pub fn made_of(&self, path: &Path) -> impl Iterator<Item = &Parameter> {
        let targets = self.made_from.get(path).map_or(&[][..], Vec::as_slice);
        targets.iter().filter_map(|target| self.parameters.get(target))
    }

    /// The paths of the statistics that it takes: `<module path>/<op id>_lhs`.
    pub fn statistics(&self) -> impl Iterator<Item = &Path> {
        self.made_from_statistics.keys()
    }

    /// The parameters that are made from the statistics of an activation.
    pub fn made_of_statistics(&self, path: &Path) -> impl Iterator<Item = &Parameter> {
        let targets = self.made_from_statistics.get(path).map_or(&[][..], Vec::as_slice);
        targets.iter().filter_map(|target| self.parameters.get(target))
    }

    /// Bytes of floats that exist at once while a float parameter is quantized: its own, and those of the copies in
    /// which it is transposed or sliced. Counted from the types, saturating.
    pub fn float_bytes(&self, path: &Path) -> u64 {
        let own = self.source_type(path).map_or(0, |ty| bytes_of(&Type::Array(ty.clone())));
        let copies = self.made_of(path).filter_map(|p| p.slot.as_ref()?.as_weight()).map(copied_bytes).max();
        own.saturating_add(copies.unwrap_or(0))
    }

    /// The parameters that quantized ones do not hold yet.
    pub fn missing(&self, params: &Params) -> Vec<&Path> {
        self.parameters.keys().filter(|path| !params.contains_key(*path)).collect()
    }

    /// Quantized parameters that were put together from subtrees, once they are all there and as the template says.
    ///
    /// # Errors
    /// [`PtqError::MissingParams`] lists what is missing; a parameter too many, or of another type, is named. The error
    /// gives the parameters back.
    pub fn finish(&self, params: Params) -> Result<Params, Unfinished> {
        match self.check(&params) {
            Ok(()) => Ok(params),
            Err(reason) => Err(Unfinished { params, reason: Box::new(reason) }),
        }
    }

    fn check(&self, params: &Params) -> Result<(), PtqError> {
        for (path, value) in params {
            let parameter =
                self.parameters.get(path).ok_or_else(|| self.unknown(path, self.parameters.keys()))?;
            if !value.is_of(&parameter.ty) {
                let (expected, found) = (parameter.ty.to_string(), value.describe());
                return Err(PtqError::WrongParam { path: path.clone(), expected, found });
            }
        }
        let missing: Vec<Path> = self.missing(params).into_iter().cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let paths: Vec<(Vec<&str>, bool)> = self
            .parameters
            .keys()
            .map(|path| (path.segments().collect(), !params.contains_key(path)))
            .collect();
        let mut places = Vec::new();
        collect_places(&paths.iter().collect::<Vec<_>>(), 0, &mut places);
        Err(PtqError::MissingParams { total: self.parameters.len(), places: listed(places), missing })
    }

    /// The error for a path that is not among those known, with the one that is probably meant.
    pub(crate) fn unknown<'a>(&self, path: &Path, known: impl Iterator<Item = &'a Path> + Clone) -> PtqError {
        let text = path.as_str();
        let below =
            |long: &str, short: &str| long.strip_suffix(short).is_some_and(|rest| rest.ends_with('/'));
        let moved = known.clone().map(Path::as_str).find(|k| below(text, k) || below(k, text));
        let hint = moved.or_else(|| nearest(text, known.map(Path::as_str)));
        PtqError::UnknownParam {
            path: path.clone(),
            hint: hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default(),
        }
    }

    /// The error for a float parameter that nothing is made from, with the one that is probably meant.
    pub fn unknown_source(&self, path: &Path) -> PtqError {
        self.unknown(path, self.made_from.keys())
    }
}

/// Bytes of the copies that exist at once on the way from a slot's source to what is quantized.
fn copied_bytes(slot: &WeightSlot) -> u64 {
    let (mut now, mut most) = (0u64, 0u64);
    let mut shape = slot.source_type.shape.clone();
    for step in &slot.prep {
        match step {
            // The bytes stay where they are.
            Prep::Reshape(to) => {
                shape.clone_from(to);
                continue;
            }
            Prep::Transpose(permutation) => {
                shape = permutation.iter().map(|&axis| shape.get(axis).copied().unwrap_or(0)).collect();
            }
            Prep::Slice(dims) => {
                shape =
                    dims.iter().map(|d| d.limit.saturating_sub(d.start).div_ceil(d.stride.max(1))).collect();
            }
        }
        let copy = bytes_of(&Type::array(slot.source_type.dtype, shape.clone()));
        most = most.max(now.saturating_add(copy));
        now = copy;
    }
    most
}

/// Where parameters are missing: a module of which all are counts as one place, with the number of its parameters.
fn collect_places(paths: &[&(Vec<&str>, bool)], depth: usize, places: &mut Vec<(String, usize)>) {
    let mut groups: BTreeMap<&str, Vec<&(Vec<&str>, bool)>> = BTreeMap::new();
    for path in paths {
        if let Some(segment) = path.0.get(depth) {
            groups.entry(segment).or_default().push(path);
        }
    }
    for group in groups.values() {
        let Some((first, _)) = group.first() else { continue };
        if group.len() > 1 && group.iter().all(|(_, missing)| *missing) {
            places.push((first[..=depth].join("/"), group.len()));
            continue;
        }
        for (segments, missing) in group {
            if segments.len() == depth + 1 && *missing {
                places.push((segments.join("/"), 1));
            }
        }
        let deeper: Vec<_> =
            group.iter().copied().filter(|(segments, _)| segments.len() > depth + 1).collect();
        collect_places(&deeper, depth + 1, places);
    }
}

/// Places for a message, not more than can be read.
fn listed(places: Vec<(String, usize)>) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = places
        .iter()
        .take(SHOWN)
        .map(|(path, count)| match count {
            1 => format!("`{path}`"),
            count => format!("`{path}` ({count} parameters)"),
        })
        .collect();
    let rest: usize = places.iter().skip(SHOWN).map(|(_, count)| count).sum();
    if rest > 0 {
        words.push(format!("and {rest} elsewhere"));
    }
    words.join(", ")
}

/// One line of the tree.
struct Line {
    name: String,
    /// Type, scale, zero point, bytes, how; nothing for a module.
    cells: Option<[String; 5]>,
}

impl Line {
    fn of(depth: usize, path: &Path, name: &str, parameter: &Parameter) -> Self {
        let mut cells = [const { String::new() }; 5];
        match &parameter.ty {
            Type::QArray(q) => {
                let scale_shape = q.scale_shape().unwrap_or_default();
                let shape = ArrayType::new(q.array.dtype, q.array.shape.clone()).to_string();
                let shape = shape.find('[').map_or("", |at| &shape[at..]).to_owned();
                cells[0] = format!("{}{shape}", q.how.qtype);
                cells[1] = format!("scale {}", ArrayType::new(q.array.dtype, scale_shape.clone()));
                if q.has_zero_point() {
                    cells[2] = format!("zero point {}", ArrayType::new(q.how.qtype.storage, scale_shape));
                }
                cells[4] = q.how_text();
            }
            ty @ (Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_)) => {
                cells[0] = ty.to_string()
            }
        }
        cells[3] = human_bytes(bytes_of(&parameter.ty));
        match &parameter.slot {
            Some(Slot::Weight(slot)) if slot.source != *path || !slot.prep.is_empty() => {
                cells[4].push_str(&format!(" from {} {}", slot.source, slot.source_type));
            }
            Some(Slot::Statistic(slot)) => {
                cells[4] = format!("{} from the statistics {}", slot.part, slot.source);
            }
            Some(Slot::Weight(_)) | None => {}
        }
        Line { name: format!("{}{name}", "  ".repeat(depth)), cells: Some(cells) }
    }
}

impl fmt::Display for Template {
    /// A tree: a line a module, and below it a line a parameter with its type, the type of its scale, its bytes and
    /// how it is made; then a line of sums.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open: Vec<&str> = vec![];
        let mut lines = vec![];
        for (path, parameter) in &self.parameters {
            let segments: Vec<&str> = path.segments().collect();
            let Some((name, modules)) = segments.split_last() else { continue };
            let shared = open.iter().zip(modules).take_while(|(a, b)| a == b).count();
            open.truncate(shared);
            for module in &modules[shared..] {
                lines.push(Line { name: format!("{}{module}", "  ".repeat(open.len())), cells: None });
                open.push(module);
            }
            lines.push(Line::of(open.len(), path, name, parameter));
        }
        let rows = || lines.iter().filter_map(|line| Some((&line.name, line.cells.as_ref()?)));
        let name_width = rows().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let width = |cell: usize| rows().map(|(_, cells)| cells[cell].chars().count()).max().unwrap_or(0);
        let widths: [usize; 4] = std::array::from_fn(width);
        for line in &lines {
            let Some(cells) = &line.cells else {
                writeln!(f, "{}", line.name)?;
                continue;
            };
            let mut text = format!("{:name_width$}", line.name);
            for (number, (cell, &width)) in
                cells.iter().zip(&widths).enumerate().filter(|(_, (_, w))| **w > 0)
            {
                // Numbers of bytes stand under each other by their last digit.
                text += &if number == 3 { format!("  {cell:>width$}") } else { format!("  {cell:width$}") };
            }
            if !cells[4].is_empty() {
                text += &format!("  {}", cells[4]);
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        let quantized = self.parameters.values().filter(|p| matches!(p.ty, Type::QArray(_))).count();
        let total = |bytes: u64, more: u64| bytes.saturating_add(more);
        let now = self.parameters.values().map(|p| bytes_of(&p.ty)).fold(0, total);
        let floats = self.sources().filter_map(|path| self.source_type(path));
        let before = floats.map(|ty| bytes_of(&Type::Array(ty.clone()))).fold(0, total);
        let count = self.parameters.len();
        let parameters = if count == 1 { "parameter" } else { "parameters" };
        writeln!(
            f,
            "{quantized} of {count} {parameters} quantized, {}, made from {}",
            human_bytes(now),
            human_bytes(before)
        )
    }
}

/// A number of bytes for people: `1.2 MB`.
pub fn human_bytes(count: u64) -> String {
    let mut value = count as f64;
    if value < 999.5 {
        return format!("{count} B");
    }
    for unit in ["kB", "MB", "GB", "TB"] {
        value /= 1000.0;
        if value < 999.95 {
            return format!("{value:.1} {unit}");
        }
    }
    format!("{:.1} PB", value / 1000.0)
}
