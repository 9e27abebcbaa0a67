//! NVIDIA ModelOpt's checkpoints: FP8 and NVFP4.
//!
//! FP8: `weight` f8e4m3fn [out, in] and `weight_scale`. NVFP4: `weight` u8 [out, in / 2], `weight_scale` f8e4m3fn
//! [out, in / 16], `weight_scale_2` f32; a weight is q · weight_scale · weight_scale_2.

use qwix_array::DType;

use super::fp8::{is_float8, per_row_or_tensor};
use super::nvfp4::{self, Global};
use super::plan::Plan;
use super::source::Source;
use super::{Format, ImportOptions};
use crate::{Error, Result};

pub(super) struct ModelOpt;

const FIELDS: [&str; 12] = [
    "quant_method",
    "quant_algo",
    "kv_cache_quant_algo",
    "kv_cache_scheme",
    "group_size",
    "exclude_modules",
    "ignore",
    "config_groups",
    "producer",
    "has_zero_point",
    "pre_quant_scale",
    "quantized_layers",
];

impl Format for ModelOpt {
    fn name(&self) -> &'static str {
        "modelopt"
    }

    fn is(&self, source: &Source) -> bool {
        match source.method() {
            Some(method) => method.starts_with("modelopt"),
            None => source.config.as_ref().is_some_and(|c| c.get("quant_algo").is_some()),
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
        config.one_of("quant_algo", None, &["FP8", "NVFP4", "W4A16_NVFP4"])?;
        if let Some(size) = config.integer("group_size")?.filter(|&size| size != 16) {
            return Err(config.bad("group_size", format!("is {size}; NVFP4 has 16")));
        }
        for flag in ["has_zero_point", "pre_quant_scale"] {
            if config.flag(flag)? == Some(true) {
                return Err(config.bad(flag, "is true, which cannot be imported"));
            }
        }
        for field in ["kv_cache_quant_algo", "kv_cache_scheme"] {
            if config.get(field).is_some() && !options.weights_only {
                return Err(config.bad(
                    field,
                    "says that the cache of keys and values is quantized, which is not done here; import the weights alone (--weights-only)",
                ));
            }
        }
        Plan::by_module(source, &["weight_scale", "weight_scale_2", "pre_quant_scale"], |module| {
            let packed = module.source.checkpoint.type_of(&module.at("weight"));
            let is_packed = module.has("weight_scale_2") && packed.is_some_and(|ty| ty.dtype == DType::U8);
            super::compressed_tensors::activations(module, options, is_packed)?;
            if is_packed {
                let (weight, scale, global) =
                    (module.need("weight")?, module.need("weight_scale")?, module.need("weight_scale_2")?);
                return Ok(vec![("weight", nvfp4::weight(source, weight, scale, global, Global::Factor)?)]);
            }
            if !is_float8(module, "weight") {
                return Ok(vec![]);
            }
            let (weight, scale) = (module.need("weight")?, module.need("weight_scale")?);
            Ok(vec![("weight", per_row_or_tensor(source, weight, scale)?)])
        })
    }
}
