"""Names what computes, for those that must do without Keras."""

BACKENDS = ("tensorflow", "jax", "torch")
JIT_COMPILE = {"auto": "auto", "xla": True, "openvino": "openvino", "off": False}  # a command's word → `jit_compile`
COMPILED = "xla"  # the word for True
EXPLAINED = f"{', '.join(JIT_COMPILE)} (default: auto; without a value: {COMPILED})"
