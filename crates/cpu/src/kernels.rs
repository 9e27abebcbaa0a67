//! The engine's products with quantized weights, for callers that have bare memory: another runtime that calls out
//! where its own kernels are slow.
//!
//! [`DotKernel::plan`] says whether there is a kernel for a product and [`DotKernel::pack`] makes of a weight what the
//! kernel reads, once; [`BytesDot`] and [`CodesDot`] then compute the product from slices, as the engine does.

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_quant::{Codec, DotDims, DotPlan, OperandInfo, QArray, QuantizedDot, QuantizedInfo, dot_plan};
use qwix_simd::Packed;

use crate::steps::dot::{Side, Sizes, sizes};
use crate::steps::integers::{Integers, Left, Right};
use crate::steps::qdot::{ByteSide, check, in_place, is_byte, pack, right_axes, right_axes_of, right_scales};
use crate::steps::scales::{Rounding, round};
use crate::steps::weights::{Codebook, Codes, Weight};
use crate::values::fail;

/// A kernel for one product: an activation on the left, a quantized weight on the right.
#[derive(Clone, Debug)]
pub enum DotKernel {
    /// Bytes by bytes, summed in int32: [`BytesDot`].
    Bytes(BytesKernel),
    /// Floats by codes that are dequantized a panel at a time: [`CodesDot`].
    Codes(CodesKernel),
}

/// How bytes are multiplied by bytes.
#[derive(Clone, Debug)]
pub struct BytesKernel {
    plan: Box<QuantizedDot>,
    weight: OperandInfo,
    sizes: Sizes,
    /// How many products are summed for one of the result: of the batch the last.
    pub tiles: usize,
    /// What the left side and the weight dequantize to.
    pub dequantized: [DType; 2],
    /// What the result is rounded to.
    pub result: DType,
    /// Whether the left side has zero points.
    pub left_zero_points: bool,
    /// Whether the weight has zero points.
    pub right_zero_points: bool,
}

/// How floats are multiplied by codes.
#[derive(Clone, Debug)]
pub struct CodesKernel {
    dims: DotDims,
    weight: OperandInfo,
    side: Side,
    sizes: Sizes,
    groups: usize,
    /// How many numbers there are in the table of codes: 0 where codes are their own numbers.
    pub table: usize,
    /// From one matrix of the weight to the next, from a row to the next, from a column to the next; in codes.
    pub strides: [usize; 3],
    /// What the weight dequantizes to.
    pub dequantized: DType,
    /// What the result is rounded to.
    pub result: DType,
    /// Whether the weight has zero points.
    pub zero_points: bool,
}

impl DotKernel {
    /// The kernel of a product.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn plan(lhs: &OperandInfo, weight: &OperandInfo, dims: &DotDims) -> Result<Self, String> {
        let Some(quantized) = &weight.quantized else { return Err("its right side is not quantized".into()) };
        if lhs.shape.contains(&0) || weight.shape.contains(&0) {
            return Err("it has no elements".into());
        }
        match dot_plan(lhs, weight, dims, None).map_err(|e| e.to_string())? {
            DotPlan::Multiply(plan) => BytesKernel::plan(lhs, weight, plan).map(DotKernel::Bytes),
            DotPlan::Dequantize { result, .. } => {
                if lhs.quantized.is_some() {
                    return Err("both sides are dequantized first".into());
                }
                CodesKernel::plan(lhs, weight, quantized, dims, result).map(DotKernel::Codes)
            }
        }
    }

    /// The types of what [`DotKernel::pack`] gives.
    pub fn packed_types(&self) -> Vec<(DType, Vec<usize>)> {
        match self {
            DotKernel::Bytes(kernel) => kernel.packed_types(),
            DotKernel::Codes(kernel) => kernel.packed_types(),
        }
    }

    /// What the kernel reads in place of the weight.
    ///
    /// # Errors
    /// When the weight is of another type than the one that was planned for.
    pub fn pack(&self, weight: &QArray) -> Result<Vec<Array>, EvalError> {
        let arrays = match self {
            DotKernel::Bytes(kernel) => kernel.pack(weight)?,
            DotKernel::Codes(kernel) => kernel.pack(weight)?,
        };
        let types = arrays.iter().map(|a| (a.dtype(), a.shape().to_vec())).collect::<Vec<_>>();
        if types == self.packed_types() { Ok(arrays) } else { Err(fail("a weight packs to other types")) }
    }
}

impl BytesKernel {
    fn plan(lhs: &OperandInfo, weight: &OperandInfo, plan: Box<QuantizedDot>) -> Result<Self, String> {
        let Some(left) = &lhs.quantized else { return Err("its left side is not quantized".into()) };
        if !is_byte(lhs.value_dtype()) || !is_byte(weight.value_dtype()) || plan.accumulator != DType::S32 {
            return Err(format!("{} by {} has no int8 kernel", lhs.value_dtype(), weight.value_dtype()));
        }
        let floats = [lhs.dtype, weight.dtype, plan.result];
        if Rounding::new(plan.accumulator, Some(lhs.dtype), Some(weight.dtype)).is_none()
            || !floats.into_iter().all(is_narrow)
        {
            return Err(format!("{} by {} is not scaled here", lhs.dtype, weight.dtype));
        }
        let sizes = sizes(&plan.dims, &plan.lhs.shape, &plan.rhs.shape);
        Packed::sizes(sizes.depth, sizes.columns).ok_or("it is too large")?;
        Ok(BytesKernel {
            sizes,
            tiles: plan.sum_axes.iter().map(|&axis| plan.product_shape[axis]).product(),
            dequantized: [lhs.dtype, weight.dtype],
            result: plan.result,
            left_zero_points: left.has_zero_point,
            right_zero_points: plan.rhs.zero_point.is_some(),
            weight: weight.clone(),
            plan,
        })
    }

    fn packed_types(&self) -> Vec<(DType, Vec<usize>)> {
        let Sizes { batch, depth, columns, .. } = self.sizes;
        let (bytes, sums) = Packed::sizes(depth, columns).unwrap_or_default();
        let mut types = vec![
            (DType::S8, vec![batch, bytes]),
            (DType::S32, vec![batch, sums]),
            (DType::F32, vec![batch, columns]),
        ];
        if self.right_zero_points {
            types.push((DType::S32, vec![batch, columns]));
        }
        types
    }

    fn pack(&self, weight: &QArray) -> Result<Vec<Array>, EvalError> {
        let value = Value::QArray(weight.clone());
        check(&value, &self.weight)?;
        let Sizes { batch, depth, columns, .. } = self.sizes;
        let own = right_axes(&self.plan.dims);
        let side = ByteSide::new(&self.plan.rhs.shape, &own, (batch, columns, depth), false)
            .ok_or_else(|| fail("a weight cannot be packed"))?;
        let panels = pack(weight.qvalue(), &side, self.sizes)?;
        let data: Vec<i8> = panels.iter().flat_map(|p| p.view().data()).copied().collect();
        let sums: Vec<i32> = panels.iter().flat_map(|p| p.view().sums()).copied().collect();
        let (scales, zero_points) = right_scales(&self.plan, self.sizes, &value)?;
        let mut arrays = vec![
            Array::from_vec(&[batch, data.len() / batch], data)?,
            Array::from_vec(&[batch, sums.len() / batch], sums)?,
            Array::from_vec(&[batch, columns], scales)?,
        ];
        if let Some(zero_points) = zero_points {
            arrays.push(Array::from_vec(&[batch, columns], zero_points)?);
        }
        Ok(arrays)
    }
}

impl CodesKernel {
    fn plan(
        lhs: &OperandInfo,
        weight: &OperandInfo,
        quantized: &QuantizedInfo,
        dims: &DotDims,
        result: DType,
    ) -> Result<Self, String> {
        if ![lhs.dtype, weight.dtype, result].into_iter().all(is_narrow) {
            return Err(format!("{} by {} is not multiplied here", lhs.dtype, weight.dtype));
        }
        let table = match (quantized.qtype.storage.bits(), quantized.qtype.codec) {
            (8, Codec::Int { .. }) => 0,
            (8, _) => 256,
            (4, _) => 16,
            _ => return Err(format!("{} has no table of codes", quantized.qtype)),
        };
        let scattered = "the weight's axes do not lie one behind the other";
        let side = in_place(&weight.shape, &right_axes(dims)).ok_or(scattered)?;
        let between = side.batch_stride().ok_or(scattered)?;
        Ok(CodesKernel {
            dims: dims.clone(),
            sizes: sizes(dims, &lhs.shape, &weight.shape),
            groups: dims.rhs_contracting.iter().map(|&axis| quantized.scale_shape[axis]).product(),
            table,
            strides: [between, side.contracted() as usize, side.free() as usize],
            side,
            dequantized: weight.dtype,
            result,
            zero_points: quantized.has_zero_point,
            weight: weight.clone(),
        })
    }

    fn packed_types(&self) -> Vec<(DType, Vec<usize>)> {
        let Sizes { batch, depth, columns, .. } = self.sizes;
        let codes = batch * depth * columns;
        let bytes = if self.table == 16 { codes.div_ceil(2) } else { codes };
        let scales = vec![batch, self.groups, columns];
        let mut types =
            vec![(DType::U8, vec![bytes]), (DType::U32, vec![depth]), (DType::F32, scales.clone())];
        if self.table > 0 {
            types.push((DType::F32, vec![self.table]));
        }
        if self.zero_points {
            types.push((DType::F32, scales));
        }
        types
    }

    fn pack(&self, weight: &QArray) -> Result<Vec<Array>, EvalError> {
        check(&Value::QArray(weight.clone()), &self.weight)?;
        let axes = right_axes_of(&self.dims, self.weight.shape.len());
        let ready = Weight::new(weight, self.side.clone(), &axes, self.sizes)
            .ok_or_else(|| fail("a weight's codes have no table"))?;
        let scales = [self.sizes.batch, self.groups, self.sizes.columns];
        let codes = ready.codes.bytes();
        let mut arrays = vec![
            Array::from_vec(&[codes.len()], codes.to_vec())?,
            Array::from_vec(&[ready.group.len()], ready.group)?,
            Array::from_vec(&scales, ready.scales)?,
        ];
        if !ready.table.is_empty() {
            arrays.push(Array::from_vec(&[ready.table.len()], ready.table)?);
        }
        if let Some(zero_points) = ready.zero_points {
            arrays.push(Array::from_vec(&scales, zero_points)?);
        }
        Ok(arrays)
    }
}

/// Whether f32 holds all values of a float dtype.
fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// A product of bytes by a packed weight. Slices are dense, in the order of the axes named.
#[derive(Clone, Copy, Debug)]
pub struct BytesDot<'a> {
    /// The left side's values: [batch, rows, depth].
    pub values: &'a [i8],
    /// The left side's scales: [batch, rows].
    pub scales: &'a [f32],
    /// Its zero points: [batch, rows].
    pub zero_points: Option<&'a [i32]>,
    /// The weight's packed values: a matrix for each of the batch.
    pub weight: &'a [i8],
    /// The sums of its columns.
    pub sums: &'a [i32],
    /// The weight's scales: [batch, columns].
    pub weight_scales: &'a [f32],
    /// Its zero points: [batch, columns].
    pub weight_zero_points: Option<&'a [i32]>,
    /// batch, rows, depth, columns.
    pub sizes: [usize; 4],
    /// As [`BytesKernel::tiles`].
    pub tiles: usize,
    /// As [`BytesKernel::dequantized`].
    pub dequantized: [DType; 2],
    /// As [`BytesKernel::result`].
    pub result: DType,
}

impl BytesDot<'_> {
    /// Sets `out`, [batch / tiles, rows, columns], to the product. Uses several threads where it is worth it.
    ///
    /// # Errors
    /// When slices and sizes do not fit each other.
    pub fn multiply(&self, out: &mut [f32]) -> Result<(), EvalError> {
        let [batch, rows, depth, columns] = self.sizes;
        let wrong = || fail("an operand has not its type's size");
        count(&[batch, rows, depth])?;
        count(&[batch, depth, columns])?;
        count(&[batch, rows, columns])?;
        let [left, right] = self.dequantized;
        let rounding = Rounding::new(DType::S32, Some(left), Some(right)).ok_or_else(wrong)?;
        let (bytes, sums) = Packed::sizes(depth, columns).ok_or_else(wrong)?;
        let panels = (0..batch)
            .map(|b| {
                let data = self.weight.get(b * bytes..(b + 1) * bytes)?;
                Packed::new(data, self.sums.get(b * sums..(b + 1) * sums)?, depth, columns)
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wrong)?;
        let starts: Vec<usize> = (0..batch).map(|b| b * rows * depth).collect();
        let integers = Integers {
            left: Left {
                values: self.values,
                starts: &starts,
                stride: depth,
                scales: self.scales,
                zero_points: self.zero_points,
            },
            right: Right {
                panels: &panels,
                scales: self.weight_scales,
                zero_points: self.weight_zero_points,
            },
            sizes: Sizes { batch, rows, depth, columns },
            tiles: self.tiles,
            rounding,
        };
        integers.multiply(out)?;
        round(out, self.result);
        Ok(())
    }
}

/// A product of floats by a weight's codes. Slices are dense, in the order of the axes named.
#[derive(Clone, Copy, Debug)]
pub struct CodesDot<'a> {
    /// The left side: [batch, rows, depth].
    pub values: &'a [f32],
    /// The weight's codes as they are stored, packed where they are narrower than a byte.
    pub codes: &'a [u8],
    /// The group of each row of the weight.
    pub group: &'a [u32],
    /// The weight's scales: [batch, groups, columns].
    pub scales: &'a [f32],
    /// The number of each code: of 16 or 256; empty where codes are their own numbers.
    pub table: &'a [f32],
    /// The weight's zero points, as its scales.
    pub zero_points: Option<&'a [f32]>,
    /// batch, rows, depth, columns.
    pub sizes: [usize; 4],
    /// As [`CodesKernel::strides`].
    pub strides: [usize; 3],
    /// As [`CodesKernel::dequantized`].
    pub dequantized: DType,
    /// As [`CodesKernel::result`].
    pub result: DType,
}

impl CodesDot<'_> {
    /// Sets `out`, [batch, rows, columns], to the product. Uses several threads where it is worth it.
    ///
    /// # Errors
    /// When slices and sizes do not fit each other.
    pub fn multiply(&self, out: &mut [f32]) -> Result<(), EvalError> {
        let [batch, rows, depth, columns] = self.sizes;
        let wrong = || fail("an operand has not its type's size");
        let codes = Codes::new(self.codes, self.table).ok_or_else(wrong)?;
        let groups = self.scales.len() / count(&[batch, columns])?.max(1);
        let last = [batch, depth, columns].iter().zip(self.strides).try_fold(0usize, |last, (&n, stride)| {
            last.checked_add(n.saturating_sub(1).checked_mul(stride)?)
        });
        let stored = if self.table.len() == 16 { 2 * self.codes.len() } else { self.codes.len() };
        let fits = self.values.len() == count(&[batch, rows, depth])?
            && out.len() == count(&[batch, rows, columns])?
            && self.group.len() == depth
            && self.group.iter().all(|&group| (group as usize) < groups)
            && self.scales.len() == count(&[batch, groups, columns])?
            && self.zero_points.is_none_or(|z| z.len() == self.scales.len())
            && last.is_some_and(|last| last < stored);
        if !fits {
            return Err(wrong());
        }
        let [between, down, across] = self.strides;
        let weight = Codebook {
            codes,
            side: &Side::strided(batch, between, across, down),
            scales: self.scales,
            zero_points: self.zero_points,
            group: self.group,
            groups,
            dtype: self.dequantized,
        };
        let lhs = Side::dense(batch, rows, depth);
        weight.multiply(self.values, &lhs, Sizes { batch, rows, depth, columns }, out)?;
        round(out, self.result);
        Ok(())
    }
}

fn count(sizes: &[usize]) -> Result<usize, EvalError> {
    qwix_array::element_count(sizes).ok_or_else(|| fail("a product is too large"))
}
