//! Conversions between dtypes, with the rounding that XLA uses.
