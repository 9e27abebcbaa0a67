//! Rules from a file.

use std::path::Path as FilePath;

use qwix_ptq::QuantizationRule;

use crate::files::read_text;
use crate::{Error, Result};

/// Reads rules: TOML when the name ends in `.toml`, JSON otherwise.
///
/// # Errors
/// When the file cannot be read, or names the rule and the field that are wrong.
pub fn read_rules(file: impl AsRef<FilePath>) -> Result<Vec<QuantizationRule>> {
    let file = file.as_ref();
    let text = read_text(file)?;
    let is_toml = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
    let rules = if is_toml { QuantizationRule::from_toml(&text) } else { QuantizationRule::from_json(&text) };
    rules.map_err(|source| Error::Rules { file: file.to_owned(), source: Box::new(source) })
}
