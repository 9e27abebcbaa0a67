//! The native engine's products as kernels for XLA's programs.

use qwix_array::{Array, DType};
use qwix_cpu::kernels::{BytesDot, CodesDot, DotKernel};
use qwix_graph::ArrayType;
use qwix_pjrt::kernels::{
    Attribute, Attributes, BufferView, BufferViewMut, Call, Handler, Kernel, Kernels, Product,
};
use qwix_quant::QArray;

/// The native engine's products with quantized weights, for [`XlaBackend::with_kernels`](crate::XlaBackend::with_kernels):
/// int8 by int8 and int4, and floats by weights that are dequantized first. XLA's CPU compiler has no fast code for
/// either: one row by an int8 weight takes it many times as long as one row by a float weight.
///
/// Weights stay on the device as the engine packs them, in a byte a number where integers are multiplied; int4 weights of
/// such products take twice the memory that they take without kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeKernels;

/// Bytes by bytes: values, scales and zero points of the left side, then the weight's packed values, sums, scales and
/// zero points.
struct Bytes;

/// Floats by codes: values, then codes, groups of rows, scales, table of numbers, zero points.
struct Codes;

impl Kernels for NativeKernels {
    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::of::<Bytes>(), Handler::of::<Codes>()]
    }

    fn plan(&self, product: &Product) -> Result<Call, String> {
        let kernel = planned(product)?;
        let packed = kernel.packed_types().into_iter().map(|(dtype, shape)| ArrayType::new(dtype, shape));
        let packed = packed.collect();
        let int = |value| i64::try_from(value).map(Attribute::Int).map_err(|_| "it is too large");
        let flag = |value: bool| Attribute::Int(value.into());
        let dtype = |dtype: DType| Attribute::Text(dtype.name().to_owned());
        Ok(match kernel {
            DotKernel::Bytes(kernel) => Call {
                target: Bytes::TARGET,
                attributes: vec![
                    ("left", dtype(kernel.dequantized[0])),
                    ("left_zero_points", flag(kernel.left_zero_points)),
                    ("result", dtype(kernel.result)),
                    ("right", dtype(kernel.dequantized[1])),
                    ("right_zero_points", flag(kernel.right_zero_points)),
                    ("tiles", int(kernel.tiles)?),
                ],
                packed,
            },
            DotKernel::Codes(kernel) => Call {
                target: Codes::TARGET,
                attributes: vec![
                    ("across", int(kernel.strides[2])?),
                    ("between", int(kernel.strides[0])?),
                    ("down", int(kernel.strides[1])?),
                    ("result", dtype(kernel.result)),
                    ("right", dtype(kernel.dequantized)),
                    ("table", flag(kernel.table > 0)),
                    ("zero_points", flag(kernel.zero_points)),
                ],
                packed,
            },
        })
    }

    fn pack(&self, product: &Product, weight: &QArray) -> Result<Vec<Array>, String> {
        planned(product)?.pack(weight).map_err(|e| e.to_string())
    }
}

fn planned(product: &Product) -> Result<DotKernel, String> {
    DotKernel::plan(&product.lhs, &product.weight, &product.dims)
}

impl Kernel for Bytes {
    const TARGET: &'static str = "qwix.dot";

    fn run(
        operands: &[BufferView<'_>],
        results: &mut [BufferViewMut<'_>],
        attributes: &Attributes<'_>,
    ) -> Result<(), String> {
        let mut rest = Operands(operands.iter());
        let values = rest.next()?;
        let scales = rest.next()?.values()?;
        let zero_points = rest.optional(attributes, "left_zero_points")?;
        let weight = rest.next()?.values()?;
        let sums = rest.next()?.values()?;
        let weight_scales = rest.next()?;
        let weight_zero_points = rest.optional(attributes, "right_zero_points")?;
        let (&[batch, rows, depth], &[_, columns]) = (values.shape(), weight_scales.shape()) else {
            return Err("operands of other ranks than it takes".to_owned());
        };
        BytesDot {
            values: values.values()?,
            scales,
            zero_points: zero_points.map(BufferView::values).transpose()?,
            weight,
            sums,
            weight_scales: weight_scales.values()?,
            weight_zero_points: weight_zero_points.map(BufferView::values).transpose()?,
            sizes: [batch, rows, depth, columns],
            tiles: attributes.count("tiles")?,
            dequantized: [dtype(attributes, "left")?, dtype(attributes, "right")?],
            result: dtype(attributes, "result")?,
        }
        .multiply(result(results)?)
        .map_err(|e| e.to_string())
    }
}

impl Kernel for Codes {
    const TARGET: &'static str = "qwix.dot_dequantized";

    fn run(
        operands: &[BufferView<'_>],
        results: &mut [BufferViewMut<'_>],
        attributes: &Attributes<'_>,
    ) -> Result<(), String> {
        let mut rest = Operands(operands.iter());
        let values = rest.next()?;
        let codes = rest.next()?.values()?;
        let group = rest.next()?.values()?;
        let scales = rest.next()?;
        let table = rest.optional(attributes, "table")?;
        let zero_points = rest.optional(attributes, "zero_points")?;
        let (&[batch, rows, depth], &[_, _, columns]) = (values.shape(), scales.shape()) else {
            return Err("operands of other ranks than it takes".to_owned());
        };
        CodesDot {
            values: values.values()?,
            codes,
            group,
            scales: scales.values()?,
            table: table.map_or(Ok(&[][..]), BufferView::values)?,
            zero_points: zero_points.map(BufferView::values).transpose()?,
            sizes: [batch, rows, depth, columns],
            strides: [attributes.count("between")?, attributes.count("down")?, attributes.count("across")?],
            dequantized: dtype(attributes, "right")?,
            result: dtype(attributes, "result")?,
        }
        .multiply(result(results)?)
        .map_err(|e| e.to_string())
    }
}

/// The operands that are not taken yet.
struct Operands<'a, 'b>(std::slice::Iter<'b, BufferView<'a>>);

impl<'a, 'b> Operands<'a, 'b> {
    fn next(&mut self) -> Result<&'b BufferView<'a>, String> {
        self.0.next().ok_or_else(|| "an operand is missing".to_owned())
    }

    /// An operand that is there when an attribute says so.
    fn optional(
        &mut self,
        attributes: &Attributes<'_>,
        name: &str,
    ) -> Result<Option<&'b BufferView<'a>>, String> {
        if attributes.int(name)? == 0 { Ok(None) } else { self.next().map(Some) }
    }
}

fn result<'r>(results: &'r mut [BufferViewMut<'_>]) -> Result<&'r mut [f32], String> {
    results.first_mut().ok_or("the result is missing")?.values_mut()
}

fn dtype(attributes: &Attributes<'_>, name: &str) -> Result<DType, String> {
    let text = attributes.text(name)?;
    DType::all()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| format!("attribute `{name}`: there is no type {text}"))
}
