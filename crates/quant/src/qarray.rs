//! The quantized array.

use qwix_array::{Array, DType};

use crate::{QType, QuantError};

/// Values of a [`QType`] with the scales that make numbers of them; valid by construction.
///
/// original ≈ (qvalue − zero_point) · scale, where scale and zero point have the rank of qvalue, each of their
/// dimensions divides qvalue's, and an entry serves a whole tile.
#[derive(Clone, PartialEq, Debug)]
pub struct QArray {
    qvalue: Array,
    scale: Array,
    zero_point: Option<Array>,
    qtype: &'static QType,
}

impl QArray {
    /// Puts the parts together.
    ///
    /// # Errors
    /// When dtypes or shapes do not fit each other.
    pub fn new(
        qvalue: Array,
        scale: Array,
        zero_point: Option<Array>,
        qtype: &'static QType,
    ) -> Result<Self, QuantError> {
        if qvalue.dtype() != qtype.storage {
            return Err(QuantError::Invalid(format!(
                "qvalue of {qtype} is stored as {}, found {}",
                qtype.storage,
                qvalue.dtype()
            )));
        }
        if !scale.dtype().is_wide_float() {
            return Err(QuantError::Invalid(format!("a scale cannot be {}", scale.dtype())));
        }
        fits("scale", &scale, &qvalue)?;
        if let Some(zero_point) = &zero_point {
            fits("zero point", zero_point, &qvalue)?;
            if zero_point.dtype() != qvalue.dtype() {
                return Err(QuantError::Invalid(format!(
                    "zero point should be {} as qvalue is, found {}",
                    qvalue.dtype(),
                    zero_point.dtype()
                )));
            }
        }
        Ok(QArray { qvalue, scale, zero_point, qtype })
    }

    /// The stored values, of the original's shape.
    pub fn qvalue(&self) -> &Array {
        &self.qvalue
    }

    /// The scales.
    pub fn scale(&self) -> &Array {
        &self.scale
    }

    /// What stands for 0 in asymmetric quantization.
    pub fn zero_point(&self) -> Option<&Array> {
        self.zero_point.as_ref()
    }

    /// The logical type.
    pub fn qtype(&self) -> &'static QType {
        self.qtype
    }

    /// The original's shape.
    pub fn shape(&self) -> &[usize] {
        self.qvalue.shape()
    }

    /// The dtype of the numbers that this array stands for: the scale's.
    pub fn dtype(&self) -> DType {
        self.scale.dtype()
    }
}

fn fits(what: &str, part: &Array, qvalue: &Array) -> Result<(), QuantError> {
    let ok = part.rank() == qvalue.rank()
        && qvalue.shape().iter().zip(part.shape()).all(|(&q, &p)| if p == 0 { q == 0 } else { q % p == 0 });
    if ok {
        Ok(())
    } else {
        Err(QuantError::Invalid(format!(
            "{what} of shape {:?} does not divide qvalue of shape {:?}",
            part.shape(),
            qvalue.shape()
        )))
    }
}
