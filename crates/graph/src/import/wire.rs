//! Protobuf's outer wire format: which field, and its bytes, without a copy.
//!
//! A module's two outer levels are walked with this, so that memory grows with the instructions that are understood and
//! not with what a hostile file claims; prost decodes one instruction at a time.

/// One field's value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value<'a> {
    /// An integer, a bool or an enum.
    Varint(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// A fixed-width number; no field that we read has one at these levels.
    Fixed,
}

impl<'a> Value<'a> {
    /// The bytes of a message.
    pub fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Varint(_) | Value::Fixed => Err("expected a message, found a number".to_owned()),
        }
    }

    /// A string.
    pub fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "expected text in UTF-8, found other bytes".to_owned())
    }

    /// A signed integer.
    pub fn int(self) -> Result<i64, String> {
        match self {
            // Negative numbers are written as their 64-bit two's complement.
            Value::Varint(value) => Ok(value as i64),
            Value::Bytes(_) | Value::Fixed => Err("expected an integer, found a message".to_owned()),
        }
    }
}

/// The fields of a message, in order; ends after the first error.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields of a message's bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { bytes, at: 0 }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.truncated())?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(format!("byte {}: a number of more than ten bytes", self.at))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| self.truncated())?;
        self.at += taken.len();
        Ok(taken)
    }

    fn truncated(&self) -> String {
        format!("it ends inside a field that begins near byte {} of {}", self.at, self.bytes.len())
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), String> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&n| n != 0 && n < 1 << 29);
        let number =
            number.ok_or_else(|| format!("byte {}: no field can have the number {}", self.at, key >> 3))?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            wire => {
                return Err(format!("byte {}: wire type {wire} is none that protobuf has today", self.at));
            }
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_what_is_wrong_with_them() {
        let read = |bytes: &'static [u8]| Fields::new(bytes).collect::<Result<Vec<_>, _>>();
        assert_eq!(read(&[]), Ok(vec![]));
        assert_eq!(read(&[0x08, 0x96, 0x01]), Ok(vec![(1, Value::Varint(150))]));
        assert_eq!(
            read(&[0x12, 1, 7, 0x1d, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0]),
            Ok(vec![(2, Value::Bytes(&[7])), (3, Value::Fixed), (4, Value::Fixed)])
        );
        assert_eq!(Value::Varint(u64::MAX).int(), Ok(-1));
        for (bytes, wanted) in [
            (&[0x12, 2, 7][..], "ends inside"),
            (&[0x08], "ends inside"),
            (&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "ends inside"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "more than ten"),
            (&[0x00, 0], "no field"),
            (&[0x0b], "wire type 3"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(wanted), "{bytes:?}: {error}");
        }
    }
}
