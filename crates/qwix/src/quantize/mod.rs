//! A checkpoint of any size into a package: in bounded memory, on all cores, and going on where it was interrupted.
//!
//! Everything is planned from names and types: the shards, the place of each tensor, and the pieces in which each
//! parameter is read. Threads then write pieces where they belong, in any order; neither the order nor the size of pieces
//! changes a byte.

mod cut;
mod engine;
mod folder;
pub(crate) mod memory;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Condvar, Mutex};

use qwix_graph::text::TextOptions;
use qwix_graph::{Parameter, Path};
use qwix_ptq::{QuantStats, Template, quantize_stats};

use crate::files::{available_threads, in_the_way, is_taken, write_all_at};
use crate::hash::sha256;
use crate::package::manifest::InputEntry;
use crate::package::shards::Shards;
use crate::package::{Contents, entries, finish_manifest, parts, tool};
use crate::{Checkpoint, Error, Model, ReportBuilder, Result};
use engine::{Engine, State, hash_part};
use folder::{Begun, Folder, PlanId, Written};
use plan::{Item, PIECE, parts_of};

/// Bytes of tensors in a shard of a package, unless another number is asked for.
pub const DEFAULT_SHARD_SIZE: u64 = 4 << 30;
/// The memory of [`QuantizeJob`], unless another number is asked for.
pub const DEFAULT_MEMORY: u64 = 2 << 30;
/// Memory for what pieces of work do not count: stacks, the journal, the manifest's text.
const RESERVE: u64 = 12 << 20;

/// A package to be made of a checkpoint.
///
/// ```no_run
/// # use qwix::*;
/// # fn main() -> Result<()> {
/// let (model, checkpoint) = (Model::load("model.hlo.pb")?, Checkpoint::open("params.safetensors")?);
/// let rules = vec![QuantizationRule::new(".*").weight_qtype("int8")];
/// let ptq_model = quantize_model(&model, &PtqProvider::new(rules)?)?;
/// let (template, quantized) = (ptq_model.abstract_params(), Model::from(ptq_model.graph));
/// let job = QuantizeJob { model: Some(&quantized), ..QuantizeJob::new(&checkpoint, &template, "[]") };
/// job.run("model.int8", false)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct QuantizeJob<'a> {
    /// The float parameters.
    pub checkpoint: &'a Checkpoint,
    /// What is made of them.
    pub template: &'a Template,
    /// The quantized model; without one the package holds parameters and does not run.
    pub model: Option<&'a Model>,
    /// The text of `rules.json`.
    pub rules: &'a str,
    /// Whether only what Qwix quantizes was quantized.
    pub qwix_compat: bool,
    /// Statistics for the static scales of activations.
    pub quant_stats: Option<&'a QuantStats>,
    /// Files that it is made from, by what they are (`model`, `statistics`): the manifest holds their SHA-256.
    pub inputs: &'a [(&'a str, &'a FilePath)],
    /// Leaves out parameters that the template does not know, instead of refusing them.
    pub allow_extra_params: bool,
    /// The most memory that the process may have, in bytes. It changes no byte of the package.
    pub max_memory: u64,
    /// The most bytes of tensors in one shard; a parameter that takes more has one alone.
    pub shard_size: u64,
    /// Threads; 0: as many as the machine has cores. Fewer are used where the memory does not allow all.
    pub threads: usize,
    /// Looks at the pieces while they are made.
    pub report: Option<&'a ReportBuilder<'a>>,
    /// Is told how far it is, on the thread that did the work.
    pub progress: Option<&'a (dyn Fn(&QuantizeProgress<'_>) + Sync)>,
}

/// How far a [`QuantizeJob`] is.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeProgress<'a> {
    /// The float parameter that was worked on last.
    pub path: &'a Path,
    /// Bytes of the checkpoint that are done, what an earlier run did included.
    pub done: u64,
    /// Of all that are to be done.
    pub total: u64,
}

/// What a [`QuantizeJob`] will do, from names and types alone.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct QuantizePlan {
    /// Bytes of the float parameters that are read.
    pub bytes_before: u64,
    /// Bytes of the tensors that are written.
    pub bytes_after: u64,
    /// Parameters that are quantized, and all.
    pub quantized: usize,
    /// All that are written.
    pub parameters: usize,
    /// The names and lengths of the shards.
    pub shards: Vec<(String, u64)>,
    /// Parameters of the checkpoint that are left out.
    pub extra: Vec<String>,
    /// The least memory that the process needs, in bytes.
    pub least_memory: u64,
}

/// What a [`QuantizeJob`] did.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantized {
    /// The plan that was followed.
    pub plan: QuantizePlan,
    /// Float parameters that were worked on.
    pub worked_on: usize,
    /// Float parameters that an earlier run had done.
    pub resumed: usize,
    /// Threads that were used.
    pub threads: usize,
}

struct Planned {
    shards: Shards,
    items: Vec<Item>,
    plan: QuantizePlan,
    parameters: Vec<Parameter>,
}

impl<'a> QuantizeJob<'a> {
    /// A job with the usual memory, threads and shards, and no model.
    pub fn new(checkpoint: &'a Checkpoint, template: &'a Template, rules: &'a str) -> Self {
        QuantizeJob {
            checkpoint,
            template,
            model: None,
            rules,
            qwix_compat: false,
            quant_stats: None,
            inputs: &[],
            allow_extra_params: false,
            max_memory: DEFAULT_MEMORY,
            shard_size: DEFAULT_SHARD_SIZE,
            threads: 0,
            report: None,
            progress: None,
        }
    }

    /// What it will do. Reads no parameter and writes nothing.
    ///
    /// # Errors
    /// When the checkpoint is not what the template wants.
    pub fn plan(&self) -> Result<QuantizePlan> {
        let mut planned = self.planned()?;
        let least = planned.items.iter_mut().map(|item| item.least(PIECE)).max().unwrap_or(0);
        planned.plan.least_memory = memory::resident().saturating_add(RESERVE).saturating_add(least);
        Ok(planned.plan)
    }

    fn planned(&self) -> Result<Planned> {
        let mut extra = self.checkpoint.paths();
        for path in self.template.sources() {
            extra.remove(path);
        }
        if let Some(path) = extra.first()
            && !self.allow_extra_params
        {
            // Says which one is probably meant.
            return Err(self.template.unknown_source(path).into());
        }
        let shards = Shards::plan(self.template.parameters().values(), self.shard_size)?;
        let items = plan::items(self.checkpoint, self.template, &shards)?;
        let parameters: Vec<Parameter> = match self.model {
            Some(model) => model.parameters.clone(),
            None => self.template.parameters().values().cloned().collect(),
        };
        let plan = QuantizePlan {
            bytes_before: items.iter().fold(0, |sum: u64, item| sum.saturating_add(item.bytes)),
            bytes_after: shards.places.values().map(|place| place.bytes).sum(),
            quantized: self
                .template
                .parameters()
                .values()
                .filter(|p| matches!(p.ty, qwix_graph::Type::QArray(_)))
                .count(),
            parameters: self.template.parameters().len(),
            shards: shards.list.iter().map(|shard| (shard.name.clone(), shard.bytes)).collect(),
            extra: extra.iter().map(Path::to_string).collect(),
            least_memory: 0,
        };
        Ok(Planned { shards, items, plan, parameters })
    }

    /// Makes the package. It is whole at `target` or not there: until then it stands in a hidden folder beside it, and a
    /// run that ended early is gone on with by the next one of the same plan (unless the checkpoint cannot be quantized:
    /// then nothing is left). `force` replaces a package that is at the target, and starts over where another plan was begun.
    ///
    /// # Errors
    /// When the memory is too small (said with the least that works), something is in the way, another process or another
    /// plan is at work there, or a parameter cannot be read, quantized or written.
    pub fn run(&self, target: impl AsRef<FilePath>, force: bool) -> Result<Quantized> {
        let target = target.as_ref();
        let done = self.run_in_pieces(target, force, PIECE);
        if let Err(Error::Ptq(_) | Error::Checkpoint { .. } | Error::Quant(_)) = &done
            && Folder::place(target).exists()
        {
            // Nothing goes on from a checkpoint that cannot be quantized; the error is what counts.
            let _ = Folder::give_up(target);
        }
        done
    }

    /// [`run`](Self::run) with pieces of about so many bytes of the checkpoint.
    fn run_in_pieces(&self, target: &FilePath, force: bool, piece: u64) -> Result<Quantized> {
        let Planned { shards, mut items, mut plan, parameters } = self.planned()?;
        let model_text = self.model.map(|model| model.to_text(TextOptions::default()));
        let inputs =
            self.inputs.iter().map(|(name, file)| Ok(((*name).to_owned(), crate::hash::hash_file(file)?.1)));
        let inputs: BTreeMap<String, String> = inputs.collect::<Result<_>>()?;
        let id = self.id(model_text.as_deref(), &parameters, &inputs)?;
        let statistics = match self.quant_stats {
            Some(stats) => quantize_stats(stats, self.template)?,
            None => quantize_stats(&QuantStats::new(), self.template)?,
        };

        let (threads, memory) = self.share(&mut items, &mut plan, piece)?;
        let (folder, flushed, perhaps) = match Folder::begin(target, &id, &shards, force)? {
            Begun::Finished => {
                return Ok(Quantized { plan, worked_on: 0, resumed: items.len(), threads: 0 });
            }
            Begun::Going { folder, flushed, perhaps } => (folder, flushed, perhaps),
        };
        let mut written: BTreeMap<String, Written> = BTreeMap::new();
        let by_path: BTreeMap<&str, &Item> = items.iter().map(|item| (item.path.as_str(), item)).collect();
        for (done, certain) in [(flushed, true), (perhaps, false)] {
            for done in done {
                let Some(item) = by_path.get(done.path.as_str()) else { continue };
                if certain || is_there(&folder, &shards, item, &done)? {
                    written.insert(done.path.clone(), done);
                }
            }
        }
        let done: Vec<bool> = items.iter().map(|item| written.contains_key(item.path.as_str())).collect();
        let resumed = written.len();
        let engine = Engine {
            checkpoint: self.checkpoint,
            items: &items,
            done,
            shards: &shards,
            folder: &folder,
            memory,
            threads,
            report: self.report,
            progress: self.progress,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        };
        let now = engine.run()?;
        let worked_on = now.len();
        written.extend(now.into_iter().map(|done| (done.path.clone(), done)));

        let mut tensors = BTreeMap::new();
        let mut sources = BTreeMap::new();
        for item in &items {
            let done = written.remove(item.path.as_str());
            let done =
                done.ok_or_else(|| Error::Unsupported(format!("parameter `{}` was not written", item.path)))?;
            tensors.extend(done.tensors);
            let (dtype, shape) = (item.source.dtype.to_string(), item.source.shape.clone());
            sources.insert(done.path, InputEntry { dtype, shape, sha256: done.sha256 });
        }
        for (path, value) in &statistics {
            let Some(parameter) = self.template.parameters().get(path) else { continue };
            for (part, array) in parts_of(parameter, &shards)?.iter().zip(parts(value)) {
                let name = &shards.list[part.place.shard].name;
                let file = std::fs::File::options().write(true).open(folder.file(name));
                let put = file.and_then(|file| write_all_at(&file, array.bytes(), part.place.offset));
                put.map_err(|e| folder.failed(name, e))?;
                tensors.insert(part.key.clone(), sha256(array.bytes()));
            }
        }
        for shard in &shards.list {
            let synced = std::fs::File::options()
                .write(true)
                .open(folder.file(&shard.name))
                .and_then(|f| f.sync_all());
            synced.map_err(|e| folder.failed(&shard.name, e))?;
        }
        let contents = Contents {
            parameters: &parameters,
            model: model_text.as_deref(),
            rules: self.rules,
            qwix_compat: self.qwix_compat,
            inputs,
            sources,
            tensors,
        };
        let manifest = finish_manifest(&shards, contents, &|name, bytes| folder.write(name, bytes))?;
        folder.finish(&manifest)?;
        Ok(Quantized { plan, worked_on, resumed, threads })
    }

    /// How many threads the memory allows, and how much of it is for pieces of work; cuts the items accordingly.
    fn share(&self, items: &mut [Item], plan: &mut QuantizePlan, piece: u64) -> Result<(usize, u64)> {
        let base = memory::resident().saturating_add(RESERVE);
        let free = self.max_memory.saturating_sub(base);
        let threads = available_threads(self.threads);
        for threads in (1..=threads).rev() {
            // Memory of ranges is held beside the pieces, so no item takes all of its share.
            let each = free / threads as u64;
            if items.iter_mut().all(|item| item.fit(each, piece)) {
                plan.least_memory = 0;
                return Ok((threads, free));
            }
        }
        let least = items.iter_mut().map(|item| (item.least(piece), item.path.clone())).max();
        let (least, path) = least.unwrap_or_default();
        let least = least.saturating_add(base).next_multiple_of(1 << 20) + (1 << 20);
        Err(Error::Memory { given: self.max_memory, least, path })
    }

    /// What the package depends on. Neither the memory nor the threads do.
    fn id(
        &self,
        model: Option<&str>,
        parameters: &[Parameter],
        inputs: &BTreeMap<String, String>,
    ) -> Result<PlanId> {
        let json = |e: serde_json::Error| Error::Unsupported(e.to_string());
        let made = serde_json::to_string(&entries(parameters)?).map_err(json)?;
        let mut id = PlanId::from([
            ("tool".to_owned(), tool()),
            ("rules".to_owned(), sha256(self.rules.as_bytes())),
            ("parameters".to_owned(), sha256(made.as_bytes())),
            ("shard_size".to_owned(), self.shard_size.to_string()),
            ("qwix_compat".to_owned(), self.qwix_compat.to_string()),
        ]);
        if let Some(model) = model {
            id.insert("model".to_owned(), sha256(model.as_bytes()));
        }
        for (name, sha256) in inputs {
            id.insert(format!("input {name}"), sha256.clone());
        }
        // The checkpoint's bytes are not read for this: a file that was written to since has another time.
        let mut files = String::new();
        for file in self.checkpoint.files() {
            let stat = std::fs::metadata(file.name()).map_err(|e| Error::io("read", file.name(), e))?;
            let time = stat.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            let time = time.unwrap_or_default().as_nanos();
            files += &format!("{} {} {time}\n", file.header_sha256(), stat.len());
        }
        id.insert("checkpoint".to_owned(), sha256(files.as_bytes()));
        Ok(id)
    }

    /// The hidden folder in which the package for a target is made.
    pub fn folder(target: impl AsRef<FilePath>) -> PathBuf {
        Folder::place(target.as_ref())
    }

    /// Makes sure that nothing is in the way at a target, before anything large is read.
    ///
    /// # Errors
    /// When something is.
    pub fn check_target(target: impl AsRef<FilePath>, force: bool) -> Result<()> {
        let target = target.as_ref();
        let replace = force && crate::package::is_package(target)?;
        if !replace && is_taken(target) && !Folder::place(target).exists() {
            return Err(in_the_way(target));
        }
        Ok(())
    }
}

/// Whether what the journal says of a parameter is in the files.
fn is_there(folder: &Folder, shards: &Shards, item: &Item, done: &Written) -> Result<bool> {
    for part in item.outputs.iter().flat_map(|output| &output.parts) {
        if done.tensors.get(&part.key) != Some(&hash_part(folder, shards, part)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
