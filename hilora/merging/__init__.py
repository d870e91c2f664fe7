"""Several adapters made into one, where no gate computes what they come to together."""

from __future__ import annotations

from hilora.merging.fusion import fuse
from hilora.merging.lego import cluster_components

__all__ = ["cluster_components", "fuse"]
