//! An [`Op`]'s attributes → an instruction's fields.

use super::{literal, numbers};
use crate::proto::{
    ConvolutionDimensionNumbers, DotDimensionNumbers, GatherDimensionNumbers, HloInstructionProto,
    PaddingConfig, PaddingConfigDimension, PrecisionConfig, ScatterDimensionNumbers, SliceDimensions,
    TYPED_FFI, Window, WindowDimension,
};
use crate::{
    CompareOrder, ConvDims, DotDims, GatherDims, Op, PadDim, Precision, RngAlgorithm, ScatterDims, WindowDim,
    sharding,
};

/// Writes the attributes of an op; opcode, operands and called computations are there already.
///
/// # Errors
/// When HLO has no such op, or the op is one that was read and not understood.
pub(super) fn write_attributes(op: &Op, i: &mut HloInstructionProto) -> Result<(), String> {
    match op {
        Op::Parameter(number) => i.parameter_number = *number as i64,
        Op::Constant(array) => {
            let literal = literal::literal_of(array).map_err(|error| error.to_string())?;
            i.literal = Some(Box::new(literal));
        }
        Op::Iota { dimension } | Op::Concatenate { dimension } => i.dimensions = numbers(&[*dimension]),
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Select
        | Op::Clamp
        | Op::Convert
        | Op::BitcastConvert
        | Op::Reshape
        | Op::DynamicUpdateSlice
        | Op::Tuple
        | Op::While { .. }
        | Op::Conditional { .. }
        | Op::OptimizationBarrier => {}
        Op::Call { composite, .. } => {
            if let Some(composite) = composite {
                i.is_composite = true;
                let map = composite.texts().into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
                i.frontend_attributes = super::frontend_attributes(map);
            }
        }
        Op::Compare { comparison, order } => {
            i.comparison_direction = comparison.name().to_owned();
            if *order == CompareOrder::Total {
                i.comparison_type = "TOTALORDER".to_owned();
            }
        }
        Op::ReducePrecision { exponent_bits, mantissa_bits } => {
            let bits = |bits: u32| i32::try_from(bits).map_err(|_| format!("found {bits} bits"));
            i.exponent_bits = bits(*exponent_bits)?;
            i.mantissa_bits = bits(*mantissa_bits)?;
        }
        Op::Broadcast { dimensions } | Op::Reverse { dimensions } | Op::Reduce { dimensions, .. } => {
            i.dimensions = numbers(dimensions);
        }
        Op::Transpose { permutation } => i.dimensions = numbers(permutation),
        Op::Slice(dims) => {
            let dim = |d: &crate::SliceDim| SliceDimensions {
                start: d.start as i64,
                limit: d.limit as i64,
                stride: d.stride as i64,
            };
            i.slice_dimensions = dims.iter().map(dim).collect();
        }
        Op::DynamicSlice { sizes } => i.dynamic_slice_sizes = numbers(sizes),
        Op::Pad(dims) => {
            let dim = |d: &PadDim| PaddingConfigDimension {
                edge_padding_low: d.low,
                edge_padding_high: d.high,
                interior_padding: d.interior as i64,
            };
            i.padding_config = Some(PaddingConfig { dimensions: dims.iter().map(dim).collect() });
        }
        Op::Gather(dims) => {
            i.gather_slice_sizes = numbers(&dims.slice_sizes);
            i.indices_are_sorted = dims.indices_are_sorted;
            i.gather_dimension_numbers = Some(Box::new(gather(dims)));
        }
        Op::Scatter { dims, .. } => {
            i.indices_are_sorted = dims.indices_are_sorted;
            i.unique_indices = dims.unique_indices;
            i.scatter_dimension_numbers = Some(Box::new(scatter(dims)));
        }
        Op::Dot(dims) => {
            i.dot_dimension_numbers = Some(Box::new(dot(dims)));
            i.precision_config = precision(dims.operand_precision);
        }
        Op::Convolution(dims) => {
            i.window = Some(window(&dims.window));
            i.feature_group_count = dims.feature_group_count as i64;
            i.batch_group_count = dims.batch_group_count as i64;
            i.convolution_dimension_numbers = Some(Box::new(convolution(dims)));
            i.precision_config = precision(dims.operand_precision);
        }
        Op::ReduceWindow { window: dims, .. } | Op::SelectAndScatter { window: dims, .. } => {
            i.window = Some(window(dims));
        }
        Op::Sort { dimension, stable, .. } => {
            i.dimensions = numbers(&[*dimension]);
            i.is_stable = *stable;
        }
        Op::TopK { k, largest } => {
            i.k = *k as i64;
            i.largest = *largest;
        }
        // HLO's map names all axes of its operands.
        Op::Map { .. } => {
            let rank = i.shape.as_ref().map_or(0, |shape| shape.dimensions.len());
            i.dimensions = (0..rank as i64).collect();
        }
        Op::GetTupleElement(index) => i.tuple_index = *index as i64,
        Op::RngBitGenerator(algorithm) => {
            i.rng_algorithm = match algorithm {
                RngAlgorithm::Default => 0,
                RngAlgorithm::ThreeFry => 1,
                RngAlgorithm::Philox => 2,
            }
        }
        Op::Sharding { open } => {
            i.custom_call_target = sharding::TARGET.to_owned();
            i.backend_config = sharding::config_of(open);
            i.custom_call_api_version = sharding::API_VERSION;
        }
        Op::CustomCall(call) if call.typed && call.called.is_empty() => {
            i.custom_call_target.clone_from(&call.target);
            i.backend_config.clone_from(&call.config);
            i.custom_call_api_version = TYPED_FFI;
            i.constrain_layout = true;
        }
        Op::CustomCall(call) => {
            return Err(format!("a call of `{}` cannot be written: not all of it is kept", call.target));
        }
        Op::Unsupported(op) => return Err(format!("it cannot be written: {}", op.reason)),
        Op::Quantize(_) | Op::Dequantize => {
            return Err("HLO has no such op; lower the graph first".to_owned());
        }
    }
    Ok(())
}

fn window(dims: &[WindowDim]) -> Window {
    let dim = |d: &WindowDim| WindowDimension {
        size: d.size as i64,
        stride: d.stride as i64,
        padding_low: d.padding_low,
        padding_high: d.padding_high,
        window_dilation: d.window_dilation as i64,
        base_dilation: d.base_dilation as i64,
        window_reversal: d.reversal,
    };
    Window { dimensions: dims.iter().map(dim).collect() }
}

fn dot(dims: &DotDims) -> DotDimensionNumbers {
    DotDimensionNumbers {
        lhs_contracting_dimensions: numbers(&dims.lhs_contracting),
        rhs_contracting_dimensions: numbers(&dims.rhs_contracting),
        lhs_batch_dimensions: numbers(&dims.lhs_batch),
        rhs_batch_dimensions: numbers(&dims.rhs_batch),
    }
}

/// Left out where it is the default.
fn precision(sides: [Precision; 2]) -> Option<PrecisionConfig> {
    let number = |precision| match precision {
        Precision::Default => 0,
        Precision::High => 1,
        Precision::Highest => 2,
    };
    let given = sides != [Precision::Default; 2];
    given.then(|| PrecisionConfig { operand_precision: sides.map(number).to_vec(), algorithm: 0 })
}

fn convolution(dims: &ConvDims) -> ConvolutionDimensionNumbers {
    ConvolutionDimensionNumbers {
        kernel_input_feature_dimension: dims.kernel_input_feature as i64,
        kernel_output_feature_dimension: dims.kernel_output_feature as i64,
        kernel_spatial_dimensions: numbers(&dims.kernel_spatial),
        input_batch_dimension: dims.input_batch as i64,
        input_feature_dimension: dims.input_feature as i64,
        output_batch_dimension: dims.output_batch as i64,
        output_feature_dimension: dims.output_feature as i64,
        input_spatial_dimensions: numbers(&dims.input_spatial),
        output_spatial_dimensions: numbers(&dims.output_spatial),
    }
}

fn gather(dims: &GatherDims) -> GatherDimensionNumbers {
    GatherDimensionNumbers {
        offset_dims: numbers(&dims.offset_dims),
        collapsed_slice_dims: numbers(&dims.collapsed_slice_dims),
        start_index_map: numbers(&dims.start_index_map),
        index_vector_dim: dims.index_vector_dim as i64,
        operand_batching_dims: numbers(&dims.operand_batching_dims),
        start_indices_batching_dims: numbers(&dims.start_indices_batching_dims),
    }
}

fn scatter(dims: &ScatterDims) -> ScatterDimensionNumbers {
    ScatterDimensionNumbers {
        update_window_dims: numbers(&dims.update_window_dims),
        inserted_window_dims: numbers(&dims.inserted_window_dims),
        scatter_dims_to_operand_dims: numbers(&dims.scatter_dims_to_operand_dims),
        index_vector_dim: dims.index_vector_dim as i64,
        input_batching_dims: numbers(&dims.input_batching_dims),
        scatter_indices_batching_dims: numbers(&dims.scatter_indices_batching_dims),
    }
}
