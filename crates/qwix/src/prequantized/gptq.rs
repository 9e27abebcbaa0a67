//! GPTQ, as AutoGPTQ and GPTQModel write it.
//!
//! `qweight` s32 [in · bits / 32, out] holds consecutive rows of a column in a word, from the lowest bits on; `qzeros` s32
//! [groups, out · bits / 32] consecutive columns of a row; `scales` [groups, out]; `g_idx` s32 [in] the group of each row.
//! A weight is (q − zero) · scale. In version 1 (`gptq`) `qzeros` holds zero − 1, in version 2 (`gptq_v2`) zero.
//!
//! A stored zero of all ones in version 1 would be zero = 2^bits, which the programs that read the format take for three
//! different numbers (2^bits; 0; a carry into the next one). It is refused.

use qwix_array::{Array, DType};
use qwix_eval::Value;
use qwix_graph::{ArrayType, Path, Type};
use qwix_quant::QType;

use super::blocks::{Blocks, Groups, in_sequence, unpack_columns, unpack_rows};
use super::plan::{Entry, Module, Plan, affine};
use super::source::{Config, Source};
use super::{ActOrder, Format, ImportOptions};
use crate::{Error, Result};

pub(super) struct Gptq;

const FLOATS: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// Fields that say how the weights came about or how they are to be run, not what they are; and those read below.
const FIELDS: [&str; 37] = [
    "quant_method",
    "method",
    "bits",
    "group_size",
    "desc_act",
    "sym",
    "checkpoint_format",
    "format",
    "pack_dtype",
    "dynamic",
    "lm_head",
    "damp_percent",
    "damp_auto_increment",
    "static_groups",
    "true_sequential",
    "model_name_or_path",
    "model_file_base_name",
    "meta",
    "quantizer",
    "version",
    "dataset",
    "batch_size",
    "block_name_to_quantize",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "modules_to_not_convert",
    "model_seqlen",
    "pad_token_id",
    "tokenizer",
    "use_cuda_fp16",
    "use_exllama",
    "disable_exllama",
    "exllama_config",
    "max_input_length",
    "cache_block_outputs",
    "backend",
    "parallel_packing",
];

/// What the config says.
#[derive(Clone)]
struct Settings {
    qtype: &'static QType,
    bits: usize,
    sym: bool,
    desc_act: bool,
    /// What is added to a stored zero point.
    zero_offset: u8,
    act_order: ActOrder,
}

impl Format for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn is(&self, source: &Source) -> bool {
        match source.method() {
            Some(method) => method == "gptq",
            // AutoGPTQ's own quantize_config.json does not name the method.
            None => {
                source.config.as_ref().is_some_and(|c| c.get("bits").is_some() && c.get("desc_act").is_some())
            }
        }
    }

    fn plan(&self, source: &Source, options: &ImportOptions) -> Result<Plan> {
        let config = source.config.as_ref().ok_or_else(|| no_config(source))?;
        config.only(&FIELDS, &options.ignore_config)?;
        let settings = settings(config, options)?;
        Plan::by_module(source, &["qweight", "qzeros", "scales", "g_idx"], |module| {
            if !module.has("qweight") {
                return Ok(vec![]);
            }
            weight(module, config, &settings)
        })
    }
}

fn no_config(source: &Source) -> Error {
    Error::checkpoint(source.checkpoint.name(), None, "has no config beside it that says how it is quantized")
}

fn settings(config: &Config, options: &ImportOptions) -> Result<Settings> {
    let (bits, name) = match config.integer("bits")? {
        Some(4) => (4, "int4"),
        Some(8) => (8, "int8"),
        Some(bits) => return Err(config.bad("bits", format!("is {bits}; 4 and 8 can be imported"))),
        None => return Err(config.bad("bits", "is missing")),
    };
    let format = if config.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    let zero_offset = match config.one_of(format, Some("gptq"), &["gptq", "gptq_v2"])?.as_str() {
        "gptq_v2" => 0,
        _ => 1,
    };
    if let Some(dtype) = config.text("pack_dtype")?
        && !["int32", "torch.int32"].contains(&dtype)
    {
        return Err(config.bad("pack_dtype", format!("is `{dtype}`; int32 can be imported")));
    }
    if config.flag("is_marlin_format")? == Some(true) {
        return Err(config.bad("is_marlin_format", "is true: Marlin's order of weights cannot be imported"));
    }
    if let Some(dynamic) = config.object("dynamic")?
        && let Some(name) = dynamic.names().find(|name| !name.starts_with("-:"))
    {
        return Err(dynamic.bad(
            name,
            "gives some modules settings of their own, which cannot be imported; modules that are left out (`-:`) can",
        ));
    }
    Ok(Settings {
        qtype: QType::by_name(name)?,
        bits,
        sym: config.flag("sym")?.ok_or_else(|| config.bad("sym", "is missing"))?,
        desc_act: config.flag("desc_act")?.unwrap_or(false),
        zero_offset,
        act_order: options.act_order,
    })
}

fn weight(
    module: &mut Module<'_>,
    config: &Config,
    settings: &Settings,
) -> Result<Vec<(&'static str, Entry)>> {
    let source = module.source;
    let (qweight, qzeros, scales) = (module.need("qweight")?, module.need("qzeros")?, module.need("scales")?);
    let g_idx = module.take("g_idx");
    let per = 32 / settings.bits;
    let packed = source.ranked(&qweight, &[DType::S32], 2)?;
    let (rows, columns) = (packed.shape[0].saturating_mul(per), packed.shape[1]);
    let group_size = config.group_size("group_size", rows)?;
    let count = rows.div_ceil(group_size);
    let scale = source.expect(&scales, &FLOATS, &[count, columns])?.dtype;
    if columns % per != 0 {
        return Err(
            source.bad(&qweight, format!("has {columns} columns, of which {per} go into a word of zeros"))
        );
    }
    source.expect(&qzeros, &[DType::S32], &[count, columns / per])?;
    if let Some(g_idx) = &g_idx {
        source.expect(g_idx, &[DType::S32], &[rows])?;
    }
    let groups = groups(source, g_idx.as_ref(), rows, group_size, settings)?;
    let mut entries = vec![];
    if groups.order.is_some() {
        let (ty, g_idx, settings) = (ArrayType::new(DType::S32, [rows]), g_idx.clone(), settings.clone());
        let read = move |source: &Source| {
            let groups = self::groups(source, g_idx.as_ref(), rows, group_size, &settings)?;
            permutation(&groups, rows)
        };
        entries.push(("input_permutation", Entry::as_stored(Type::Array(ty), read)));
    }
    let blocks = Blocks { shape: [rows, columns], rows: groups, columns: Groups::each(columns) };
    let ty = blocks.ty(settings.qtype, scale, !settings.sym);
    let settings = settings.clone();
    let read = move |source: &Source| {
        let groups = self::groups(source, g_idx.as_ref(), rows, group_size, &settings)?;
        let blocks = Blocks { shape: [rows, columns], rows: groups, columns: Groups::each(columns) };
        let codes = unpack_rows(&source.read(&qweight)?, settings.bits, rows)?;
        let zeros = zeros(source, &qzeros, columns, &settings)?;
        affine(&blocks, settings.qtype, codes, &source.read_finite(&scales)?, zeros.as_ref())
    };
    entries.push(("weight", Entry::in_out(ty, read)));
    Ok(entries)
}

/// How rows fall into groups: by `g_idx` where there is one.
fn groups(
    source: &Source,
    g_idx: Option<&Path>,
    rows: usize,
    group_size: usize,
    settings: &Settings,
) -> Result<Groups> {
    let regular = Groups::regular(rows, group_size);
    let Some(path) = g_idx else { return Ok(regular) };
    let index = source.read(path)?.to_i64_vec();
    if index.iter().enumerate().all(|(i, &group)| usize::try_from(group) == Ok(i / group_size)) {
        return Ok(regular);
    }
    if !settings.desc_act {
        return Err(source.bad(
            path,
            format!("is not i / {group_size}, though the config has no `desc_act`: readers of the format disagree on what that means"),
        ));
    }
    let indexed = Groups::indexed(&index, regular.count, settings.act_order == ActOrder::Expand)
        .map_err(|reason| source.bad(path, reason))?;
    if indexed.order.is_some() && settings.act_order == ActOrder::Refuse {
        return Err(source.bad(
            path,
            "scatters the rows of a group (act-order): choose to permute the inputs (--act-order permute), or a scale for each row (--act-order expand)",
        ));
    }
    Ok(indexed)
}

/// The order of the input features.
pub(super) fn permutation(groups: &Groups, size: usize) -> Result<Value> {
    let order = groups.order.iter().flatten().map(|&i| i as i64).collect::<Vec<_>>();
    Ok(Value::Array(Array::from_i64(DType::S32, &[size], &order)?))
}

/// The zero points as unsigned codes; none where they all are the middle, as they must be under `sym`.
fn zeros(source: &Source, path: &Path, columns: usize, settings: &Settings) -> Result<Option<Array>> {
    let bits = settings.bits;
    let stored = unpack_columns(&source.read(path)?, bits, columns, &in_sequence(bits))?;
    let largest = ((1u16 << bits) - 1) as u8;
    let place = |at: usize| (at / columns.max(1), at % columns.max(1));
    if settings.zero_offset == 1
        && let Some(at) = stored.bytes().iter().position(|&zero| zero == largest)
    {
        let (group, column) = place(at);
        return Err(source.bad(
            path,
            format!(
                "group {group}, column {column}: a stored zero of {largest} stands for {}, on which readers of version 1 of the format disagree; write the checkpoint as gptq_v2",
                u16::from(largest) + 1
            ),
        ));
    }
    let zeros: Vec<u8> = stored.bytes().iter().map(|&zero| zero.wrapping_add(settings.zero_offset)).collect();
    if !settings.sym {
        return Ok(Some(Array::from_bytes(DType::U8, stored.shape(), zeros)?));
    }
    let middle = 1u8 << (bits - 1);
    match zeros.iter().position(|&zero| zero != middle) {
        None => Ok(None),
        Some(at) => {
            let (group, column) = place(at);
            Err(source.bad(
                path,
                format!(
                    "group {group}, column {column}: the zero is {}, though the config says `sym`, which is {middle}",
                    zeros[at]
                ),
            ))
        }
    }
}
