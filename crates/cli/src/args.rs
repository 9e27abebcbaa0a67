//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use qwix::Precision;

/// Quantize models exported from JAX, and run them.
///
/// A model is the HloModuleProto that jax.jit(f).lower(...).compiler_ir('hlo').as_serialized_hlo_module_proto()
/// writes. Parameters, inputs and outputs are safetensors.
#[derive(Parser, Debug)]
#[command(name = "qwix", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    Inspect(Inspect),
    Explain(Explain),
    Calibrate(Calibrate),
    Merge(Merge),
    Quantize(Box<Quantize>),
    Verify(Verify),
    Import(Import),
    Run(Run),
    Compare(Compare),
    Dump(Dump),
    Export(Export),
    Plugin(Plugin),
}

/// Show a model's parameters, inputs, outputs, modules and ops
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix inspect model.hlo.pb
  qwix inspect model.hlo.pb --json | jq .inputs")]
pub struct Inspect {
    /// The model
    #[arg(value_name = "MODEL.hlo.pb")]
    pub model: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Say for every dot and convolution what the rules do with it, and why
///
/// Reads no weights. A verdict is the rule, the qtypes and the axes; or the reason for leaving the op as it is.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix explain model.hlo.pb --rules rules.json
  qwix explain model.hlo.pb --rules rules.toml --strict     # in a script: fail when the rules miss something")]
pub struct Explain {
    /// The model
    #[arg(value_name = "MODEL.hlo.pb")]
    pub model: PathBuf,
    /// The rules, JSON or TOML
    #[arg(long, value_name = "R")]
    pub rules: PathBuf,
    /// Exit with 1 when a dot or convolution stays in float though no rule says that it should, or when a rule is
    /// not used
    #[arg(long)]
    pub strict: bool,
    /// Quantize only what Qwix itself quantizes
    #[arg(long)]
    pub qwix_compat: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run batches of data through a model and keep the statistics that static ranges are made from
///
/// The rules say with act_static_scale which activations get a static range. The statistics go to `qwix quantize` with
/// --quant-stats. The batches are read and run one by one; the file is written when all have run, whole or not at all.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix calibrate model.hlo.pb --params p.safetensors --rules r.json --data c.safetensors -o s.safetensors
  qwix calibrate model.hlo.pb --params p.safetensors --rules r.json --data d.safetensors \\
      --resume s.safetensors -o s.safetensors     # adds to what is there
  qwix quantize model.hlo.pb --params p.safetensors --rules r.json --quant-stats s.safetensors -o model.int8")]
pub struct Calibrate {
    /// The float model
    #[arg(value_name = "MODEL.hlo.pb")]
    pub model: PathBuf,
    /// The float parameters: a safetensors file, the index.json of several, or the folder they are in
    #[arg(long, value_name = "P")]
    pub params: PathBuf,
    /// The rules, JSON or TOML
    #[arg(long, value_name = "R")]
    pub rules: PathBuf,
    /// The batches: safetensors with keys <batch>/<input>, where <batch> is a number and <input> is 0, 1, … or the name
    /// that `qwix inspect` prints; file by file as given, in each by number
    #[arg(long, value_name = "C.safetensors", num_args = 1.., required = true)]
    pub data: Vec<PathBuf>,
    /// Statistics to go on from, as if their batches had been run first
    #[arg(long, value_name = "STATS.safetensors")]
    pub resume: Option<PathBuf>,
    /// Leave out so many batches at the start of the data, which --resume has seen
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    #[command(flatten)]
    pub backend: Backend,
    /// Leave out parameters that the model does not have, instead of refusing them
    #[arg(long)]
    pub allow_extra_params: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to write the statistics: safetensors with keys <path>/count and <path>/sum_of_absmax, or sum_of_min and
    /// sum_of_max
    #[arg(short, long, value_name = "STATS.safetensors")]
    pub output: PathBuf,
}

/// Add the statistics of several calibrations, of different parts of the data
///
/// Counts and sums add. While it is calibrated a model runs with the ranges seen so far, so behind the first static range
/// the sum is close to what one run over all data has, not equal; --resume is.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix merge machine0.safetensors machine1.safetensors machine2.safetensors -o stats.safetensors")]
pub struct Merge {
    /// What `qwix calibrate` wrote, of one model with the same rules
    #[arg(value_name = "STATS.safetensors", required = true)]
    pub stats: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to write their sum
    #[arg(short, long, value_name = "STATS.safetensors")]
    pub output: PathBuf,
}

/// Quantize a model's parameters by rules, into a directory that runs; or a checkpoint without a model
///
/// The directory holds the model, the parameters in shards, the rules and a manifest. It is written whole or not at all.
/// Parameters are read, quantized and written piece by piece on all cores, so that a checkpoint of any size fits
/// --max-memory, which changes no byte of the result. What a run that was interrupted has done is kept in a hidden folder
/// beside the target: the same command goes on from there.
///
/// Without a model, --weights-only (or rules that name parameters: param_path, weight_qtype, tile_size, contracting_axes,
/// weight_calibration_method) says which matrices to quantize; the package then holds parameters and does not run.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix quantize model.hlo.pb --params params.safetensors --rules rules.json -o model.int8
  qwix quantize model.hlo.pb --params params.safetensors --rules rules.json -o model.int8 --report report.html
  qwix quantize model.hlo.pb --params model.safetensors.index.json --rules rules.toml --max-memory 500MB -o model.int4
  qwix quantize --params hf-model/ --weights-only '.*_proj/weight' --weight-qtype int8 --layout hf -o model.int8
  qwix quantize --params shards/ --weights-only '.*/kernel' --weight-qtype int4 --tile-size 128 -o model.int4
  qwix quantize --params hf-model/ --rules weights.json --layout hf -o model.mixed --plan     # says what it would do")]
pub struct Quantize {
    /// The model; without one, parameters are chosen by --weights-only or by rules that name them
    #[arg(value_name = "MODEL.hlo.pb")]
    pub model: Option<PathBuf>,
    /// The float parameters: a safetensors file, the index.json of several, or the folder they are in
    #[arg(long, value_name = "P")]
    pub params: PathBuf,
    /// The rules, JSON or TOML
    #[arg(long, value_name = "R", conflicts_with = "weights_only", required_unless_present = "weights_only")]
    pub rules: Option<PathBuf>,
    /// Quantize the matrices whose whole path matches this regular expression
    #[arg(long, value_name = "REGEX", conflicts_with_all = ["model", "qwix_compat", "quant_stats"], requires = "weight_qtype")]
    pub weights_only: Option<String>,
    /// What --weights-only quantizes to: int8, int4, nf4, float8_e4m3fn, …
    #[arg(long, value_name = "Q", requires = "weights_only")]
    pub weight_qtype: Option<String>,
    /// A scale for every N elements of the contracted axis (a fraction such as 0.25: of the axis), not one for all
    #[arg(long, value_name = "N", requires = "weights_only", value_parser = tile_size)]
    pub tile_size: Option<qwix::TileSize>,
    /// The axis that products contract, negative ones counted from the end; give it several times for several
    #[arg(long, value_name = "A", requires = "weights_only", allow_hyphen_values = true)]
    pub contracting_axis: Vec<i64>,
    /// How ranges are found: absmax, minmax, rms,N or fixed,A[,B]
    #[arg(long, value_name = "M", requires = "weights_only", default_value = "absmax")]
    pub calibration: String,
    /// Which axis of a matrix is contracted, without a model: flax, [in, out], or hf (Hugging Face), [out, in]
    #[arg(long, value_enum, default_value = "flax", conflicts_with = "model")]
    pub layout: Layout,
    /// Statistics for static ranges (act_static_scale in the rules), from `qwix calibrate`
    #[arg(long, value_name = "STATS.safetensors")]
    pub quant_stats: Option<PathBuf>,
    /// Quantize only what Qwix itself quantizes
    #[arg(long)]
    pub qwix_compat: bool,
    /// Leave out parameters that the model does not have, instead of refusing them
    #[arg(long)]
    pub allow_extra_params: bool,
    /// The most memory that the process may have, such as 500MB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse, default_value = "2GiB")]
    pub max_memory: u64,
    /// The most bytes of tensors in one file of the package; a parameter that takes more has one alone
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse, default_value = "4GiB")]
    pub shard_size: u64,
    /// Threads [default: as many as the machine has cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Replace the package that is already at DIR, and start over where another plan was begun
    #[arg(long)]
    pub force: bool,
    /// Write a page about every parameter as well: its size and error, and where its values lie in their ranges
    #[arg(long, value_name = "REPORT.html", conflicts_with = "plan")]
    pub report: Option<PathBuf>,
    /// Say what would be done, from names and shapes alone, and do nothing
    #[arg(long)]
    pub plan: bool,
    /// Print JSON: the sizes and errors of all parameters, or the plan
    #[arg(long)]
    pub json: bool,
    /// Where to write the package
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

/// How a framework lays out matrices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Layout {
    /// [in, out]
    Flax,
    /// [out, in]
    Hf,
}

fn tile_size(text: &str) -> Result<qwix::TileSize, String> {
    if let Ok(size) = text.parse::<i64>() {
        return Ok(size.into());
    }
    text.parse::<f64>().map(Into::into).map_err(|_| "expected a number of elements, or a fraction".to_owned())
}

/// Check every byte of a package against its manifest
///
/// Finds flipped bits, and files that are missing or do not belong there. Reads everything, on all cores. The exit status is 1
/// when something is wrong.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix verify model.int8
  qwix verify model.int8 --json | jq '.faults[].file'")]
pub struct Verify {
    /// The quantized package
    #[arg(value_name = "DIR")]
    pub package: PathBuf,
    /// Threads [default: as many as the machine has cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Read a checkpoint that was quantized elsewhere: GPTQ, AWQ, compressed-tensors, FP8, ModelOpt, MXFP4
///
/// The quantized values are unpacked and moved, never made floats and quantized again. Without --output the parameters
/// are listed. With --model they become a package of that model, which runs; without one, a flat file with the keys of
/// `qwix dump`. What a checkpoint says that has no counterpart here is an error that names it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix import Llama-GPTQ                                    # what is in it
  qwix import Llama-GPTQ -o flat.safetensors
  qwix import Llama-AWQ --rules-out rules.json              # the rules that quantize a model so
  qwix import mlp-gptq --model mlp.hlo.pb --names names.json -o mlp.int4

names.json says which parameter of the checkpoint is which of the model's, and what to transpose:
  {\"Dense_0/kernel\": \"fc1/weight\", \"head/kernel\": {\"from\": \"head/weight\", \"transpose\": true}}")]
pub struct Import {
    /// The checkpoint: a folder with its config, a safetensors file, or the index.json of several (the config is looked
    /// for beside them)
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// Where to write: a safetensors file, or with --model a package
    #[arg(short, long, value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// The model that the parameters are for
    #[arg(long, value_name = "MODEL.hlo.pb", requires = "output")]
    pub model: Option<PathBuf>,
    /// The rules by which the model is quantized, JSON or TOML; unless given, those that the checkpoint's weights show
    #[arg(long, value_name = "R", requires = "model")]
    pub rules: Option<PathBuf>,
    /// The model's names for the checkpoint's parameters, JSON; unless given, they are the same
    #[arg(long, value_name = "N.json")]
    pub names: Option<PathBuf>,
    /// Write the rules that quantize as the checkpoint is quantized
    #[arg(long, value_name = "RULES.json")]
    pub rules_out: Option<PathBuf>,
    /// What activations are quantized to in these rules; float unless given
    #[arg(long, value_name = "QTYPE")]
    pub act_qtype: Option<String>,
    /// Give out quantized matrices that are stored as [out, in] as [in, out], as a Flax kernel is
    #[arg(long)]
    pub in_out: bool,
    /// What to do where activation order scatters the rows of a group: refuse it; permute, with the order of the inputs
    /// as a parameter of its own; or expand, with a scale for each row
    #[arg(long, value_name = "HOW", value_parser = ["refuse", "permute", "expand"], default_value = "refuse")]
    pub act_order: String,
    /// Leave out what is said of activations and caches and is not done here, instead of refusing it
    #[arg(long)]
    pub weights_only: bool,
    /// A field of the config to take no notice of
    #[arg(long, value_name = "FIELD")]
    pub ignore_config: Vec<String>,
    /// The type of quantized values in a file of `qwix dump`, where they are stored wider
    #[arg(long, value_name = "QTYPE")]
    pub qtype: Option<String>,
    /// Leave out parameters that the model does not have, instead of refusing them
    #[arg(long, requires = "model")]
    pub allow_extra_params: bool,
    /// Round scales and floats to the model's dtype where it cannot hold them, instead of refusing them
    #[arg(long, requires = "model")]
    pub allow_rounding: bool,
    /// Replace the package that is already at OUT
    #[arg(long, requires = "model")]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a quantized package, or a float model with its parameters
///
/// With --rules the float model is quantized while its parameters are read, and runs quantized; nothing is kept on disk.
/// A package's parameters are mapped, not read: what it takes to open one does not depend on its size.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix run model.int8 --inputs inputs.safetensors -o outputs.safetensors
  qwix run model.hlo.pb --params params.safetensors --inputs inputs.safetensors -o outputs.safetensors
  qwix run model.hlo.pb --params params.safetensors --rules rules.json --inputs inputs.safetensors -o outputs.safetensors
  qwix run model.int8 --inputs inputs.safetensors -o outputs.safetensors --backend xla:cpu --xla-kernels")]
pub struct Run {
    /// A package that `qwix quantize` wrote, or a model (then with --params)
    #[arg(value_name = "DIR|MODEL.hlo.pb")]
    pub model: PathBuf,
    /// The float parameters of a model
    #[arg(long, value_name = "P")]
    pub params: Option<PathBuf>,
    /// Quantize the model by these rules, JSON or TOML, while its parameters are read
    #[arg(long, value_name = "R")]
    pub rules: Option<PathBuf>,
    /// Statistics for static ranges (act_static_scale in the rules), from `qwix calibrate`
    #[arg(long, value_name = "STATS.safetensors", requires = "rules")]
    pub quant_stats: Option<PathBuf>,
    /// Quantize only what Qwix itself quantizes
    #[arg(long, requires = "rules")]
    pub qwix_compat: bool,
    /// The most float parameters to have in memory at once, such as 500MB or 2GiB; one that is larger is read alone
    #[arg(long, value_name = "SIZE", requires = "rules", value_parser = crate::size::parse, default_value = "1GiB")]
    pub float_memory: u64,
    /// The inputs: safetensors with keys 0, 1, … or the names that `qwix inspect` prints
    #[arg(long, value_name = "I.safetensors")]
    pub inputs: PathBuf,
    #[command(flatten)]
    pub backend: Backend,
    /// Leave out parameters that the model does not have, instead of refusing them
    #[arg(long)]
    pub allow_extra_params: bool,
    /// Hold a package's parameters against their hash first, which reads them whole
    #[arg(long)]
    pub verify: bool,
    /// Where to write the outputs: safetensors with keys 0, 1, …
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
}

/// Measure the error of a quantized package against its float model, per output and per site
///
/// SQNR is the signal-to-quantization-noise ratio: 10 dB more is a tenth of the noise's power. Worst first.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix compare model.hlo.pb --params params.safetensors model.int8 --inputs inputs.safetensors")]
pub struct Compare {
    /// The float model
    #[arg(value_name = "MODEL.hlo.pb")]
    pub model: PathBuf,
    /// Its parameters
    #[arg(long, value_name = "P")]
    pub params: PathBuf,
    /// The quantized package
    #[arg(value_name = "DIR")]
    pub package: PathBuf,
    /// The inputs: safetensors with keys 0, 1, … or the names that `qwix inspect` prints
    #[arg(long, value_name = "I.safetensors")]
    pub inputs: PathBuf,
    #[command(flatten)]
    pub backend: Backend,
    /// Leave out parameters that the model does not have, instead of refusing them
    #[arg(long)]
    pub allow_extra_params: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Write every parameter of a package as one flat safetensors file
///
/// Keys: <path>/qvalue, <path>/scale, <path>/zero_point, and plain <path> when left in float. Integers narrower than
/// a byte become I8, fp8 and fp4 become F32; both are exact.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix dump model.int8 -o flat.safetensors")]
pub struct Dump {
    /// The quantized package
    #[arg(value_name = "DIR")]
    pub package: PathBuf,
    /// Where to write
    #[arg(short, long, value_name = "FLAT.safetensors")]
    pub output: PathBuf,
}

/// Write a package's model as plain HLO, for any XLA to compile
///
/// A quantized parameter becomes <path>/qvalue, <path>/scale and <path>/zero_point; `qwix dump` writes their values under
/// these keys (integers narrower than a byte as I8). Which parameter of the file is which its op_name says, as in JAX's
/// own files. A quantized op becomes a call of what it computes, marked as a composite; XLA inlines it. The file also
/// says what is quantized and how, so that `inspect`, `run` and the rest take it for the quantized model that it is.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix export model.int8 -o model.int8.hlo.pb
  qwix inspect model.int8.hlo.pb
  qwix dump model.int8 -o flat.safetensors
  qwix run model.int8.hlo.pb --params flat.safetensors --inputs inputs.safetensors -o outputs.safetensors")]
pub struct Export {
    /// The quantized package
    #[arg(value_name = "DIR")]
    pub package: PathBuf,
    /// Where to write
    #[arg(short, long, value_name = "MODEL.hlo.pb")]
    pub output: PathBuf,
}

// Not a doc comment: clap would show it in place of the command's own.
#[derive(Args, Debug)]
pub struct Backend {
    /// What computes: cpu (the native engine), reference (the reference evaluator, obvious and slow), or an XLA device
    /// by its PJRT plugin, xla[:cpu|cuda|rocm|tpu|PATH]
    #[arg(long = "backend", value_name = "BACKEND", value_parser = backend_name, default_value = "cpu")]
    pub name: String,
    /// Keep what XLA compiled in this folder, and take it from there the next time
    #[arg(long, value_name = "DIR")]
    pub xla_cache: Option<PathBuf>,
    /// How exactly XLA multiplies floats at least: highest (f32, unless this says otherwise), high, or default (as JAX
    /// does unless the model says otherwise: TF32 on NVIDIA's GPUs, bf16 on TPUs)
    #[arg(long, value_name = "PRECISION", value_parser = precision)]
    pub xla_precision: Option<Precision>,
    /// Run on so many XLA devices: on 1 without regard to the model's shardings, else on as many as these name, which is
    /// what happens without this option, too
    #[arg(long, value_name = "COUNT")]
    pub xla_devices: Option<NonZeroUsize>,
    /// Let XLA on a CPU call the native engine's kernels for products with int8, int4 and other quantized weights, which
    /// are faster than its own code. What has no kernel is lowered to plain HLO, with a warning that counts it
    #[arg(long)]
    pub xla_kernels: bool,
}

fn precision(name: &str) -> Result<Precision, String> {
    let known = Precision::ALL.into_iter().find(|precision| precision.name() == name);
    known.ok_or_else(|| format!("expected {}", Precision::ALL.map(Precision::name).join(", ")))
}

fn backend_name(name: &str) -> Result<String, qwix::Error> {
    qwix::check_backend_name(name)?;
    Ok(name.to_owned())
}

/// Find and install the plugins that drive XLA devices
///
/// A plugin is a library that speaks the PJRT C API. The one of a kind that is used is the first of: the library that
/// QWIX_PJRT_PLUGIN_CPU (…_CUDA, …_ROCM, …_TPU) names, what `qwix plugin install` installed, and the wheels that pip
/// installed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  qwix plugin list
  qwix plugin install cpu
  qwix run model.int8 --inputs inputs.safetensors -o outputs.safetensors --backend xla:cpu")]
pub struct Plugin {
    #[command(subcommand)]
    pub action: PluginAction,
}

/// What to do with plugins.
#[derive(Subcommand, Debug)]
pub enum PluginAction {
    /// Show the plugins on this machine, and those that can be installed
    List,
    /// Fetch a plugin with pip, and unpack its library and licence into the user's cache
    Install {
        /// Which
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(qwix::pjrt::WHEELS.iter().map(|wheel| wheel.name)))]
        name: String,
        /// Fetch it even if it is there
        #[arg(long)]
        force: bool,
        /// The Python that has pip
        #[arg(long, default_value = "python3")]
        python: String,
    },
    /// Print the path of the library that is used
    Path {
        /// The kind of device
        #[arg(default_value = "cpu", value_parser = clap::builder::PossibleValuesParser::new(qwix::pjrt::Kind::ALL.map(|kind| kind.name())))]
        kind: String,
    },
}
