"""The cases: model × rules."""

CASES: list[tuple[str, str, list[dict]]] = []


def case(models, name, *rules):
  for m in models.split():
    CASES.append((m, name, list(rules)))


W8A8 = dict(weight_qtype='int8', act_qtype='int8')

A93 = dict(W8A8, act_calibration_method='absmax,0.93')

MLPS = 'linen_mlp linen_mlp_bf16 linen_mlp_bf16_params nnx_mlp linen_mlp_3d '
CONVS = 'linen_cnn nnx_cnn linen_conv1d '
DEEP = 'encoder_einsum encoder_mha encoder_mha_bf16 decoder_prefill decoder_step nnx_encoder moe '
FLOW = 'scan_layers remat_jit control_flow vmap_modules rnn threefry '
ODD = 'left_weight weight_views weight_stack einsums raw_params '

# int8, dynamic range and weight only, everywhere.
case(MLPS + 'linen_mlp_f16 linen_mlp_wide ' + CONVS + DEEP + FLOW + ODD, 'w8a8', W8A8)
case(MLPS + 'linen_mlp_f16 ' + DEEP + FLOW + ODD, 'w8', dict(weight_qtype='int8'))
case(CONVS + DEEP + 'control_flow rnn', 'w8a8_93', A93)
