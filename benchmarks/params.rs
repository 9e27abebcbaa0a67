//! How long quantizing takes where the float parameters are in memory already: `time_params CHECKPOINT QTYPE` prints the
//! best of three runs on all cores, in seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use qwix::{Checkpoint, Loading, WeightLayout, WeightRule, quantize_checkpoint, weights_only};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(checkpoint), Some(qtype)) = (args.next(), args.next()) else {
        return Err("usage: time_params CHECKPOINT QTYPE".into());
    };
    let checkpoint = Checkpoint::open(checkpoint)?;
    let rules = [WeightRule { weight_qtype: Some(qtype), ..WeightRule::new(".*") }];
    let (template, _) = weights_only(checkpoint.types(), &rules, WeightLayout::Flax)?;
    let params = checkpoint.read_all()?;
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let mut quantized = BTreeMap::new();
        let loading = Loading { float_bytes: u64::MAX, ..Loading::default() };
        let start = Instant::now();
        quantize_checkpoint(&params, &template, &loading, |path, value| {
            quantized.insert(path, value);
            Ok(())
        })?;
        best = best.min(start.elapsed());
    }
    println!("{}", best.as_secs_f64());
    Ok(())
}
