"""An agent's step as an ONNX model, and the check that it computes what the agent does.

The model is made by tracing (torch's ``dynamo=False``): it takes a second or two where the other exporter takes ten to
forty, and what tracing could get wrong, a size or a branch that was fixed at one example, is what :func:`differences`
would show: every model is compared with its agent, at two batch sizes, before it is written.
"""

import io
import json
import pathlib
import warnings
from typing import Any

import torch
from numpy.typing import NDArray

from agents.checks.extras import require
from agents.deploy.step import AgentStep, ExportError

OPSET = 18
TOLERANCE = 1e-4
"""The largest difference between an agent and its model at which the model is written."""

Arrays = list[NDArray[Any]]


def model_of(step: AgentStep) -> bytes:
    """The step as an ONNX model with a dynamic number of agents.

    Raises:
        ExportError: a memory, an encoder or a layer has an operation that ONNX does not.
    """
    require("onnx", "onnx")
    axes = {name: {0: "agents"} for name in (*step.input_names, *step.output_names) if name != "seed"}
    file = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                step,
                step.example(2),
                file,  # type: ignore[arg-type]
                input_names=step.input_names,
                output_names=step.output_names,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:
        memory, encoder = step.policy.memory_actor, step.policy.pi_features_extractor
        raise ExportError(
            f"{type(memory).__name__} behind {type(encoder).__name__} cannot be expressed in ONNX "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); export it as .pt, or use another of them"
        ) from error
    return file.getvalue()


def with_metadata(model: bytes, metadata: dict[str, Any]) -> bytes:
    """The model with properties under ``recurl.NAME``, each as JSON."""
    onnx = require("onnx", "onnx")
    loaded = onnx.load_from_string(model)
    for name, value in metadata.items():
        entry = loaded.metadata_props.add()
        entry.key, entry.value = f"recurl.{name}", json.dumps(value)
    return bytes(loaded.SerializeToString())


class OnnxStep:
    """Runs a model on arrays, inputs and outputs as those of :class:`agents.deploy.step.AgentStep`."""

    def __init__(self, model: bytes | str | pathlib.Path) -> None:
        runtime = require("onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        source = str(model) if isinstance(model, pathlib.Path) else model
        self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.input_names = [each.name for each in self._session.get_inputs()]
        self.output_names = [each.name for each in self._session.get_outputs()]
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {
            name.removeprefix("recurl."): json.loads(value)
            for name, value in properties.items()
            if name.startswith("recurl.")
        }

    def __call__(self, inputs: Arrays) -> Arrays:
        named = dict(zip(self.all_inputs, inputs, strict=True))
        return self._session.run(None, {name: named[name] for name in self.input_names})  # type: ignore[no-any-return]

    @property
    def all_inputs(self) -> list[str]:
        """Those of the step, of which a model lacks what its outputs do not depend on."""
        return list(self.metadata.get("inputs", self.input_names))
