//! Files that are broken or made to break us: real modules, changed at random, thousands of times.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::models;
use qwix_graph::text::TextOptions;
use qwix_graph::{Graph, KeyPath, Scope, passes};

mod common;

/// How long reading one file may take, on a busy machine and without optimization.
const LONGEST: Duration = Duration::from_secs(60);

/// Numbers that are the same on every run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// What happened to the files.
#[derive(Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    wrong: Vec<String>,
}

impl Tally {
    /// Reads a file; an accepted graph goes through all that stands on a graph being whole.
    fn try_file(&mut self, what: &str, bytes: &[u8]) {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let graph = match Graph::from_hlo_proto(bytes) {
                Ok(graph) => graph,
                Err(error) => return Err(error.to_string()),
            };
            graph.verify().map_err(|error| format!("accepted, but: {error}"))?;
            passes::eliminate_dead_code(&graph)
                .verify()
                .map_err(|error| format!("less dead code: {error}"))?;
            common::visit(&graph.entry, &mut |node| {
                Scope::parse(&node.metadata.op_name);
                KeyPath::parse(&node.metadata.op_name);
            });
            if let Ok(written) = graph.to_hlo_proto() {
                Graph::from_hlo_proto(&written).map_err(|error| format!("accepted, but written: {error}"))?;
            }
            Ok(())
        }));
        match result {
            Ok(Ok(())) => self.accepted += 1,
            Ok(Err(message)) => {
                self.refused += 1;
                if message.contains('\n') || message.starts_with("accepted") || message.starts_with("less") {
                    self.wrong.push(format!("{what}: {message}"));
                }
            }
            Err(_) => self.wrong.push(format!("{what}: panics")),
        }
        if start.elapsed() > LONGEST {
            self.wrong.push(format!("{what}: takes {:?}", start.elapsed()));
        }
    }

    fn finish(self, files: usize) {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        assert_eq!(self.accepted + self.refused, files);
        assert!(
            self.accepted > 0 && self.refused > 0,
            "{} accepted, {} refused",
            self.accepted,
            self.refused
        );
    }
}

fn mutated(bytes: &[u8], others: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let length = bytes.len();
        let at = random.below(length);
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.next() as u8),
            // Numbers near a border.
            3 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = [0, 1, 0x7f, 0x80, 0xff][random.below(5)]),
            4 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(length))),
            5 => {
                let from = random.below(length);
                let piece = bytes[from..(from + random.below(64)).min(length)].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let (_, other) = &others[random.below(others.len())];
                let from = random.below(other.len());
                let piece = &other[from..(from + random.below(64)).min(other.len())];
                let end = (at + piece.len()).min(length);
                bytes[at..end].copy_from_slice(&piece[..end - at]);
            }
            _ => {
                let other = random.below(length);
                bytes.swap(at, other);
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

#[test]
fn files_changed_at_random() {
    const ROUNDS: usize = 250;
    let models = models();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut tally = Tally::default();
    for (name, bytes) in &models {
        for round in 0..ROUNDS {
            let bytes = mutated(bytes, &models, &mut random);
            tally.try_file(&format!("{name}, round {round}"), &bytes);
        }
    }
    tally.finish(models.len() * ROUNDS);
}

#[test]
fn every_bit_of_a_small_file() {
    let models = models();
    let (_, bytes) = models.iter().min_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut tally = Tally::default();
    for bit in 0..8 * bytes.len() {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        tally.try_file(&format!("bit {bit}"), &bytes);
    }
    tally.finish(8 * bytes.len());
}

#[test]
fn every_length_of_a_file() {
    let models = models();
    let (_, bytes) = models.iter().find(|(name, _)| name == "models/scan_layers").unwrap();
    let mut tally = Tally::default();
    for length in 0..=bytes.len() {
        tally.try_file(&format!("the first {length} bytes"), &bytes[..length]);
    }
    tally.finish(bytes.len() + 1);
}

/// Sixty computations, each of which calls the one before it twice: small as text, without end when it is unrolled.
#[test]
fn computations_that_are_shared_many_times() {
    let mut text = String::from("HloModule m, frontend_attributes={qwix=\"1\"}\n\n");
    for level in 0..60 {
        text.push_str(&format!("%c{level} (x: f32[]) -> f32[] {{\n  %x = f32[] parameter(0)\n"));
        if level == 0 {
            text.push_str("  ROOT %y = f32[] exponential(%x)\n}\n\n");
        } else {
            let below = level - 1;
            text.push_str(&format!(
                "  %unused = f32[] negate(%x)\n  %a = f32[] call(%x), to_apply=%c{below}\n  ROOT %b = f32[] call(%a), to_apply=%c{below}\n}}\n\n"
            ));
        }
    }
    text.push_str(
        "ENTRY %main () -> f32[] {\n  %x = f32[] constant(1)\n  ROOT %y = f32[] call(%x), to_apply=%c59\n}\n",
    );
    let start = Instant::now();
    let graph = Graph::from_text(&text).unwrap();
    graph.verify().unwrap();
    let swept = passes::eliminate_dead_code(&graph).retype().unwrap();
    assert!(!swept.to_text(TextOptions::default()).contains("negate"));
    assert_eq!(swept.to_text(TextOptions::default()).matches("to_apply").count(), 119);
    let refused = passes::inline_calls(&graph).unwrap_err().to_string();
    assert!(refused.contains("with calls inlined"), "{refused}");
    assert!(start.elapsed() < LONGEST, "{:?}", start.elapsed());
}
