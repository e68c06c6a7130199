"""Where arrays live: a mesh with axes data, fsdp and tensor, and a table from parameter paths to partition specs."""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast import BadInput, attention, bert
from bert_fast.method import Stage

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # examples are split over both axes

# The first pattern found in a leaf's path decides; every leaf must match one.
# Stacked leaves begin with the layer axis. Matrices of the layers are split over tensor by heads or neurons, and over
# fsdp by width. Biases of heads, neurons and word pieces are split over tensor; other vectors stay whole.
RULES = (
    # Word pieces are split over tensor and fsdp. With P("tensor", "fsdp"), which splits the width over fsdp, jax 0.10.2
    # gives wrong gradients of the MLM head on a 2x2x2 mesh of CPU devices (tests/test_sharding.py catches it).
    (r"(embed|mlm)/word$", P(("tensor", "fsdp"), None)),
    (r"embed/(position|type)$", P(None, "fsdp")),
    (r"layers/(qkv|mlp_hidden)/kernel$", P(None, "fsdp", "tensor")),  # columns of qkv are ordered by head
    (r"layers/(qkv|mlp_hidden)/bias$", P(None, "tensor")),
    (r"layers/attention_output/kernel$", P(None, "tensor", None, "fsdp")),
    (r"layers/mlp_output/kernel$", P(None, "tensor", "fsdp")),
    (r"(mlm/dense|next/pooler)/kernel$", P("fsdp", "tensor")),
    (r"mlm/bias$", P("tensor")),
    (r"(norm|output|dense|pooler|next)/(scale|bias|kernel)$", P()),
    (r"layers/[^/]+$", P()),  # per-layer parameters that a method adds
    (r"count$", P()),  # the optimizer's step count
)


def path_of(path) -> str:
    """A leaf's path in a tree: its keys, joined by '/'."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """A mesh of all devices, with its tensor axis within a process if possible. One size may be -1, for the remainder.

    Raises BadInput if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        raise BadInput(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit the number of devices, {len(devices)}: the "
            "product of the sizes must equal it; one size may be -1, for the remainder (--config.mesh.data=-1)"
        )
    types = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    if tensor_crosses(mesh):  # neighbours on a torus may belong to different hosts
        by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(by_process).reshape(sizes), AXES, axis_types=types)
    return mesh


def tensor_crosses(mesh: Mesh) -> bool:
    """Whether the tensor axis spans processes. If so, devices of different processes share the same examples."""
    groups = mesh.devices.reshape(-1, mesh.shape["tensor"])
    return any(len({device.process_index for device in group}) > 1 for group in groups)


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec of one parameter. Raises ValueError if no rule covers it, BadInput if an axis does not divide evenly."""
    spec = next((spec for pattern, spec in RULES if re.search(pattern, path)), None)
    if spec is None:
        raise ValueError(f"no sharding rule covers the parameter {path}: add one to RULES in {__name__}")
    for size, axes in zip(shape, spec, strict=False):
        axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
        devices = int(np.prod([mesh.shape[axis] for axis in axes]))
        if size % devices:
            asked = ", ".join(f"--config.mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            raise BadInput(
                f"{path} has an axis of {size}, which does not divide evenly over {devices} devices ({asked}): make "
                f"the mesh axis smaller, or the model's axis a multiple of {devices}"
            )
    return spec


def shard(tree, mesh: Mesh, prefix: str = ""):
    """The NamedSharding of every parameter of a tree. `prefix`: the path of the tree, if it is part of a larger one."""

    def sharding(path, leaf):
        return NamedSharding(mesh, spec_of(prefix + path_of(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def replicated(tree, mesh: Mesh):
    """Shardings that put every leaf whole on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, P()), tree)


def global_batch(batch, mesh: Mesh):
    """The device arrays of a batch. Each process passes its own examples, as NumPy arrays."""

    def array(x):
        whole = (len(x) * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), x, whole)

    return jax.tree.map(array, batch)


def check_stages(eval_size: int, expected: Sequence[Stage], mesh: Mesh):
    """Raises BadInput if a micro-batch, an evaluation batch or a stage's parameter does not divide evenly over the
    devices that share it.

    Also raises BadInput if `model.attention` cannot compute a stage's attention, or if the tensor axis spans processes.
    Such processes would need the same examples, but each process reads only its own.
    """
    if tensor_crosses(mesh):
        raise BadInput(
            f"--config.mesh.tensor={mesh.shape['tensor']} spans several of {jax.process_count()} processes: "
            "make it a divisor of the number of devices per process"
        )
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    micro_sizes = {stage.program.batch_size // stage.program.micro_batches for stage in expected}
    sizes = [("batch_size / micro_batches", size) for size in sorted(micro_sizes)]
    for name, size in (*sizes, ("eval.batch_size", eval_size)):
        if size % sharing:
            raise BadInput(
                f"--config.{name} is {size}, which does not divide evenly over the {sharing} devices of the mesh's "
                f"data and fsdp axes: make it a multiple of {sharing}"
            )
    for stage in expected:
        program = stage.program
        own = program.batch_size // program.micro_batches // sharing
        for span in program.plan:
            if own % span.examples_per_row:
                raise BadInput(
                    f"stage {stage.name}: {span.examples_per_row} examples per row do not divide a device's {own} of "
                    "a micro-batch: make --config.batch_size / micro_batches a multiple of "
                    f"{sharing * span.examples_per_row}, or leave examples_per_row out"
                )
        attention.backends(program.model, program.plan, program.seq_len, mesh.devices.flat[0].platform)
        try:
            shard(bert.shapes(stage.program.model), mesh)
        except BadInput as error:
            raise BadInput(f"stage {stage.name}: {error}") from None
