"""Run a recorded call through the PyTorch model."""

from typing import Any

import torch
from torch import Tensor

from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.autoregressive.denoise import learned_denoise, score, score_denoise
from starflow.training.autoregressive.model import AutoregressiveFlow, JacobiTrace
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.families import build_flow
from starflow.training.state_check import check_tensors
from tests.conformance.cases import Case


def model_config(case: Case) -> StarflowConfig | TarflowConfig:
    kind = StarflowConfig if case.config["family"] == "starflow" else TarflowConfig
    return kind.model_validate(case.config["constructor"])


def load_model(case: Case) -> AutoregressiveFlow:
    model = build_flow(model_config(case))
    check_tensors(case.name, {name: tuple(value.shape) for name, value in case.weights.items()}, model)
    expected = model.state_dict()
    model.load_state_dict({name: value for name, value in case.weights.items() if name in expected})
    return model.eval()


def call_guidance(case: Case, args: dict[str, Any]) -> Guidance:
    """The recorded arguments as a Guidance; STARFlow's annealing and `guide_what` are dead in the reference."""
    what = args.get("guide_what", "ab")
    weight = float(args.get("guidance", 0))
    if case.config["family"] == "starflow":
        return Guidance(weight if what else 0.0, top_only=bool(args.get("guide_top")))
    return Guidance(weight, scale="a" in what, shift="b" in what, annealed=bool(args.get("annealed_guidance")))


def call_jacobi(args: dict[str, Any]) -> Jacobi | None:
    if not args.get("jacobi"):
        return None
    return Jacobi(args["jacobi_block_size"], args["jacobi_th"], args["jacobi_max_iter"])


def split_condition(y: Tensor | None, batch: int) -> tuple[Tensor | None, Tensor | None]:
    """The recorded y holds [cond, null] rows when it has twice the batch."""
    return (y[:batch], y[batch:]) if y is not None and y.shape[0] == 2 * batch else (y, None)


def attention_temperature(args: dict[str, Any]) -> float:
    """The Jacobi sampler of the reference ignores attn_temp."""
    return 1.0 if args.get("jacobi") else float(args.get("attn_temp", 1.0))


def run_call(case: Case, model: AutoregressiveFlow, call: dict[str, Any]) -> dict[str, Any]:
    """Outputs of one call by their recorded keys."""
    inputs = {argument: case.tensors[name] for argument, name in call["inputs"].items()}
    return OPERATIONS[call["op"]](model, inputs, call["args"], case)


def _rope(model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case) -> dict[str, Any]:
    patch = model.config.patch_size
    grid = (inputs["x"].shape[-2] // patch, inputs["x"].shape[-1] // patch)
    outputs = {}
    tables = {"angles_shallow": model.block_configs[0], "angles_top": model.block_configs[-1]}
    if isinstance(model, Starflow) and model.config.learnable_self_denoiser:
        tables["angles_denoiser"] = model.learnable_self_denoiser.block
    for key, config in tables.items():
        prefix = inputs["y"].shape[1] if config.condition == "prefix" else 0
        angles = model.rotation(config, *grid, prefix)
        assert angles is not None
        outputs[key] = angles.repeat_interleave(2, dim=1)
    return outputs


def _forward(model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case) -> dict[str, Any]:
    with torch.no_grad():
        out = model(inputs["x"], inputs.get("y"))
    patch = model.config.patch_size
    grid = (inputs["x"].shape[2] // patch, inputs["x"].shape[3] // patch)
    starflow = case.config["family"] == "starflow"
    outputs = {
        "z": out.z,
        "text_out": out.condition,
        "loss": out.loss,
        "loss_z": out.loss_z,
        "loss_logdet": out.loss_log_det,
        "loss_weighted": out.loss * args.get("loss_weight", 1.0),
        "logdet": sum(term.mean((1, 2)) for term in out.log_dets if term.ndim > 1),
    }
    # STARFlow's act.0 is the patched input, TARFlow's the output of block 0.
    for index, tokens in enumerate(out.activations if starflow else out.activations[1:]):
        outputs[f"act.{index}"] = tokens.unflatten(1, grid) if starflow else tokens
    for index, (log_det, raw) in enumerate(zip(out.log_dets, out.raws, strict=True)):
        outputs[f"logdet.{index}"] = log_det if starflow or log_det.ndim == 1 else log_det.mean((1, 2))
        outputs[f"raw.{index}"] = raw
    return outputs


def _reverse(model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case) -> dict[str, Any]:
    noise = inputs["noise"]
    y, y_null = split_condition(inputs.get("y"), noise.shape[0])
    sequence: list[Tensor] = []
    trace: list[JacobiTrace] = []
    sample = model.reverse(
        noise,
        y,
        y_null,
        guidance=call_guidance(case, args),
        attention_temperature=attention_temperature(args),
        jacobi=call_jacobi(args),
        sequence=sequence,
        trace=trace,
    )
    outputs: dict[str, Any] = {f"seq.{index + 1}": value for index, value in enumerate(sequence)}
    if case.config["family"] == "tarflow":
        size = model.config.img_size
        outputs["seq.0"] = model._image(noise, size, size)
    return outputs | {"sample": sample, "jacobi_trace": trace}


def denoising_rate(args: dict[str, Any]) -> float:
    return float(args.get("lr", 1.0))


def _score_denoise(
    model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case
) -> dict[str, Any]:
    x, y = inputs["x"], inputs.get("y")
    return {
        "x_denoised": score_denoise(model, x, y, noise_std=args["noise_std"], rate=denoising_rate(args)),
        "grad": -score(model, x, y) / x.numel(),
    }


def _denoiser(model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case) -> dict[str, Any]:
    assert isinstance(model, Starflow)
    x, y = inputs["x"], inputs.get("y")
    with torch.no_grad():
        prediction = model.denoiser_prediction(x, y)
    denoised = learned_denoise(model, x, y, noise_std=args["sigma_curr"], target_std=args["sigma_next"])
    return {"prediction": prediction, "x_denoised": denoised}


def _label_embedding(
    model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case
) -> dict[str, Any]:
    return {"y": model.encode_labels(inputs["ids"])}


def _update_prior(
    model: AutoregressiveFlow, inputs: dict[str, Tensor], args: dict[str, Any], case: Case
) -> dict[str, Any]:
    model.update_prior(inputs["z"])  # type: ignore[operator]
    return {"var": model.var}


OPERATIONS = {
    "rope": _rope,
    "forward": _forward,
    "reverse": _reverse,
    "label_embedding": _label_embedding,
    "update_prior": _update_prior,
    "score_denoise": _score_denoise,
    "denoiser": _denoiser,
}
