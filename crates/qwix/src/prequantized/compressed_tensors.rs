//! compressed-tensors, as LLM Compressor writes it and vLLM reads it.
//!
//! The config has groups; each says which modules it is for and how their weights are. Matrices are [out, in].
//! - `int-quantized`, `naive-quantized`: `weight` s8; `float-quantized`: `weight` f8e4m3fn; with `weight_scale`, and
//!   `weight_zero_point` when not symmetric. A weight is (q − zero) · scale.
//! - `pack-quantized`: `weight_packed` s32 [out, ⌈in · bits / 32⌉], consecutive columns from the lowest bits of a word on, each
//!   plus 2^(bits − 1); `weight_shape`; zero points packed alike along the rows.
//! - `nvfp4-pack-quantized`: `weight_packed` u8 [out, in / 2], `weight_scale` f8e4m3fn, `weight_global_scale` f32, by which
//!   the scale is divided. `mxfp4-pack-quantized`: the scales are u8 exponents.
//!
//! The scales' shape follows the strategy: `tensor`, `channel` (a row), `group` (columns of a row), `block`. Activation order
//! (`weight_g_idx`) scatters the columns of a group.

use fancy_regex::Regex;
use qwix_array::{Array, DType};
use qwix_eval::Value;
use qwix_graph::{ArrayType, Path, Type};
use qwix_quant::{QArray, QType};

use super::blocks::{Blocks, Groups, in_sequence, signed, unpack_columns, unpack_rows};
use super::fp8::block_size;
use super::nvfp4::Global;
use super::plan::{Entry, Module, Plan};
use super::source::{Config, Source};
use super::{ActOrder, Format, ImportOptions, fp8, gptq, mxfp4, nvfp4};
use crate::{Error, Result};

pub(super) struct CompressedTensors;

const FLOATS: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

const FIELDS: [&str; 11] = [
    "quant_method",
    "config_groups",
    "format",
    "ignore",
    "kv_cache_scheme",
    "quantization_status",
    "global_compression_ratio",
    "sparsity_config",
    "transform_config",
    "version",
    "run_compressed",
];
const GROUP_FIELDS: [&str; 5] = ["targets", "weights", "input_activations", "output_activations", "format"];
const WEIGHT_FIELDS: [&str; 12] = [
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "group_size",
    "block_structure",
    "actorder",
    "dynamic",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "zp_dtype",
];
/// What belongs to a weight.
const PARTS: [&str; 7] = [
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "weight_scale_inv",
];
/// What is said of activations and has no counterpart here.
const ACTIVATIONS: [&str; 8] = [
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "q_scale",
    "k_scale",
    "v_scale",
    "k_zero_point",
    "v_zero_point",
];

/// One group of the config.
struct Scheme {
    targets: Vec<Target>,
    format: String,
    weights: Config,
}

enum Target {
    Name(String),
    Pattern(Box<Regex>),
}

impl Format for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn is(&self, source: &Source) -> bool {
        source.method() == Some("compressed-tensors")
    }

    fn plan(&self, source: &Source, options: &ImportOptions) -> Result<Plan> {
        let config = source.config.as_ref().ok_or_else(|| {
            Error::checkpoint(
                source.checkpoint.name(),
                None,
                "has no config beside it that says how it is quantized",
            )
        })?;
        config.only(&FIELDS, &options.ignore_config)?;
        let ignored = |field: &str| options.ignore_config.iter().any(|i| i == field);
        if config.get("kv_cache_scheme").is_some() && !options.weights_only {
            return Err(config.bad(
                "kv_cache_scheme",
                "says that the cache of keys and values is quantized, which is not done here; import the weights alone (--weights-only)",
            ));
        }
        if let Some(sparsity) = config.object("sparsity_config")?
            && sparsity.text("format")?.is_some_and(|format| format != "dense")
        {
            return Err(sparsity.bad("format", "is a sparse one, which cannot be imported"));
        }
        if config.object("transform_config")?.is_some_and(|t| t.names().next().is_some())
            && !ignored("transform_config")
        {
            return Err(config
                .bad("transform_config", "rotates activations when the model runs, which is not done here"));
        }
        let schemes = schemes(config, options)?;
        Plan::by_module(source, &PARTS, |module| {
            let dtype = source.checkpoint.type_of(&module.at("weight")).map(|ty| ty.dtype);
            let is_coded = module.has("weight")
                && dtype.is_some_and(|dtype| dtype == DType::S8 || fp8::FLOAT8.contains(&dtype));
            if !is_coded && !module.has("weight_packed") {
                activations(module, options, false)?;
                return Ok(vec![]);
            }
            let scheme = scheme_of(&schemes, module, config)?;
            activations(module, options, scheme.format == "nvfp4-pack-quantized")?;
            weight(module, scheme, options)
        })
    }
}

/// Refuses what is said of a module's activations and cannot be done here, or leaves it out. The static scale of an
/// input can: it stays, unless only weights are wanted, or it is (`second_level`) but half of what quantizes the input.
pub(super) fn activations(
    module: &mut Module<'_>,
    options: &ImportOptions,
    second_level: bool,
) -> Result<()> {
    if options.weights_only {
        module.take("input_scale");
        module.take("input_zero_point");
    }
    let also = if second_level { &["input_scale"][..] } else { &[] };
    for name in ACTIVATIONS.iter().chain(also) {
        let Some(path) = module.take(name) else { continue };
        if !options.weights_only {
            return Err(module.source.bad(
                &path,
                "says how activations are quantized in a way that is not done here; import the weights alone (--weights-only)",
            ));
        }
    }
    Ok(())
}

fn schemes(config: &Config, options: &ImportOptions) -> Result<Vec<Scheme>> {
    let groups = config.object("config_groups")?.ok_or_else(|| config.bad("config_groups", "is missing"))?;
    let default = config.text("format")?;
    let mut schemes = vec![];
    for name in groups.names() {
        let group = groups.object(name)?.ok_or_else(|| groups.bad(name, "is null"))?;
        group.only(&GROUP_FIELDS, &options.ignore_config)?;
        let Some(weights) = group.object("weights")? else { continue };
        weights.only(&WEIGHT_FIELDS, &options.ignore_config)?;
        let format = match group.text("format")?.or(default) {
            Some(format) => format.to_owned(),
            None => return Err(config.bad("format", "is missing")),
        };
        let targets = group.texts("targets")?.into_iter().map(|target| match target.strip_prefix("re:") {
            None => Ok(Target::Name(target)),
            // Python's `re.match`: from the start on, not to the end.
            Some(pattern) => Regex::new(&format!(r"\A(?:{pattern})"))
                .map(|regex| Target::Pattern(Box::new(regex)))
                .map_err(|e| group.bad("targets", format!("has the pattern `{pattern}`: {e}"))),
        });
        schemes.push(Scheme { targets: targets.collect::<Result<_>>()?, format, weights });
    }
    Ok(schemes)
}

/// The group that a module is of: by its name, by a pattern, or else by its class, which can only be told when there is
/// one such group.
fn scheme_of<'a>(schemes: &'a [Scheme], module: &Module<'_>, config: &Config) -> Result<&'a Scheme> {
    let name = module.dotted();
    if let [only] = schemes {
        return Ok(only);
    }
    let by_name = |target: &Target| matches!(target, Target::Name(target) if *target == name);
    let by_pattern = |target: &Target| match target {
        Target::Pattern(regex) => regex.is_match(&name).unwrap_or(false),
        Target::Name(_) => false,
    };
    // Classes are named as Python classes are, modules with dots.
    let by_class = |target: &Target| matches!(target, Target::Name(target) if !target.contains('.'));
    let tests: [&dyn Fn(&Target) -> bool; 3] = [&by_name, &by_pattern, &by_class];
    for test in tests {
        let found: Vec<&Scheme> = schemes.iter().filter(|scheme| scheme.targets.iter().any(test)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(one),
            _ => break,
        }
    }
    Err(config.bad("config_groups", format!("does not say which one of its groups `{name}` is of")))
}

fn weight(
    module: &mut Module<'_>,
    scheme: &Scheme,
    options: &ImportOptions,
) -> Result<Vec<(&'static str, Entry)>> {
    let source = module.source;
    let weights = &scheme.weights;
    let kind = weights.one_of("type", Some("int"), &["int", "float"])?;
    let bits = weights.integer("num_bits")?.unwrap_or(8);
    let is = |what: &str, width: i64| {
        if kind == what && bits == width {
            return Ok(());
        }
        Err(weights.bad(
            "num_bits",
            format!("is {bits} of type {kind}, which is not what `{}` holds", scheme.format),
        ))
    };
    match scheme.format.as_str() {
        "nvfp4-pack-quantized" | "mxfp4-pack-quantized" => {
            is("float", 4)?;
            let (packed, scale) = (module.need("weight_packed")?, module.need("weight_scale")?);
            let entry = if scheme.format == "mxfp4-pack-quantized" {
                mxfp4::weight(source, packed, scale, &[])?
            } else {
                nvfp4::weight(source, packed, scale, module.need("weight_global_scale")?, Global::Divisor)?
            };
            Ok(vec![("weight", entry)])
        }
        "pack-quantized" | "int-quantized" | "float-quantized" | "naive-quantized" => {
            let packed = scheme.format == "pack-quantized";
            if packed || scheme.format == "int-quantized" {
                is("int", if bits == 4 { 4 } else { 8 })?;
            } else if scheme.format == "float-quantized" {
                is("float", 8)?;
            }
            match (kind.as_str(), bits) {
                ("float", 8) => float8(module, weights),
                ("int", 4 | 8) => integers(module, weights, packed, bits as usize, options),
                _ => Err(weights.bad("num_bits", format!("is {bits} of type {kind}, which cannot be imported"))),
            }
        }
        other => Err(weights.bad("format", format!("is `{other}`, which cannot be imported; known are pack-quantized, int-quantized, float-quantized, naive-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized"))),
    }
}

/// How the rows and columns of a matrix fall into groups, by the config's strategy.
fn groups(weights: &Config, rows: usize, columns: usize) -> Result<[Groups; 2]> {
    let size = weights.integer("group_size")?;
    let default = match size {
        None => "tensor",
        Some(-1) => "channel",
        Some(_) => "group",
    };
    let known = ["tensor", "channel", "group", "block"];
    Ok(match weights.one_of("strategy", Some(default), &known)?.as_str() {
        "tensor" => [Groups::whole(rows), Groups::whole(columns)],
        "channel" => [Groups::each(rows), Groups::whole(columns)],
        "group" => [Groups::each(rows), Groups::regular(columns, weights.group_size("group_size", columns)?)],
        _ => {
            let [high, wide] = block_size(weights, "block_structure")?
                .ok_or_else(|| weights.bad("block_structure", "is missing"))?;
            [Groups::regular(rows, high), Groups::regular(columns, wide)]
        }
    })
}

fn float8(module: &mut Module<'_>, weights: &Config) -> Result<Vec<(&'static str, Entry)>> {
    let source = module.source;
    let (weight, scale) = (module.need("weight")?, module.need("weight_scale")?);
    let &[rows, columns] = source.ranked(&weight, &fp8::FLOAT8, 2)?.shape.as_slice() else {
        return Err(source.bad(&weight, "is no matrix"));
    };
    let [rows, columns] = groups(weights, rows, columns)?;
    Ok(vec![("weight", fp8::in_blocks(source, weight, scale, rows, columns)?)])
}

/// The tensors of a matrix of integers.
#[derive(Clone)]
struct Integers {
    weight: Path,
    scale: Path,
    zero_point: Option<Path>,
    g_idx: Option<Path>,
    shape: [usize; 2],
    rows: Groups,
    columns: Groups,
    packed: bool,
    bits: usize,
    qtype: &'static QType,
    act_order: ActOrder,
}

fn integers(
    module: &mut Module<'_>,
    weights: &Config,
    packed: bool,
    bits: usize,
    options: &ImportOptions,
) -> Result<Vec<(&'static str, Entry)>> {
    let source = module.source;
    let weight = module.need(if packed { "weight_packed" } else { "weight" })?;
    let scale = module.need("weight_scale")?;
    let shape = if packed {
        let shape = module.need("weight_shape")?;
        shape_of(source, &weight, &shape, bits)?
    } else {
        let ty = source.ranked(&weight, &[DType::S8], 2)?;
        [ty.shape[0], ty.shape[1]]
    };
    let symmetric = weights.flag("symmetric")?.unwrap_or(true);
    let zero_point = if symmetric { None } else { Some(module.need("weight_zero_point")?) };
    if symmetric && let Some(path) = module.take("weight_zero_point") {
        let zeros = source.read(&path)?;
        if zeros.bytes().iter().any(|&byte| byte != 0) {
            return Err(source.bad(&path, "is not 0, though the config says `symmetric`"));
        }
    }
    let [rows, columns] = groups(weights, shape[0], shape[1])?;
    let integers = Integers {
        weight,
        scale,
        zero_point,
        g_idx: module.take("weight_g_idx"),
        shape,
        rows,
        columns,
        packed,
        bits,
        qtype: QType::by_name(if bits == 4 { "int4" } else { "int8" })?,
        act_order: options.act_order,
    };
    let blocks = integers.blocks(source)?;
    let in_file = blocks.in_file();
    let scale = source.ty(&integers.scale)?;
    let significant = |shape: &[usize]| shape.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
    if !FLOATS.contains(&scale.dtype) || significant(&scale.shape) != significant(&in_file) {
        return Err(
            source.bad(&integers.scale, format!("expected floats of shape {in_file:?}, found {scale}"))
        );
    }
    if let Some(path) = &integers.zero_point {
        let zeros = source.ty(path)?;
        let expected = if integers.zeros_are_packed(zeros.dtype) {
            vec![in_file[0].div_ceil(32 / bits), in_file[1]]
        } else {
            in_file.to_vec()
        };
        if ![DType::S32, DType::S8].contains(&zeros.dtype)
            || significant(&zeros.shape) != significant(&expected)
        {
            return Err(source.bad(path, format!("expected s8 of shape {in_file:?}, or s32 of it packed along the first axis, found {zeros}")));
        }
    }
    let ty = blocks.ty(integers.qtype, scale.dtype, integers.zero_point.is_some());
    let mut entries = vec![];
    if blocks.columns.order.is_some() {
        let (ty, integers) = (ArrayType::new(DType::S32, [shape[1]]), integers.clone());
        let read =
            move |source: &Source| gptq::permutation(&integers.blocks(source)?.columns, integers.shape[1]);
        entries.push(("input_permutation", Entry::as_stored(Type::Array(ty), read)));
    }
    entries.push(("weight", Entry::out_in(ty, move |source| integers.read(source))));
    Ok(entries)
}

/// The shape of a packed matrix, which a tensor of its own says.
fn shape_of(source: &Source, packed: &Path, shape: &Path, bits: usize) -> Result<[usize; 2]> {
    source.expect(shape, &[DType::S64, DType::S32], &[2])?;
    let ty = source.ranked(packed, &[DType::S32], 2)?;
    let sizes = source.read(shape)?.to_i64_vec();
    let [rows, columns] = sizes[..] else { return Err(source.bad(shape, "is not two sizes")) };
    match (usize::try_from(rows), usize::try_from(columns)) {
        (Ok(rows), Ok(columns)) if ty.shape == [rows, columns.div_ceil(32 / bits)] => Ok([rows, columns]),
        _ => Err(source.bad(
            shape,
            format!(
                "says [{rows}, {columns}], which `{packed}` of type {ty} does not hold with {bits} bits each"
            ),
        )),
    }
}

impl Integers {
    fn blocks(&self, source: &Source) -> Result<Blocks> {
        let mut columns = self.columns.clone();
        if let Some(path) = &self.g_idx {
            source.expect(path, &[DType::S32, DType::S64], &[self.shape[1]])?;
            let index = source.read(path)?.to_i64_vec();
            // −1 all over is what an index that was never set is.
            if index.iter().any(|&group| group != -1) {
                let in_place = self.act_order == ActOrder::Expand;
                columns =
                    Groups::indexed(&index, self.columns.count, in_place).map_err(|e| source.bad(path, e))?;
            }
            if columns.order.is_some() && self.act_order == ActOrder::Refuse {
                return Err(source.bad(
                    path,
                    "scatters the columns of a group (act-order): choose to permute the inputs (--act-order permute), or a scale for each column (--act-order expand)",
                ));
            }
        }
        Ok(Blocks { shape: self.shape, rows: self.rows.clone(), columns })
    }

    /// Zero points of 4 bits, or of a packed form, are packed along the rows.
    fn zeros_are_packed(&self, dtype: DType) -> bool {
        self.packed && dtype == DType::S32
    }

    fn read(&self, source: &Source) -> Result<Value> {
        let blocks = self.blocks(source)?;
        let in_file = blocks.in_file();
        let stored = source.read(&self.weight)?;
        let qvalue = if self.packed {
            let codes = unpack_columns(&stored, self.bits, self.shape[1], &in_sequence(self.bits))?;
            signed(&blocks.in_order(codes)?, self.bits)?
        } else {
            self.narrow(source, &self.weight, &blocks.in_order(stored)?)?
        };
        let scale = blocks.per_tile(&source.read_finite(&self.scale)?.reshape(&in_file)?)?;
        let zero_point = match &self.zero_point {
            None => None,
            Some(path) => {
                let zeros = source.read(path)?;
                if self.zeros_are_packed(zeros.dtype()) {
                    let words = zeros.reshape(&[in_file[0].div_ceil(32 / self.bits), in_file[1]])?;
                    let codes = unpack_rows(&words, self.bits, in_file[0])?;
                    Some(signed(&blocks.per_tile(&codes)?, self.bits)?)
                } else {
                    Some(self.narrow(source, path, &blocks.per_tile(&zeros.reshape(&in_file)?)?)?)
                }
            }
        };
        Ok(Value::QArray(QArray::new(qvalue, scale, zero_point, self.qtype)?))
    }

    /// Integers as the type stores them, which must have room for each.
    fn narrow(&self, source: &Source, path: &Path, array: &Array) -> Result<Array> {
        array
            .convert_exactly(self.qtype.storage)
            .ok_or_else(|| source.bad(path, format!("holds a number that {} does not have", self.qtype)))
    }
}
