"""The cases: model × rules."""

# (model, name of the rules, rules, whether this is Qwix's own way where we do more)
CASES: list[tuple[str, str, list[dict], bool]] = []


def case(models, name, *rules, compat=False):
  for m in models.split():
    CASES.append((m, name, list(rules), compat))


W8A8 = dict(weight_qtype='int8', act_qtype='int8')
W8 = dict(weight_qtype='int8')
A93 = dict(W8A8, act_calibration_method='absmax,0.93')

MLPS = 'linen_mlp linen_mlp_bf16 linen_mlp_bf16_params nnx_mlp linen_mlp_3d '
CONVS = 'linen_cnn nnx_cnn linen_conv1d '
DEEP = 'encoder_einsum encoder_mha encoder_mha_bf16 nnx_encoder moe '
DECODERS = 'decoder_prefill decoder_step '
FLOW = 'scan_layers remat_jit control_flow vmap_modules rnn threefry '
ODD = 'left_weight weight_views weight_stack einsums raw_params '

# int8, dynamic range and weight only, everywhere. Qwix cannot quantize an
# embedding that is both looked up and multiplied with, so it stays.
EMBEDDER = dict(module_path='embedder')
case(MLPS + 'linen_mlp_f16 linen_mlp_traced linen_mlp_wide ' + CONVS + DEEP + FLOW + ODD, 'w8a8', W8A8)
case(MLPS + 'linen_mlp_f16 ' + DEEP + FLOW + ODD, 'w8', W8)
case(CONVS + DEEP + 'control_flow rnn', 'w8a8_93', A93)
case(DECODERS, 'w8a8', EMBEDDER, W8A8)
case(DECODERS, 'w8', EMBEDDER, W8)
case(DECODERS, 'w8a8_93', EMBEDDER, A93)
case('decoder_step', 'w8a8_tied', W8A8)  # refused
case('left_weight', 'w8a8_compat', W8A8, compat=True)
case('left_weight', 'w8_compat', W8, compat=True)
case('linen_cnn', 'w8', W8)  # refused: a convolution wants both or neither

# Every qtype: weights alone, then both sides.
INTS = ['int2', 'int3', 'int4', 'int5', 'int6', 'int7']
FLOATS = ['float8_e4m3fn', 'float8_e5m2', 'float4_e2m1fn']
for q in INTS + ['nf4'] + FLOATS:
  short = q.replace('float8_', '').replace('float4_', '')
  case('linen_mlp linen_mlp_bf16_params', f'w_{short}', dict(weight_qtype=q))
  case('linen_mlp', f'wa_{short}', dict(weight_qtype=q, act_qtype=q))
  case('linen_mlp_64', f'w_{short}_t16', dict(weight_qtype=q, tile_size=16))
case('linen_mlp_bf16_params', 'wa_e4m3fn', dict(weight_qtype='float8_e4m3fn', act_qtype='float8_e4m3fn'))
case('linen_mlp_bf16_params', 'wa_int4', dict(weight_qtype='int4', act_qtype='int4'))
for q, tile in (('mxfp8', 32), ('mxfp4', 32), ('nvfp4', 16)):
  case('linen_mlp_64 linen_mlp_64_bf16', f'w_{q}', dict(weight_qtype=q, tile_size=tile))
  case('linen_mlp_64 linen_mlp_64_bf16', f'wa_{q}', dict(weight_qtype=q, act_qtype=q, tile_size=tile))
case('linen_mlp', 'wa_int4_e4m3fn', dict(weight_qtype='int4', act_qtype='float8_e4m3fn'))
case('linen_mlp', 'w_int4_a_int8', dict(weight_qtype='int4', act_qtype='int8'))
case('linen_mlp', 'w_nf4_a_int8', dict(weight_qtype='nf4', act_qtype='int8'))

# Tiles: below and above 128, by size and by count.
case('linen_mlp_64 encoder_einsum', 'w_int4_t8', dict(weight_qtype='int4', tile_size=8))
case('linen_mlp_64 nnx_mlp', 'w_int4_quarter', dict(weight_qtype='int4', tile_size=0.25))
case('linen_mlp_64_bf16', 'w_nf4_t32', dict(weight_qtype='nf4', tile_size=32))
case('linen_mlp_64', 'w8a8_t32', dict(W8A8, tile_size=32))
case('linen_mlp_wide', 'w4a8_t128',
     dict(module_path='Dense_0', weight_qtype='int4', act_qtype='int8', tile_size=128), W8A8)
case('linen_mlp_wide', 'w8a8_half', dict(module_path='Dense_0', tile_size=0.5, **W8A8))
case('linen_mlp_wide', 'w8a8_minmax_t128',
     dict(module_path='Dense_0', tile_size=128, act_calibration_method='minmax', **W8A8))
case('linen_mlp', 'w_int4_t5', dict(weight_qtype='int4', tile_size=5))  # refused

# Calibration.
for m in ('linen_mlp linen_mlp_bf16_params',):
  case(m, 'w_minmax', dict(W8, weight_calibration_method='minmax'))
  case(m, 'w_minmax_a8', dict(W8A8, weight_calibration_method='minmax'))
  case(m, 'a_minmax', dict(W8A8, act_calibration_method='minmax'))
  case(m, 'a_minmax_08', dict(W8A8, act_calibration_method='minmax,0.8'))
  case(m, 'w_rms', dict(W8, weight_calibration_method='rms,3'))
  case(m, 'wa_rms', dict(W8A8, weight_calibration_method='rms,3', act_calibration_method='RMS,2.5'))
  case(m, 'a_fixed', dict(W8A8, act_calibration_method='fixed,2'))
  case(m, 'a_fixed_asymmetric', dict(W8A8, act_calibration_method='fixed,-0.5,2.5'))
case('linen_mlp', 'w_int4_minmax', dict(weight_qtype='int4', weight_calibration_method='minmax'))
case('linen_mlp_64', 'w_int4_minmax_t16',
     dict(weight_qtype='int4', weight_calibration_method='minmax,0.95', tile_size=16))
case('linen_mlp', 'w_fixed', dict(W8, weight_calibration_method='fixed,-0.4,0.4'))
case('linen_mlp', 'wa_minmax', dict(W8A8, weight_calibration_method='minmax', act_calibration_method='minmax'))  # refused
case('linen_cnn nnx_cnn', 'a_minmax_09', dict(W8A8, act_calibration_method='minmax,0.9'))
case('linen_cnn', 'wa_int4', dict(weight_qtype='int4', act_qtype='int4'))
case('linen_cnn nnx_cnn', 'wa_e4m3fn', dict(weight_qtype='float8_e4m3fn', act_qtype='float8_e4m3fn'))
case('linen_conv1d', 'wa_e5m2', dict(weight_qtype='float8_e5m2', act_qtype='float8_e5m2'))
case('nnx_cnn', 'wa_nf4', dict(weight_qtype='nf4', act_qtype='nf4'))
case('linen_conv1d', 'wa_int6', dict(weight_qtype='int6', act_qtype='int6'))

# Several rules, in order.
case('encoder_mha', 'mixed',
     dict(module_path=r'(?!pooler)(?:.*_)?Dense_\d*[02468]', weight_qtype='int4', tile_size=8),
     dict(module_path=r'.*Attention_\d+/(?:query|key)', weight_qtype='nf4'),
     dict(module_path=r'.*(?<!_0)/value', weight_qtype='float8_e4m3fn', act_qtype='float8_e4m3fn'),
     dict(op_names=['einsum'], **A93),
     dict(module_path='nothing/.*', weight_qtype='int8'),
     dict(module_path=r'pooler|.*/out', **W8A8))
case('encoder_einsum', 'attention_only',
     dict(module_path=r'attn_1', op_names=['einsum'], **A93),
     dict(module_path=r'attn', weight_qtype='int8'))
case('encoder_einsum', 'dots_only', dict(op_names=['dot_general'], weight_qtype='int4', tile_size=16))
case('decoder_prefill', 'w_nf4', EMBEDDER, dict(weight_qtype='nf4'))
case('decoder_step', 'mixed', EMBEDDER,
     dict(module_path=r'mlp_\d/(?P<which>gate|up)', weight_qtype='int4', tile_size=8),
     dict(module_path=r'attn_\d(?!/).*', op_names=['dot_general', 'einsum'], **A93),
     dict(module_path=r'.*/down', weight_qtype='mxfp8', tile_size=32),
     dict(weight_qtype='float8_e4m3fn'))
case('nnx_encoder', 'mixed',
     dict(module_path=r'attn(?:/\w+)?', **A93), dict(module_path='up', weight_qtype='nf4', tile_size=8),
     dict(module_path='down', weight_qtype='nvfp4', act_qtype='nvfp4', tile_size=16))
case('moe', 'experts_int4', dict(module_path='router'), dict(weight_qtype='int4', tile_size=8))
case('scan_layers', 'w_int4_t8', dict(module_path=r'layers.*/(up|down)', weight_qtype='int4', tile_size=8))
case('nnx_cnn', 'first_float', dict(module_path='conv1'), A93)
case('einsums', 'w_int4_half', dict(weight_qtype='int4', tile_size=0.5))
case('weight_views', 'w_nf4', dict(weight_qtype='nf4'))
case('raw_params', 'w_e4m3fn', dict(module_path='dec', weight_qtype='float8_e4m3fn'))

# Static ranges: (model, name of the rules, rules).
STATIC_CASES: list[tuple[str, str, list[dict]]] = []


def static_case(models, name, *rules):
  for m in models.split():
    STATIC_CASES.append((m, name, list(rules)))


S8 = dict(W8A8, act_static_scale=True)
SMIN = dict(S8, act_calibration_method='minmax')
static_case('linen_mlp linen_mlp_3d linen_mlp_bf16 linen_cnn encoder_einsum encoder_mha linen_conv1d einsums', 's8', S8)
static_case('linen_mlp linen_mlp_3d linen_mlp_bf16 linen_cnn einsums', 's8_minmax', SMIN)
# Products of two activations cannot both have a zero point.
static_case('encoder_einsum', 's8_minmax', dict(S8, module_path='attn.*'), SMIN)
static_case('linen_mlp_3d encoder_einsum', 's8_axes01', dict(S8, act_batch_axes=[0, 1]))
# With the range itself, one activation happens to lie a unit in the last place from a rounding tie.
static_case('encoder_mha', 's8_95_axes01', dict(S8, act_calibration_method='absmax,0.95', act_batch_axes=[0, 1]))
static_case('linen_mlp_3d', 's8_minmax_last', dict(SMIN, act_batch_axes=[-3, -2]))
static_case('linen_mlp_3d', 's8_each', dict(S8, act_batch_axes=[]))
static_case('linen_mlp', 's8_rms', dict(S8, act_calibration_method='rms,2.5', act_batch_axes=[0]))
static_case('linen_mlp', 's8_fixed', dict(S8, act_calibration_method='fixed,-0.5,2.5'))
static_case('linen_mlp', 's8_fixed_symmetric', dict(S8, act_calibration_method='fixed,2'))
static_case('linen_mlp linen_cnn', 's8_absmax09', dict(S8, act_calibration_method='absmax,0.9'))
static_case('linen_mlp linen_mlp_3d', 's_w4a8', dict(S8, weight_qtype='int4'))
static_case('linen_mlp', 's_int4', dict(S8, weight_qtype='int4', act_qtype='int4'))
static_case('linen_mlp linen_cnn', 's_e4m3fn', dict(S8, weight_qtype='float8_e4m3fn', act_qtype='float8_e4m3fn'))
static_case('linen_mlp_wide', 's8_t128', dict(S8, module_path='Dense_0', tile_size=128), S8)
static_case('linen_mlp linen_mlp_3d', 's8_one', dict(S8, disable_channelwise_axes=True))
static_case('decoder_prefill', 's8_axes01', EMBEDDER, dict(S8, act_batch_axes=[0, 1]))
# The decoder's batch is of one: the range of the first batch is its own largest value, which lies on the rounding tie.
S93 = dict(S8, act_calibration_method='absmax,0.93')
static_case('decoder_prefill', 's8_93', EMBEDDER, S93)
static_case('decoder_prefill', 's_w4a8_minmax', EMBEDDER, dict(S93, op_names=['einsum']),
            dict(S8, weight_qtype='int4', act_calibration_method='minmax,0.9', act_batch_axes=[0, 1]))
