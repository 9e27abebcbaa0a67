//! Text to numbers of tokens, tokens back to text, and the choice of the next one.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

/// The pieces of text that are tokens; a token's number is its place.
pub struct Vocabulary {
    tokens: Vec<String>,
    numbers: HashMap<String, i32>,
}

impl Vocabulary {
    /// Reads a JSON array of strings.
    pub fn read(file: &Path) -> Result<Self, Box<dyn Error>> {
        let tokens: Vec<String> = serde_json::from_str(&std::fs::read_to_string(file)?)?;
        let numbers = tokens.iter().cloned().zip(0..).collect();
        Ok(Vocabulary { tokens, numbers })
    }

    /// Numbers of tokens: always the longest that the text goes on with.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, Box<dyn Error>> {
        let mut numbers = Vec::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let fits = |token: &&String| rest.starts_with(token.as_str());
            let longest = self.tokens.iter().filter(fits).max_by_key(|token| token.len());
            let token = longest.ok_or_else(|| {
                format!("the model does not know the character `{character}`: it learned from ASCII")
            })?;
            numbers.push(self.numbers[token]);
            rest = &rest[token.len()..];
        }
        Ok(numbers)
    }

    /// The text of these tokens.
    pub fn decode(&self, numbers: &[i32]) -> String {
        let token = |number: &i32| usize::try_from(*number).ok().and_then(|n| self.tokens.get(n));
        numbers.iter().filter_map(token).map(String::as_str).collect()
    }
}

/// Chooses the next token by its logits: at temperature 0 the likeliest, above at random, the likelier the more often.
pub struct Sampler {
    temperature: f64,
    state: u64,
}

impl Sampler {
    pub fn new(temperature: f64, seed: u64) -> Self {
        Sampler { temperature, state: seed }
    }

    pub fn choose(&mut self, logits: &[f32]) -> i32 {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
        if self.temperature <= 0.0 || logits.is_empty() {
            return best as i32;
        }
        let (largest, temperature) = (logits[best], self.temperature);
        let weight = |&logit: &f32| (f64::from(logit - largest) / temperature).exp();
        let mut left = self.uniform() * logits.iter().map(weight).sum::<f64>();
        for (number, logit) in (0..).zip(logits) {
            left -= weight(logit);
            if left < 0.0 {
                return number;
            }
        }
        best as i32
    }

    /// A number in [0, 1), by SplitMix64 (Steele, Lea and Flood, 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
