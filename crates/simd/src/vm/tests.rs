use super::*;

fn bytes<T: bytemuck::Pod>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn run<T: bytemuck::Pod>(program: &Program, inputs: &[Source<'_>], count: usize) -> Vec<T> {
    let mut out = vec![T::zeroed(); count];
    let mut scratch = program.scratch(count);
    for _ in 0..2 {
        program.run(&mut scratch, inputs, &mut [bytemuck::cast_slice_mut(&mut out)], count);
    }
    out
}

#[test]
fn a_chain_reuses_registers_and_keeps_what_lives() {
    // ((x + y) · x, then many adds of y, then select by a comparison with the first sum)
    let mut b = Builder::new(&[Num::F32, Num::F32]);
    let sum = b.push(Instr::Binary { op: Binary::Add, num: Num::F32, a: 0, b: 1 });
    let mut v = b.push(Instr::Binary { op: Binary::Multiply, num: Num::F32, a: sum, b: 0 });
    for _ in 0..10 {
        v = b.push(Instr::Binary { op: Binary::Add, num: Num::F32, a: v, b: 1 });
    }
    let mask = b.push(Instr::Compare { compare: Compare::Gt, total: false, num: Num::F32, a: v, b: sum });
    let out = b.push(Instr::Select { num: Num::F32, mask, a: v, b: sum });
    let program = b.finish(&[out]);
    assert!(program.registers <= 6, "{}", program.registers);
    let x: Vec<f32> = (0..37).map(|i| i as f32 - 18.0).collect();
    let found: Vec<f32> = run(&program, &[Source::Block(bytes(&x)), Source::Splat(bytes(&[0.5f32]))], 37);
    let expected: Vec<f32> = x.iter().map(|&x| ((x + 0.5) * x + 5.0).max(x + 0.5)).collect();
    assert_eq!(found, expected);
}

#[test]
fn narrow_types_round_and_wrap_at_each_step() {
    let mut b = Builder::new(&[Num::BF16, Num::BF16]);
    let sum = b.push(Instr::Binary { op: Binary::Add, num: Num::BF16, a: 0, b: 1 });
    let out = b.push(Instr::Binary { op: Binary::Subtract, num: Num::BF16, a: sum, b: 0 });
    let program = b.finish(&[out]);
    let (x, y) = (half::bf16::from_f32(256.0), half::bf16::from_f32(0.75));
    let found: Vec<half::bf16> = run(&program, &[Source::Block(bytes(&[x])), Source::Splat(bytes(&[y]))], 1);
    assert_eq!(found[0].to_f32(), 0.0);

    let mut b = Builder::new(&[Num::S8, Num::S8]);
    let sum = b.push(Instr::Binary { op: Binary::Add, num: Num::S8, a: 0, b: 1 });
    let out = b.push(Instr::Binary { op: Binary::ShiftRightLogical, num: Num::S8, a: sum, b: 1 });
    let program = b.finish(&[out]);
    let found: Vec<i8> = run(&program, &[Source::Block(bytes(&[127i8])), Source::Block(bytes(&[1i8]))], 1);
    assert_eq!(found, [64]);
}

#[test]
fn integers_follow_xla_at_the_edges() {
    let rows = [
        (Binary::Divide, 7, 0, -1),
        (Binary::Divide, i32::MIN, -1, i32::MIN),
        (Binary::Remainder, 7, 0, 7),
        (Binary::Remainder, i32::MIN, -1, 0),
        (Binary::ShiftLeft, 1, 32, 0),
        (Binary::ShiftRightArithmetic, -8, 40, -1),
        (Binary::ShiftRightLogical, -1, 28, 15),
        (Binary::Power, 3, 4, 81),
        (Binary::Power, 2, -1, 0),
        (Binary::Maximum, -3, 2, 2),
        (Binary::Add, i32::MAX, 1, i32::MIN),
    ];
    let mut failures = Vec::new();
    for (op, x, y, expected) in rows {
        let mut b = Builder::new(&[Num::S32, Num::S32]);
        let out = b.push(Instr::Binary { op, num: Num::S32, a: 0, b: 1 });
        let found: Vec<i32> =
            run(&b.finish(&[out]), &[Source::Block(bytes(&[x])), Source::Block(bytes(&[y]))], 1);
        if found != [expected] {
            failures.push((op, x, y, expected, found));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn conversions_saturate_wrap_and_round() {
    fn convert<A: bytemuck::Pod, R: bytemuck::Pod>(from: Num, to: Num, v: A) -> R {
        let mut b = Builder::new(&[from]);
        let out = b.push(Instr::Convert { from, to, a: 0 });
        run::<R>(&b.finish(&[out]), &[Source::Block(bytes(&[v]))], 1)[0]
    }
    assert_eq!(convert::<f32, i8>(Num::F32, Num::S8, 300.7), 127);
    assert_eq!(convert::<f32, i8>(Num::F32, Num::S8, f32::NAN), 0);
    assert_eq!(convert::<f32, i32>(Num::F32, Num::S32, -2.9), -2);
    assert_eq!(convert::<f32, u8>(Num::F32, Num::Pred, 0.25), 1);
    assert_eq!(convert::<i32, i8>(Num::S32, Num::S8, 300), 44);
    assert_eq!(convert::<i32, u64>(Num::S32, Num::U64, -1), u64::MAX);
    assert_eq!(convert::<i64, f32>(Num::S64, Num::F32, i64::MAX), 9.223_372e18);
    // By way of f32, as XLA does: 2^24 + 2^16 + 1 becomes a bf16 tie there, and goes to the even side.
    let found: u16 = convert(Num::S32, Num::BF16, (1 << 24) + (1 << 16) + 1);
    assert_eq!(half::bf16::from_bits(found).to_f32(), 16777216.0);
}

#[test]
fn every_level_of_the_machine_gives_one_answer() {
    let x: Vec<f32> = (0..BLOCK).map(|i| (i as f32 - 200.0) / 17.0).collect();
    for op in [Unary::Exp, Unary::Tanh, Unary::Erf, Unary::Logistic, Unary::Log, Unary::Sqrt, Unary::Rsqrt] {
        let mut b = Builder::new(&[Num::F32]);
        let out = b.push(Instr::Unary { op, num: Num::F32, a: 0 });
        let program = b.finish(&[out]);
        let found: Vec<f32> = run(&program, &[Source::Block(bytes(&x))], BLOCK);
        let mut scratch = program.scratch(BLOCK);
        execute_body(&program, &mut scratch, &[Source::Block(bytes(&x))], BLOCK);
        let portable = lanes::<f32>(bytemuck::cast_slice(&scratch.registers[1]), BLOCK);
        for (a, b) in found.iter().zip(portable) {
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{op:?}: {a} {b}");
        }
    }
}
