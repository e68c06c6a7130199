"""Compiled train steps, one per program, and the device arrays that they take."""

import functools
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_fast.method import Program
from bert_fast.plan import Route
from bert_fast.train.compiler_options import Options, options_for
from bert_fast.train.sharding import replicated, shard
from bert_fast.train.step import LARGEST, TrainState


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of the state lives: moments with their parameters, the methods' state on every device."""
    return TrainState(
        NamedSharding(mesh, P()),
        shard(state.params, mesh),
        shard(state.frozen, mesh),
        shard(state.opt_state, mesh),
        replicated(state.method, mesh),
    )


def place(tree, mesh: Mesh):
    """Copies whole NumPy arrays to every device."""
    sharding = NamedSharding(mesh, P())
    # device_put would compare the values across processes, at every step.
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at]), tree)


class Programs:
    """Compiled train steps, by the key from `key_of`. Each is compiled once.

    options: the compiler's options. By default, they come from compiler_options.py for the mesh's platform.
    """

    def __init__(self, step: Callable, mesh: Mesh, options: Options | None = None):
        self.step, self.mesh = step, mesh
        self.options = options_for(mesh.devices.flat[0].platform) if options is None else options
        self.compiled: dict[Hashable, Callable] = {}
        self.coming: dict[Hashable, Future] = {}
        self.background = ThreadPoolExecutor(1, "compile")

    @staticmethod
    def key_of(program: Program, state: TrainState, route: Route) -> Hashable:
        """The key of a compiled step: the program, whether a route is in use, and the state's structure and shapes.

        The program alone is not enough: after a search that prunes nothing, the next stage has the same program, but
        its state lacks the leaves that the method had added.
        """
        leaves, structure = jax.tree.flatten(state)
        return program, route.layers_R is not None, structure, tuple(leaf.shape for leaf in leaves)

    def lower(self, program: Program, state, batch, route, learning_rate, seed, limit):
        """The train step of a program, lowered for arrays (or shapes with shardings) like these."""
        shardings = jax.tree.map(lambda x: x.sharding, state)
        jitted = jax.jit(
            functools.partial(self.step, program=program),
            donate_argnums=0,
            out_shardings=(shardings, NamedSharding(self.mesh, P())),
            compiler_options=dict(self.options) or None,
        )
        with jax.set_mesh(self.mesh):  # kernels look up the mesh: see attention/
            return jitted.lower(state, batch, route, learning_rate, seed, limit=limit)

    def has(self, program: Program, state: TrainState, route: Route) -> bool:
        return self.key_of(program, state, route) in self.compiled

    def begin(self, program: Program, *arguments):
        """Starts compiling a program in the background. Takes the arguments of `__call__`."""
        key = self.key_of(program, arguments[0], arguments[2])
        if key in self.compiled or key in self.coming:
            return
        # The background thread gets only shapes, because the next step donates the arrays of the state.
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.placed(*arguments)
        )
        self.coming[key] = self.background.submit(lambda: self.lower(program, *shapes).compile())

    def add(self, program: Program, *arguments):
        """Compiles a program for these arguments, or waits for the compilation that `begin` started."""
        self.begin(program, *arguments)
        key = self.key_of(program, arguments[0], arguments[2])
        self.compiled[key] = self.coming[key].result()
        del self.coming[key]

    def cancel(self):
        """Drops the compilations that have not started. The one in progress finishes."""
        self.coming = {key: future for key, future in self.coming.items() if not future.cancel()}

    def close(self):
        """Drops the compilations that have not started, and accepts no new ones."""
        self.background.shutdown(wait=False, cancel_futures=True)

    def placed(self, state: TrainState, batch, route: Route, learning_rate: float, seed: int, limit: float = LARGEST):
        scalars = (np.float32(learning_rate), np.uint32(seed), np.float32(limit))
        return state, batch, *(place(tree, self.mesh) for tree in (route, *scalars))

    def __call__(self, program: Program, *arguments):
        """Takes one step: (state, batch, route, learning_rate, seed, limit) -> (state, metrics).

        The program's plan must be packed, the program must have been added, and the route must fit the plan.
        """
        *placed, limit = self.placed(*arguments)
        return self.compiled[self.key_of(program, arguments[0], arguments[2])](*placed, limit=limit)
