//! Rules from a file.

use std::path::Path as FilePath;

use qwix_ptq::{PtqError, QuantizationRule, WeightRule};

use crate::files::read_text;
use crate::{Error, Result};

/// Reads rules: TOML when the name ends in `.toml`, JSON otherwise.
///
/// # Errors
/// When the file cannot be read, or names the rule and the field that are wrong.
pub fn read_rules(file: impl AsRef<FilePath>) -> Result<Vec<QuantizationRule>> {
    read(file.as_ref(), QuantizationRule::from_json, QuantizationRule::from_toml)
}

/// Reads rules for parameters without a graph, from TOML or JSON as [`read_rules`] does.
///
/// # Errors
/// When the file cannot be read, or names the rule and the field that are wrong.
pub fn read_weight_rules(file: impl AsRef<FilePath>) -> Result<Vec<WeightRule>> {
    read(file.as_ref(), WeightRule::from_json, WeightRule::from_toml)
}

fn read<T>(
    file: &FilePath,
    json: fn(&str) -> Result<Vec<T>, PtqError>,
    toml: fn(&str) -> Result<Vec<T>, PtqError>,
) -> Result<Vec<T>> {
    let text = read_text(file)?;
    let is_toml = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
    let rules = if is_toml { toml(&text) } else { json(&text) };
    rules.map_err(|source| Error::Rules { file: file.to_owned(), source: Box::new(source) })
}
