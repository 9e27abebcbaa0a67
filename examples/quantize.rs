use qwix::{
    Checkpoint, CpuBackend, Model, PtqProvider, QuantizationRule, TensorFile, quantize_model, quantize_params,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load("examples/digits/model.hlo.pb")?;
    let fp_params = Checkpoint::open("examples/digits/params.safetensors")?.read_all()?;
    let inputs = model.read_inputs(&TensorFile::open("examples/digits/images.safetensors")?)?;

    let rules = vec![
        QuantizationRule::new("Dense_.*").weight_qtype("int4").tile_size(32),
        QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8"),
    ];
    let ptq_model = quantize_model(&model, &PtqProvider::new(rules)?)?;
    let template = ptq_model.abstract_params(); // shapes and how; nothing allocated
    let params = quantize_params(&fp_params, &template, None)?;

    let outputs = ptq_model.compile(&CpuBackend::default(), params)?.run(&inputs)?;
    println!("{:?}", outputs[0]); // f32[450, 10]: ten logits an image
    Ok(())
}
