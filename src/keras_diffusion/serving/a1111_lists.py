"""The lists of A1111's interface: what there is to choose from."""

from starlette.concurrency import run_in_threadpool

from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.sampling import names
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.spacings import ALL_SPACINGS
from keras_diffusion.system.memory import physical_memory, resident_memory


async def models(request):
    """GET sd-models."""
    row = {"hash": None, "sha256": None, "config": None}
    known = await request.app.state.service.descriptions()
    return [{"title": name, "model_name": name, "filename": name, **row} for name in known]


async def samplers(request):
    """GET samplers."""
    return [
        {"name": row.spellings[0], "aliases": [name, *row.spellings[1:]], "options": {}}
        for name, row in SAMPLERS.items()
    ]


async def schedulers(request):
    """GET schedulers."""
    row = {"aliases": None, "default_rho": -1, "need_inner_model": False}
    labels = {name: names.LABELS.get(name, name.replace("_", " ").title()) for name in ("automatic", *ALL_SPACINGS)}
    return [{"name": name, "label": label, **row} for name, label in labels.items()]


async def loras(request):
    """GET loras."""
    found = await run_in_threadpool(request.app.state.service.adapters.loras)
    return [{"name": name, "alias": name, "path": path.name, "metadata": {}} for name, path in sorted(found.items())]


async def embeddings(request):
    """GET embeddings."""
    found = await run_in_threadpool(request.app.state.service.adapters.embeddings)
    shapes = {name: await run_in_threadpool(shape_of, path) for name, path in sorted(found.items())}
    row = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    loaded = {name: row | {"vectors": shape[0], "shape": shape[1]} for name, shape in shapes.items() if shape}
    return {"loaded": loaded, "skipped": {name: {} for name, shape in shapes.items() if not shape}}


def shape_of(path):
    """Returns the number of vectors of an embedding and their width, or None if the file holds none."""
    try:
        tensor = max(tensor_index.index(path).values(), key=lambda tensor: tensor.size)
    except (ValueError, OSError):
        return None
    return (tensor.size // tensor.shape[-1], tensor.shape[-1]) if tensor.size else None


async def scripts(request):
    """GET scripts."""
    listed = ["controlnet"] if await run_in_threadpool(request.app.state.service.adapters.controlnets) else []
    return {"txt2img": listed, "img2img": listed}


async def memory(request):
    """GET memory."""
    used, total = resident_memory() or 0, min(physical_memory(), 2**62)
    return {"ram": {"free": total - used, "used": used, "total": total}, "cuda": {}}
