//! AWQ, as AutoAWQ writes it for its GEMM kernels.
//!
//! `qweight` s32 [in, out / 8] holds eight columns of a row in a word, `qzeros` s32 [in / group, out / 8] likewise; `scales`
//! [in / group, out]. From the lowest bits on a word has columns 0, 2, 4, 6, 1, 3, 5, 7. A weight is (q − zero) · scale.

use qwix_array::DType;
use qwix_quant::QType;

use super::blocks::{Blocks, Groups, unpack_columns};
use super::plan::{Entry, Plan, affine};
use super::source::Source;
use super::{Format, ImportOptions};
use crate::{Error, Result};

pub(super) struct Awq;

const FIELDS: [&str; 14] = [
    "quant_method",
    "bits",
    "w_bit",
    "group_size",
    "q_group_size",
    "version",
    "zero_point",
    "modules_to_not_convert",
    "backend",
    "do_fuse",
    "fuse_max_seq_len",
    "modules_to_fuse",
    "exllama_config",
    "meta",
];

/// Where in a word each of the eight columns is.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Format for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn is(&self, source: &Source) -> bool {
        match source.method() {
            Some(method) => method == "awq",
            // AutoAWQ's own quant_config.json does not name the method.
            None => source.config.as_ref().is_some_and(|c| c.get("w_bit").is_some()),
        }
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
        let either = |a, b| if config.get(a).is_some() { a } else { b };
        let bits = either("bits", "w_bit");
        match config.integer(bits)? {
            Some(4) => {}
            Some(found) => return Err(config.bad(bits, format!("is {found}; 4 can be imported"))),
            None => return Err(config.bad(bits, "is missing")),
        }
        if config.get("version").is_some() {
            config.one_of("version", None, &["gemm", "GEMM"])?;
        }
        if config.flag("zero_point")? == Some(false) {
            return Err(config.bad("zero_point", "is false; the format's GEMM form has zero points"));
        }
        let qtype = QType::by_name("int4")?;
        Plan::by_module(source, &["qweight", "qzeros", "scales"], |module| {
            if !module.has("qweight") {
                return Ok(vec![]);
            }
            let (qweight, qzeros, scales) =
                (module.need("qweight")?, module.need("qzeros")?, module.need("scales")?);
            let packed = source.ranked(&qweight, &[DType::S32], 2)?;
            let (rows, columns) = (packed.shape[0], packed.shape[1].saturating_mul(8));
            let group_size = config.group_size(either("group_size", "q_group_size"), rows)?;
            if rows % group_size != 0 {
                return Err(source
                    .bad(&qweight, format!("has {rows} rows, which groups of {group_size} do not divide")));
            }
            let blocks = Blocks {
                shape: [rows, columns],
                rows: Groups::regular(rows, group_size),
                columns: Groups::each(columns),
            };
            let [groups, _] = blocks.in_file();
            let floats = [DType::F16, DType::BF16, DType::F32];
            let scale = source.expect(&scales, &floats, &[groups, columns])?.dtype;
            source.expect(&qzeros, &[DType::S32], &[groups, columns / 8])?;
            let ty = blocks.ty(qtype, scale, true);
            let read = move |source: &Source| {
                let codes = unpack_columns(&source.read(&qweight)?, 4, columns, &PLACES)?;
                let zeros = unpack_columns(&source.read(&qzeros)?, 4, columns, &PLACES)?;
                affine(&blocks, qtype, codes, &source.read_finite(&scales)?, Some(&zeros))
            };
            Ok(vec![("weight", Entry::in_out(ty, read))])
        })
    }
}
