//! Ops that work element by element.

/// Ops of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum UnaryOp {
    Abs,
    Cbrt,
    Ceil,
    Clz,
    Copy,
    Cos,
    Erf,
    Exp,
    Expm1,
    Floor,
    IsFinite,
    Log,
    Log1p,
    Logistic,
    Negate,
    Not,
    PopulationCount,
    RoundNearestAfz,
    RoundNearestEven,
    Rsqrt,
    Sign,
    Sin,
    Sqrt,
    Tan,
    Tanh,
}

/// Ops of two operands of one shape and dtype.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum BinaryOp {
    Add,
    And,
    Atan2,
    Divide,
    Maximum,
    Minimum,
    Multiply,
    Or,
    Power,
    Remainder,
    ShiftLeft,
    ShiftRightArithmetic,
    ShiftRightLogical,
    Subtract,
    Xor,
}

/// HLO's comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Which order floats are compared in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CompareOrder {
    /// IEEE: NaN is unordered, −0 equals 0. Integers have only this one.
    Partial,
    /// −NaN < −∞ < … < −0 < 0 < … < ∞ < NaN.
    Total,
}

impl UnaryOp {
    const NAMES: [(UnaryOp, &'static str); 25] = [
        (UnaryOp::Abs, "abs"),
        (UnaryOp::Cbrt, "cbrt"),
        (UnaryOp::Ceil, "ceil"),
        (UnaryOp::Clz, "count-leading-zeros"),
        (UnaryOp::Copy, "copy"),
        (UnaryOp::Cos, "cosine"),
        (UnaryOp::Erf, "erf"),
        (UnaryOp::Exp, "exponential"),
        (UnaryOp::Expm1, "exponential-minus-one"),
        (UnaryOp::Floor, "floor"),
        (UnaryOp::IsFinite, "is-finite"),
        (UnaryOp::Log, "log"),
        (UnaryOp::Log1p, "log-plus-one"),
        (UnaryOp::Logistic, "logistic"),
        (UnaryOp::Negate, "negate"),
        (UnaryOp::Not, "not"),
        (UnaryOp::PopulationCount, "popcnt"),
        (UnaryOp::RoundNearestAfz, "round-nearest-afz"),
        (UnaryOp::RoundNearestEven, "round-nearest-even"),
        (UnaryOp::Rsqrt, "rsqrt"),
        (UnaryOp::Sign, "sign"),
        (UnaryOp::Sin, "sine"),
        (UnaryOp::Sqrt, "sqrt"),
        (UnaryOp::Tan, "tan"),
        (UnaryOp::Tanh, "tanh"),
    ];

    /// HLO's name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The op of HLO's name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }
}

impl BinaryOp {
    const NAMES: [(BinaryOp, &'static str); 15] = [
        (BinaryOp::Add, "add"),
        (BinaryOp::And, "and"),
        (BinaryOp::Atan2, "atan2"),
        (BinaryOp::Divide, "divide"),
        (BinaryOp::Maximum, "maximum"),
        (BinaryOp::Minimum, "minimum"),
        (BinaryOp::Multiply, "multiply"),
        (BinaryOp::Or, "or"),
        (BinaryOp::Power, "power"),
        (BinaryOp::Remainder, "remainder"),
        (BinaryOp::ShiftLeft, "shift-left"),
        (BinaryOp::ShiftRightArithmetic, "shift-right-arithmetic"),
        (BinaryOp::ShiftRightLogical, "shift-right-logical"),
        (BinaryOp::Subtract, "subtract"),
        (BinaryOp::Xor, "xor"),
    ];

    /// HLO's name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The op of HLO's name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }
}

impl Comparison {
    /// HLO's name.
    pub fn name(self) -> &'static str {
        match self {
            Comparison::Eq => "EQ",
            Comparison::Ne => "NE",
            Comparison::Lt => "LT",
            Comparison::Le => "LE",
            Comparison::Gt => "GT",
            Comparison::Ge => "GE",
        }
    }

    /// The comparison of HLO's name.
    pub fn by_name(name: &str) -> Option<Self> {
        use Comparison::*;
        [Eq, Ne, Lt, Le, Gt, Ge].into_iter().find(|c| c.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_enums() {
        for (index, row) in UnaryOp::NAMES.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
        }
        for (index, row) in BinaryOp::NAMES.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
        }
    }
}
