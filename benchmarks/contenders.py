"""Who races: one row each."""


def keras(backend, jit_compile="auto", **environment):
    return "ours", {"jit_compile": jit_compile}, {"KERAS_BACKEND": backend, **environment}


def keras_cv(jit_compile, **environment):
    return "keras_cv", {"jit_compile": jit_compile}, {"KERAS_BACKEND": "tensorflow", **environment}


CONTENDERS = {  # name → module in peers/, options of its functions, environment variables
    "diffusers": ("diffusers", {"convert": "eager"}, {}),
    "diffusers-compiled": ("diffusers", {"convert": "compiled"}, {}),
    "diffusers-openvino": ("diffusers", {"convert": "openvino"}, {}),
    "keras-cv": keras_cv(False),
    "keras-cv-xla": keras_cv(True),
    "stable-diffusion-cpp": ("stable_diffusion_cpp", {"flash_attention": False}, {}),
    "stable-diffusion-cpp-flash": ("stable_diffusion_cpp", {"flash_attention": True}, {}),
    "tensorflow": keras("tensorflow", False),
    "tensorflow-onednn": keras("tensorflow", False, TF_ENABLE_ONEDNN_OPTS="1"),
    "tensorflow-eigen": keras("tensorflow", False, TF_ENABLE_ONEDNN_OPTS="0"),
    "tensorflow-xla": keras("tensorflow", True),
    "jax": keras("jax", True),
    "openvino": keras("tensorflow", "openvino"),
    "torch": keras("torch", False),
    "torch-stored": ("ours", {"jit_compile": False, "dtype": "stored"}, {"KERAS_BACKEND": "torch"}),
    "torch-compiled": keras("torch", True),
}
