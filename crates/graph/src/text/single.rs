//! One instruction without names: `f32[2,4] dot(f32[2,3], f32[3,4]), lhs_contracting_dims={1}, rhs_contracting_dims={0}`.

use std::collections::HashMap;

use super::attributes::{Attributes, dictionary};
use super::instruction::{Known, op_of};
use super::parse::ty;
use super::print::op_attributes;
use super::signature::read;
use crate::{Op, QArrayType, Type};

/// The instruction of an op that calls no computation.
pub(crate) fn op_text(op: &Op, operands: &[&Type], ty: &Type) -> String {
    let operands: Vec<String> = operands.iter().map(|ty| ty.to_string()).collect();
    format!("{ty} {}({}){}", op.name(), operands.join(", "), op_attributes(op))
}

/// The op, the types of its operands and its own type, of what [`op_text`] wrote.
///
/// # Errors
/// Where the text is wrong, and how.
pub(crate) fn read_op(text: &str) -> Result<(Op, Vec<Type>, Type), String> {
    read("instruction", text, |s| {
        let at = s.position();
        let result = ty(s, false, 0)?;
        let opcode = s.expect_word("an op")?;
        s.expect('(')?;
        let mut operands = Vec::new();
        while !s.eat(')') {
            if !operands.is_empty() {
                s.expect(',')?;
            }
            operands.push(ty(s, false, 0)?);
        }
        let attributes = Attributes::scan(s, at)?;
        let types: Vec<&Type> = operands.iter().collect();
        let (op, _) = op_of(opcode, &result, &types, &attributes, &Known::new())?;
        Ok((op, operands, result))
    })
}

/// The quantized type of a text like `q[int8 f32[8,16] {channelwise,_} absmax]`.
///
/// # Errors
/// Where the text is wrong, and how.
pub(crate) fn read_quantized(text: &str) -> Result<QArrayType, String> {
    read("quantized", text, |s| {
        let at = s.position();
        match ty(s, false, 0)? {
            Type::QArray(q) => Ok(q),
            other => Err(s.fault_at(at, format!("expected a quantized type, found {other}"))),
        }
    })
}

/// The texts of `{key = "value", other = "value"}`.
///
/// # Errors
/// Where the text is wrong, and how.
pub(crate) fn read_dictionary(text: &str) -> Result<HashMap<&str, String>, String> {
    read("attributes", text, dictionary)
}
