//! Threads that read pieces of parameters, quantize them and write them where they belong.
//!
//! A thread prefers a parameter on which no other works; where there is none left, several work on one. Pieces are handed
//! out in order, and each is hashed when those before it have been, so that hashes are those of the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qwix_array::Array;
use qwix_ptq::PtqError;
use qwix_quant::{QArray, RangeSoFar, check_finite};

use super::cut::{Passes, Region, all, followed, prepared, runs, scale_region, starts};
use super::folder::{Folder, Record, Written};
use super::plan::{Item, Output, Part, Weight};
use crate::files::{read_exact_at, write_all_at};
use crate::hash::Hash;
use crate::package::shards::Shards;
use crate::{Checkpoint, Error, QuantizeProgress, ReportBuilder, Result};

/// Lines of the journal are made durable when so much was written since, or so much time has passed.
const GROUP_BYTES: u64 = 512 << 20;
const GROUP_TIME: Duration = Duration::from_secs(5);

/// For each output that is made in two passes, scale and zero point.
type Scales = Vec<Option<(Array, Option<Array>)>>;

pub(crate) struct Engine<'a> {
    pub checkpoint: &'a Checkpoint,
    pub items: &'a [Item],
    /// Whether an item is done already.
    pub done: Vec<bool>,
    pub shards: &'a Shards,
    pub folder: &'a Folder,
    /// Memory for pieces.
    pub memory: u64,
    pub threads: usize,
    pub report: Option<&'a ReportBuilder<'a>>,
    pub progress: Option<&'a (dyn Fn(&QuantizeProgress<'_>) + Sync)>,
    pub state: Mutex<State>,
    pub changed: Condvar,
}

/// What the threads share.
#[derive(Default)]
pub(crate) struct State {
    /// The first item that was not begun.
    next: usize,
    /// Items that were begun and are not finished.
    open: Vec<Open>,
    /// Memory of the pieces that are worked on.
    used: u64,
    /// The first error, by item.
    failed: Option<(usize, Error)>,
    stopped: bool,
    /// Bytes of the checkpoint that are done, and all.
    bytes_done: u64,
    bytes_total: u64,
    finished: Vec<Written>,
    /// What the journal has lines of that are not durable yet: paths, and the shards that they are in.
    pending: Vec<(String, Vec<usize>)>,
    pending_bytes: u64,
    ended: bool,
}

/// An item that is being worked on.
struct Open {
    item: usize,
    second: bool,
    /// Pieces handed out in this pass, and those that came back.
    claimed: usize,
    returned: usize,
    /// Whose turn it is to hash.
    turn: usize,
    hashes: Option<Box<Hashes>>,
    /// For each output that is made in two passes, the ranges so far.
    ranges: Vec<Option<RangeSoFar>>,
    scales: Scales,
}

/// Hashes that grow piece by piece.
#[derive(Default)]
struct Hashes {
    source: Hash,
    /// By output and part.
    parts: Vec<Vec<PartHash>>,
}

/// The hash of a tensor that comes piece by piece.
#[derive(Clone, Default)]
struct PartHash {
    hash: Hash,
    /// The element that comes next.
    next: usize,
    /// Whether pieces came in another order than that of their bytes: the file is then read again.
    scattered: bool,
}

impl PartHash {
    fn update(&mut self, array: &Array, at: Option<usize>) {
        self.scattered |= at != Some(self.next);
        if !self.scattered {
            self.hash.update(array.bytes());
            self.next += array.len();
        }
    }
}

/// A piece of work.
struct Job {
    item: usize,
    second: bool,
    piece: usize,
    cost: u64,
    scales: Scales,
}

/// What was made of a piece: for an output and a part, values, and the element at which they begin where they lie together.
struct Made {
    output: usize,
    part: usize,
    array: Array,
    at: Option<usize>,
}

impl Engine<'_> {
    /// Does all items that are not done.
    ///
    /// # Errors
    /// The first of the errors that occur, by the order of the items; what was finished before it is in the journal.
    pub fn run(self) -> Result<Vec<Written>> {
        {
            let mut state = self.lock();
            let left = self.items.iter().zip(&self.done).filter(|(_, done)| !**done);
            state.bytes_total = self.items.iter().map(|item| item.bytes).sum();
            state.bytes_done = state.bytes_total - left.map(|(item, _)| item.bytes).sum::<u64>();
        }
        thread::scope(|scope| -> Result<()> {
            let failed = |e| Error::Unsupported(format!("cannot start a thread: {e}"));
            let start = |name: &str| thread::Builder::new().name(name.to_owned()).stack_size(1 << 20);
            let flusher = start("qwix-flush").spawn_scoped(scope, || self.flush());
            let stop = StopOnDrop(&self);
            flusher.map_err(failed)?;
            for _ in 0..self.threads {
                start("qwix-quantize").spawn_scoped(scope, || self.work()).map_err(failed)?;
            }
            self.wait_for_all();
            drop(stop);
            Ok(())
        })?;
        let mut state = self.lock();
        if let Some((_, error)) = state.failed.take() {
            return Err(error);
        }
        Ok(std::mem::take(&mut state.finished))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_all(&self) {
        let mut state = self.lock();
        while !(state.stopped || state.open.is_empty() && self.nothing_left(&state)) {
            state = self.wait(state);
        }
    }

    fn nothing_left(&self, state: &State) -> bool {
        self.done.iter().skip(state.next).all(|&done| done)
    }

    fn fail(&self, item: usize, error: Error) {
        let mut state = self.lock();
        if state.failed.as_ref().is_none_or(|(first, _)| item < *first) {
            state.failed = Some((item, error));
        }
        state.stopped = true;
        drop(state);
        self.changed.notify_all();
    }

    /// A thread that quantizes.
    fn work(&self) {
        let _stop = StopOnPanic(self);
        while let Some(job) = self.claim() {
            if let Err(error) = self.piece(&job) {
                self.fail(job.item, error);
                return;
            }
        }
    }

    /// The next piece, once there is memory for it; none when there is nothing more to do.
    fn claim(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            while self.done.get(state.next).copied().unwrap_or(false) {
                state.next += 1;
            }
            let waiting = |open: &Open| open.claimed < self.items[open.item].pieces;
            let idle = state.open.iter().position(|open| waiting(open) && open.claimed == open.returned);
            let at = match idle {
                Some(at) => Some(at),
                None if state.next < self.items.len() => None,
                None => {
                    let busy = state.open.iter().enumerate().filter(|(_, open)| waiting(open));
                    match busy.min_by_key(|(_, open)| open.claimed - open.returned) {
                        Some((at, _)) => Some(at),
                        None if state.open.is_empty() => return None,
                        None => {
                            state = self.wait(state);
                            continue;
                        }
                    }
                }
            };
            let number = at.map_or(state.next, |at| state.open[at].item);
            let item = &self.items[number];
            let cost = item.cost + if at.is_none() { item.held } else { 0 };
            // Alone, anything may come in: what cannot be was refused before.
            if state.used > 0 && state.used.saturating_add(cost) > self.memory {
                state = self.wait(state);
                continue;
            }
            state.used = state.used.saturating_add(cost);
            let at = at.unwrap_or_else(|| {
                state.open.push(Open::new(number, item));
                state.next += 1;
                state.open.len() - 1
            });
            let open = &mut state.open[at];
            let piece = open.claimed;
            open.claimed += 1;
            let job = Job {
                item: number,
                second: open.second,
                piece,
                cost: item.cost,
                scales: open.scales.clone(),
            };
            return Some(job);
        }
    }

    /// Does one piece.
    fn piece(&self, job: &Job) -> Result<()> {
        let item = &self.items[job.item];
        let ty = item.cut_type();
        let region = item.cut.region(&ty.shape, job.piece);
        let elements = super::cut::span(&ty.shape, &region).unwrap_or(0..0);
        let bits = ty.dtype.bits();
        let (first, last) = (elements.start * bits / 8, (elements.end * bits).div_ceil(8));
        let mut bytes = vec![0; last - first];
        self.checkpoint.read_part(&item.path, first as u64, &mut bytes)?;
        let sizes = super::cut::sizes(&region);
        let array = Array::from_bytes(ty.dtype, &sizes, bytes)?;
        if !job.second && !item.is_plain() {
            check_finite(&array).map_err(|error| PtqError::Param {
                path: item.path.clone(),
                error: moved(error, &starts(&region)),
            })?;
        }
        let mut made = Vec::new();
        for (number, output) in item.outputs.iter().enumerate() {
            match &output.weight {
                None if !job.second => {
                    self.write(&output.parts[0], first as u64, array.bytes())?;
                }
                None => {}
                Some(weight) => self.quantize(job, number, weight, &array, &region, &mut made)?,
            }
        }
        let hashed = self.hash(job, &array, &made);
        drop((array, made));
        if hashed { self.returned(job) } else { Ok(()) }
    }

    /// Quantizes a piece, or finds its range.
    fn quantize(
        &self,
        job: &Job,
        number: usize,
        weight: &Weight,
        array: &Array,
        region: &Region,
        made: &mut Vec<Made>,
    ) -> Result<()> {
        let item = &self.items[job.item];
        let prep = &weight.slot.prep;
        let two = weight.passes == Passes::Two;
        if job.second && !two {
            return Ok(());
        }
        let fail = |error| PtqError::Param { path: item.path.clone(), error };
        let to = followed(region, &item.source.shape, prep).unwrap_or_default();
        if to.iter().any(|range| range.is_empty()) && item.pieces > 1 {
            return Ok(());
        }
        let piece = prepared(array.clone(), region, &item.source.shape, prep)?;
        let scales =
            if item.pieces == 1 { all(weight.whole.scale_shape()) } else { scale_region(&weight.whole, &to) };
        if two && !job.second {
            let range = weight.whole.range(&piece).map_err(fail)?;
            let mut state = self.lock();
            let open = state.open.iter_mut().find(|open| open.item == job.item);
            if let Some(Some(ranges)) = open.map(|open| &mut open.ranges[number]) {
                ranges.join(&range, &starts(&scales)).map_err(fail)?;
            }
            return Ok(());
        }
        let (scale, zero_point) = match job.scales.get(number) {
            Some(Some((scale, zero_point))) => {
                let limits: Vec<usize> = scales.iter().map(|r| r.end).collect();
                let part = |of: &Array| of.slice(&starts(&scales), &limits, &vec![1; limits.len()]);
                (part(scale)?, zero_point.as_ref().map(part).transpose()?)
            }
            Some(None) | None => {
                weight.whole.range(&piece).and_then(|range| weight.whole.scale(&range)).map_err(fail)?
            }
        };
        let qvalue = weight.whole.encode(&piece, &scale, zero_point.as_ref()).map_err(fail)?;
        let output = &item.outputs[number];
        if let Some(report) = self.report {
            let (scale, zero_point) = (scale.clone(), zero_point.clone());
            let values =
                QArray::new(qvalue.clone(), scale, zero_point, weight.whole.qtype()).map_err(fail)?;
            report.see_piece(&output.parameter.path, &to, &piece, &values);
        }
        drop(piece);
        // A fixed range has one scale, which the first piece writes.
        let own_scale = !two && (!weight.whole.is_fixed() || job.piece == 0);
        let scales = [(&scale, &scales), (zero_point.as_ref().unwrap_or(&scale), &scales)];
        let parts = [(&qvalue, &to)].into_iter().chain(scales);
        for (part, (array, region)) in parts.enumerate().take(output.parts.len()) {
            if part > 0 && !own_scale {
                break;
            }
            let target = &output.parts[part];
            let at = self.put(target, array, region)?;
            made.push(Made { output: number, part, array: array.clone(), at });
        }
        Ok(())
    }

    /// Writes an array as a region of a tensor; the element at which it begins where its bytes lie together.
    fn put(&self, part: &Part, array: &Array, region: &Region) -> Result<Option<usize>> {
        let bits = part.ty.dtype.bits();
        let bytes = array.bytes();
        let (mut failed, mut count, mut first) = (None, 0, 0);
        runs(&part.ty.shape, region, |from, run| {
            let from = from * bits / 8;
            let len = (run.len() * bits).div_ceil(8);
            (count, first) = (count + 1, run.start);
            if failed.is_none() {
                let piece = bytes.get(from..from + len).unwrap_or_default();
                failed = self.write(part, (run.start * bits / 8) as u64, piece).err();
            }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok((count == 1).then_some(first)),
        }
    }

    fn write(&self, part: &Part, at: u64, bytes: &[u8]) -> Result<()> {
        let name = &self.shards.list[part.place.shard].name;
        let written =
            self.open_shard(part.place.shard).and_then(|f| write_all_at(&f, bytes, part.place.offset + at));
        written.map_err(|e| self.folder.failed(name, e))
    }

    fn open_shard(&self, shard: usize) -> std::io::Result<File> {
        File::options().read(true).write(true).open(self.folder.file(&self.shards.list[shard].name))
    }

    /// Hashes what a piece read and made, when those before it have been. False when all is given up.
    fn hash(&self, job: &Job, array: &Array, made: &[Made]) -> bool {
        let mut state = self.lock();
        let mut hashes = loop {
            if state.stopped {
                return false;
            }
            let Some(open) = state.open.iter_mut().find(|open| open.item == job.item) else { return false };
            match open.hashes.take_if(|_| open.turn == job.piece) {
                Some(hashes) => break hashes,
                None => state = self.wait(state),
            }
        };
        drop(state);
        if !job.second {
            hashes.source.update(array.bytes());
        }
        for made in made {
            let part = hashes.parts.get_mut(made.output).and_then(|parts| parts.get_mut(made.part));
            if let Some(part) = part {
                part.update(&made.array, made.at);
            }
        }
        let mut state = self.lock();
        let Some(open) = state.open.iter_mut().find(|open| open.item == job.item) else { return false };
        open.turn += 1;
        open.hashes = Some(hashes);
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Takes back a piece that is done. The last one of a pass begins the next, or finishes the item.
    fn returned(&self, job: &Job) -> Result<()> {
        let item = &self.items[job.item];
        let mut state = self.lock();
        state.used = state.used.saturating_sub(job.cost);
        let Some(at) = state.open.iter().position(|open| open.item == job.item) else { return Ok(()) };
        let open = &mut state.open[at];
        open.returned += 1;
        let (returned, second) = (open.returned, open.second);
        let pieces = item.pieces * if item.two_passes { 2 } else { 1 };
        let came = returned + if second { item.pieces } else { 0 };
        let bytes = |came: usize| (item.bytes as u128 * came as u128 / pieces.max(1) as u128) as u64;
        state.bytes_done += bytes(came) - bytes(came - 1);
        let (done, total) = (state.bytes_done.min(state.bytes_total), state.bytes_total);
        let last = returned == item.pieces;
        if !last {
            drop(state);
        } else if item.two_passes && !second {
            let ranges: Vec<_> = state.open[at].ranges.iter_mut().map(Option::take).collect();
            drop(state);
            let scales = self.scales(item, &ranges)?;
            let mut state = self.lock();
            if let Some(open) = state.open.iter_mut().find(|open| open.item == job.item) {
                let hashes = open.hashes.get_or_insert_default();
                for (output, scales) in scales.iter().enumerate() {
                    if let Some((scale, zero_point)) = scales {
                        let arrays = [Some(scale), zero_point.as_ref()].into_iter().flatten();
                        for (part, array) in arrays.enumerate() {
                            if let Some(hash) = hashes.parts[output].get_mut(part + 1) {
                                hash.update(array, Some(0));
                            }
                        }
                    }
                }
                (open.scales, open.second) = (scales, true);
                (open.claimed, open.returned, open.turn) = (0, 0, 0);
            }
            drop(state);
        } else {
            let open = state.open.swap_remove(at);
            // Until it is written down it is still open to others.
            drop(state);
            let written = self.written(item, *open.hashes.unwrap_or_default())?;
            self.folder.record(&[Record::Done(written.clone())], false)?;
            let mut state = self.lock();
            state.used = state.used.saturating_sub(item.held);
            let parts = || item.outputs.iter().flat_map(|output| &output.parts);
            state.pending.push((written.path.clone(), parts().map(|part| part.place.shard).collect()));
            state.pending_bytes += parts().map(|part| part.place.bytes).sum::<u64>();
            state.finished.push(written);
            drop(state);
        }
        self.changed.notify_all();
        if let Some(progress) = self.progress {
            progress(&QuantizeProgress { path: &item.path, done, total });
        }
        Ok(())
    }

    /// Scales of ranges that are known whole, written.
    fn scales(&self, item: &Item, ranges: &[Option<RangeSoFar>]) -> Result<Scales> {
        let fail = |error| PtqError::Param { path: item.path.clone(), error };
        let mut all = Vec::new();
        for (output, ranges) in item.outputs.iter().zip(ranges) {
            let (Some(weight), Some(ranges)) = (&output.weight, ranges) else {
                all.push(None);
                continue;
            };
            let (scale, zero_point) =
                ranges.range().and_then(|range| weight.whole.scale(&range)).map_err(fail)?;
            let arrays = [Some(&scale), zero_point.as_ref()].into_iter().flatten();
            for (part, array) in output.parts.iter().skip(1).zip(arrays) {
                self.write(part, 0, array.bytes())?;
            }
            all.push(Some((scale, zero_point)));
        }
        Ok(all)
    }

    /// What the journal says of an item that is written.
    fn written(&self, item: &Item, hashes: Hashes) -> Result<Written> {
        let source = hashes.source.hex();
        let mut tensors = BTreeMap::new();
        for (output, parts) in item.outputs.iter().zip(hashes.parts) {
            for (part, known) in output.parts.iter().zip(parts) {
                let hex = match output.weight {
                    // A plain array is what was read.
                    None => source.clone(),
                    Some(_) if known.scattered => hash_part(self.folder, self.shards, part)?,
                    Some(_) => known.hash.hex(),
                };
                tensors.insert(part.key.clone(), hex);
            }
        }
        Ok(Written { path: item.path.to_string(), sha256: source, tensors })
    }

    /// The thread that makes the journal durable, in groups: what stands before `Flushed` is on the disk.
    fn flush(&self) {
        let _stop = StopOnPanic(self);
        let mut since = Instant::now();
        loop {
            let mut state = self.lock();
            let ended = state.ended;
            let due = state.pending_bytes >= GROUP_BYTES || since.elapsed() >= GROUP_TIME || ended;
            if !due {
                let left = GROUP_TIME.saturating_sub(since.elapsed());
                drop(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            since = Instant::now();
            let pending = std::mem::take(&mut state.pending);
            state.pending_bytes = 0;
            drop(state);
            if !pending.is_empty()
                && let Err(error) = self.sync(pending)
            {
                self.fail(self.items.len(), error);
                return;
            }
            if ended {
                return;
            }
        }
    }

    /// Brings shards to the disk, and says so in the journal.
    fn sync(&self, pending: Vec<(String, Vec<usize>)>) -> Result<()> {
        let shards: BTreeSet<usize> = pending.iter().flat_map(|(_, shards)| shards).copied().collect();
        for shard in shards {
            let name = &self.shards.list[shard].name;
            let synced = self.open_shard(shard).and_then(|file| file.sync_data());
            synced.map_err(|e| self.folder.failed(name, e))?;
        }
        let paths = pending.into_iter().map(|(path, _)| path).collect();
        self.folder.record(&[Record::Flushed(paths)], true)
    }

    fn stop(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.stopped = true;
        drop(state);
        self.changed.notify_all();
    }
}

impl Open {
    fn new(number: usize, item: &Item) -> Self {
        let ranges = |output: &Output| {
            let weight = output.weight.as_ref().filter(|weight| weight.passes == Passes::Two)?;
            Some(RangeSoFar::new(&weight.whole, item.source.dtype))
        };
        let parts = |output: &Output| vec![PartHash::default(); output.parts.len()];
        Open {
            item: number,
            second: false,
            claimed: 0,
            returned: 0,
            turn: 0,
            hashes: Some(Box::new(Hashes {
                source: Hash::default(),
                parts: item.outputs.iter().map(parts).collect(),
            })),
            ranges: item.outputs.iter().map(ranges).collect(),
            scales: Vec::new(),
        }
    }
}

/// The hash of a tensor's bytes as they are in the file.
pub(crate) fn hash_part(folder: &Folder, shards: &Shards, part: &Part) -> Result<String> {
    let name = &shards.list[part.place.shard].name;
    let io = |e| Error::io("read", &folder.file(name), e);
    let file = File::open(folder.file(name)).map_err(io)?;
    let mut hash = Hash::default();
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    while at < part.place.bytes {
        let n = (part.place.bytes - at).min(buffer.len() as u64) as usize;
        read_exact_at(&file, &mut buffer[..n], part.place.offset + at).map_err(io)?;
        hash.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(hash.hex())
}

/// The index of a value that is not finite, in the whole array.
fn moved(error: qwix_quant::QuantError, starts: &[usize]) -> qwix_quant::QuantError {
    match error {
        qwix_quant::QuantError::NotFinite { what, index } => qwix_quant::QuantError::NotFinite {
            what,
            index: index.iter().zip(starts).map(|(index, start)| index + start).collect(),
        },
        other => other,
    }
}

struct StopOnDrop<'a, 'b>(&'a Engine<'b>);

impl Drop for StopOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A thread that panics takes the others with it; otherwise they would wait for it for ever.
struct StopOnPanic<'a, 'b>(&'a Engine<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}
