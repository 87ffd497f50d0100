"""Runtimes besides torch and onnxruntime that run exported networks: one file for each."""

from __future__ import annotations

from hwnas.devices.runtimes.openvino import OpenVINO
from hwnas.devices.runtimes.runtime import Runtime

RUNTIMES: dict[str, Runtime] = {"openvino": OpenVINO()}
"""By the word of `backend=`."""
