"""What heads of a safetensors file answer, by numpy alone; model cards show this module."""

import json

import numpy as np
from safetensors import safe_open


def predict(file, features):
    """Probabilities, values and decisions by name, of raw features of shape (N, D)."""
    with safe_open(file, "np") as opened:
        tasks = json.loads(opened.metadata()["tasks"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    x, found = np.asarray(features, np.float32), {}
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    for task in tasks:
        kind, limits, scores = task["task"]["kind"], task["task"]["limits"], np.float32(0)
        for head in task["heads"]:
            y = unit if head["normalise"] == "l2" else x
            for k in range(head["layers"]):
                y = np.maximum(y, 0) if k else y  # ReLU between Linears
                weight, bias = (tensors[f"{head['name']}.{k}.{t}"] for t in ("weight", "bias"))
                y = y @ weight.T + bias
            if kind == "multiclass":
                y = np.exp(y - y.max(1, keepdims=True))
                y = y / y.sum(1, keepdims=True)
            elif kind == "multilabel":
                y = (1 + np.tanh(y / 2)) / 2
            elif limits:
                y = np.clip(y, *limits)
            scores = scores + np.float32(head["weight"]) * y
        found[task["outputs"][0]] = scores
        if kind == "multiclass":
            bias, log = np.float32(task["bias"]), np.log(np.maximum(scores, 1e-12))
            found[task["outputs"][1]] = (log + bias if bias.any() else scores).argmax(1)
        elif kind == "multilabel":
            decided = scores >= np.float32(task["thresholds"])
            found[task["outputs"][1]] = decided.astype(np.int8)
    return found
