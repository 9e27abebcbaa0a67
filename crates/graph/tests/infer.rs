//! What each op yields and what it refuses, as HLO text.

use qwix_graph::Graph;

/// Computations that the rows call.
const CALLED: &str = "
add { a = f32[] parameter(0)  b = f32[] parameter(1)  ROOT c = f32[] add(a, b) }
addi { a = s32[] parameter(0)  b = s32[] parameter(1)  ROOT c = s32[] add(a, b) }
lt { a = f32[] parameter(0)  b = f32[] parameter(1)  ROOT c = pred[] compare(a, b), direction=LT }
lt2 { a = f32[] parameter(0)  b = f32[] parameter(1)  c = s32[] parameter(2)  d = s32[] parameter(3)
      ROOT e = pred[] compare(a, b), direction=LT }
arg { a = f32[] parameter(0)  b = s32[] parameter(1)  c = f32[] parameter(2)  d = s32[] parameter(3)
      m = f32[] maximum(a, c)  i = s32[] maximum(b, d)  ROOT t = (f32[], s32[]) tuple(m, i) }
square { a = f32[] parameter(0)  ROOT b = f32[] multiply(a, a) }
small { s = (s32[], f32[4]) parameter(0)  i = s32[] get-tuple-element(s), index=0  n = s32[] constant(9)
        ROOT c = pred[] compare(i, n), direction=LT }
step { s = (s32[], f32[4]) parameter(0)  i = s32[] get-tuple-element(s), index=0
       x = f32[4] get-tuple-element(s), index=1  ROOT t = (s32[], f32[4]) tuple(i, x) }
drop { s = (s32[], f32[4]) parameter(0)  ROOT i = s32[] get-tuple-element(s), index=0 }
vector { x = f32[4] parameter(0)  ROOT y = f32[4] negate(x) }
scalar { x = f32[] parameter(0)  ROOT y = f32[4] broadcast(x), dimensions={} }
";

/// The parameters' types, the instruction (`%0`, `%1` are the parameters), and its fault, or nothing when there is none.
const ROWS: &[(&str, &str, &str)] = &[
    ("f32[2,3]", "f32[2,3] exponential(%0)", ""),
    ("s32[2,3]", "s32[2,3] exponential(%0)", "takes floats, found s32"),
    ("f32[2,3]", "f32[3,2] exponential(%0)", "is declared f32[3,2], should be f32[2,3]"),
    ("f32[2,3]", "pred[2,3] is-finite(%0)", ""),
    ("f32[2]", "f32[2] not(%0)", "takes integers or pred, found f32"),
    ("f32[2]", "f32[2] popcnt(%0)", "takes integers, found f32"),
    ("pred[2]", "pred[2] negate(%0)", "takes numbers, found pred"),
    ("f32[2]; f32[2]", "f32[2] negate(%0, %1)", "takes 1 operands, found 2"),
    ("f32[2]; f32[2]", "f32[2] atan2(%0, %1)", ""),
    ("f32[2]; f32[]", "f32[2] add(%0, %1)", "both operands should have one type, found f32[2] and f32[]"),
    ("f32[2]; f16[2]", "f32[2] add(%0, %1)", "both operands should have one type, found f32[2] and f16[2]"),
    ("pred[2]; pred[2]", "pred[2] add(%0, %1)", ""),
    ("pred[2]; pred[2]", "pred[2] subtract(%0, %1)", "takes numbers, found pred"),
    ("f32[2]; f32[2]", "f32[2] shift-left(%0, %1)", "takes integers, found f32"),
    ("f32[2]; f32[2]", "pred[2] compare(%0, %1), direction=NE", ""),
    ("f32[2]; f32[2]", "f32[2] compare(%0, %1), direction=NE", "is declared f32[2], should be pred[2]"),
    ("pred[]; f32[2]; f32[2]", "f32[2] select(%0, %1, %2)", ""),
    (
        "pred[1]; f32[2]; f32[2]",
        "f32[2] select(%0, %1, %2)",
        "operand 0 should be pred of shape [2] or a scalar, found pred[1]",
    ),
    ("f32[]; f32[2]; f32[]", "f32[2] clamp(%0, %1, %2)", ""),
    (
        "f32[]; f32[2]; f32[1]",
        "f32[2] clamp(%0, %1, %2)",
        "bounds of f32[2] should be alike or scalars of f32, found f32[1]",
    ),
    ("f32[2]", "s4[2] convert(%0)", ""),
    ("f32[2]", "s4[3] convert(%0)", "is declared s4[3], should be s4[2]"),
    ("f32[2]", "u8[2,4] bitcast-convert(%0)", ""),
    ("u8[2,4]", "f32[2] bitcast-convert(%0)", ""),
    ("u8[2,3]", "f32[2] bitcast-convert(%0)", "u8[2,3] to f32 needs a last axis of 4"),
    ("pred[2]", "u8[2] bitcast-convert(%0)", "pred has no bits to share: pred to u8"),
    (
        "f32[2]",
        "f32[2] reduce-precision(%0), exponent_bits=0, mantissa_bits=7",
        "0 exponent bits and 7 of mantissa are no float",
    ),
    ("", "s32[3,4] iota(), iota_dimension=1", ""),
    ("", "s32[3,4] iota(), iota_dimension=2", "counts along axis 2 of s32[3,4]"),
    (
        "",
        "u8[9223372036854775807,9] iota(), iota_dimension=0",
        "u8[9223372036854775807,9] is too large for this machine",
    ),
    ("f32[3]", "f32[2,3] broadcast(%0), dimensions={1}", ""),
    (
        "f32[3]",
        "f32[2,3] broadcast(%0), dimensions={0}",
        "axis 0 of f32[3] becomes axis 0 of [2, 3]: sizes differ",
    ),
    ("f32[3]", "f32[2,3] broadcast(%0), dimensions={}", "0 dimensions for an operand f32[3]"),
    ("f32[3,3]", "f32[3,3] broadcast(%0), dimensions={1,1}", "dimensions [1, 1]: axis 1 comes twice"),
    ("f32[3]", "f32[2,3] broadcast(%0), dimensions={2}", "dimensions [2] of an array of rank 2"),
    ("f32[2,3]", "f32[3,2] reshape(%0)", ""),
    ("f32[2,3]", "f32[7] reshape(%0)", "cannot reshape f32[2,3] into [7]: the numbers of elements differ"),
    ("f32[2,3]", "f32[3,2] transpose(%0), dimensions={1,0}", ""),
    ("f32[2,3]", "f32[3,2] transpose(%0), dimensions={1}", "permutation [1] of f32[2,3]"),
    ("f32[2,3]; f32[2,4]", "f32[2,7] concatenate(%0, %1), dimensions={1}", ""),
    (
        "f32[2,3]; f32[2,4]",
        "f32[4,3] concatenate(%0, %1), dimensions={0}",
        "f32[2,3] and f32[2,4] differ in more than axis 0",
    ),
    ("f32[2]; f32[]", "f32[7] pad(%0, %1), padding=1_2_2", ""),
    ("f32[5]; f32[]", "f32[2] pad(%0, %1), padding=-1_-2", ""),
    ("f32[2]; f32[]", "f32[0] pad(%0, %1), padding=-9_0", "of an axis of 2"),
    (
        "f32[2]; s32[]",
        "f32[2] pad(%0, %1), padding=0_0",
        "the padding value of f32[2] should be a scalar of its dtype, found s32[]",
    ),
    ("f32[2,3]", "f32[2,3] reverse(%0), dimensions={1}", ""),
    ("f32[8]", "f32[2] slice(%0), slice={[1:6:3]}", ""),
    (
        "f32[8]",
        "f32[8] slice(%0), slice={[1:9]}",
        "[1:9:1] along axis 0 of f32[8]: expected 0 <= start <= limit <= 8, stride > 0",
    ),
    (
        "f32[8]",
        "f32[1] slice(%0), slice={[1:2:0]}",
        "[1:2:0] along axis 0 of f32[8]: expected 0 <= start <= limit <= 8, stride > 0",
    ),
    ("f32[8,4]; s32[]; s32[]", "f32[2,4] dynamic-slice(%0, %1, %2), dynamic_slice_sizes={2,4}", ""),
    (
        "f32[8,4]; s32[]",
        "f32[2,4] dynamic-slice(%0, %1), dynamic_slice_sizes={2,4}",
        "takes a start for each of 2 axes, found 1",
    ),
    (
        "f32[8]; f32[]",
        "f32[2] dynamic-slice(%0, %1), dynamic_slice_sizes={2}",
        "a start should be a scalar integer, found f32[]",
    ),
    (
        "f32[8]; s32[]",
        "f32[9] dynamic-slice(%0, %1), dynamic_slice_sizes={9}",
        "a slice of [9] does not fit f32[8]",
    ),
    ("f32[8]; f32[3]; s32[]", "f32[8] dynamic-update-slice(%0, %1, %2)", ""),
    (
        "f32[8]; f32[9]; s32[]",
        "f32[8] dynamic-update-slice(%0, %1, %2)",
        "an update f32[9] does not fit f32[8]",
    ),
    (
        "f32[9,4]; s32[2,3]",
        "f32[2,3,4] gather(%0, %1), offset_dims={2}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=2, slice_sizes={1,4}",
        "",
    ),
    (
        "f32[9,4]; s32[2,1]",
        "f32[4,2] gather(%0, %1), offset_dims={0}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}",
        "",
    ),
    (
        "f32[2,9]; s32[2,3]",
        "f32[2,3] gather(%0, %1), offset_dims={}, collapsed_slice_dims={1}, start_index_map={1}, operand_batching_dims={0}, start_indices_batching_dims={0}, index_vector_dim=2, slice_sizes={1,1}",
        "",
    ),
    (
        "f32[3,9]; s32[2,3]",
        "f32[2,3] gather(%0, %1), offset_dims={}, collapsed_slice_dims={1}, start_index_map={1}, operand_batching_dims={0}, start_indices_batching_dims={0}, index_vector_dim=2, slice_sizes={1,1}",
        "batching dims [0] of f32[3,9] and [0] of indices s32[2,3] do not pair",
    ),
    (
        "f32[9,4]; s32[2,3]",
        "f32[2,3,4] gather(%0, %1), offset_dims={2}, collapsed_slice_dims={1}, start_index_map={0}, index_vector_dim=2, slice_sizes={1,4}",
        "axis 1 is collapsed, but its slice size is 4",
    ),
    (
        "f32[9,4]; s32[2,3]",
        "f32[2,3,4] gather(%0, %1), offset_dims={2}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}",
        "index vectors of 3 for start_index_map [0]",
    ),
    (
        "f32[9,4]; f32[2]",
        "f32[2,4] gather(%0, %1), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}",
        "indices should be integers, found f32[2]",
    ),
    (
        "f32[9,4]; s32[2]; f32[2,4]",
        "f32[9,4] scatter(%0, %1, %2), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=add",
        "",
    ),
    (
        "f32[9,4]; s32[2]; f32[2,3]",
        "f32[9,4] scatter(%0, %1, %2), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=add",
        "",
    ),
    (
        "f32[9,4]; s32[2]; f32[2,5]",
        "f32[9,4] scatter(%0, %1, %2), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=add",
        "updates f32[2,5] do not fit, expected at most [2, 4]",
    ),
    (
        "f32[9,4]; s32[2]; f32[2,4]",
        "f32[9,4] scatter(%0, %1, %2), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=addi",
        "update `addi` should take scalars [F32, F32], takes (s32[], s32[])",
    ),
    ("f32[2,3]; f32[3,4]", "f32[2,4] dot(%0, %1), lhs_contracting_dims={1}, rhs_contracting_dims={0}", ""),
    ("s8[2,3]; s4[3,4]", "s32[2,4] dot(%0, %1), lhs_contracting_dims={1}, rhs_contracting_dims={0}", ""),
    (
        "f32[5,2,3]; f32[3,5,4]",
        "f32[5,2,4] dot(%0, %1), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={1}, rhs_contracting_dims={0}",
        "",
    ),
    (
        "f32[2,3]; f32[3,4]",
        "f32[2,4] dot(%0, %1), lhs_contracting_dims={0}, rhs_contracting_dims={0}",
        "differ in size",
    ),
    (
        "f32[2,3]; f32[3,4]",
        "f32[2,4] dot(%0, %1), lhs_contracting_dims={7}, rhs_contracting_dims={0}",
        "has no axis 7",
    ),
    (
        "f32[2,3]; q[int8 f32[3,4] {_,channelwise} absmax]",
        "f32[2,4] dot(%0, %1), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "",
    ),
    (
        "f32[2,3]; q[int8 f32[3,4] {_,channelwise} absmax]",
        "s32[2,4] dot(%0, %1), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "a product with a quantized side is a float of 16 bits or more, declared s32",
    ),
    (
        "f32[1,8,8,3]; f32[3,3,3,5]",
        "f32[1,4,4,5] convolution(%0, %1), window={size=3x3 stride=2x2 pad=1_0x1_0}, dim_labels=b01f_01io->b01f",
        "",
    ),
    (
        "f32[1,8,6]; f32[3,2,9]",
        "f32[1,8,9] convolution(%0, %1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f, feature_group_count=3",
        "",
    ),
    (
        "f32[1,8,6]; f32[3,3,9]",
        "f32[1,8,9] convolution(%0, %1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f, feature_group_count=3",
        "convolution: ",
    ),
    ("f32[2,3]; f32[]", "f32[3] reduce(%0, %1), dimensions={0}, to_apply=add", ""),
    (
        "f32[2,3]; s32[2,3]; f32[]; s32[]",
        "(f32[2], s32[2]) reduce(%0, %1, %2, %3), dimensions={1}, to_apply=arg",
        "",
    ),
    (
        "f32[2,3]; f32[]",
        "f32[3] reduce(%0, %1), dimensions={0}, to_apply=addi",
        "computation `addi` should take scalars [F32, F32], takes (s32[], s32[])",
    ),
    (
        "f32[2,3]; s32[]",
        "f32[3] reduce(%0, %1), dimensions={0}, to_apply=add",
        "the initial value for f32[2,3] should be f32[], found s32[]",
    ),
    (
        "f32[2,3]; f32[]",
        "f32[3] reduce(%0, %1), dimensions={0,0}, to_apply=add",
        "dimensions [0, 0]: axis 0 comes twice",
    ),
    (
        "f32[2,3]",
        "f32[3] reduce(%0), dimensions={0}, to_apply=add",
        "takes n arrays and n initial values, found 1 operands",
    ),
    ("f32[4,6]; f32[]", "f32[2,5] reduce-window(%0, %1), window={size=2x2 stride=2x1}, to_apply=add", ""),
    (
        "f32[4,6]; f32[]",
        "f32[2,5] reduce-window(%0, %1), window={size=2 stride=2}, to_apply=add",
        "a window of 1 dimensions over f32[4,6]",
    ),
    (
        "f32[4]; f32[2]; f32[]",
        "f32[4] select-and-scatter(%0, %1, %2), window={size=2 stride=2}, select=lt, scatter=add",
        "",
    ),
    (
        "f32[4]; f32[3]; f32[]",
        "f32[4] select-and-scatter(%0, %1, %2), window={size=2 stride=2}, select=lt, scatter=add",
        "the source should be f32[2], found f32[3]",
    ),
    ("f32[4]; s32[4]", "(f32[4], s32[4]) sort(%0, %1), dimensions={0}, to_apply=lt2", ""),
    (
        "f32[4]; s32[5]",
        "(f32[4], s32[5]) sort(%0, %1), dimensions={0}, to_apply=lt2",
        "the operands should have one shape, found f32[4] and s32[5]",
    ),
    (
        "f32[4]",
        "f32[4] sort(%0), dimensions={0}, to_apply=add",
        "comparator `add` yields f32[], expected scalars [Pred]",
    ),
    ("f32[4]", "(f32[3], s32[3]) topk(%0), k=3, largest=true", ""),
    ("f32[4]", "(f32[5], s32[5]) topk(%0), k=5, largest=true", "the 5 largest along the last axis of f32[4]"),
    ("f32[4]", "f32[4] map(%0), dimensions={0}, to_apply=square", ""),
    ("(f32[4], s32[])", "s32[] get-tuple-element(%0), index=1", ""),
    ("(f32[4], s32[])", "s32[] get-tuple-element(%0), index=2", "element 2 of (f32[4], s32[])"),
    ("f32[4]", "f32[4] get-tuple-element(%0), index=0", "operand 0 should be a tuple, found f32[4]"),
    ("(s32[], f32[4])", "(s32[], f32[4]) while(%0), condition=small, body=step", ""),
    (
        "(s32[], f32[5])",
        "(s32[], f32[5]) while(%0), condition=small, body=step",
        "condition `small` takes ((s32[], f32[4])), given ((s32[], f32[5]))",
    ),
    (
        "(s32[], f32[4])",
        "(s32[], f32[4]) while(%0), condition=small, body=drop",
        "body `drop` should yield its state (s32[], f32[4]), yields s32[]",
    ),
    (
        "(s32[], f32[4])",
        "(s32[], f32[4]) while(%0), condition=drop, body=step",
        "condition `drop` should yield pred[], yields s32[]",
    ),
    (
        "pred[]; f32[4]; f32[]",
        "f32[4] conditional(%0, %1, %2), true_computation=vector, false_computation=scalar",
        "",
    ),
    ("s32[]; f32[4]; f32[]", "f32[4] conditional(%0, %1, %2), branch_computations={vector, scalar}", ""),
    (
        "f32[]; f32[4]; f32[]",
        "f32[4] conditional(%0, %1, %2), branch_computations={vector, scalar}",
        "the index should be pred[] or s32[], found f32[]",
    ),
    (
        "s32[]; f32[4]; f32[4]",
        "f32[4] conditional(%0, %1, %2), branch_computations={vector, scalar}",
        "branch `scalar` takes (f32[]), given (f32[4])",
    ),
    ("u64[2]", "(u64[2], u32[5]) rng-bit-generator(%0), algorithm=rng_default", ""),
    (
        "f32[2]",
        "(f32[2], u32[5]) rng-bit-generator(%0), algorithm=rng_default",
        "takes a vector of unsigned integers to integers, found f32[2] to u32[5]",
    ),
    ("f32[2,8]", "q[int8 f32[2,8] {channelwise,_} absmax] quantize(%0)", ""),
    ("f32[2,8]; f32[2,1]", "q[int8 f32[2,8] {channelwise,_} absmax] quantize(%0, %1)", ""),
    (
        "f32[2,8]; f32[1,1]",
        "q[int8 f32[2,8] {channelwise,_} absmax] quantize(%0, %1)",
        "the scale should be f32[2,1], found f32[1,1]",
    ),
    (
        "f32[2,8]; f32[2,1]",
        "q[int8 f32[2,8] {channelwise,_} minmax] quantize(%0, %1)",
        "a zero point is missing or too many",
    ),
    ("f32[2,8]; f32[2,1]; s8[2,1]", "q[int8 f32[2,8] {channelwise,_} minmax] quantize(%0, %1, %2)", ""),
    (
        "f32[2,8]; f32[2,1]; s4[2,1]",
        "q[int8 f32[2,8] {channelwise,_} minmax] quantize(%0, %1, %2)",
        "the zero point should be s8[2,1], found s4[2,1]",
    ),
    (
        "f32[2,8]",
        "q[int8 f32[2,8] {channelwise,tile 3} absmax] quantize(%0)",
        "axis 1 of shape [2, 8] cannot be split into tiles of 3",
    ),
    (
        "s32[2,8]",
        "q[int8 s32[2,8] {channelwise,_} absmax] quantize(%0)",
        "an array of s32 cannot be quantized",
    ),
    ("q[int8 f32[2,8] {channelwise,_} absmax]", "f32[2,8] dequantize(%0)", ""),
    ("f32[2,8]", "f32[2,8] dequantize(%0)", "takes a quantized array, found f32[2,8]"),
    (
        "q[int8 f32[2,8] {channelwise,_} absmax]",
        "f32[2,8] negate(%0)",
        "operand 0 should be an array, found q[int8 f32[2,8] {channelwise,_} absmax]",
    ),
    (
        "q[int8 f32[2,8] {channelwise,tile 4} absmax]",
        "q[int8 f32[1,4] {channelwise,tile 4} absmax] slice(%0), slice={[1:2],[4:8]}",
        "",
    ),
    (
        "q[int8 f32[2,8] {channelwise,tile 0.5x} absmax]",
        "q[int8 f32[2,4] {channelwise,tile 4} absmax] slice(%0), slice={[0:2],[4:8]}",
        "",
    ),
    (
        "q[int8 f32[2,8] {channelwise,tile 4} absmax]",
        "q[int8 f32[2,4] {channelwise,tile 4} absmax] slice(%0), slice={[0:2],[2:6]}",
        "cuts a tile of 4",
    ),
    (
        "q[int8 f32[4,8] {channelwise,_} absmax]; s32[]; s32[]",
        "q[int8 f32[1,8] {channelwise,_} absmax] dynamic-slice(%0, %1, %2), dynamic_slice_sizes={1,8}",
        "",
    ),
    (
        "q[int8 f32[4,8] {channelwise,tile 4} absmax]; s32[]; s32[]",
        "q[int8 f32[1,4] {channelwise,tile 4} absmax] dynamic-slice(%0, %1, %2), dynamic_slice_sizes={1,4}",
        "is in tiles; a dynamic slice of 4 may cut one",
    ),
    (
        "q[int8 f32[1,8,3] {channelwise,_,channelwise} absmax]",
        "q[int8 f32[8,3] {_,channelwise} absmax] reshape(%0)",
        "",
    ),
    (
        "q[int8 f32[8,3] {_,channelwise} absmax]",
        "q[int8 f32[8,1,3] {_,_,channelwise} absmax] reshape(%0)",
        "",
    ),
    (
        "q[int8 f32[8,3] {_,channelwise} absmax]",
        "q[int8 f32[24] {_} absmax] reshape(%0)",
        "can only gain or lose axes of size 1, not become [24]",
    ),
];

#[test]
fn types_of_every_op() {
    let mut wrong = Vec::new();
    for (parameters, instruction, expected) in ROWS {
        let types = parameters.split("; ").filter(|t| !t.is_empty());
        let parameters: String =
            types.enumerate().map(|(i, ty)| format!("  {i} = {ty} parameter({i})\n")).collect();
        let text = format!("HloModule m\n{CALLED}\nENTRY e {{\n{parameters}  ROOT r = {instruction}\n}}\n");
        match (Graph::from_text(&text), *expected) {
            (Ok(_), "") => {}
            (Ok(_), expected) => wrong.push(format!("{instruction}: is taken; expected {expected}")),
            (Err(error), "") => wrong.push(format!("{instruction}: {error}")),
            (Err(error), expected) => {
                let error = error.to_string();
                if !error.starts_with("`r` (") || !error.contains(expected) {
                    wrong.push(format!("{instruction}: {error}; expected {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
}
