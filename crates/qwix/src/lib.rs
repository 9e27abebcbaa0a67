//! Post-training quantization for models that are XLA graphs.
//!
//! A float model, exported from JAX as HLO, and rules go in; a quantized model comes out and runs. Names are those of
//! Google's Qwix wherever it has one.
//!
//! ```
//! # use qwix::*;
//! # std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits"))?;
//! # let fp_params = Checkpoint::open("params.safetensors")?.read_all()?;
//! # let x = TensorFile::open("images.safetensors")?.read("images")?;
//! let model     = Model::load("model.hlo.pb")?;
//! let rules     = vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")];
//! let ptq_model = quantize_model(&model, &PtqProvider::new(rules)?)?;
//! let template  = ptq_model.abstract_params();                         // shapes and how; nothing allocated
//! let params    = quantize_params(&fp_params, &template, None)?;       // any subtree; or streamed, tensor by tensor
//! let outputs   = ptq_model.compile(&CpuBackend::default(), params)?.run(&[x])?;
//! # assert_eq!(outputs[0].shape(), [450, 10]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | to | use |
//! | --- | --- |
//! | read a model, and parameters from a checkpoint | [`Model`], [`Checkpoint`] |
//! | write a model in Rust | [`nn`] |
//! | say what is quantized, and see why | [`QuantizationRule`], [`explain`] |
//! | quantize | [`quantize_model`], [`quantize_params`], [`quantize_param`] |
//! | quantize while a checkpoint is read | [`quantize_checkpoint`], [`quantize_online`] |
//! | read weights that were quantized elsewhere (GPTQ, AWQ, compressed-tensors, FP8, MXFP4, NVFP4) | [`Prequantized`], [`process_prequantized_params`], [`restore_quantization_rules`] |
//! | calibrate static ranges | [`QtProvider`], [`calibrate()`], [`CalibrationData`], [`read_stats`], [`write_stats`] |
//! | run | [`Model::compile`], [`CpuBackend`], [`XlaBackend`] (with [`NativeKernels`]), [`ReferenceBackend`] |
//! | quantize a checkpoint of any size into a package | [`QuantizeJob`] |
//! | keep a quantized model on disk | [`PackageWriter`], [`Package`], [`verify_package`] |
//! | see what quantizing did to each parameter | [`ReportBuilder`], [`Report`] |

#![forbid(unsafe_code)]

mod backends;
mod calibration;
mod checkpoint;
mod error;
pub mod files;
mod hash;
mod model;
mod noise;
mod package;
mod prequantized;
mod quantize;
mod report;
mod rules;
mod streaming;
mod tensors;
mod xla_kernels;

pub use backends::{backend, backend_names, check_backend_name, xla_backend};
pub use calibration::{CalibrationData, read_stats, write_stats};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use model::Model;
pub use noise::sqnr;
pub use package::{Fault, Package, PackageWriter, Verifying, verify_package};
pub use prequantized::{ActOrder, ImportOptions, Layout, NameMap, Prequantized, Taken};
pub use quantize::{
    DEFAULT_MEMORY, DEFAULT_SHARD_SIZE, QuantizeJob, QuantizePlan, QuantizeProgress, Quantized,
    memory::peak_resident,
};
pub use qwix_array::{Array, ArrayError, DType};
pub use qwix_cpu::CpuBackend;
pub use qwix_eval::{Backend, EvalError, Executable, Loader, Params, ReferenceBackend, Value};
pub use qwix_graph::{
    ArrayType, Computation, Graph, GraphError, Node, NodeId, Op, Parameter, Path, Precision, Role, Type,
};
pub use qwix_nn as nn;
pub use qwix_pjrt as pjrt;
pub use qwix_pjrt::XlaBackend;
pub use qwix_ptq::{
    CalibrateError, Calibrator, Outcome, ProcessPrequantized, Provider, PtqError, PtqModel, PtqProvider,
    QtProvider, QuantStats, QuantizationRule, QuantizeParams, Report as PtqReport, RestoreRules,
    RestoredActs, SideVerdict, Site, Stats, Sums, Template, TileSize, Unfinished, Verdict, Warning,
    WeightLayout, WeightRule, bytes_of, bytes_of_variables, calibrate, explain, find_sites,
    process_prequantized_param, process_prequantized_params, quantize_model, quantize_param, quantize_params,
    quantize_params_with, quantize_stats, quantize_variables, restore_quantization_rules, type_of_qarray,
    weights_only,
};
pub use qwix_quant::{
    Calibration, Granularity, HowToQuantize, QArray, QType, QuantError, Tile, dequantize, quantize,
};
pub use report::{BINS, Histogram, Kind, Report, ReportBuilder, SAMPLED, TensorReport, Totals};
pub use rules::{read_rules, read_weight_rules};
pub use streaming::{
    Loaded, Loading, Made, Online, ParamReader, Progress, quantize_checkpoint, quantize_online,
};
pub use tensors::{TensorFile, TensorWriter, narrowed, widened, write_tensors};
pub use xla_kernels::NativeKernels;
