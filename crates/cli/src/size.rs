//! Sizes as people write them.

/// A number of bytes from text: `1000000`, `500kB`, `1.5 GB`, `2GiB`.
///
/// # Errors
/// Says what is expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as 500MB, 2GB or 2GiB, found `{text}`");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "k" => 1_000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "tb" | "t" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(expected()),
    };
    let bytes = number * factor as f64;
    if bytes < 1.0 || bytes > u64::MAX as f64 {
        return Err(expected());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let rows = [
            ("1", Some(1)),
            ("1000", Some(1000)),
            ("500kB", Some(500_000)),
            ("1.5 GB", Some(1_500_000_000)),
            ("2GiB", Some(2 << 30)),
            ("3mb", Some(3_000_000)),
            ("0", None),
            ("", None),
            ("GB", None),
            ("-1", None),
            ("1e3", None),
            ("5 parsecs", None),
        ];
        let wrong: Vec<_> = rows.iter().filter(|(text, bytes)| parse(text).ok() != *bytes).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
