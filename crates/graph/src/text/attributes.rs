//! Attributes of an instruction: `name=value` after its operands.

use std::collections::HashMap;

use super::scan::{Fault, Scanner};
use crate::{PadDim, Precision, SliceDim, WindowDim};

/// The attributes of one instruction, not read yet.
pub(super) struct Attributes<'a> {
    whole: Scanner<'a>,
    /// Name, where its value begins, and where that ends.
    list: Vec<(&'a str, usize, usize)>,
    /// Where the instruction is, for what is missing.
    at: usize,
}

impl<'a> Attributes<'a> {
    /// Reads `, name=value` as long as there is more.
    pub(super) fn scan(s: &mut Scanner<'a>, at: usize) -> Result<Self, Fault> {
        let mut list = Vec::new();
        while s.eat(',') {
            let name = s.expect_word("an attribute")?;
            s.expect('=')?;
            let (start, end) = s.value()?;
            if start == end {
                return Err(s.expected(&format!("a value for `{name}`")));
            }
            list.push((name, start, end));
        }
        Ok(Attributes { whole: s.clone(), list, at })
    }

    /// A cursor over the value of an attribute.
    pub(super) fn get(&self, name: &str) -> Option<Scanner<'a>> {
        self.list.iter().find(|a| a.0 == name).map(|&(_, start, end)| self.whole.part(start, end))
    }

    pub(super) fn need(&self, name: &str) -> Result<Scanner<'a>, Fault> {
        self.get(name).ok_or_else(|| self.fault(format!("the attribute `{name}` is missing")))
    }

    /// A value as it stands.
    pub(super) fn raw(&self, name: &str) -> Option<&'a str> {
        self.list.iter().find(|a| a.0 == name).map(|&(_, start, end)| self.whole.slice((start, end)))
    }

    pub(super) fn fault(&self, reason: String) -> Fault {
        self.whole.fault_at(self.at, reason)
    }

    /// The values by key of `{key="value" other=2}`; separators may be blanks or commas. Of two with one key the first
    /// counts.
    pub(super) fn strings(&self, name: &str) -> Result<HashMap<&'a str, String>, Fault> {
        self.get(name).map_or(Ok(HashMap::new()), |mut s| dictionary(&mut s))
    }

    /// The value of one key of these.
    pub(super) fn string_in(&self, name: &str, key: &str) -> Result<Option<String>, Fault> {
        Ok(self.strings(name)?.remove(key))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.raw(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                let mut s = self.need(name)?;
                let at = s.position();
                Err(s.fault_at(at, format!("`{name}`: expected true or false, found `{other}`")))
            }
        }
    }

    pub(super) fn count(&self, name: &str) -> Result<usize, Fault> {
        whole(self.need(name)?, |s| s.count())
    }

    /// `{0,1}`, or empty when there is no such attribute.
    pub(super) fn counts(&self, name: &str) -> Result<Vec<usize>, Fault> {
        match self.get(name) {
            Some(s) => whole(s, counts),
            None => Ok(Vec::new()),
        }
    }

    /// `{0,1}`.
    pub(super) fn need_counts(&self, name: &str) -> Result<Vec<usize>, Fault> {
        whole(self.need(name)?, counts)
    }

    /// `{2}`.
    pub(super) fn one(&self, name: &str) -> Result<usize, Fault> {
        match self.need_counts(name)?.as_slice() {
            [one] => Ok(*one),
            list => Err(self.fault(format!("`{name}` should be one axis, found {list:?}"))),
        }
    }

    /// `{highest,default}`, one for each side of a product; the default when there is no such attribute.
    pub(super) fn precision(&self) -> Result<[Precision; 2], Fault> {
        let Some(s) = self.get("operand_precision") else { return Ok([Precision::Default; 2]) };
        let list = whole(s, |s| {
            braces(s, |s| {
                let at = s.position();
                let name = s.expect_word("a precision")?;
                let known = Precision::ALL.into_iter().find(|precision| precision.name() == name);
                known.ok_or_else(|| {
                    s.fault_at(at, format!("expected default, high or highest, found `{name}`"))
                })
            })
        })?;
        <[Precision; 2]>::try_from(list)
            .map_err(|list| self.fault(format!("a product has 2 sides, found {} precisions", list.len())))
    }

    /// `{[0:2], [1:9:2]}`.
    pub(super) fn slice(&self) -> Result<Vec<SliceDim>, Fault> {
        whole(self.need("slice")?, |s| {
            braces(s, |s| {
                s.expect('[')?;
                let start = s.count()?;
                s.expect(':')?;
                let limit = s.count()?;
                let stride = if s.eat(':') { s.count()? } else { 1 };
                s.expect(']')?;
                Ok(SliceDim { start, limit, stride })
            })
        })
    }

    /// `0_1x2_2_1`.
    pub(super) fn padding(&self) -> Result<Vec<PadDim>, Fault> {
        let Some(s) = self.get("padding") else { return Ok(Vec::new()) };
        whole(s, |s| {
            by_axis(s, |s| {
                let low = s.signed()?;
                s.expect('_')?;
                let high = s.signed()?;
                let interior = if s.eat('_') { s.count()? } else { 0 };
                Ok(PadDim { low, high, interior })
            })
        })
    }

    /// `{size=3x3 stride=2x2 pad=0_1x0_1}`, or no axes when there is no such attribute.
    pub(super) fn window(&self) -> Result<Vec<WindowDim>, Fault> {
        let Some(mut s) = self.get("window") else { return Ok(Vec::new()) };
        s.expect('{')?;
        let mut dims: Vec<WindowDim> = Vec::new();
        while !s.eat('}') {
            let at = s.position();
            let key = s.expect_word("a part of the window")?;
            s.expect('=')?;
            if key == "size" {
                dims = by_axis(&mut s, |s| Ok(WindowDim::new(s.count()?)))?;
                continue;
            }
            let values = by_axis(&mut s, |s| {
                let low = s.signed()?;
                Ok((low, if key == "pad" { s.expect('_').and_then(|()| s.signed())? } else { 0 }))
            })?;
            if values.len() != dims.len() {
                let reason =
                    format!("{} values of `{key}` for a window of {} axes", values.len(), dims.len());
                return Err(s.fault_at(at, reason));
            }
            for (dim, (value, high)) in dims.iter_mut().zip(values) {
                let size = usize::try_from(value)
                    .map_err(|_| s.fault_at(at, format!("`{key}`: expected 0 or more, found {value}")));
                match key {
                    "stride" => dim.stride = size?,
                    "pad" => (dim.padding_low, dim.padding_high) = (value, high),
                    "lhs_dilate" => dim.base_dilation = size?,
                    "rhs_dilate" => dim.window_dilation = size?,
                    "rhs_reversal" => dim.reversal = value != 0,
                    other => {
                        return Err(s.fault_at(at, format!("a window has no `{other}`")));
                    }
                }
            }
        }
        Ok(dims)
    }
}

/// `{key="value" other=2}`.
pub(super) fn dictionary<'a>(s: &mut Scanner<'a>) -> Result<HashMap<&'a str, String>, Fault> {
    let mut found = HashMap::new();
    s.expect('{')?;
    while !s.eat('}') {
        let key = s.expect_word("a key")?;
        s.expect('=')?;
        let value = if s.peek() == Some('"') {
            s.text_string()?
        } else {
            let value = s.value()?;
            s.slice(value).to_owned()
        };
        found.entry(key).or_insert(value);
        s.eat(',');
    }
    Ok(found)
}

/// A value that must be all there is.
fn whole<'a, T>(
    mut s: Scanner<'a>,
    f: impl FnOnce(&mut Scanner<'a>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let value = f(&mut s)?;
    if s.done() { Ok(value) } else { Err(s.expected("the end of the attribute")) }
}

/// Things in braces, commas between them.
pub(super) fn braces<'a, T>(
    s: &mut Scanner<'a>,
    mut f: impl FnMut(&mut Scanner<'a>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    s.expect('{')?;
    let mut list = Vec::new();
    while !s.eat('}') {
        if !list.is_empty() {
            s.expect(',')?;
        }
        list.push(f(s)?);
    }
    Ok(list)
}

pub(super) fn counts(s: &mut Scanner<'_>) -> Result<Vec<usize>, Fault> {
    braces(s, |s| s.count())
}

/// One value an axis, `x` between them.
fn by_axis<'a, T>(
    s: &mut Scanner<'a>,
    mut f: impl FnMut(&mut Scanner<'a>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut list = vec![f(s)?];
    while s.eat('x') {
        list.push(f(s)?);
    }
    Ok(list)
}
